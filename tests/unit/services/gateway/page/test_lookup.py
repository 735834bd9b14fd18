"""Look-ups of the page: questions to the gateway's core and back, and how answers are shown."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

from tallybus.common.buffers import Buffer
from tallybus.common.bus.sockets import Bus, BusLimits, new_context
from tallybus.common.protocol import ErrorCode
from tallybus.common.record import (
    ENTRY_DTYPE,
    MAX_BALANCE,
    MIN_BALANCE,
    RECORD_DTYPE,
    STATUS_DTYPE,
    Kind,
    Stage,
    Status,
)
from tallybus.services.gateway.clients import protocol
from tallybus.services.gateway.page import lookup
from tallybus.services.gateway.page.lookup import (
    MAX_LOOKUPS,
    PAGE_CLIENT,
    Lookups,
    Reply,
    transaction_json,
)
from tests.support.waiting import eventually

PATIENCE_S = 20.0
MAX_U64 = 2**64 - 1
Answers = list[tuple[dict[str, Any], list[bytes]]]


def here() -> bool:
    """The browser has not gone."""
    return False


class Loop:
    """A gateway's loop in a thread: it answers questions with what `answer` makes of them."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.lookups = Lookups(self.woken.set)
        self.asked: list[dict[str, Any]] = []
        self.standing = False
        self.answer: Callable[[dict[str, Any], list[Buffer]], list[Buffer] | None] = (
            lambda _header, _payloads: None
        )
        self._ending = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ending:
            self.woken.wait(PATIENCE_S)
            self.woken.clear()
            if self.standing:
                continue
            for frames in self.lookups.take_questions():
                header: dict[str, Any] = msgpack.unpackb(frames[0])
                self.asked.append(header)
                answer = self.answer(header, frames[1:])
                if answer is not None:
                    self.lookups.answered(answer)

    def end(self) -> None:
        self._ending = True
        self.woken.set()
        self._thread.join()


@pytest.fixture
def loop() -> Iterator[Loop]:
    running = Loop()
    yield running
    running.lookups.close()
    running.end()


def asked_more_than(loop: Loop, number: int) -> Callable[[], bool]:
    """A browser that goes once the core has its question."""
    return lambda: len(loop.asked) > number


def found(reply: Reply | None) -> tuple[int, dict[str, Any]]:
    assert reply is not None
    return reply


def status_row(stage: Stage, status: int = 0) -> bytes:
    rows = np.zeros(1, STATUS_DTYPE)
    rows["stage"], rows["status"] = stage, status
    return rows.tobytes()


# -- questions and answers -------------------------------------------------------------------------


@pytest.mark.parametrize("balance", [0, -5, 2**53 + 1, MAX_BALANCE, MIN_BALANCE])
def test_a_balance_is_asked_for_as_a_client_does(loop: Loop, balance: int) -> None:
    def answer(header: dict[str, Any], payloads: list[Buffer]) -> list[Buffer]:
        assert header["op"] == "balances"
        assert bytes(payloads[0]) == (7).to_bytes(8, "little")
        value = balance.to_bytes(8, "little", signed=True)
        return protocol.reply(header["id"], {"count": 1, "snapshot": MAX_U64}, value)

    loop.answer = answer
    assert loop.lookups.look_up("balance", 7, here) == (
        200,
        {"account": "7", "balance": str(balance), "last_snapshot_tx_id": str(MAX_U64)},
    )
    assert loop.asked[0]["v"] == 1
    assert 0 < loop.asked[0]["timeout_ms"] <= 5000


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.INVALID_REQUEST, 400),
        (ErrorCode.TIMEOUT, 504),
        (ErrorCode.OVERLOADED, 503),
        (ErrorCode.UNAVAILABLE, 503),
        (ErrorCode.INTERNAL, 500),
        ("something new", 500),
    ],
)
def test_an_error_of_the_core_keeps_its_words(loop: Loop, code: str, status: int) -> None:
    loop.answer = lambda header, _: protocol.error_reply(header["id"], code, "because")
    given, told = found(loop.lookups.look_up("balance", 7, here))
    assert given == status
    assert told["error"].endswith("because")
    assert set(told) == {"error"}


