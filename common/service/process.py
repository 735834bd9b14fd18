"""A service as a process of its own: settings, logs, signals and exit codes.

SIGTERM and SIGINT stop it once everything under way is done, a second one at once. SIGHUP does the
same, with an exit code other than 0, for nobody who runs a single service means by it that it shall
stay away. A signal that is ignored when the process starts stays ignored. The exit code is 0 after
a stop, otherwise that of the error that ended it (`ServiceError.exit_code`); the message is the
last line of its log. An error that should not happen is final when it happens three times in a row
in the same place.
"""

from __future__ import annotations

import ctypes
import importlib
import signal
import sys
import threading
import time
from types import FrameType
from typing import ClassVar, Final

from tallybus.common import logs
from tallybus.common.bus.sockets import new_context
from tallybus.common.errors import (
    EXIT_BUSY,
    EXIT_HANGUP,
    EXIT_HOPELESS,
    EXIT_SETTINGS,
    EXIT_SOFTWARE,
    FINAL_EXIT_CODES,
    ServiceError,
)
from tallybus.common.files import Storage
from tallybus.common.service import open_files, startup
from tallybus.common.service.failures import MOST, STEADY_SECONDS, Failures, place_of
from tallybus.common.service.shell import Shell, own_run_folder
from tallybus.common.settings import sections
from tallybus.common.settings.sections import Settings

SUPERVISED: Final = "--supervised"
"""Argument of a service that must not outlive its parent; the parent's process id follows."""
RESTARTS: Final = "--restarts"
"""Argument of a service that its supervisor has started before; how often follows."""

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


def run_stage(stage: str, configured: Settings | None = None) -> int:
    """Run one of SERVICES until it is told to stop; returns the exit code of the process."""
    try:
        module = importlib.import_module(f"tallybus.services.{stage}.service")
    except startup.BROKEN as error:
        return startup.broken(stage, error)
    return run_service(getattr(module, f"{stage.capitalize()}Service"), configured)


def run_service(shell: type[Shell], configured: Settings | None = None) -> int:
    """Run one service until it is told to stop; returns the exit code of the process."""
    try:
        chosen = sections.load() if configured is None else configured
    except ServiceError as error:
        print(f"tallybus {shell.stage}: {error}", file=sys.stderr)  # noqa: T201 (there is no log yet)
        return error.exit_code
    _keep_freed_memory()
    logs.setup(shell.stage, level=chosen.logging.level, format=chosen.logging.format)
    log = logs.get(shell.stage)
    storage = Storage()
    failures = Failures(storage, lambda: own_run_folder(chosen, storage), shell.stage)
    context = None
    service: Shell | None = None
    code = 0
    try:
        check_threads()
        if (allowed := open_files.allow(MOST_FILES)) < LEAST_FILES:
            raise TooFewOpenFiles(allowed, LEAST_FILES)
        context = new_context()
        service = shell(chosen, context, storage)
        stop = service.stop

        def on_signal(number: int, _: FrameType | None) -> None:
            # Nothing is logged here: the signal may have come in the middle of a line.
            nonlocal code
            code = EXIT_HANGUP if number == signal.SIGHUP else code
            stop(signal.Signals(number).name)

        supervised = SUPERVISED in sys.argv[1:-1]
        if supervised:
            service.stop_with(int(sys.argv[sys.argv.index(SUPERVISED) + 1]))
        if RESTARTS in sys.argv[1:-1]:
            service.restarts = int(sys.argv[sys.argv.index(RESTARTS) + 1])
        for number in stop_signals():
            signal.signal(number, on_signal)
        if supervised:
            # Whatever was ignored when the supervisor started: it stops its services so.
            signal.signal(signal.SIGTERM, on_signal)
        service.run()
    except ServiceError as error:
        log.error(str(error), extra=logs.fields(error=type(error).__name__))
        if error.restart or error.exit_code in FINAL_EXIT_CODES:
            return error.exit_code
        return EXIT_HOPELESS
    except Exception as error:
        if isinstance(error, RuntimeError) and startup.NO_THREAD in str(error):
            log.error(str(ThreadsRefused()), extra=logs.fields(error="ThreadsRefused"))
            return ThreadsRefused.exit_code
        place = place_of(error)
        count = failures.note(place, steady=_steady(service))
        if count < MOST:
            log.exception(
                "stopped by an error that should not happen; please report it",
                extra=logs.fields(place=place, times=count),
            )
            return EXIT_SOFTWARE
        log.exception(
            "stopped for good: %s, %d times in a row, so that another start does not help; "
            "please report it",
            place,
            count,
            extra=logs.fields(place=place, times=count),
        )
        return EXIT_HOPELESS
    finally:
        if context is not None:
            context.destroy(linger=0)
    failures.forget()
    log.info("stopped")
    return code


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


def _steady(service: Shell | None) -> bool:
    since = None if service is None else service.ready_since
    return since is not None and time.monotonic() - since >= STEADY_SECONDS


def _keep_freed_memory() -> None:
    """Let malloc keep what is freed: batches of megabytes come and go, and giving their pages back
    to the system only to get them again, zeroed, cost 6-10% of the throughput."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc; nothing depends on it
    mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
    mallopt(_M_TOP_PAD, _TOP_PAD_BYTES)
