"""`balance`, `index`, `status`: what they ask for and print."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from tallybus.cli import connect, main, read
from tallybus.errors import Timeout
from tallybus.operations import deposits, withdrawals
from tests.unit.tallybus.cli.fake_ledger import FakeLedger


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> FakeLedger:
    fake = FakeLedger()
    monkeypatch.setattr(connect, "open_client", fake.open)
    fake.submit_batch(deposits([1, 2, 3], [100, 200, 300], [11, 12, 13]))
    fake.submit_batch(withdrawals([1], [500]))
    fake.submit_batch(deposits([1], [100], [11]))
    return fake


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def test_one_balance_and_many(ledger: FakeLedger) -> None:
    assert run("balance", 2).stdout == "account\tbalance\n2\t200\n"
    assert run("balance", 3, 1, 9).stdout == ("account\tbalance\n3\t300\n1\t100\n9\t0\nsum\t400\n")


def test_balances_as_json(ledger: FakeLedger) -> None:
    done = run("balance", 2, "--json", "--min-tx-id", 4)
    assert json.loads(done.stdout) == {
        "balances": [{"account": 2, "balance": 200}],
        "accounts": 1,
        "sum": 200,
        "last_snapshot_tx_id": 5,
    }
    assert ledger.min_tx_ids == [4]


def test_ranges_and_their_sum(ledger: FakeLedger) -> None:
    assert run("balance", "0-3", "--sum").stdout == "0\n"
    assert run("balance", "1-2", 3, "--sum").stdout == "600\n"
    done = json.loads(run("balance", "1-2", "--sum", "--json").stdout)
    assert done == {"accounts": 2, "sum": 300, "last_snapshot_tx_id": 5}


def test_many_balances_take_several_reads(
    ledger: FakeLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "ACCOUNTS_PER_READ", 2)
    assert run("balance", "0-3", 18446744073709551615, "--sum").stdout == "0\n"
    assert len(ledger.min_tx_ids) == 3


@pytest.mark.parametrize(
    "account", ["", "x", "-1", "3-1", "1-", "1-2-3", str(2**64), "0-18446744073709551615", "٣"]
)
def test_wrong_accounts_are_refused(ledger: FakeLedger, account: str) -> None:
    done = run("balance", "--", account)
    assert done.exit_code == 2
    assert ledger.opened == []


def test_the_sum_of_many_balances_does_not_wrap(ledger: FakeLedger) -> None:
    ledger.balances[5] = ledger.balances[6] = ledger.balances[7] = 2**63 - 1
    assert run("balance", "5-7", "--sum").stdout == f"{3 * (2**63 - 1)}\n"


def test_the_index(ledger: FakeLedger) -> None:
    expected = {"sequenced": 5, "computed": 5, "committed": 5, "snapshot": 5, "term": 3}
    assert json.loads(run("index", "--json").stdout) == expected
    lines = dict(line.split() for line in run("index").stdout.splitlines())
    assert {name: int(value) for name, value in lines.items()} == expected


def test_statuses(ledger: FakeLedger) -> None:
    found = json.loads(run("status", 1, 4, 5, 99, "--json", "--min-tx-id", 5).stdout)
    assert [tuple(each.values()) for each in found["transactions"]] == [
        (1, "ON_SNAPSHOT", "NONE", None, None),
        (4, "ERROR", "INSUFFICIENT_FUNDS", None, None),
        (5, "ERROR", "DUPLICATE", None, 1),
        (99, "UNKNOWN", None, None, None),
    ]
    assert ledger.min_tx_ids == [5]
    assert run("status", 4, 5).stdout == (
        "transaction\tstage\tstatus\tduplicate of\n"
        "4\tERROR\tINSUFFICIENT_FUNDS\t\n"
        "5\tERROR\tDUPLICATE\t1\n"
    )
    text = run("status", 1, 99).stdout.splitlines()
    assert text[1:] == ["1\tON_SNAPSHOT\tOK\t", "99\tUNKNOWN\t\t"]


@pytest.mark.parametrize("command", [("balance", 1), ("index",), ("status", 1)])
def test_a_ledger_that_does_not_answer_exits_3(
    ledger: FakeLedger, command: tuple[object, ...]
) -> None:
    ledger.unreachable = Timeout("no answer", request="x", level=None, seconds=1)
    done = run(*command, "--json")
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == "Error: no answer\n"
