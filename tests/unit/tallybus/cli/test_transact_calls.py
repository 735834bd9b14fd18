"""`call`: what it sends, prints and exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.cli.commands import at


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
