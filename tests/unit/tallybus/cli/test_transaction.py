"""`tx`: how a transaction is shown."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.cli.commands import CRC, at


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
