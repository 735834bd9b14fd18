"""The process that compiles: `python -P -m tallybus.services.transactor.functions.compiling …`.

Modules come in on standard input, and machine code goes out on standard output. The process opens
no other file and no socket, and ends with its parent. Nobody knows beforehand what a module takes
to compile. So each module gets an allowance of processor time, and the process one of memory. When
the time is used up, the process's own timer kills it. When the memory is used up, it ends itself.
Its parent then knows which module it was, and starts another process.

Arguments: bytes of a module's memory, elements of its tables, bytes of a call's stack, MiB of
memory for compiling, and how nice to be. A request is its allowance in microseconds, the length of
a binary (both u64, little-endian) and the binary. A reply is one byte (`DONE` or `REFUSED`), a
length (u64) and so many bytes: the reason, or a length (u64) and a header in JSON, then the code.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from dataclasses import asdict
from typing import Any, BinaryIO, Final

from tallybus.services.transactor.functions import wasm_engine
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.module import ModuleLimits
from tallybus.services.transactor.functions.weighing import weigh

DONE: Final = b"\x00"
REFUSED: Final = b"\x01"
WORD: Final = 8
_WORN_SECONDS: Final = 2.0
_LEAST_SECONDS: Final = 1e-4
"""Some systems count processor time in ticks."""
_WORN_BYTES: Final = 256 << 20
"""After so many modules or bytes its memory is in pieces, and a fresh process goes on."""


def main(arguments: list[str]) -> int:
    """Compiles until its input ends."""
    memory_bytes, table_elements, stack_bytes, mib, niceness = (int(each) for each in arguments)
    os.nice(niceness)
    bindings = wasm_engine.bindings()
    engine = wasm_engine.new_engine(bindings, stack_bytes, memory_bytes)
    limits = ModuleLimits(memory_bytes, table_elements)
    _confine(mib)
    while True:
        head = sys.stdin.buffer.read(2 * WORD)
        if len(head) < 2 * WORD:
            return 0
        allowance, size = (int.from_bytes(head[at : at + WORD], "little") for at in (0, WORD))
        binary = sys.stdin.buffer.read(size)
        if len(binary) < size:
            return 0
        # Its signal is not caught: it ends the process wherever that is.
        signal.setitimer(signal.ITIMER_PROF, allowance / 1e6)
        began = time.process_time()
        try:
            weighed = weigh(binary, limits)
            module = wasm_engine.compile_module(bindings, engine, weighed.binary)
            code = wasm_engine.code_of(bindings, module)
            bindings.wasmtime_module_delete(module)
        except InvalidFunction as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            _reply(sys.stdout.buffer, REFUSED, str(error).encode())
            continue
        signal.setitimer(signal.ITIMER_PROF, 0)
        worn = _worn()
        told: dict[str, Any] = {
            "facts": asdict(weighed.facts),
            "seconds": max(round(time.process_time() - began, 6), _LEAST_SECONDS),
            "last": worn,
        }
        header = json.dumps(told).encode()
        _reply(sys.stdout.buffer, DONE, len(header).to_bytes(WORD, "little"), header, code)
        if worn:
            return 0


def _confine(mib: int) -> None:
    """Bounds for the whole process, in case it is asked for something that nobody thought of."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    most = now + (mib << 20)
    for kind, bound in (
        (resource.RLIMIT_AS, most),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def _worn() -> bool:
    # Not ru_maxrss: that one remembers the parent's size.
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize()
    return time.process_time() > _WORN_SECONDS or resident > _WORN_BYTES


def _reply(to: BinaryIO, kind: bytes, *parts: bytes) -> None:
    to.write(kind + sum(map(len, parts)).to_bytes(WORD, "little"))
    to.writelines(parts)
    to.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
