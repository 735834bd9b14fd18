"""What becomes of exit codes when nobody reads what a command prints."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus import Client
from tests.support.fake_gateway import REJECTED, FakeGateway

HEADER = b"\0asm\1\0\0\0"
CLOSED, FULL, READ = "closed", "full", "read"


@pytest.fixture(scope="module")
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running, Client(running.endpoint) as client:
        client.gateway_info()
        yield running


PROGRAM = """
import io, json, os, sys
from tallybus.cli import main

answers, out, err = os.dup(1), sys.argv[1], sys.argv[2]
told = []
for line in sys.argv[3:]:
    for number, what in ((1, out), (2, err)):
        if what == "full":
            target = os.open("/dev/full", os.O_WRONLY)
        elif what == "closed":
            reads, target = os.pipe()
            os.close(reads)
        else:
            target = os.memfd_create("read")
        os.dup2(target, number)
        os.close(target)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    try:
        main(line.split())
    except SystemExit as ended:
        code = ended.code
    sys.stdout.flush()
    sys.stderr.flush()
    text = ""
    if err == "read":
        os.lseek(2, 0, os.SEEK_SET)
        text = os.read(2, 10_000).decode()
    told.append((code, text))
os.write(answers, json.dumps(told).encode())
os._exit(0)
"""


def run(
    endpoint: str, *lines: str, out: str = CLOSED, err: str = READ, cwd: Path | None = None
) -> list[tuple[int, str]]:
    """Exit codes and standard error of commands, one after the other."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, out, err, *lines],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        cwd=cwd,
        env=os.environ | {"TALLYBUS_ENDPOINT": endpoint, "PYTHONPATH": os.getcwd()},
    )
    return [(code, text) for code, text in json.loads(done.stdout)]


def test_what_was_applied_ends_with_0_and_what_was_rejected_with_1(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    rows, module = tmp_path / "rows.csv", tmp_path / "module.wasm"
    rows.write_text("kind,account,amount,user_ref\ndeposit,3,5,9001\n")
    module.write_bytes(HEADER)
    applied = (
        "deposit 3 70",
        "withdraw 3 5 --json",
        f"function register fee {module}",
        "call fee 3 5",
        "function unregister fee",
        f"import {rows}",
    )
    for line, (code, told) in zip(applied, run(gateway.endpoint, *applied), strict=True):
        assert (code, "rror" in told) == (0, False), (line, told)
    assert gateway.ledger.balances[3] == 75
    rejected = f"transfer 3 4 {REJECTED}", f"deposit 3 {REJECTED} --json"
    for code, told in run(gateway.endpoint, *rejected):
        assert (code, "INVALID_OPERATION" in told) == (1, True)


def test_errors_that_nobody_reads_have_the_same_codes(gateway: FakeGateway) -> None:
    # `tallybus … 2>&1 | true`
    reads, writes = os.pipe()
    os.close(reads)
    lines = ((f"deposit 3 {REJECTED} --json", 1), ("deposit 3 5", 0), ("tx 999999", 5))
    for line, expected in lines:
        done = subprocess.run(
            [sys.executable, "-m", "tallybus", *line.split()],
            check=False,
            stdout=writes,
            stderr=writes,
            timeout=60,
            env=os.environ | {"TALLYBUS_ENDPOINT": gateway.endpoint},
        )
        assert done.returncode == expected
    os.close(writes)


def test_reads_end_quietly_like_other_tools(gateway: FakeGateway) -> None:
    lines = "balance 1", "index --json", "config show", "--help", "balance --help", "--version"
    assert run(gateway.endpoint, *lines) == [(141, "")] * len(lines)


@pytest.mark.parametrize("out", [CLOSED, FULL])
def test_a_key_that_nobody_took_is_not_made(out: str, tmp_path: Path) -> None:
    line = "keys create alice --role read --folder keys --out -"
    ((code, told),) = run("", line, out=out, cwd=tmp_path)
    assert (code, "nothing was made" in told) == (5, True)
    assert list((tmp_path / "keys" / "clients").glob("alice*")) == []
