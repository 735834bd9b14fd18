"""Statuses of transactions that are computed and not readable yet."""

import numpy as np

from tallybus.common.bus.messages import Answer, ResultsGone
from tallybus.common.record import Level, Stage, Status
from tests.unit.services.gateway.rig import (
    OTHER,
    Rig,
    another_transactor,
    keys,
    running_submit,
    snapshot_rows,
    stages,
    told,
)


def test_statuses_are_told_at_every_stage() -> None:
    rig = Rig()
    rig.results(1, 1, 8, [(2, 5), (5, Status.DUPLICATE, 1, 0), (7, 200)], gateway=OTHER)
    rig.sequencer(9)
    rig.status("wal", 6)
    rig.status("snapshotter", 4)
    rig.ask("status", 1, keys(9, 7, 5, 6, 8, 3, 1, 10, 0, 3))
    (query,) = rig.queries()
    assert (query.what, np.frombuffer(query.keys, "<u8").tolist()) == ("status", [3, 1, 3])
    error = (Stage.ERROR, 5, 0)
    rows = snapshot_rows(error, (Stage.ON_SNAPSHOT, 0, 0), error)
    rig.core.on_answer(Answer(query.query, 4, values=rows))
    assert stages(rig.answer()) == [
        (Stage.PENDING, 0, 0),
        (Stage.COMPUTED, 0, 0),
        (Stage.COMMITTED, 0, 0),
        (Stage.ERROR, Status.DUPLICATE, 1),
        (Stage.ERROR, 200, 0),
        error,
        (Stage.ON_SNAPSHOT, 0, 0),
        (Stage.UNKNOWN, 0, 0),
        (Stage.UNKNOWN, 0, 0),
        error,
    ]


def test_statuses_of_what_became_readable_meanwhile_keep_their_outcome() -> None:
    rig = Rig()
    rig.results(1, 1, 4, [(3, 5)], gateway=OTHER)
    rig.status("wal", 4)
    rig.status("snapshotter", 2)
    rig.ask("status", 1, keys(1, 4))
    (query,) = rig.queries()
    rig.status("snapshotter", 4)
    rig.core.on_answer(Answer(query.query, 4, values=snapshot_rows((Stage.ON_SNAPSHOT, 0, 0))))
    assert stages(rig.answer()) == [(Stage.ON_SNAPSHOT, 0, 0), (Stage.ERROR, 5, 0)]


def test_a_committed_transaction_whose_outcome_was_missed_is_not_told_as_success() -> None:
    rig = Rig()
    rig.results(1, 1, 2, gateway=OTHER)
    rig.sequencer(4)
    rig.status("wal", 4)
    rig.ask("status", 1, keys(2, 3, 4))
    assert [stage for stage, _, _ in stages(rig.answer())] == [
        Stage.COMMITTED,
        Stage.PENDING,
        Stage.PENDING,
    ]


def test_statuses_from_before_this_gateway_wait_for_the_snapshot() -> None:
    rig = Rig(heard=False)
    rig.sequencer(8)
    rig.status("transactor", 8)
    rig.status("wal", 8)
    rig.status("snapshotter", 5)
    rig.ask("status", 1, keys(7, 8))
    assert rig.queries() == []
    assert rig.answers() == []
    rig.status("snapshotter", 8)
    (query,) = rig.queries()
    assert np.frombuffer(query.keys, "<u8").tolist() == [7, 8]


def test_after_a_hole_in_the_outcomes_statuses_are_not_made_up() -> None:
    rig = Rig()
    rig.results(1, 1, 2, gateway=OTHER)
    rig.core.on_results_gone(ResultsGone(5))
    rig.results(1, 5, 2, gateway=OTHER)
    rig.sequencer(6)
    rig.ask("status", 1, keys(3))
    assert rig.answers() == []
    rig.status("snapshotter", 6)
    assert len(rig.queries()) == 1


def test_void_outcomes_are_not_shown_as_statuses() -> None:
    rig = Rig()
    rig.results(1, 1, 2, gateway=OTHER)
    rig.results(2, 3, 4, [(0, 5), (2, 6)], gateway=OTHER)
    rig.new_term(5, expected=1)
    rig.results(2, 3, 2, [(0, 5)], gateway=OTHER, term=1)
    rig.results(3, 5, 2, gateway=OTHER)
    rig.ask("status", 1, keys(1, 3, 5, 6))
    assert [stage for stage, _, _ in stages(rig.answer())] == [
        Stage.COMPUTED,
        Stage.ERROR,
        Stage.COMPUTED,
        Stage.COMPUTED,
    ]


def test_statuses_follow_the_transactor_that_executed_again() -> None:
    rig = Rig()
    running_submit(rig, Level.NONE)
    assert told(rig.answer()) == (1, 1, 4, 0)
    rig.results(1, 1, 4, [(1, 200), (2, 201), (3, 202)])
    another_transactor(rig, 3, 2)
    rig.ask("status", 2, keys(2, 3, 4))
    assert stages(rig.answer()) == [
        (Stage.ERROR, 200, 0),
        (Stage.PENDING, 0, 0),
        (Stage.PENDING, 0, 0),
    ]
    rig.results(1, 3, 2, [(1, 203)])
    rig.ask("status", 3, keys(2, 3, 4))
    assert stages(rig.answer()) == [
        (Stage.ERROR, 200, 0),
        (Stage.COMPUTED, 0, 0),
        (Stage.ERROR, 203, 0),
    ]
