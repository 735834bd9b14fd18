"""Messages on the bus: what is encoded comes back, and nothing malformed gets through."""

from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.buffers import Buffer, as_buffer, size
from tallybus.common.bus.frames import unpack_header
from tallybus.common.bus.messages import (
    MESSAGE_TYPES,
    Answer,
    Assigned,
    Executed,
    FrameError,
    Message,
    Prepare,
    Query,
    Request,
    Results,
    Sequenced,
    StageStatus,
    decode,
    encode,
)
from tallybus.common.protocol import MAX_HEADER_BYTES, PROTOCOL_VERSION
from tallybus.common.record import ENTRY_SIZE, FAILURE_DTYPE, FAILURE_SIZE, PARAMS_SIZE, RECORD_SIZE

TYPES: tuple[type[Any], ...] = tuple(MESSAGE_TYPES.values())

u64 = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
small = st.integers(1, 20)
short_text = st.text(max_size=20)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": u64,
    "str": short_text,
    "bool": st.booleans(),
    "list[str]": st.lists(short_text, max_size=4),
    "list[int]": st.lists(u64, max_size=4),
    "list[list[int]]": st.lists(st.lists(u64, min_size=4, max_size=4), max_size=4),
    "dict[int, int]": st.dictionaries(u64, u64, max_size=4),
    "dict[str, int | str]": st.dictionaries(short_text, st.one_of(u64, short_text), max_size=4),
    "list[dict[str, Any]]": st.lists(st.dictionaries(short_text, u64, max_size=3), max_size=3),
}


def some_bytes(length: int) -> bytes:
    return bytes(i % 251 for i in range(length))


@st.composite
def messages(draw: st.DrawFn, types: tuple[type[Any], ...] = TYPES) -> Message:
    """Any well-formed message."""
    cls = draw(st.sampled_from(types))
    values = {
        f.name: draw(VALUES[str(f.type)])
        for f in fields(cls)
        if f.name not in cls.payloads
        and ((f.default is MISSING and f.default_factory is MISSING) or draw(st.booleans()))
    }
    if cls in (Request, Sequenced, Executed):
        values["count"] = draw(small)
        if values.get("counts"):
            # Of the submits that were joined in it.
            first = draw(st.integers(1, values["count"]))
            values["counts"] = [first, *([values["count"] - first] * (first < values["count"]))]
        values["records"] = some_bytes(values["count"] * RECORD_SIZE)
    if cls in (Request, Sequenced):
        values["params"] = some_bytes(draw(st.integers(0, 3)) * PARAMS_SIZE)
        if values.get("registers"):
            values |= {"count": 1, "records": some_bytes(RECORD_SIZE), "names": [draw(short_text)]}
            values.pop("counts", None)
    if cls in (Request, Sequenced, Executed, Prepare):
        values["binary"] = draw(st.binary(max_size=20))
    if cls is Executed:
        for name in ("links", "params", "entries"):
            values[name] = draw(st.integers(0, 5))
        words = values["links"] + values["params"]
        values["extras"] = some_bytes(words * 8 + values["entries"] * ENTRY_SIZE)
    if cls is Results:
        parts = draw(st.lists(st.tuples(u64, u64, small, st.integers(0, 3)), max_size=4))
        following = values["first"] = draw(st.integers(0, 2**60))
        values["batches"] = []
        for gateway, request, count, failed in parts:
            values["batches"].append([gateway, request, following, count, min(failed, count)])
            following += count
        values["count"] = following - values["first"]
        values["failures"] = some_bytes(sum(row[4] for row in values["batches"]) * FAILURE_SIZE)
    if cls is Query:
        values["keys"] = some_bytes(draw(st.integers(0, 5)) * 8)
    if cls is Answer:
        values["values"] = draw(st.binary(max_size=40))
    message: Message = cls(**values)
    return message


def request(**changes: Any) -> Request:
    plain = Request(gateway=7, request=3, count=2, records=some_bytes(2 * RECORD_SIZE))
    return replace(plain, **changes)


def executed(**changes: Any) -> Executed:
    plain = Executed(
        term=1,
        incarnation=2,
        first=3,
        count=1,
        timestamp=4,
        gateway=5,
        request=6,
        records=some_bytes(RECORD_SIZE),
        extras=some_bytes(8 + 16 + 48),
        links=1,
        params=2,
        entries=3,
    )
    return replace(plain, **changes)


