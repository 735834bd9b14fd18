"""What a client makes of handshakes, on a simulated clock: refusals, doubts, and trying again."""

from __future__ import annotations

import itertools
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus import AccessDenied, OutcomeUnknown, TallybusError, Unreachable, WaitLevel
from tallybus.client.access import (
    ELSEWHERE_NS,
    FRESH_NS,
    KEPT_NS,
    LONGEST_ELSEWHERE_NS,
    LOOK_LIMIT_NS,
    LOOKS,
    PAUSE_NS,
    REFUSALS,
    SUSPECT_AFTER_NS,
    Access,
    Handshake,
    Look,
)
from tallybus.client.codec import ReadIndex, Request, WaitFor
from tallybus.client.core import MILLISECOND, SECOND, Call, Core, new_call
from tallybus.client.registration import RegisterFunction
from tallybus.client.submit import SubmitOne
from tallybus.operations import Deposit, encode_operation

START = 1_000 * SECOND


class Sim:
    """A core with its clock, in front of a door that tells what the test says."""

    def __init__(self, key: str | None = "ops", places: int = 1) -> None:
        self.now = START
        self.core = Core(lambda: 0.0, access=Access("tcp://ledger:5550", key, START, places))
        self.access = self.core.access
        self.open = False
        self.sent: list[dict[str, Any]] = []

    def start(self, request: Request[Any], seconds: float = 30.0) -> Call[Any]:
        call = new_call(request, self.now, seconds)
        self.core.begin(call, self.now)
        self.pump()
        return call

    def pump(self) -> None:
        """As the shells do: sends what goes, and tells when nothing does."""
        while (frames := self.core.next_message(self.now)) is not None:
            if not self.open:
                self.core.message_refused()
                break
            self.sent.append(msgpack.unpackb(frames[0]))
            self.core.message_sent(self.now)
        if self.core.has_message:
            self.access.stalled(self.now)

    def advance(self, nanoseconds: int) -> None:
        end = self.now + nanoseconds
        while (wake := self.core.next_wake()) is not None and wake <= end:
            self.now = max(self.now, wake)
            self.core.tick(self.now)
            self.pump()
            if self.access.look is not None:
                return
        self.now = end
        self.core.tick(self.now)
        self.pump()

    def handshake(self, seen: Handshake) -> None:
        self.core.handshake(seen, self.now)
        self.open = seen is Handshake.READY
        self.pump()

    def reply(self, **fields: Any) -> None:
        """Answers what was sent last."""
        header = {"v": 1, "id": self.sent[-1]["id"], **fields}
        self.core.receive([msgpack.packb(header)], self.now)
        self.pump()

    def look(self) -> Look | None:
        """Waits until a look is asked for."""
        before = self.now
        self.advance(20 * SECOND)
        if self.access.look is None:
            self.now = before
        return self.access.look

    def see(self, seen: Handshake) -> None:
        """A look finds this, and goes on finding it until it is over."""
        look = self.access.look
        assert look is not None
        for _ in range(1 + LOOK_LIMIT_NS // (10 * MILLISECOND)):
            self.core.looked(seen, self.now)
            if self.access.look is not look or seen not in (Handshake.NOTHING, Handshake.GREETED):
                return
            self.now += 10 * MILLISECOND


def one(user_ref: int = 0) -> SubmitOne:
    return SubmitOne(encode_operation(Deposit(1, 5, user_ref))[0], WaitLevel.COMMITTED)


def error_of(call: Call[Any], kind: type[TallybusError]) -> Any:
    assert call.done
    with pytest.raises(kind) as caught:
        call.result()
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize(
    ("key", "seen", "reason", "words"),
    [
        (None, Handshake.MISMATCH, "encryption", "none was given"),
        ("ops", Handshake.MISMATCH, "encryption", "does not encrypt"),
        ("ops", Handshake.OTHER_KEY, "encryption", "another public key"),
        ("ops", Handshake.REFUSED, "key", "refuses the key 'ops'"),
        ("ops", Handshake.UNCHECKED, "key", "could not check the key 'ops'"),
    ],
)
def test_a_refused_handshake_ends_every_waiting_call(
    key: str | None, seen: Handshake, reason: str, words: str
) -> None:
    sim = Sim(key)
    calls = [sim.start(one()), sim.start(one(7)), sim.start(ReadIndex())]
    sim.handshake(seen)
    errors = [error_of(call, AccessDenied) for call in calls]
    for error in errors:
        assert (error.request, error.reason) == (None, reason)
        assert words in str(error)
        assert "tcp://ledger:5550" in str(error)
    assert errors[0] is not errors[1]
    assert sim.core.outstanding == ()
    assert sim.core.next_wake() is None
    assert not sim.core.has_message
    assert sim.access.connection is None


def test_calls_are_refused_at_once_until_it_is_time_to_try_again() -> None:
    sim = Sim()
    sim.start(one())
    sim.handshake(Handshake.REFUSED)
    sim.now += PAUSE_NS - 1
    error_of(sim.start(one()), AccessDenied)
    assert sim.access.connection is None
    sim.now += 1
    call = sim.start(one())
    assert not call.done
    assert sim.access.connection == 2
    sim.handshake(Handshake.READY)
    assert [message["op"] for message in sim.sent] == ["submit"]
    sim.start(ReadIndex())
    assert len(sim.sent) == 2
    assert sim.access.connection == 2


def test_a_refusal_from_long_ago_is_asked_for_again() -> None:
    sim = Sim()
    sim.now += FRESH_NS + 1
    call = sim.start(one())
    sim.handshake(Handshake.REFUSED)
    assert (call.done, sim.access.connection) == (False, 2)
    sim.handshake(Handshake.REFUSED)
    error_of(call, AccessDenied)


def test_what_a_call_that_was_sent_has_done_stays_unknown() -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    unsafe, safe, read = sim.start(one()), sim.start(one(7)), sim.start(ReadIndex())
    registration = sim.start(RegisterFunction("fee", b"binary", False, 99))
    sim.open = False
    waiting = sim.start(one())
    # The gateway was started anew, and lets this key in no more.
    sim.handshake(Handshake.REFUSED)
    sim.handshake(Handshake.REFUSED)
    for call, retry_safe in ((unsafe, False), (safe, True), (registration, False)):
        error = error_of(call, OutcomeUnknown)
        assert error.retry_safe == retry_safe
        assert isinstance(error.__cause__, AccessDenied)
        assert "refuses the key 'ops'" in str(error)
    error_of(read, AccessDenied)
    error_of(waiting, AccessDenied)


def test_what_was_lost_before_stays_unknown() -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    call = sim.start(one(7))
    sim.reply(error="outcome_unknown", message="?", details={})
    sim.open = False
    sim.handshake(Handshake.REFUSED)
    error_of(call, OutcomeUnknown)


@pytest.mark.parametrize("code", ["overloaded", "unavailable", "lost"])
def test_what_the_gateway_did_not_take_is_refused(code: str) -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    call = sim.start(one(7))
    sim.reply(error=code, message="?", details={})
    assert not call.done
    sim.open = False
    sim.handshake(Handshake.REFUSED)
    error_of(call, AccessDenied)


def test_a_refused_second_half_tells_what_is_committed() -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    call = sim.start(RegisterFunction("fee", b"binary", False, 99))
    header = {"v": 1, "id": sim.sent[-1]["id"], "first": 77, "count": 1, "level": 2, "failures": 0}
    sim.core.receive([msgpack.packb(header), b""], sim.now)
    sim.pump()
    assert sim.sent[-1]["op"] == "transaction"
    sim.handshake(Handshake.REFUSED)
    assert "transaction 77 is committed" in str(error_of(call, AccessDenied))


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        ({"role": "read", "needs": "submit", "key": "ops"}, "role"),
        ({"revoked": True, "key": "ops"}, "revoked"),
        ({}, "role"),
    ],
)
def test_a_forbidden_request_is_not_sent_again(details: dict[str, Any], reason: str) -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    for request in (one(7), one(), ReadIndex(), WaitFor(1, WaitLevel.COMMITTED)):
        call = sim.start(request)
        sim.reply(error="forbidden", message="you may not", details=details)
        error = error_of(call, AccessDenied)
        assert (error.request, error.reason) == (request.op, reason)
        assert "you may not" in str(error)
    assert len(sim.sent) == 4
    # The connection is there, and others of its requests may be allowed.
    assert sim.access.connection == 1


