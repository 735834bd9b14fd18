"""The client's codec: requests as documented, and what replies mean."""

import struct
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus import (
    AlreadyExists,
    InvalidFunction,
    NotRegistered,
    ProtocolError,
    Result,
    Stage,
    Status,
    WaitLevel,
)
from tallybus.client.codec import (
    AskGateway,
    ErrorReply,
    ReadBalance,
    ReadBalances,
    ReadIndex,
    ReadStatus,
    ReadStatuses,
    Request,
    WaitFor,
    encode,
    encode_ping,
    read_pong,
    reply_id,
)
from tallybus.client.registration import ListFunctions, RegisterFunction, UnregisterFunction
from tallybus.client.submit import SubmitBatch, SubmitOne
from tallybus.client.transaction import ReadTransaction
from tallybus.common.protocol import ErrorCode
from tallybus.common.record import STATUS_DTYPE
from tallybus.operations import Transfer, encode_operation
from tallybus.pipeline import GatewayInfo
from tests.unit.tallybus.client.replies import answer, batch_of, failures, reply, submitted

U64 = st.integers(0, 2**64 - 1)


IDS = st.integers(1, 2**63)


LEVELS = st.sampled_from(WaitLevel)


@given(U64, st.integers(1, 2**40), LEVELS, st.lists(st.binary(max_size=9), max_size=3))
def test_a_submit_is_encoded_as_documented(
    request_id: int, timeout_ms: int, level: WaitLevel, names: list[bytes]
) -> None:
    texts = [name.hex() for name in names]
    request = SubmitBatch(bytes(80), 2, level, texts, bytes(64) if texts else b"")
    frames = encode(request, request_id, timeout_ms, again=False)
    fields: dict[str, Any] = {"v": 1, "op": "submit", "id": request_id, "timeout_ms": timeout_ms}
    fields |= {"wait": int(level), "count": 2} | ({"names": texts} if texts else {})
    assert msgpack.unpackb(frames[0]) == fields
    assert frames[1:] == [bytes(80), *([bytes(64)] if texts else [])]


def test_a_submit_that_is_sent_again_asks_for_the_outcome() -> None:
    request = SubmitOne(bytes(40), WaitLevel.NONE)
    assert msgpack.unpackb(encode(request, 1, 1, again=True)[0])["wait"] == WaitLevel.COMPUTED
    request = SubmitOne(bytes(40), WaitLevel.SNAPSHOT)
    assert msgpack.unpackb(encode(request, 1, 1, again=True)[0])["wait"] == WaitLevel.SNAPSHOT


def test_reads_are_encoded_as_documented() -> None:
    accounts = np.array([1, 2**64 - 1], np.uint64)
    cases: list[tuple[Request[Any], dict[str, Any], list[bytes]]] = [
        (ReadBalance(7), {"op": "balances"}, [struct.pack("<Q", 7)]),
        (
            ReadBalances(accounts, 9),
            {"op": "balances", "min_tx_id": 9},
            [struct.pack("<2Q", 1, 2**64 - 1)],
        ),
        (ReadStatus(7, 8), {"op": "status", "min_tx_id": 8}, [struct.pack("<Q", 7)]),
        (ReadStatuses(accounts), {"op": "status"}, [struct.pack("<2Q", 1, 2**64 - 1)]),
        (ReadIndex(), {"op": "index"}, []),
        (WaitFor(5, WaitLevel.SNAPSHOT), {"op": "wait", "tx_id": 5, "wait": 3}, []),
        (AskGateway(), {"op": "ping", "pending": []}, []),
        (ListFunctions(), {"op": "functions"}, []),
        (ReadTransaction(5), {"op": "transaction", "tx_id": 5}, []),
        (ReadTransaction(5, 6), {"op": "transaction", "tx_id": 5, "min_tx_id": 6}, []),
        (
            RegisterFunction("fee", b"binary", True, 99),
            {"op": "register", "name": "fee", "override": True, "user_ref": 99, "wait": 2},
            [b"binary"],
        ),
        (
            UnregisterFunction("fee", 99),
            {"op": "unregister", "name": "fee", "user_ref": 99, "wait": 2},
            [],
        ),
    ]
    for request, fields, payload in cases:
        frames = encode(request, 4, 1000, again=False)
        assert msgpack.unpackb(frames[0]) == {"v": 1, "id": 4, "timeout_ms": 1000, **fields}
        assert frames[1:] == payload
    assert msgpack.unpackb(encode_ping(9, [3, 4])[0]) == {
        "v": 1,
        "op": "ping",
        "id": 9,
        "pending": [3, 4],
    }


