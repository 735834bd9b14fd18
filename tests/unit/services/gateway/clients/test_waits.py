"""Who waits for which mark."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from tallybus.services.gateway.clients.waits import Marks


@dataclass(eq=False)
class Waiting:
    name: str
    done: bool = False


def names(waiters: object) -> list[str]:
    return [waiter.name for waiter in waiters]  # type: ignore[attr-defined]


def filled(*marks: int) -> tuple[Marks[Waiting], list[Waiting]]:
    waits: Marks[Waiting] = Marks()
    waiters = [Waiting(f"{place}:{mark}") for place, mark in enumerate(marks)]
    for waiter, mark in zip(waiters, marks, strict=True):
        waits.add(mark, waiter)
    return waits, waiters


def test_waiters_come_out_by_mark_then_in_the_order_they_came() -> None:
    waits, _ = filled(5, 3, 5, 1, 3)
    assert names(waits.reached(0)) == []
    assert names(waits.reached(3)) == ["3:1", "1:3", "4:3"]
    assert names(waits.reached(4)) == []
    assert names(waits.reached(2**64)) == ["0:5", "2:5"]
    assert names(waits.reached(2**64)) == []


def test_the_answered_are_passed_over() -> None:
    waits, waiters = filled(1, 2, 3)
    waiters[1].done = True
    assert waits.next_mark() == 1
    waiters[0].done = True
    assert waits.next_mark() == 3
    assert names(waits.reached(9)) == ["2:3"]
    assert waits.next_mark() is None


def test_the_next_mark_is_that_of_a_waiter_that_still_waits() -> None:
    waits, waiters = filled(4, 2)
    assert waits.next_mark() == 2
    waiters[1].done = True
    assert waits.next_mark() == 4
    assert names(waits.reached(4)) == ["0:4"]


def test_one_answered_while_others_come_out_is_passed_over() -> None:
    waits, waiters = filled(1, 2)
    reached = waits.reached(5)
    assert next(reached).name == "0:1"
    waiters[1].done = True
    assert list(reached) == []


def test_a_waiter_may_be_added_while_others_come_out() -> None:
    waits, _ = filled(1, 2)
    seen = []
    for waiter in waits.reached(5):
        seen.append(waiter.name)
        if len(seen) == 1:
            waits.add(3, Waiting("later"))
            waits.add(9, Waiting("much later"))
    assert seen == ["0:1", "1:2", "later"]
    assert waits.next_mark() == 9


def test_the_answered_do_not_pile_up_behind_a_mark_that_is_never_reached() -> None:
    waits, _ = filled(7)
    for _ in range(20_000):
        waiter = Waiting("timed out")
        waits.add(2**63, waiter)
        waiter.done = True
        list(waits.reached(3))
        waits.next_mark()
    assert len(waits) < 2_000


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())), st.lists(st.integers(0, 25)))
def test_each_waiter_comes_out_at_most_once_and_never_early(
    marks: list[tuple[int, bool]], values: list[int]
) -> None:
    waits: Marks[Waiting] = Marks()
    expected = []
    for place, (mark, done) in enumerate(marks):
        waiter = Waiting(str(place))
        waits.add(mark, waiter)
        waiter.done = done
        if not done:
            expected.append((mark, place))
    expected.sort()
    for value in values:
        due = [place for mark, place in expected if mark <= value]
        expected = [(mark, place) for mark, place in expected if mark > value]
        assert names(waits.reached(value)) == [str(place) for place in due]
        assert waits.next_mark() == (expected[0][0] if expected else None)
