"""The client's core on a simulated clock: every way that a request can end, and what is sent
meanwhile."""

import itertools
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from tallybus import (
    AccessDenied,
    BatchResult,
    ClientClosed,
    FunctionVersion,
    InvalidFunction,
    InvalidRequest,
    LostTransaction,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    Result,
    ServerError,
    Status,
    TallybusError,
    Timeout,
    Unavailable,
    Unreachable,
    WaitLevel,
    deposits,
)
from tallybus.client.access import Handshake
from tallybus.client.codec import AskGateway, ReadIndex, Request, WaitFor
from tallybus.client.core import MILLISECOND, SECOND, Call, Core, CoreSettings
from tallybus.client.registration import RegisterFunction
from tallybus.client.submit import SubmitBatch, SubmitOne
from tallybus.common.record import FAILURE_DTYPE
from tallybus.operations import Deposit, encode_operation

PING = 250 * MILLISECOND


class Sim:
    """A core with its clock, an open connection, and the messages that went over it."""

    def __init__(self, random: Callable[[], float] = lambda: 0.0) -> None:
        self.core = Core(random)
        self.now = 1000 * SECOND
        self.connected = True
        self.sent: list[dict[str, Any]] = []

    def start(self, request: Request[Any], seconds: float = 30.0) -> Call[Any]:
        call = self.core.start(request, self.now, seconds)
        self.flush()
        return call

    def flush(self) -> None:
        while (frames := self.core.next_message(self.now)) is not None:
            if not self.connected:
                self.core.message_refused()
                break
            self.sent.append(msgpack.unpackb(frames[0]) | {"payload": frames[1:]})
            self.core.message_sent(self.now)

    def take(self) -> list[dict[str, Any]]:
        """What was sent since the last call."""
        taken, self.sent = self.sent, []
        return taken

    def reply(self, request_id: int | None, *payload: bytes, **fields: Any) -> None:
        header = msgpack.packb({"v": 1, "id": request_id, **fields})
        self.core.receive([header, *payload], self.now)
        self.flush()

    def submitted(self, request_id: int, first: int, table: bytes = b"", count: int = 1) -> None:
        failures = len(table) // 16
        self.reply(request_id, table, first=first, count=count, level=2, failures=failures)

    def refuse(self, request_id: int, code: str, **details: Any) -> None:
        self.reply(request_id, error=code, message="because", details=details)

    def pong(self, ping_id: int, unknown: list[int], **more: Any) -> None:
        fields = {"incarnation": 2, "protocol": 1, "max_batch": 5, "max_accounts": 6}
        self.reply(ping_id, unknown=unknown, **fields | more)

    def advance(self, nanoseconds: int) -> None:
        """Lets time pass, waking the core whenever it wants to be."""
        end = self.now + nanoseconds
        while (wake := self.core.next_wake()) is not None and wake <= end:
            assert wake >= self.now or self.now == end, "the core wants to wake in the past"
            self.now = max(self.now, wake)
            self.core.tick(self.now)
            self.flush()
            new = self.core.next_wake()
            assert new is None or new > self.now, "the core does not let time go on"
        self.now = end

    def done(self) -> list[Call[Any]]:
        """The calls that have finished since the last time."""
        finished = list(self.core.finished)
        self.core.finished.clear()
        assert all(call.done for call in finished)
        return finished


def one(user_ref: int = 0, level: WaitLevel = WaitLevel.COMMITTED) -> SubmitOne:
    return SubmitOne(encode_operation(Deposit(1, 5, user_ref))[0], level)


def batch(*user_refs: int) -> SubmitBatch:
    records = deposits(1, 5, user_refs)
    return SubmitBatch(records.tobytes(), len(records), WaitLevel.COMMITTED)


def duplicate(offset: int, original: int, first: int) -> bytes:
    row = np.zeros(1, FAILURE_DTYPE)
    row["offset"], row["status"], row["original_status"], row["duplicate_of"] = (
        *(offset, 7),
        *(original, first),
    )
    return row.tobytes()


def error_of(call: Call[Any], kind: type[TallybusError]) -> Any:
    assert call.done
    with pytest.raises(kind) as caught:
        call.result()
    assert type(caught.value) is kind
    return caught.value


