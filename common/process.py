"""A service as a process of its own: settings, logs, signals and exit codes.

SIGTERM and SIGINT stop it once everything under way is done, a second one at once. The exit code is
0 after a stop, otherwise that of the error that ended it (`ServiceError.exit_code`); the message is
the last line of its log.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from types import FrameType
from typing import ClassVar, Final

from tallybus.common import logs, openfiles, settings
from tallybus.common.bus import new_context
from tallybus.common.errors import EXIT_SETTINGS, EXIT_SOFTWARE, ServiceError
from tallybus.common.files import Storage
from tallybus.common.service import Shell
from tallybus.common.settings import Settings

SUPERVISED: Final = "--supervised"
"""Argument of a service that must not outlive its parent; the parent's process id follows."""
RESTARTS: Final = "--restarts"
"""Argument of a service that its supervisor has started before; how often follows."""

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


def run_service(shell: type[Shell], configured: Settings | None = None) -> int:
    """Run one service until it is told to stop; returns the exit code of the process."""
    try:
        chosen = settings.load() if configured is None else configured
    except ServiceError as error:
        print(f"tallybus {shell.stage}: {error}", file=sys.stderr)  # noqa: T201 (there is no log yet)
        return error.exit_code
    _keep_freed_memory()
    logs.setup(shell.stage, level=chosen.logging.level, format=chosen.logging.format)
    log = logs.get(shell.stage)
    context = None
    try:
        if (allowed := openfiles.allow(MOST_FILES)) < LEAST_FILES:
            raise TooFewOpenFiles(allowed, LEAST_FILES)
        context = new_context()
        service = shell(chosen, context, Storage())

        def on_signal(number: int, _: FrameType | None) -> None:
            log.info("stopping", extra=logs.fields(signal=signal.Signals(number).name))
            service.stop()

        if SUPERVISED in sys.argv[1:-1]:
            service.stop_with(int(sys.argv[sys.argv.index(SUPERVISED) + 1]))
        if RESTARTS in sys.argv[1:-1]:
            service.restarts = int(sys.argv[sys.argv.index(RESTARTS) + 1])
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        service.run()
    except ServiceError as error:
        log.error(str(error), extra=logs.fields(error=type(error).__name__))
        return error.exit_code
    except Exception:
        log.exception("stopped by an error that should not happen; please report it")
        return EXIT_SOFTWARE
    finally:
        if context is not None:
            context.destroy(linger=0)
    log.info("stopped")
    return 0


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
