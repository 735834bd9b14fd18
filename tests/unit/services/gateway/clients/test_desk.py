"""What is held for clients: who is refused, how long a request waits, and what it is told then."""

import numpy as np
import pytest

from tallybus.common.record import MAX_U64, Level
from tallybus.services.gateway.clients import desk as module
from tests.unit.services.gateway.rig import MAX_WAIT_MS, ME, MS, Rig, keys, told


def test_when_the_pipeline_is_full_submissions_are_refused_and_reads_go_on() -> None:
    rig = Rig(capacity=10)
    counted: list[str] = []
    rig.core.desk.answered = lambda _, outcome: counted.append(outcome)
    rig.submit(1, 8, Level.COMPUTED)
    rig.sent()
    rig.submit(2, 3)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (2, "overloaded")
    assert counted == ["overloaded"]
    rig.submit(3, 2)
    rig.submit(4, 1)
    assert [a["error"] for a in rig.answers()] == ["overloaded"]
    rig.ask("balances", 5, np.array([1], "<u8").tobytes())
    assert len(rig.queries()) == 1
    rig.sent()
    rig.results(1, 1, 8)
    rig.submit(6, 8)
    assert [a.get("error") for a in rig.answers()] == [None]


def test_a_batch_larger_than_the_pipeline_takes_is_taken_when_it_is_empty() -> None:
    rig = Rig(capacity=10)
    rig.submit(1, 40, Level.COMPUTED)
    assert len(rig.sent()) == 1
    rig.submit(2, 1)
    assert rig.answer()["error"] == "overloaded"
    rig.results(1, 1, 40)
    assert told(rig.answer()) == (1, 1, 40, 1)


def test_requests_held_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 6)
    rig = Rig()
    for request in range(5):
        rig.ask("wait", request, tx_id=10, wait=1)
    assert [(a["id"], a["error"]) for a in rig.answers()] == [(3, "overloaded"), (4, "overloaded")]
    rig.ask("ping", 9, pending=[])
    assert rig.answer()["incarnation"] == ME


def test_a_client_that_takes_all_it_can_leaves_as_much_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 64)
    rig = Rig()
    taken = []
    for client in (b"first", b"second", b"third"):
        for request in range(100):
            rig.ask("wait", request, client=client, tx_id=10, wait=1)
        taken.append(100 - len(rig.answers()))
    assert taken == [32, 16, 8]
    rig.now += 120_000 * MS
    assert len(rig.answers()) == 56
    for request in range(100):
        rig.ask("wait", request, client=b"second", tx_id=10, wait=1)
    assert len(rig.answers()) == 100 - 32


def test_a_submission_in_time_out_says_so_and_may_still_happen() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMMITTED, timeout_ms=100)
    rig.submit(2, 1, Level.COMMITTED)
    rig.sent()
    rig.results(1, 1, 3)
    rig.now = 100 * MS - 1
    assert rig.answers() == []
    assert rig.core.desk.next_deadline_ns() == 100 * MS
    rig.now = 100 * MS
    answer = rig.answer()
    assert (answer["id"], answer["error"], answer["details"]["first"]) == (1, "timeout", 1)
    assert answer["message"].startswith("transactions 1 to 2 are executed, and not on disk yet")
    rig.status("wal", 3)
    assert [a["id"] for a in rig.answers()] == [2]


def test_an_id_that_may_still_change_is_not_told_at_a_time_out() -> None:
    rig = Rig()
    rig.submit(1, 1, Level.COMMITTED, timeout_ms=1)
    rig.sent()
    rig.assign((1, 1, 1))
    rig.now = 5 * MS
    answer = rig.answer()
    assert answer["details"]["first"] is None
    assert answer["message"].startswith("what was submitted is not executed yet; it may still be")


def test_each_kind_of_wait_says_what_has_not_happened_yet() -> None:
    rig = Rig()
    words = {Level.COMPUTED: "executed", Level.COMMITTED: "on disk", Level.SNAPSHOT: "readable"}
    for level in words:
        rig.ask("wait", 1 + level, tx_id=999, wait=int(level), timeout_ms=5)
    rig.ask("balances", 5, keys(1), min_tx_id=999, timeout_ms=5)
    rig.now = 5 * MS
    told = {answer["id"]: answer["message"] for answer in rig.answers()}
    for level in words:
        expected = f"transaction 999 is not {words[level]} yet; the last one that is: 0"
        assert told[1 + level].startswith(expected)
    assert told[5].startswith("transaction 999 is not readable yet")


def test_the_gateways_own_limit_ends_every_wait() -> None:
    rig = Rig()
    rig.ask("wait", 1, tx_id=MAX_U64, wait=3, timeout_ms=MAX_U64)
    rig.ask("balances", 2, np.array([1], "<u8").tobytes(), min_tx_id=MAX_U64)
    rig.submit(3, 1, Level.SNAPSHOT)
    rig.now = MAX_WAIT_MS * MS
    assert [(a["id"], a["error"]) for a in rig.answers()] == [(n, "timeout") for n in (1, 2, 3)]
    assert len(rig.core.desk) == 0
    assert rig.core.under_way, "what was taken is seen through"
    rig.sent()
    rig.results(1, 1, 1)
    assert not rig.core.under_way
    assert rig.answers() == []


def test_an_id_may_be_used_again_once_it_was_answered() -> None:
    rig = Rig()
    rig.submit(1, 1, Level.COMPUTED)
    rig.submit(1, 1, Level.COMPUTED, client=b"other")
    rig.submit(1, 1, Level.COMPUTED)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (1, "invalid_request")
    (request,) = rig.sent()
    assert request.count == 2, "the second was not taken"
    rig.results(1, 1, 2)
    assert len(rig.answers()) == 2
    rig.submit(1, 1, Level.COMPUTED)
    assert rig.answers() == []


def test_no_time_at_all_is_enough_for_what_is_known_and_does_not_stop_a_submit() -> None:
    rig = Rig()
    rig.ask("index", 1, timeout_ms=0)
    rig.ask("wait", 2, tx_id=0, wait=2, timeout_ms=0)
    assert [(each["id"], "error" in each) for each in rig.answers()] == [(1, False), (2, False)]
    rig.submit(3, 1, Level.NONE, timeout_ms=0)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (3, "timeout")
    assert [request.count for request in rig.sent()] == [1], "it is executed all the same"
