"""Registrations of functions as the transactor executes them: which version, or why not.

Holds the registry that follows from the log, and the modules compiled ahead. No I/O but that of the
lanes that compile, which have a process and a folder of their own.
ADR 0009 says how functions are registered, and why so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.errors import ServiceError
from tallybus.common.functions.registry import UNREGISTERED, FunctionRegistry, FunctionVersion
from tallybus.common.record import Status
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.codefiles import CodeFiles, key_of
from tallybus.services.transactor.functions.compiler import Code, Compiler
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.keeping import CodeMaker, KeepingCompiler
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.prepared import NOBODY, PreparedModules
from tallybus.services.transactor.outcome import Outcome

if TYPE_CHECKING:
    from tallybus.services.transactor.functions.handler import CompiledFunction
    from tallybus.services.transactor.functions.runtime import FunctionRuntime

QUICK_NICENESS: Final = 5
SLOW_NICENESS: Final = 15
"""What executes transactions goes before both."""
PATIENCE: Final = 10
LEAST_PATIENT_SECONDS: Final = 600
"""A module that was registered once is given this many times what a new one may take to compile, or
so many seconds: another machine may be slower, and the setting may have been larger."""


class Registrar:
    """Registers functions with one engine, in the order of transactions."""

    def __init__(
        self,
        engine: Engine,
        limits: FunctionLimits | None = None,
        files: CodeFiles | None = None,
        compilers: Callable[[int], CodeMaker] | None = None,
    ) -> None:
        """`files` keep machine code; without them every start compiles. `compilers` makes one of a
        niceness, instead of the usual one."""
        self.registry = FunctionRegistry()
        self.limits = FunctionLimits() if limits is None else limits
        self.binaries_bytes = 0
        """Of all versions, as they are on disk."""
        self.waiting: Callable[[], None] = lambda: None
        """Called again and again while a registration has to wait for its module."""
        self._engine = engine
        self._files = files
        self._live: dict[str, CompiledFunction] = {}
        self._keys: dict[str, str] = {}
        self._loading = Lock()
        make = compilers or (lambda niceness: Compiler(self.limits, niceness))
        # Until all is there that the log registered, nothing else is to be done.
        self._quick, self._slow = make(0), make(0)
        self.prepared: PreparedModules[Any, CompiledFunction] = PreparedModules(
            KeepingCompiler(self._quick, self._load, files),
            KeepingCompiler(self._slow, self._load, files),
            self.limits.compile_seconds,
        )

    @property
    def _functions(self) -> FunctionRuntime:
        # The lanes may be the first to need it, and both at once.
        with self._loading:
            return self._engine.functions

    def _load(self, binary: bytes, code: Code) -> CompiledFunction:
        return self._functions.load(binary, code)

    def restore(
        self,
        registry: FunctionRegistry,
        binaries: Mapping[int, bytes],
        begins: Callable[[int, int], None] = lambda _done, _total: None,
        binaries_bytes: int = 0,
    ) -> list[tuple[FunctionVersion, str]]:
        """Take over what the log registered. `binaries`: of each live version, by the transaction
        that registered it. `begins` is called again and again with the bytes of modules that are
        done, of all bytes; what it raises ends this. `binaries_bytes`: of all versions.

        Returns those that cannot run here, with the reasons: their calls end SUSPENDED. No function
        ends a start.
        """
        live = registry.all_live()
        self._engine.make_room(len(live))
        total = sum(len(binaries[version.transaction_id]) for version in live)
        patience = max(PATIENCE * self.limits.compile_seconds, LEAST_PATIENT_SECONDS)
        done = 0
        begins(done, total)
        for version in live:
            self.prepared.begin(binaries[version.transaction_id], patience)
        unusable = []
        shared: dict[bytes, CompiledFunction] = {}
        for version in live:
            binary = binaries[version.transaction_id]
            # Also while it waits for this one.
            tell = partial(begins, done, total)
            tell()
            done += len(binary)
            try:
                if binary not in shared:
                    shared[binary] = self.prepared.take(binary, tell, patience)
                self._install(version, binary, shared[binary])
            except (InvalidFunction, ServiceError) as error:
                unusable.append((version, str(error)))
                self._refuse(version, str(error))
        for compiler, niceness in ((self._quick, QUICK_NICENESS), (self._slow, SLOW_NICENESS)):
            compiler.niceness = niceness
            compiler.rest()
        self.registry = registry
        self.binaries_bytes = binaries_bytes
        self._tidy()
        return unusable

    def _install(self, version: FunctionVersion, binary: bytes, compiled: CompiledFunction) -> None:
        self._functions.install(
            version.name, version.version, version.crc32c, compiled, version.transaction_id
        )
        self._live[version.name] = compiled
        self._keys[version.name] = key_of(binary)

    def _refuse(self, version: FunctionVersion, why: str) -> None:
        try:
            self._functions.refuse(
                version.name, version.version, version.crc32c, why, version.transaction_id
            )
        except ServiceError:
            # Without the runtime there are no functions at all: calls end as those of unknown ones.
            return

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
        functions, too many bytes, or, once it is compiled, too much of what compiling takes."""
        limits = self.limits
        if self._engine.has_functions and not self._functions.takes(name):
            return (
                f"{len(self._functions)} functions are registered, and functions.max_functions "
                "allows no more"
            )
        if self.binaries_bytes + len(binary) > limits.binaries_bytes:
            return (
                f"it has {len(binary)} bytes, and with {self.binaries_bytes} of all versions that "
                f"are on disk that is more than the {limits.binaries_bytes >> 20} MiB that "
                "functions.binaries_mib allows; versions are never deleted"
            )
        compiled = self.prepared.ready(binary)
        return None if compiled is None else self._too_much(name, compiled)

    def _too_much(self, name: str, compiled: CompiledFunction) -> str | None:
        limits = self.limits
        fuel = limits.fuel_of(name)
        if compiled.facts.start_fuel > fuel:
            return (
                f"each call would take {compiled.facts.start_fuel} units of fuel before its code "
                f"runs, for its {compiled.facts.memory_bytes >> 16} pages of memory and the rest "
                f"of a fresh instance, and a call may use {fuel}"
            )
        modules = {id(each): each for each in (self._live | {name: compiled}).values()}
        seconds = sum(each.cost.seconds for each in modules.values())
        if seconds > limits.compile_total_seconds:
            return (
                f"it took {compiled.cost.seconds:.1f} s to compile, and with all other functions "
                f"that is {seconds:.1f} s, more than functions.compile_total_seconds allows"
            )
        code = sum(each.cost.code_bytes for each in modules.values())
        if code > limits.code_bytes:
            return (
                f"it has {compiled.cost.code_bytes} bytes of machine code, and with all other "
                f"functions that is more than the {limits.code_bytes >> 20} MiB that "
                "functions.code_mib allows"
            )
        return None

    def register(
        self, record: NDArray[np.void], first_id: int, name: str, binary: bytes
    ) -> Outcome:
        """Execute a registration: RECORD_DTYPE[1] as transaction `first_id`; an empty `binary`
        unregisters.

        It fails with INVALID_OPERATION when the name is taken and may not be replaced, when there
        is nothing to unregister or when the module is not valid, and with QUOTA_EXCEEDED when there
        are too many functions, or too much of what they take.
        """
        failure, compiled = self._failure_of(record, name, binary)
        version = self.registry.next_version(name)
        outcome = self._engine.register(record, first_id, name, version, failure, compiled)
        row = outcome.batch.records[0]
        if row["status"] == Status.NONE:
            crc = int(row["function"])
            self.registry.apply(FunctionVersion(name, version, crc, first_id))
            self.binaries_bytes += len(binary)
            if compiled is None:
                self._live.pop(name, None)
                self._keys.pop(name, None)
            else:
                self._live[name] = compiled
                self._keys[name] = key_of(binary)
            self._tidy()
        return outcome

    def _failure_of(
        self, record: NDArray[np.void], name: str, binary: bytes
    ) -> tuple[Status, CompiledFunction | None]:
        live = self.registry.live(name)
        replaces = bool(record["account"][0])
        if int(record["function"][0]) == UNREGISTERED:
            return (
                Status.NONE if live and self._installed(name) else Status.INVALID_OPERATION
            ), None
        if live is not None and not replaces:
            return Status.INVALID_OPERATION, None
        if self.refusal(name, binary) is not None:
            return Status.QUOTA_EXCEEDED, None
        try:
            compiled = self.prepared.take(binary, self.waiting)
        except InvalidFunction:
            return Status.INVALID_OPERATION, None
        if self._too_much(name, compiled) is not None:
            return Status.QUOTA_EXCEEDED, None
        return Status.NONE, compiled

    def _installed(self, name: str) -> bool:
        try:
            return name in self._functions
        except ServiceError:
            return False  # there is no runtime, and nothing that could be removed from it

    def _tidy(self) -> None:
        if self._files is not None:
            self._files.keep(self._keys.values())

    def ask(self, ticket: Any, binary: bytes, client: bytes = NOBODY) -> str | None:
        """Have a module compiled for this client; if there is no room for it now, says so."""
        return self.prepared.ask(ticket, binary, client)

    def totals(self) -> dict[str, int]:
        """What functions take of what is bounded for all of them together: bytes of binaries on
        disk, bytes of machine code and milliseconds to compile it, modules and bytes that wait."""
        modules = {id(each): each for each in list(self._live.values())}
        waiting = self.prepared.waiting
        return {
            "binaries_bytes": self.binaries_bytes,
            "binaries_limit": self.limits.binaries_bytes,
            "code_bytes": sum(each.cost.code_bytes for each in modules.values()),
            "code_limit": self.limits.code_bytes,
            "compile_ms": round(1e3 * sum(each.cost.seconds for each in modules.values())),
            "compile_limit_ms": self.limits.compile_total_seconds * 1_000,
            "waiting": waiting.modules,
            "waiting_bytes": waiting.bytes,
        }

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
                    "compile_seconds": each.compile_seconds,
                    "code_bytes": each.code_bytes,
                    "start_fuel": each.start_fuel,
                    "unusable": each.unusable,
                }
            )
        return found

    def close(self) -> None:
        """End the lanes that compile and free the functions."""
        self.prepared.close()
        self._engine.close()
