"""A bank's transactions come out as the bank's own balances, also after the plug was pulled."""

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tallybus import Client, Ledger, WaitLevel
from tallybus.csv.importing import Tally, parse_csv
from tests.processes.pipeline import (
    PATIENCE_S,
    Command,
    children_of,
    eventually,
    is_alive,
    make_settings,
    quiet_endpoint,
    run_command,
    services_under,
    tidy,
)
from tests.support.bank_data import REAL_FILE, BankFile, bank_file, read_bank_file, write_bank_file

ALL_ACCOUNTS = 65_536
"""More than any account in the file: the rest must be zero."""


@pytest.fixture
def bank(tmp_path: Path) -> BankFile:
    """The real file, or one made to be like it where that is not there."""
    return bank_file(tmp_path)


@pytest.fixture
def generated(tmp_path: Path) -> BankFile:
    """A generated file, whether the real one is there or not."""
    path = tmp_path / "generated.csv"
    write_bank_file(path, seed=7)
    return read_bank_file(path)


def assert_bank_balances(client: Client, bank: BankFile, last_tx_id: int) -> None:
    read = client.get_balances(np.arange(ALL_ACCOUNTS), min_tx_id=last_tx_id)
    assert read.last_snapshot_tx_id >= last_tx_id
    expected = {0: bank.system_balance, **bank.balances}
    found = {int(a): int(read.balances[a]) for a in np.flatnonzero(read.balances)}
    assert found == {account: balance for account, balance in expected.items() if balance}
    assert sum(read.balances.tolist()) == 0


def import_file(endpoint: str, bank: BankFile, *options: str) -> dict[str, object]:
    done = run_command("import", bank.path, "--endpoint", endpoint, "--json", *options)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    assert report["rows"] == bank.rows
    return report


def kill_everything(up: Command) -> None:
    """SIGKILL to the supervisor and all five services."""
    services = services_under(up.pid)
    assert len(services) == 5, services
    for pid in (up.pid, *services.values()):
        os.kill(pid, signal.SIGKILL)
    up.wait()
    eventually(lambda: not any(map(is_alive, services.values())), "all processes are gone")
    assert not children_of(up.pid)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    data = tmp_path / "data"
    yield data
    tidy(make_settings(data))


def test_an_imported_bank_has_the_banks_balances_also_after_sigkill_of_every_process(
    bank: BankFile, folder: Path, start_command: Callable[..., Command]
) -> None:
    endpoint = quiet_endpoint()
    up = start_command("up", "--data", folder, "--endpoint", endpoint)
    assert up.wait_first_line() == endpoint
    report = import_file(endpoint, bank)
    assert report["applied"] == bank.rows
    assert report["rejected"] == {}
    assert report["duplicates"] == 0
    with Client(endpoint, timeout=PATIENCE_S) as client:
        assert_bank_balances(client, bank, bank.rows)

    kill_everything(up)

    up = start_command("up", "--data", folder, "--endpoint", endpoint)
    assert up.wait_first_line() == endpoint
    with Client(endpoint, timeout=PATIENCE_S) as client:
        assert client.pipeline_index().committed == bank.rows
        assert_bank_balances(client, bank, bank.rows)
        report = import_file(endpoint, bank, "--again")
        assert report["applied"] == 0
        assert report["rejected"] == {}
        assert report["duplicates"] == bank.rows
        assert_bank_balances(client, bank, 2 * bank.rows)
    total = run_command("balance", f"0-{ALL_ACCOUNTS}", "--sum", "--endpoint", endpoint)
    assert total.stdout.strip() == "0"


def import_embedded(ledger: Client, bank: BankFile) -> Tally:
    with bank.path.open("rb") as file:
        parsed = parse_csv(iter(lambda: file.read(1 << 20), b""))
    tally = Tally()
    for records in parsed.batches(5_000):
        result = ledger.submit_batch(records, WaitLevel.COMMITTED)
        tally.add(result.first_tx_id, result.statuses)
    return tally


@pytest.mark.parametrize("file", ["bank", "generated"])
def test_an_embedded_ledger_has_the_banks_balances_too(
    file: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bank: BankFile = request.getfixturevalue(file)
    # The second import passes the end of a segment, and still finds every row of the first.
    size = bank.rows + 777
    with Ledger.open(tmp_path / "data", transactions_per_segment=size) as ledger:
        tally = import_embedded(ledger, bank)
        assert (tally.applied, tally.duplicates, tally.rejected) == (bank.rows, 0, {})
        assert_bank_balances(ledger, bank, bank.rows)
    with Ledger.open(tmp_path / "data", transactions_per_segment=size) as ledger:
        assert_bank_balances(ledger, bank, bank.rows)
        tally = import_embedded(ledger, bank)
        assert (tally.applied, tally.duplicates, tally.rejected) == (0, bank.rows, {})
        assert_bank_balances(ledger, bank, 2 * bank.rows)


def test_generated_bank_data_are_like_the_banks(tmp_path: Path) -> None:
    path = tmp_path / "generated.csv"
    write_bank_file(path, accounts=20, rows=900, seed=3)
    balances: dict[int, int] = {}
    refs = set()
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            account, amount = int(row["account"]), int(row["amount"])
            signed = amount if row["kind"] == "deposit" else -amount
            balances[account] = balances.get(account, 0) + signed
            assert amount > 0
            assert balances[account] == int(row["balance_after"]) >= 0
            refs.add(int(row["user_ref"]))
    assert len(refs) == 900
    bank = read_bank_file(path)
    assert bank.rows == 900
    assert bank.balances == balances
    if REAL_FILE.exists():
        with REAL_FILE.open(encoding="utf-8") as real, path.open(encoding="utf-8") as made:
            assert made.readline() == real.readline()
