"""`function`, `call`, `tx` and `load --kind function`: what they send, print and exit with."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import wasmtime
from click.testing import CliRunner, Result
from crc32c import crc32c

from tallybus.cli import main
from tallybus.cli.measure import function as load_function
from tallybus.cli.measure import load
from tallybus.cli.measure.disk_speed import DiskLimits
from tests.support.fake_gateway import FakeGateway, always
from tests.support.folders import PROJECT

BINARY = b"\0asm\1\0\0\0"
CRC = f"{crc32c(BINARY):08x}"


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "fee.wasm"
    path.write_bytes(BINARY)
    return path


def run(*arguments: object, given: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], input=given)


def at(gateway: FakeGateway, *arguments: object, given: bytes | None = None) -> Result:
    return run(*arguments, "--endpoint", gateway.endpoint, given=given)


def test_a_function_is_registered_and_unregistered(gateway: FakeGateway, module: Path) -> None:
    done = at(gateway, "function", "register", "fee", module)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"fee version 1: crc32c {CRC}, transaction 1\n"
    assert gateway.seen[0].payload == [BINARY]
    done = at(gateway, "function", "register", "fee", module, "--override", "--json")
    assert json.loads(done.stdout) == {"name": "fee", "version": 2, "crc32c": CRC, "tx_id": 2}
    done = at(gateway, "function", "unregister", "fee")
    assert done.stdout == "fee version 3: unregistered, transaction 3\n"
    done = at(gateway, "function", "unregister", "fee", "--json")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: there is no function fee (transaction 4 was rejected)\n"


def test_a_taken_name_exits_1(gateway: FakeGateway, module: Path) -> None:
    at(gateway, "function", "register", "fee", module)
    done = at(gateway, "function", "register", "fee", module)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "fee is registered already" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_binary_that_the_ledger_refuses_exits_2(module: Path) -> None:
    with FakeGateway(script=always("invalid_function")) as gateway:
        gateway.details = {"name": "fee", "reason": "no export execute"}
        done = at(gateway, "function", "register", "fee", module)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "no export execute" in done.stderr


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_text_is_turned_into_a_binary_whatever_the_file_is_called(
    gateway: FakeGateway, tmp_path: Path, mark: str
) -> None:
    path = tmp_path / "fee.wasm"
    path.write_text(f"{mark};; a fee\n{load_function.SOURCE}", "utf-8")
    assert at(gateway, "function", "register", "fee", path).exit_code == 0
    assert gateway.seen[0].payload == [load_function.BINARY]


def test_a_module_may_come_from_standard_input(gateway: FakeGateway) -> None:
    assert at(gateway, "function", "register", "fee", "-", given=BINARY).exit_code == 0
    assert gateway.seen[0].payload == [BINARY]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"(module\n  (func i32.cnst 0))", "line 2, column 9: unknown operator"),
        (b"(module\n  (func i32.cnst 0))", "at 'i32.cnst 0))'"),
        (b"(module\n", "line 2, column 1: expected `)`"),
        (b"function fee() {}", "line 1, column 1: expected `(`"),
        (b"", "neither a WebAssembly binary nor its text format"),
        (b" \n", "neither a WebAssembly binary nor its text format"),
        (b"(mod\0ule)", "neither a WebAssembly binary nor its text format"),
        (b"\x7fELF\xff", "neither a WebAssembly binary, which begins with"),
    ],
)
def test_what_is_no_module_is_told_with_its_place(
    gateway: FakeGateway, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "fee.wat"
    path.write_bytes(content)
    done = at(gateway, "function", "register", "fee", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert str(path) in done.stderr
    assert done.stderr.count("\n") == 1
    assert gateway.seen == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("function", "register", "1st", "FILE"),
        ("function", "register", "fee", "nothing.wasm"),
        ("function", "register", "fee"),
        ("function", "unregister", "a-b"),
        ("function", "nonsense"),
        ("call", "1st"),
        ("call", "fee", "x"),
        ("call", "fee", "--5"),
        ("call", "fee", "-"),
        ("call", "fee", "1_000"),
        ("call", "fee", "٣"),
        ("call", "fee", 2**63),
        ("call", "fee", -(2**63) - 1),
        ("call", "fee", *range(9)),
        ("call", "fee", "--waits", "none"),
        ("tx", 0),
        ("tx", "x"),
        ("tx",),
    ],
)
def test_wrong_use_exits_2_and_sends_nothing(
    gateway: FakeGateway, module: Path, arguments: tuple[object, ...]
) -> None:
    done = at(gateway, *(module if each == "FILE" else each for each in arguments))
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert gateway.seen == []


def test_functions_are_listed(gateway: FakeGateway, module: Path) -> None:
    assert json.loads(at(gateway, "function", "list", "--json").stdout)["functions"] == []
    at(gateway, "function", "register", "fee", module)
    for params in ((1, 5), (1, 5, 5), (1, 5, 200)):
        at(gateway, "call", "fee", *params)
    listed = json.loads(at(gateway, "function", "list", "--json").stdout)
    assert listed["usage"] == {
        "binaries_bytes": 3 << 20,
        "binaries_limit": 256 << 20,
        "code_bytes": 1 << 20,
        "code_limit": 512 << 20,
        "compile_seconds": 1.5,
        "compile_limit": 120.0,
        "waiting": 2,
    }
    assert listed == {
        "usage": listed["usage"],
        "functions": [
            {
                "name": "fee",
                "version": 1,
                "crc32c": CRC,
                "tx_id": 1,
                "calls": 3,
                "failures": {"INVALID_OPERATION": 1, "FUNCTION_200": 1},
                "fuel_total": 30,
                "fuel_mean": 10.0,
                "fuel_limit": 1_000_000,
                "mean_ns": 81.5,
                "p99_ns": None,
                "work_ns": 0,
                "reasons": {},
                "suspended": False,
                "compile_seconds": 0.5,
                "code_bytes": 10_000,
                "start_fuel": 3_300,
                "unusable": "",
            }
        ],
    }
    at(gateway, "function", "register", "unused", module)
    lines = [line.split("\t") for line in at(gateway, "function", "list").stdout.splitlines()]
    assert [line for (line,) in lines[3:] if line] == [
        "binaries of all versions on disk: 3.0 of 256 MiB",
        "machine code: 1.0 of 512 MiB, compiled in 1.5 of 120 s",
        "waiting to be compiled: 2",
    ]
    assert lines[:3] == [
        [
            *("name", "version", "crc32c", "calls", "failures"),
            *("fuel", "mean fuel", "fuel limit", "mean time", "p99", "work", ""),
        ],
        [
            *("fee", "1", CRC, "3", "1 INVALID_OPERATION, 1 FUNCTION_200"),
            *("30", "10.0", "1000000", "82 ns", "", "0.000 s", ""),
        ],
        ["unused", "1", CRC, "0", "", "0", "", "1000000", "", "", "0.000 s", ""],
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_list_is_drawn_on_a_terminal(
    gateway: FakeGateway, module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(gateway, "function", "register", "fee", module)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    main(["function", "list", "--endpoint", gateway.endpoint], standalone_mode=False)
    lines = terminal.getvalue().splitlines()
    assert any("│ fee" in line and CRC in line for line in lines)


def test_a_call_sends_its_parameters_with_their_signs(gateway: FakeGateway, module: Path) -> None:
    at(gateway, "function", "register", "fee", module)
    done = at(gateway, "call", "fee", 7, 5, 0, -1, -15, -(2**63), 2**63 - 1)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "transaction 2: committed\n", "")
    assert gateway.ledger.kept[2].params == [7, 5, 0, -1, -15, -(2**63), 2**63 - 1]
    done = at(gateway, "call", "--wait", "computed", "fee", -2, "--user-ref", 9, "--json")
    assert json.loads(done.stdout) == {
        "tx_id": 3,
        "ok": True,
        "status": "NONE",
        "reason": None,
        "level": "COMPUTED",
        "duplicate_of": None,
        "original_status": None,
    }
    assert gateway.ledger.kept[3].params == [-2]
    assert gateway.ledger.refs[9] == (3, 0)
    assert at(gateway, "call", "fee").exit_code == 0


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ((1, 5, 130), "FUNCTION_130: the function's own status"),
        ((1, 5, 3), "ZERO_SUM_VIOLATION: what the function credited is not what it debited"),
        ((1, 5, 9), "QUOTA_EXCEEDED: the function used up its fuel"),
        ((1, 5, 5), "INVALID_OPERATION: there is no such function, or it trapped"),
    ],
)
def test_a_rejected_call_says_why(
    gateway: FakeGateway, module: Path, params: tuple[int, ...], words: str
) -> None:
    at(gateway, "function", "register", "fee", module)
    done = at(gateway, "call", "fee", *params)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"transaction 2 rejected: {words}" in done.stderr


def test_a_transaction_is_shown_with_its_entries(gateway: FakeGateway, module: Path) -> None:
    at(gateway, "function", "register", "fee", module)
    at(gateway, "call", "fee", 7, 5, 0, -3, "--user-ref", 9)
    shown = json.loads(at(gateway, "tx", 2, "--json", "--min-tx-id", 2).stdout)
    assert shown == {
        "tx_id": 2,
        "timestamp_ns": 1_700_000_000_123_456_789,
        "term": 1,
        "kind": "FUNCTION",
        "status": "NONE",
        "reason": None,
        "user_ref": 9,
        "account": None,
        "source": None,
        "target": None,
        "amount": None,
        "function": "fee",
        "version": 1,
        "crc32c": CRC,
        "params": [7, 5, 0, -3],
        "entries": [
            {"account": 0, "direction": "CREDIT", "amount": 5},
            {"account": 7, "direction": "DEBIT", "amount": 5},
        ],
        "duplicate_of": None,
        "last_snapshot_tx_id": 2,
    }
    text = at(gateway, "tx", 2).stdout
    values, _, entries = text.partition("\n\n")
    assert dict(line.split(maxsplit=1) for line in values.splitlines()) == {
        "transaction": "2",
        "time": "2023-11-14T22:13:20.123456789Z",
        "term": "1",
        "kind": "FUNCTION",
        "status": "OK",
        "user_ref": "9",
        "function": f"fee version 1, crc32c {CRC}",
        "params": "7 5 0 -3",
    }
    assert entries == "account\tcredit\tdebit\n0\t5\t\n7\t\t5\n"


def test_transactions_of_every_kind_are_shown(gateway: FakeGateway, module: Path) -> None:
    at(gateway, "function", "register", "fee", module)
    at(gateway, "function", "register", "fee", module)
    at(gateway, "call", "nothing")
    at(gateway, "transfer", 1, 2, 5, "--user-ref", 4)
    at(gateway, "transfer", 1, 2, 5, "--user-ref", 4)
    at(gateway, "function", "unregister", "fee")
    texts = [at(gateway, "tx", number).stdout for number in range(1, 7)]
    assert f"function     fee version 1, crc32c {CRC}\n" in texts[0]
    assert "status       INVALID_OPERATION\n" in texts[1]
    assert "function     fee\n" in texts[1]
    assert "function     none ran\n" in texts[2]
    assert "params       none\n" in texts[2]
    assert "source       1\ntarget       2\namount       5\n" in texts[3]
    assert "duplicate of  4\n" in texts[4]
    assert "function     fee version 2, unregistered\n" in texts[5]


def test_a_transaction_that_is_not_there_exits_5(gateway: FakeGateway) -> None:
    done = at(gateway, "tx", 9, "--json")
    assert (done.exit_code, done.stdout) == (5, "")
    assert "no transaction 9" in done.stderr


def test_only_text_loads_wasmtime(gateway: FakeGateway, module: Path) -> None:
    program = (
        "import sys\n"
        "from tallybus.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "heavy = ('numba', 'llvmlite', 'wasmtime', 'tallybus.services')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    for arguments in (
        ("function", "register", "fee", str(module)),
        ("call", "fee", "-1"),
        ("function", "list", "--json"),
        ("tx", "1"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments, "--endpoint", gateway.endpoint],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=PROJECT,
        )
        assert (done.stderr, done.returncode) == ("[]\n", 0)


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


RETURNED = "which is no status that a function may return"


@pytest.mark.parametrize(
    ("body", "status", "reason", "words"),
    [
        ("unreachable", "INVALID_OPERATION", "TRAP", "unreachable"),
        ("i32.const 300", "INVALID_OPERATION", "BAD_RETURN", f"it returned 300, {RETURNED}"),
        ("i32.const -1", "INVALID_OPERATION", "BAD_RETURN", f"it returned -1, {RETURNED}"),
        ("i32.const 7", "INVALID_OPERATION", "BAD_RETURN", f"it returned 7, {RETURNED}"),
        ("i32.const 10", "INVALID_OPERATION", "BAD_RETURN", f"it returned 10, {RETURNED}"),
        ("i32.const 42", "INVALID_OPERATION", "BAD_RETURN", f"it returned 42, {RETURNED}"),
        ("i32.const 127", "INVALID_OPERATION", "BAD_RETURN", f"it returned 127, {RETURNED}"),
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


def test_the_loads_function_is_what_its_source_says() -> None:
    assert bytes(wasmtime.wat2wasm(load_function.SOURCE)) == load_function.BINARY


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's own speed is not what is tested here, and takes seconds to measure."""
    monkeypatch.setattr(
        load, "measure_disk", lambda *_, **__: DiskLimits(100_000_000, 0.5, (1_000_000,))
    )


