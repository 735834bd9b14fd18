"""What a process of ours does before it imports anything else, and how one of ours starts another.

It imports nothing but the standard library and the exit codes, so that it comes before all else.
Three things must not happen: that a file of the user's called numpy or msgpack is imported; that a
library starts threads that nobody asked for; that a file of the ledger is opened as descriptor 2,
and every warning is written into it. ADR 0021 says why.
"""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Final

from tallybus.common.errors import EXIT_HANGUP, EXIT_HOPELESS

SAFE_PATH: Final = "PYTHONSAFEPATH"
_PATH: Final = "PYTHONPATH"
_ASCII: Final = frozenset(("ascii", "us-ascii", "ansi_x3.4-1968", "646"))
_LIBRARY: Final = os.path.dirname(os.__file__)
PRINTABLE: Final = "tallybus.printable"
"""Name of the error handler for text that is written: nothing that a name may hold fails."""

THREAD_VARIABLES: Final = (
    "OPENBLAS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""How many threads libraries of numpy start, most of them at the import: one for each CPU. We use
none of them, and a limit of processes may not allow them."""


NO_THREAD: Final = "can't start new thread"
"""What Python says when the system refuses one."""

BROKEN: Final = (
    *(ImportError, SyntaxError, AttributeError, NameError, TypeError, ValueError, LookupError),
    *(AssertionError, RuntimeError),
)
"""What an import raises that would fail in the same way at the next start. OSError and MemoryError
are not among them, because a disk or a limit may be another one then."""

output_error: OSError | None = None
"""Why standard output could last not be written."""


def prepare() -> None:
    """Make this process fit to run a service or a command. Its owner calls this first; a library
    never does."""
    forget_working_directory()
    open_standard_streams()
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")


def forget_working_directory() -> None:
    """Import nothing from the working directory from now on.

    `python -m` puts it in front of everything; so does an empty part of PYTHONPATH, as in
    `PYTHONPATH=$PYTHONPATH:/opt/lib`. Where it is named by its full path, that is meant.
    """
    named = {part for part in os.environ.get(_PATH, "").split(os.pathsep) if os.path.isabs(part)}
    # What stands behind the interpreter's own library was put there by an installation.
    end = next((at for at, path in enumerate(sys.path) if _is_library(path)), len(sys.path))
    try:
        here = os.getcwd()
    except OSError:
        here = ""  # it was removed
    kept: list[str] = []
    for path in sys.path[:end]:
        unwanted = path == here and not (path in named and path not in kept)
        if os.path.isabs(path) and not unwanted:
            kept.append(path)
    sys.path[:end] = kept


def _is_library(path: str) -> bool:
    major, minor = sys.version_info[:2]
    return path == _LIBRARY or os.path.basename(path) == f"python{major}{minor}.zip"


def open_standard_streams() -> None:
    """Descriptors 0 to 2 are open, whatever this process was started with, and what is written to
    standard error fails nobody: the ledger goes on when its log cannot be written."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _fill(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (for good)
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        sys.stderr = _errors(getattr(sys.stderr, "encoding", None) or "utf-8")
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        # ASCII says no more than that nothing was configured.
        sys.stdout = _output("utf-8" if encoding.lower() in _ASCII else encoding)


def hold_hangup() -> None:
    """Ignore a hangup until the service has handlers of its own. To systemd, a process that a
    hangup kills looks as if it had ended as it should."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda _number, _frame: os._exit(EXIT_HANGUP))


def broken(stage: str, error: Exception) -> int:
    """Tell that a module cannot be imported (one of BROKEN); returns the exit code."""
    if NO_THREAD in str(error):
        raise error  # that may be otherwise at the next start
    if not isinstance(error, ImportError):
        sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.write(
        f"tallybus {stage}: {type(error).__name__}: {error}: the installation is not whole, "
        "install tallybus again\n"
    )
    return EXIT_HOPELESS


def _fill(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    # Also for whoever is started by this process.
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)
    else:
        os.set_inheritable(null, True)


class _Unfailing(io.FileIO):
    """Standard error, which may be a full disk, a closed pipe or a terminal that is gone."""

    def write(self, data: object) -> int:
        try:
            written: int = super().write(data)  # type: ignore[arg-type]
            return written
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


class _Told(io.FileIO):
    """Standard output, which remembers that it could not be written. A buffer forgets what it could
    not write."""

    def write(self, data: object) -> int | None:  # type: ignore[override]
        global output_error
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            output_error = error
            raise


def _output(encoding: str) -> io.TextIOWrapper:
    raw = _Told(1, "wb", closefd=False)
    # A path is printed as the bytes that it has; a sign that the encoding has not, escaped.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=PRINTABLE, line_buffering=raw.isatty()
    )


def _errors(encoding: str) -> io.TextIOWrapper:
    raw = _Unfailing(2, "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=True
    )


def _printable(error: UnicodeError) -> tuple[str | bytes, int]:
    """How text is written that an encoding has no bytes for."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    made = bytearray()
    for sign in found:
        number = ord(sign)
        if 0xDC80 <= number <= 0xDCFF:
            made.append(number - 0xDC00)
        else:
            made += sign.encode("ascii", "backslashreplace")
    return bytes(made), error.end


codecs.register_error(PRINTABLE, _printable)


def command(module: str, arguments: Iterable[str] = ()) -> list[str]:
    """The command line that runs a module of ours in a process of its own.

    With -P, so that nothing is imported from the working directory. Not with -I, which would
    ignore PYTHONPATH and the packages of the user, where this one may be installed.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a process of ours: `variables` (default: those of this process) with two
    more. They keep it, and whatever it starts, from importing from the working directory."""
    made = dict(os.environ if variables is None else variables)
    if _PATH in made:
        parts = [part for part in made[_PATH].split(os.pathsep) if os.path.isabs(part)]
        made[_PATH] = os.pathsep.join(parts)
        if not parts:
            del made[_PATH]
    made[SAFE_PATH] = "1"
    for name in THREAD_VARIABLES:
        made.setdefault(name, "1")
    return made
