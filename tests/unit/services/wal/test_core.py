"""The log stage: one transactor at a time, the durable index behind the sync, its follower next."""

from dataclasses import replace

import numpy as np
import pytest

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import Executed, Hello, Message, Refused, StageStatus, Welcome
from tallybus.common.record import RECORD_DTYPE
from tallybus.common.service.core import Channel, Source
from tallybus.services.wal.core import FOLLOWER_GRACE_NS, FOLLOWER_HEARTBEATS, WalCore

ME = 100
TRANSACTOR = 200
SNAPSHOTTER = 300
GATEWAY = 400
HEARTBEAT = 100_000_000
PEER = b"transactor/1"


def make(*, next_id: int = 8, term: int = 4, capacity: int = 100) -> WalCore:
    return WalCore(
        ME, capacity, HEARTBEAT, next_id=next_id, term=term, cluster=9, gateways={GATEWAY: 6}
    )


def running(*, next_id: int = 1, capacity: int = 100) -> WalCore:
    core = make(next_id=next_id, capacity=capacity)
    core.on_hello(PEER, Hello("transactor", TRANSACTOR))
    core.replies.clear()
    return core


def executed(
    first: int, count: int = 1, *, term: int = 4, transactor: int = TRANSACTOR, request: int = 7
) -> Executed:
    records = as_buffer(np.zeros(count, RECORD_DTYPE))
    return Executed(term, transactor, first, count, 1, GATEWAY, request, records)


def write(core: WalCore, first: int, count: int = 1, **more: int) -> int | None:
    """What the shell does with a message."""
    message = executed(first, count, **more)
    core.on_message(Source(Channel.DATA), message, 0)
    if not core.due:
        return None
    (due,) = core.due
    core.written()
    return due.batch.first_id - first


def follower(next_id: int, *, life: int = SNAPSHOTTER, gap: bool = False) -> StageStatus:
    return StageStatus("snapshotter", 4, life, next_id - 1, next_id, 0, gap=gap)


def taken(core: WalCore, now: int = 0) -> list[Executed]:
    messages: list[Message] = []
    while (message := core.next_data()) is not None:
        messages.append(message)
        core.data_sent(now)
    return messages  # type: ignore[return-value]


def replied(core: WalCore) -> list[Message]:
    messages = [message for _, message in core.replies]
    core.replies.clear()
    return messages


# -- who may write ---------------------------------------------------------------------------------


def test_nothing_is_taken_before_a_hello() -> None:
    core = make()
    assert not core.wants_input()
    assert write(core, 8) is None
    assert core.status().next == 8


def test_a_hello_is_answered_with_where_the_log_ends() -> None:
    core = make()
    core.on_hello(PEER, Hello("transactor", TRANSACTOR))
    assert core.replies == [
        (PEER, Welcome("wal", ME, TRANSACTOR, 4, 8, 7, 9, {GATEWAY: 7})),
    ]
    assert core.wants_input()
    assert core.status().peer == TRANSACTOR


def test_a_new_transactor_fences_the_one_before_it() -> None:
    core = running()
    assert write(core, 1) == 0
    core.on_hello(b"new", Hello("transactor", 201))
    (message,) = replied(core)
    assert isinstance(message, Welcome)
    assert message.next == 2, "what was written counts, durable or not"
    assert write(core, 2) is None
    assert write(core, 2, transactor=201) == 0
    core.on_hello(PEER, Hello("transactor", TRANSACTOR))
    assert [type(m) for m in replied(core)] == [Refused]
    assert core.status().peer == 201


def test_a_repeated_hello_changes_nothing() -> None:
    core = running()
    for _ in range(3):
        core.on_hello(PEER, Hello("transactor", TRANSACTOR, 4))
    assert [type(m) for m in replied(core)] == [Welcome] * 3
    assert write(core, 1) == 0


