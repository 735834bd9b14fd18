"""The transactor's decisions, with the real engine."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.link import LinkError
from tallybus.common.bus.messages import (
    Hello,
    Message,
    Refused,
    Results,
    ResultsGone,
    ResultsQuery,
    Sequenced,
    StageStatus,
    Welcome,
)
from tallybus.common.record import FAILURE_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.service.core import HELLO_EVERY_NS, Fenced
from tallybus.services.transactor import core as module
from tallybus.services.transactor.core import RESULTS_PER_ANSWER, TransactorCore
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.registrar import Registrar
from tests.support.compilers import InProcess, one_for_all
from tests.unit.services.transactor.rig import (
    GATEWAY,
    HEARTBEAT,
    ME,
    PEER,
    SEQUENCER,
    log_status,
    log_welcome,
    results_of,
    taken,
)


def an_engine() -> tuple[Engine, Registrar]:
    engine = Engine(10, 50, 1)
    return engine, Registrar(engine, compilers=one_for_all(InProcess()))


def recovered(
    *, term: int = 4, capacity: int = 100, gateways: dict[int, int] | None = None
) -> TransactorCore:
    """After the replay of an empty log."""
    core = TransactorCore(ME, capacity, HEARTBEAT)
    core.tick(0)
    core.requests.clear()
    core.on_welcome(log_welcome(term=term, gateways=gateways), 0)
    core.recovered(*an_engine())
    core.on_status(log_status(1, 0), 0)
    return core


def running(*, capacity: int = 100, gateways: dict[int, int] | None = None) -> TransactorCore:
    """With a sequencer of term 5."""
    core = recovered(capacity=capacity, gateways=gateways)
    core.on_hello(PEER, Hello("sequencer", SEQUENCER))
    core.on_welcome(log_welcome(term=5), 0)
    assert [type(m) for _, m in core.replies] == [Welcome]
    core.replies.clear()
    core.requests.clear()
    core.broadcasts.clear()
    return core


def deposits(count: int, *, ref: int = 0) -> NDArray[np.void]:
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.DEPOSIT
    records["account"] = 1
    records["amount"] = 10
    if ref:
        records["user_ref"] = np.arange(ref, ref + count)
    return records


def overdrafts(count: int) -> NDArray[np.void]:
    records = deposits(count)
    records["kind"] = Kind.WITHDRAWAL
    records["account"] = 2
    return records


def sequenced(
    first: int,
    records: NDArray[np.void],
    *,
    term: int = 5,
    sequencer: int = SEQUENCER,
    request: int = 1,
) -> Sequenced:
    return Sequenced(term, sequencer, first, len(records), 77, GATEWAY, request, as_buffer(records))


def replied(core: TransactorCore) -> list[Message]:
    messages = [message for _, message in core.replies]
    core.replies.clear()
    return messages


# -- start -----------------------------------------------------------------------------------------


def test_it_says_hello_to_the_log_before_anything_else() -> None:
    core = TransactorCore(ME, 100, HEARTBEAT)
    assert not core.wants_input()
    core.tick(0)
    assert core.requests == [Hello("transactor", ME, 0)]
    core.tick(HELLO_EVERY_NS)
    assert len(core.requests) == 2
    core.on_hello(PEER, Hello("sequencer", SEQUENCER))
    core.on_sequenced(sequenced(1, deposits(1)))
    core.on_results_query(b"g", ResultsQuery(1, 1))
    assert (core.broadcasts, core.replies, core.next_data()) == ([], [], None)


def test_it_replays_to_where_the_log_says_then_runs() -> None:
    core = TransactorCore(ME, 100, HEARTBEAT)
    core.tick(0)
    core.on_welcome(log_welcome(next_id=8, peer=101), 0)
    assert not core.recovering, "an answer for another transactor"
    core.on_welcome(log_welcome(next_id=8), 0)
    assert core.recovering
    core.tick(10 * HEARTBEAT)
    assert core.broadcasts == [], "a status would promise an index"
    core.on_welcome(log_welcome(next_id=9), 0)
    assert core.welcome is not None
    assert core.welcome.next == 8
    core.recovered(*an_engine())
    assert core.running
    assert not core.recovering
    status = core.status()
    assert (status.index, status.next, status.term, status.peer) == (7, 8, 4, 0)


# -- terms -----------------------------------------------------------------------------------------


def test_a_term_is_granted_when_the_log_has_kept_it() -> None:
    core = recovered(gateways={GATEWAY: 6})
    core.on_hello(PEER, Hello("sequencer", SEQUENCER))
    assert core.replies == []
    core.tick(HELLO_EVERY_NS)
    assert core.requests == [Hello("transactor", ME, 5, asks=True)]
    core.on_welcome(log_welcome(term=4), 0)
    assert core.replies == [], "an answer to an earlier hello"
    core.on_welcome(log_welcome(term=5), 0)
    ((peer, message),) = core.replies
    assert peer == PEER
    assert message == Welcome("transactor", ME, SEQUENCER, 5, 1, 0, 9, {GATEWAY: 6})
    assert core.status().peer == SEQUENCER


def test_a_sequencer_is_told_the_last_stamp_and_how_long_ago_it_was_given() -> None:
    core = TransactorCore(ME, 100, HEARTBEAT)
    core.on_welcome(log_welcome(term=4), 0)
    core.recovered(*an_engine(), stamp=77)
    core.on_hello(PEER, Hello("sequencer", SEQUENCER, term=4))
    assert told_stamp(core) == (77, 0), "read from the log: nobody knows how long ago"
    core.on_sequenced(replace(sequenced(1, deposits(1), term=4), timestamp=90))
    core.tick(1_000)
    core.tick(5_000)
    core.on_hello(PEER, Hello("sequencer", SEQUENCER, term=4))
    assert told_stamp(core) == (90, 4_000)


def told_stamp(core: TransactorCore) -> tuple[int, int]:
    _, message = core.replies.pop()
    assert isinstance(message, Welcome)
    return message.stamp, message.elapsed


def test_a_repeated_hello_gets_the_same_term() -> None:
    core = running()
    for _ in range(3):
        core.on_hello(PEER, Hello("sequencer", SEQUENCER))
        core.tick(0)
    assert [m.term for m in replied(core) if isinstance(m, Welcome)] == [5, 5, 5]
    assert core.requests == []


def test_a_term_waits_until_the_log_has_everything_of_the_one_before() -> None:
    core = running()
    core.on_sequenced(sequenced(1, deposits(3)))
    taken(core)
    core.on_hello(b"sequencer/2", Hello("sequencer", 301))
    for turn in range(5):
        core.tick(turn * HELLO_EVERY_NS)
    assert core.requests == [], "the log would refuse what is on its way"
    core.on_sequenced(sequenced(4, deposits(1)))
    assert core.status().index == 3, "nothing of the old term is taken any more"
    core.on_status(log_status(4, 0), 0)
    core.tick(10 * HELLO_EVERY_NS)
    assert core.requests == [Hello("transactor", ME, 6, asks=True)]
    core.on_welcome(log_welcome(term=6), 0)
    (message,) = replied(core)
    assert isinstance(message, Welcome)
    assert (message.peer, message.term, message.next) == (301, 6, 4)


def test_the_hello_for_a_term_is_repeated_until_it_is_answered() -> None:
    core = recovered()
    core.on_hello(PEER, Hello("sequencer", SEQUENCER))
    for turn in range(1, 5):
        core.tick(turn * HELLO_EVERY_NS)
    assert core.requests == [Hello("transactor", ME, 5, asks=True)] * 4


def test_a_replaced_sequencer_is_refused_for_good() -> None:
    core = running()
    core.on_hello(b"new", Hello("sequencer", 301))
    core.tick(0)
    core.on_welcome(log_welcome(term=6), 0)
    core.replies.clear()
    for term in (0, 5, 6):
        core.on_hello(PEER, Hello("sequencer", SEQUENCER, term))
    assert [type(m) for m in replied(core)] == [Refused] * 3
    assert (core.term, core.status().peer) == (6, 301)
    core.on_sequenced(sequenced(1, deposits(1)))
    core.on_sequenced(sequenced(1, deposits(1), term=6))
    assert core.status().index == 0


def test_one_that_hears_of_a_term_that_it_did_not_grant_was_replaced() -> None:
    with pytest.raises(Fenced):
        running().on_hello(PEER, Hello("sequencer", 301, 6))
    with pytest.raises(Fenced):
        running().on_welcome(log_welcome(term=6), 0)


def test_queued_hellos_of_a_dead_sequencer_and_its_successor_end_with_one_of_them() -> None:
    core = recovered()
    granted = {}
    term = 4
    for turn in range(8):
        incarnation = (SEQUENCER, 301)[turn % 2]
        core.on_hello(b"%d" % incarnation, Hello("sequencer", incarnation))
        core.tick(turn * HELLO_EVERY_NS)
        for hello in core.requests:
            assert isinstance(hello, Hello)
            term = max(term, hello.term)
            core.on_welcome(log_welcome(term=term), 0)
        core.requests.clear()
        for message in replied(core):
            if isinstance(message, Welcome):
                granted[message.peer] = message.term
    followed = core.status().peer
    assert granted[followed] == core.term == core.receiver.term
    core.on_sequenced(sequenced(1, deposits(1), term=core.term, sequencer=followed))
    assert core.status().index == 1


def test_a_sequencer_goes_on_with_its_term_at_a_new_transactor() -> None:
    core = recovered(term=5)
    core.on_hello(PEER, Hello("sequencer", SEQUENCER, 5))
    (message,) = replied(core)
    assert isinstance(message, Welcome)
    assert (message.term, message.next) == (5, 1)
    core.on_sequenced(sequenced(1, deposits(1)))
    assert core.status().index == 1


def test_a_sequencer_of_an_older_term_is_refused() -> None:
    core = recovered(term=5)
    core.on_hello(PEER, Hello("sequencer", SEQUENCER, 4))
    assert [type(m) for m in replied(core)] == [Refused]
    core.on_sequenced(sequenced(1, deposits(1), term=4))
    assert core.status().index == 0


def test_hellos_of_other_stages_are_ignored() -> None:
    core = running()
    for stage in ("transactor", "wal", "gateway", ""):
        core.on_hello(PEER, Hello(stage, 301))
    assert core.replies == []
    assert core.status().peer == SEQUENCER


# -- execution -------------------------------------------------------------------------------------


def test_a_batch_is_executed_handed_on_and_told() -> None:
    core = running()
    records = np.concatenate([deposits(2, ref=7), overdrafts(1), deposits(1, ref=7)])
    core.on_sequenced(sequenced(1, records, request=3))
    (executed,) = taken(core)
    assert (executed.term, executed.incarnation, executed.first, executed.count) == (5, ME, 1, 4)
    assert (executed.timestamp, executed.gateway, executed.request) == (77, GATEWAY, 3)
    after = np.frombuffer(executed.records, RECORD_DTYPE)
    assert after["status"].tolist() == [0, 0, Status.INSUFFICIENT_FUNDS, Status.DUPLICATE]
    assert np.frombuffer(executed.extras, "<u8").tolist() == [1]
    assert (executed.links, executed.params, executed.entries) == (1, 0, 0)
    (results,) = results_of(core)
    assert (results.term, results.first, results.count) == (5, 1, 4)
    assert results.batches == [[GATEWAY, 3, 1, 4, 2]]
    failures = np.frombuffer(results.failures, FAILURE_DTYPE)
    assert failures["offset"].tolist() == [2, 3]
    assert failures["duplicate_of"].tolist() == [0, 1]
    assert core.status().index == 4


def test_of_a_repeated_batch_only_the_rest_is_executed() -> None:
    core = running()
    core.on_sequenced(sequenced(1, deposits(3, ref=1)))
    core.on_sequenced(sequenced(1, deposits(3, ref=1)))
    core.on_sequenced(sequenced(3, np.concatenate([deposits(1, ref=3), overdrafts(2)])))
    assert [(m.first, m.count) for m in taken(core)] == [(1, 3), (4, 2)]
    (_, second) = results_of(core)
    assert second.batches == [[GATEWAY, 1, 4, 2, 2]]
    assert np.frombuffer(second.failures, FAILURE_DTYPE)["offset"].tolist() == [0, 1]
    core.on_sequenced(sequenced(7, deposits(1)))
    assert core.status().gap
    assert core.status().index == 5


def test_without_a_sequencer_nothing_is_executed() -> None:
    core = recovered()
    core.on_sequenced(sequenced(1, deposits(1)))
    assert core.status().index == 0


def test_outcomes_are_broadcast_before_the_index_that_covers_them() -> None:
    core = running()
    core.on_sequenced(sequenced(1, deposits(1)))
    core.tick(10 * HEARTBEAT)
    kinds = [type(message) for _, message in core.broadcasts]
    assert kinds.index(Results) < kinds.index(StageStatus)


def test_back_pressure_follows_the_log() -> None:
    core = running(capacity=5)
    core.on_sequenced(sequenced(1, deposits(4)))
    assert core.wants_input()
    core.on_sequenced(sequenced(5, deposits(4)))
    assert not core.wants_input()
    assert core.status().full
    core.on_status(log_status(9, 3), 0)
    assert not core.wants_input()
    core.on_status(log_status(9, 4), 0)
    assert core.wants_input()
    assert core.status().durable == 4


# -- the log stage ---------------------------------------------------------------------------------


def test_a_new_log_stage_is_greeted_and_sent_what_it_lacks() -> None:
    core = running()
    for first in (1, 2, 3):
        core.on_sequenced(sequenced(first, deposits(1)))
    assert len(taken(core)) == 3
    core.on_status(log_status(4, 1), 0)
    core.on_status(log_status(2, 1, peer=0, life=201), 0)
    assert core.next_data() is None
    core.tick(HELLO_EVERY_NS)
    assert core.requests == [Hello("transactor", ME, 5)]
    core.on_welcome(Welcome("wal", 201, ME, 5, 2, 1, 9), 0)
    core.on_status(log_status(2, 1, life=201), 0)
    assert [m.first for m in taken(core)] == [2, 3]


def test_a_log_that_lost_what_this_state_was_made_from_ends_it() -> None:
    core = TransactorCore(ME, 100, HEARTBEAT)
    core.on_welcome(log_welcome(next_id=8), 0)
    core.recovered(*an_engine())
    with pytest.raises(LinkError):
        core.on_status(log_status(5, 4, life=201), 0)


def test_a_newer_transactor_ends_it() -> None:
    core = running()
    core.on_status(log_status(1, 0), 0)
    with pytest.raises(Fenced):
        core.on_status(log_status(1, 0, peer=101), 0)
    with pytest.raises(Fenced):
        core.on_refused(Refused("wal", ME, 5, ""))
    core.on_refused(Refused("wal", 101, 5, ""))


def test_a_status_from_before_the_hello_does_not_end_it() -> None:
    core = TransactorCore(ME, 100, HEARTBEAT)
    core.on_welcome(log_welcome(), 0)
    core.recovered(*an_engine())
    core.on_status(log_status(1, 0, peer=99), 0)
    core.on_status(log_status(1, 0), 0)
    with pytest.raises(Fenced):
        core.on_status(log_status(1, 0, peer=101), 0)


# -- outcomes asked for again ----------------------------------------------------------------------


def test_missed_outcomes_are_told_again() -> None:
    core = running()
    for first in range(1, 10, 2):
        core.on_sequenced(sequenced(first, overdrafts(2), request=first))
    told = results_of(core)
    core.on_results_query(b"g", ResultsQuery(4, 6))
    assert core.replies == [(b"g", told[1]), (b"g", told[2])]
    core.replies.clear()
    core.on_results_query(b"g", ResultsQuery(1, 2**64 - 1))
    assert [m for _, m in core.replies] == told
    core.replies.clear()
    core.on_results_query(b"g", ResultsQuery(11, 20))
    core.on_results_query(b"g", ResultsQuery(6, 5))
    assert len(core.replies) <= 1


def test_an_answer_to_a_query_is_bounded() -> None:
    core = running(capacity=10_000)
    for first in range(1, RESULTS_PER_ANSWER + 20):
        core.on_sequenced(sequenced(first, deposits(1)))
    core.on_results_query(b"g", ResultsQuery(1, 2**64 - 1))
    assert len(core.replies) == RESULTS_PER_ANSWER


def test_outcomes_that_are_no_longer_kept_are_said_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RESULTS_KEPT", 5)
    core = running()
    for first in range(1, 13, 2):
        core.on_sequenced(sequenced(first, deposits(2)))
    core.on_results_query(b"g", ResultsQuery(3, 12))
    assert core.replies == [(b"g", ResultsGone(9))]
    core.replies.clear()
    core.on_results_query(b"g", ResultsQuery(9, 12))
    assert [m.first for _, m in core.replies if isinstance(m, Results)] == [9, 11]


def test_outcomes_from_the_log_come_before_its_own() -> None:
    core = TransactorCore(ME, 100, HEARTBEAT)
    core.on_welcome(log_welcome(next_id=4), 0)
    old = [Results(4, ME, first, 1, [[GATEWAY, first, first, 1, 0]]) for first in (2, 3)]
    engine = Engine(10, 50, 1)
    engine.execute(deposits(3), 1)
    core.recovered(engine, Registrar(engine), old)
    core.on_hello(PEER, Hello("sequencer", SEQUENCER, 4))
    core.replies.clear()
    core.on_sequenced(sequenced(4, deposits(1), term=4))
    core.on_results_query(b"g", ResultsQuery(1, 4))
    assert core.replies == [(b"g", ResultsGone(2))]
    core.replies.clear()
    core.on_results_query(b"g", ResultsQuery(2, 4))
    assert [m.first for _, m in core.replies if isinstance(m, Results)] == [2, 3, 4]


def test_before_anything_was_executed_there_is_nothing_to_tell() -> None:
    core = running()
    core.on_results_query(b"g", ResultsQuery(1, 5))
    assert core.replies == []


def test_one_that_finds_other_files_asks_the_log_again() -> None:
    core = TransactorCore(ME, 100, HEARTBEAT)
    core.tick(0)
    core.on_welcome(log_welcome(), 0)
    assert core.recovering
    core.requests.clear()
    core.ask_again()
    assert not core.recovering
    core.tick(HELLO_EVERY_NS)
    assert [type(message) for message in core.requests] == [Hello]
    with pytest.raises(Fenced):
        core.on_refused(Refused("wal", ME, 4, "a newer transactor"))
    core.on_welcome(log_welcome(next_id=9), HELLO_EVERY_NS)
    assert core.welcome is not None
    assert core.welcome.next == 9
