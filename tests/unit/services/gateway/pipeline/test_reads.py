"""Reads on their way to the snapshotter and back."""

import numpy as np

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import Answer
from tests.unit.services.gateway.rig import MS, OTHER, Rig, keys


def test_balance_reads_of_a_turn_share_one_query() -> None:
    rig = Rig()
    rig.ask("balances", 1, keys(5, 6), client=b"a")
    rig.ask("balances", 1, keys(7), client=b"b")
    (query,) = rig.queries()
    assert query.what == "balances"
    assert np.frombuffer(query.keys, "<u8").tolist() == [5, 6, 7]
    values = as_buffer(np.array([50, 60, -70], "<i8"))
    rig.core.on_answer(Answer(query.query, 33, values=values))
    first, second = rig.answers()
    assert (first["client"], first["count"], first["snapshot"]) == (b"a", 2, 33)
    assert np.frombuffer(first["payload"][0], "<i8").tolist() == [50, 60]
    assert np.frombuffer(second["payload"][0], "<i8").tolist() == [-70]
    rig.core.on_answer(Answer(query.query, 33, values=values))
    rig.core.on_answer(Answer(999, 33, values=values))
    assert rig.answers() == []


def test_a_read_waits_for_its_own_writes() -> None:
    rig = Rig()
    rig.ask("balances", 1, keys(1), min_tx_id=5)
    rig.ask("status", 2, keys(3), min_tx_id=4)
    assert rig.queries() == []
    rig.status("snapshotter", 4)
    rig.status("transactor", 4)
    rig.results(1, 1, 4, gateway=OTHER)
    assert [q.what for q in rig.queries()] == ["status"]
    rig.status("snapshotter", 5)
    (query,) = rig.queries()
    assert (query.what, query.least) == ("balances", 5)


def test_open_queries_are_asked_again_of_a_new_snapshotter() -> None:
    rig = Rig()
    rig.status("snapshotter", 5)
    rig.ask("balances", 1, keys(1))
    (query,) = rig.queries()
    rig.status("snapshotter", 5)
    assert rig.queries() == []
    rig.lives["snapshotter"] += 1
    rig.status("snapshotter", 2)
    (again,) = rig.queries()
    assert again == query
    assert again.least == 5, "what was readable once stays so"


def test_an_error_of_the_snapshotter_is_passed_on() -> None:
    rig = Rig()
    rig.ask("balances", 1, keys(1))
    (query,) = rig.queries()
    rig.core.on_answer(Answer(query.query, 5, error="no", details={"tx_id": 3}))
    answer = rig.answer()
    assert (answer["id"], answer["error"], answer["details"]) == (
        1,
        "invalid_request",
        {"tx_id": 3},
    )


def test_reads_that_the_snapshotter_has_no_room_for_are_overloaded() -> None:
    rig = Rig()
    rig.ask("balances", 1, keys(1))
    rig.ask("balances", 2, keys(2))
    (query,) = rig.queries()
    rig.core.on_answer(Answer(query.query, 5, error="7 queries wait", overloaded=True))
    told = rig.answers()
    assert [(each["id"], each["error"]) for each in told] == [(1, "overloaded"), (2, "overloaded")]
    assert "7 queries wait; try again later" in told[0]["message"]
    assert rig.core.reads.held_bytes == 0


def test_a_late_answer_to_a_read_that_timed_out_is_dropped() -> None:
    rig = Rig()
    rig.ask("balances", 1, keys(1), timeout_ms=10)
    (query,) = rig.queries()
    rig.now = 10 * MS
    assert rig.answer()["error"] == "timeout"
    rig.core.on_answer(Answer(query.query, 0, values=as_buffer(np.zeros(1, "<i8"))))
    assert rig.answers() == []