def test_a_snapshotter_is_told_which_log_this_is_and_takes_nothing_over() -> None:
    core = make()
    core.on_hello(b"s", Hello("snapshotter", SNAPSHOTTER))
    (message,) = replied(core)
    assert isinstance(message, Welcome)
    assert (message.peer, message.cluster, message.durable) == (SNAPSHOTTER, 9, 7)
    assert not core.wants_input()
    core.on_hello(PEER, Hello("transactor", TRANSACTOR))
    core.on_hello(b"s", Hello("snapshotter", SNAPSHOTTER))
    core.on_hello(b"x", Hello("gateway", 5))
    assert core.status().peer == TRANSACTOR
    assert len(core.replies) == 2


def test_a_new_term_is_answered_when_it_is_on_disk() -> None:
    core = running()
    core.on_hello(PEER, Hello("transactor", TRANSACTOR, 6))
    assert core.replies == []
    assert [hello.term for _, hello in core.term_due] == [6]
    assert core.status().term == 4
    core.term_kept()
    (message,) = replied(core)
    assert isinstance(message, Welcome)
    assert message.term == 6
    assert core.term_due == []
    assert write(core, 1, term=5) is None
    assert write(core, 1, term=6) == 0
    assert core.status().term == 6


# -- writing and syncing ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "asks", "taken_back"),
    [
        (0, False, True),  # a new one
        (4, False, True),  # it knows of every term
        (5, True, True),  # it knows of every term and is about to grant one
        (3, False, False),  # somebody has granted term 4 since
        (4, True, False),  # somebody has granted it already, or this one died before it heard so
        (1, True, False),
    ],
)
def test_a_log_that_started_anew_knows_by_the_term_who_was_replaced(
    term: int, asks: bool, taken_back: bool
) -> None:
    core = make(term=4)
    core.on_hello(PEER, Hello("transactor", TRANSACTOR, term, asks=asks))
    core.term_kept()
    assert [type(message) for message in replied(core)] == [Welcome if taken_back else Refused]
    assert (core.status().peer == TRANSACTOR) is taken_back


def test_a_term_that_was_kept_is_told_again() -> None:
    core = running()
    for _ in range(2):
        core.on_hello(PEER, Hello("transactor", TRANSACTOR, 5, asks=True))
        core.term_kept()
    assert [type(message) for message in replied(core)] == [Welcome, Welcome]


def test_a_term_is_not_told_to_one_that_was_replaced_while_it_was_kept() -> None:
    core = running()
    core.on_hello(PEER, Hello("transactor", TRANSACTOR, 5, asks=True))
    core.on_hello(b"new", Hello("transactor", TRANSACTOR + 1))
    core.term_kept()
    found = [(message.kind, message.term) for message in replied(core)]
    assert found == [("welcome", 4), ("refused", 5)]


def test_exactly_what_comes_next_is_taken() -> None:
    core = running()
    assert write(core, 1, 3) == 0
    assert write(core, 1, 3) is None
    assert write(core, 2, 4) == 2
    assert not core.status().gap
    assert write(core, 7) is None
    assert core.status().gap
    assert core.status().next == 6
    assert write(core, 6, 2) == 0
    assert not core.status().gap


def test_the_durable_index_moves_with_the_sync_alone() -> None:
    core = running()
    write(core, 1, 3)
    write(core, 4, 2)
    assert (core.status().index, core.status().durable) == (0, 0)
    assert core.next_data() is None, "the snapshotter applies durable transactions only"
    core.on_durable(4)
    assert core.status().durable == 4
    assert [m.first for m in taken(core)] == [1], "a batch is handed on whole"
    core.on_durable(3)
    assert core.status().durable == 4
    core.on_durable(5)
    assert [(m.first, m.count) for m in taken(core)] == [(4, 2)]


def test_the_snapshotter_takes_from_the_log_whoever_filled_it() -> None:
    core = running()
    write(core, 1)
    core.on_hello(b"new", Hello("transactor", 201))
    write(core, 2, transactor=201)
    core.on_durable(2)
    assert [m.incarnation for m in taken(core)] == [ME, ME]


def test_requests_in_the_log_are_known_to_the_next_transactor() -> None:
    core = running()
    write(core, 1, request=7)
    core.on_hello(b"new", Hello("transactor", 201))
    (message,) = replied(core)
    assert isinstance(message, Welcome)
    assert message.gateways == {GATEWAY: 8}


