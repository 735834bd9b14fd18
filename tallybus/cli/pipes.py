"""Standard output of a command whose reader may go away at any moment.

A command that changes something ends with the exit code that says what the ledger did. What it
could not print is dropped. A command that only reads ends quietly when nobody reads on, as other
tools do. (`streams` has the case of a full disk.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

import click

from tallybus.cli.exit_codes import ExitCode
from tallybus.common.service import startup

READS: Final = frozenset(
    {
        "",  # the command itself: --help, --version
        "balance",
        "config show",
        "function list",
        "function suspended",
        "function test",
        "health",
        "index",
        "keys list",
        "status",
        "top",
        "tx",
    }
)
"""Commands that end when nobody reads their output. All others are taken for ones that change
something, or serve somebody."""


class Guarded:
    """A text stream that goes on to nowhere when nobody reads it any more.

    `failed` is asked then, with the error: it may raise. Other errors are raised as they are.
    """

    def __init__(self, stream: TextIO, failed: Callable[[OSError], None]) -> None:
        self.stream = stream
        self._failed = failed
        self._lost = False

    def write(self, text: str) -> int:
        # click writes nothing, as bytes and as a text, to see what the stream is.
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text and not self._lost:
            try:
                return self.stream.write(text)
            except BrokenPipeError as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._lost:
            try:
                self.stream.flush()
            except BrokenPipeError as error:
                self._lose(error)

    def must_write(self, text: str) -> None:
        """Write and flush; raises OSError where that cannot be."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            self._drop()
            startup.output_error = None  # whoever calls this tells it
            raise

    def _lose(self, error: OSError) -> None:
        self._drop()
        self._failed(error)

    def _drop(self) -> None:
        self._lost = True
        # What is left in buffers goes there at the end, without a complaint of the interpreter's.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def guarded() -> Iterator[None]:
    """Standard output is Guarded inside."""
    out = sys.stdout
    sys.stdout = Guarded(out, _output_failed)
    try:
        yield
    finally:
        sys.stdout = out


def print_or_fail(text: str) -> None:
    """Print what must not get lost; raises OSError when it cannot be written, whatever command."""
    if isinstance(sys.stdout, Guarded):
        sys.stdout.must_write(text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()


def _output_failed(error: OSError) -> None:
    path = _path()
    if not path:
        raise SystemExit(ExitCode.CLOSED_PIPE)  # no command is there yet that would say so
    if path in READS:
        raise error


def _path() -> str:
    """The words of the command that runs, without its own name."""
    names: list[str] = []
    context = click.get_current_context(silent=True)
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name or "")
        context = context.parent
    return " ".join(names)
