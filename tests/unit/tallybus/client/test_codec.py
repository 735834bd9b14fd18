"""The client's codec: round trips, the documented bytes, and no reply that does more than fail."""

import re
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
    TransactionNotFound,
    WaitLevel,
    deposits,
)
from tallybus.client import codec
from tallybus.client.clock import AcceptClock, ReadClock
from tallybus.client.codec import (
    AskGateway,
    ErrorCode,
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
    read_answer,
    read_header,
    read_pong,
    reply_id,
)
from tallybus.client.registration import ListFunctions, RegisterFunction, UnregisterFunction
from tallybus.client.submit import SubmitBatch, SubmitOne
from tallybus.client.transaction import ReadTransaction
from tallybus.common.record import ENTRY_DTYPE, FAILURE_DTYPE, RECORD_DTYPE, STATUS_DTYPE
from tallybus.operations import Transfer, encode_operation
from tallybus.pipeline import GatewayInfo
from tests.support.folders import DOCS

PROTOCOL = DOCS / "protocol.md"
U64 = st.integers(0, 2**64 - 1)
IDS = st.integers(1, 2**63)
LEVELS = st.sampled_from(WaitLevel)


def reply(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"v": 1, "id": 1, **fields}))


def answer(request: Request[Any], *frames: bytes, again: bool = False) -> Any:
    """What the client makes of a reply."""
    header = read_header(frames)
    assert reply_id(header) == 1
    return read_answer(request, header, frames[1:], again)


def failures(*rows: tuple[int, int, int, int]) -> bytes:
    """Rows of offset, status, original status, duplicate_of."""
    table = np.zeros(len(rows), FAILURE_DTYPE)
    for target, row in zip(table, rows, strict=True):
        for name, value in zip(
            ("offset", "status", "original_status", "duplicate_of"), row, strict=True
        ):
            target[name] = value
    return table.tobytes()


def batch_of(count: int, level: WaitLevel = WaitLevel.COMMITTED, refs: Any = None) -> SubmitBatch:
    return SubmitBatch(deposits(np.arange(count), 5, refs).tobytes(), count, level)