def test_a_submit_that_was_lost_and_then_forbidden_has_an_unknown_outcome() -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    call = sim.start(one(7))
    sim.reply(error="outcome_unknown", message="?", details={})
    sim.advance(100 * MILLISECOND)
    sim.reply(error="forbidden", message="you may not", details={"revoked": True})
    error = error_of(call, OutcomeUnknown)
    assert isinstance(error.__cause__, AccessDenied)


def test_a_gateway_that_asks_for_a_pause_is_given_one() -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    call = sim.start(one(), 2.0)
    for _ in range(3):
        sim.reply(error="overloaded", message="?", details={"limit": "rate", "retry_ms": 300})
        before = len(sim.sent)
        sim.advance(300 * MILLISECOND - 1)
        assert len(sim.sent) == before
        sim.advance(1)
        assert len(sim.sent) == before + 1
    sim.reply(error="overloaded", message="too fast", details={"limit": "rate", "retry_ms": 5_000})
    # It would be over by then.
    assert call.done
    assert "too fast" in str(call.error)


@pytest.mark.parametrize("hint", [0, -5, None, "soon", 1.5, True])
def test_a_pause_that_is_none_changes_nothing(hint: Any) -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    sim.start(one())
    sim.reply(error="overloaded", message="?", details={"retry_ms": hint})
    sim.advance(5 * MILLISECOND)
    assert len(sim.sent) == 2