@pytest.mark.parametrize("stage", [Stage.PENDING, Stage.COMPUTED, Stage.COMMITTED])
def test_a_transaction_that_is_not_readable_yet_is_waited_for(loop: Loop, stage: Stage) -> None:
    readable = False

    def answer(header: dict[str, Any], payloads: list[Buffer]) -> list[Buffer]:
        if header["op"] == "status":
            return protocol.reply(header["id"], {"count": 1}, status_row(stage))
        assert header["min_tx_id"] == header["tx_id"] == 5
        if not readable:
            return protocol.error_reply(header["id"], ErrorCode.TIMEOUT, "not answered in time")
        return protocol.reply(header["id"], reply_to(5), *payloads_of(Kind.DEPOSIT))

    loop.answer = answer
    status, told = found(loop.lookups.look_up("transaction", 5, here))
    assert (status, told["stage"]) == (404, stage.name)
    assert "transaction 5" in told["error"]
    readable = True
    status, told = found(loop.lookups.look_up("transaction", 5, here))
    assert (status, told["stage"], told["tx_id"]) == (200, "ON_SNAPSHOT", "5")


def test_a_transaction_that_is_not_there_is_not_asked_for_further(loop: Loop) -> None:
    loop.answer = lambda header, _: protocol.reply(
        header["id"], {"count": 1}, status_row(Stage.UNKNOWN)
    )
    status, told = found(loop.lookups.look_up("transaction", MAX_U64, here))
    assert (status, told["stage"]) == (404, "UNKNOWN")
    assert [header["op"] for header in loop.asked] == ["status"]


def test_a_failed_one_that_is_not_on_the_read_side_is_told_as_such(loop: Loop) -> None:
    def answer(header: dict[str, Any], payloads: list[Buffer]) -> list[Buffer]:
        if header["op"] == "status":
            return protocol.reply(header["id"], {"count": 1}, status_row(Stage.ERROR, 1))
        return protocol.reply(header["id"], reply_to(5) | {"found": False}, b"", b"")

    loop.answer = answer
    status, told = found(loop.lookups.look_up("transaction", 5, here))
    assert (status, told["stage"]) == (404, "ERROR")
    assert "failed" in told["error"]


def test_a_silent_read_side_is_no_missing_transaction(loop: Loop) -> None:
    def answer(header: dict[str, Any], payloads: list[Buffer]) -> list[Buffer]:
        if header["op"] == "status":
            return protocol.reply(header["id"], {"count": 1}, status_row(Stage.ON_SNAPSHOT))
        return protocol.error_reply(header["id"], ErrorCode.TIMEOUT, "not answered in time")

    loop.answer = answer
    status, told = found(loop.lookups.look_up("transaction", 5, here))
    assert status == 504
    assert "does not answer" in told["error"]


# -- limits ----------------------------------------------------------------------------------------


