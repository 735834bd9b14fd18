"""A thread beside the one that executes: it sees what an operator suspends, and calls that run for
too long.

It looks at the folder of suspended functions ten times a second, and at the call that runs. Only
this thread can: the other one may be in the middle of a call. It starts with the first function, so
a ledger without functions does not pay for it (ADR 0016).
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Final

from tallybus.common import logs
from tallybus.common.files import Storage, StorageError
from tallybus.common.functions.suspended import suspended_names
from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.runtime import FunctionRuntime

LOOK_S: Final = 0.1
OVERTIME_NS: Final = 100_000_000
"""A call may take this long, however little fuel it has, and not longer than a submit's calls may
take together."""
NS_PER_FUEL: Final = 10
"""A unit of fuel takes no longer than this, by far: what does has escaped the metering."""


class FunctionWatcher:
    """Watches for one engine. `start` in the thread that executes."""

    def __init__(
        self,
        runtime: FunctionRuntime,
        folder: Path,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        storage: Storage | None = None,
    ) -> None:
        """`folder` is the data folder."""
        self._runtime = runtime
        self._folder = folder
        self._log = log
        self._storage = storage or Storage()
        self._names: frozenset[str] = frozenset()
        self._troubled = False
        self._closing = threading.Event()
        self._clock = 0
        self._seen = (0, 0, 0)
        """Number of the call that ran at the last look, its slot, and the other thread's time."""

    def start(self) -> None:
        """Suspend what is suspended now, and go on in a thread."""
        self.look()
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        threading.Thread(target=self._run, name="function-watcher", daemon=True).start()

    def _run(self) -> None:
        while not self._closing.wait(LOOK_S):
            self.look()
            try:
                cpu_ns = time.clock_gettime_ns(self._clock)
            except OSError:
                return  # the other thread has ended
            self.look_at_call(cpu_ns)

    def look(self) -> None:
        """See which functions are suspended."""
        try:
            names = suspended_names(self._folder, self._storage)
        except StorageError as error:
            # Whatever was suspended stays so: it was for a reason.
            if not self._troubled:
                self._troubled = True
                self._log.error("cannot see what is suspended: %s", error)
            return
        self._troubled = False
        if names == self._names:
            return
        for name in sorted(names - self._names):
            self._log.warning("a function is suspended", extra=logs.fields(function=name))
        for name in sorted(self._names - names):
            self._log.info("a function runs again", extra=logs.fields(function=name))
        self._names = names
        self._runtime.suspend(names)

    def look_at_call(self, cpu_ns: int) -> None:
        """End the call that runs if it is in overtime; `cpu_ns`: time that its thread has run."""
        words = self._runtime.calls.words
        count, running = int(words[layout.COUNT]), int(words[layout.RUNNING])
        seen, slot, since_ns = self._seen
        if not running or (count, running) != (seen, slot):
            self._seen = (count, running, cpu_ns)
            return
        explained = min(
            self._runtime.fuel_at(running) * NS_PER_FUEL, self._runtime.limits.budget.ns
        )
        if cpu_ns - since_ns > max(OVERTIME_NS, explained):
            self._log.error(
                "ended a call that ran for too long",
                extra=logs.fields(ms=round((cpu_ns - since_ns) / 1e6)),
            )
            self._runtime.end_overtime(count)
            self._seen = (0, 0, 0)

    def close(self) -> None:
        """End the thread, soon."""
        self._closing.set()