PONG: dict[str, Any] = {
    "v": 1,
    "id": 9,
    "unknown": [],
    "incarnation": 2,
    "protocol": 1,
    "max_batch": 5,
    "max_accounts": 6,
}


ADDED: dict[str, Any] = {
    "revision": 1,
    "max_reads": 7,
    "max_request_wait_ms": 8,
    "role": "read",
    "limits": {"rate": 9, "later": 10},
}


def test_a_pong_tells_about_the_gateway() -> None:
    info, unknown = read_pong(PONG | ADDED | {"unknown": [3], "later": "ignored"}, [])
    assert unknown == [3]
    assert info == GatewayInfo(2, 1, 5, 6, 1, 7, 8, "read", {"rate": 9, "later": 10})
    assert hash(info)


def test_a_pong_of_an_earlier_gateway_lacks_what_was_added() -> None:
    info, _ = read_pong(PONG, [])
    assert (info.revision, info.max_reads, info.role, info.limits) == (0, 0, "", {})


@pytest.mark.parametrize(
    "field",
    [
        *({name: None} for name in ADDED),
        {"revision": True},
        {"revision": "1"},
        {"max_reads": -1},
        {"max_request_wait_ms": 1.0},
        {"role": 3},
        {"limits": [1]},
        {"limits": {"rate": -1}},
        {"limits": {"rate": True}},
        {"limits": {5: 1}},
    ],
)
def test_a_pong_with_a_field_of_another_type_is_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        read_pong(PONG | ADDED | field, [])


@given(IDS, st.integers(1, 40), st.data())
def test_sparse_failures_become_arrays(first: int, count: int, data: st.DataObject) -> None:
    expected = [(0, 0)] * count
    rows = []
    for offset in sorted(data.draw(st.sets(st.integers(0, count - 1)))):
        status = data.draw(st.integers(1, 255))
        link = data.draw(st.integers(1, first + offset - 1)) if first + offset > 1 else 0
        if status == 7 and not link:
            status = 1
        link = link if status == 7 else 0
        rows.append((offset, status, data.draw(st.integers(0, 6)) if link else 0, link))
        expected[offset] = (status, link)
    result = answer(batch_of(count), *submitted(first, count, failures(*rows)))
    assert result.first_tx_id == first
    assert (
        list(zip(result.statuses.tolist(), result.duplicate_of.tolist(), strict=True)) == expected
    )
    assert result.tx_ids.tolist() == [link or first + i for i, (_, link) in enumerate(expected)]
    assert result.failed_count == len(rows)


def test_a_duplicate_has_the_id_of_the_first() -> None:
    one = SubmitOne(bytes(40), WaitLevel.COMPUTED)
    table = failures((0, 7, 1, 4))
    assert answer(one, *submitted(9, 1, table)) == Result(
        4, Status.DUPLICATE, WaitLevel.COMMITTED, 4, Status.INSUFFICIENT_FUNDS
    )


def test_a_duplicate_of_our_own_lost_sending_is_that_sendings_outcome() -> None:
    one = SubmitOne(bytes(40), WaitLevel.COMPUTED)
    table = failures((0, 7, 1, 4))
    assert answer(one, *submitted(9, 1, table), again=True) == Result(
        4, Status.INSUFFICIENT_FUNDS, WaitLevel.COMMITTED, 4, Status.INSUFFICIENT_FUNDS
    )


def test_only_first_uses_of_a_reference_are_translated() -> None:
    # The lost sending had executed the first two operations as 4 and 5, the third was a duplicate
    # then.
    request = batch_of(4, refs=[50, 51, 50, 53])
    table = failures((0, 7, 0, 4), (1, 7, 1, 5), (2, 7, 0, 4))
    result = answer(request, *submitted(9, 4, table), again=True)
    assert result.statuses.tolist() == [0, 1, 7, 0]
    assert result.tx_ids.tolist() == [4, 5, 4, 12]
    assert result.duplicate_of.tolist() == [4, 5, 4, 0]


