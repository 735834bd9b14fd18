"""The guide to functions: its first example works as told, its numbers are those of the code."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import wasmtime
from click.testing import CliRunner

from tallybus.cli import main
from tallybus.common.record import MAX_ENTRIES
from tallybus.common.settings.sections import FunctionSettings
from tallybus.services.transactor.functions import instructions, module
from tallybus.services.transactor.functions.trial import try_function
from tests.support.example_functions import Sandbox
from tests.support.folders import DOCS
from tests.support.written_ledger import WrittenLedger

GUIDE = (DOCS / "functions.md").read_text("utf-8")


def guide_module() -> bytes:
    found = re.search(r"```wat\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    return bytes(wasmtime.wat2wasm(found[1]))


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


TESTS = re.findall(r"```python\n([^`]*?def (test_\w+)[^`]*)```", GUIDE)


def test_the_guide_shows_tests() -> None:
    assert [name for _, name in TESTS] == [
        "test_the_fee_is_paid_on_top",
        "test_fee_is_rounded_down",
    ]


@pytest.mark.parametrize(("source", "name"), TESTS, ids=[name for _, name in TESTS])
def test_the_tests_that_the_guide_shows_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    file = tmp_path / "guide_test.py"
    file.write_text(source, "utf-8")
    (tmp_path / "fee_transfer.wasm").write_bytes(guide_module())
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("guide_test", file)
    assert spec is not None
    assert spec.loader is not None
    shown = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shown)
    arguments = [tmp_path / "ledger"] if "tmp_path" in source else []
    getattr(shown, name)(*arguments)


def shown_after(command: str) -> tuple[list[str], str]:
    """Arguments of a command that the guide shows, and what it shows below it."""
    pattern = rf"^\$ tallybus ({command}[^\n]*)\n(.*?)```"
    found = re.search(pattern, GUIDE, re.MULTILINE | re.DOTALL)
    assert found, command
    return found[1].split(), found[2]


def test_the_trial_that_the_guide_shows_is_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fee_transfer.wat").write_bytes(guide_module())
    monkeypatch.chdir(tmp_path)
    testing = GUIDE[GUIDE.index("## Testing without a ledger") :]
    command, output = re.findall(r"```sh\ntallybus (.*)\n```\n```\n(.*?)```", testing, re.DOTALL)[0]
    done = CliRunner().invoke(main, command.split())
    assert (done.exit_code, done.stdout) == (0, output)


def test_the_cases_that_the_guide_shows_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.search(r"```toml\n(.*?)```", GUIDE, re.DOTALL)
    assert found
    (tmp_path / "fee_transfer.toml").write_text(found[1], "utf-8")
    (tmp_path / "fee_transfer.wat").write_bytes(guide_module())
    monkeypatch.chdir(tmp_path)
    command, output = shown_after("function test fee_transfer.wat --cases")
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.stdout) == (0, output)


def test_the_recorded_call_that_the_guide_shows_is_what_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in the guide's first example: transaction 3 is the first call.
    ledger = WrittenLedger(tmp_path / "data")
    ledger.register("fee_transfer", guide_module())
    ledger.deposit(1, 2_000)
    ledger.call("fee_transfer", (1, 2, 3, 1_000, 50))
    ledger.close()
    monkeypatch.chdir(tmp_path)
    command, output = shown_after("function test --tx 3")
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.stdout) == (0, output)


def test_links_of_the_guide_lead_somewhere() -> None:
    pages = [DOCS / "functions.md", *(DOCS.parent / "examples" / "functions").rglob("*.md")]
    assert len(pages) > 4
    for page in pages:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
            path, _, anchor = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{page.name}: {target}"
            headings = [
                re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
                for line in linked.read_text("utf-8").splitlines()
                if line.startswith("#")
            ]
            assert not anchor or anchor in headings, f"{page.name}: {target}"
