"""A compiler of functions without a process of its own, for tests that start many ledgers."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tallybus.services.transactor.functions import wasm_engine
from tallybus.services.transactor.functions.compiler import Code, CompilerStopped
from tallybus.services.transactor.functions.handler import limits_of
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.weighing import weigh


class InProcess:
    """Compiles here and now; only for modules that do not take long. Counts what it compiled.

    While `may_go_on` is cleared, nothing is finished.
    """

    def __init__(self, limits: FunctionLimits | None = None) -> None:
        self.niceness = 0
        self._limits = FunctionLimits() if limits is None else limits
        self._stopped = False
        self.compiled: list[bytes] = []
        self.allowances: list[float] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def compile(self, binary: bytes, seconds: float) -> Code:
        self.may_go_on.wait()
        if self._stopped:
            raise CompilerStopped
        self.compiled.append(binary)
        self.allowances.append(seconds)
        limits = self._limits
        weighed = weigh(binary, limits_of(limits))
        c = wasm_engine.bindings()
        engine = wasm_engine.new_engine(c, limits.stack_bytes, limits.memory_bytes)
        try:
            module = wasm_engine.compile_module(c, engine, weighed.binary)
            code = wasm_engine.code_of(c, module)
            c.wasmtime_module_delete(module)
        finally:
            c.wasm_engine_delete(engine)
        return Code(weighed.facts, code, 0.25)

    def rest(self) -> None: ...

    def stop(self) -> None:
        self._stopped = True
        self.may_go_on.set()


def one_for_all(compiler: InProcess) -> Callable[[int], InProcess]:
    """Both lanes of a registrar use this one."""
    return lambda _niceness: compiler
