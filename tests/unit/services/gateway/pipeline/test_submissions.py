"""Submissions on their way: their batches, ids and outcomes, and when they are answered."""

from collections.abc import Callable

import numpy as np
import pytest

from tallybus.common.bus.messages import Assigned
from tallybus.common.record import FAILURE_DTYPE, Level, Status
from tests.unit.services.gateway.rig import ME, OTHER, Rig, deposits, failed, told


@pytest.mark.parametrize("level", list(Level))
def test_a_submission_is_answered_when_its_level_is_reached(level: Level) -> None:
    rig = Rig()
    rig.submit(9, 3, level)
    (request,) = rig.sent()
    assert (request.gateway, request.request, request.count) == (ME, 1, 3)
    assert bytes(request.records) == deposits(3).tobytes()
    events: dict[Level, Callable[[], None]] = {
        Level.NONE: lambda: rig.assign((1, 1, 3)),
        Level.COMPUTED: lambda: rig.results(1, 1, 3, [(1, Status.INSUFFICIENT_FUNDS)]),
        Level.COMMITTED: lambda: rig.status("wal", 3),
        Level.SNAPSHOT: lambda: rig.status("snapshotter", 3),
    }
    for reached, event in events.items():
        assert rig.answers() == []
        event()
        if reached is level:
            break
    answer = rig.answer()
    assert told(answer) == (9, 1, 3, level)
    assert failed(answer) == ([] if level is Level.NONE else [(1, Status.INSUFFICIENT_FUNDS)])
    rig.results(1, 1, 3)
    rig.hear(3)
    assert rig.answers() == []
    assert rig.core.link.weight == 0


def test_an_index_that_was_reached_before_the_outcome_counts() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.SNAPSHOT)
    rig.sent()
    rig.status("wal", 2)
    rig.status("snapshotter", 2)
    assert rig.answers() == []
    rig.results(1, 1, 2)
    assert told(rig.answer()) == (1, 1, 2, Level.SNAPSHOT)


def test_an_index_in_the_middle_of_a_submission_does_not_answer_it() -> None:
    rig = Rig()
    rig.submit(1, 3, Level.COMMITTED)
    rig.sent()
    rig.results(1, 1, 3)
    rig.status("wal", 2)
    assert rig.answers() == []
    rig.status("wal", 3)
    assert len(rig.answers()) == 1


def test_small_submissions_share_a_batch_and_get_their_own_outcomes() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED, client=b"a")
    rig.submit(1, 1, Level.COMMITTED, client=b"b")
    rig.submit(2, 3, Level.COMPUTED, client=b"a")
    rig.submit(7, 2, Level.NONE, client=b"d")
    (request,) = rig.sent()
    assert request.count == 8
    rig.results(1, 21 - 20, 8, [(0, 1), (2, 5), (3, 6), (5, Status.DUPLICATE, 4, 0), (7, 8)])
    answers = {(a["client"], a["id"]): a for a in rig.answers()}
    assert sorted(answers) == [(b"a", 1), (b"a", 2), (b"d", 7)]
    assert told(answers[b"a", 1]) == (1, 1, 2, 1)
    assert failed(answers[b"a", 1]) == [(0, 1)]
    assert told(answers[b"a", 2]) == (2, 4, 3, 1)
    assert failed(answers[b"a", 2]) == [(0, 6), (2, Status.DUPLICATE)]
    row = np.frombuffer(answers[b"a", 2]["payload"][0], FAILURE_DTYPE)[1]
    assert (row["duplicate_of"], row["original_status"]) == (4, 0)
    assert told(answers[b"d", 7]) == (7, 7, 2, 0)
    rig.status("wal", 8)
    answer = rig.answer()
    assert told(answer) == (1, 3, 1, Level.COMMITTED)
    assert failed(answer) == [(0, 5)]


def test_submissions_of_a_client_keep_their_order() -> None:
    rig = Rig(capacity=10_000)
    sizes = [1, 50, 2, 49, 1, 50]
    for number, size in enumerate(sizes):
        rig.submit(number, size)
    requests = rig.sent()
    assert [r.count for r in requests] == [1, 50, 2, 50, 50]
    first = 1
    for request in requests:
        rig.results(request.request, first, request.count)
        first += request.count
    firsts = [a["first"] for a in sorted(rig.answers(), key=lambda a: int(a["id"]))]
    assert firsts == [1 + sum(sizes[:place]) for place in range(len(sizes))]


def test_results_in_parts_make_one_answer() -> None:
    rig = Rig()
    rig.submit(1, 5, Level.COMPUTED)
    rig.sent()
    rig.results(1, 1, 2, [(1, 5)])
    assert rig.answers() == []
    rig.results(1, 3, 3, [(0, 6), (2, 7, 1, 0)])
    answer = rig.answer()
    assert told(answer) == (1, 1, 5, 1)
    assert failed(answer) == [(1, 5), (2, 6), (4, 7)]


def test_outcomes_before_the_ids_or_without_them_are_enough() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED)
    rig.sent()
    rig.submit(2, 2, Level.NONE)
    rig.sent()
    rig.results(1, 1, 2)
    rig.results(2, 3, 2)
    assert [told(a) for a in rig.answers()] == [(1, 1, 2, 1), (2, 3, 2, 0)]
    rig.assign((1, 1, 2), (2, 3, 2))
    assert rig.answers() == []


def test_outcomes_of_other_gateways_only_move_the_index() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED)
    rig.sent()
    rig.results(1, 1, 4, [(0, 1)], gateway=OTHER)
    rig.core.on_assigned(Assigned(1, [[OTHER, 1, 1, 4]]))
    assert rig.answers() == []
    assert rig.core.progress.computed == 4
    rig.results(1, 5, 2)
    assert told(rig.answer()) == (1, 5, 2, 1)


def test_repeated_and_overlapping_outcomes_change_nothing() -> None:
    rig = Rig()
    rig.submit(1, 4, Level.COMPUTED)
    rig.sent()
    rig.results(1, 1, 3, [(0, 1)])
    rig.results(1, 1, 3, [(0, 1)])
    rig.results(1, 1, 4, [(0, 1), (3, 5)])
    assert failed(rig.answer()) == [(0, 1), (3, 5)]


def test_nothing_leaves_before_the_transactor_was_heard() -> None:
    rig = Rig(heard=False)
    rig.submit(1, 1, Level.COMPUTED)
    assert rig.sent() == []
    rig.hear(40)
    assert len(rig.sent()) == 1
    rig.results(1, 41, 1)
    assert told(rig.answer()) == (1, 41, 1, 1)