def test_load_registers_its_function_once_and_calls_it(
    gateway: FakeGateway, quick_disk: None
) -> None:
    gateway.ledger.versions["load_fee_transfer"] = 3
    options = "--kind function --ops 3000 --batch 500 --accounts 40 --unique-refs --seed 3 --json"
    for _ in range(2):
        done = at(gateway, "load", *options.split())
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["kind"], report["ops"], report["funded_accounts"]) == ("function", 3000, 40)
        assert set(report["rejected"]) == {"INSUFFICIENT_FUNDS"}
        assert 10 < report["failed"] < 200
    function = gateway.ledger.functions["load_fee_transfer"]
    assert (function.version, function.crc) == (4, crc32c(load_function.BINARY))
    assert function.calls == 2 * (3000 + report["warm_up_ops"])
    calls = [kept for kept in gateway.ledger.kept.values() if kept.function]
    assert {len(kept.params) for kept in calls} == {5}
    assert {len(kept.entries) // 16 for kept in calls} == {0, 3}
    assert sum(gateway.ledger.balances.values()) == 0


def test_load_replaces_another_function_of_its_name(gateway: FakeGateway, quick_disk: None) -> None:
    gateway.ledger.register("load_fee_transfer", b"of another release", False, 1)
    options = "--kind function --ops 10 --batch 10 --accounts 4 --json"
    done = at(gateway, "load", *options.split())
    assert done.exit_code == 0, done.stderr
    function = gateway.ledger.functions["load_fee_transfer"]
    assert (function.version, function.crc) == (2, crc32c(load_function.BINARY))


def test_two_loads_may_begin_at_the_same_time() -> None:
    class Late:
        """A client whose list is older than the other one's registration."""

        def list_functions(self) -> list[object]:
            return []

        def register_function(self, name: str, binary: bytes) -> None:
            from tallybus.errors import AlreadyExists

            raise AlreadyExists("there", name=name, tx_id=1)

    load_function.register(Late())  # type: ignore[arg-type]
