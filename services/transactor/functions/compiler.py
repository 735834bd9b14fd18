"""Has modules compiled by a process of its own, within an allowance of time and memory.

Whatever a module does to the compiler happens there (see `compiling.py`). Used by one thread at a
time; `stop` may be called by any other. Starts its process when it is needed, and again when it
ended. ADR 0017 says why there is one.
"""

from __future__ import annotations

import json
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Timer
from typing import Any, Final

from tallybus.common.service import startup
from tallybus.services.transactor.functions.compiling import DONE, WORD
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.module import ModuleFacts

MODULE: Final = "tallybus.services.transactor.functions.compiling"
_LEAST_ALLOWANCE: Final = 0.001
_MOST_ALLOWANCE: Final = 2.0**32
_LEAST_WAIT_SECONDS: Final = 60.0
_WAIT_FOR_A_SECOND: Final = 20.0
_GRACE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Code:
    """What was made of a module: its facts, its machine code, and the processor's seconds that it
    took."""

    facts: ModuleFacts
    machine_code: bytes
    seconds: float


class TooSlow(InvalidFunction):
    """It was not compiled within its allowance. Field: `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"it takes more than {seconds:g} s of processor time to compile; the setting "
            "functions.compile_seconds allows no more. Several small functions in the module take "
            "less than a large one"
        )
        self.seconds = seconds


class Compiler:
    """One process that compiles one module at a time."""

    def __init__(self, limits: FunctionLimits, niceness: int) -> None:
        self.niceness = niceness
        """Of the next process."""
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()
        self._stopped = False

    def compile(self, binary: bytes, seconds: float) -> Code:
        """Raises InvalidFunction: the module may not be registered; TooSlow, when it takes longer
        than this allowance, is one; CompilerStopped after `stop`."""
        process = self._started()
        # Processor time is bounded by the process; this is for one that does not get any.
        watch = Timer(_LEAST_WAIT_SECONDS + _WAIT_FOR_A_SECOND * seconds, process.kill)
        watch.daemon = True
        watch.start()
        try:
            reply = _ask(process, binary, seconds)
        finally:
            watch.cancel()
        if reply is None:
            raise self._ended(seconds)
        kind, content = reply
        if kind != DONE:
            raise InvalidFunction(content.decode(errors="replace"))
        start = WORD + int.from_bytes(content[:WORD], "little")
        told = json.loads(content[WORD:start])
        if told["last"]:
            self.rest()
        return Code(facts_from(told["facts"]), content[start:], float(told["seconds"]))

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._stopped:
                raise CompilerStopped
            if self._process is not None and self._process.poll() is not None:
                _end(self._process, 0)
                self._process = None
            if self._process is None:
                limits = self._limits
                arguments = (
                    limits.memory_bytes,
                    limits.table_elements,
                    limits.stack_bytes,
                    limits.compile_mib,
                    self.niceness,
                )
                try:
                    # In a session of its own: a terminal's Ctrl-C is not meant for it.
                    self._process = subprocess.Popen(
                        startup.command(MODULE, map(str, arguments)),
                        env=startup.environment(),
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL,
                        start_new_session=True,
                    )
                except OSError as error:
                    raise InvalidFunction(
                        f"it cannot be compiled now: no process can be started ({error})"
                    ) from error
            return self._process

    def _ended(self, seconds: float) -> Exception:
        """Why there was no answer."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return CompilerStopped()
        code = _end(process, _GRACE_SECONDS)
        if self._stopped:
            return CompilerStopped()
        if code == -signal.SIGPROF:
            return TooSlow(seconds)
        return InvalidFunction(
            f"it cannot be compiled: the compiler ended with {code}. It may take more than the "
            f"{self._limits.compile_mib} MiB of memory that functions.compile_mib allows"
        )

    def rest(self) -> None:
        """End the process; the next module gets another one."""
        self._give_up(_GRACE_SECONDS)

    def stop(self) -> None:
        """End the process for good, whatever it is doing."""
        self._stopped = True
        self._give_up(0)

    def _give_up(self, grace: float) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None and grace:
                with suppress(OSError):
                    process.stdin.close()
            _end(process, grace)


class CompilerStopped(Exception):
    """The compiler was told to stop."""


def _ask(
    process: subprocess.Popen[bytes], binary: bytes, seconds: float
) -> tuple[bytes, bytes] | None:
    """The kind of a reply and the rest of it, None if the process ended before."""
    assert process.stdin is not None
    assert process.stdout is not None
    allowance = int(min(max(seconds, _LEAST_ALLOWANCE), _MOST_ALLOWANCE) * 1e6)
    try:
        process.stdin.write(allowance.to_bytes(WORD, "little"))
        process.stdin.write(len(binary).to_bytes(WORD, "little"))
        process.stdin.write(binary)
        process.stdin.flush()
        kind = process.stdout.read(1)
        size = int.from_bytes(process.stdout.read(WORD), "little")
        content = process.stdout.read(size)
    except (OSError, ValueError):
        return None  # ValueError: `stop` has closed it
    return (kind, content) if kind and len(content) == size else None


def _end(process: subprocess.Popen[bytes], grace: float) -> int:
    """How it ended; it is killed when it has not done so in time."""
    try:
        code = process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()
    return code


def facts_from(told: dict[str, Any]) -> ModuleFacts:
    """Facts that went through JSON. Raises TypeError, KeyError for others."""
    return ModuleFacts(**{**told, "imports": tuple(told["imports"])})
