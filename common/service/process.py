"""The process that a service runs in: what it holds, what it needs of the system, what stops it.

`Process` is the service's own side of it, also where five services are threads of one: the lock,
the CPUs, and the supervisor that it must not outlive. The rest is for a process that runs one
service alone, as `runner` does: signals, open files, threads, memory. Nothing here knows a service.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import ClassVar, Final

from tallybus.common.bus.sockets import Bus
from tallybus.common.errors import EXIT_BUSY, EXIT_HANGUP, EXIT_SETTINGS, ServiceError
from tallybus.common.files import Storage
from tallybus.common.service import cpus, open_files
from tallybus.common.service.run_folder import RunFolder
from tallybus.common.settings.sections import Settings
from tallybus.common.times import NEVER_NS

_THREADS: Final = 6
"""As many as a service starts at most, those of libzmq included, which aborts without them."""

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_KEEP_BYTES: Final = 256 << 20
_TOP_PAD_BYTES: Final = 4 << 20

MOST_FILES: Final = 65_536
"""Open files that a service allows itself, where it may: each connection over tcp is one."""
LEAST_FILES: Final = 128
"""With fewer libzmq ends the process sooner or later, without a word of ours."""


class TooFewOpenFiles(ServiceError):
    """The system allows the process too few open files. Fields: `allowed`, `needed`."""

    exit_code: ClassVar[int] = EXIT_SETTINGS
    restart: ClassVar[bool] = False

    def __init__(self, allowed: int, needed: int) -> None:
        super().__init__(
            f"the limit of open files is {allowed}, and a service needs {needed} at least: raise "
            "it (`ulimit -n`, LimitNOFILE= of a unit, `ulimits: nofile:` of a container)"
        )
        self.allowed = allowed
        self.needed = needed


class ThreadsRefused(ServiceError):
    """The system lets this process have no more threads."""

    exit_code: ClassVar[int] = EXIT_BUSY

    def __init__(self) -> None:
        super().__init__(
            "the system refused a thread: raise the limit of processes (`ulimit -u`, TasksMax of a "
            "unit, `pids` of a container), or end others that count against it"
        )


class Process:
    """One service's place in the system. The loop calls `orphaned` once `parent_due_ns` has come,
    and looks at the run folder."""

    def __init__(
        self, settings: Settings, storage: Storage, stage: str, bus: Bus, log: logging.Logger
    ) -> None:
        self.run_folder = RunFolder(settings, storage, stage, bus, log)
        self.parent_due_ns = NEVER_NS
        self._settings = settings
        self._stage = stage
        self._parent = 0

    def pin(self) -> None:
        """Let this thread, and those that it starts, run on the configured CPUs only.

        Raises SettingsError.
        """
        cpus.pin(self._settings, self._stage)

    def stop_with(self, parent: int) -> None:
        """The service is to stop when the process with this id is no longer the parent of its
        own."""
        self._parent = parent
        self.parent_due_ns = 0

    def orphaned(self, now_ns: int) -> bool:
        """Whether the parent is gone; told once."""
        if os.getppid() == self._parent:
            self.parent_due_ns = now_ns + self._settings.bus.heartbeat_ms * 1_000_000
            return False
        self.parent_due_ns = NEVER_NS
        return True


class StopSignals:
    """The signals that stop a service. `exit_code` is what the process ends with after a clean
    stop."""

    def __init__(self, stop: Callable[[str], None]) -> None:
        self.exit_code = 0
        self._stop = stop

    def catch(self, *, supervised: bool) -> None:
        """From now on. A signal that is ignored stays ignored, but for the one with which a
        supervisor stops its services."""
        for number in stop_signals():
            signal.signal(number, self._on_signal)
        if supervised:
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # Nothing is logged here: the signal may have come in the middle of a line.
        if number == signal.SIGHUP:
            self.exit_code = EXIT_HANGUP
        self._stop(signal.Signals(number).name)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask a process to stop, but for those that it was started to ignore: by
    `nohup`, or by a shell that runs it in the background."""
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    return [number for number in asked if signal.getsignal(number) is not signal.SIG_IGN]


def check_threads() -> None:
    """Raise ThreadsRefused unless as many threads can be started as a service needs."""
    done = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(_THREADS):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise ThreadsRefused from error
    finally:
        done.set()
        for thread in started:
            thread.join()


def allow_open_files() -> None:
    """Raise the limit of open files as far as it may go.

    Raises TooFewOpenFiles where that is less than a service needs.
    """
    if (allowed := open_files.allow(MOST_FILES)) < LEAST_FILES:
        raise TooFewOpenFiles(allowed, LEAST_FILES)


def keep_freed_memory() -> None:
    """Let malloc keep what is freed: batches of megabytes come and go, and giving their pages back
    to the system only to get them again, zeroed, cost 6-10% of the throughput."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc; nothing depends on it
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
