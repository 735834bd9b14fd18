"""Requests that are wrong, in every way: refused with their reason, and nothing raises."""

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.record import MAX_U64, Kind
from tests.unit.services.gateway.rig import MAX_BATCH, MAX_WAIT_MS, MS, Rig, deposits, keys

ONE = deposits(1).tobytes()


ASK = {"op": "submit", "count": 1, "wait": 1}


def spoilt(kind: int = Kind.DEPOSIT, count: int = 1, **fields: int) -> list[bytes]:
    """Records of this kind, the last of which has these fields; with the parameters of calls."""
    records = deposits(count)
    if kind == Kind.FUNCTION:
        records["account"] = records["amount"] = 0
    if kind == Kind.TRANSFER:
        records["counterparty"] = 2
    records["kind"] = kind
    for name, value in fields.items():
        records[name][-1] = value
    return [records.tobytes()] + [bytes(64 * count)] * (kind == Kind.FUNCTION)


CALL = spoilt(Kind.FUNCTION)[0]


BAD: list[tuple[str, dict[str, Any], list[bytes], str]] = [
    ("no operation", {}, [], "op"),
    ("unknown operation", {"op": "destroy"}, [], "op"),
    ("operation of another type", {"op": 5}, [], "op"),
    ("operation as bytes", {"op": b"ping"}, [], "op"),
    ("nested operation", {"op": [[["x"]]]}, [], "op"),
    ("time out below zero", {"op": "index", "timeout_ms": -1}, [], "timeout_ms"),
    ("time out as text", {"op": "index", "timeout_ms": "5"}, [], "timeout_ms"),
    ("time out as a fraction", {"op": "index", "timeout_ms": 1.5}, [], "timeout_ms"),
    ("time out as a whole float", {"op": "index", "timeout_ms": 5.0}, [], "timeout_ms"),
    ("time out as truth", {"op": "index", "timeout_ms": True}, [], "timeout_ms"),
    ("time out as nil", {"op": "index", "timeout_ms": None}, [], "timeout_ms"),
    ("index with a payload", {"op": "index"}, [b""], "payload"),
    ("submit without payload", ASK, [], "payload"),
    ("submit with too many payloads", ASK, [ONE, b"", b""], "payload"),
    ("submit without count", {"op": "submit", "wait": 1}, [ONE], "count"),
    ("submit of nothing", ASK | {"count": 0}, [b""], "count"),
    ("submit of too much", ASK | {"count": MAX_BATCH + 1}, [ONE * (MAX_BATCH + 1)], "count"),
    ("submit of less than it says", ASK | {"count": 2}, [ONE], "records"),
    ("submit of half a record", ASK, [ONE[:-1]], "records"),
    ("count as truth", ASK | {"count": True}, [ONE], "count"),
    ("count as a float", ASK | {"count": 1.0}, [ONE], "count"),
    ("submit without a level", {"op": "submit", "count": 1}, [ONE], "wait"),
    ("submit with a misspelt level", {"op": "submit", "count": 1, "wiat": 2}, [ONE], "wiat"),
    ("submit with a misspelt level beside it", ASK | {"Wait": 2}, [ONE], "Wait"),
    ("level below zero", ASK | {"wait": -1}, [ONE], "wait"),
    ("level that is none", ASK | {"wait": 4}, [ONE], "wait"),
    ("level as text", ASK | {"wait": "committed"}, [ONE], "wait"),
    ("level as truth", ASK | {"wait": True}, [ONE], "wait"),
    ("level as a float", ASK | {"wait": 2.0}, [ONE], "wait"),
    ("level as nil", ASK | {"wait": None}, [ONE], "wait"),
    ("a field of another request", ASK | {"min_tx_id": 1}, [ONE], "min_tx_id"),
    ("a key that is no text", ASK | {5: 1}, [ONE], "5"),
    ("a key that is nil", ASK | {None: 1}, [ONE], "None"),
    ("a key as bytes", ASK | {b"names": []}, [ONE], "b'names'"),
    ("parameters without calls", ASK, [ONE, bytes(64)], "params"),
    ("an empty frame of parameters", ASK, [ONE, b""], "params"),
    ("a call without parameters", ASK | {"names": ["fee"]}, [CALL], "params"),
    ("a call with half of them", ASK | {"names": ["fee"]}, [CALL, bytes(32)], "params"),
    ("a call with those of two", ASK | {"names": ["fee"]}, [CALL, bytes(128)], "params"),
    ("names as text", ASK | {"names": "fee"}, [ONE], "names"),
    ("names as nil", ASK | {"names": None}, [ONE], "names"),
    ("names of other types", ASK | {"names": [1]}, [ONE], "names"),
    ("a name that no function has", ASK | {"names": ["fee", "a b"]}, [ONE], "names"),
    ("an empty name", ASK | {"names": [""]}, [ONE], "names"),
    ("a long name", ASK | {"names": ["n" * 33]}, [ONE], "names"),
    ("long names", ASK | {"names": ["n" * 32] * 3000}, [ONE], "names"),
    ("many names", ASK | {"names": ["n"] * 5000}, [ONE], "names"),
    ("kind 0", ASK, spoilt(kind=0), "kind"),
    ("a registration among operations", ASK, spoilt(kind=5), "kind"),
    ("an unknown kind", ASK, spoilt(kind=99), "kind"),
    ("a deposit from somewhere", ASK, spoilt(counterparty=77), "counterparty"),
    ("a deposit that calls", ASK | {"names": ["fee", "tax"]}, spoilt(function=1), "function"),
    ("a status", ASK, spoilt(status=1), "status"),
    ("a count of entries", ASK, spoilt(entry_count=1), "entry_count"),
    ("a reason", ASK, spoilt(reason=1), "reason"),
    ("a withdrawal to somewhere", ASK, spoilt(2, counterparty=1), "counterparty"),
    ("a transfer that calls", ASK, spoilt(3, function=1), "function"),
    ("a transfer with a status", ASK | {"count": 3}, spoilt(3, 3, status=7), "status"),
    ("a call without names", ASK, spoilt(4), "function"),
    ("a call beyond the names", ASK | {"names": ["fee"]}, spoilt(4, function=1), "function"),
    ("a call of an account", ASK | {"names": ["fee"]}, spoilt(4, account=1), "account"),
    ("a call of two", ASK | {"names": ["fee"]}, spoilt(4, counterparty=1), "counterparty"),
    ("a call of an amount", ASK | {"names": ["fee"]}, spoilt(4, amount=1), "amount"),
    ("the last of many", ASK | {"count": 50}, spoilt(1, 50, counterparty=1), "counterparty"),
    ("balances of nothing", {"op": "balances"}, [b""], "keys"),
    ("balances without payload", {"op": "balances"}, [], "payload"),
    ("balances of half a number", {"op": "balances"}, [b"1234"], "keys"),
    ("balances of too many", {"op": "balances"}, [keys(*range(21))], "keys"),
    ("an account that cannot be", {"op": "balances"}, [keys(1, 1000)], "account"),
    ("the largest account", {"op": "balances"}, [keys(MAX_U64)], "account"),
    ("balances to a level", {"op": "balances", "wait": 3}, [keys(1)], "wait"),
    ("minimum as text", {"op": "balances", "min_tx_id": "1"}, [keys(1)], "min_tx_id"),
    ("minimum as nil", {"op": "balances", "min_tx_id": None}, [keys(1)], "min_tx_id"),
    ("minimum below zero", {"op": "status", "min_tx_id": -1}, [keys(1)], "min_tx_id"),
    ("status with a count", {"op": "status", "count": 1}, [keys(1)], "count"),
    ("a transaction without id", {"op": "transaction"}, [], "tx_id"),
    ("transactions", {"op": "transaction", "tx_id": 1, "tx_ids": [1]}, [], "tx_ids"),
    ("wait without id", {"op": "wait", "wait": 1}, [], "tx_id"),
    ("wait without a level", {"op": "wait", "tx_id": 1}, [], "wait"),
    ("wait for a level", {"op": "wait", "tx_id": 1, "wait": 1, "level": 2}, [], "level"),
    ("wait for a negative id", {"op": "wait", "wait": 1, "tx_id": -1}, [], "tx_id"),
    ("index to a transaction", {"op": "index", "min_tx_id": 1}, [], "min_tx_id"),
    ("services by name", {"op": "services", "stage": "wal"}, [], "stage"),
    ("functions by name", {"op": "functions", "name": "fee"}, [], "name"),
    ("register without a level", {"op": "register", "name": "fee"}, [b"wasm"], "wait"),
    ("register with a reference", {"op": "register", "ref": 1}, [b"wasm"], "ref"),
    ("register nothing", {"op": "register", "name": "fee", "wait": 1}, [b""], "binary"),
    ("register no text", {"op": "register", "name": 5, "wait": 1}, [b"wasm"], "name"),
    (
        "register over it, perhaps",
        {"op": "register", "name": "fee", "wait": 1, "override": 1},
        [b"wasm"],
        "override",
    ),
    (
        "register with a broken reference",
        {"op": "register", "name": "fee", "wait": 1, "user_ref": 1.0},
        [b"wasm"],
        "user_ref",
    ),
    ("unregister without a level", {"op": "unregister", "name": "fee"}, [], "wait"),
    (
        "unregister over it",
        {"op": "unregister", "name": "fee", "wait": 1, "override": True},
        [],
        "override",
    ),
    ("unregister a module", {"op": "unregister", "name": "fee", "wait": 1}, [b"wasm"], "payload"),
    ("pending as a map", {"op": "ping", "pending": {}}, [], "pending"),
    ("pending as nil", {"op": "ping", "pending": None}, [], "pending"),
    ("pending of other types", {"op": "ping", "pending": [1, "2"]}, [], "pending"),
    ("pending truths", {"op": "ping", "pending": [True]}, [], "pending"),
    ("pending of too many", {"op": "ping", "pending": list(range(70_000))}, [], "pending"),
    ("pending, misspelt", {"op": "ping", "pendign": [1]}, [], "pendign"),
]


