"""Submissions over the terms of sequencers: what is sent again, what is void, what is lost."""

import pytest

from tallybus.common.bus.link import STALL_NS, STALL_REPEATS
from tallybus.common.bus.messages import Assigned, StageStatus
from tallybus.common.record import MAX_U64, Level
from tallybus.services.gateway.pipeline.submissions import ASK_AGAIN_NS
from tests.unit.services.gateway.rig import ME, OTHER, Rig, told


def test_uncomputed_requests_go_to_a_new_sequencer() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED)
    rig.sent()
    rig.submit(2, 2, Level.COMPUTED)
    rig.sent()
    rig.assign((1, 1, 2), (2, 3, 2))
    rig.results(1, 1, 2)
    assert len(rig.answers()) == 1
    rig.new_term(3, expected=2)
    assert [(r.request, r.oldest, r.told) for r in rig.sent()] == [(2, 2, 0)]
    rig.results(2, 9 - 6, 2, term=1)
    assert rig.answers() == [], "an outcome of the old term is void"
    rig.results(8, 3, 5, gateway=OTHER)
    rig.results(2, 8, 2)
    assert told(rig.answer()) == (2, 8, 2, 1)


def test_an_id_that_was_told_asks_for_the_same_again() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.NONE)
    rig.sent()
    rig.assign((1, 1, 2))
    assert told(rig.answer()) == (1, 1, 2, 0)
    rig.new_term(1, expected=1)
    (request,) = rig.sent()
    assert (request.request, request.told) == (1, 1)


def test_what_a_new_sequencer_cannot_give_its_ids_again_is_lost_and_never_sent_again() -> None:
    rig = Rig()
    rig.submit(1, 1, Level.COMPUTED)
    rig.sent()
    rig.submit(2, 2, Level.NONE, client=b"a")
    rig.submit(2, 1, Level.COMMITTED, client=b"b")
    rig.sent()
    rig.assign((2, 2, 3))
    assert told(rig.answer()) == (2, 2, 2, 0)
    rig.new_term(1, expected=1)
    assert [(r.request, r.told) for r in rig.sent()] == [(1, 0), (2, 2)]
    rig.core.on_assigned(Assigned(rig.term, [[ME, 2, 0, 3]]))
    answer = rig.answer()
    assert (answer["client"], answer["error"]) == (b"b", "lost")
    rig.new_term(1, expected=1)
    again = rig.sent()
    assert [r.told for r in again if r.request == 2] in ([], [MAX_U64])


def test_computed_and_not_durable_in_a_lost_term_is_lost() -> None:
    rig = Rig()
    for number, level in ((1, Level.COMMITTED), (2, Level.COMMITTED), (3, Level.SNAPSHOT)):
        rig.submit(number, 2, level)
        rig.sent()
        rig.results(number, 2 * number - 1, 2)
    rig.status("wal", 2)
    assert [a["id"] for a in rig.answers()] == [1]
    rig.new_term(3, expected=2)
    answers = rig.answers()
    assert sorted((a["id"], a["error"]) for a in answers) == [(2, "lost"), (3, "lost")]
    rig.results(1, 3, 4, gateway=OTHER)
    rig.status("wal", 6)
    rig.status("snapshotter", 6)
    assert rig.answers() == []
    rig.submit(4, 1, Level.COMPUTED)
    (request,) = rig.sent()
    assert (request.request, request.oldest) == (4, 4), "what was computed does not come again"


def test_a_submission_of_which_a_part_is_in_the_log_is_not_called_lost() -> None:
    rig = Rig()
    rig.submit(1, 4, Level.COMMITTED)
    rig.sent()
    rig.results(1, 1, 4)
    rig.new_term(3, expected=2)
    assert rig.answer()["error"] == "outcome_unknown"


def test_a_batch_that_was_cut_ends_as_unknown_even_if_its_ids_were_never_heard() -> None:
    rig = Rig()
    rig.submit(1, 4, Level.COMMITTED)
    rig.sent()
    rig.new_term(3, expected=2)
    rig.results(1, 1, 2, term=1)
    rig.results(9, 3, 2, gateway=OTHER)
    rig.sequencer(4)
    assert [a["error"] for a in rig.answers()] == ["outcome_unknown"], "and not: lost"
    assert rig.sent() == []


@pytest.mark.parametrize("stage", ["wal", "snapshotter", "transactor"])
def test_indexes_of_a_term_that_was_not_announced_yet_wait(stage: str) -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMMITTED)
    rig.sent()
    rig.submit(2, 1, Level.SNAPSHOT)
    rig.sent()
    rig.results(1, 1, 2)
    rig.results(2, 3, 1)
    # Others' transactions 1 to 3 of term 2 are durable before this gateway hears of the term.
    rig.status(stage, 3, term=2)
    assert rig.answers() == []
    rig.new_term(1, expected=1)
    assert sorted((a["id"], a["error"]) for a in rig.answers()) == [(1, "lost"), (2, "lost")]


def test_outcomes_of_an_older_term_are_void_from_where_the_next_one_began_not_the_last() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMMITTED)
    rig.sent()
    rig.new_term(1, expected=1)
    # Term 2 gave 1 to 20 to others; term 3 goes on behind them.
    rig.new_term(21, expected=1)
    rig.results(1, 1, 2, term=1)
    rig.status("wal", 20)
    assert rig.answers() == [], "term 1 is void from 1 on, although term 3 begins at 21"


def test_ids_and_outcomes_of_a_term_before_are_void_from_its_successors_start() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.NONE)
    rig.sent()
    rig.new_term(1, expected=1)
    rig.assign((1, 1, 2), term=1)
    rig.results(1, 1, 2, term=1)
    assert rig.answers() == []
    assert rig.core.progress.computed == 0
    rig.sent()
    rig.assign((1, 1, 2))
    assert told(rig.answer()) == (1, 1, 2, 0)


def test_outcomes_of_a_term_that_was_not_announced_yet_are_asked_for_later() -> None:
    rig = Rig()
    rig.submit(1, 1, Level.COMPUTED)
    rig.sent()
    rig.results(1, 1, 1, term=2)
    assert rig.answers() == []
    rig.new_term(1, expected=1)
    rig.now += ASK_AGAIN_NS
    rig.status("transactor", 1)
    assert rig.asked_again() == [(1, 1)]
    rig.results(1, 1, 1)
    assert told(rig.answer()) == (1, 1, 1, 1)


def test_a_status_of_an_older_sequencer_changes_nothing() -> None:
    rig = Rig()
    rig.new_term(1, expected=1)
    old = StageStatus("sequencer", 1, 11, 50, 51, 0, start=1, gateways={ME: 9})
    rig.core.on_status(old, rig.now)
    assert (rig.core.term, rig.core.progress.sequenced) == (2, 0)


def test_a_stalled_request_is_sent_again() -> None:
    rig = Rig()
    rig.submit(1)
    assert len(rig.sent()) == 1
    rig.expected = 1
    rig.now += STALL_NS
    for _ in range(STALL_REPEATS + 1):
        rig.sequencer()
    assert [r.request for r in rig.sent()] == [1]
