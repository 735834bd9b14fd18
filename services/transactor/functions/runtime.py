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

from tallybus.common.errors import ServiceError
from tallybus.common.record import Status
from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.binding import FunctionsUnavailable, Sandbox
from tallybus.services.transactor.functions.handler import CompiledFunction, compile_function
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.selftest import self_test
from tallybus.services.transactor.functions.state import CallState

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

    `failures`: how many calls ended with which status other than NONE. `fuel_total` of all calls,
    `fuel_limit` of one. `mean_ns`: of sampled calls, None before the first sample.
    """

    name: str
    version: int
    crc32c: int
    calls: int
    failures: Mapping[int, int]
    fuel_total: int
    fuel_limit: int
    mean_ns: float | None


class _Live:
    __slots__ = ("compiled", "crc32c", "slot", "version")

    def __init__(self, slot: int, version: int, crc: int, compiled: CompiledFunction) -> None:
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

    def compile(self, binary: bytes) -> CompiledFunction:
        """A module's code, checked in every respect. Raises InvalidFunction. Takes milliseconds to
        seconds, in which other threads run."""
        return compile_function(self._sandbox, binary, self.limits)

    def takes(self, name: str) -> bool:
        """Whether a function of this name can be installed: always, if one is live."""
        return name in self._live or bool(self._free)

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
        if not self.takes(name):
            raise TooManyFunctions(name, len(self.calls.slots))
        before = self._live.get(name)
        slot = self._free.pop() if before is None else before.slot
        compiled.fill(self.calls.slots[slot], crc32c, self.limits.fuel_of(name), registered)
        self._live[name] = _Live(slot, version, crc32c, compiled)

    def remove(self, name: str) -> None:
        """From now on there is no function of this name. KeyError if there is none."""
        live = self._live.pop(name)
        self.calls.slots[live.slot] = 0
        self._free.append(live.slot)

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
            fuel_total=int(slot[layout.FUEL_USED]),
            fuel_limit=int(slot[layout.FUEL]),
            mean_ns=int(slot[layout.SAMPLED_NS]) / samples if samples else None,
        )

    def close(self) -> None:
        """Free all code. Nothing can be called any more."""
        for live in self._live.values():
            self.calls.slots[live.slot] = 0
            live.compiled.close()
        self._live.clear()
        self._sandbox.close()
