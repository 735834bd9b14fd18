"""Registrations of functions as the transactor executes them: which version, or why not.

Holds the registry that follows from the log, and the modules compiled ahead. No I/O but that of the
thread that compiles, which touches no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tallybus.common.errors import EXIT_DAMAGED, ServiceError
from tallybus.common.functions import UNREGISTERED, FunctionRegistry, FunctionVersion
from tallybus.common.record import Status
from tallybus.services.transactor.engine import Engine, Executed
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import MAX_LIVE_WORK
from tallybus.services.transactor.functions.prepared import PreparedModules

if TYPE_CHECKING:
    from tallybus.services.transactor.functions.handler import CompiledFunction
    from tallybus.services.transactor.functions.runtime import FunctionRuntime


class FunctionUnusable(ServiceError):
    """A registered function cannot run here. Fields: `name`, `version`, `reason`."""

    exit_code = EXIT_DAMAGED
    restart = False

    def __init__(self, name: str, version: int, reason: str) -> None:
        super().__init__(
            f"version {version} of the function {name} is registered and cannot be used: {reason}. "
            "It could when it was registered: set the limits of the section `functions` back, or "
            "go back to the version of tallybus that ran it, and unregister or replace it there"
        )
        self.name = name
        self.version = version
        self.reason = reason


class Registrar:
    """Registers functions with one engine, in the order of transactions."""

    def __init__(self, engine: Engine) -> None:
        self.registry = FunctionRegistry()
        self._engine = engine
        self._live: dict[str, CompiledFunction] = {}
        self.prepared: PreparedModules[Any, CompiledFunction] = PreparedModules(self._compile)

    def _compile(self, binary: bytes) -> CompiledFunction:
        return self._engine.functions.compile(binary)

    def restore(
        self,
        registry: FunctionRegistry,
        binaries: Mapping[int, bytes],
        begins: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Take over what the log registered. `binaries`: of each live version, by the transaction
        that registered it. `begins` is called before each function with the bytes of modules that
        are done, of all bytes; what it raises ends this.

        Raises FunctionUnusable.
        """
        shared: dict[bytes, CompiledFunction] = {}
        live = registry.all_live()
        total = sum(len(binaries[version.transaction_id]) for version in live)
        done = 0
        for version in live:
            begins(done, total)
            binary = binaries[version.transaction_id]
            done += len(binary)
            try:
                compiled = shared.get(binary)
                if compiled is None:
                    compiled = shared[binary] = self._compile(binary)
                self._engine.functions.install(
                    version.name,
                    version.version,
                    version.crc32c,
                    compiled,
                    version.transaction_id,
                )
            except (InvalidFunction, ServiceError) as error:
                raise FunctionUnusable(version.name, version.version, str(error)) from error
            self._live[version.name] = compiled
        self.registry = registry

    @property
    def any_live(self) -> bool:
        """Whether any function is registered; never loads the runtime."""
        return self._engine.has_functions

    @property
    def functions(self) -> FunctionRuntime:
        """The live functions."""
        return self._engine.functions

    def refusal(self, name: str, binary: bytes) -> str | None:
        """Why this module could not be registered under this name as things are: too many
        functions, or, once it is compiled, too much to compile at every start."""
        engine = self._engine
        if engine.has_functions and not engine.functions.takes(name):
            return (
                f"{len(engine.functions)} functions are registered, and functions.max_functions "
                "allows no more"
            )
        compiled = self.prepared.ready(binary)
        if compiled is not None and self._work_with(name, compiled) > MAX_LIVE_WORK:
            return (
                f"it takes {compiled.facts.work} units of work to compile, and all live functions "
                f"would take more than the {MAX_LIVE_WORK} that a start may take"
            )
        return None

    def _work_with(self, name: str, compiled: CompiledFunction) -> int:
        modules = {id(each): each for each in (self._live | {name: compiled}).values()}
        return sum(each.facts.work for each in modules.values())

    def register(
        self, record: NDArray[np.void], first_id: int, name: str, binary: bytes
    ) -> Executed:
        """Execute a registration: RECORD_DTYPE[1] as transaction `first_id`; an empty `binary`
        unregisters.

        It fails with INVALID_OPERATION when the name is taken and may not be replaced, when there
        is nothing to unregister or when the module is not valid, and with QUOTA_EXCEEDED when there
        are too many functions or they take too long to compile.
        """
        outcome, compiled = self._outcome(record, name, binary)
        version = self.registry.next_version(name)
        executed = self._engine.register(record, first_id, name, version, outcome, compiled)
        if executed.records["status"][0] == Status.NONE:
            crc = int(executed.records["function"][0])
            self.registry.apply(FunctionVersion(name, version, crc, first_id))
            if compiled is None:
                del self._live[name]
            else:
                self._live[name] = compiled
        return executed

    def _outcome(
        self, record: NDArray[np.void], name: str, binary: bytes
    ) -> tuple[Status, CompiledFunction | None]:
        live = self.registry.live(name)
        replaces = bool(record["account"][0])
        if int(record["function"][0]) == UNREGISTERED:
            return (Status.INVALID_OPERATION if live is None else Status.NONE), None
        if live is not None and not replaces:
            return Status.INVALID_OPERATION, None
        try:
            compiled = self.prepared.take(binary)
        except InvalidFunction:
            return Status.INVALID_OPERATION, None
        takes_long = self._work_with(name, compiled) > MAX_LIVE_WORK
        if takes_long or not self._engine.functions.takes(name):
            return Status.QUOTA_EXCEEDED, None
        return Status.NONE, compiled

    def rows(self) -> list[dict[str, Any]]:
        """The live functions, as clients are told; statistics count since they were installed."""
        if not self._engine.has_functions:
            return []
        found = []
        for each in self._engine.functions.statistics():
            live = self.registry.live(each.name)
            found.append(
                {
                    "name": each.name,
                    "version": each.version,
                    "crc32c": each.crc32c,
                    "registered": 0 if live is None else live.transaction_id,
                    "calls": each.calls,
                    "failures": dict(each.failures),
                    "fuel": each.fuel_total,
                    "fuel_limit": each.fuel_limit,
                    "mean_ns": each.mean_ns,
                    "p99_ns": each.p99_ns,
                    "work_ns": each.work_ns,
                    "reasons": dict(each.reasons),
                    "suspended": each.suspended,
                }
            )
        return found

    def close(self) -> None:
        """End the thread that compiles and free the functions."""
        self.prepared.close()
        self._engine.close()