def test_only_batches_with_all_references_may_be_sent_again() -> None:
    assert batch_of(3, refs=[1, 2, 3]).resendable()
    assert not batch_of(3, refs=[1, 0, 3]).resendable()
    with_ref, _, _ = encode_operation(Transfer(1, 2, 3, 256))
    without, _, _ = encode_operation(Transfer(1, 2, 3))
    assert SubmitOne(with_ref, WaitLevel.NONE).resendable()
    assert not SubmitOne(without, WaitLevel.NONE).resendable()
    assert ReadIndex().resendable()


def test_reads_are_decoded() -> None:
    balance = answer(ReadBalance(7, 3), reply(count=1, snapshot=3), struct.pack("<q", -5))
    assert (balance.account, balance.balance, balance.last_snapshot_tx_id) == (7, -5, 3)
    accounts = np.array([1, 2], np.uint64)
    balances = answer(ReadBalances(accounts), reply(count=2, snapshot=3), struct.pack("<2q", 8, 9))
    assert [(b.account, b.balance) for b in balances] == [(1, 8), (2, 9)]
    assert balances[:1] == [balances[0]]
    rows = np.zeros(2, STATUS_DTYPE)
    rows["stage"], rows["status"], rows["duplicate_of"] = [4, 5], [0, 7], [0, 1]
    statuses = answer(ReadStatuses(accounts), reply(count=2), rows.tobytes())
    assert [(s.tx_id, s.stage, s.status, s.duplicate_of) for s in statuses] == [
        (1, Stage.ON_SNAPSHOT, Status.NONE, None),
        (2, Stage.ERROR, Status.DUPLICATE, 1),
    ]
    assert statuses[1:] == [statuses[1]]
    assert answer(ReadStatus(2), reply(count=1), rows[1:].tobytes()) == statuses[1]
    fields = {"sequenced": 5, "computed": 4, "committed": 3, "snapshot": 2, "term": 1}
    index = answer(ReadIndex(), reply(**fields))
    assert {name: getattr(index, name) for name in fields} == fields
    assert answer(WaitFor(5, WaitLevel.COMPUTED), reply(level=2)) is WaitLevel.COMMITTED
    fields = {"incarnation": 2**63, "protocol": 1, "max_batch": 5, "max_accounts": 6}
    info = answer(AskGateway(), reply(unknown=[], **fields))
    assert {name: getattr(info, name) for name in fields} == fields


def test_a_registration_is_completed_by_the_transaction_that_it_became() -> None:
    for request in (RegisterFunction("fee", b"x", False, 9), UnregisterFunction("fee", 9)):
        for frames, tx_id in (
            (submitted(9, 1), 9),
            # Whether it was sent again or not: nobody else has its reference.
            (submitted(9, 1, failures((0, 7, 0, 4))), 4),
        ):
            for again in (False, True):
                following = answer(request, *frames, again=again)
                fields = msgpack.unpackb(encode(following, 3, 1000, again=False)[0])
                assert (fields["op"], fields["tx_id"], fields["min_tx_id"]) == (
                    *("transaction", tx_id),
                    tx_id,
                )
                assert following.resendable()


@pytest.mark.parametrize(
    ("request_", "status", "kind"),
    [
        (RegisterFunction("fee", b"x", False, 9), Status.INVALID_OPERATION, AlreadyExists),
        (RegisterFunction("fee", b"x", True, 9), Status.INVALID_OPERATION, InvalidFunction),
        (RegisterFunction("fee", b"x", False, 9), Status.QUOTA_EXCEEDED, InvalidFunction),
        (UnregisterFunction("fee", 9), Status.INVALID_OPERATION, NotRegistered),
    ],
)
def test_a_rejected_registration_is_a_typed_error(
    request_: Request[Any], status: Status, kind: type[Exception]
) -> None:
    for table in (failures((0, status, 0, 0)), failures((0, 7, status, 4))):
        with pytest.raises(kind) as caught:
            answer(request_, *submitted(9, 1, table))
        assert type(caught.value) is kind


def test_errors_are_decoded() -> None:
    expected = ErrorReply(ErrorCode.LOST, "gone", {"first": 5})
    frame = reply(error="lost", message="gone", details={"first": 5})
    assert answer(ReadIndex(), frame) == expected
    assert reply_id({"id": None, "error": "invalid_request"}) is None
