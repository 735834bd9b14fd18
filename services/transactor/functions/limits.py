"""What functions may use: the limits of the sandbox as one value. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from tallybus.common.settings.sections import FunctionSettings
from tallybus.services.transactor.functions.budget import WorkBudget

_DEFAULTS: Final = FunctionSettings()
_BUDGET: Final = WorkBudget(_DEFAULTS.submit_ms * 1_000_000, _DEFAULTS.submit_entries)


@dataclass(frozen=True, slots=True)
class FunctionLimits:
    """`fuel` of one call, `fuel_by_name` for the functions that have another; of a module
    `memory_bytes` and `table_elements`, `stack_bytes` of a call, and how many functions may be live
    at a time. `compile_seconds` of the processor and `compile_mib` of memory to compile a module;
    of all live ones together `compile_total_seconds`, and `code_bytes` of machine code;
    `binaries_bytes` of all versions on disk. What the
    calls of one submit may use together is their `budget`; with `virtual_time` a unit of fuel is a
    nanosecond of it, so that a run can be repeated."""

    fuel: int = _DEFAULTS.fuel
    fuel_by_name: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    memory_bytes: int = _DEFAULTS.memory_mib << 20
    table_elements: int = _DEFAULTS.table_elements
    stack_bytes: int = _DEFAULTS.stack_kib << 10
    max_functions: int = _DEFAULTS.max_functions
    budget: WorkBudget = _BUDGET
    virtual_time: bool = False
    compile_seconds: int = _DEFAULTS.compile_seconds
    compile_total_seconds: int = _DEFAULTS.compile_total_seconds
    compile_mib: int = _DEFAULTS.compile_mib
    code_bytes: int = _DEFAULTS.code_mib << 20
    binaries_bytes: int = _DEFAULTS.binaries_mib << 20

    def fuel_of(self, name: str) -> int:
        """The fuel of one call of this function."""
        return self.fuel_by_name.get(name, self.fuel)


def limits_from(settings: FunctionSettings) -> FunctionLimits:
    """The limits that an operator chose."""
    return FunctionLimits(
        fuel=settings.fuel,
        fuel_by_name=MappingProxyType(settings.fuel_overrides),
        memory_bytes=settings.memory_mib << 20,
        table_elements=settings.table_elements,
        stack_bytes=settings.stack_kib << 10,
        max_functions=settings.max_functions,
        budget=WorkBudget(settings.submit_ms * 1_000_000, settings.submit_entries),
        compile_seconds=settings.compile_seconds,
        compile_total_seconds=settings.compile_total_seconds,
        compile_mib=settings.compile_mib,
        code_bytes=settings.code_mib << 20,
        binaries_bytes=settings.binaries_mib << 20,
    )
