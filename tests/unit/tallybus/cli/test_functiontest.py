"""`function test`: a call without a ledger, its limits, and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tallybus.cli.measure import function as load_function
from tests.unit.tallybus.cli.commands import run

FEE = ("--param", 1, "--param", 2, "--param", 3, "--param", 1001, "--param", 50)


@pytest.fixture
def fee(tmp_path: Path) -> Path:
    path = tmp_path / "fee.wat"
    path.write_text(load_function.SOURCE, "utf-8")
    return path


def test_a_function_is_tried_without_a_ledger(fee: Path) -> None:
    done = run("function", "test", fee, *FEE, "--balance", "1=1007", "--balance", "4=-2", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert 10 < shown.pop("fuel_used") < 100
    assert shown == {
        "status": "NONE",
        "reason": None,
        "returned": 0,
        "fuel_limit": 1_000_000,
        "trap": None,
        "entries": [
            {"account": 1, "direction": "CREDIT", "amount": 1007},
            {"account": 2, "direction": "DEBIT", "amount": 1001},
            {"account": 3, "direction": "DEBIT", "amount": 6},
        ],
        "balances": [
            {"account": 1, "balance": 0},
            {"account": 2, "balance": 1001},
            {"account": 3, "balance": 6},
            {"account": 4, "balance": -2},
        ],
    }
    text = run("function", "test", fee, *FEE, "--balance", "1=2000").stdout
    status, fuel, entries, _, *tables = text.splitlines()
    assert status.split() == ["status", "OK"]
    assert fuel.endswith(" of 1000000")
    assert entries.split() == ["entries", *["3", "of", "255"]]
    assert tables == [
        *("account\tcredit\tdebit", "1\t1007\t", "2\t\t1001", "3\t\t6", ""),
        *("account\tbalance", "1\t993", "2\t1001", "3\t6"),
    ]


def test_a_tried_function_that_fails_exits_1(fee: Path) -> None:
    done = run("function", "test", fee, *FEE, "--balance", "1=1006", "--json")
    assert done.exit_code == 1
    shown = json.loads(done.stdout)
    assert (shown["status"], shown["entries"]) == ("INSUFFICIENT_FUNDS", [])
    assert shown["balances"] == [{"account": 1, "balance": 1006}]
    assert "would be rejected: INSUFFICIENT_FUNDS" in done.stderr


def function_of(path: Path, body: str, declarations: str = "") -> Path:
    """A file with a module whose `execute` has this body."""
    params = "(param i64 i64 i64 i64 i64 i64 i64 i64)"
    path.write_text(
        f'(module {declarations} (func (export "execute") {params} (result i32) {body}))', "utf-8"
    )
    return path


RETURNED = "a function may return 0 to 9 without 7, and 128 to 255"


@pytest.mark.parametrize(
    ("body", "status", "reason", "words"),
    [
        ("unreachable", "INVALID_OPERATION", "TRAP", "unreachable"),
        ("i32.const 300", "INVALID_OPERATION", "BAD_RETURN", f"it returned 300; {RETURNED}"),
        ("i32.const -1", "INVALID_OPERATION", "BAD_RETURN", f"it returned -1; {RETURNED}"),
        ("i32.const 7", "INVALID_OPERATION", "BAD_RETURN", f"it returned 7; {RETURNED}"),
        ("i32.const 10", "INVALID_OPERATION", "BAD_RETURN", f"it returned 10; {RETURNED}"),
        ("i32.const 42", "INVALID_OPERATION", "BAD_RETURN", f"it returned 42; {RETURNED}"),
        ("i32.const 127", "INVALID_OPERATION", "BAD_RETURN", f"it returned 127; {RETURNED}"),
        ("i32.const 5", "INVALID_OPERATION", None, "the function returned it"),
        ("i32.const 9", "QUOTA_EXCEEDED", None, "the function returned it"),
        ("i32.const 1", "INSUFFICIENT_FUNDS", None, "holds less"),
        ("i32.const 128", "FUNCTION_128", None, "the function's own status"),
        ("i32.const 140", "FUNCTION_140", None, "the function's own status"),
        ("i32.const 255", "FUNCTION_255", None, "the function's own status"),
        ("(loop $again (br $again)) unreachable", "QUOTA_EXCEEDED", None, "fuel"),
        ("(i32.wrap_i64 (local.get 1))", "FUNCTION_129", None, "the function's own status"),
    ],
)
def test_every_way_to_fail_is_told(
    tmp_path: Path, body: str, status: str, reason: str | None, words: str
) -> None:
    path = function_of(tmp_path / "function.wat", body)
    arguments = ("--param", -1, "--param=129", "--fuel", 1_000)
    done = run("function", "test", path, *arguments, "--json")
    assert done.exit_code == 1
    shown = json.loads(done.stdout)
    assert (shown["status"], shown["reason"], shown["fuel_limit"]) == (status, reason, 1_000)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    text = run("function", "test", path, *arguments).stdout
    assert ("reason" in text) == (reason is not None)


MAX_FUEL = 10**12


@pytest.mark.parametrize(
    "arguments",
    [
        ("--param", "x"),
        ("--param", ""),
        ("--param", "-"),
        ("--param", "+1"),
        ("--param", 2**63),
        ("--param", 2**64 - 1),
        ("--param", 2**64),
        ("--param", -(2**63) - 1),
        [each for number in range(9) for each in ("--param", number)],
        ("--balance", "1"),
        ("--balance", "1="),
        ("--balance", "=1"),
        ("--balance", "1=x"),
        ("--balance", "1=2=3"),
        ("--balance", " 1=2"),
        ("--balance", "1=٣"),
        ("--balance", "-1=5"),
        ("--balance", f"1={2**63}"),
        ("--balance", f"1={-(2**63) - 1}"),
        ("--balance", f"1={2**64 - 1}"),
        ("--balance", "1=5", "--balance", "1=6"),
        ("--balance", "1=5", "--balance", "01=6"),
        ("--balance", f"{2**63}=5"),
        ("--balance", f"{2**64 - 1}=5"),
        ("--balance", "10000000=5"),
        ("--balance", "8=5", "--max-accounts", 8),
        *(
            (option, number)
            for option, largest in (
                ("--fuel", MAX_FUEL),
                ("--max-accounts", 2**32),
                ("--memory-mib", 1_024),
                ("--table-elements", 1_000_000),
                ("--stack-kib", 1_024),
            )
            for number in (0, -1, "", "1.5", "1e3", largest + 1, 2**63, 2**64 - 1, 2**64)
        ),
        ("--max-accounts", 1),
        ("--stack-kib", 31),
        ("--name", "1st"),
        ("--set", "functions.fuel"),
        ("--tx", 0),
        ("--tx", 2**64),
        ("--tx", 1, "--param", 1),
        ("--tx", 1, "--balance", "1=1"),
        ("--tx", 1, "--cases", "FILE"),
        ("--tx", 1, "--data", "nowhere"),
        ("--tx", 1, "--data", "FILE"),
        ("--data", "."),
        ("--cases", "FILE", "--param", 1),
        ("--cases", "nothing.toml"),
    ],
)
def test_a_trial_with_wrong_arguments_exits_2(fee: Path, arguments: tuple[object, ...]) -> None:
    given = (fee if each == "FILE" else each for each in arguments)
    done = run("function", "test", fee, *given)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_a_trial_needs_a_module() -> None:
    done = run("function", "test", "--param", 1)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "FILE" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--param", 2**63 - 1),
        ("--param", -(2**63)),
        ("--param", "-0"),
        ("--balance", f"0={2**63 - 1}"),
        ("--balance", f"9999999={-(2**63)}"),
        ("--balance", f"{2**32 - 1}=1", "--max-accounts", 2**32),
        ("--fuel", MAX_FUEL),
        ("--memory-mib", 1_024),
        ("--table-elements", 1_000_000),
        ("--stack-kib", 32),
        ("--stack-kib", 1_024),
    ],
)
def test_the_largest_and_smallest_arguments_are_taken(
    tmp_path: Path, arguments: tuple[object, ...]
) -> None:
    done = run("function", "test", function_of(tmp_path / "f.wat", "i32.const 0"), *arguments)
    assert (done.exit_code, done.stderr) == (0, "")


GROW = "(i32.add (i32.const 130) (i32.eqz (i32.add (memory.grow (i32.const 15)) (i32.const 1))))"


TABLE = "(i32.add (i32.const 130) (i32.eqz (i32.add (i32.const 1) \
(table.grow (ref.null func) (i32.const 90)))))"


RECURSE = "(drop (call $deeper (i64.const 3000))) (i32.const 131)"


DEEPER = """(func $deeper (param i64) (result i64) (if (result i64) (i64.eqz (local.get 0))
 (then (i64.const 0)) (else (i64.add (i64.const 1)
 (call $deeper (i64.sub (local.get 0) (i64.const 1)))))))"""


BALANCE = "(drop (call $b (i64.const 1000))) (i32.const 132)"


IMPORT = '(import "ledger" "get_balance" (func $b (param i64) (result i64)))'


@pytest.mark.parametrize(
    ("body", "declarations", "setting", "option"),
    [
        (GROW, "(memory 2)", "functions.memory_mib=1", "--memory-mib"),
        (TABLE, "(table 10 funcref)", "functions.table_elements=99", "--table-elements"),
        (RECURSE, DEEPER, "functions.stack_kib=32", "--stack-kib"),
        (BALANCE, IMPORT, "ledger.max_accounts=1000", "--max-accounts"),
        ("i32.const 133", "", "functions.fuel=1", "--fuel"),
    ],
    ids=["memory", "table", "stack", "accounts", "fuel"],
)
@pytest.mark.parametrize("way", ["option", "set", "config", "environment"])
def test_the_limits_of_a_ledger_hold_in_a_trial(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    declarations: str,
    setting: str,
    option: str,
    way: str,
) -> None:
    path = function_of(tmp_path / "function.wat", body, declarations)
    usual = json.loads(run("function", "test", path, "--json").stdout)
    key, _, value = setting.partition("=")
    section, _, name = key.partition(".")
    arguments: tuple[object, ...] = ()
    if way == "option":
        arguments = (option, value)
    elif way == "set":
        arguments = ("--set", setting)
    elif way == "config":
        (tmp_path / "ledger.toml").write_text(f"[{section}]\n{name} = {value}\n", "utf-8")
        arguments = ("--config", tmp_path / "ledger.toml")
    else:
        monkeypatch.setenv(f"TALLYBUS_{section}_{name}".upper(), value)
    limited = json.loads(run("function", "test", path, *arguments, "--json").stdout)
    assert limited["status"] != usual["status"]


def test_the_quota_of_a_name_is_taken_from_the_settings(tmp_path: Path) -> None:
    path = function_of(tmp_path / "function.wat", "i32.const 0")
    quotas = ("--set", "functions.fuel_by_name=rates=500, other=1")
    for arguments, limit in (
        (("--name", "rates"), 500),
        (("--name", "audit"), 1_000_000),
        ((), 1_000_000),
        (("--name", "rates", "--fuel", 7), 7),
    ):
        done = run("function", "test", path, *quotas, *arguments, "--json")
        assert json.loads(done.stdout)["fuel_limit"] == limit


def test_a_module_beyond_the_limits_cannot_be_tried(tmp_path: Path) -> None:
    path = function_of(tmp_path / "function.wat", "i32.const 0", "(memory 32)")
    assert run("function", "test", path).exit_code == 0
    done = run("function", "test", path, "--memory-mib", 1)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "memory" in done.stderr


def test_what_a_ledger_would_not_register_cannot_be_tried(tmp_path: Path) -> None:
    path = tmp_path / "function.wat"
    path.write_text('(module (func (export "exec")))', "utf-8")
    done = run("function", "test", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no export named execute" in done.stderr
