"""Submissions over the lives of transactors: whose outcomes hold."""

import pytest

from tallybus.common.bus.messages import StageStatus
from tallybus.common.record import Level, Status
from tests.unit.services.gateway.rig import Rig, another_transactor, failed, running_submit, told


@pytest.mark.parametrize("level", [Level.COMMITTED, Level.SNAPSHOT])
def test_outcomes_of_a_transactor_that_died_are_void_from_where_the_next_one_began(
    level: Level,
) -> None:
    rig = Rig()
    running_submit(rig, level)
    rig.results(1, 1, 4, [(3, Status.NOT_RUN)])
    another_transactor(rig, 3, 2)
    rig.status("wal", 4)
    rig.status("snapshotter", 4)
    assert rig.answers() == []
    rig.results(1, 3, 2, [(0, Status.NOT_RUN)])
    rig.status("wal", 4)
    rig.status("snapshotter", 4)
    assert failed(rig.answer()) == [(2, Status.NOT_RUN)]


def test_outcomes_before_where_the_next_one_began_hold() -> None:
    rig = Rig()
    running_submit(rig, Level.COMMITTED)
    rig.results(1, 1, 3, [(0, 200), (2, 201)])
    another_transactor(rig, 3, 2)
    rig.results(1, 3, 2)
    rig.status("wal", 4)
    assert failed(rig.answer()) == [(0, 200)]


def test_what_is_durable_is_not_told_before_it_is_known_whose_outcome_it_is() -> None:
    rig = Rig()
    running_submit(rig, Level.COMMITTED)
    rig.results(1, 1, 4)
    rig.lives["transactor"] += 100
    rig.status("wal", 4)
    assert rig.answers() == [], "the log follows one that was not heard of"
    another = StageStatus("transactor", 1, rig.lives["transactor"], 4, 5, 4, start=5)
    rig.core.on_status(another, rig.now)
    rig.status("wal", 4)
    assert told(rig.answer()) == (1, 1, 4, 2)


def test_a_snapshot_does_not_tell_what_the_log_has_not() -> None:
    rig = Rig()
    running_submit(rig, Level.SNAPSHOT)
    rig.results(1, 1, 4)
    rig.lives["transactor"] += 100
    rig.status("snapshotter", 4)
    assert rig.answers() == []
    rig.lives["transactor"] -= 100
    rig.status("wal", 4)
    assert told(rig.answer()) == (1, 1, 4, 3)


def test_a_transactor_that_the_log_does_not_follow_is_not_believed() -> None:
    rig = Rig()
    running_submit(rig, Level.COMPUTED)
    rig.lives["transactor"] += 100
    rig.status("transactor", 4)
    rig.results(1, 1, 4)
    assert rig.answers() == []
    assert rig.asked_again() == []
    rig.lives["transactor"] -= 100
    rig.results(1, 1, 4)
    assert told(rig.answer()) == (1, 1, 4, 1)
