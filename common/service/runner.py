"""Runs a service to its end in a process of its own: settings, log, signals and exit codes.

SIGTERM and SIGINT stop it once everything under way is done, a second one at once. SIGHUP does the
same, with an exit code other than 0, for nobody who runs a single service means by it that it shall
stay away. A signal that is ignored when the process starts stays ignored. The exit code is 0 after
a stop, otherwise that of the error that ended it (`ServiceError.exit_code`); the message is the
last line of its log. An error that should not happen is final when it happens three times in a row
in the same place.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Final

from tallybus.common import logs
from tallybus.common.bus.sockets import new_context
from tallybus.common.errors import (
    EXIT_HOPELESS,
    EXIT_SOFTWARE,
    FINAL_EXIT_CODES,
    ServiceError,
)
from tallybus.common.files import Storage
from tallybus.common.service import process, startup
from tallybus.common.service.failures import MOST, STEADY_SECONDS, Failures, place_of
from tallybus.common.service.process import StopSignals, ThreadsRefused
from tallybus.common.service.run_folder import own_run_folder
from tallybus.common.service.shell import Shell
from tallybus.common.settings import sections
from tallybus.common.settings.sections import Settings

SUPERVISED: Final = "--supervised"
"""Argument of a service that must not outlive its parent; the parent's process id follows."""
RESTARTS: Final = "--restarts"
"""Argument of a service that its supervisor has started before; how often follows."""


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
    process.keep_freed_memory()
    logs.setup(shell.stage, level=chosen.logging.level, format=chosen.logging.format)
    log = logs.get(shell.stage)
    storage = Storage()
    failures = Failures(storage, lambda: own_run_folder(chosen, storage), shell.stage)
    context = None
    service: Shell | None = None
    try:
        process.check_threads()
        process.allow_open_files()
        context = new_context()
        service = shell(chosen, context, storage)
        signals = StopSignals(service.stop)
        supervised = SUPERVISED in sys.argv[1:-1]
        if supervised:
            service.process.stop_with(int(sys.argv[sys.argv.index(SUPERVISED) + 1]))
        if RESTARTS in sys.argv[1:-1]:
            service.vitals.restarts = int(sys.argv[sys.argv.index(RESTARTS) + 1])
        signals.catch(supervised=supervised)
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
    return signals.exit_code


def _steady(service: Shell | None) -> bool:
    since = None if service is None else service.vitals.ready_since
    return since is not None and time.monotonic() - since >= STEADY_SECONDS