def test_a_request_is_sent_once_and_its_answer_is_the_result() -> None:
    sim = Sim()
    call = sim.start(one())
    (message,) = sim.take()
    assert (message["op"], message["wait"], message["count"]) == ("submit", 2, 1)
    assert not call.done
    sim.submitted(message["id"], 77)
    assert call.result() == Result(77, Status.NONE, WaitLevel.COMMITTED)
    assert sim.done() == [call]
    assert sim.core.outstanding == ()
    assert sim.core.next_wake() is None
    sim.advance(60 * SECOND)
    assert sim.take() == []


def test_results_may_come_in_any_order() -> None:
    sim = Sim()
    calls = [sim.start(batch(n)) for n in (1, 2, 3)]
    ids = [message["id"] for message in sim.take()]
    for n in (2, 0, 1):
        sim.submitted(ids[n], 100 + n)
    assert sim.done() == [calls[n] for n in (2, 0, 1)]
    assert [call.result().first_tx_id for call in calls] == [100, 101, 102]


def test_the_gateway_is_told_a_little_less_time_than_there_is() -> None:
    sim = Sim()
    sim.start(ReadIndex(), 30.0)
    sim.start(ReadIndex(), 0.1)
    sim.start(ReadIndex(), 0.0005)
    assert [message["timeout_ms"] for message in sim.take()] == [29_900, 90, 1]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), 1e12, "5", None, True])
def test_impossible_timeouts_are_refused(seconds: Any) -> None:
    sim = Sim()
    with pytest.raises(InvalidRequest) as caught:
        sim.start(ReadIndex(), seconds)
    assert caught.value.field == "timeout"
    assert sim.core.outstanding == ()


def test_without_an_answer_the_deadline_ends_a_request() -> None:
    sim = Sim()
    call = sim.start(one(level=WaitLevel.SNAPSHOT), 2.0)
    sim.advance(2 * SECOND - 1)
    assert not call.done
    sim.advance(1)
    error = error_of(call, Timeout)
    assert (error.request, error.level, error.seconds) == ("submit", WaitLevel.SNAPSHOT, 2.0)
    assert error.first_tx_id is None
    assert "may still be executed" in str(error)
    assert isinstance(error, TimeoutError)


def test_a_late_answer_is_ignored() -> None:
    sim = Sim()
    call = sim.start(one(), 2.0)
    (message,) = sim.take()
    sim.advance(2 * SECOND)
    sim.submitted(message["id"], 77)
    error_of(call, Timeout)
    assert sim.done() == [call]


def registration() -> RegisterFunction:
    return RegisterFunction("fee", b"binary", False, 99)


def registered(sim: Sim, request_id: int, tx_id: int) -> None:
    """Answers the read of a registration that made version 3."""
    record = struct.pack("<BBHIQQQQ", 5, 0, 0, crc32c(b"binary"), 99, 3, 0, 1)
    fields: dict[str, Any] = {
        "tx_id": tx_id,
        "timestamp": 1,
        "term": 1,
        "found": True,
        "snapshot": tx_id,
    }
    fields |= {"duplicate_of": 0, "params": [], "function": None, "name": "fee"}
    sim.reply(request_id, record, b"", **fields)


def test_a_request_that_another_one_completes_is_one_call() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    (message,) = sim.take()
    sim.submitted(message["id"], 77)
    assert not call.done
    (read,) = sim.take()
    assert (read["op"], read["tx_id"], read["min_tx_id"]) == ("transaction", 77, 77)
    assert read["id"] > message["id"]
    sim.refuse(read["id"], "overloaded")
    sim.advance(100 * MILLISECOND)
    (read,) = sim.take()
    registered(sim, read["id"], 77)
    assert call.result() == FunctionVersion("fee", 3, crc32c(b"binary"), 77)
    assert sim.done() == [call]
    assert sim.core.next_wake() is None


