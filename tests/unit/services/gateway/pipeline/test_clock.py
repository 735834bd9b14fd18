"""Questions about the ledger's time, through a gateway whose sequencer is played by hand."""

from __future__ import annotations

import pytest

from tallybus.common.bus.messages import ClockAnswer, ClockQuery
from tallybus.services.gateway.pipeline.clock import ASK_AGAIN_NS
from tests.unit.services.gateway.rig import Rig


def asked(rig: Rig) -> list[ClockQuery]:
    rig.core.tick(rig.now)
    questions = list(rig.core.clock.questions)
    rig.core.clock.questions.clear()
    return questions


@pytest.mark.parametrize(("op", "accept"), [("clock", False), ("accept_clock", True)])
def test_the_sequencer_is_asked_and_its_answer_handed_on(op: str, accept: bool) -> None:
    rig = Rig()
    rig.ask(op, 7)
    (question,) = asked(rig)
    assert question.accept is accept
    rig.core.on_clock(ClockAnswer(question.query, 5, 9, held=True))
    (reply,) = rig.answers()
    assert reply == reply | {"id": 7, "time": 5, "wall": 9, "held": True, "payload": []}


def test_a_question_is_repeated_until_it_is_answered_or_late() -> None:
    rig = Rig()
    rig.ask("accept_clock", 1, timeout_ms=1_000)
    (question,) = asked(rig)
    assert asked(rig) == []
    rig.now += ASK_AGAIN_NS
    assert asked(rig) == [question]
    rig.now += 2_000_000_000
    asked(rig)
    assert [reply["error"] for reply in rig.answers()] == ["timeout"]
    rig.now += ASK_AGAIN_NS
    assert asked(rig) == [], "an operator has given up: it must not be accepted any more"
    rig.core.on_clock(ClockAnswer(question.query, 5, 9))
    assert rig.answers() == []
