"""A file of test cases: what passes, what fails and how that is told, and what is no such file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from tallybus.cli import main
from tallybus.common.record import Reason, Status
from tallybus.function_cases import InvalidCases, read_cases, run_cases
from tallybus.functions import Trial
from tallybus.transactions import Entry, entry_of
from tests.support.example_functions import LANGUAGES, ORACLES, binary_path
from tests.support.folders import FUNCTION_EXAMPLES
from tests.support.function_modules import module

FEE = binary_path("fee_transfer", "wat")
CASES = sorted(FUNCTION_EXAMPLES.glob("*/cases.*"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["function", "test", *map(str, arguments)])


def trial(**fields: Any) -> Trial:
    given: dict[str, Any] = {
        "status": Status.NONE,
        "reason": Reason.NONE,
        "entries": (),
        "balances": {},
        "fuel_used": 10,
        "fuel_limit": 100,
        "trap": "",
        "returned": 0,
    }
    return Trial(**(given | fields))


def problems(expect: dict[str, Any], ended: Trial) -> list[str]:
    text = json.dumps({"cases": [{"name": "a", "expect": expect}]}).encode()
    (outcome,) = run_cases(read_cases(text, toml=False), lambda _params, _balances: ended)
    assert outcome.passed == (not outcome.problems)
    return list(outcome.problems)


def test_there_are_examples_in_both_formats() -> None:
    assert {path.suffix for path in CASES} == {".json", ".toml"}
    assert {path.parent.name for path in CASES} <= set(ORACLES)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_examples_pass_their_cases(path: Path, language: str) -> None:
    done = run(binary_path(path.parent.name, language), "--cases", path, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["failed"] == 0
    assert shown["passed"] == len(shown["cases"]) > 3
    assert all(case["passed"] and case["problems"] == [] for case in shown["cases"])


def test_a_table_shows_every_case_and_one_that_fails_exits_1(tmp_path: Path) -> None:
    path = tmp_path / "cases.toml"
    path.write_text(
        """
[[cases]]
name = "right"
params = [1, 2, 3, 1000, 50]
balances = { 1 = 1005 }
expect.balances = { 1 = 0 }

[[cases]]
name = "wrong"
params = [1, 2, 3, 1000, 50]
balances = { 1 = 1005 }
expect.entries = [{ account = 1, credit = 1000 }]
expect.balances = { 2 = 1000, 3 = 0, 9 = 1 }
expect.max_fuel = 1

