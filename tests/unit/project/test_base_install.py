"""A client without the extra `server`: all it does works, and the rest says what it needs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tallybus import Client
from tallybus.common.checksum import crc32c, plain_crc32c
from tallybus.extras import SERVER
from tests.support.fake_gateway import FakeGateway
from tests.support.folders import PROJECT

HEADER = b"\0asm\1\0\0\0"
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SERVER!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="module")
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running, Client(running.endpoint) as client:
        client.gateway_info()
        yield running


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT + program, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=PROJECT,
    )


def test_every_public_name_and_every_method_of_the_clients_works(gateway: FakeGateway) -> None:
    program = """
import asyncio
import tallybus
from tallybus import *

for name in tallybus.__all__:
    getattr(tallybus, name)

binary = bytes.fromhex(sys.argv[2])
with Client(sys.argv[1]) as ledger:
    assert ledger.submit(Deposit(1, 70)) > 0
    assert ledger.submit_and_wait(Transfer(1, 2, 30)).ok
    assert ledger.submit_batch(deposits([1, 2], 5)).ok_count == 2
    assert ledger.begin_batch(withdrawals([1], 5)).result(timeout=10).ok_count == 1
    assert ledger.get_balance(2).balance == 35
    assert len(ledger.get_balances([1, 2])) == 2
    assert ledger.get_status(1).status.ok
    assert len(ledger.get_statuses([1, 2])) == 2
    assert ledger.get_transaction(1).amount == 70
    assert ledger.register_function("fee", binary, override=True).crc32c
    assert ledger.submit_and_wait(Function("fee", (7, 5))).ok
    assert ledger.submit_batch(function_calls("fee", [[7, 5]])).ok_count == 1
    assert [each.name for each in ledger.list_functions()] == ["fee"]
    assert ledger.unregister_function("fee").crc32c == 0
    assert ledger.wait_for(1) >= WaitLevel.COMMITTED
    ledger.pipeline_index(), ledger.gateway_info()

async def main():
    async with AsyncClient(sys.argv[1]) as ledger:
        assert (await ledger.submit_and_wait(Deposit(1, 70))).ok
asyncio.run(main())

try:
    Ledger.open("nothing")
except MissingExtra as error:
    assert "tallybus[server]" in str(error) and len(error.missing) == 5, error
    assert isinstance(error, TallybusError)
else:
    raise AssertionError
print("done", [name for name in sys.modules if name.partition(".")[0] in ("numba", "wasmtime")])
"""
    done = run(program, gateway.endpoint, HEADER.hex())
    assert (done.stdout, done.stderr) == ("done []\n", "")


def test_every_command_of_a_client_works(gateway: FakeGateway, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("kind,account,amount,user_ref\ndeposit,1,5,9001\n")
    module = tmp_path / "module.wasm"
    module.write_bytes(HEADER)
    text = tmp_path / "module.wat"
    text.write_text("(module)")
    commands = [
        (0, "deposit 1 500"),
        (0, "withdraw 1 5"),
        (0, "transfer 1 2 5"),
        (0, f"function register fee {module}"),
        (0, "call fee 7 5"),
        (0, "function list"),
        (0, "function unregister fee"),
        (0, "balance 1"),
        (0, "index"),
        (0, "status 1"),
        (0, "tx 1"),
        (0, f"import {rows}"),
        (0, "load --ops 20 --batch 2 --accounts 3 --kind deposit"),
        (0, "latency --samples 3"),
        (0, f"keys create alice --role read --folder {tmp_path / 'keys'} --out {tmp_path / 'a'}"),
        (0, f"keys list --folder {tmp_path / 'keys'}"),
        (0, f"keys revoke alice --folder {tmp_path / 'keys'}"),
        (0, "config show"),
        (0, "--version"),
        (0, "--help"),
        (69, f"up --data {tmp_path / 'data'}"),
        (69, "serve wal"),
        (69, f"function test {module}"),
        (69, f"function register fee {text}"),
        (69, "load --spawn --ops 10"),
        (69, "latency --spawn --samples 1"),
    ]
    program = """
import os
from tallybus.cli import main
from tallybus.cli.measure import disk_speed, latency
os.environ["TALLYBUS_ENDPOINT"] = sys.argv[1]
disk_speed.SEQUENTIAL_SECONDS = disk_speed.SYNC_SECONDS = 0.01
disk_speed.SYNCS = latency.WARM_UP_SAMPLES = 3
latency.DISK_BYTES = 4096
for line in sys.argv[2:]:
    try:
        main(line.split())
    except SystemExit as ended:
        print(f"\\n== {ended.code} {line}", flush=True)
"""
    done = run(program, gateway.endpoint, *(line for _, line in commands))
    ended = [line[3:] for line in done.stdout.splitlines() if line.startswith("== ")]
    assert ended == [f"{code} {line}" for code, line in commands], done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("pip install 'tallybus[server]'") == 6


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 16_383, 16_384, 16_385, 100_003])
def test_the_checksum_without_its_package_is_the_same(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert plain_crc32c(data) == crc32c(data)
    assert plain_crc32c(data, 77) == crc32c(data, 77)