@pytest.mark.parametrize(
    ("header", "payload", "field"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_bad_request_is_answered_with_its_id(
    header: dict[str, Any], payload: list[bytes], field: str
) -> None:
    rig = Rig()
    counted: list[tuple[object, str]] = []
    rig.core.desk.answered = lambda request, outcome: counted.append((request, outcome))
    frames = [msgpack.packb({"v": 1, "id": MAX_U64} | header), *payload]
    rig.core.on_client(b"c", frames, 0)
    answer = rig.answer()
    assert (answer["client"], answer["id"], answer["error"]) == (b"c", MAX_U64, "invalid_request")
    assert 10 < len(answer["message"]) < 1000
    assert answer["details"]["field"] == field
    assert counted == [(None, "invalid_request")]
    assert rig.sent() == []
    rig.ask("index", MAX_U64)
    assert rig.answer()["term"] == 1, "the id is free and the gateway lives"


def test_a_bad_record_is_told_with_its_place_and_value() -> None:
    rig = Rig()
    rig.ask("submit", 1, *spoilt(1, 20, counterparty=77), count=20, wait=2)
    answer = rig.answer()
    assert answer["details"] == {"field": "counterparty", "index": 19, "value": 77}
    assert "operation 19" in answer["message"]
    assert "counterparty" in answer["message"]


def test_a_key_that_is_there_twice_is_refused() -> None:
    rig = Rig()
    twice = b"\x85\xa1v\x01\xa2id\x01\xa2op\xa4wait\xa4wait\x02\xa4wait\x01"
    rig.core.on_client(b"c", [twice], 0)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (None, "invalid_request")
    assert "'wait' is there twice" in answer["message"]


@pytest.mark.parametrize("names", [["fee", "unused"], ["fee", "fee"]])
def test_a_name_may_be_there_that_no_call_uses_or_twice(names: list[str]) -> None:
    rig = Rig()
    rig.ask("submit", 1, *spoilt(Kind.FUNCTION), count=1, wait=1, names=names)
    (request,) = rig.sent()
    assert request.names == names
    assert rig.answers() == []


def test_amounts_and_accounts_are_left_to_the_transactor() -> None:
    rig = Rig()
    rig.ask("submit", 1, *spoilt(account=MAX_U64), count=1, wait=1)
    rig.ask("submit", 2, *spoilt(amount=0), count=1, wait=1)
    rig.ask("submit", 3, *spoilt(Kind.TRANSFER, counterparty=MAX_U64), count=1, wait=1)
    assert rig.answers() == []
    assert sum(request.count for request in rig.sent()) == 3


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\xc1"],
        [msgpack.packb([1])],
        [msgpack.packb({"v": 1, "op": "index"})],
        [msgpack.packb({"v": 1, "op": "index", "id": -1})],
        [msgpack.packb({"v": 1, "op": "index", "id": True})],
        [msgpack.packb({"v": 1, "op": "index", "id": "1"})],
        [msgpack.packb({"v": 1, "op": "index", "id": 1.0})],
        [b"\x81\xa1v" + b"\x91" * 1000 + b"\x00"],
        [b"\x81\xa2id" + b"\x91" * 1000 + b"\x00"],
        [b"\x82\xa1v\x01\xa2id" + b"\x91" * 1000 + b"\x00"],
        [bytes(2 << 20)],
    ],
)
def test_what_has_no_readable_id_is_answered_without_one(frames: list[bytes]) -> None:
    rig = Rig()
    rig.core.on_client(b"c", frames, 0)
    answer = rig.answer()
    assert answer["id"] is None
    assert answer["error"] in ("invalid_request", "unsupported_version")