[[cases]]
name = "the one before leaves nothing"
params = [1, 2, 3, 1, 0]
expect.status = 1
""",
        "utf-8",
    )
    done = run(FEE, "--cases", path)
    assert done.exit_code == 1
    assert done.stderr == "Error: 1 of 3 cases failed\n"
    head, right, wrong, last = (line.split("\t") for line in done.stdout.splitlines())
    assert head == ["case", "outcome", "status", "fuel", "otherwise than expected"]
    assert (right[:2], right[-1]) == (["right", "passed"], "")
    assert last[1:3] == ["passed", "INSUFFICIENT_FUNDS"]
    fuel = wrong[3]
    assert wrong[:2] == ["wrong", "failed"]
    assert wrong[-1] == (
        "entries are credit 1 1005, debit 2 1000, debit 3 5, not credit 1 1000; "
        f"account 3 has 5, not 0; account 9 has 0, not 1; it used {fuel} fuel, more than 1"
    )
    shown = json.loads(run(FEE, "--cases", path, "--json").stdout)
    assert (shown["passed"], shown["failed"]) == (2, 1)
    assert [case["passed"] for case in shown["cases"]] == [True, False, True]
    assert len(shown["cases"][1]["problems"]) == 4
    assert shown["cases"][1]["fuel_used"] == int(fuel)


def test_cases_run_within_the_limits_that_are_given(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    rows = [{"name": "a", "params": [1, 2, 3, 1], "expect": {"status": "INSUFFICIENT_FUNDS"}}]
    path.write_text(json.dumps({"cases": rows}), "utf-8")
    assert run(FEE, "--cases", path).exit_code == 0
    assert run(FEE, "--cases", path, "--fuel", 3).exit_code == 1
    rows[0]["balances"] = {"8": 1}
    path.write_text(json.dumps({"cases": rows}), "utf-8")
    assert run(FEE, "--cases", path).exit_code == 0
    done = run(FEE, "--cases", path, "--max-accounts", 8)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "case 1: account must be in 0..7, not 8" in done.stderr


def test_state_of_a_module_does_not_pass_from_case_to_case(tmp_path: Path) -> None:
    counting = tmp_path / "counting.wat"
    counting.write_text(
        module(
            "(global.set $n (i32.add (global.get $n) (i32.const 1))) "
            "(i32.add (i32.const 128) (global.get $n))",
            "(global $n (mut i32) (i32.const 0))",
        ),
        "utf-8",
    )
    path = tmp_path / "cases.json"
    rows = [{"name": str(at), "expect": {"status": 129}} for at in range(3)]
    path.write_text(json.dumps({"cases": rows}), "utf-8")
    assert run(counting, "--cases", path).exit_code == 0


@pytest.mark.parametrize(
    ("expect", "ended", "found"),
    [
        ({}, trial(), []),
        ({}, trial(entries=(entry_of(1, -5), entry_of(2, 5)), balances={1: -5, 2: 5}), []),
        ({"status": 0}, trial(), []),
        ({"status": "NONE"}, trial(), []),
        ({"status": 1}, trial(status=Status.INSUFFICIENT_FUNDS), []),
        ({"status": 130}, trial(status=130), []),
        ({"status": "FUNCTION_130"}, trial(status=130), []),
        ({}, trial(status=130), ["status is FUNCTION_130, not OK"]),
        ({"status": 130}, trial(), ["status is OK, not FUNCTION_130"]),
        ({"status": 130}, trial(status=131), ["status is FUNCTION_131, not FUNCTION_130"]),
        (
            {"status": 130},
            trial(status=Status.INVALID_OPERATION, trap="at\nwasm trap: unreachable\n"),
            ["status is INVALID_OPERATION (wasm trap: unreachable), not FUNCTION_130"],
        ),
        (
            {},
            trial(status=Status.INVALID_OPERATION, reason=Reason.BAD_RETURN),
            ["status is INVALID_OPERATION (BAD_RETURN), not OK"],
        ),
        (
            {"status": 5, "reason": "TRAP"},
            trial(status=Status.INVALID_OPERATION, reason=Reason.BAD_RETURN),
            ["reason is BAD_RETURN, not TRAP"],
        ),
        (
            {"status": 5, "reason": "TRAP"},
            trial(status=Status.INVALID_OPERATION, reason=Reason.TRAP),
            [],
        ),
        ({"entries": []}, trial(), []),
        (
            {"entries": []},
            trial(entries=(entry_of(1, -5), entry_of(2, 5))),
            ["entries are credit 1 5, debit 2 5, not none"],
        ),
        (
            {"entries": [{"account": 2, "debit": 5}, {"account": 1, "credit": 5}]},
            trial(entries=(entry_of(1, -5), entry_of(2, 5))),
            ["entries are credit 1 5, debit 2 5, not debit 2 5, credit 1 5"],
        ),
        (
            {
                "entries": [
                    {"account": 1, "direction": "CREDIT", "amount": 5},
                    {"account": 2, "debit": 5},
                ]
            },
            trial(entries=(entry_of(1, -5), entry_of(2, 5))),
            [],
        ),
        ({"balances": {"1": 5, "2": 0}}, trial(balances={1: 5}), []),
        ({"balances": {"1": -5}}, trial(balances={1: 5}), ["account 1 has 5, not -5"]),
        ({"balances": {"3": 1}}, trial(balances={1: 5}), ["account 3 has 0, not 1"]),
        ({"max_fuel": 10}, trial(), []),
        ({"max_fuel": 9}, trial(), ["it used 10 fuel, more than 9"]),
    ],
)
def test_what_is_not_as_expected_is_told(
    expect: dict[str, Any], ended: Trial, found: list[str]
) -> None:
    assert problems(expect, ended) == found


def case(**fields: Any) -> dict[str, Any]:
    return {"cases": [{"name": "a"} | fields]}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ([], "it must be one table"),
        ({}, "it needs `cases`"),
        ({"cases": []}, "it needs `cases`"),
        ({"cases": {}}, "it needs `cases`"),
        ({"case": [{"name": "a"}]}, "unknown field 'case'"),
        ({"cases": [{"name": "a"}], "balances": {}}, "unknown field 'balances'"),
        ({"cases": [1]}, "case 1: it must be a table"),
        ({"cases": [{}]}, "case 1, name"),
        ({"cases": [{"name": ""}]}, "case 1, name"),
        ({"cases": [{"name": " "}]}, "case 1, name"),
        ({"cases": [{"name": 5}]}, "case 1, name"),
        ({"cases": [{"name": "x" * 201}]}, "case 1, name"),
        ({"cases": [{"name": "a\tb"}]}, "case 1, name"),
        ({"cases": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "case 3, name: case 1 has"),
        (case(param=[1]), "case 1: unknown field 'param'"),
        (case(expected={}), "case 1: unknown field 'expected'"),
        (case(params=1), "case 1, params"),
        (case(params=list(range(9))), "case 1, params: it must be a list of up to 8"),
        (case(params=[1, True]), "case 1, params 2: True is no whole number"),
        (case(params=[1.0]), "case 1, params 1: 1.0 is no whole number"),
        (case(params=["1"]), "case 1, params 1: '1' is no whole number"),
        (case(params=[None]), "case 1, params 1"),
        (case(params=[2**63]), "is not in"),
        (case(params=[-(2**63) - 1]), "is not in"),
        (case(balances=[]), "case 1, balances: it must be a table"),
        (case(balances={"x": 1}), "'x' is no account"),
        (case(balances={"-1": 1}), "'-1' is no account"),
        (case(balances={"01": 1}), "'01' is no account"),
        (case(balances={"": 1}), "'' is no account"),
        (case(balances={str(2**64): 1}), "is no account"),
        (case(balances={"1": "5"}), "case 1, balances 1: '5' is no whole number"),
        (case(balances={"1": 2**63}), "is not in"),
        (case(expect=[]), "case 1, expect: it must be a table"),
        (case(expect={"fuel": 5}), "case 1, expect: unknown field 'fuel'"),
        (case(expect={"status": "nothing"}), "case 1, expect.status: 'nothing' is no status"),
        (case(expect={"status": "FUNCTION_127"}), "is no status"),
        (case(expect={"status": "FUNCTION_256"}), "is no status"),
        (case(expect={"status": 127}), "is no status"),
        (case(expect={"status": 42}), "is no status"),
        (case(expect={"status": 256}), "is no status"),
        (case(expect={"status": -1}), "is no status"),
        (case(expect={"status": False}), "is no status"),
        (case(expect={"status": None}), "is no status"),
        (case(expect={"status": []}), "a list is no status"),
        (case(expect={"reason": 1}), "case 1, expect.reason: 1 is no reason"),
        (case(expect={"reason": "WHY"}), "there are"),
        (case(expect={"entries": {}}), "case 1, expect.entries: it must be a list"),
        (case(expect={"entries": [5]}), "case 1, expect.entries 1"),
        (case(expect={"entries": [{"account": 1}]}), "an entry has an account and either"),
        (case(expect={"entries": [{"account": 1, "credit": 1, "debit": 1}]}), "an entry has"),
        (case(expect={"entries": [{"account": 1, "amount": 1}]}), "an entry has"),
        (
            case(expect={"entries": [{"account": 1, "direction": "UP", "amount": 1}]}),
            "an entry has",
        ),
        (case(expect={"entries": [{"account": 1, "credit": 0}]}), "is not in"),
        (case(expect={"entries": [{"account": -1, "credit": 1}]}), "is not in"),
        (case(expect={"entries": [{"account": 1, "credit": 2**63}]}), "is not in"),
        (
            case(expect={"status": 1, "entries": [{"account": 1, "credit": 1}]}),
            "a call that fails has no entries",
        ),
        (case(expect={"balances": {"1": None}}), "case 1, expect.balances 1"),
        (case(expect={"max_fuel": -1}), "is not in"),
        (case(expect={"max_fuel": 1.5}), "is no whole number"),
        (case(expect={"max_fuel": 2**64}), "is not in"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place(content: object, place: str) -> None:
    with pytest.raises(InvalidCases) as caught:
        read_cases(json.dumps(content).encode(), toml=False)
    assert place in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("cases.json", b"", "not valid JSON"),
        ("cases.json", b"{", "not valid JSON"),
        ("cases.json", b"\xff\xfe", "not valid JSON"),
        ("cases.json", b"[" * 200_000, "not valid JSON"),
        ("cases.json", b'{"cases": [{"name": "a", "params": [%s]}]}' % (b"1" * 5000), "JSON"),
        ("cases.json", b'{"cases": [{"name": "a", "params": [1e999]}]}', "no whole number"),
        ("cases.json", b'{"cases": [{"name": "a", "params": [NaN]}]}', "no whole number"),
        ("cases.json", b'{"cases": [{"name": "a", "name": "b"}]}', "the field 'name' twice"),
        (
            "cases.json",
            b'{"cases": [{"name": "a", "balances": {"1": 5, "1": 6}}]}',
            "the field '1' twice",
        ),
        ("cases.toml", b"cases = [", "not valid TOML"),
        ("cases.toml", b'{"cases": []}', "not valid TOML"),
        ("cases.toml", b'[[cases]]\nname = "a"\nname = "b"\n', "not valid TOML"),
        ("cases.toml", b'[[cases]]\nname = "a"\nparams = [0x7fffffffffffffffff]\n', "not in"),
        ("cases.toml", b'[[cases]]\nname = "a"\nparams = [2026-01-01]\n', "a date is no whole"),
        ("cases.toml", b"", "it needs `cases`"),
        ("cases.TOML", b"x = 1", "unknown field 'x'"),
    ],
)
def test_a_file_that_cannot_be_read_exits_2(
    tmp_path: Path, name: str, text: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    done = run(FEE, "--cases", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {path}: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_mark_at_the_start_of_a_file_is_taken() -> None:
    (found,) = read_cases('\ufeff{"cases": [{"name": "é"}]}'.encode(), toml=False)
    assert (found.name, found.params, found.balances) == ("é", (), {})
    assert found.expected.status == Status.NONE


@settings(max_examples=40)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(
                        st.sampled_from(["cases", "name", "params", "balances", "expect", "status",
                                         "entries", "account", "credit", "1"]), inner),
                    max_leaves=30))  # fmt: skip
def test_anything_is_read_or_refused(content: object) -> None:
    try:
        cases = read_cases(json.dumps(content).encode(), toml=False)
    except InvalidCases:
        return
    assert cases


def test_entries_of_a_case_are_those_of_a_transaction() -> None:
    text = b'{"cases": [{"name": "a", "expect": {"entries": [{"account": 7, "credit": 5}]}}]}'
    (found,) = read_cases(text, toml=False)
    assert found.expected.entries == (entry_of(7, -5),)
    assert isinstance(found.expected.entries[0], Entry)