def test_a_loop_that_does_not_turn_is_given_up(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LOOP_S", 0.0)
    monkeypatch.setattr(lookup, "ANSWER_MS", 50)
    loop.standing = True
    status, told = found(loop.lookups.look_up("balance", 7, here))
    assert status == 504
    assert "loop" in told["error"]
    loop.standing = False
    loop.woken.set()
    eventually(lambda: not loop.lookups._open)
    assert loop.asked == [], "what nobody waits for is not asked any more"


def test_who_has_gone_is_not_waited_for_and_the_answer_is_dropped(loop: Loop) -> None:
    assert loop.lookups.look_up("balance", 7, lambda: True) is None
    eventually(lambda: len(loop.asked) == 1 or not loop.lookups._open)
    if loop.asked:
        loop.lookups.answered(protocol.error_reply(loop.asked[0]["id"], ErrorCode.TIMEOUT, "late"))
    assert not loop.lookups._open


def test_a_bounded_number_is_with_the_core_even_if_nobody_waits_for_them(loop: Loop) -> None:
    for _ in range(MAX_LOOKUPS):
        asked = len(loop.asked)
        assert loop.lookups.look_up("balance", 7, asked_more_than(loop, asked)) is None
    status, told = found(loop.lookups.look_up("balance", 7, here))
    assert status == 503
    assert str(MAX_LOOKUPS) in told["error"]
    for header in list(loop.asked):
        loop.lookups.answered(protocol.error_reply(header["id"], ErrorCode.TIMEOUT, "late"))
    loop.answer = lambda header, _: protocol.reply(header["id"], {"snapshot": 1}, b"\x01" * 8)
    assert found(loop.lookups.look_up("balance", 7, here))[0] == 200


def test_many_threads_get_their_own_answers(loop: Loop) -> None:
    loop.answer = lambda header, payloads: protocol.reply(
        header["id"], {"snapshot": 1}, bytes(payloads[0])
    )
    wrong: list[object] = []

    def ask(first: int) -> None:
        for number in range(first, first + 100):
            reply = loop.lookups.look_up("balance", number, here)
            if reply is None or reply[1].get("balance") != str(number):
                wrong.append(reply)

    threads = [threading.Thread(target=ask, args=(1000 * place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_closing_ends_every_wait(loop: Loop) -> None:
    replies: list[Reply | None] = []
    thread = threading.Thread(
        target=lambda: replies.append(loop.lookups.look_up("balance", 7, here))
    )
    thread.start()
    eventually(lambda: loop.asked)
    loop.lookups.close()
    thread.join(PATIENCE_S)
    assert [found(each)[0] for each in replies] == [503]
    assert found(loop.lookups.look_up("balance", 7, here))[0] == 503


def test_an_answer_to_nobody_is_dropped(loop: Loop) -> None:
    loop.lookups.answered(protocol.error_reply(99, ErrorCode.TIMEOUT, "late"))
    loop.lookups.answered(protocol.error_reply(None, ErrorCode.INTERNAL, "to nobody"))


@pytest.mark.parametrize("announced", [PAGE_CLIENT, b"\x00\x00\x00\x00\x07", b"a" * 16])
def test_no_client_on_the_network_can_have_the_page_s_id(announced: bytes) -> None:
    """Whatever routing id a peer announces in its handshake, an empty one is never its own."""
    context = new_context()
    bus = Bus(context, lambda *_: "", BusLimits())
    try:
        port = bus.clients("tcp://127.0.0.1:*", 1 << 16)
        address = ("127.0.0.1", int(port.endpoint.rpartition(":")[2]))
        with socket.create_connection(address, PATIENCE_S) as peer:
            # ZMTP 3.0 as the specification has it: greeting, READY with properties, one message.
            peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL" + bytes(16) + bytes(32))
            body = b"\x05READY"
            for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", announced)):
                body += bytes([len(name)]) + name + len(value).to_bytes(4, "big") + value
            peer.sendall(b"\x04" + bytes([len(body)]) + body)
            answered = b""
            while b"READY" not in answered:
                answered += peer.recv(1000)
            peer.sendall(b"\x00\x02hi")
            received: list[list[Buffer]] = []
            eventually(lambda: take(received, port.receive()))
        client = bytes(received[0][0])
        assert received[0][1] == b"hi"
        assert client != PAGE_CLIENT
        assert client == announced or (not announced and len(client) == 5 and client[0] == 0)
    finally:
        bus.close()
        context.destroy(linger=0)


def take(received: list[list[Buffer]], frames: list[Buffer] | None) -> bool:
    if frames is not None:
        received.append(frames)
    return bool(received)


# -- how a transaction is shown --------------------------------------------------------------------


def reply_to(tx_id: int, **changes: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "tx_id": tx_id,
        "found": True,
        "snapshot": MAX_U64,
        "timestamp": 1_700_000_000_123_456_789,
        "term": 3,
        "function": None,
        "params": [],
        "name": None,
        "duplicate_of": 0,
    }
    return facts | changes


def payloads_of(kind: int, *entries: tuple[int, int], **fields: int) -> list[bytes]:
    record = np.zeros(1, RECORD_DTYPE)
    for name, value in ({"kind": kind, "user_ref": MAX_U64} | fields).items():
        record[name] = value
    return [record.tobytes(), np.array(list(entries), ENTRY_DTYPE).tobytes()]


def test_every_integer_of_a_transaction_is_a_text() -> None:
    entries = (MAX_U64, -(2**63 - 1)), (0, 2**63 - 1)
    payloads = payloads_of(
        Kind.TRANSFER, *entries, account=MAX_U64, counterparty=0, amount=2**63 - 1
    )
    assert transaction_json(reply_to(MAX_U64), payloads) == {
        "tx_id": "18446744073709551615",
        "timestamp_ns": "1700000000123456789",
        "time": "2023-11-14T22:13:20.123456789Z",
        "term": "3",
        "stage": "ON_SNAPSHOT",
        "kind": "TRANSFER",
        "status": "NONE",
        "user_ref": "18446744073709551615",
        "account": None,
        "source": "18446744073709551615",
        "target": "0",
        "amount": "9223372036854775807",
        "function": None,
        "version": None,
        "crc32c": None,
        "params": [],
        "entries": [
            {
                "account": "18446744073709551615",
                "direction": "CREDIT",
                "amount": "9223372036854775807",
            },
            {"account": "0", "direction": "DEBIT", "amount": "9223372036854775807"},
        ],
        "duplicate_of": None,
        "last_snapshot_tx_id": "18446744073709551615",
    }


def test_a_failed_transaction_says_so() -> None:
    payloads = payloads_of(Kind.DEPOSIT, account=7, amount=5, status=Status.DUPLICATE)
    told = transaction_json(reply_to(9, duplicate_of=4), payloads)
    assert (told["stage"], told["status"], told["duplicate_of"]) == ("ERROR", "DUPLICATE", "4")
    assert (told["account"], told["amount"], told["entries"]) == ("7", "5", [])


def test_a_call_names_what_ran_and_its_params() -> None:
    payloads = payloads_of(Kind.FUNCTION, account=3, function=0xABC, status=130, amount=2)
    reply = reply_to(9, function={"name": "fee", "version": 2}, params=[-(2**63), 1])
    told = transaction_json(reply, payloads)
    assert (told["function"], told["version"], told["crc32c"]) == ("fee", "2", "00000abc")
    assert (told["params"], told["status"]) == (["-9223372036854775808", "1"], "FUNCTION_130")
    assert (told["account"], told["amount"]) == (None, None)
    told = transaction_json(reply_to(9), payloads_of(Kind.FUNCTION, status=5))
    assert (told["function"], told["version"], told["crc32c"]) == (None, None, None)


def test_a_registration_names_what_it_registered() -> None:
    payloads = payloads_of(Kind.FUNCTION_REGISTERED, account=2, function=0)
    told = transaction_json(reply_to(9, name="fee"), payloads)
    assert (told["function"], told["version"], told["crc32c"]) == ("fee", "2", "00000000")
    failed = payloads_of(Kind.FUNCTION_REGISTERED, status=5)
    told = transaction_json(reply_to(9, name="fee"), failed)
    assert (told["function"], told["version"], told["crc32c"]) == ("fee", None, None)


def test_a_kind_that_does_not_exist_is_a_number() -> None:
    told = transaction_json(reply_to(9), payloads_of(77, status=5, account=9, amount=3))
    assert (told["kind"], told["status"]) == ("77", "INVALID_OPERATION")
    assert (told["account"], told["amount"]) == (None, None)
