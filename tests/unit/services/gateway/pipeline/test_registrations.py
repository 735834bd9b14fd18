"""Registrations and questions about functions, through a gateway with a pipeline played by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from tallybus.common.bus.messages import (
    Answer,
    FunctionsAnswer,
    FunctionsQuery,
    Prepare,
    Prepared,
)
from tallybus.common.functions.names import MAX_BINARY_BYTES
from tallybus.common.record import RECORD_DTYPE, Kind, Level, Status
from tallybus.services.gateway.pipeline import registrations as module
from tallybus.services.gateway.pipeline.registrations import ASK_AGAIN_NS
from tests.unit.services.gateway.rig import BINARY, FunctionRig


@pytest.fixture
def rig() -> FunctionRig:
    return FunctionRig()


def test_a_module_is_looked_at_before_it_is_sequenced(rig: FunctionRig) -> None:
    rig.register(1)
    assert rig.sent() == []
    (question,) = rig.questions()
    assert isinstance(question, Prepare)
    assert bytes(question.binary) == BINARY
    rig.core.on_prepared(Prepared(question.query))
    (request,) = rig.sent()
    assert request.registers
    assert request.names == ["pay"]
    assert bytes(request.binary) == BINARY
    record = np.frombuffer(request.records, RECORD_DTYPE)[0]
    assert record["kind"] == Kind.FUNCTION_REGISTERED
    assert record["function"] == crc32c(BINARY)
    assert record["user_ref"] == 9
    assert record["account"] == 0
    assert rig.answers() == []


def test_a_registration_is_answered_at_its_level_like_a_submit(rig: FunctionRig) -> None:
    rig.register(1, override=True)
    rig.prepared()
    (request,) = rig.sent()
    assert np.frombuffer(request.records, RECORD_DTYPE)["account"][0] == 1
    rig.results(request.request, 1, 1)
    assert rig.answers() == []
    rig.status("wal", 1)
    answer = rig.answer()
    assert (answer["id"], answer["first"], answer["count"], answer["failures"]) == (1, 1, 1, 0)
    assert answer["payload"] == [b""]


def test_a_name_that_is_taken_is_a_failure_with_its_status(rig: FunctionRig) -> None:
    rig.register(1, level=Level.COMPUTED)
    rig.prepared()
    (request,) = rig.sent()
    rig.results(request.request, 1, 1, [(0, Status.INVALID_OPERATION)])
    assert rig.answer()["failures"] == 1


def test_a_module_that_is_refused_leaves_no_trace(rig: FunctionRig) -> None:
    rig.register(1)
    rig.prepared("it has no execute")
    answer = rig.answer()
    assert answer["error"] == "invalid_function"
    assert answer["details"] == {"name": "pay", "reason": "it has no execute"}
    assert rig.sent() == []
    assert rig.core.registrations.held_bytes == 0


def test_unregistering_asks_nobody_first(rig: FunctionRig) -> None:
    rig.ask("unregister", 1, name="pay", user_ref=9, wait=1)
    assert rig.questions() == []
    (request,) = rig.sent()
    assert request.registers
    assert bytes(request.binary) == b""
    assert np.frombuffer(request.records, RECORD_DTYPE)["function"][0] == 0


def test_a_registration_shares_no_batch(rig: FunctionRig) -> None:
    rig.submit(1)
    rig.ask("unregister", 2, name="pay", wait=1)
    rig.submit(3)
    assert [(each.registers, each.count) for each in rig.sent()] == [
        (False, 1),
        (True, 1),
        (False, 1),
    ]


def test_questions_are_repeated_until_answered(rig: FunctionRig) -> None:
    rig.register(1)
    rig.ask("functions", 2)
    assert len(rig.questions()) == 2
    rig.now += ASK_AGAIN_NS - 1
    assert rig.questions() == []
    rig.now += 1
    again = rig.questions()
    assert [type(each) for each in again] == [Prepare, FunctionsQuery]
    rig.lives["transactor"] += 100
    rig.status("wal", 0)
    rig.status("transactor", 0)
    assert [type(each) for each in rig.questions()] == [Prepare, FunctionsQuery]


def test_an_answer_serves_all_that_asked_before_it(rig: FunctionRig) -> None:
    rig.ask("functions", 1)
    rig.ask("functions", 2)
    first, second = rig.questions()
    assert isinstance(first, FunctionsQuery)
    assert isinstance(second, FunctionsQuery)
    rig.core.on_functions(FunctionsAnswer(first.query, [{"name": "pay"}]))
    assert [(each["id"], each["functions"]) for each in rig.answers()] == [(1, [{"name": "pay"}])]
    rig.core.on_functions(FunctionsAnswer(second.query, []))
    assert [(each["id"], each["functions"]) for each in rig.answers()] == [(2, [])]
    rig.core.on_functions(FunctionsAnswer(second.query, []))
    assert rig.answers() == []


def test_what_timed_out_is_not_sequenced(rig: FunctionRig) -> None:
    rig.register(1, timeout_ms=5)
    (question,) = rig.questions()
    rig.now += 6_000_000
    assert rig.answer()["error"] == "timeout"
    assert isinstance(question, Prepare)
    rig.core.on_prepared(Prepared(question.query))
    assert rig.sent() == []
    assert rig.core.registrations.held_bytes == 0


def test_modules_that_nobody_waits_for_are_let_go(rig: FunctionRig) -> None:
    rig.register(1, timeout_ms=5)
    rig.questions()
    rig.now += 6_000_000
    rig.answer()
    rig.now += ASK_AGAIN_NS
    assert rig.questions() == []
    assert rig.core.registrations.held_bytes == 0


def test_modules_beyond_the_bound_are_refused_and_a_client_leaves_others_room(
    rig: FunctionRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HELD_BYTES", 4 * len(BINARY))
    for request in (1, 2, 3):
        rig.register(request)
    assert rig.answer()["error"] == "overloaded"
    assert len(rig.questions()) == 2
    rig.register(4, client=b"other")
    assert len(rig.questions()) == 1


def test_a_module_for_which_there_is_no_room_now_is_not_called_invalid(rig: FunctionRig) -> None:
    rig.register(1)
    (question,) = rig.questions()
    rig.core.on_prepared(Prepared(question.query, True, "128 modules wait", busy=True))
    answer = rig.answer()
    assert answer["error"] == "overloaded"
    assert "128 modules wait" in answer["message"]
    assert rig.core.registrations.held_bytes == 0


@pytest.mark.parametrize(
    ("fields", "binary", "field"),
    [
        ({"name": "1st"}, BINARY, "name"),
        ({"name": ""}, BINARY, "name"),
        ({"name": "x" * 33}, BINARY, "name"),
        ({"name": None}, BINARY, "name"),
        ({"name": "größe"}, BINARY, "name"),
        ({"name": "a\n"}, BINARY, "name"),
        ({"override": 1}, BINARY, "override"),
        ({"user_ref": -1}, BINARY, "user_ref"),
        ({"wait": 4}, BINARY, "wait"),
        ({}, b"", "binary"),
        ({}, bytes(MAX_BINARY_BYTES + 1), "binary"),
    ],
)
def test_malformed_registrations_are_refused(
    rig: FunctionRig, fields: dict[str, Any], binary: bytes, field: str
) -> None:
    rig.register(1, binary, **fields)
    answer = rig.answer()
    assert answer["error"] == "invalid_request"
    assert answer["details"]["field"] == field
    assert rig.questions() == []


def test_a_checksum_that_means_unregistered_is_refused(rig: FunctionRig) -> None:
    binary = b"\xab\x9b\xe0\x9b"
    assert crc32c(binary) == 0
    rig.register(1, binary)
    assert rig.answer()["details"]["field"] == "binary"


def test_an_answer_that_holds_no_transaction_is_an_error_and_no_end(rig: FunctionRig) -> None:
    rig.hear(5)
    rig.ask("transaction", 1, tx_id=5)
    (query,) = rig.queries()
    rig.core.on_answer(Answer(query.query, 5, values=b"short"))
    assert rig.answer()["error"] == "internal"
