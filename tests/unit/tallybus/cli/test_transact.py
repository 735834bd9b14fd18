"""`deposit`, `withdraw` and `transfer`: what they send, print and exit with."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from tallybus.cli import connect, main
from tallybus.common.errors import ServiceError
from tallybus.common.record import Level
from tallybus.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidRequest,
    LostTransaction,
    MissingExtra,
    NotRegistered,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    TallybusError,
    Timeout,
    Unavailable,
)
from tests.unit.tallybus.cli.fake_ledger import FakeLedger


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> FakeLedger:
    fake = FakeLedger(max_accounts=1_000)
    monkeypatch.setattr(connect, "open_client", fake.open)
    return fake


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env=env)


def test_a_deposit_a_withdrawal_and_a_transfer_move_money(ledger: FakeLedger) -> None:
    for arguments in (("deposit", 1, 100), ("withdraw", 1, 30), ("transfer", 1, 2, 50)):
        done = run(*arguments)
        assert (done.exit_code, done.stderr) == (0, "")
    assert (ledger.balances[1], ledger.balances[2], ledger.balances[0]) == (20, 50, -70)
    assert done.stdout == "transaction 3: committed\n"
    assert ledger.levels == [Level.COMMITTED] * 3


@pytest.mark.parametrize("level", Level)
def test_waits_for_the_level_asked_for(ledger: FakeLedger, level: Level) -> None:
    done = run("deposit", 1, 5, "--wait", level.name.lower(), "--json")
    assert done.exit_code == 0
    assert ledger.levels == [level]
    status = None if level is Level.NONE else "NONE"
    assert json.loads(done.stdout) == {
        "tx_id": 1,
        "ok": None if status is None else True,
        "status": status,
        "reason": None,
        "level": level.name,
        "duplicate_of": None,
        "original_status": None,
    }


def test_without_waiting_no_outcome_is_told(ledger: FakeLedger) -> None:
    done = run("withdraw", 1, 5, "--wait", "none")
    assert done.exit_code == 0
    assert done.stdout == "transaction 1: sequenced; its outcome was not waited for\n"


def test_a_rejected_transaction_prints_its_status_and_exits_1(ledger: FakeLedger) -> None:
    done = run("withdraw", 7, 5)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == (
        "Error: transaction 1 rejected: INSUFFICIENT_FUNDS: "
        "the account holds less than the amount\n"
    )
    done = run("transfer", 7, 1_000, 5, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["status"] == "ACCOUNT_LIMIT_EXCEEDED"
    assert "ACCOUNT_LIMIT_EXCEEDED" in done.stderr


def test_a_duplicate_names_the_first_transaction(ledger: FakeLedger) -> None:
    assert run("deposit", 1, 5, "--user-ref", 9).exit_code == 0
    done = run("deposit", 1, 5, "--user-ref", 9, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {
        "tx_id": 1,
        "ok": False,
        "status": "DUPLICATE",
        "reason": None,
        "level": "COMMITTED",
        "duplicate_of": 1,
        "original_status": "NONE",
    }
    assert "that one ended with OK" in done.stderr
    assert "DUPLICATE of transaction 1" in done.stderr
    assert ledger.balances[1] == 5


def test_endpoint_comes_from_the_option_the_environment_or_the_default(ledger: FakeLedger) -> None:
    run("deposit", 1, 1)
    run("deposit", 1, 1, env={"TALLYBUS_ENDPOINT": "tcp://127.0.0.1:7"})
    run(
        *("deposit", 1, 1, "--endpoint", "tcp://127.0.0.1:8", "--timeout", 2.5),
        env={"TALLYBUS_ENDPOINT": "tcp://127.0.0.1:7"},
    )
    assert ledger.opened == [
        ("tcp://127.0.0.1:5550", 10.0),
        ("tcp://127.0.0.1:7", 10.0),
        ("tcp://127.0.0.1:8", 2.5),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("deposit", 1),
        ("deposit", 1, 0),
        ("deposit", 1, 2**63),
        ("deposit", 1, "-5"),
        ("deposit", 1, "1_000"),
        ("deposit", 1, "1.5"),
        ("deposit", 1, " 5"),
        ("deposit", 1, "٣"),
        ("deposit", 1, "9" * 5_000),
        ("deposit", 2**64, 5),
        ("deposit", "x", 5),
        ("deposit", 1, 5, "--user-ref", 2**64),
        ("deposit", 1, 5, "--wait", "soon"),
        ("deposit", 1, 5, "--timeout", "0"),
        ("transfer", 1, 5),
        ("nonsense",),
    ],
)
def test_wrong_use_exits_2_and_sends_nothing(
    ledger: FakeLedger, arguments: tuple[object, ...]
) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Error: " in done.stderr
    assert len(done.stderr) < 500
    assert ledger.opened == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("no such thing"), 2),
        (Timeout("too late", request="submit", level=Level.COMMITTED, seconds=1), 3),
        (Overloaded("full", request="submit", attempts=3), 3),
        (Unavailable("down", request="submit", attempts=3), 3),
        (OutcomeUnknown("cut off", count=1, retry_safe=False), 4),
        (LostTransaction("gone", request="submit", tx_id=3), 5),
        (ProtocolError("what is this\nsecond line"), 5),
        (OSError(28, "No space left on device"), 5),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_is_one_line_and_has_its_exit_code(
    ledger: FakeLedger, error: BaseException, code: int
) -> None:
    ledger.failures[0] = error
    done = run("deposit", 1, 5)
    assert done.exit_code == code
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_an_unknown_outcome_says_when_a_retry_is_safe(ledger: FakeLedger) -> None:
    ledger.failures[0] = OutcomeUnknown("cut off", count=1, retry_safe=True)
    done = run("deposit", 1, 5, "--user-ref", 3)
    assert "is not applied twice" in done.stderr


def test_a_defect_keeps_its_traceback(ledger: FakeLedger) -> None:
    ledger.failures[0] = ZeroDivisionError("a defect")
    assert isinstance(run("deposit", 1, 5).exception, ZeroDivisionError)


def test_every_error_of_the_package_is_told_in_one_line() -> None:
    from tallybus.cli.errors import as_click_exception

    for kind in TallybusError.__subclasses__():
        error = kind.__new__(kind)
        Exception.__init__(error, "text")
        if isinstance(error, OutcomeUnknown):
            error.retry_safe = False
        told = as_click_exception(error)
        assert told is not None, kind
        codes: tuple[int, ...] = (2, 3, 4, 5)
        if isinstance(error, (AlreadyExists, NotRegistered)):
            codes = (1,)
        elif isinstance(error, AccessDenied):
            codes = (6,)
        elif isinstance(error, MissingExtra):
            codes = (69,)
        elif isinstance(error, ServiceError):
            codes = (kind.exit_code,)  # type: ignore[attr-defined]
        assert told.exit_code in codes
