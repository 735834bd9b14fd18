"""`function register`, `unregister` and `list`: what they send, print and exit with."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tallybus.cli import main
from tallybus.cli.measure import function as load_function
from tests.support.fake_gateway import FakeGateway, always
from tests.support.folders import PROJECT
from tests.unit.tallybus.cli.commands import BINARY, CRC, at


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
