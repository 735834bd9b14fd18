"""The committer: one thread that makes what is written durable, and alone moves the durable index.

This is group commit without a timer. It syncs as soon as something is written and not synced. What
is written during a sync is covered by the next one. It reads how far the log is written, syncs, and
only then publishes what it had read.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from tallybus.services.wal.log import Written


class SyncTarget(Protocol):
    """What the committer needs of a log."""

    written: Written
    on_written: Callable[[], None] | None

    def sync(self) -> None:
        """Make everything durable that was written before the call."""


class Committer:
    """Advances `durable_index` behind a log's written index.

    durable_index: last transaction id that survives a crash; it never goes back. failure: the first
    error, mostly a StorageError; after it nothing is synced or advanced any more. measured: called
    with the nanoseconds of each sync, where somebody counts them. notify is called
    in the committer's thread after each advance and once after a failure; it must return quickly.
    """

    def __init__(self, log: SyncTarget, notify: Callable[[], None]) -> None:
        """What the log holds already must be durable (it is after `Log.open`)."""
        self.durable_index = log.written.last_id
        self.failure: Exception | None = None
        self.measured: Callable[[int], None] | None = None
        self._log = log
        self._notify = notify
        self._synced_position = log.written.position
        self._wanted = threading.Condition()
        self._written = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        log.on_written = self.wake

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Something was written. `Log` calls this by itself."""
        with self._wanted:
            self._written = True
            self._wanted.notify()

    def close(self) -> None:
        """Sync what is written, end the thread, join it. Look at `failure` afterwards."""
        with self._wanted:
            self._closing = True
            self._wanted.notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._log.on_written = None

    def _run(self) -> None:
        try:
            while self._wait():
                self._commit()
            self._commit()
        except Exception as error:  # noqa: BLE001
            # Whatever it is, the index must not move any more, and the service must hear of it.
            self.failure = error
            with suppress(Exception):  # It may be the callback that failed.
                self._notify()

    def _wait(self) -> bool:
        """False when the log is closing."""
        with self._wanted:
            while not self._written and not self._closing:
                self._wanted.wait()
            self._written = False
            return not self._closing

    def _commit(self) -> None:
        written = (
            self._log.written
        )  # Read before the sync: only what was written by now is covered.
        if written.position == self._synced_position:
            return
        started_ns = time.monotonic_ns()
        self._log.sync()
        if self.measured is not None:
            self.measured(time.monotonic_ns() - started_ns)
        self._synced_position = written.position
        if written.last_id > self.durable_index:
            self.durable_index = written.last_id
            self._notify()
