"""The guide to functions: its first example works as told, its numbers are those of the code.

The commands that it shows are run by `tests/documents/test_examples.py`.
"""

from __future__ import annotations

import dataclasses
import re

import pytest
import wasmtime

from tallybus.common.record import MAX_ENTRIES
from tallybus.common.settings.sections import FunctionSettings
from tallybus.services.transactor.functions import instructions, module
from tests.support.example_functions import Sandbox
from tests.support.folders import DOCS
from tests.support.trials import try_function

GUIDE = (DOCS / "functions.md").read_text("utf-8")


def guide_text() -> str:
    found = re.search(r"```wat\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return found[1]


def guide_module() -> bytes:
    return bytes(wasmtime.wat2wasm(guide_text()))


@pytest.mark.parametrize(
    ("params", "balance", "status", "after"),
    [
        ((1, 2, 3, 1000, 50), 2000, 0, [0, 995, 1000, 5]),
        ((1, 2, 3, 1000, 50), 995, 1, [0, 995, 0, 0]),
        ((1, 2, 3, 0, 50), 0, 0, [0, 0, 0, 0]),
        ((1, 2, 3, 10**14, 10_000), 2**62, 0, [0, 2**62 - 2 * 10**14, 10**14, 10**14]),
        ((1, 2, 3, 10**14 + 1, 50), 2**62, 128, [0, 2**62, 0, 0]),
        ((1, 2, 3, -1, 50), 2000, 128, [0, 2000, 0, 0]),
        ((1, 2, 3, 1000, 10_001), 2000, 129, [0, 2000, 0, 0]),
        ((1, 2, 3, 1000, -1), 2000, 129, [0, 2000, 0, 0]),
    ],
)
def test_the_first_function_does_what_the_guide_says(
    params: tuple[int, ...], balance: int, status: int, after: list[int]
) -> None:
    sandbox = Sandbox(guide_module())
    try:
        outcome = sandbox.run([*params, 0, 0, 0], [0, balance, 0, 0])
    finally:
        sandbox.close()
    assert (outcome.status, outcome.balances) == (status, after)


def test_the_first_function_uses_the_fuel_that_the_guide_says() -> None:
    call = try_function(guide_module(), (1, 2, 3, 1000, 50), {1: 2000})
    assert f"uses {call.fuel_used} units" in GUIDE


def test_the_first_function_takes_the_room_in_the_log_that_the_guide_says() -> None:
    parameters, entries = 5, 3
    assert f"takes {40 + 8 * parameters + 16 * entries}, where" in GUIDE


@pytest.mark.parametrize(
    ("row", "limits"),
    [
        ("binary", [module.MAX_BINARY_BYTES]),
        ("tables", [module.MAX_TABLES]),
        ("functions", [module.MAX_FUNCTIONS]),
        ("types", [module.MAX_TYPES, module.MAX_PARAMETERS, module.MAX_RESULTS]),
        ("locals of a function", [module.MAX_LOCALS]),
        ("loops within loops", [instructions.MAX_LOOP_DEPTH]),
        ("globals, exports, data segments", [module.MAX_GLOBALS]),
        ("globals, exports, data segments", [module.MAX_EXPORTS]),
        ("globals, exports, data segments", [module.MAX_SEGMENTS]),
        ("globals, exports, data segments", [module.MAX_CUSTOM_SECTIONS]),
        ("imports |", [module.MAX_IMPORTS]),
        ("elements of all element segments", [module.MAX_ELEMENTS]),
        ("entries", [MAX_ENTRIES]),
    ],
)
def test_limits_are_documented(row: str, limits: list[int]) -> None:
    rows = [line for line in GUIDE.splitlines() if line.startswith(f"| {row}")]
    numbers = {
        int(each.replace(",", "")) for line in rows for each in re.findall(r"[\d,]*\d", line)
    }
    assert set(limits) <= numbers


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(FunctionSettings)])
def test_settings_are_told_with_their_defaults(field: str) -> None:
    default = getattr(FunctionSettings(), field)
    rows = [line for line in GUIDE.splitlines() if f"`functions.{field}`" in line]
    assert rows
    if default:
        assert any(f"({default:,}" in line for line in rows)