def results(**changes: Any) -> Results:
    plain = Results(
        term=1,
        incarnation=2,
        first=10,
        count=5,
        batches=[[1, 1, 10, 2, 0], [2, 9, 12, 3, 1]],
        failures=some_bytes(FAILURE_SIZE),
    )
    return replace(plain, **changes)


def header_of(message: Message) -> dict[str, Any]:
    return unpack_header(encode(message)[0])


def with_header(message: Message, change: Callable[[dict[str, Any]], Any]) -> list[Buffer]:
    """The message's frames with a changed header."""
    encoded = encode(message)
    header = unpack_header(encoded[0])
    change(header)
    return [msgpack.packb(header), *encoded[1:]]


@given(messages())
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    encoded = encode(message)
    left_out = isinstance(message, Request | Sequenced | Executed) and not message.binary
    assert len(encoded) == 1 + len(message.payloads) - left_out
    assert decode(encoded) == message
    views: list[Buffer] = [memoryview(frame) for frame in encoded]
    again = decode(views)
    assert again == message
    for name in message.payloads:
        assert bytes(getattr(again, name)) == bytes(getattr(message, name))


@given(messages())
def test_payload_frames_are_passed_on_without_a_copy(message: Message) -> None:
    encoded = encode(message)
    decoded = decode(encoded)
    for name, frame in zip(message.payloads, encoded[1:], strict=False):
        assert getattr(message, name) is frame
        assert getattr(decoded, name) is frame


@pytest.mark.parametrize("cls", TYPES)
def test_every_type_has_its_own_name_on_the_wire(cls: type[Any]) -> None:
    assert [other.kind for other in TYPES].count(cls.kind) == 1
    assert set(cls.payloads) <= {f.name for f in fields(cls)}


def test_defaults_are_left_out_of_the_header() -> None:
    assert header_of(request()) == {"v": 1, "t": "request", "gateway": 7, "request": 3, "count": 2}
    status = StageStatus("wal", 1, 2, 3, 4, 5)
    assert "gap" not in header_of(status)
    assert header_of(replace(status, gap=True))["gap"] is True


# -- malformed messages ----------------------------------------------------------------------------


def refused(encoded: list[Buffer]) -> FrameError:
    with pytest.raises(FrameError) as caught:
        decode(encoded)
    assert caught.value.reason in str(caught.value)
    assert len(str(caught.value)) < 10_000, "a log line, not a dump"
    return caught.value


def test_no_frames_are_no_message() -> None:
    refused([])


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\xc0",
        b"\x93",
        b"\x80\x80",
        b"\x81\xa1v",
        msgpack.packb([1, 2]),
        msgpack.packb("text"),
        msgpack.packb(7),
        b"\x81\x91\x01\x01",  # a list as key
        b"\x81\x80\x01",  # a map as key
        b"\x81\xa1\xff\x01",  # not UTF-8
        b"\xdf\xff\xff\xff\xff",  # a map of 2^32 - 1
        b"\x81\xa1v\xdd\xff\xff\xff\xff",
        b"\x81\xa1v\xc6\xff\xff\xff\xff",
        b"\x81\xa1v\xc7\x03\xff\x00\x00\x00",  # a timestamp of a wrong length
        b"\x91" * 5000,
        b"\x81\xa1v" + b"\x91" * 5000,
    ],
)
def test_a_header_that_is_no_map_of_text_is_refused(frame: bytes) -> None:
    refused([frame])
    with pytest.raises(FrameError):
        unpack_header(frame)


@pytest.mark.parametrize("depth", [10, 100, 900, 980, 1000, 1015, 1020, 1023, 1024])
@pytest.mark.parametrize("field", ["v", "t", "gateway", "unheard"])
def test_deeply_nested_values_are_refused(depth: int, field: str) -> None:
    header = header_of(request())
    header.pop(field, None)
    nested = b"\x91" * depth + b"\x00"
    packed = msgpack.packb(header)
    assert 0x80 <= packed[0] < 0x8F
    frame = bytes([packed[0] + 1]) + packed[1:] + msgpack.packb(field) + nested
    refused([frame, *encode(request())[1:]])