def submitted(first: int, count: int, table: bytes = b"", level: int = 2) -> list[bytes]:
    header = reply(first=first, count=count, level=level, failures=len(table) // 16)
    return [header, table]


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


GOOD_SUBMIT = {"first": 5, "count": 2, "level": 2, "failures": 0}
GOOD_PONG = {"unknown": [], "incarnation": 1, "protocol": 1, "max_batch": 1, "max_accounts": 1}
GOOD_INFO = {
    "name": "fee",
    "version": 1,
    "crc32c": 5,
    "registered": 1,
    "calls": 2,
    "failures": {5: 1},
    "fuel": 20,
    "fuel_limit": 100,
    "mean_ns": 80.5,
}
GOOD_TRANSACTION = {
    "tx_id": 7,
    "timestamp": 9,
    "term": 1,
    "found": True,
    "snapshot": 8,
    "duplicate_of": 0,
    "function": {"name": "fee", "version": 1},
    "params": [1, -2],
    "name": None,
}
CALL_RECORD = struct.pack("<BBHIQQQQ", 4, 0, 2, 5, 0, 0, 0, 2)
CALL_ENTRIES = struct.pack("<QqQq", 1, -5, 2, 5)


def transaction(
    record: bytes = CALL_RECORD, entries: bytes = CALL_ENTRIES, **fields: Any
) -> list[bytes]:
    return [reply(**GOOD_TRANSACTION | fields), record, entries]


MALFORMED: list[tuple[Request[Any], list[bytes]]] = [
    *[
        (batch_of(2), [reply(**GOOD_SUBMIT | change), b""])
        for change in (
            {"v": 2},
            {"v": True},
            {"v": None},
            {"first": 0},
            {"first": -1},
            {"first": 2**64 - 1},
            {"first": 5.0},
            {"first": True},
            {"count": 3},
            {"level": 1},
            {"level": 4},
            {"level": None},
            {"failures": 1},
            {"failures": 3},
            {"error": None},
            {"error": "overloaded"},
            {"error": "overloaded", "message": 5},
            {"error": "overloaded", "message": "", "details": []},
            {"error": "no_such_error", "message": "?"},
            {"error": ["lost"], "message": ""},
        )
    ],
    (batch_of(2), [reply(**GOOD_SUBMIT)]),
    (batch_of(2), [reply(**GOOD_SUBMIT), b"", b""]),
    (batch_of(2), [reply(**GOOD_SUBMIT), bytes(16)]),
    *[
        (batch_of(2), submitted(5, 2, failures(*rows)))
        for rows in (
            [(2, 1, 0, 0)],
            [(0, 0, 0, 0)],
            [(1, 1, 0, 0), (0, 1, 0, 0)],
            [(1, 1, 0, 0), (1, 1, 0, 0)],
            [(0, 1, 0, 4)],
            [(0, 1, 3, 0)],
            [(0, 7, 0, 0)],
            [(0, 7, 0, 5)],
            [(1, 7, 0, 6)],
            [(0, 7, 7, 1)],
        )
    ],
    *[
        (SubmitOne(bytes(40), WaitLevel.COMPUTED), submitted(5, 1, failures(row)))
        for row in (
            (1, 1, 0, 0),
            (0, 0, 0, 0),
            (0, 1, 0, 4),
            (0, 1, 3, 0),
            (0, 7, 0, 0),
            (0, 7, 0, 5),
            (0, 7, 7, 1),
        )
    ],
    (ReadBalance(1), [reply(count=1, snapshot=1), bytes(7)]),
    (ReadBalance(1), [reply(count=2, snapshot=1), bytes(16)]),
    (ReadBalance(1, min_tx_id=2), [reply(count=1, snapshot=1), bytes(8)]),
    (ReadBalance(1), [reply(count=1), bytes(8)]),
    (ReadStatus(1), [reply(count=1), bytes([6, *[0] * 15])]),
    (ReadStatus(1), [reply(count=0), b""]),
    (ReadStatuses(np.ones(1, np.uint64)), [reply(count=1), bytes([255, *[0] * 15])]),
    (ReadIndex(), [reply(sequenced=1, computed=1, committed=1, snapshot=1)]),
    (ReadIndex(), [reply(sequenced=1, computed=1, committed=1, snapshot=1, term=1), b""]),
    (WaitFor(1, WaitLevel.COMMITTED), [reply(level=1)]),
    (AskGateway(), [reply(**GOOD_PONG | {"unknown": [4]})]),
    (AskGateway(), [reply(**GOOD_PONG | {"unknown": None})]),
    (AskGateway(), [reply(**GOOD_PONG | {"unknown": [-1]})]),
    (AskGateway(), [reply(**GOOD_PONG | {"max_batch": "1"})]),
    (RegisterFunction("fee", b"x", False, 9), submitted(5, 2)),
    (RegisterFunction("fee", b"x", False, 9), submitted(5, 1, level=1)),
    (RegisterFunction("fee", b"x", False, 9), submitted(5, 1, failures((0, 7, 0, 5)))),
    (UnregisterFunction("fee", 9), [reply(**GOOD_SUBMIT | {"count": 1})]),
    *[
        (ListFunctions(), [reply(functions=functions)])
        for functions in (
            None,
            {},
            [5],
            *(
                [GOOD_INFO | change]
                for change in (
                    {"name": 5},
                    {"version": -1},
                    {"crc32c": 2**32},
                    {"calls": None},
                    {"failures": None},
                    {"failures": {0: 1}},
                    {"failures": {256: 1}},
                    {"failures": {"5": 1}},
                    {"failures": {5: "1"}},
                    {"fuel": 1.5},
                    {"mean_ns": "1"},
                    {"mean_ns": True},
                )
            ),
        )
    ],
    (ListFunctions(), [reply(functions=[]), b""]),
    *[
        (ReadTransaction(7), frames)
        for frames in (
            transaction()[:2],
            [*transaction(), b""],
            transaction(tx_id=8),
            transaction(found=1),
            transaction(found=None),
            transaction(snapshot=None),
            transaction(timestamp=-1),
            transaction(term=None),
            transaction(duplicate_of=None),
            transaction(function=5),
            transaction(function={"name": "fee"}),
            transaction(function={"name": 5, "version": 1}),
            transaction(params=None),
            transaction(params=[2**63]),
            transaction(params=[True]),
            transaction(params=[0] * 9),
            transaction(record=CALL_RECORD[:-1]),
            transaction(record=b""),
            transaction(entries=CALL_ENTRIES[:16]),
            transaction(entries=CALL_ENTRIES[:-1]),
            transaction(record=bytes([5]) + CALL_RECORD[1:], entries=b"", name=5),
        )
    ],
    (ReadTransaction(7, min_tx_id=9), transaction()),
]


@pytest.mark.parametrize(("request_", "frames"), MALFORMED)
def test_malformed_replies_are_protocol_errors(request_: Request[Any], frames: list[bytes]) -> None:
    for again in (False, True):
        with pytest.raises(ProtocolError):
            answer(request_, *frames, again=again)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\xc1"],
        [msgpack.packb([1])],
        [msgpack.packb({"v": 1})],
        [msgpack.packb({"v": 1, "id": -1})],
        [msgpack.packb({"v": 1, "id": None})],
        [msgpack.packb({"v": 1, "id": True})],
        [msgpack.packb({1: 1})],
        [msgpack.packb({"v": 1, "id": 1}) + b"\0"],
        [b"\x81\xa1\xff\x01"],
        [b"\x91" * 5000],
        [b"\xdf\xff\xff\xff\xff"],
        [bytes(codec.MAX_HEADER_BYTES + 1)],
    ],
)
def test_messages_without_a_readable_id_are_protocol_errors(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        reply_id(read_header(frames))


REQUESTS: list[Request[Any]] = [
    batch_of(3, refs=[1, 2, 3]),
    SubmitOne(bytes(40), WaitLevel.NONE),
    ReadBalance(1, 2),
    ReadBalances(np.arange(3, dtype=np.uint64)),
    ReadStatus(1),
    ReadStatuses(np.arange(3, dtype=np.uint64)),
    ReadIndex(),
    WaitFor(1, WaitLevel.COMPUTED),
    AskGateway(),
    RegisterFunction("fee", b"x", False, 9),
    UnregisterFunction("fee", 9),
    ListFunctions(),
    ReadTransaction(7),
    ReadClock(),
    AcceptClock(),
]
FIELD_NAMES = [
    *("v", "id", "first", "count", "level", "failures", "snapshot", "unknown", "error", "message"),
    *("details", "sequenced", "computed", "committed", "term", "incarnation", "protocol"),
    *("max_batch", "max_accounts", "functions", "tx_id", "timestamp", "found", "function"),
    *("duplicate_of", "params", "name", "failures", "time", "wall", "held"),
]
ATOMS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.integers(0, 3), st.floats()),
    *(st.text(max_size=5), st.binary(max_size=5), st.sampled_from([str(c) for c in ErrorCode])),
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
HEADERS = st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES).map(
    lambda fields: bytes(msgpack.packb({"v": 1, "id": 1, **fields}))
)
GOOD_REPLIES = [
    submitted(5, 3, failures((0, 7, 0, 1), (2, 1, 0, 0))),
    submitted(5, 1),
    [reply(count=1, snapshot=2), bytes(8)],
    [reply(count=3, snapshot=2), bytes(24)],
    [reply(count=1), bytes(16)],
    [reply(count=3), bytes(48)],
    [reply(sequenced=1, computed=1, committed=1, snapshot=1, term=1)],
    [reply(level=3)],
    [reply(**GOOD_PONG)],
    submitted(5, 1),
    submitted(5, 1, failures((0, 7, 0, 1))),
    [reply(functions=[GOOD_INFO, GOOD_INFO | {"mean_ns": None}])],
    transaction(),
    [reply(time=5, wall=9, held=True)],
    [reply(time=9, wall=9, held=False)],
]


