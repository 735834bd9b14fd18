"""The ledger's time: never back, never still, and not ahead of what anybody has accepted."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.times import steady_ns
from tallybus.services.sequencer.clock import LIMIT_NS, SLEW, LedgerClock, Moment
from tallybus.services.transactor.stamps import LastStamp

SECOND = 10**9
HOUR = 3_600 * SECOND
NOON = 1_700_000_000 * SECOND


def started(last: int = 0, elapsed: int = 0, wall: int = NOON, steady: int = 0) -> LedgerClock:
    clock = LedgerClock()
    clock.start(last, elapsed, Moment(wall, steady))
    return clock


def test_an_undisturbed_wall_clock_is_the_ledgers_time() -> None:
    clock = started()
    for passed in (0, 1, 1_000, SECOND, 90 * 24 * HOUR):
        assert clock.look(Moment(NOON + passed, passed)) == NOON + passed
    assert not clock.held
    assert not clock.behind
    assert clock.ahead_ns == 0


def test_a_start_with_the_clock_back_goes_on_from_the_last_stamp() -> None:
    clock = started(last=NOON + HOUR)
    assert clock.time_ns == NOON + HOUR
    assert clock.behind
    assert clock.look(Moment(NOON + SECOND, SECOND)) == NOON + HOUR + SECOND
    # Somebody sets it right: it is followed again.
    assert clock.look(Moment(NOON + HOUR + 3 * SECOND, 2 * SECOND)) == NOON + HOUR + 3 * SECOND
    assert not clock.behind


def test_a_long_downtime_is_no_jump() -> None:
    clock = started(last=NOON - 365 * 24 * HOUR)
    assert (clock.time_ns, clock.held) == (NOON, False)


def test_a_jump_ahead_is_not_followed_until_it_is_accepted() -> None:
    clock = started()
    for passed in (SECOND, 2 * SECOND, HOUR):
        assert clock.look(Moment(NOON + 5 * HOUR + passed, passed)) == NOON + passed
        assert clock.held
        assert clock.ahead_ns == 5 * HOUR
    clock.accept(Moment(NOON + 6 * HOUR, HOUR))
    assert (clock.time_ns, clock.held, clock.ahead_ns) == (NOON + 6 * HOUR, False, 0)
    assert clock.look(Moment(NOON + 6 * HOUR + 7, HOUR + 7)) == NOON + 6 * HOUR + 7


def test_a_jump_ahead_that_is_taken_back_leaves_nothing() -> None:
    clock = started()
    clock.look(Moment(NOON + 5 * HOUR, SECOND))
    assert clock.look(Moment(NOON + 2 * SECOND, 2 * SECOND)) == NOON + 2 * SECOND
    assert not clock.held


def test_a_jump_back_goes_on_with_the_steady_clock() -> None:
    clock = started()
    for passed in (SECOND, 2 * SECOND, 5 * HOUR):
        assert clock.look(Moment(NOON - HOUR + passed, passed)) == NOON + passed
    assert clock.behind
    clock.accept(Moment(NOON + 4 * HOUR, 5 * HOUR))
    assert clock.time_ns == NOON + 5 * HOUR, "there is no way back"


def test_a_small_step_back_slows_the_time_until_the_wall_clock_has_caught_up() -> None:
    clock = started()
    before = NOON
    for passed in range(0, 600 * SECOND, SECOND // 10):
        now = clock.look(Moment(NOON - 5 * SECOND + passed, passed))
        assert now >= before + (passed and SECOND // 10 * (SLEW - 1) // SLEW)
        before = now
    assert clock.ahead_ns == 0


def test_a_step_within_the_limit_is_followed_at_once() -> None:
    clock = started()
    assert clock.look(Moment(NOON + LIMIT_NS, 0)) == NOON + LIMIT_NS
    assert not clock.held
    clock = started()
    assert clock.look(Moment(NOON + LIMIT_NS + 1, 0)) == NOON
    assert clock.held


def test_many_small_steps_are_not_followed_like_a_large_one() -> None:
    clock = started()
    wall, steady = NOON, 0
    for _ in range(100):
        wall, steady = wall + 50 * SECOND, steady + SECOND
        clock.look(Moment(wall, steady))
    assert clock.held
    assert clock.time_ns < NOON + 100 * SECOND + 2 * LIMIT_NS


def test_a_clock_that_is_slewed_is_followed_for_ever() -> None:
    clock = started()
    for second in range(0, 100_000, 10):
        wall = NOON + second * SECOND * 1_005 // 1_000
        assert clock.look(Moment(wall, second * SECOND)) == wall
        assert not clock.held


def test_a_suspended_machine_is_no_jump_where_the_steady_clock_goes_on() -> None:
    clock = started()
    night = 8 * HOUR
    assert clock.look(Moment(NOON + night, night)) == NOON + night
    assert not clock.held


def test_a_suspension_that_the_steady_clock_does_not_know_is_a_jump() -> None:
    clock = started()
    assert clock.look(Moment(NOON + 8 * HOUR, SECOND)) == NOON + SECOND
    assert clock.held


def test_a_new_sequencer_does_not_take_a_jump_for_downtime() -> None:
    """The transactor lived on, and knows how long ago the last stamp was given."""
    clock = started(last=NOON, elapsed=10 * SECOND, wall=NOON + 5 * HOUR)
    assert (clock.time_ns, clock.held) == (NOON + 10 * SECOND, True)
    clock = started(last=NOON, elapsed=10 * SECOND, wall=NOON + 10 * SECOND)
    assert (clock.time_ns, clock.held) == (NOON + 10 * SECOND, False)
    clock = started(last=NOON, elapsed=10 * SECOND, wall=NOON - HOUR)
    assert (clock.time_ns, clock.behind) == (NOON + 10 * SECOND, True)


@given(
    st.integers(0, NOON),
    st.lists(st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 10**6), st.booleans())),
)
def test_it_never_goes_back_and_never_stands_still(
    last: int, steps: list[tuple[int, int, bool]]
) -> None:
    clock = started(last=last)
    before, steady = clock.time_ns, 0
    assert before >= last
    for off_ms, passed_ms, accept in steps:
        passed = passed_ms * 10**6
        steady += passed
        moment = Moment(NOON + steady + off_ms * 10**6, steady)
        if accept:
            clock.accept(moment)
        now = clock.look(moment)
        assert now >= before + passed - passed // SLEW
        before = now


def test_a_wall_clock_before_1970_does_no_harm() -> None:
    clock = started(wall=-5)
    assert clock.time_ns >= 0


def test_the_steady_clock_advances_as_time_passes() -> None:
    first, began = steady_ns(), time.monotonic_ns()
    while time.monotonic_ns() - began < 2_000_000:
        pass
    assert 2_000_000 <= steady_ns() - first < 60 * SECOND


def test_the_transactor_knows_how_long_ago_the_last_stamp_was_given() -> None:
    stamp = LastStamp()
    stamp.tick(5)
    assert (stamp.value, stamp.elapsed_ns) == (0, 0)
    stamp.recovered(NOON)
    stamp.tick(10)
    assert (stamp.value, stamp.elapsed_ns) == (NOON, 0), "nobody knows how long it was down"
    stamp.given(NOON + 1)
    assert (stamp.value, stamp.elapsed_ns) == (NOON + 1, 1)
    stamp.tick(100)
    stamp.tick(350)
    assert stamp.elapsed_ns == 250
    stamp.given(NOON + 9)
    stamp.tick(400)
    assert (stamp.value, stamp.elapsed_ns) == (NOON + 9, 1)


@pytest.mark.parametrize("accept", [False, True])
def test_accepting_what_has_not_jumped_changes_nothing(accept: bool) -> None:
    clock = started()
    moment = Moment(NOON + 3 * SECOND, SECOND)
    if accept:
        clock.accept(moment)
    assert clock.look(moment) == NOON + 3 * SECOND