def test_a_header_of_more_than_the_limit_is_refused() -> None:
    names = ["n" * 1000] * (MAX_HEADER_BYTES // 1000 + 1)
    assert "header of" in refused(encode(request(names=names))).reason


def test_an_offending_value_is_not_repeated_at_length() -> None:
    refused(with_header(request(), lambda header: header.update(names=["n" * 500_000, 1])))
    refused(with_header(request(), lambda header: header.update(t="n" * 500_000)))
    refused(with_header(request(), lambda header: header.update(v=["n"] * 100_000)))


@pytest.mark.parametrize("version", [0, 2, None, "1", 1.5, -1, [1], True, 1.0])
def test_another_version_is_refused(version: object) -> None:
    assert type(version) is not int or version != PROTOCOL_VERSION
    refused(with_header(request(), lambda header: header.update(v=version)))
    refused(with_header(request(), lambda header: header.pop("v")))


@pytest.mark.parametrize("kind", ["", "requests", None, 1, b"request", [], {}])
def test_an_unknown_type_is_refused(kind: object) -> None:
    refused(with_header(request(), lambda header: header.update(t=kind)))
    refused(with_header(request(), lambda header: header.pop("t")))


@given(messages(), st.data())
def test_every_required_field_is_required(message: Message, data: st.DataObject) -> None:
    names = [
        f.name
        for f in fields(message)
        if f.name not in message.payloads and f.default is MISSING and f.default_factory is MISSING
    ]
    name = data.draw(st.sampled_from(names))
    assert name in refused(with_header(message, lambda header: header.pop(name))).reason


def with_a_number_as_name(header: dict[Any, Any]) -> None:
    header[1] = 1


@given(messages(), st.text(max_size=12).filter(lambda name: name not in ("v", "t")))
def test_unknown_fields_are_refused(message: Message, name: str) -> None:
    known = {f.name for f in fields(message)} - set(message.payloads)
    if name not in known:
        refused(with_header(message, lambda header: header.update({name: 1})))
    for payload in message.payloads:
        refused(with_header(message, lambda header, p=payload: header.update({p: b""})))  # type: ignore[misc]
    refused(with_header(message, with_a_number_as_name))


WRONG: dict[str, list[Any]] = {
    "int": [-1, 2**64 - 0.5, True, False, None, "1", b"1", 1.0, [1], {}],
    "str": [1, None, b"x", ["x"], "x" * 5000],
    "bool": [0, 1, None, "true"],
    "list[str]": ["x", [1], [b"x"], None, {}, {"x": 1}],
    "list[int]": [[-1], ["x"], [True], [[1]], None, {}, "x"],
    "list[list[int]]": [[1], [[-1]], [["x"]], [[True]], None, {}, [[[1]]]],
    "dict[int, int]": [[], [[1, 2]], {"1": 2}, {1: -1}, {-1: 1}, {1: True}, {True: 1}, None],
    "dict[str, int | str]": [[], {1: 1}, {"a": []}, {"a": None}, {"a": 1.5}, {"a": {}}],
    "list[dict[str, Any]]": [{}, [1], [{1: 1}], [[]], None, "x", {"a": 1}],
}


@given(messages(), st.data())
def test_a_field_of_a_wrong_type_or_range_is_refused(message: Message, data: st.DataObject) -> None:
    field = data.draw(
        st.sampled_from([f for f in fields(message) if f.name not in message.payloads])
    )
    value = data.draw(st.sampled_from(WRONG[str(field.type)]))
    error = refused(with_header(message, lambda header: header.update({field.name: value})))
    assert field.name in error.reason
    assert error.message_type == message.kind


@given(messages(), st.integers(-1, 2).filter(bool))
def test_a_frame_too_many_or_too_few_is_refused(message: Message, difference: int) -> None:
    encoded = encode(message)
    most = 1 + len(message.payloads)
    least = most - getattr(message, "optional", 0)
    if difference > 0:
        encoded += [b""] * (most - len(encoded) + difference)
    elif least == 1:
        return
    else:
        del encoded[least - 1 :]
    refused(encoded)


@pytest.mark.parametrize(
    "message",
    [
        request(count=0, records=b""),
        request(count=1),
        request(count=3),
        request(records=b""),
        request(records=some_bytes(2 * RECORD_SIZE - 1)),
        request(count=2**64 - 1),
        request(params=b"x"),
        request(params=some_bytes(PARAMS_SIZE + 8)),
        request(registers=True, names=["f"]),
        request(registers=True, count=1, records=some_bytes(RECORD_SIZE)),
        request(registers=True, count=1, records=some_bytes(RECORD_SIZE), names=["f", "g"]),
        executed(count=0, records=b""),
        executed(records=some_bytes(2 * RECORD_SIZE)),
        executed(links=2),
        executed(params=1),
        executed(entries=2**64 - 1),
        executed(entries=0),
        executed(extras=b""),
        results(first=9),
        results(count=4),
        results(count=6),
        results(batches=[]),
        results(batches=[[1, 1, 10, 5]]),
        results(batches=[[1, 1, 10, 5, 1, 1]]),
        results(batches=[[1, 1, 10, 2, 0], [2, 9, 13, 2, 1]]),
        results(batches=[[2, 9, 12, 3, 1], [1, 1, 10, 2, 0]]),
        results(batches=[[1, 1, 10, 5, 1], [2, 9, 15, 0, 0]]),
        results(failures=b""),
        results(failures=some_bytes(FAILURE_SIZE * 2)),
        results(failures=some_bytes(FAILURE_SIZE - 1)),
        Assigned(1, [[1, 2, 3]]),
        Assigned(1, [[1, 2, 3, 4, 5]]),
        Assigned(1, [[]]),
        Query(1, "balances", 0, b"1234567"),
    ],
)
def test_lengths_that_contradict_the_header_are_refused(message: Message) -> None:
    refused(encode(message))


def test_an_empty_results_message_is_well_formed() -> None:
    message = results(count=0, batches=[], failures=b"")
    assert decode(encode(message)) == message


def test_more_failures_than_transactions_are_refused() -> None:
    batches = [[1, 1, 10, 5, 6]]
    refused(encode(results(batches=batches, failures=some_bytes(FAILURE_SIZE * 6))))


@given(messages(), st.data())
def test_a_mutated_message_is_refused_or_whole(message: Message, data: st.DataObject) -> None:
    encoded = [bytearray(frame) for frame in encode(message)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from(encoded))
        place = data.draw(st.integers(0, len(frame)))
        cut = data.draw(st.integers(0, 3))
        frame[place : place + cut] = data.draw(st.binary(max_size=3))
    try:
        mutated = decode([bytes(frame) for frame in encoded])
    except FrameError:
        return
    assert decode(encode(mutated)) == mutated


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_random_frames_are_refused(random_frames: list[bytes]) -> None:
    try:
        message = decode(list(random_frames))
    except FrameError:
        return
    assert decode(encode(message)) == message


@given(
    st.dictionaries(
        st.one_of(st.sampled_from(["v", "t", "first", "count", "batches"]), st.text(max_size=5)),
        st.recursive(
            st.one_of(
                st.none(),
                st.booleans(),
                st.integers(-(2**63), 2**64 - 1),
                st.floats(),
                st.binary(),
                st.text(),
            ),
            lambda inner: st.one_of(
                st.lists(inner), st.dictionaries(st.one_of(st.text(), st.integers(0, 9)), inner)
            ),
            max_leaves=8,
        ),
    ),
    st.sampled_from([cls.kind for cls in TYPES]),
    st.lists(st.binary(max_size=80), max_size=3),
)
def test_random_headers_are_refused(header: dict[str, Any], kind: str, rest: list[bytes]) -> None:
    header |= {"v": 1, "t": kind}
    try:
        message = decode([msgpack.packb(header), *rest])
    except FrameError:
        return
    assert decode(encode(message)) == message


# -- buffers ---------------------------------------------------------------------------------------


def test_an_array_is_a_frame_without_a_copy() -> None:
    array = np.arange(6, dtype="<u8")
    buffer = as_buffer(array)
    array[1] = 99
    assert np.frombuffer(buffer, "<u8").tolist() == [0, 99, 2, 3, 4, 5]
    assert size(buffer) == 48
    assert bytes(as_buffer(np.zeros(2, FAILURE_DTYPE))) == bytes(32)
    assert size(as_buffer(np.zeros(0, FAILURE_DTYPE))) == 0


def test_the_size_of_a_buffer_is_in_bytes_whatever_its_items() -> None:
    assert size(b"abc") == 3
    assert size(np.zeros(3, "<u8").data) == 24