def test_unsynced_transactions_are_bounded() -> None:
    core = running(capacity=5)
    core.on_status(follower(1), 0)
    write(core, 1, 4)
    assert core.wants_input()
    write(core, 5, 4)
    assert not core.wants_input()
    assert core.status().full
    assert core.status().retained == 8
    core.on_durable(8)
    core.on_status(follower(9), 0)
    assert core.wants_input()


# -- the snapshotter -------------------------------------------------------------------------------


def test_a_snapshotter_that_is_away_does_not_hold_commits_back() -> None:
    core = running(capacity=3)
    for first in range(1, 30):
        assert write(core, first) == 0
        core.on_durable(first)
        core.tick(first * FOLLOWER_GRACE_NS * 2)
        assert core.wants_input()
    assert core.status().retained <= 3


def test_a_snapshotter_that_is_slow_is_waited_for_a_while() -> None:
    core = running(capacity=3)
    core.on_status(follower(1), 0)
    write(core, 1, 3)
    core.on_durable(3)
    assert len(taken(core)) == 1
    for now_ns in range(0, FOLLOWER_GRACE_NS, HEARTBEAT):
        core.on_status(follower(1), now_ns)
        core.tick(now_ns + HEARTBEAT)
        assert not core.wants_input()
    core.tick(FOLLOWER_GRACE_NS + 1)
    assert core.wants_input()


def test_a_snapshotter_that_dies_is_waited_for_no_longer_than_its_heartbeats() -> None:
    core = running(capacity=3)
    core.on_status(follower(1), 0)
    write(core, 1, 3)
    core.on_durable(3)
    silence = FOLLOWER_HEARTBEATS * HEARTBEAT
    core.tick(silence)
    assert not core.wants_input()
    core.tick(silence + 1)
    assert core.wants_input()
    write(core, 4, 3)
    core.on_durable(6)
    core.tick(silence + 2)
    assert core.wants_input(), "not once more for each that follows"


def test_one_that_reads_the_files_is_not_waited_for() -> None:
    core = running(capacity=3)
    write(core, 1, 3)
    core.on_durable(3)
    core.tick(FOLLOWER_GRACE_NS + 1)
    write(core, 4, 3)
    core.on_durable(6)
    core.on_status(follower(1), FOLLOWER_GRACE_NS + 2)
    core.tick(FOLLOWER_GRACE_NS + 3)
    assert core.wants_input()


def test_a_restarted_snapshotter_is_sent_what_is_still_here() -> None:
    core = running()
    core.on_status(follower(1), 0)
    for first in (1, 2, 3):
        write(core, first)
    core.on_durable(3)
    assert len(taken(core)) == 3
    core.on_status(follower(3), 0)
    core.on_status(follower(1, life=301), 0)
    assert [m.first for m in taken(core)] == [3]
    core.on_status(follower(4, life=301), 0)
    assert core.status().retained == 0


def test_one_that_read_ahead_of_the_stream_is_no_error() -> None:
    core = running()
    write(core, 1, 2)
    write(core, 3, 2)
    core.on_durable(3)
    core.on_status(follower(4), 0)
    core.on_durable(4)
    core.on_status(follower(5), 0)
    assert core.status().retained == 0
    assert taken(core) == []


def test_statuses_of_others_are_ignored() -> None:
    core = running()
    for stage in ("transactor", "sequencer", "wal", ""):
        core.on_status(replace(follower(50), stage=stage), 0)
    write(core, 1)
    core.on_durable(1)
    assert [m.first for m in taken(core)] == [1]


@pytest.mark.parametrize("durable", [1, 5])
def test_a_new_durable_index_is_told_at_once(durable: int) -> None:
    core = running()
    write(core, 1, 5)
    core.tick(0)
    core.broadcasts.clear()
    core.on_durable(durable)
    core.tick(1)
    assert [m.durable for _, m in core.broadcasts if isinstance(m, StageStatus)] == [durable]