def test_what_completes_a_request_is_read_again_when_it_is_lost() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    sim.submitted(sim.take()[0]["id"], 77)
    (read,) = sim.take()
    sim.advance(PING)
    (ping,) = sim.take()
    sim.pong(ping["id"], ping["pending"])
    assert ping["pending"] == [read["id"]]
    (again,) = sim.take()
    registered(sim, again["id"], 77)
    assert call.result().version == 3


def test_the_deadline_is_that_of_both_and_tells_what_is_committed() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    (message,) = sim.take()
    sim.advance(6 * SECOND)
    sim.take()
    sim.submitted(message["id"], 77)
    assert sim.take()[0]["timeout_ms"] == 3_900
    sim.advance(4 * SECOND)
    error = error_of(call, Timeout)
    assert (error.request, error.first_tx_id) == ("transaction", 77)
    assert "transaction 77 is committed" in str(error)


def test_a_lost_registration_that_is_refused_later_has_an_unknown_outcome() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    (message,) = sim.take()
    sim.refuse(message["id"], "outcome_unknown")
    sim.advance(100 * MILLISECOND)
    (again,) = sim.take()
    assert again["user_ref"] == message["user_ref"] == 99
    sim.refuse(again["id"], "invalid_function", name="fee", reason="too large")
    error = error_of(call, OutcomeUnknown)
    assert isinstance(error.__cause__, InvalidFunction)
    assert not error.retry_safe


def test_deadlines_of_many_requests_are_kept_in_any_order() -> None:
    sim = Sim()
    seconds = [5.0, 1.0, 3.0, 2.0, 4.0]
    calls = {number: sim.start(ReadIndex(), number) for number in seconds}
    for number in sorted(seconds):
        sim.advance(int(number * SECOND) - (sim.now - 1000 * SECOND))
        assert sim.done() == [calls[number]]
    assert sim.core.next_wake() is None


def test_what_cannot_be_sent_before_its_deadline_is_never_sent() -> None:
    sim = Sim()
    sim.connected = False
    late, patient = sim.start(one(), 1.0), sim.start(one(), 5.0)
    sim.advance(2 * SECOND)
    assert "never sent" in str(error_of(late, Unreachable))
    sim.connected = True
    sim.flush()
    (message,) = sim.take()
    assert message["timeout_ms"] == 2_900
    sim.submitted(message["id"], 7)
    assert patient.result().tx_id == 7


def test_no_ping_is_sent_before_its_time_or_to_nobody() -> None:
    sim = Sim()
    sim.connected = False
    sim.start(one())
    sim.advance(2 * SECOND)
    sim.connected = True
    sim.flush()
    assert [message["op"] for message in sim.take()] == ["submit"]
    sim.advance(PING - 1)
    assert sim.take() == []
    sim.advance(1)
    assert [message["op"] for message in sim.take()] == ["ping"]


def test_pings_name_what_is_pending_and_repeat() -> None:
    sim = Sim()
    sim.start(one())
    sim.advance(100 * MILLISECOND)
    sim.start(ReadIndex())
    first, second = (message["id"] for message in sim.take())
    sim.advance(PING - 100 * MILLISECOND)
    (ping,) = sim.take()
    assert (ping["op"], ping["pending"]) == ("ping", [first, second])
    sim.submitted(first, 1)
    sim.advance(PING)
    (again,) = sim.take()
    assert again["pending"] == [second]
    assert again["id"] > ping["id"] > second


def test_a_request_is_asked_for_while_others_are_answered() -> None:
    sim = Sim()
    lost = sim.start(one(5))
    sim.take()
    pings = []
    for _ in range(30):
        sim.start(ReadIndex())
        *before, read = sim.take()
        pings += before
        sim.refuse(read["id"], "internal")
        sim.advance(10 * MILLISECOND)
    assert [ping["op"] for ping in pings] == ["ping"]
    assert not lost.done


def test_a_held_request_goes_on_waiting() -> None:
    sim = Sim()
    call = sim.start(one())
    (message,) = sim.take()
    for _ in range(5):
        sim.advance(PING)
        (ping,) = sim.take()
        assert ping["op"] == "ping"
        sim.pong(ping["id"], [])
    sim.submitted(message["id"], 5)
    assert call.result().tx_id == 5


