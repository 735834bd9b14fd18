"""The section of functions: what their calls and their modules may take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tallybus.common.settings.table import MAX_FUEL, Section, parse_fuel_by_name, setting


@dataclass(frozen=True, slots=True)
class FunctionSettings(Section):
    """What the transactor lets functions use."""

    fuel: int = setting(
        1_000_000,
        "Fuel of one call: about one unit for each instruction, more for those that take longer; a "
        "million in one millisecond to ten. A call that needs more fails with QUOTA_EXCEEDED.",
        minimum=1,
        maximum=MAX_FUEL,
    )
    fuel_by_name: str = setting(
        "",
        "Functions that have another quota of fuel, such as `rates=5000000, audit=200000`.",
        check=parse_fuel_by_name,
    )
    memory_mib: int = setting(
        16, "MiB of memory that a function may have.", minimum=1, maximum=1_024
    )
    table_elements: int = setting(
        10_000, "Elements that a table of a function may have.", minimum=1, maximum=1_000_000
    )
    stack_kib: int = setting(256, "KiB of stack that a call may use.", minimum=32, maximum=1_024)
    max_functions: int = setting(
        1_024, "Functions that may be registered at a time.", minimum=1, maximum=100_000
    )
    submit_ms: int = setting(
        100,
        "Milliseconds of the transactor's time that the calls of one submit may take together. The "
        "calls behind the one that reaches it end NOT_RUN and may be submitted again.",
        minimum=1,
        maximum=60_000,
    )
    submit_entries: int = setting(
        1_048_576,
        "Entries that the calls of one submit may make together; 16 bytes each in the log. The "
        "calls behind the one that reaches it end NOT_RUN and may be submitted again.",
        minimum=255,
        maximum=100_000_000,
    )
    compile_seconds: int = setting(
        10,
        "Seconds of the processor that compiling a module may take. One that takes longer is not "
        "registered.",
        minimum=1,
        maximum=3_600,
    )
    compile_total_seconds: int = setting(
        120,
        "Seconds of the processor that compiling all registered functions may take together, each "
        "module once: a transactor that has lost their machine code makes it again before it goes "
        "on.",
        minimum=1,
        maximum=86_400,
    )
    compile_mib: int = setting(
        1_024,
        "MiB of memory that compiling a module may take, in a process of its own.",
        minimum=64,
        maximum=65_536,
    )
    code_mib: int = setting(
        512,
        "MiB of machine code that all registered functions may have together, in memory and in "
        "`compiled`.",
        minimum=1,
        maximum=65_536,
    )
    binaries_mib: int = setting(
        256,
        "MiB that the binaries of all functions may take on disk, replaced and unregistered "
        "versions included: none is ever deleted. What would take more is not registered.",
        minimum=1,
        maximum=1_048_576,
    )
    compiled: Path | None = setting(
        None,
        "Folder in which the transactor keeps the machine code of functions, so that a restart "
        "compiles nothing. Empty: `compiled` in the data folder.",
        kind="path",
    )

    @property
    def fuel_overrides(self) -> dict[str, int]:
        """`fuel_by_name` as numbers."""
        return parse_fuel_by_name(self.fuel_by_name)