@pytest.mark.parametrize("version", [0, 2, None, "1", [1], True, 1.0, b"1"])
def test_another_version_is_refused_by_name(version: object) -> None:
    rig = Rig()
    rig.core.on_client(b"c", [msgpack.packb({"v": version, "id": 4, "op": "index"})], 0)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (4, "unsupported_version")
    assert answer["details"]["supported"] == 1


simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.binary(max_size=8),
    st.text(max_size=8),
)


values = st.one_of(
    simple, st.lists(simple, max_size=3), st.dictionaries(st.text(max_size=3), simple, max_size=2)
)


fields = st.sampled_from(
    ["id", "timeout_ms", "count", "wait", "names", "tx_id", "min_tx_id", "pending", "x", "details"]
)


operation_names = st.sampled_from(
    ["submit", "balances", "status", "index", "wait", "ping", "services", "history", "", "help"]
)


small_numbers = st.one_of(st.integers(0, 5), values)


@given(
    st.lists(
        st.one_of(
            st.lists(st.binary(max_size=90), max_size=4),
            st.tuples(
                operation_names,
                st.dictionaries(fields, small_numbers, max_size=6),
                st.lists(
                    st.one_of(
                        st.sampled_from([ONE, ONE * 2, keys(1), b""]), st.binary(max_size=90)
                    ),
                    max_size=3,
                ),
            ),
        ),
        max_size=12,
    )
)
def test_nothing_that_a_client_sends_raises(messages: list[Any]) -> None:
    rig = Rig()
    expected = 0
    for message in messages:
        if isinstance(message, tuple):
            operation, header, payload = message
            message = [msgpack.packb({"v": 1, "id": 1, "op": operation} | header), *payload]
        rig.core.on_client(b"c", message, rig.now)
        expected += 1
        rig.sent()
    rig.now = MAX_WAIT_MS * MS + 1
    answers = rig.answers()
    assert len(answers) == expected, "every message gets exactly one answer"
    assert len(rig.core.desk) == 0
    assert rig.core.desk.next_deadline_ns() is None


@given(st.binary(max_size=200), st.data())
def test_a_mutated_request_does_not_raise(noise: bytes, data: st.DataObject) -> None:
    rig = Rig()
    header = {
        "v": 1,
        "id": 3,
        "op": "submit",
        "count": 2,
        "wait": 1,
        "names": ["a"],
        "timeout_ms": 9,
    }
    frames = [bytearray(msgpack.packb(header)), bytearray(ONE * 2)]
    for byte in noise[:6]:
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = byte
    rig.core.on_client(b"c", [bytes(frame) for frame in frames], 0)
    rig.now = MAX_WAIT_MS * MS + 1
    rig.sent()
    assert len(rig.answers()) == 1
