"""What the client's core does when it may be lost: pings, sending again, unknown outcomes."""

from typing import Any

import pytest

from tallybus import BatchResult, OutcomeUnknown, ProtocolError, Status, WaitLevel
from tallybus.client.codec import ReadIndex, WaitFor
from tallybus.client.core import MILLISECOND, SECOND
from tests.unit.tallybus.client.simulated import PING, Sim, batch, duplicate, error_of, lose, one


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


def test_a_ping_names_no_more_than_its_limit() -> None:
    sim = Sim()
    for _ in range(10_001):
        sim.start(ReadIndex())
    oldest = sim.take()[0]["id"]
    sim.advance(PING)
    (ping,) = sim.take()
    assert ping["pending"] == list(range(oldest, oldest + 10_000))
