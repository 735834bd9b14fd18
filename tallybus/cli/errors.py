"""What goes wrong in a command, as one line and an exit code.

The codes are part of the interface: scripts branch on them, so they never change meaning.
"""

from __future__ import annotations

from enum import IntEnum
from typing import IO, Any

import click


class ExitCode(IntEnum):
    """How a command ended.

    INTERRUPTED is 128 + SIGINT, CLOSED_PIPE 128 + SIGPIPE, as shells have it; MISSING is a
    service's EXIT_MISSING.
    """

    OK = 0
    REJECTED = 1
    USAGE = 2
    UNREACHABLE = 3
    OUTCOME_UNKNOWN = 4
    FAILED = 5
    DENIED = 6
    MISSING = 69
    INTERRUPTED = 130
    CLOSED_PIPE = 141


class CommandFailed(click.ClickException):
    """A command ends with `code`; `message` is shown on standard error, on one line."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(" ".join(message.split()))
        # click declares it for classes and reads it from instances.
        self.__dict__["exit_code"] = int(code)


class Silent(CommandFailed):
    """A command ends with `code`, and nothing is said: nobody listens."""

    def __init__(self, code: int) -> None:
        super().__init__("", code)

    def show(self, file: IO[Any] | None = None) -> None:
        return


def as_click_exception(error: BaseException) -> click.ClickException | None:
    """What to tell the user about an error, or None for a defect, which keeps its traceback."""
    from tallybus import errors
    from tallybus.cli import streams
    from tallybus.common.errors import ServiceError
    from tallybus.csv_text import MalformedCsv

    code: ExitCode | None = None
    text = str(error)
    match error:
        case KeyboardInterrupt():
            code, text = ExitCode.INTERRUPTED, "interrupted"
        case MalformedCsv() | errors.InvalidRequest() | errors.InvalidFunction():
            code = ExitCode.USAGE
        case errors.AlreadyExists() | errors.NotRegistered():
            code = ExitCode.REJECTED
        case errors.OutcomeUnknown():
            code = ExitCode.OUTCOME_UNKNOWN
            if error.retry_safe:
                text += "; sending the same with the same user_ref again cannot apply it twice"
        case errors.Timeout() | errors.Unreachable() | errors.Overloaded() | errors.Unavailable():
            code = ExitCode.UNREACHABLE
        case errors.MissingExtra():
            code = ExitCode.MISSING
        case errors.AccessDenied():
            code = ExitCode.DENIED
        case ServiceError():
            # A service's own exit code (wrong settings, damaged log) is what its operator knows.
            return CommandFailed(text, error.exit_code)
        case errors.TallybusError():
            code = ExitCode.FAILED
        case BrokenPipeError():
            return Silent(ExitCode.CLOSED_PIPE)
        case OSError():
            code = ExitCode.FAILED
            if streams.is_lost():
                text = streams.message(error)
    return None if code is None else CommandFailed(text, code)
