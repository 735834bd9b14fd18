"""The live functions of a ledger: which name stands for which compiled module, and its statistics.

One thread installs, removes and executes; `compile` may be called from any other at the same time.
Loads wasmtime when it is made, and proves by a self-test that it does what is relied on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.errors import EXIT_SETTINGS, ServiceError
from tallybus.common.record import Status
from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.binding import Sandbox
from tallybus.services.transactor.functions.compiler import Code
from tallybus.services.transactor.functions.handler import (
    CompiledFunction,
    compile_function,
    load_function,
)
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.selftest import self_test
from tallybus.services.transactor.functions.state import CallState
from tallybus.services.transactor.functions.wasm_engine import FunctionsUnavailable

__all__ = [
    "CompiledFunction",
    "FunctionLimits",
    "FunctionRuntime",
    "FunctionStatistics",
    "FunctionsUnavailable",
    "TooManyFunctions",
]

_NO_SLOT: Final = np.uint64(layout.NO_SLOT)


class TooManyFunctions(ServiceError):
    """As many functions as the settings allow are live. Fields: `name`, `limit`."""

    exit_code = EXIT_SETTINGS
    restart = False

    def __init__(self, name: str, limit: int) -> None:
        super().__init__(
            f"function {name} cannot be installed: {limit} functions are live, and the setting "
            "functions.max_functions allows no more; raise it"
        )
        self.name = name
        self.limit = limit


@dataclass(frozen=True, slots=True)
class FunctionStatistics:
    """What one live function did since it was installed.

    - `failures`: how many calls ended with which status other than NONE. `reasons`: with which
      `Reason`. Calls that were not run are in both, and not in `calls`.
    - `fuel_total`: of all calls. `fuel_limit`: of one.
    - `work_ns`: the time that all calls took, by samples. `mean_ns` and `p99_ns`: of timed calls,
      None before the first one.
    - `compile_seconds`: of the processor, for its module. `code_bytes`: of its machine code.
    - `start_fuel`: what each call takes before its code runs.
    - `unusable`: why it cannot run here. Empty if it can.
    """

    name: str
    version: int
    crc32c: int
    calls: int
    failures: Mapping[int, int]
    reasons: Mapping[int, int]
    fuel_total: int
    fuel_limit: int
    work_ns: int
    mean_ns: float | None
    p99_ns: float | None
    suspended: bool
    compile_seconds: float
    code_bytes: int
    start_fuel: int
    unusable: str


class _Live:
    __slots__ = ("compiled", "crc32c", "slot", "unusable", "version")

    def __init__(
        self,
        slot: int,
        version: int,
        crc: int,
        compiled: CompiledFunction | None,
        unusable: str = "",
    ) -> None:
        self.unusable = unusable
        self.slot = slot
        self.version = version
        self.crc32c = crc
        self.compiled = compiled


class FunctionRuntime:
    """See the module. `calls` is the memory through which the kernel calls the functions."""

    def __init__(self, limits: FunctionLimits, calls: CallState | None = None) -> None:
        """Raises FunctionsUnavailable when wasmtime is not there or not as expected."""
        self.limits = limits
        self.calls = CallState(limits.max_functions) if calls is None else calls
        self_test(limits)
        self._sandbox = Sandbox(self.calls.words, limits)
        self._live: dict[str, _Live] = {}
        self._free = list(range(len(self.calls.slots) - 1, -1, -1))
        self._suspended: frozenset[str] = frozenset()
        self._epoch = 0
        self._renewed = 0

    def compile(self, binary: bytes) -> CompiledFunction:
        """A module's code, checked in every respect, made in this process: for modules that can be
        trusted not to take long. Raises InvalidFunction."""
        return compile_function(self._sandbox, binary, self.limits)

    def load(self, binary: bytes, code: Code) -> CompiledFunction:
        """The same from code that was made of this binary elsewhere. Raises InvalidFunction."""
        return load_function(self._sandbox, binary, code.facts, code.machine_code, code.seconds)

    def takes(self, name: str) -> bool:
        """Whether a function of this name may be registered: always, if one is live."""
        return name in self._live or len(self._live) < self.limits.max_functions

    def install(
        self,
        name: str,
        version: int,
        crc32c: int,
        compiled: CompiledFunction,
        registered: int = 0,
    ) -> None:
        """From now on calls of `name` run this; what ran before is freed, its statistics end.

        `registered` is the id of the transaction that registered it: records of calls name it.

        Raises TooManyFunctions.
        """
        slot = self._slot_for(name)
        compiled.fill(self.calls.slots[slot], crc32c, self.limits.fuel_of(name), registered)
        if compiled.instance is not None:
            compiled.instance.renew_deadline()
        self._live[name] = _Live(slot, version, crc32c, compiled)
        # Behind the line before: another thread may suspend it at any moment.
        self.calls.slots[slot, layout.SUSPENDED] = name in self._suspended

    def refuse(self, name: str, version: int, crc32c: int, why: str, registered: int = 0) -> None:
        """From now on calls of `name` end SUSPENDED: it is registered and cannot run here.

        Raises TooManyFunctions.
        """
        slot = self._slot_for(name)
        row = self.calls.slots[slot]
        row[:] = 0
        row[layout.REGISTERED] = registered
        row[layout.CRC] = crc32c
        row[layout.FUEL] = self.limits.fuel_of(name)
        self._live[name] = _Live(slot, version, crc32c, None, why)

    def _slot_for(self, name: str) -> int:
        before = self._live.get(name)
        if before is not None:
            return before.slot
        if not self._free:
            raise TooManyFunctions(name, len(self.calls.slots))
        return self._free.pop()

    def remove(self, name: str) -> None:
        """From now on there is no function of this name. KeyError if there is none."""
        live = self._live.pop(name)
        self.calls.slots[live.slot] = 0
        self._free.append(live.slot)

    def suspend(self, names: frozenset[str]) -> None:
        """Calls of these functions, and of no others, end SUSPENDED from now on, those that run
        included. From any thread."""
        self._suspended = names
        words = self.calls.words
        for name, live in list(self._live.items()):
            slot = self.calls.slots[live.slot]
            slot[layout.SUSPENDED] = name in names
            if name in names and int(words[layout.RUNNING]) == slot.ctypes.data:
                self.interrupt()

    def interrupt(self) -> None:
        """End the call that runs, if one does. From any thread. One that is neither suspended nor
        in overtime is called again."""
        self._epoch += 1
        self._sandbox.interrupt()

    def end_overtime(self, count: int) -> None:
        """End the call that is number `count`, if it still runs: it took too long. From any
        thread."""
        self.calls.words[layout.OVERTIME] = count
        self.interrupt()

    def fuel_at(self, address: int) -> int:
        """Fuel of a call of the function in the slot at this address."""
        offset = address - self.calls.slots.ctypes.data
        return int(self.calls.slots[offset // (8 * layout.SLOT_WORDS), layout.FUEL])

    def renew_deadlines(self) -> None:
        """After interruptions, in the thread that executes: calls run again."""
        if self._renewed == self._epoch:
            return
        self._renewed = self._epoch
        for live in self._live.values():
            if live.compiled is not None and live.compiled.instance is not None:
                live.compiled.instance.renew_deadline()

    def places(self, names: Sequence[str]) -> NDArray[np.uint64]:
        """u64[n]: the slot of each name, NO_SLOT where none is live."""
        live = self._live
        return np.array(
            [live[name].slot if name in live else _NO_SLOT for name in names], np.uint64
        )

    def __contains__(self, name: str) -> bool:
        return name in self._live

    def __len__(self) -> int:
        return len(self._live)

    def statistics(self) -> list[FunctionStatistics]:
        """One row per live function, in the order of names."""
        return [self._statistics_of(name, self._live[name]) for name in sorted(self._live)]

    def _statistics_of(self, name: str, live: _Live) -> FunctionStatistics:
        slot = self.calls.slots[live.slot]
        statuses = slot[layout.STATUSES : layout.STATUSES + 256]
        reasons = slot[layout.REASONS : layout.REASONS + 32]
        samples = int(slot[layout.SAMPLES])
        return FunctionStatistics(
            name=name,
            version=live.version,
            crc32c=live.crc32c,
            calls=int(slot[layout.CALLS]),
            failures={
                status: int(statuses[status])
                for status in np.flatnonzero(statuses).tolist()
                if status != Status.NONE
            },
            reasons={reason: int(reasons[reason]) for reason in np.flatnonzero(reasons).tolist()},
            fuel_total=int(slot[layout.FUEL_USED]),
            fuel_limit=int(slot[layout.FUEL]),
            work_ns=int(slot[layout.WORK_NS]),
            mean_ns=int(slot[layout.SAMPLED_NS]) / samples if samples else None,
            p99_ns=_quantile(slot[layout.DURATIONS :], 0.99) if samples else None,
            suspended=bool(slot[layout.SUSPENDED]),
            compile_seconds=0.0 if live.compiled is None else live.compiled.cost.seconds,
            code_bytes=0 if live.compiled is None else live.compiled.cost.code_bytes,
            start_fuel=int(slot[layout.START_FUEL]),
            unusable=live.unusable,
        )

    def close(self) -> None:
        """Free all code. Nothing can be called any more."""
        for live in self._live.values():
            self.calls.slots[live.slot] = 0
            if live.compiled is not None:
                live.compiled.close()
        self._live.clear()
        self._sandbox.close()


def _quantile(durations: NDArray[np.uint64], share: float) -> float:
    """The nanoseconds that this share of the timed calls took at most; right to an eighth."""
    counts = np.cumsum(durations[: layout.DURATION_STEPS])
    step = int(np.searchsorted(counts, share * float(counts[-1])))
    power, quarter = divmod(step, 4)
    return float((4 + quarter + 0.5) * 2**power)
