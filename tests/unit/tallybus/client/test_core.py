"""The client's core on a simulated clock: every request ends, and what is sent meanwhile."""

from collections import Counter
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus import (
    ClientClosed,
    InvalidRequest,
    OutcomeUnknown,
    ProtocolError,
    Result,
    Status,
    Timeout,
    Unreachable,
    WaitLevel,
)
from tallybus.client.codec import ReadIndex
from tallybus.client.core import MILLISECOND, SECOND, Call, Core, CoreSettings
from tallybus.client.submit import SubmitOne
from tallybus.operations import Deposit, encode_operation
from tests.unit.tallybus.client.simulated import Sim, batch, error_of, one


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