def lose(sim: Sim) -> None:
    """The gateway does not know anything that was sent so far."""
    sim.advance(PING)
    ping = sim.take()[-1]
    assert ping["op"] == "ping"
    sim.pong(ping["id"], ping["pending"])


def test_a_lost_submit_without_reference_has_an_unknown_outcome() -> None:
    sim = Sim()
    call = sim.start(batch(1, 0, 3))
    sim.take()
    lose(sim)
    error = error_of(call, OutcomeUnknown)
    assert (error.count, error.retry_safe, error.first_tx_id) == (3, False, None)
    assert sim.take() == []


def test_a_lost_submit_with_references_is_sent_again() -> None:
    sim = Sim()
    call = sim.start(batch(1, 2))
    (before,) = sim.take()
    lose(sim)
    (again,) = sim.take()
    assert again["payload"] == before["payload"]
    assert again["id"] != before["id"]
    assert again["timeout_ms"] < before["timeout_ms"]
    # The first sending had executed both; the second operation had been rejected.
    sim.submitted(again["id"], 12, duplicate(0, 0, 10) + duplicate(1, 1, 11), count=2)
    result = call.result()
    assert isinstance(result, BatchResult)
    assert result.statuses.tolist() == [0, Status.INSUFFICIENT_FUNDS]
    assert result.tx_ids.tolist() == [10, 11]


def test_a_lost_submit_without_wait_is_told_the_id_of_its_execution() -> None:
    sim = Sim()
    call = sim.start(one(9, WaitLevel.NONE))
    lose(sim)
    (again,) = sim.take()
    assert again["wait"] == WaitLevel.COMPUTED
    sim.submitted(again["id"], 12, duplicate(0, 0, 10))
    assert call.result().tx_id == 10


def test_an_answer_to_a_lost_sending_is_ignored() -> None:
    sim = Sim()
    call = sim.start(one(9))
    (before,) = sim.take()
    lose(sim)
    (again,) = sim.take()
    sim.submitted(before["id"], 10)
    assert not call.done
    sim.submitted(again["id"], 11)
    assert call.result().tx_id == 11


def test_an_answer_that_overtakes_the_pong_wins() -> None:
    sim = Sim()
    call = sim.start(one())
    (message,) = sim.take()
    sim.advance(PING)
    (ping,) = sim.take()
    sim.submitted(message["id"], 10)
    sim.pong(ping["id"], [message["id"]])
    assert call.result().tx_id == 10


def test_an_older_pong_does_not_speak_of_a_later_sending() -> None:
    sim = Sim()
    call = sim.start(one(9))
    (message,) = sim.take()
    sim.advance(PING)
    (early,) = sim.take()
    sim.advance(PING)
    (late,) = sim.take()
    sim.pong(early["id"], [message["id"]])
    (again,) = sim.take()
    sim.pong(late["id"], [message["id"]])
    assert sim.take() == []
    sim.submitted(again["id"], 10)
    assert call.result().tx_id == 10


def test_lost_reads_are_sent_again_as_often_as_needed() -> None:
    sim = Sim()
    call = sim.start(WaitFor(5, WaitLevel.SNAPSHOT))
    for _ in range(4):
        assert [message["op"] for message in sim.take()] == ["wait"]
        lose(sim)
    (again,) = sim.take()
    sim.reply(again["id"], level=3)
    assert call.result() is WaitLevel.SNAPSHOT


def test_a_pong_that_is_an_error_is_asked_again() -> None:
    sim = Sim()
    call = sim.start(one())
    sim.take()
    sim.advance(PING)
    (ping,) = sim.take()
    sim.refuse(ping["id"], "overloaded")
    assert not call.done
    sim.advance(PING)
    assert [message["op"] for message in sim.take()] == ["ping"]


@pytest.mark.parametrize("unknown", [None, ["1"], [2**70], [100]])
def test_an_impossible_pong_is_a_protocol_error(unknown: Any) -> None:
    sim = Sim()
    call = sim.start(one())
    sim.advance(PING)
    *_, ping = sim.take()
    if unknown == [2**70]:
        unknown = [-5]
    sim.pong(ping["id"], unknown)
    error_of(call, ProtocolError)