def test_an_absurd_pause_is_no_error() -> None:
    sim = Sim()
    sim.handshake(Handshake.READY)
    call = sim.start(one())
    sim.reply(error="overloaded", message="?", details={"retry_ms": 2**63})
    assert call.done


def test_a_gateway_with_another_key_is_found_out() -> None:
    sim = Sim()
    sim.advance(5 * SECOND)
    call = sim.start(one())
    began = sim.now
    for look, seen in LOOKS:
        assert sim.look() is look
        sim.see(seen)
    error = error_of(call, AccessDenied)
    assert (error.request, error.reason) == (None, "encryption")
    assert "another public key" in str(error)
    assert SUSPECT_AFTER_NS + KEPT_NS <= sim.now - began < SECOND
    assert (sim.access.look, sim.access.connection) == (None, None)
    # The next time it need not wait for the suspicion.
    sim.now += PAUSE_NS
    sim.start(one())
    assert sim.access.connection == 2
    began = sim.now
    assert sim.look() is Look.KEYED
    assert sim.now == began


@pytest.mark.parametrize("step", range(len(LOOKS)))
@pytest.mark.parametrize("seen", [each for each in Handshake if each not in REFUSALS])
def test_what_may_be_a_dying_gateway_is_none_with_another_key(step: int, seen: Handshake) -> None:
    if seen is LOOKS[step][1]:
        return
    sim = Sim()
    call = sim.start(one())
    for _ in range(4):
        for expected in LOOKS[:step]:
            assert sim.look() is expected[0]
            sim.see(expected[1])
        assert sim.look() is LOOKS[step][0]
        sim.see(seen)
        assert sim.access.look is None
    assert not call.done
    assert sim.access.connection is not None
    sim.advance(30 * SECOND)
    while not call.done:
        sim.see(Handshake.NOTHING)
        sim.advance(30 * SECOND)
    error_of(call, Unreachable)


@pytest.mark.parametrize("seen", sorted(REFUSALS, key=lambda each: each.value))
def test_a_look_that_is_refused_is_a_refusal(seen: Handshake) -> None:
    sim = Sim()
    call = sim.start(one())
    assert sim.look() is Look.KEYED
    sim.see(seen)
    error_of(call, AccessDenied)


def test_looks_become_rare() -> None:
    sim = Sim()
    sim.start(one(), 100.0)
    times = []
    while sim.look() is not None:
        times.append(sim.now)
        sim.see(Handshake.READY)
    assert times[0] == START + SUSPECT_AFTER_NS
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert 10 < len(times) < 20


def test_nothing_is_looked_for_without_a_key_or_need() -> None:
    keyless = Sim(None)
    keyless.start(one())
    assert keyless.look() is None
    sim = Sim()
    assert sim.look() is None
    sim.handshake(Handshake.READY)
    sim.start(one())
    assert sim.look() is None


def test_a_look_ends_when_nobody_waits_or_something_was_sent() -> None:
    sim = Sim()
    sim.start(one(), 1.0)
    assert sim.look() is Look.KEYED
    sim.core.looked(Handshake.NOTHING, sim.now)
    sim.now += SECOND
    sim.core.tick(sim.now)
    assert (sim.access.look, sim.core.outstanding) == (None, ())
    sim.start(one())
    assert sim.look() is Look.KEYED
    sim.handshake(Handshake.READY)
    assert sim.access.look is None
    assert len(sim.sent) == 1


