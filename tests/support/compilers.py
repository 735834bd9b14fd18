"""A compiler of functions without a process of its own, for tests that start many ledgers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any
from unittest.mock import patch

from tallybus.services.transactor import registrar
from tallybus.services.transactor.functions import wasm_engine
from tallybus.services.transactor.functions.compiler import Code, CompilerStopped
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.handler import CompiledFunction, limits_of
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.prepared import PreparedModules, _Job
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


_made: dict[tuple[bytes, object], Code] = {}


class Remembering(InProcess):
    """The same, with what any of them has compiled before."""

    def compile(self, binary: bytes, seconds: float) -> Code:
        key = (binary, (self._limits.memory_bytes, self._limits.table_elements))
        if key not in _made:
            _made[key] = super().compile(binary, seconds)
        return _made[key]


class InlineModules(PreparedModules[Any, CompiledFunction]):
    """Prepared modules without threads: what is asked for is done at once."""

    def _add(
        self, binary: bytes, client: bytes, allowance: float, *, urgent: bool
    ) -> _Job[Any, CompiledFunction]:
        job: _Job[Any, CompiledFunction] = _Job(binary, client, allowance)
        self._jobs[binary] = job
        self._waiting_bytes += len(binary)
        try:
            job.compiled = self._compilers[0].compile(binary, allowance)
        except InvalidFunction as error:
            job.error = error
        self._finish(job)
        return job


def inline() -> AbstractContextManager[Any]:
    """Within it, registrars are made that compile without threads and processes."""
    stack = ExitStack()
    stack.enter_context(patch.object(registrar, "PreparedModules", InlineModules))
    stack.enter_context(
        patch.object(registrar, "Compiler", lambda limits, _niceness: Remembering(limits))
    )
    return stack
