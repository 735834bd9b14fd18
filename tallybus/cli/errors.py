"""What goes wrong in a command, as one line and an exit code."""

from __future__ import annotations

from typing import IO, Any

import click

from tallybus.cli.exit_codes import ExitCode


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
    from tallybus.csv.text import MalformedCsv

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
                text += (
                    "; the same with the same user_ref may be sent again, and is not applied twice"
                )
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