def test_what_speaks_another_protocol_is_tried_again_after_a_pause() -> None:
    sim = Sim()
    call = sim.start(one())
    sim.handshake(Handshake.GARBAGE)
    assert sim.access.connection is None
    sim.advance(PAUSE_NS)
    assert sim.access.connection == 2
    sim.handshake(Handshake.READY)
    assert len(sim.sent) == 1
    assert not call.done


def test_what_speaks_another_protocol_is_tried_again_by_the_next_call() -> None:
    sim = Sim()
    sim.handshake(Handshake.GARBAGE)
    assert sim.core.next_wake() is None
    sim.now += SECOND
    sim.start(one())
    sim.advance(0)
    assert sim.access.connection == 2


def places_tried(sim: Sim, seconds: float) -> list[tuple[int, int]]:
    """At which places it looks, and for how many milliseconds at each."""
    tried = [(sim.access.place, sim.now)]
    end = sim.now + int(seconds * SECOND)
    while sim.now < end:
        sim.advance(10 * MILLISECOND)
        if sim.access.place != tried[-1][0]:
            tried.append((sim.access.place, sim.now))
    return [
        (place, (later - since) // MILLISECOND)
        for (place, since), (_, later) in itertools.pairwise([*tried, (0, sim.now)])
    ]


def test_a_gateway_that_may_be_at_two_places_is_looked_for_in_turn_and_more_patiently() -> None:
    sim = Sim(None, places=2)
    sim.start(one(), seconds=60)
    tried = places_tried(sim, 30)
    assert [place for place, _ in tried[:6]] == [0, 1, 0, 1, 0, 1]
    times = [time for _, time in tried[:-1]]
    assert times[0] == pytest.approx(ELSEWHERE_NS // MILLISECOND, abs=11)
    assert times == sorted(times)
    assert times[-1] <= LONGEST_ELSEWHERE_NS // MILLISECOND + 11
    assert sim.access.connection == len(tried)


def test_where_the_gateway_was_met_it_stays() -> None:
    """What waits to be sent there would be lost, and it is there again after a restart."""
    sim = Sim(None, places=2)
    sim.start(one(), seconds=60)
    sim.advance(ELSEWHERE_NS + 20 * MILLISECOND)
    assert sim.access.place == 1
    sim.handshake(Handshake.READY)
    assert len(sim.sent) == 1
    number = sim.access.connection
    sim.open = False
    sim.start(one(), seconds=60)
    assert {place for place, _ in places_tried(sim, 20)} == {1}
    assert sim.access.connection == number


def test_who_waits_for_nothing_looks_nowhere() -> None:
    sim = Sim(None, places=2)
    call = sim.start(one(), seconds=0.05)
    sim.advance(SECOND)
    error_of(call, Unreachable)
    assert sim.core.next_wake() is None
    assert sim.access.connection == 1
    # But the time counts: the next request need not wait as long again.
    sim.start(one())
    sim.advance(0)
    assert sim.access.place == 1


def test_a_place_that_refuses_is_told_of_and_no_other_is_asked() -> None:
    sim = Sim("ops", places=2)
    call = sim.start(one())
    sim.handshake(Handshake.REFUSED)
    error_of(call, AccessDenied)
    assert sim.access.place == 0


@given(st.data())
def test_every_call_ends_in_time_whatever_handshakes_tell(data: st.DataObject) -> None:
    sim = Sim(data.draw(st.sampled_from([None, "ops"])), data.draw(st.integers(1, 2)))
    calls: list[Call[Any]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        match data.draw(st.sampled_from(["start", "handshake", "look", "advance", "cut"])):
            case "start":
                calls.append(sim.start(one(len(calls) % 2), 1.0))
            case "handshake":
                sim.handshake(data.draw(st.sampled_from(Handshake)))
            case "look" if sim.access.look is not None:
                sim.core.looked(data.draw(st.sampled_from(Handshake)), sim.now)
            case "cut":
                sim.open = False
            case _:
                sim.advance(data.draw(st.integers(0, SECOND)))
    for _ in range(1_000):
        if not sim.core.outstanding:
            break
        sim.advance(SECOND)
        if sim.access.look is not None:
            sim.core.looked(Handshake.NOTHING, sim.now)
            sim.now += MILLISECOND
    assert all(call.done for call in calls)
    assert len({id(call) for call in sim.core.finished}) == len(sim.core.finished) == len(calls)
    assert sim.core.next_wake() is None
