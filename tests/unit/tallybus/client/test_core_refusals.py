"""Answers that are errors: what is tried again, what ends a request, and as which exception."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus import (
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
    WaitLevel,
)
from tallybus.client.codec import ReadIndex, WaitFor
from tallybus.client.core import MILLISECOND, SECOND
from tests.unit.tallybus.client.simulated import Sim, batch, duplicate, error_of, lose, one


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