def test_the_limit_that_a_refusal_tells_is_in_the_error() -> None:
    sim = Sim()
    call = sim.start(batch(1, 2), 3.0)
    (message,) = sim.take()
    sim.refuse(message["id"], "overloaded", limit="rate", allowed=7, retry_ms=9_000)
    error = error_of(call, Overloaded)
    assert (error.limit, error.allowed, error.retry_ms) == ("rate", 7, 9_000)
    for details, told in (
        ({"limit": "in_flight", "allowed": 1}, ("in_flight", 1)),
        ({"field": "count", "max_batch": 5}, ("max_batch", 5)),
        ({"limit": 3, "allowed": "x"}, (None, None)),
        ({"field": "count"}, (None, None)),
    ):
        call = sim.start(batch(1, 2), 3.0)
        (message,) = sim.take()
        sim.refuse(message["id"], "invalid_request", **details)
        refused = error_of(call, InvalidRequest)
        assert (refused.limit, refused.allowed) == told


@pytest.mark.parametrize(
    ("code", "kind"), [("overloaded", Overloaded), ("unavailable", Unavailable)]
)
def test_refused_requests_are_retried_until_the_deadline(
    code: str, kind: type[TallybusError]
) -> None:
    for request in (one(), ReadIndex()):
        sim = Sim()
        call = sim.start(request, 3.0)
        times = []
        while not call.done:
            for message in sim.take():
                times.append(sim.now)
                sim.refuse(message["id"], code)
            sim.advance(MILLISECOND // 2)
        pauses = [b - a for a, b in itertools.pairwise(times)]
        # Without jitter each pause is half of the longest one, which doubles up to its cap.
        longest = [5 * 2**n for n in range(7)] + [500] * 20
        assert [round(pause / MILLISECOND, 1) for pause in pauses] == [
            limit / 2 for limit in longest[: len(pauses)]
        ]
        assert len(pauses) > 10
        error = error_of(call, kind)
        assert (error.request, error.attempts) == (request.op, len(times))
        assert "because" in str(error)
        # Nothing could be tried again in time, so nobody had to wait for the deadline itself.
        assert sim.now <= 1003 * SECOND


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 20))
def test_pauses_are_jittered_within_their_limit(chance: float, refusals: int) -> None:
    sim = Sim(lambda: chance)
    sim.start(one(), 1000.0)
    for number in range(refusals):
        (message,) = (message for message in sim.take() if message["op"] == "submit")
        sim.refuse(message["id"], "overloaded")
        longest = min(5 * MILLISECOND << number, 500 * MILLISECOND)
        sim.advance(longest // 2 - 1)
        assert sim.take() == []
        sim.advance(longest // 2 + 1)


def test_a_refused_request_succeeds_later() -> None:
    sim = Sim()
    call = sim.start(one())
    (message,) = sim.take()
    sim.refuse(message["id"], "overloaded")
    assert sim.take() == []
    sim.advance(5 * MILLISECOND)
    (again,) = sim.take()
    # It was refused, so a duplicate is one of the caller's own making.
    sim.submitted(again["id"], 12, duplicate(0, 0, 10))
    assert call.result().status == Status.DUPLICATE


def test_a_timeout_during_a_retry_is_a_timeout() -> None:
    sim = Sim()
    call = sim.start(one(), 1.0)
    (message,) = sim.take()
    sim.refuse(message["id"], "overloaded")
    sim.advance(SECOND)
    assert sim.take()[0]["op"] == "submit"
    error_of(call, Timeout)


@pytest.mark.parametrize("code", ["overloaded", "unavailable", "invalid_request"])
def test_a_refusal_after_a_loss_leaves_the_outcome_unknown(code: str) -> None:
    sim = Sim()
    call = sim.start(one(9), 0.3)
    sim.take()
    lose(sim)
    while not call.done:
        for message in sim.take():
            sim.refuse(message["id"], code)
        sim.advance(MILLISECOND)
    error = error_of(call, OutcomeUnknown)
    assert error.retry_safe
    assert isinstance(error.__cause__, (Overloaded, Unavailable, InvalidRequest))


def test_the_gateways_timeout_names_the_transaction() -> None:
    sim = Sim()
    call = sim.start(one())
    sim.refuse(sim.take()[0]["id"], "timeout", first=55)
    error = error_of(call, Timeout)
    assert (error.first_tx_id, error.level) == (55, WaitLevel.COMMITTED)
    call = sim.start(one())
    sim.refuse(sim.take()[0]["id"], "timeout", first=None)
    assert error_of(call, Timeout).first_tx_id is None


def test_a_read_outlives_the_gateways_own_limit() -> None:
    sim = Sim()
    call = sim.start(WaitFor(5, WaitLevel.SNAPSHOT), 100.0)
    sim.advance(30 * SECOND)
    sim.refuse(sim.take()[0]["id"], "timeout")
    sim.advance(5 * MILLISECOND)
    again = sim.take()[0]
    assert again["op"] == "wait"
    sim.advance(69 * SECOND + 900 * MILLISECOND)
    sim.refuse(again["id"], "timeout")
    error_of(call, Timeout)


def test_a_lost_id_had_no_effect() -> None:
    sim = Sim()
    call = sim.start(one())
    sim.refuse(sim.take()[0]["id"], "lost", first=55)
    error = error_of(call, LostTransaction)
    assert (error.request, error.tx_id) == ("submit", 55)
    call = sim.start(WaitFor(55, WaitLevel.COMMITTED))
    sim.refuse(sim.take()[0]["id"], "lost")
    assert error_of(call, LostTransaction).tx_id is None


def test_a_lost_id_is_submitted_again_if_that_cannot_apply_it_twice() -> None:
    sim = Sim()
    call = sim.start(one(9))
    sim.refuse(sim.take()[0]["id"], "lost", first=55)
    sim.advance(5 * MILLISECOND)
    (again,) = sim.take()
    sim.submitted(again["id"], 56)
    assert call.result().tx_id == 56


def test_an_outcome_that_the_gateway_does_not_know_is_found_out_by_reference() -> None:
    sim = Sim()
    call = sim.start(one())
    sim.refuse(sim.take()[0]["id"], "outcome_unknown", first=55)
    error = error_of(call, OutcomeUnknown)
    assert (error.first_tx_id, error.retry_safe) == (55, False)
    call = sim.start(one(9))
    sim.refuse(sim.take()[0]["id"], "outcome_unknown", first=55)
    sim.advance(5 * MILLISECOND)
    (again,) = sim.take()
    sim.submitted(again["id"], 60, duplicate(0, 1, 55))
    assert call.result() == Result(
        55, Status.INSUFFICIENT_FUNDS, WaitLevel.COMMITTED, 55, Status.INSUFFICIENT_FUNDS
    )


def test_a_refused_request_is_invalid() -> None:
    sim = Sim()
    call = sim.start(batch(1, 2))
    sim.refuse(sim.take()[0]["id"], "invalid_request", field="count", value=2, index=1)
    error = error_of(call, InvalidRequest)
    assert (error.field, error.value, error.index) == ("count", 2, 1)
    assert "because" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"),
    [("internal", ServerError), ("unsupported_version", ProtocolError), ("?", ProtocolError)],
)
def test_other_errors_end_the_request(code: str, kind: type[TallybusError]) -> None:
    sim = Sim()
    call = sim.start(one(9))
    sim.refuse(sim.take()[0]["id"], code)
    error_of(call, kind)


def test_a_malformed_answer_ends_its_request_alone() -> None:
    sim = Sim()
    calls = [sim.start(one()), sim.start(one())]
    ids = [message["id"] for message in sim.take()]
    sim.reply(ids[0], first=0, count=1, level=2, failures=0)
    error_of(calls[0], ProtocolError)
    sim.submitted(ids[1], 5)
    assert calls[1].result().tx_id == 5


@pytest.mark.parametrize(
    "frames",
    [
        [b"\xc1"],
        [b""],
        [],
        [msgpack.packb({"v": 1})],
        [msgpack.packb({"v": 1, "id": None, "error": "invalid_request", "message": "?"})],
    ],
)
def test_a_message_that_belongs_to_no_request_ends_all(frames: list[bytes]) -> None:
    sim = Sim()
    calls = [sim.start(one()), sim.start(ReadIndex())]
    sim.core.receive(frames, sim.now)
    errors = [error_of(call, ProtocolError) for call in calls]
    assert errors[0] is not errors[1]
    sim.core.receive(frames, sim.now)


def test_answers_to_nobody_are_ignored() -> None:
    sim = Sim()
    call = sim.start(one())
    sim.submitted(12345, 5)
    assert not call.done


def test_a_forgotten_request_is_over() -> None:
    sim = Sim()
    call = sim.start(one())
    (message,) = sim.take()
    sim.core.forget(call)
    sim.core.forget(call)
    error_of(call, ClientClosed)
    sim.submitted(message["id"], 5)
    sim.advance(SECOND)
    assert sim.take() == []
    assert sim.done() == [call]


def test_closing_ends_everything() -> None:
    sim = Sim()
    submits = [sim.start(one()), sim.start(one(9))]
    read = sim.start(ReadIndex())
    refused = sim.start(ReadIndex())
    sim.refuse(sim.take()[-1]["id"], "overloaded")
    sim.connected = False
    unsent = sim.start(one())
    sim.core.close()
    assert [error_of(call, OutcomeUnknown).retry_safe for call in submits] == [False, True]
    for call in (read, refused, unsent):
        error_of(call, ClientClosed)
    assert sim.core.next_wake() is None
    assert not sim.core.has_message


def test_a_ping_names_no_more_than_its_limit() -> None:
    sim = Sim()
    for _ in range(10_001):
        sim.start(ReadIndex())
    oldest = sim.take()[0]["id"]
    sim.advance(PING)
    (ping,) = sim.take()
    assert ping["pending"] == list(range(oldest, oldest + 10_000))


@given(st.data())
def test_every_request_ends_whatever_happens(data: st.DataObject) -> None:
    """Random answers, losses and cuts: nothing hangs, ends twice or is sent again without leave."""
    sim = Sim(lambda: 0.5)
    sim.core = Core(lambda: 0.5, CoreSettings(ping_after=20 * MILLISECOND))
    calls: list[Call[Any]] = []
    finished: list[Call[Any]] = []
    sendings: Counter[bytes] = Counter()
    allowed: Counter[bytes] = Counter()
    open_ids: list[dict[str, Any]] = []
    for number in range(data.draw(st.integers(1, 6))):
        safe = data.draw(st.booleans())
        record = encode_operation(Deposit(number, 5, number + 1 if safe else 0))[0]
        calls.append(sim.start(SubmitOne(record, WaitLevel.COMPUTED), 1.0))
    for _ in range(data.draw(st.integers(0, 40))):
        open_ids += sim.take()
        sim.connected = data.draw(st.booleans())
        sim.flush()
        open_ids += sim.take()
        if open_ids:
            message = open_ids.pop(data.draw(st.integers(0, len(open_ids) - 1)))
            if message["op"] == "ping":
                unknown = [i for i in message["pending"] if data.draw(st.booleans())]
                sim.pong(message["id"], unknown)
            else:
                record = message["payload"][0]
                sendings[record] += 1
                choices = ["answer", "overloaded", "lost", "timeout", "outcome_unknown", "drop"]
                match data.draw(st.sampled_from(choices)):
                    case "answer":
                        sim.submitted(message["id"], 1000)
                    case "drop":
                        sim.advance(0)
                    case code:
                        allowed[record] += code == "overloaded"
                        sim.refuse(message["id"], code)
        sim.advance(data.draw(st.integers(0, 100 * MILLISECOND)))
        finished += sim.done()
    sim.advance(2 * SECOND)
    finished += sim.done()
    assert sorted(map(id, finished)) == sorted(map(id, calls))
    assert sim.core.next_wake() is None
    for record, count in sendings.items():
        assert record[8:16] != bytes(8) or count <= 1 + allowed[record]


# -- fields that came later ------------------------------------------------------------------------


class Later(WaitFor):
    """A request with a field that only gateways of a later revision take."""

    __slots__ = ("colour",)
    newer: ClassVar[Mapping[str, int]] = {"shape": 2, "colour": 3}

    def __init__(self, tx_id: int, colour: str | None = None) -> None:
        super().__init__(tx_id, WaitLevel.COMMITTED)
        self.colour = colour

    def fields(self) -> dict[str, Any]:
        return super().fields() | ({} if self.colour is None else {"colour": self.colour})


def test_a_newer_field_is_sent_once_the_gateway_has_told_that_it_takes_it() -> None:
    sim = Sim()
    call = sim.start(Later(5, "red"))
    (ping,) = sim.take()
    assert (ping["op"], ping["pending"]) == ("ping", [])
    assert not sim.core.has_message, "nothing to do until the answer is there"
    sim.pong(ping["id"], [], revision=3)
    (message,) = sim.take()
    assert (message["op"], message["colour"]) == ("wait", "red")
    sim.reply(message["id"], level=2)
    assert call.result() is WaitLevel.COMMITTED
    sim.start(Later(6, "blue"))
    assert [message["op"] for message in sim.take()] == ["wait"], "what was told is remembered"


@pytest.mark.parametrize("told", [{}, {"revision": 1}, {"revision": 2}])
def test_a_newer_field_is_not_sent_to_an_older_gateway(told: dict[str, int]) -> None:
    sim = Sim()
    call, after = sim.start(Later(5, "red")), sim.start(Later(6))
    sim.pong(sim.take()[0]["id"], [], **told)
    error = error_of(call, InvalidRequest)
    assert error.field == "colour"
    assert f"revision {told.get('revision', 0)}" in error.message
    (message,) = sim.take()
    assert message["tx_id"] == 6, "the request without the field is sent, after the other"
    assert not after.done


def test_a_request_without_its_newer_fields_is_sent_without_asking() -> None:
    sim = Sim()
    sim.start(Later(5))
    assert [message["op"] for message in sim.take()] == ["wait"]


def test_what_a_user_asked_about_the_gateway_is_remembered_too() -> None:
    sim = Sim()
    info = sim.start(AskGateway())
    sim.pong(sim.take()[0]["id"], [], revision=3)
    assert info.result().revision == 3
    sim.start(Later(5, "red"))
    assert [message["op"] for message in sim.take()] == ["wait"]


def test_the_revision_is_asked_for_again_after_a_reconnection() -> None:
    sim = Sim()
    sim.start(AskGateway())
    sim.pong(sim.take()[0]["id"], [], revision=3)
    sim.core.handshake(Handshake.READY, sim.now)
    call = sim.start(Later(5, "red"))
    (ping,) = sim.take()
    assert ping["op"] == "ping"
    sim.pong(ping["id"], [], revision=2)
    assert error_of(call, InvalidRequest).field == "colour"


def test_the_question_for_the_revision_is_repeated_and_keeps_the_order_of_requests() -> None:
    sim = Sim()
    sim.start(WaitFor(1, WaitLevel.COMMITTED))
    calls = [sim.start(Later(5, "red")), sim.start(WaitFor(6, WaitLevel.COMMITTED))]
    first, ping = sim.take()
    assert ping["pending"] == [first["id"]]
    sim.advance(2 * PING)
    again = sim.take()
    assert [message["op"] for message in again] == ["ping", "ping"]
    sim.pong(again[-1]["id"], [], revision=3)
    assert [message["tx_id"] for message in sim.take()] == [5, 6]
    assert not any(call.done for call in calls)


def test_a_request_that_waits_for_the_revision_ends_at_its_deadline() -> None:
    sim = Sim()
    call = sim.start(Later(5, "red"), 1.0)
    sim.advance(2 * SECOND)
    assert "has not said" in str(error_of(call, Unreachable))
    assert sim.core.next_wake() is None
    sim.take()
    sim.start(WaitFor(6, WaitLevel.COMMITTED))
    assert [message["op"] for message in sim.take()] == ["wait"]


def test_a_request_that_waits_for_the_revision_is_told_that_its_key_was_revoked() -> None:
    sim = Sim()
    call = sim.start(Later(5, "red"))
    sim.refuse(sim.take()[0]["id"], "forbidden", revoked=True)
    assert error_of(call, AccessDenied).reason == "revoked"
