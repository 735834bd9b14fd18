"""Results say what is known, by name, and nothing where nothing is known."""

import json
from pathlib import Path

import numpy as np
import pytest

from tallybus import (
    BatchResult,
    Client,
    Deposit,
    FunctionStatus,
    InvalidRequest,
    Ledger,
    LockHeld,
    Reason,
    Result,
    SettingsError,
    Stage,
    Status,
    TallybusError,
    WaitLevel,
    load_settings,
    user_ref_of,
)
from tallybus.client.codec import ReadStatus, ReadStatuses
from tallybus.client.submit import SubmitBatch, SubmitOne
from tallybus.common.record import FAILURE_DTYPE, STATUS_DTYPE, json_name, status_of
from tests.support.fake_gateway import FakeGateway


def failures(*rows: dict[str, int]) -> bytes:
    table = np.zeros(len(rows), FAILURE_DTYPE)
    for place, row in enumerate(rows):
        for name, value in row.items():
            table[place][name] = value
    return table.tobytes()


def header(count: int, level: WaitLevel, failed: int) -> dict[str, int]:
    return {"first": 9, "count": count, "level": int(level), "failures": failed}


def one(level: WaitLevel, **row: int) -> Result:
    request = SubmitOne(bytes(40), level)
    table = failures(row) if row else b""
    result = request.decode(header(1, level, 1 if row else 0), [table])
    assert isinstance(result, Result)
    return result


def test_a_status_prints_its_name_and_is_its_number() -> None:
    assert str(Status.OK) == f"{Status.OK}" == "OK"
    assert (Status.OK is Status.NONE, Status["NONE"], Status(0), Status.OK == 0) == (
        True,
        Status.OK,
        Status.OK,
        True,
    )
    assert f"{Status.DUPLICATE:>12}|{Status.DUPLICATE:d}" == "   DUPLICATE|7"
    assert json.dumps({"status": Status.DUPLICATE}) == '{"status": 7}'
    assert (Status.OK.ok, Status.DUPLICATE.ok, json_name(Status.OK)) == (True, False, "NONE")
    assert [str(each) for each in (WaitLevel.COMMITTED, Stage.ERROR, Reason.TRAP)] == [
        *("COMMITTED", "ERROR", "TRAP"),
    ]
    assert repr(WaitLevel.COMMITTED) == "<WaitLevel.COMMITTED: 2>"


def test_a_functions_own_status_prints_sensibly() -> None:
    own = status_of(200)
    assert (str(own), f"{own}", own.name, own == 200, own.ok) == (
        *("FUNCTION_200", "FUNCTION_200", "FUNCTION_200"),
        True,
        False,
    )
    assert type(own) is FunctionStatus


def test_nothing_is_told_of_how_a_transaction_ended_that_is_only_sequenced() -> None:
    result = one(WaitLevel.NONE)
    assert (result.status, result.ok, result.tx_id) == (None, False, 9)
    assert one(WaitLevel.COMPUTED).status is Status.OK
    batch = SubmitBatch(bytes(80), 2, WaitLevel.NONE)
    outcome = batch.decode(header(2, WaitLevel.NONE, 0), [b""])
    assert isinstance(outcome, BatchResult)
    assert [each.status for each in outcome] == [None, None]
    assert outcome[1].status is None


def test_a_duplicate_tells_how_the_first_one_ended() -> None:
    result = one(WaitLevel.COMMITTED, status=7, original_status=1, duplicate_of=4)
    assert (result.status, result.original_status) == (Status.DUPLICATE, Status.INSUFFICIENT_FUNDS)
    result = one(WaitLevel.COMMITTED, status=7, original_status=200, duplicate_of=4)
    assert result.original_status == 200
    assert one(WaitLevel.COMMITTED, status=1).original_status is None


