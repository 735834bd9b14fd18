"""No reply, whatever its bytes, does more than fail with a protocol error."""

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
    TransactionNotFound,
    WaitLevel,
)
from tallybus.client import codec
from tallybus.client.clock import AcceptClock, ReadClock
from tallybus.client.codec import (
    AskGateway,
    ErrorCode,
    ReadBalance,
    ReadBalances,
    ReadIndex,
    ReadStatus,
    ReadStatuses,
    Request,
    WaitFor,
    read_answer,
    read_header,
    reply_id,
)
from tallybus.client.registration import ListFunctions, RegisterFunction, UnregisterFunction
from tallybus.client.submit import SubmitOne
from tallybus.client.transaction import ReadTransaction
from tallybus.common.protocol import MAX_HEADER_BYTES
from tests.unit.tallybus.client.replies import answer, batch_of, failures, reply, submitted

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
        [bytes(MAX_HEADER_BYTES + 1)],
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
