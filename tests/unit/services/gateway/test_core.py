"""The gateway between clients and the pipeline, with a pipeline played by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.link import STALL_NS, STALL_REPEATS
from tallybus.common.bus.messages import (
    MAX_U64,
    Answer,
    Assigned,
    Query,
    Request,
    Results,
    ResultsGone,
    ResultsQuery,
    StageStatus,
)
from tallybus.common.record import (
    FAILURE_DTYPE,
    RECORD_DTYPE,
    STATUS_DTYPE,
    Kind,
    Level,
    Stage,
    Status,
)
from tallybus.services.gateway.clients import desk as module
from tallybus.services.gateway.clients.protocol import Limits
from tallybus.services.gateway.core import GatewayCore
from tallybus.services.gateway.pipeline.submissions import ASK_AGAIN_NS

ME = 77
OTHER = 78
MS = 1_000_000
MAX_BATCH = 50
MAX_WAIT_MS = 10_000
Failure = tuple[int, int] | tuple[int, int, int, int]


class Rig:
    """A gateway, its clients, and the four stages as this test plays them."""

    def __init__(self, *, heard: bool = True, capacity: int = 100) -> None:
        self.core = GatewayCore(
            ME,
            capacity,
            100 * MS,
            Limits(max_batch=MAX_BATCH, max_reads=20, max_accounts=1000),
            MAX_WAIT_MS,
        )
        self.now = 0
        self.term = 1
        self.start = 1
        self.lives = {"sequencer": 11, "transactor": 12, "wal": 13, "snapshotter": 14}
        self.expected = 1
        """What the sequencer expects next of this gateway."""
        if heard:
            self.hear()

    def hear(self, index: int = 0) -> None:
        """Every stage is up and at `index`."""
        self.sequencer(index)
        for stage in ("wal", "transactor", "wal", "snapshotter"):
            self.status(stage, index)

    def status(self, stage: str, index: int, *, term: int | None = None) -> None:
        term = self.term if term is None else term
        message = StageStatus(stage, term, self.lives[stage], index, index + 1, index)
        if stage == "wal":
            message.peer = self.lives["transactor"]
        self.core.on_status(message, self.now)

    def sequencer(self, index: int = 0) -> None:
        message = StageStatus(
            "sequencer",
            self.term,
            self.lives["sequencer"],
            index,
            index + 1,
            0,
            start=self.start,
            gateways={ME: self.expected},
        )
        self.core.on_status(message, self.now)

    def new_term(self, start: int, *, expected: int) -> None:
        """Another sequencer goes on at `start`."""
        self.term += 1
        self.lives["sequencer"] += 100
        self.start = start
        self.expected = expected
        self.sequencer(start - 1)

    # -- clients ---------------------------------------------------------------------------------

    def ask(
        self, op: str, request: int, *payload: bytes, client: bytes = b"c", **fields: Any
    ) -> None:
        header = {"v": 1, "op": op, "id": request} | fields
        self.core.on_client(client, [msgpack.packb(header), *payload], self.now)

    def submit(
        self, request: int, count: int = 1, level: int = 1, *, client: bytes = b"c", **fields: Any
    ) -> None:
        self.ask(
            "submit",
            request,
            deposits(count).tobytes(),
            client=client,
            count=count,
            wait=level,
            **fields,
        )

    def sent(self) -> list[Request]:
        """A turn; what it sends to the sequencer."""
        self.core.tick(self.now)
        requests = []
        while (message := self.core.next_data()) is not None:
            assert isinstance(message, Request)
            requests.append(message)
            self.core.data_sent(self.now)
        if requests:
            self.expected = max(self.expected, requests[-1].request + 1)
        return requests

    def answers(self) -> list[dict[str, Any]]:
        """Headers of the answers since the last call, with "client" and "payload" added."""
        self.core.tick(self.now)
        found = []
        for client, frames in self.core.desk.answers:
            header = msgpack.unpackb(frames[0])
            assert header["v"] == 1
            found.append(header | {"client": client, "payload": [bytes(f) for f in frames[1:]]})
        self.core.desk.answers.clear()
        return found

    def answer(self) -> dict[str, Any]:
        (only,) = self.answers()
        return only

    # -- the pipeline ----------------------------------------------------------------------------

    def assign(self, *rows: Sequence[int], term: int | None = None) -> None:
        """Rows of request, first id, count."""
        batches = [[ME, *row] for row in rows]
        self.core.on_assigned(Assigned(self.term if term is None else term, batches))

    def results(
        self,
        request: int,
        first: int,
        count: int,
        failures: Sequence[Failure] = (),
        *,
        gateway: int = ME,
        term: int | None = None,
    ) -> None:
        rows = failure_rows(failures)
        self.core.on_results(
            Results(
                self.term if term is None else term,
                self.lives["transactor"],
                first,
                count,
                [[gateway, request, first, count, len(rows)]],
                as_buffer(rows),
            )
        )

    def queries(self) -> list[Query]:
        self.core.tick(self.now)
        queries = list(self.core.reads.queries)
        self.core.reads.queries.clear()
        return queries

    def asked_again(self) -> list[tuple[int, int]]:
        asked = [(m.first, m.last) for m in self.core.requests if isinstance(m, ResultsQuery)]
        self.core.requests.clear()
        return asked


def deposits(count: int) -> NDArray[np.void]:
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.DEPOSIT
    records["account"] = 1
    records["amount"] = 1
    return records


def failure_rows(failures: Sequence[Failure]) -> NDArray[np.void]:
    """Rows of offset, status and, of duplicates, the first and how it ended."""
    rows = np.zeros(len(failures), FAILURE_DTYPE)
    for row, failure in zip(rows, failures, strict=True):
        row["offset"], row["status"] = failure[:2]
        if len(failure) == 4:
            row["duplicate_of"], row["original_status"] = failure[2:]
    return rows


def failed(answer: dict[str, Any]) -> list[tuple[int, int]]:
    rows = np.frombuffer(answer["payload"][0], FAILURE_DTYPE)
    assert answer["failures"] == len(rows)
    return [(int(row["offset"]), int(row["status"])) for row in rows]


def told(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    return answer["id"], answer["first"], answer["count"], answer["level"]


# -- submissions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", list(Level))
def test_a_submission_is_answered_when_its_level_is_reached(level: Level) -> None:
    rig = Rig()
    rig.submit(9, 3, level)
    (request,) = rig.sent()
    assert (request.gateway, request.request, request.count) == (ME, 1, 3)
    assert bytes(request.records) == deposits(3).tobytes()
    events: dict[Level, Callable[[], None]] = {
        Level.NONE: lambda: rig.assign((1, 1, 3)),
        Level.COMPUTED: lambda: rig.results(1, 1, 3, [(1, Status.INSUFFICIENT_FUNDS)]),
        Level.COMMITTED: lambda: rig.status("wal", 3),
        Level.SNAPSHOT: lambda: rig.status("snapshotter", 3),
    }
    for reached, event in events.items():
        assert rig.answers() == []
        event()
        if reached is level:
            break
    answer = rig.answer()
    assert told(answer) == (9, 1, 3, level)
    assert failed(answer) == ([] if level is Level.NONE else [(1, Status.INSUFFICIENT_FUNDS)])
    rig.results(1, 1, 3)
    rig.hear(3)
    assert rig.answers() == []
    assert rig.core.link.weight == 0


def test_an_index_that_was_reached_before_the_outcome_counts() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.SNAPSHOT)
    rig.sent()
    rig.status("wal", 2)
    rig.status("snapshotter", 2)
    assert rig.answers() == []
    rig.results(1, 1, 2)
    assert told(rig.answer()) == (1, 1, 2, Level.SNAPSHOT)


def test_an_index_in_the_middle_of_a_submission_does_not_answer_it() -> None:
    rig = Rig()
    rig.submit(1, 3, Level.COMMITTED)
    rig.sent()
    rig.results(1, 1, 3)
    rig.status("wal", 2)
    assert rig.answers() == []
    rig.status("wal", 3)
    assert len(rig.answers()) == 1


def test_small_submissions_share_a_batch_and_get_their_own_outcomes() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED, client=b"a")
    rig.submit(1, 1, Level.COMMITTED, client=b"b")
    rig.submit(2, 3, Level.COMPUTED, client=b"a")
    rig.submit(7, 2, Level.NONE, client=b"d")
    (request,) = rig.sent()
    assert request.count == 8
    rig.results(1, 21 - 20, 8, [(0, 1), (2, 5), (3, 6), (5, Status.DUPLICATE, 4, 0), (7, 8)])
    answers = {(a["client"], a["id"]): a for a in rig.answers()}
    assert sorted(answers) == [(b"a", 1), (b"a", 2), (b"d", 7)]
    assert told(answers[b"a", 1]) == (1, 1, 2, 1)
    assert failed(answers[b"a", 1]) == [(0, 1)]
    assert told(answers[b"a", 2]) == (2, 4, 3, 1)
    assert failed(answers[b"a", 2]) == [(0, 6), (2, Status.DUPLICATE)]
    row = np.frombuffer(answers[b"a", 2]["payload"][0], FAILURE_DTYPE)[1]
    assert (row["duplicate_of"], row["original_status"]) == (4, 0)
    assert told(answers[b"d", 7]) == (7, 7, 2, 0)
    rig.status("wal", 8)
    answer = rig.answer()
    assert told(answer) == (1, 3, 1, Level.COMMITTED)
    assert failed(answer) == [(0, 5)]


def test_submissions_of_a_client_keep_their_order() -> None:
    rig = Rig(capacity=10_000)
    sizes = [1, 50, 2, 49, 1, 50]
    for number, size in enumerate(sizes):
        rig.submit(number, size)
    requests = rig.sent()
    assert [r.count for r in requests] == [1, 50, 2, 50, 50]
    first = 1
    for request in requests:
        rig.results(request.request, first, request.count)
        first += request.count
    firsts = [a["first"] for a in sorted(rig.answers(), key=lambda a: int(a["id"]))]
    assert firsts == [1 + sum(sizes[:place]) for place in range(len(sizes))]


def test_results_in_parts_make_one_answer() -> None:
    rig = Rig()
    rig.submit(1, 5, Level.COMPUTED)
    rig.sent()
    rig.results(1, 1, 2, [(1, 5)])
    assert rig.answers() == []
    rig.results(1, 3, 3, [(0, 6), (2, 7, 1, 0)])
    answer = rig.answer()
    assert told(answer) == (1, 1, 5, 1)
    assert failed(answer) == [(1, 5), (2, 6), (4, 7)]


def test_outcomes_before_the_ids_or_without_them_are_enough() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED)
    rig.sent()
    rig.submit(2, 2, Level.NONE)
    rig.sent()
    rig.results(1, 1, 2)
    rig.results(2, 3, 2)
    assert [told(a) for a in rig.answers()] == [(1, 1, 2, 1), (2, 3, 2, 0)]
    rig.assign((1, 1, 2), (2, 3, 2))
    assert rig.answers() == []


def test_outcomes_of_other_gateways_only_move_the_index() -> None:
    rig = Rig()
    rig.submit(1, 2, Level.COMPUTED)
    rig.sent()
    rig.results(1, 1, 4, [(0, 1)], gateway=OTHER)
    rig.core.on_assigned(Assigned(1, [[OTHER, 1, 1, 4]]))
    assert rig.answers() == []
    assert rig.core.progress.computed == 4
    rig.results(1, 5, 2)
    assert told(rig.answer()) == (1, 5, 2, 1)


def test_repeated_and_overlapping_outcomes_change_nothing() -> None:
    rig = Rig()
    rig.submit(1, 4, Level.COMPUTED)
    rig.sent()
    rig.results(1, 1, 3, [(0, 1)])
    rig.results(1, 1, 3, [(0, 1)])
    rig.results(1, 1, 4, [(0, 1), (3, 5)])
    assert failed(rig.answer()) == [(0, 1), (3, 5)]


def test_nothing_leaves_before_the_transactor_was_heard() -> None:
    rig = Rig(heard=False)
    rig.submit(1, 1, Level.COMPUTED)
    assert rig.sent() == []
    rig.hear(40)
    assert len(rig.sent()) == 1
    rig.results(1, 41, 1)
    assert told(rig.answer()) == (1, 41, 1, 1)


# -- missed broadcasts -----------------------------------------------------------------------------


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


def test_a_commit_index_ahead_of_missed_outcomes_answers_nothing() -> None:
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


# -- terms -----------------------------------------------------------------------------------------


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


# -- refusals and deadlines ------------------------------------------------------------------------


def test_when_the_pipeline_is_full_submissions_are_refused_and_reads_go_on() -> None:
    rig = Rig(capacity=10)
    rig.submit(1, 8, Level.COMPUTED)
    rig.sent()
    rig.submit(2, 3)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (2, "overloaded")
    assert rig.core.desk.overloads == 1
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


# -- reads -----------------------------------------------------------------------------------------


def keys(*numbers: int) -> bytes:
    return np.array(numbers, "<u8").tobytes()


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


def stages(answer: dict[str, Any]) -> list[tuple[int, int, int]]:
    rows = np.frombuffer(answer["payload"][0], STATUS_DTYPE)
    assert answer["count"] == len(rows)
    return [(int(r["stage"]), int(r["status"]), int(r["duplicate_of"])) for r in rows]


def snapshot_rows(*rows: tuple[int, int, int]) -> memoryview:
    array = np.zeros(len(rows), STATUS_DTYPE)
    for place, (stage, status, duplicate) in enumerate(rows):
        array[place] = (stage, status, (0, 0, 0, 0), 0, 0, duplicate)
    return as_buffer(array)


def test_statuses_are_told_at_every_stage() -> None:
    rig = Rig()
    rig.results(1, 1, 8, [(2, 5), (5, Status.DUPLICATE, 1, 0), (7, 200)], gateway=OTHER)
    rig.sequencer(9)
    rig.status("wal", 6)
    rig.status("snapshotter", 4)
    rig.ask("status", 1, keys(9, 7, 5, 6, 8, 3, 1, 10, 0, 3))
    (query,) = rig.queries()
    assert (query.what, np.frombuffer(query.keys, "<u8").tolist()) == ("status", [3, 1, 3])
    error = (Stage.ERROR, 5, 0)
    rows = snapshot_rows(error, (Stage.ON_SNAPSHOT, 0, 0), error)
    rig.core.on_answer(Answer(query.query, 4, values=rows))
    assert stages(rig.answer()) == [
        (Stage.PENDING, 0, 0),
        (Stage.COMPUTED, 0, 0),
        (Stage.COMMITTED, 0, 0),
        (Stage.ERROR, Status.DUPLICATE, 1),
        (Stage.ERROR, 200, 0),
        error,
        (Stage.ON_SNAPSHOT, 0, 0),
        (Stage.UNKNOWN, 0, 0),
        (Stage.UNKNOWN, 0, 0),
        error,
    ]


def test_statuses_of_what_became_readable_meanwhile_keep_their_outcome() -> None:
    rig = Rig()
    rig.results(1, 1, 4, [(3, 5)], gateway=OTHER)
    rig.status("wal", 4)
    rig.status("snapshotter", 2)
    rig.ask("status", 1, keys(1, 4))
    (query,) = rig.queries()
    rig.status("snapshotter", 4)
    rig.core.on_answer(Answer(query.query, 4, values=snapshot_rows((Stage.ON_SNAPSHOT, 0, 0))))
    assert stages(rig.answer()) == [(Stage.ON_SNAPSHOT, 0, 0), (Stage.ERROR, 5, 0)]


def test_a_committed_transaction_whose_outcome_was_missed_is_not_told_as_success() -> None:
    rig = Rig()
    rig.results(1, 1, 2, gateway=OTHER)
    rig.sequencer(4)
    rig.status("wal", 4)
    rig.ask("status", 1, keys(2, 3, 4))
    assert [stage for stage, _, _ in stages(rig.answer())] == [
        Stage.COMMITTED,
        Stage.PENDING,
        Stage.PENDING,
    ]


def test_statuses_from_before_this_gateway_wait_for_the_snapshot() -> None:
    rig = Rig(heard=False)
    rig.sequencer(8)
    rig.status("transactor", 8)
    rig.status("wal", 8)
    rig.status("snapshotter", 5)
    rig.ask("status", 1, keys(7, 8))
    assert rig.queries() == []
    assert rig.answers() == []
    rig.status("snapshotter", 8)
    (query,) = rig.queries()
    assert np.frombuffer(query.keys, "<u8").tolist() == [7, 8]


def test_after_a_hole_in_the_outcomes_statuses_are_not_made_up() -> None:
    rig = Rig()
    rig.results(1, 1, 2, gateway=OTHER)
    rig.core.on_results_gone(ResultsGone(5))
    rig.results(1, 5, 2, gateway=OTHER)
    rig.sequencer(6)
    rig.ask("status", 1, keys(3))
    assert rig.answers() == []
    rig.status("snapshotter", 6)
    assert len(rig.queries()) == 1


def test_void_outcomes_are_not_shown_as_statuses() -> None:
    rig = Rig()
    rig.results(1, 1, 2, gateway=OTHER)
    rig.results(2, 3, 4, [(0, 5), (2, 6)], gateway=OTHER)
    rig.new_term(5, expected=1)
    rig.results(2, 3, 2, [(0, 5)], gateway=OTHER, term=1)
    rig.results(3, 5, 2, gateway=OTHER)
    rig.ask("status", 1, keys(1, 3, 5, 6))
    assert [stage for stage, _, _ in stages(rig.answer())] == [
        Stage.COMPUTED,
        Stage.ERROR,
        Stage.COMPUTED,
        Stage.COMPUTED,
    ]


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


def test_no_time_at_all_is_enough_for_what_is_known_and_does_not_stop_a_submit() -> None:
    rig = Rig()
    rig.ask("index", 1, timeout_ms=0)
    rig.ask("wait", 2, tx_id=0, wait=2, timeout_ms=0)
    assert [(each["id"], "error" in each) for each in rig.answers()] == [(1, False), (2, False)]
    rig.submit(3, 1, Level.NONE, timeout_ms=0)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (3, "timeout")
    assert [request.count for request in rig.sent()] == [1], "it is executed all the same"


# -- pings and bad requests ------------------------------------------------------------------------


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


ONE = deposits(1).tobytes()
ASK = {"op": "submit", "count": 1, "wait": 1}


def spoilt(kind: int = Kind.DEPOSIT, count: int = 1, **fields: int) -> list[bytes]:
    """Records of this kind, the last of which has these fields; with the parameters of calls."""
    records = deposits(count)
    if kind == Kind.FUNCTION:
        records["account"] = records["amount"] = 0
    if kind == Kind.TRANSFER:
        records["counterparty"] = 2
    records["kind"] = kind
    for name, value in fields.items():
        records[name][-1] = value
    return [records.tobytes()] + [bytes(64 * count)] * (kind == Kind.FUNCTION)


CALL = spoilt(Kind.FUNCTION)[0]
BAD: list[tuple[str, dict[str, Any], list[bytes], str]] = [
    ("no operation", {}, [], "op"),
    ("unknown operation", {"op": "destroy"}, [], "op"),
    ("operation of another type", {"op": 5}, [], "op"),
    ("operation as bytes", {"op": b"ping"}, [], "op"),
    ("nested operation", {"op": [[["x"]]]}, [], "op"),
    ("time out below zero", {"op": "index", "timeout_ms": -1}, [], "timeout_ms"),
    ("time out as text", {"op": "index", "timeout_ms": "5"}, [], "timeout_ms"),
    ("time out as a fraction", {"op": "index", "timeout_ms": 1.5}, [], "timeout_ms"),
    ("time out as a whole float", {"op": "index", "timeout_ms": 5.0}, [], "timeout_ms"),
    ("time out as truth", {"op": "index", "timeout_ms": True}, [], "timeout_ms"),
    ("time out as nil", {"op": "index", "timeout_ms": None}, [], "timeout_ms"),
    ("index with a payload", {"op": "index"}, [b""], "payload"),
    ("submit without payload", ASK, [], "payload"),
    ("submit with too many payloads", ASK, [ONE, b"", b""], "payload"),
    ("submit without count", {"op": "submit", "wait": 1}, [ONE], "count"),
    ("submit of nothing", ASK | {"count": 0}, [b""], "count"),
    ("submit of too much", ASK | {"count": MAX_BATCH + 1}, [ONE * (MAX_BATCH + 1)], "count"),
    ("submit of less than it says", ASK | {"count": 2}, [ONE], "records"),
    ("submit of half a record", ASK, [ONE[:-1]], "records"),
    ("count as truth", ASK | {"count": True}, [ONE], "count"),
    ("count as a float", ASK | {"count": 1.0}, [ONE], "count"),
    ("submit without a level", {"op": "submit", "count": 1}, [ONE], "wait"),
    ("submit with a misspelt level", {"op": "submit", "count": 1, "wiat": 2}, [ONE], "wiat"),
    ("submit with a misspelt level beside it", ASK | {"Wait": 2}, [ONE], "Wait"),
    ("level below zero", ASK | {"wait": -1}, [ONE], "wait"),
    ("level that is none", ASK | {"wait": 4}, [ONE], "wait"),
    ("level as text", ASK | {"wait": "committed"}, [ONE], "wait"),
    ("level as truth", ASK | {"wait": True}, [ONE], "wait"),
    ("level as a float", ASK | {"wait": 2.0}, [ONE], "wait"),
    ("level as nil", ASK | {"wait": None}, [ONE], "wait"),
    ("a field of another request", ASK | {"min_tx_id": 1}, [ONE], "min_tx_id"),
    ("a key that is no text", ASK | {5: 1}, [ONE], "5"),
    ("a key that is nil", ASK | {None: 1}, [ONE], "None"),
    ("a key as bytes", ASK | {b"names": []}, [ONE], "b'names'"),
    ("parameters without calls", ASK, [ONE, bytes(64)], "params"),
    ("an empty frame of parameters", ASK, [ONE, b""], "params"),
    ("a call without parameters", ASK | {"names": ["fee"]}, [CALL], "params"),
    ("a call with half of them", ASK | {"names": ["fee"]}, [CALL, bytes(32)], "params"),
    ("a call with those of two", ASK | {"names": ["fee"]}, [CALL, bytes(128)], "params"),
    ("names as text", ASK | {"names": "fee"}, [ONE], "names"),
    ("names as nil", ASK | {"names": None}, [ONE], "names"),
    ("names of other types", ASK | {"names": [1]}, [ONE], "names"),
    ("a name that no function has", ASK | {"names": ["fee", "a b"]}, [ONE], "names"),
    ("an empty name", ASK | {"names": [""]}, [ONE], "names"),
    ("a long name", ASK | {"names": ["n" * 33]}, [ONE], "names"),
    ("long names", ASK | {"names": ["n" * 32] * 3000}, [ONE], "names"),
    ("many names", ASK | {"names": ["n"] * 5000}, [ONE], "names"),
    ("kind 0", ASK, spoilt(kind=0), "kind"),
    ("a registration among operations", ASK, spoilt(kind=5), "kind"),
    ("an unknown kind", ASK, spoilt(kind=99), "kind"),
    ("a deposit from somewhere", ASK, spoilt(counterparty=77), "counterparty"),
    ("a deposit that calls", ASK | {"names": ["fee", "tax"]}, spoilt(function=1), "function"),
    ("a status", ASK, spoilt(status=1), "status"),
    ("a count of entries", ASK, spoilt(entry_count=1), "entry_count"),
    ("a reason", ASK, spoilt(reason=1), "reason"),
    ("a withdrawal to somewhere", ASK, spoilt(2, counterparty=1), "counterparty"),
    ("a transfer that calls", ASK, spoilt(3, function=1), "function"),
    ("a transfer with a status", ASK | {"count": 3}, spoilt(3, 3, status=7), "status"),
    ("a call without names", ASK, spoilt(4), "function"),
    ("a call beyond the names", ASK | {"names": ["fee"]}, spoilt(4, function=1), "function"),
    ("a call of an account", ASK | {"names": ["fee"]}, spoilt(4, account=1), "account"),
    ("a call of two", ASK | {"names": ["fee"]}, spoilt(4, counterparty=1), "counterparty"),
    ("a call of an amount", ASK | {"names": ["fee"]}, spoilt(4, amount=1), "amount"),
    ("the last of many", ASK | {"count": 50}, spoilt(1, 50, counterparty=1), "counterparty"),
    ("balances of nothing", {"op": "balances"}, [b""], "keys"),
    ("balances without payload", {"op": "balances"}, [], "payload"),
    ("balances of half a number", {"op": "balances"}, [b"1234"], "keys"),
    ("balances of too many", {"op": "balances"}, [keys(*range(21))], "keys"),
    ("an account that cannot be", {"op": "balances"}, [keys(1, 1000)], "account"),
    ("the largest account", {"op": "balances"}, [keys(MAX_U64)], "account"),
    ("balances to a level", {"op": "balances", "wait": 3}, [keys(1)], "wait"),
    ("minimum as text", {"op": "balances", "min_tx_id": "1"}, [keys(1)], "min_tx_id"),
    ("minimum as nil", {"op": "balances", "min_tx_id": None}, [keys(1)], "min_tx_id"),
    ("minimum below zero", {"op": "status", "min_tx_id": -1}, [keys(1)], "min_tx_id"),
    ("status with a count", {"op": "status", "count": 1}, [keys(1)], "count"),
    ("a transaction without id", {"op": "transaction"}, [], "tx_id"),
    ("transactions", {"op": "transaction", "tx_id": 1, "tx_ids": [1]}, [], "tx_ids"),
    ("wait without id", {"op": "wait", "wait": 1}, [], "tx_id"),
    ("wait without a level", {"op": "wait", "tx_id": 1}, [], "wait"),
    ("wait for a level", {"op": "wait", "tx_id": 1, "wait": 1, "level": 2}, [], "level"),
    ("wait for a negative id", {"op": "wait", "wait": 1, "tx_id": -1}, [], "tx_id"),
    ("index to a transaction", {"op": "index", "min_tx_id": 1}, [], "min_tx_id"),
    ("services by name", {"op": "services", "stage": "wal"}, [], "stage"),
    ("functions by name", {"op": "functions", "name": "fee"}, [], "name"),
    ("register without a level", {"op": "register", "name": "fee"}, [b"wasm"], "wait"),
    ("register with a reference", {"op": "register", "ref": 1}, [b"wasm"], "ref"),
    ("register nothing", {"op": "register", "name": "fee", "wait": 1}, [b""], "binary"),
    ("register no text", {"op": "register", "name": 5, "wait": 1}, [b"wasm"], "name"),
    (
        "register over it, perhaps",
        {"op": "register", "name": "fee", "wait": 1, "override": 1},
        [b"wasm"],
        "override",
    ),
    (
        "register with a broken reference",
        {"op": "register", "name": "fee", "wait": 1, "user_ref": 1.0},
        [b"wasm"],
        "user_ref",
    ),
    ("unregister without a level", {"op": "unregister", "name": "fee"}, [], "wait"),
    (
        "unregister over it",
        {"op": "unregister", "name": "fee", "wait": 1, "override": True},
        [],
        "override",
    ),
    ("unregister a module", {"op": "unregister", "name": "fee", "wait": 1}, [b"wasm"], "payload"),
    ("pending as a map", {"op": "ping", "pending": {}}, [], "pending"),
    ("pending as nil", {"op": "ping", "pending": None}, [], "pending"),
    ("pending of other types", {"op": "ping", "pending": [1, "2"]}, [], "pending"),
    ("pending truths", {"op": "ping", "pending": [True]}, [], "pending"),
    ("pending of too many", {"op": "ping", "pending": list(range(70_000))}, [], "pending"),
    ("pending, misspelt", {"op": "ping", "pendign": [1]}, [], "pendign"),
]


@pytest.mark.parametrize(
    ("header", "payload", "field"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_bad_request_is_answered_with_its_id(
    header: dict[str, Any], payload: list[bytes], field: str
) -> None:
    rig = Rig()
    frames = [msgpack.packb({"v": 1, "id": MAX_U64} | header), *payload]
    rig.core.on_client(b"c", frames, 0)
    answer = rig.answer()
    assert (answer["client"], answer["id"], answer["error"]) == (b"c", MAX_U64, "invalid_request")
    assert 10 < len(answer["message"]) < 1000
    assert answer["details"]["field"] == field
    assert rig.core.desk.bad_requests == 1
    assert rig.sent() == []
    rig.ask("index", MAX_U64)
    assert rig.answer()["term"] == 1, "the id is free and the gateway lives"


def test_a_bad_record_is_told_with_its_place_and_value() -> None:
    rig = Rig()
    rig.ask("submit", 1, *spoilt(1, 20, counterparty=77), count=20, wait=2)
    answer = rig.answer()
    assert answer["details"] == {"field": "counterparty", "index": 19, "value": 77}
    assert "operation 19" in answer["message"]
    assert "counterparty" in answer["message"]


def test_a_key_that_is_there_twice_is_refused() -> None:
    rig = Rig()
    twice = b"\x85\xa1v\x01\xa2id\x01\xa2op\xa4wait\xa4wait\x02\xa4wait\x01"
    rig.core.on_client(b"c", [twice], 0)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (None, "invalid_request")
    assert "'wait' is there twice" in answer["message"]


@pytest.mark.parametrize("names", [["fee", "unused"], ["fee", "fee"]])
def test_a_name_may_be_there_that_no_call_uses_or_twice(names: list[str]) -> None:
    rig = Rig()
    rig.ask("submit", 1, *spoilt(Kind.FUNCTION), count=1, wait=1, names=names)
    (request,) = rig.sent()
    assert request.names == names
    assert rig.answers() == []


def test_amounts_and_accounts_are_left_to_the_transactor() -> None:
    rig = Rig()
    rig.ask("submit", 1, *spoilt(account=MAX_U64), count=1, wait=1)
    rig.ask("submit", 2, *spoilt(amount=0), count=1, wait=1)
    rig.ask("submit", 3, *spoilt(Kind.TRANSFER, counterparty=MAX_U64), count=1, wait=1)
    assert rig.answers() == []
    assert sum(request.count for request in rig.sent()) == 3


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"\xc1"],
        [msgpack.packb([1])],
        [msgpack.packb({"v": 1, "op": "index"})],
        [msgpack.packb({"v": 1, "op": "index", "id": -1})],
        [msgpack.packb({"v": 1, "op": "index", "id": True})],
        [msgpack.packb({"v": 1, "op": "index", "id": "1"})],
        [msgpack.packb({"v": 1, "op": "index", "id": 1.0})],
        [b"\x81\xa1v" + b"\x91" * 1000 + b"\x00"],
        [b"\x81\xa2id" + b"\x91" * 1000 + b"\x00"],
        [b"\x82\xa1v\x01\xa2id" + b"\x91" * 1000 + b"\x00"],
        [bytes(2 << 20)],
    ],
)
def test_what_has_no_readable_id_is_answered_without_one(frames: list[bytes]) -> None:
    rig = Rig()
    rig.core.on_client(b"c", frames, 0)
    answer = rig.answer()
    assert answer["id"] is None
    assert answer["error"] in ("invalid_request", "unsupported_version")


@pytest.mark.parametrize("version", [0, 2, None, "1", [1], True, 1.0, b"1"])
def test_another_version_is_refused_by_name(version: object) -> None:
    rig = Rig()
    rig.core.on_client(b"c", [msgpack.packb({"v": version, "id": 4, "op": "index"})], 0)
    answer = rig.answer()
    assert (answer["id"], answer["error"]) == (4, "unsupported_version")
    assert answer["details"]["supported"] == 1


simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.binary(max_size=8),
    st.text(max_size=8),
)
values = st.one_of(
    simple, st.lists(simple, max_size=3), st.dictionaries(st.text(max_size=3), simple, max_size=2)
)
fields = st.sampled_from(
    ["id", "timeout_ms", "count", "wait", "names", "tx_id", "min_tx_id", "pending", "x", "details"]
)
operation_names = st.sampled_from(
    ["submit", "balances", "status", "index", "wait", "ping", "services", "history", "", "help"]
)
small_numbers = st.one_of(st.integers(0, 5), values)


@given(
    st.lists(
        st.one_of(
            st.lists(st.binary(max_size=90), max_size=4),
            st.tuples(
                operation_names,
                st.dictionaries(fields, small_numbers, max_size=6),
                st.lists(
                    st.one_of(
                        st.sampled_from([ONE, ONE * 2, keys(1), b""]), st.binary(max_size=90)
                    ),
                    max_size=3,
                ),
            ),
        ),
        max_size=12,
    )
)
def test_nothing_that_a_client_sends_raises(messages: list[Any]) -> None:
    rig = Rig()
    expected = 0
    for message in messages:
        if isinstance(message, tuple):
            operation, header, payload = message
            message = [msgpack.packb({"v": 1, "id": 1, "op": operation} | header), *payload]
        rig.core.on_client(b"c", message, rig.now)
        expected += 1
        rig.sent()
    rig.now = MAX_WAIT_MS * MS + 1
    answers = rig.answers()
    assert len(answers) == expected, "every message gets exactly one answer"
    assert len(rig.core.desk) == 0
    assert rig.core.desk.next_deadline_ns() is None


@given(st.binary(max_size=200), st.data())
def test_a_mutated_request_does_not_raise(noise: bytes, data: st.DataObject) -> None:
    rig = Rig()
    header = {
        "v": 1,
        "id": 3,
        "op": "submit",
        "count": 2,
        "wait": 1,
        "names": ["a"],
        "timeout_ms": 9,
    }
    frames = [bytearray(msgpack.packb(header)), bytearray(ONE * 2)]
    for byte in noise[:6]:
        frame = data.draw(st.sampled_from(frames))
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = byte
    rig.core.on_client(b"c", [bytes(frame) for frame in frames], 0)
    rig.now = MAX_WAIT_MS * MS + 1
    rig.sent()
    assert len(rig.answers()) == 1


# -- another transactor ----------------------------------------------------------------------------


def another_transactor(rig: Rig, start: int, index: int) -> None:
    """The log follows another one, which has executed up to `index`, from `start` on itself."""
    rig.lives["transactor"] += 100
    rig.status("wal", start - 1)
    message = StageStatus(
        "transactor", rig.term, rig.lives["transactor"], index, index + 1, 0, start=start
    )
    rig.core.on_status(message, rig.now)


def running_submit(rig: Rig, level: Level, count: int = 4) -> None:
    rig.submit(1, count, level)
    (request,) = rig.sent()
    rig.sequencer(count)
    rig.assign((request.request, 1, count))


@pytest.mark.parametrize("level", [Level.COMMITTED, Level.SNAPSHOT])
def test_outcomes_of_a_transactor_that_died_are_void_from_where_the_next_one_began(
    level: Level,
) -> None:
    rig = Rig()
    running_submit(rig, level)
    rig.results(1, 1, 4, [(3, Status.NOT_RUN)])
    another_transactor(rig, 3, 2)
    rig.status("wal", 4)
    rig.status("snapshotter", 4)
    assert rig.answers() == []
    rig.results(1, 3, 2, [(0, Status.NOT_RUN)])
    rig.status("wal", 4)
    rig.status("snapshotter", 4)
    assert failed(rig.answer()) == [(2, Status.NOT_RUN)]


def test_outcomes_before_where_the_next_one_began_hold() -> None:
    rig = Rig()
    running_submit(rig, Level.COMMITTED)
    rig.results(1, 1, 3, [(0, 200), (2, 201)])
    another_transactor(rig, 3, 2)
    rig.results(1, 3, 2)
    rig.status("wal", 4)
    assert failed(rig.answer()) == [(0, 200)]


def test_what_is_durable_is_not_told_before_it_is_known_whose_outcome_it_is() -> None:
    rig = Rig()
    running_submit(rig, Level.COMMITTED)
    rig.results(1, 1, 4)
    rig.lives["transactor"] += 100
    rig.status("wal", 4)
    assert rig.answers() == [], "the log follows one that was not heard of"
    another = StageStatus("transactor", 1, rig.lives["transactor"], 4, 5, 4, start=5)
    rig.core.on_status(another, rig.now)
    rig.status("wal", 4)
    assert told(rig.answer()) == (1, 1, 4, 2)


def test_a_snapshot_does_not_tell_what_the_log_has_not() -> None:
    rig = Rig()
    running_submit(rig, Level.SNAPSHOT)
    rig.results(1, 1, 4)
    rig.lives["transactor"] += 100
    rig.status("snapshotter", 4)
    assert rig.answers() == []
    rig.lives["transactor"] -= 100
    rig.status("wal", 4)
    assert told(rig.answer()) == (1, 1, 4, 3)


def test_a_transactor_that_the_log_does_not_follow_is_not_believed() -> None:
    rig = Rig()
    running_submit(rig, Level.COMPUTED)
    rig.lives["transactor"] += 100
    rig.status("transactor", 4)
    rig.results(1, 1, 4)
    assert rig.answers() == []
    assert rig.asked_again() == []
    rig.lives["transactor"] -= 100
    rig.results(1, 1, 4)
    assert told(rig.answer()) == (1, 1, 4, 1)


def test_statuses_follow_the_transactor_that_executed_again() -> None:
    rig = Rig()
    running_submit(rig, Level.NONE)
    assert told(rig.answer()) == (1, 1, 4, 0)
    rig.results(1, 1, 4, [(1, 200), (2, 201), (3, 202)])
    another_transactor(rig, 3, 2)
    rig.ask("status", 2, keys(2, 3, 4))
    assert stages(rig.answer()) == [
        (Stage.ERROR, 200, 0),
        (Stage.PENDING, 0, 0),
        (Stage.PENDING, 0, 0),
    ]
    rig.results(1, 3, 2, [(1, 203)])
    rig.ask("status", 3, keys(2, 3, 4))
    assert stages(rig.answer()) == [
        (Stage.ERROR, 200, 0),
        (Stage.COMPUTED, 0, 0),
        (Stage.ERROR, 203, 0),
    ]


# -- calls of functions ----------------------------------------------------------------------------


def call_records(count: int) -> bytes:
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.FUNCTION
    return records.tobytes()


def submit_calls(rig: Rig, request: int, count: int = 1, *, client: bytes = b"c") -> None:
    rig.ask(
        "submit", request, call_records(count), bytes(64 * count),
        client=client, count=count, wait=1, names=["f"],
    )  # fmt: skip


def test_submits_that_were_joined_keep_their_bounds_on_the_way() -> None:
    rig = Rig()
    submit_calls(rig, 1, 2, client=b"a")
    submit_calls(rig, 1, 3, client=b"b")
    (request,) = rig.sent()
    assert request.counts == [2, 3]
    rig.now += 10**9
    submit_calls(rig, 2, 4, client=b"a")
    (request,) = rig.sent()
    assert request.counts == []


def test_plain_submits_pass_the_calls_that_wait_for_their_turn() -> None:
    rig = Rig()
    for number in range(1, 4):
        submit_calls(rig, number, 30, client=b"a")
    (calls,) = rig.sent()
    assert calls.count == 30, "nobody knows how long they take"
    rig.submit(4, client=b"b")
    (plain,) = rig.sent()
    assert plain.count == 1
    rig.submit(5, client=b"a")
    assert rig.sent() == [], "it stays behind its own client's calls"


def test_calls_that_waited_in_vain_had_no_effect() -> None:
    rig = Rig()
    for number in (1, 2):
        submit_calls(rig, number, 30)
    assert len(rig.sent()) == 1
    rig.now += MAX_WAIT_MS * MS
    first, second = rig.answers()
    assert (first["id"], first["error"]) == (1, "timeout")
    assert (second["id"], second["error"]) == (2, "overloaded")
    assert "nothing was done" in second["message"]
    rig.results(1, 1, 30)
    rig.now += 10**9
    assert rig.sent() == []
    assert not rig.core.under_way


def test_the_time_of_each_submit_is_charged_to_its_client() -> None:
    rig = Rig()
    charged: list[tuple[bytes, int]] = []
    rig.core.submissions.work.charged = lambda owner, ns: charged.append((owner, ns))
    submit_calls(rig, 1, 2, client=b"a")
    submit_calls(rig, 1, 3, client=b"b")
    (request,) = rig.sent()
    rig.core.on_results(
        Results(
            rig.term,
            rig.lives["transactor"],
            1,
            2,
            [[ME, request.request, 1, 2, 0]],
        )
    )
    assert charged == []
    rig.core.on_results(
        Results(
            rig.term,
            rig.lives["transactor"],
            3,
            3,
            [[ME, request.request, 3, 3, 0]],
            work=[20, 30],
        )
    )
    assert charged == [(b"a", 20), (b"b", 30)]
    assert len(rig.answers()) == 2
