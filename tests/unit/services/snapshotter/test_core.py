"""The snapshotter: the stream, the files when it is behind, queries, snapshots at segment ends."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import Answer, Executed, Hello, Query, StageStatus, Welcome
from tallybus.common.bus.transaction import LoggedTransaction, transaction_in
from tallybus.common.functions.registry import FunctionVersion, RegistrationError, name_words
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, STATUS_DTYPE, Kind, Stage, Status
from tallybus.common.service.core import HELLO_EVERY_NS
from tallybus.services.snapshotter.core import BEHIND_NS, Lookup, SnapshotterCore
from tallybus.services.snapshotter.read_state import ReadState

ME = 100
LOG = 200
HEARTBEAT = 100_000_000
SEGMENT = 10
NONE = np.empty(0, ENTRY_DTYPE)
NO_LINKS = np.empty(0, np.uint64)
NO_PARAMS = np.empty(0, np.int64)


def make(*, frequency: int = 1) -> SnapshotterCore:
    return SnapshotterCore(
        ME, HEARTBEAT, transactions_per_segment=SEGMENT, snapshot_frequency=frequency
    )


def welcome(*, next_id: int = 1, durable: int = 0, peer: int = ME) -> Welcome:
    return Welcome("wal", LOG, peer, 4, next_id, durable, 9)


def running(*, durable: int = 0, frequency: int = 1) -> tuple[SnapshotterCore, ReadState]:
    core = make(frequency=frequency)
    core.on_welcome(welcome(durable=durable), 0)
    state = ReadState(20, SEGMENT)
    core.recovered(state)
    core.on_status(log_status(durable), 0)
    return core, state


def log_status(durable: int, *, term: int = 4) -> StageStatus:
    return StageStatus("wal", term, LOG, durable, durable + 1, durable)


def deposits(count: int, account: int = 1) -> NDArray[np.void]:
    """Executed deposits of 10."""
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.DEPOSIT
    records["account"] = account
    records["amount"] = 10
    records["entry_count"] = 2
    return records


def executed(first: int, records: NDArray[np.void], links: list[int] | None = None) -> Executed:
    extras = np.array(links or [], "<u8")
    return Executed(
        4, LOG, first, len(records), 1, 1, 1, as_buffer(records), as_buffer(extras), len(extras)
    )


def calls_and_registrations(first: int, count: int) -> tuple[NDArray[np.void], list[int]]:
    """Failed calls with two parameters, and at every fourth id one more version of `fee`."""
    records = np.zeros(count, RECORD_DTYPE)
    params: list[int] = []
    for place in range(count):
        tx_id = first + place
        row = records[place]
        if tx_id % 4 == 0:
            row["kind"], row["function"], row["account"] = (
                Kind.FUNCTION_REGISTERED,
                tx_id,
                tx_id // 4,
            )
            row["amount"] = 1
            params += name_words("fee").tolist()
        else:
            row["kind"], row["status"], row["amount"] = Kind.FUNCTION, 130, 2
            row["function"] = row["account"] = tx_id // 4 * 4
            params += [tx_id, -1]
    return records, params


def executed_functions(first: int, count: int) -> Executed:
    records, params = calls_and_registrations(first, count)
    extras = as_buffer(np.array(params, "<i8"))
    return Executed(4, LOG, first, count, 1, 1, 1, as_buffer(records), extras, params=len(params))


def versions(last: int) -> list[FunctionVersion]:
    return [FunctionVersion("fee", tx // 4, tx, tx) for tx in range(4, last + 1, 4)]


def answers(core: SnapshotterCore) -> list[Answer]:
    found = [message for _, message in core.replies if isinstance(message, Answer)]
    core.replies.clear()
    return found


def balances_query(*accounts: int, query: int = 1, least: int = 0) -> Query:
    return Query(query, "balances", least, as_buffer(np.array(accounts, "<u8")))


def status_query(*ids: int, query: int = 1) -> Query:
    return Query(query, "status", 0, as_buffer(np.array(ids, "<u8")))


# -- start -----------------------------------------------------------------------------------------


def test_it_asks_the_log_stage_and_is_silent_until_it_has_a_state() -> None:
    core = make()
    core.tick(0)
    assert core.requests == [Hello("snapshotter", ME)]
    core.tick(HELLO_EVERY_NS)
    assert len(core.requests) == 2
    core.on_welcome(welcome(peer=101), 0)
    assert not core.recovering
    core.on_welcome(welcome(durable=7), 0)
    assert core.recovering
    core.tick(10 * HEARTBEAT)
    core.on_executed(executed(1, deposits(1)), 0)
    core.on_query(b"g", balances_query(1))
    assert (core.broadcasts, core.replies, core.range_to_read(0)) == ([], [], None)
    core.recovered(ReadState(20, SEGMENT))
    assert not core.recovering
    assert core.range_to_read(0) == (1, 7)
    assert core.awaits == "7 transactions of the log are still to be read"


def test_it_goes_on_where_its_snapshot_ends() -> None:
    core = make()
    core.on_welcome(welcome(durable=25), 0)
    state = ReadState(20, SEGMENT)
    state.index = 20
    core.recovered(state)
    assert core.range_to_read(0) == (21, 25)
    assert (core.status().index, core.status().next) == (20, 21)


# -- stream and files ------------------------------------------------------------------------------


def test_the_stream_is_applied_in_order_and_once() -> None:
    core, state = running()
    core.on_executed(executed(1, deposits(3)), 0)
    core.on_executed(executed(1, deposits(3)), 0)
    core.on_executed(executed(3, deposits(3)), 0)
    assert state.index == 5
    assert state.balances[1] == 50
    assert core.status().index == 5


def test_a_partly_known_batch_with_duplicates_is_applied_from_its_rest() -> None:
    core, state = running()
    records = deposits(6)
    for place in (1, 4):
        records["status"][place] = Status.DUPLICATE
        records["entry_count"][place] = 0
    core.on_executed(executed(1, records[:3], [1]), 0)
    core.on_executed(executed(1, records, [1, 3]), 0)
    rows = state.get_statuses(np.array([2, 5], "<u8"))
    assert rows["duplicate_of"].tolist() == [1, 3]
    assert state.balances[1] == 40


def test_a_gap_makes_it_read_the_files_then_go_on_with_the_stream() -> None:
    core, state = running()
    core.on_executed(executed(3, deposits(2)), 0)
    assert core.status().gap
    assert core.range_to_read(0) is None, "nothing of it is known to be durable yet"
    core.on_status(log_status(4), 0)
    assert core.range_to_read(0) == (1, 4)
    core.on_log(Batch(1, deposits(2)), 0)
    assert core.range_to_read(0) == (3, 4)
    assert core.awaits == "2 transactions of the log are still to be read"
    core.on_log(Batch(3, deposits(2)), 0)
    assert core.range_to_read(0) is None
    assert core.awaits == ""
    assert not core.status().gap
    core.on_executed(executed(5, deposits(1)), 0)
    assert (state.index, state.balances[1]) == (5, 50)


def test_a_silent_stream_makes_it_read_the_files_after_a_while() -> None:
    core, _ = running()
    core.on_status(log_status(3), 1000)
    assert core.range_to_read(BEHIND_NS - 1) is None
    assert core.range_to_read(BEHIND_NS) == (1, 3)
    core.on_executed(executed(1, deposits(1)), BEHIND_NS)
    assert core.range_to_read(BEHIND_NS) is None, "the stream moves again"


def test_the_stream_may_overtake_the_reading() -> None:
    core, state = running(durable=4)
    assert core.range_to_read(0) == (1, 4)
    core.on_log(Batch(1, deposits(2)), 0)
    core.on_executed(executed(3, deposits(3)), 0)
    assert state.index == 5
    assert core.range_to_read(0) is None


def test_the_durable_index_never_goes_back() -> None:
    core, _ = running()
    core.on_status(log_status(7, term=6), 0)
    core.on_status(log_status(5, term=5), 0)
    core.on_status(StageStatus("transactor", 9, LOG, 99, 100, 99), 0)
    assert (core.status().durable, core.status().term) == (7, 6)


# -- snapshots -------------------------------------------------------------------------------------


def frozen_segments(core: SnapshotterCore) -> list[tuple[int, int]]:
    """Segment and the balance of account 1 in it."""
    return [(segment, int(frozen.balances[0, 1])) for segment, frozen in core.frozen]


def test_balances_are_frozen_exactly_at_segment_ends() -> None:
    core, state = running()
    core.on_executed(executed(1, deposits(9)), 0)
    assert core.frozen == []
    core.on_executed(executed(10, deposits(1)), 0)
    assert frozen_segments(core) == [(1, 100)]
    core.on_executed(executed(11, deposits(35)), 0)
    assert frozen_segments(core) == [(1, 100), (2, 200), (3, 300), (4, 400)]
    assert (state.index, state.balances[1]) == (45, 450)


def test_batches_across_segment_ends_keep_their_duplicates() -> None:
    core, state = running()
    records = deposits(25)
    duplicates = [5, 9, 10, 15, 19, 20]
    for place in duplicates:
        records["status"][place] = Status.DUPLICATE
        records["entry_count"][place] = 0
    core.on_log(Batch(1, records, np.array([4, 5, 6, 7, 8, 15], np.uint64)), 0)
    rows = state.get_statuses(np.array([place + 1 for place in duplicates], "<u8"))
    assert rows["duplicate_of"].tolist() == [4, 5, 6, 7, 8, 15]
    assert frozen_segments(core) == [(1, 80), (2, 150)]


def test_only_every_so_many_segments_are_frozen() -> None:
    core, _ = running(frequency=3)
    core.on_executed(executed(1, deposits(65)), 0)
    assert [segment for segment, _ in core.frozen] == [3, 6]


# -- functions -------------------------------------------------------------------------------------


def test_functions_are_followed_in_the_stream_and_in_the_files() -> None:
    core, state = running()
    core.on_executed(executed_functions(1, 5), 0)
    core.on_executed(executed_functions(1, 9), 0)
    assert list(state.functions.versions()) == versions(9)
    records, params = calls_and_registrations(10, 40)
    core.on_log(Batch(10, records, params=np.array(params)), 0)
    assert list(state.functions.versions()) == versions(49)
    assert [list(frozen.functions) for _, frozen in core.frozen] == [
        versions(end) for end in (10, 20, 30, 40)
    ]


def test_a_registration_that_cannot_be_ends_the_service() -> None:
    core, state = running()
    core.on_executed(executed_functions(1, 3), 0)
    records, params = calls_and_registrations(4, 5)
    records["account"][0] = 2
    with pytest.raises(RegistrationError) as caught:
        core.on_log(Batch(4, records, params=np.array(params)), 0)
    assert caught.value.transaction_id == 4
    assert state.index == 3


# -- queries ---------------------------------------------------------------------------------------


def test_balances_are_answered_as_of_the_index() -> None:
    core, _ = running()
    core.on_executed(executed(1, deposits(3)), 0)
    core.on_query(b"g", balances_query(0, 1, 2, query=8))
    ((peer, message),) = core.replies
    assert peer == b"g"
    assert isinstance(message, Answer)
    assert (message.query, message.index, message.error) == (8, 3, "")
    assert np.frombuffer(message.values, "<i8").tolist() == [-30, 30, 0]


def test_statuses_are_answered() -> None:
    core, _ = running()
    core.on_executed(executed(1, deposits(1)), 0)
    core.on_query(b"g", status_query(1, 2, 0))
    (message,) = answers(core)
    rows: NDArray[Any] = np.frombuffer(message.values, STATUS_DTYPE)
    assert rows["stage"].tolist() == [Stage.ON_SNAPSHOT, Stage.UNKNOWN, Stage.UNKNOWN]


def test_an_empty_query_gets_an_empty_answer() -> None:
    core, _ = running()
    core.on_query(b"g", balances_query())
    core.on_query(b"g", status_query())
    assert [len(message.values) for message in answers(core)] == [0, 0]


def test_a_query_that_cannot_be_answered_gets_an_error() -> None:
    core, _ = running(durable=0)
    core.on_executed(executed(1, deposits(50)), 0)
    core.on_query(b"g", balances_query(19, 20))
    core.on_query(b"g", status_query(1))
    core.on_query(b"g", Query(3, "nonsense", 0, b""))
    first, second, third = answers(core)
    assert first.details == {"account": 20, "max_accounts": 20}
    assert second.details == {"tx_id": 1, "oldest": 31}
    assert "nonsense" in third.error
    assert core.status().index == 50


def test_a_query_waits_for_what_was_readable_once() -> None:
    core, _ = running(durable=5)
    core.on_query(b"g", balances_query(1, query=1, least=5))
    core.on_query(b"g", balances_query(1, query=2, least=2))
    core.on_query(b"g", balances_query(1, query=3))
    core.tick(0)
    assert [message.query for message in answers(core)] == [3]
    core.on_log(Batch(1, deposits(3)), 0)
    core.tick(0)
    assert [(message.query, message.index) for message in answers(core)] == [(2, 3)]
    core.on_log(Batch(4, deposits(2)), 0)
    core.tick(0)
    assert [(message.query, message.index) for message in answers(core)] == [(1, 5)]
    core.tick(0)
    assert answers(core) == []


# -- transactions ----------------------------------------------------------------------------------


def transaction_query(*ids: int, query: int = 1, least: int = 0) -> Query:
    return Query(query, "transaction", least, as_buffer(np.array(ids, "<u8")))


def logged(tx_id: int) -> LoggedTransaction:
    records, params = calls_and_registrations(tx_id, 1)
    return LoggedTransaction(tx_id, records[0], 0, np.array(params), NONE, 77, 4)


def test_a_transaction_is_asked_of_the_shell_and_completed() -> None:
    core, _ = running()
    core.on_executed(executed_functions(1, 9), 0)
    core.on_query(b"g", transaction_query(6, query=8))
    core.on_query(b"h", transaction_query(8, query=9))
    assert answers(core) == []
    assert list(core.lookups) == [Lookup(b"g", 8, 6), Lookup(b"h", 9, 8)]
    core.on_executed(executed_functions(10, 1), 0)
    while core.lookups:
        lookup = core.lookups.popleft()
        core.looked_up(lookup, logged(lookup.tx_id))
    first, second = core.replies
    assert (first[0], second[0]) == (b"g", b"h")
    call, registration = answers(core)
    assert (call.query, call.index) == (8, 10)
    found = transaction_in(call, 6)
    assert found is not None
    assert (found.function, found.params, found.timestamp_ns) == (("fee", 1), (6, -1), 77)
    found = transaction_in(registration, 8)
    assert found is not None
    assert (found.function, found.name) == (None, "fee")


@pytest.mark.parametrize("tx_id", [0, 10, 2**64 - 1])
def test_a_transaction_that_is_not_readable_yet_is_not_found(tx_id: int) -> None:
    core, _ = running()
    core.on_executed(executed(1, deposits(9)), 0)
    core.on_query(b"g", transaction_query(tx_id))
    (answer,) = answers(core)
    assert (answer.error, answer.index, transaction_in(answer, tx_id)) == ("", 9, None)
    assert not core.lookups


def test_a_query_for_a_transaction_waits_for_its_index() -> None:
    core, _ = running()
    core.on_query(b"g", transaction_query(3, least=3))
    core.tick(0)
    assert not core.lookups
    core.on_executed(executed(1, deposits(3)), 0)
    core.tick(0)
    assert list(core.lookups) == [Lookup(b"g", 1, 3)]


@pytest.mark.parametrize("ids", [(), (1, 2)])
def test_a_query_is_for_one_transaction(ids: tuple[int, ...]) -> None:
    core, _ = running()
    core.on_executed(executed(1, deposits(9)), 0)
    core.on_query(b"g", transaction_query(*ids))
    (answer,) = answers(core)
    assert "one transaction" in answer.error
    assert answer.details == {"asked": len(ids)}


def test_who_asked_is_told_that_the_log_cannot_be_read() -> None:
    core, _ = running()
    core.on_executed(executed(1, deposits(9)), 0)
    core.on_query(b"g", transaction_query(4, query=6))
    core.lookup_failed(core.lookups.popleft(), "it is damaged", {"tx_id": 4})
    (answer,) = answers(core)
    assert (answer.query, answer.error, answer.details) == (6, "it is damaged", {"tx_id": 4})


def test_lookups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallybus.services.snapshotter.core.MAX_PARKED", 3)
    core, _ = running()
    core.on_executed(executed(1, deposits(9)), 0)
    for query in range(5):
        core.on_query(b"g", transaction_query(4, query=query))
    assert [lookup.query for lookup in core.lookups] == [0, 1, 2]
    turned_away = answers(core)
    assert [(answer.query, answer.overloaded) for answer in turned_away] == [(3, True), (4, True)]
    assert turned_away[0].error == "3 transactions are still to be looked up"


def test_queries_that_wait_are_bounded_and_nobody_goes_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tallybus.services.snapshotter.core.MAX_PARKED", 3)
    core, _ = running()
    for query in range(5):
        core.on_query(b"g", balances_query(1, query=query, least=9))
    turned_away = answers(core)
    assert [(answer.query, answer.overloaded) for answer in turned_away] == [(3, True), (4, True)]
    assert turned_away[0].error == "3 queries wait for the snapshot to come as far"
    core.on_executed(executed(1, deposits(9)), 0)
    core.tick(0)
    served = answers(core)
    assert [(answer.query, answer.error) for answer in served] == [(0, ""), (1, ""), (2, "")]
    core.on_query(b"g", balances_query(1, query=5, least=10))
    assert (answers(core), core.parked) == ([], 1), "there is room again"
