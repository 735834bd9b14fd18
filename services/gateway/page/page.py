"""The page of one gateway: the thread that makes reports, the HTTP server, and the look-ups.

The gateway's loop hands over what it has heard, once a second, and takes questions of look-ups;
all the rest is done in threads of the page's own, which let the loop go first.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from tallybus.services.gateway.page.feed import Feed, Heard
from tallybus.services.gateway.page.lookup import Lookups
from tallybus.services.gateway.page.server import PageServer

EVERY_NS: Final = 1_000_000_000
"""How often there is a report."""
SILENT_S: Final = 2.0
"""After so long without notes from the loop, reports say that it does not answer."""


class Page:
    """Runs from `start` to `close`. `facts` stand in every report; `wake` ends the loop's wait."""

    def __init__(
        self,
        address: tuple[str, int],
        facts: Mapping[str, Any],
        wake: Callable[[], None],
        log: logging.Logger,
    ) -> None:
        self.lookups = Lookups(wake)
        self.reporter = Reporter(Feed(facts), log)
        self.server = PageServer(address, self.reporter, self.lookups.look_up, log)
        self._due_ns = 0

    def start(self) -> None:
        self.reporter.start()
        self.server.start()

    def due(self, now_ns: int) -> bool:
        """Whether it is time to hand over what was heard. It is asked in every turn of the loop."""
        if now_ns < self._due_ns:
            return False
        # Counted on from when it was due, so that a second has one report.
        self._due_ns = max(self._due_ns + EVERY_NS, now_ns + EVERY_NS // 2)
        return True

    def take(self, heard: Heard) -> None:
        """What the loop has heard so far."""
        self.reporter.take(heard)

    def close(self) -> None:
        """End every connection and every thread."""
        self.lookups.close()
        self.reporter.close()
        self.server.close()


class Reporter:
    """A thread that makes reports of what it is handed, and keeps the newest one."""

    def __init__(self, feed: Feed, log: logging.Logger) -> None:
        self._feed = feed
        self._log = log
        self._changed = threading.Condition()
        self._heard: Heard | None = None
        self._closing = False
        self._silent = False
        self._number = 0
        self._report: Mapping[str, Any] = {}
        self._encoded: tuple[int, bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="page-reports", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, heard: Heard) -> None:
        """Something new to report."""
        with self._changed:
            self._heard = heard
            self._changed.notify_all()

    def wait(self, after: int, seconds: float) -> tuple[int, bytes] | None:
        """See `server.Reports`."""
        limit = time.monotonic() + seconds
        with self._changed:
            while self._number <= after:
                left = limit - time.monotonic()
                if left <= 0 or self._closing:
                    return None
                self._changed.wait(left)
            if self._encoded is None:
                # Only when somebody looks.
                line = json.dumps(self._report, allow_nan=False, separators=(",", ":"))
                self._encoded = self._number, line.encode()
            return self._encoded

    def close(self) -> None:
        """End the thread, and whoever waits."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while (report := self._next()) is not None:
                with self._changed:
                    self._report, self._encoded = report, None
                    self._number += 1
                    self._changed.notify_all()
        except Exception:  # noqa: BLE001 (told in the log)
            # Whatever it is, the ledger goes on; whoever looks sees that reports end.
            self._log.exception("the page makes no reports any more")

    def _next(self) -> dict[str, Any] | None:
        """The next report; None: there will be none."""
        with self._changed:
            self._changed.wait_for(self._woken, EVERY_NS / 1e9 if self._silent else SILENT_S)
            if self._closing:
                return None
            heard, self._heard = self._heard, None
        self._silent = heard is None
        if heard is not None:
            return self._feed.add(heard)
        why = "the gateway's loop is busy or stands still"
        return self._feed.silence(time.monotonic_ns(), time.time_ns(), why)

    def _woken(self) -> bool:
        return self._heard is not None or self._closing
