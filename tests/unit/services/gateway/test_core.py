"""What the gateway answers by itself: waits, indexes and pings."""

from tallybus.common.record import Level
from tests.unit.services.gateway.rig import MAX_BATCH, MAX_WAIT_MS, ME, MS, OTHER, Rig, keys


def test_waiting_for_an_index_is_answered_when_it_is_reached() -> None:
    rig = Rig()
    for level in Level:
        rig.ask("wait", int(level), tx_id=4, wait=int(level))
        rig.ask("wait", 10 + level, tx_id=0, wait=int(level))
    assert [a["id"] for a in rig.answers()] == [10, 11, 12, 13]
    rig.results(1, 1, 4, gateway=OTHER)
    assert sorted((a["id"], a["level"]) for a in rig.answers()) == [(0, 1), (1, 1)]
    rig.status("wal", 4)
    assert [(a["id"], a["level"]) for a in rig.answers()] == [(2, 2)]
    rig.status("snapshotter", 5)
    assert [(a["id"], a["level"]) for a in rig.answers()] == [(3, 3)]


def test_the_pipelines_indexes_are_told() -> None:
    rig = Rig()
    rig.results(1, 1, 9, gateway=OTHER)
    rig.sequencer(12)
    rig.status("wal", 7)
    rig.status("snapshotter", 5)
    rig.ask("index", 3)
    answer = rig.answer()
    assert [
        answer[name] for name in ("sequenced", "computed", "committed", "snapshot", "term")
    ] == [
        12,
        9,
        7,
        5,
        1,
    ]


def test_reads_wait_until_every_stage_was_heard() -> None:
    rig = Rig(heard=False)
    rig.ask("index", 1)
    rig.ask("balances", 2, keys(1))
    rig.ask("wait", 3, tx_id=0, wait=1, timeout_ms=5)
    rig.sequencer()
    rig.status("transactor", 0)
    rig.status("wal", 0)
    assert rig.answers() == []
    rig.now = 5 * MS
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (3, "timeout")
    assert "snapshotter" in answer["message"]
    rig.status("snapshotter", 0)
    assert [a["id"] for a in rig.answers()] == [1]
    assert len(rig.queries()) == 1


def test_a_ping_tells_which_requests_are_not_held() -> None:
    rig = Rig()
    rig.submit(1, 1, Level.COMPUTED)
    rig.submit(2, 1, Level.COMPUTED)
    rig.sent()
    rig.submit(3, 1, Level.COMPUTED, client=b"other")
    rig.ask("ping", 9, pending=[1, 2, 3, 4])
    answer = rig.answer()
    assert answer["unknown"] == [3, 4]
    assert (answer["id"], answer["incarnation"], answer["protocol"]) == (9, ME, 1)
    assert (answer["max_batch"], answer["max_accounts"]) == (MAX_BATCH, 1000)
    assert (answer["max_reads"], answer["max_request_wait_ms"]) == (20, MAX_WAIT_MS)
    assert (answer["revision"], answer["role"]) == (1, "admin")
    assert answer["limits"] == {"in_flight": 0, "rate": 0, "message_bytes": 0, "work_ms": 0}
    rig.results(1, 1, 2)
    rig.ask("ping", 10, pending=[1, 2])
    answers = rig.answers()
    assert [a["id"] for a in answers] == [1, 2, 10], "the answers come before the pong"
    assert answers[-1]["unknown"] == [1, 2]


def test_a_ping_of_nothing_is_answered_before_anything_was_heard() -> None:
    rig = Rig(heard=False)
    rig.ask("ping", 1)
    assert rig.answer()["unknown"] == []