def test_reasons_are_told_and_old_statuses_of_functions_are_theirs() -> None:
    for code, reason in ((10, Reason.WORK), (11, Reason.STOPPED), (5, Reason.TRAP)):
        result = one(WaitLevel.COMMITTED, status=code, reason=reason)
        assert (result.status, result.reason) == (Status(code), reason)
        flagged = one(WaitLevel.COMMITTED, status=code, reason=int(reason) | 0xE0)
        assert flagged.reason is reason
    for code in (10, 11, 12, 127):
        result = one(WaitLevel.COMMITTED, status=code)
        assert (result.status, type(result.status)) == (code, FunctionStatus)
    assert one(WaitLevel.COMMITTED, status=10, reason=31).reason == 31


def test_arrays_have_the_same() -> None:
    rows = failures(
        {"offset": 0, "status": 7, "original_status": 1, "duplicate_of": 4},
        {"offset": 2, "status": 10, "reason": 4},
        {"offset": 3, "status": 10},
    )
    batch = SubmitBatch(bytes(160), 4, WaitLevel.COMMITTED)
    outcome = batch.decode(header(4, WaitLevel.COMMITTED, 3), [rows])
    assert isinstance(outcome, BatchResult)
    assert list(outcome) == [outcome[i] for i in range(4)]
    assert [(each.status, each.original_status, each.reason) for each in outcome] == [
        (Status.DUPLICATE, Status.INSUFFICIENT_FUNDS, Reason.NONE),
        (Status.OK, None, Reason.NONE),
        (Status.NOT_RUN, None, Reason.WORK),
        (10, None, Reason.NONE),
    ]
    assert outcome.original_statuses.tolist() == [1, 0, 0, 0]
    assert outcome.reasons.tolist() == [0, 0, 4, 0]


def test_the_status_of_an_id_that_does_not_exist_is_nothing() -> None:
    rows = np.zeros(4, STATUS_DTYPE)
    rows["stage"] = [Stage.UNKNOWN, Stage.PENDING, Stage.COMMITTED, Stage.ERROR]
    rows["status"][3], rows["reason"][3] = 11, 6 | 0x20
    expected = [(None, 0), (None, 0), (Status.OK, 0), (Status.SUSPENDED, Reason.STOPPED)]
    many = ReadStatuses(np.arange(1, 5, dtype=np.uint64))
    found = many.decode({"count": 4}, [rows.tobytes()])
    assert [(each.status, each.reason) for each in found] == expected
    for row, (status, reason) in zip(rows, expected, strict=True):
        single = ReadStatus(1).decode({"count": 1}, [row.tobytes()])
        assert (single.status, single.reason) == (status, reason)


def test_a_reference_of_a_text_is_always_the_same_number() -> None:
    assert user_ref_of("order 4711") == user_ref_of(b"order 4711") == 0x326B6F65E1B3A7B8
    assert user_ref_of("é") == user_ref_of("é".encode())
    assert user_ref_of("a") != user_ref_of("b")
    for wrong in ("", b"", 5, None):
        with pytest.raises(InvalidRequest):
            user_ref_of(wrong)  # type: ignore[arg-type]


def test_what_cannot_be_meant_is_not_sent() -> None:
    with FakeGateway() as gateway, Client(gateway.endpoint) as client:
        client.gateway_info()
        for amount in (0, -1, 2**63):
            with pytest.raises(InvalidRequest):
                client.submit(Deposit(1, amount))
        assert gateway.seen == []


def test_what_keeps_a_ledger_from_opening_is_public(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as wrong:
        Ledger.open(tmp_path / "data", settings={"ledger.max_acounts": 5})
    assert isinstance(wrong.value, TallybusError)
    with Ledger.open(tmp_path / "data", settings={"ledger.max_accounts": 1000}) as ledger:
        assert ledger.gateway_info().max_accounts == 1000
        with pytest.raises(LockHeld) as held:
            Ledger.open(tmp_path / "data", settings=load_settings(environ={}))
        assert isinstance(held.value, TallybusError)
        assert ledger.get_status(77).status is None
