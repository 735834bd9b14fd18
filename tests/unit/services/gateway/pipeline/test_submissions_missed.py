"""Outcomes that the gateway missed: asked for again, and never taken for success."""

from tallybus.common.bus.messages import ResultsGone
from tallybus.common.record import Level
from tallybus.services.gateway.pipeline.submissions import ASK_AGAIN_NS
from tests.unit.services.gateway.rig import MAX_WAIT_MS, MS, OTHER, Rig, failed, told


def test_missed_outcomes_are_asked_for_and_never_taken_for_success() -> None:
    rig = Rig()
    for request in (1, 2, 3):
        rig.submit(request, 1, Level.COMPUTED)
        rig.sent()
    rig.results(1, 1, 1)
    rig.results(3, 3, 1)
    assert [a["id"] for a in rig.answers()] == [1]
    rig.now += ASK_AGAIN_NS
    rig.status("transactor", 3)
    assert rig.asked_again() == [(2, 3)]
    rig.status("transactor", 3)
    assert rig.asked_again() == [], "not with every status"
    rig.now += ASK_AGAIN_NS
    rig.status("transactor", 3)
    assert rig.asked_again() == [(2, 3)], "the answer may be lost, too"
    rig.results(2, 2, 1, [(0, 5)])
    rig.results(3, 3, 1)
    answers = rig.answers()
    assert [(a["id"], failed(a)) for a in answers] == [(2, [(0, 5)]), (3, [])]


def test_a_durable_index_ahead_of_missed_outcomes_answers_nothing() -> None:
    rig = Rig()
    rig.submit(1, 1, Level.COMMITTED)
    rig.sent()
    rig.status("wal", 1)
    rig.status("snapshotter", 1)
    assert rig.answers() == []
    rig.results(1, 1, 1, [(0, 5)])
    assert failed(rig.answer()) == [(0, 5)]


def test_outcomes_that_are_gone_end_as_unknown() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED)
    rig.sent()
    rig.submit(2, 1, Level.COMPUTED)
    rig.sent()
    rig.submit(3, 1, Level.COMPUTED)
    rig.core.tick(rig.now)
    rig.assign((1, 1, 2))
    rig.core.on_results_gone(ResultsGone(3))
    # Where the second's ids are nobody knows; the third was not sent yet.
    answers = rig.answers()
    assert [(a["id"], a["error"]) for a in answers] == [
        (1, "outcome_unknown"),
        (2, "outcome_unknown"),
    ]
    assert answers[0]["details"]["first"] == 1
    (request,) = rig.sent()
    assert (request.request, request.told) == (3, 0)
    rig.results(2, 3, 1)
    rig.results(3, 4, 1)
    assert told(rig.answer()) == (3, 4, 1, 1)
    assert rig.core.link.weight == 0


def test_a_batch_with_unknown_ids_is_never_called_lost_when_outcomes_are_gone() -> None:
    # Its ids 1 to 4 were executed; outcomes are told again from 3 on.
    rig = Rig()
    rig.submit(1, 4, Level.COMMITTED)
    rig.sent()
    rig.core.on_results_gone(ResultsGone(3))
    rig.results(1, 3, 2)
    rig.expected = 2
    rig.results(5, 5, 1, gateway=OTHER)
    rig.sequencer(5)
    rig.now += 1000 * MS
    rig.sequencer(5)
    rig.status("transactor", 5)
    rig.status("wal", 5)
    rig.now += MAX_WAIT_MS * MS
    answer = rig.answer()
    assert answer["error"] in ("outcome_unknown", "timeout")
