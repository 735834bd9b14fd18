"""What a command does when its output cannot be written: a full disk, a quota, a failing disk.

The command has done its work by then. So it says what happened, and ends with the exit code for
this machine's failures, never with that of a rejected transaction. A reader that has gone away
(EPIPE) is another case, which `pipes` has.
"""

from __future__ import annotations

import errno
import os
import sys

import click

from tallybus.cli.exit_codes import ExitCode
from tallybus.common.service import startup

_lost: OSError | None = None


def is_lost() -> bool:
    """Whether standard output does not take what was printed to it.

    Then it takes nothing more, so that nothing fails a second time.
    """
    global _lost
    if _lost is None:
        error = startup.output_error
        try:
            sys.stdout.flush()
        except OSError as raised:
            error = raised
        if error is None or error.errno == errno.EPIPE:
            return False
        _lost = error
        abandon()
    return _lost is not None


def abandon() -> None:
    """Write no more to standard output: what waits in its buffer has to go somewhere when the
    process ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def message(error: OSError) -> str:
    """What to tell about it."""
    return (
        f"standard output cannot be written: {error.strerror or error}; "
        "the command did its work, and its output is lost"
    )


def tell_lost(error: OSError) -> int:
    """Tell it on standard error; returns the exit code."""
    click.echo(f"Error: {message(error)}", err=True)
    return int(ExitCode.FAILED)


def settled(code: str | int | None) -> str | int | None:
    """The exit code of a command that ends with `code`, once all that it printed is written."""
    told = _lost is not None
    if is_lost() and not told and _lost is not None:
        return tell_lost(_lost)
    return code