def swallow(request: Request[Any], frames: list[bytes]) -> None:
    """Decodes as a client does; fails on any error but ProtocolError and what requests document."""
    for again in (False, True):
        try:
            header = read_header(frames)
            if reply_id(header) is None:
                codec.read_error(header)
            else:
                read_answer(request, header, frames[1:], again)
        except (ProtocolError, AlreadyExists, NotRegistered, InvalidFunction, TransactionNotFound):
            continue


@given(
    st.sampled_from(REQUESTS),
    st.one_of(HEADERS, st.binary(max_size=64)),
    st.lists(st.binary(max_size=48), max_size=2),
)
def test_random_replies_raise_nothing_but_protocol_errors(
    request_: Request[Any], header: bytes, payload: list[bytes]
) -> None:
    swallow(request_, [header, *payload])


@given(st.sampled_from(range(len(REQUESTS))), st.data())
def test_mutated_replies_raise_nothing_but_protocol_errors(which: int, data: st.DataObject) -> None:
    frames = list(GOOD_REPLIES[which])
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.integers(0, len(frames) - 1))
        frame = bytearray(frames[target])
        at = data.draw(st.integers(0, len(frame)))
        match data.draw(st.sampled_from(["set", "cut", "insert", "drop"])):
            case "set" if at < len(frame):
                frame[at] = data.draw(st.integers(0, 255))
            case "cut":
                del frame[at:]
            case "insert":
                frame[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            case "drop" if len(frames) > 1:
                del frames[target]
                continue
        frames[target] = bytes(frame)
    swallow(REQUESTS[which], frames)


def test_unmutated_replies_are_good() -> None:
    for request, frames in zip(REQUESTS, GOOD_REPLIES, strict=True):
        answer(request, *frames)


def example(title: str) -> list[bytes]:
    """The frames of an example in the protocol's description: one fenced block of hex per title."""
    text = PROTOCOL.read_text()
    match = re.search(rf"{re.escape(title)}\n\n```text\n(.*?)```", text, re.DOTALL)
    assert match, title
    frames: list[bytes] = []
    for line in match[1].splitlines():
        if line.startswith("frame"):
            frames.append(b"")
        else:
            frames[-1] += bytes.fromhex(line.split("|")[0])
    return frames


def test_the_documented_request_is_what_the_client_sends() -> None:
    record, names, params = encode_operation(Transfer(source=1, target=2, amount=300, user_ref=42))
    request = SubmitOne(record, WaitLevel.COMMITTED, names, params)
    assert encode(request, 7, 30_000, again=False) == example("**The request, byte by byte:**")


def test_the_documented_replies_mean_what_is_said() -> None:
    record, _, _ = encode_operation(Transfer(source=1, target=2, amount=300, user_ref=42))
    request = SubmitOne(record, WaitLevel.COMMITTED)
    for title, expected in (
        ("**Its reply, when it succeeds:**", Result(1001, Status.NONE, WaitLevel.COMMITTED)),
        (
            "**Its reply, when the reference was used before:**",
            Result(1001, Status.DUPLICATE, WaitLevel.COMMITTED, 1001, Status.OK),
        ),
    ):
        frames = example(title)
        header = read_header(frames)
        assert reply_id(header) == 7
        assert read_answer(request, header, frames[1:], again=False) == expected


def test_the_documented_offsets_are_those_of_the_layouts() -> None:
    text = PROTOCOL.read_text()
    for name, dtype in (
        ("Operation record", RECORD_DTYPE),
        ("Failure", FAILURE_DTYPE),
        ("Entry", ENTRY_DTYPE),
        ("Transaction status", STATUS_DTYPE),
    ):
        section = text.split(f"### {name},", 1)[1].split("\n###", 1)[0].split("\n## ", 1)[0]
        assert section.startswith(f" {dtype.itemsize} bytes"), name
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
        assert dtype.fields is not None
        layout = [(str(dtype.fields[field][1]), field) for field in dtype.names or ()]
        assert rows == layout, name
