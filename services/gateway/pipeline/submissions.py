"""Clients' submissions on their way through the pipeline, from gathering to their answers.

A turn's submissions become batches, numbered requests to the sequencer that are kept and sent again
until they are computed. Broadcasts tell which ids they got and how they ended; a gap in the
outcomes is asked for again, never taken for success. What a new term, a restart or a missed outcome
makes unsure is given up with an error that tells what is known of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tallybus.common.buffers import EMPTY, as_buffer, size
from tallybus.common.bus.link import LinkSender, weigh
from tallybus.common.bus.messages import (
    Assigned,
    Request,
    Results,
    ResultsGone,
    ResultsQuery,
    StageStatus,
)
from tallybus.common.protocol import ErrorCode
from tallybus.common.record import FAILURE_DTYPE, MAX_U64, STATUS_DTYPE, Level, Stage
from tallybus.services.gateway.clients.desk import Desk
from tallybus.services.gateway.clients.protocol import Submit
from tallybus.services.gateway.pipeline.batches import Gatherer, PendingBatch, PendingBatches
from tallybus.services.gateway.pipeline.outcomes import RecentOutcomes
from tallybus.services.gateway.pipeline.progress import Progress
from tallybus.services.gateway.pipeline.terms import Terms
from tallybus.services.gateway.pipeline.work import WorkQueue

ASK_AGAIN_NS: Final = 100_000_000
SUBMIT_NS: Final = 100_000_000
"""What the calls of a submit may take, unless the settings say otherwise."""
NO_FAILURES: Final = np.empty(0, FAILURE_DTYPE)


class Submissions:
    """Follows the batches of one gateway, `incarnation`, and answers their submissions at `desk`.

    `progress` is shared with the core, which advances it; here it is lowered when a term begins.
    """

    def __init__(
        self,
        incarnation: int,
        max_in_flight: int,
        max_batch: int,
        desk: Desk,
        progress: Progress,
        budget_ns: int = SUBMIT_NS,
    ) -> None:
        self.link: LinkSender[Request] = LinkSender(1, max_in_flight, "the sequencer")
        self.terms = Terms()
        self.gathered: Callable[[int], None] | None = None
        """Called with the size of each batch that was gathered, where somebody counts them."""
        self._incarnation = incarnation
        self._desk = desk
        self._progress = progress
        self._gatherer = Gatherer(incarnation, max_batch)
        self.work = WorkQueue(max_in_flight, budget_ns)
        self._gathered = 0
        self._batches = PendingBatches()
        self._accepted = (0, 0)
        self._results_next = 0
        self._recent = RecentOutcomes()
        self._asked_ns = -ASK_AGAIN_NS

    # -- taking and sending ----------------------------------------------------------------------

    def takes(self, submit: Submit) -> bool:
        """Whether there is room for this submission."""
        if self.work.concerns(submit):
            return self.work.takes(submit)
        return self._gathered + submit.count <= self.link.room or not (
            self._gathered or len(self.link)
        )

    def add(self, submit: Submit, now_ns: int) -> None:
        """One more submission: for this turn, or when the transactor has time for its calls."""
        self.work.heard(submit.owner, now_ns)
        if self.work.concerns(submit):
            self.work.add(submit, now_ns)
        else:
            self._gather(submit)

    def _gather(self, submit: Submit) -> None:
        self._gathered += submit.count
        self._gatherer.add(submit)

    def waits(self, submit: Submit) -> bool:
        """Whether it still waits here, because the calls of its client wait for their turn."""
        return submit.charge is not None and not submit.charge.sent

    @property
    def under_way(self) -> bool:
        """Whether anything was taken and is not computed."""
        return bool(self._gathered or self._batches or self.work.operations)

    def flush(self, now_ns: int) -> None:
        """Make batches of what was gathered in this turn, and of the calls whose turn it is."""
        if self.work.operations:
            room = self.link.room - self._gathered
            if not (self._gathered or len(self.link)):
                room = MAX_U64
            for submit in self.work.next(now_ns, room):
                self._gather(submit)
        if not self._gathered:
            return
        for batch, message in self._gatherer.cut(self.link.end):
            self._batches.add(batch)
            if self.gathered is not None:
                self.gathered(batch.count)
            weight = weigh(batch.count, size(message.binary))
            self.link.offer(batch.request, 1, message, weight=weight)
        self._gathered = 0

    def next_request(self) -> Request | None:
        """The next request for the sequencer, or None. It stays next until `request_sent`."""
        if self._results_next == 0 or self.terms.current == 0:
            # Nothing of ours may be computed before this gateway knows from where on to listen.
            return None
        message = self.link.peek()
        if message is not None:
            message.oldest = self.link.base
            message.term = self.terms.current
            batch = self._batches.get(message.request)
            # What was given up must never be executed: it asks for an id that nothing gets.
            message.told = MAX_U64 if batch is None else batch.told
        return message

    def request_sent(self, now_ns: int) -> None:
        """The request from `next_request` was handed to the socket."""
        message = self.link.peek()
        batch = None if message is None else self._batches.get(message.request)
        if batch is not None:
            batch.sent = True
        self.link.sent(now_ns)

    # -- ids -------------------------------------------------------------------------------------

    def on_assigned(self, message: Assigned) -> None:
        """The sequencer gave ids to requests."""
        if self.terms.voids(message.term, message.batches):
            return
        for gateway, request, first, count in message.batches:
            if gateway != self._incarnation:
                continue
            batch = self._batches.get(request)
            if batch is None or batch.count != count:
                continue
            if first:
                self._place(batch, first, message.term)
            else:
                self._drop(batch, ErrorCode.LOST, "its ids went to others after a restart")

    def _place(self, batch: PendingBatch, first: int, term: int) -> None:
        if batch.first == first and batch.term == term:
            return
        batch.first, batch.term = first, term
        self._progress.given(first + batch.count - 1)
        for offset, submit in batch.members:
            submit.first, submit.term = first + offset, term
            if submit.level is Level.NONE and not submit.done:
                batch.told = first
                fields = {
                    "first": submit.first,
                    "count": submit.count,
                    "level": int(Level.NONE),
                    "failures": 0,
                }
                self._desk.finish(submit, fields, EMPTY)

    # -- outcomes --------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether it is known from which id on outcomes are listened for."""
        return self._results_next > 0

    def listen_from(self, tx_id: int) -> None:
        """Outcomes before this id concern others."""
        self._results_next = tx_id

    def computed_of(self, transactor: StageStatus) -> int:
        """The last id that the transactor has computed and that still holds in the current term."""
        return self.terms.holding(transactor.term, transactor.index)

    def missed(self, index: int, now_ns: int) -> ResultsQuery | None:
        """The question for outcomes up to `index` that were not heard, now and then; or None."""
        if index < self._results_next or now_ns - self._asked_ns < ASK_AGAIN_NS:
            return None
        self._asked_ns = now_ns
        return ResultsQuery(self._results_next, index)

    def ask_again(self) -> None:
        """A new transactor knows none of the questions."""
        self._asked_ns = -ASK_AGAIN_NS

    def on_results(self, message: Results) -> int:
        """Outcomes from the transactor, by broadcast or asked for: the last id whose outcome is
        known by them, 0 where they tell nothing that can be taken."""
        if self._results_next == 0 or message.first > self._results_next:
            # Before the first heartbeat there is nothing of ours; later a gap is asked for, see
            # `missed`.
            return 0
        if message.term > self.terms.current:
            # Asked for again when the sequencer's status has told where its term begins.
            return 0
        if self.terms.voids(message.term, message.batches):
            return 0
        if message.first + message.count <= self._results_next:
            return 0
        self._recent.add(message)
        failures = np.frombuffer(message.failures, FAILURE_DTYPE)
        position = 0
        for gateway, request, first, count, failed in message.batches:
            rows = failures[position : position + failed]
            position += failed
            if gateway != self._incarnation or first + count <= self._results_next:
                continue
            while (oldest := self._batches.oldest()) is not None and oldest.request < request:
                # Requests are executed in their order, so this one was passed over.
                self._drop(
                    oldest,
                    ErrorCode.OUTCOME_UNKNOWN,
                    "the sequencer and the transactor were lost while it was under way",
                )
            batch = self._batches.get(request)
            if batch is not None:
                self._computed(batch, first, count, rows, message)
        self._results_next = message.first + message.count
        self._drop_passed_over()
        return self._results_next - 1

    def _computed(
        self, batch: PendingBatch, first: int, count: int, rows: Any, message: Results
    ) -> None:
        if batch.first == 0:
            self._place(batch, first - batch.computed, message.term)
        known = batch.first + batch.computed - first
        if known < 0 or known >= count:
            return
        if known:
            rows = rows[rows["offset"] >= known]
        if len(rows) and first != batch.first:
            rows = rows.copy()
            rows["offset"] += first - batch.first
        if len(rows):
            batch.failures.append(rows)
        batch.computed += count - known
        if batch.computed < batch.count:
            return
        # Nearly always a batch is computed at once, and its failures are passed on as they came.
        failures = NO_FAILURES
        if batch.failures:
            failures = (
                batch.failures[0] if len(batch.failures) == 1 else np.concatenate(batch.failures)
            )
        self._batches.remove(batch)
        self._release()
        progress = self._progress
        times = message.work if len(message.work) == len(batch.members) else ()
        for place, (offset, submit) in enumerate(batch.members):
            if submit.done and submit.charge is None:
                continue
            if len(failures) and len(batch.members) == 1:
                submit.failures = failures
            elif len(failures):
                low, high = np.searchsorted(failures["offset"], (offset, offset + submit.count))
                own = failures[low:high]
                if offset and len(own):
                    own = own.copy()
                    own["offset"] -= offset
                submit.failures = own
            if submit.charge is not None:
                self.work.executed(submit, times[place] if times else None)
            if submit.done:
                continue
            submit.computed = True
            if progress.index(submit.level) >= submit.last:
                self.reached(submit, submit.last)
            else:
                progress.wait(submit.level, submit.last, submit)
        self._batches.settle(batch)

    def reached(self, submit: Submit, index: int) -> None:
        """Ids up to `index` have reached the level that this one waits for."""
        # Otherwise the ids or the outcomes for which it waited here are void.
        if not submit.computed or submit.last > index:
            return
        progress = self._progress
        if submit.level is Level.SNAPSHOT and submit.last > progress.committed:
            # Some transactor executed what is readable. Only the log can say that it was the one
            # whose outcomes are known here.
            progress.wait(Level.COMMITTED, submit.last, submit)
            return
        self._answer(submit)

    def _answer(self, submit: Submit) -> None:
        failures = submit.failures
        fields = {
            "first": submit.first,
            "count": submit.count,
            "level": int(submit.level),
            "failures": len(failures),
        }
        payload = as_buffer(failures) if len(failures) else EMPTY
        self._desk.finish(submit, fields, payload)

    def on_results_gone(self, message: ResultsGone) -> None:
        """The transactor no longer holds outcomes that this gateway missed."""
        if message.oldest <= self._results_next:
            return
        self._results_next = message.oldest
        self._recent.clear()
        for batch in self._batches:
            if not batch.sent or batch.first >= message.oldest:
                continue
            self._drop(
                batch,
                ErrorCode.OUTCOME_UNKNOWN,
                "the outcome was missed while this gateway was away; "
                "ask for the status of the transactions",
            )

    # -- what is given up ------------------------------------------------------------------------

    def _drop(self, batch: PendingBatch, code: ErrorCode, why: str) -> None:
        """Give a batch up: its outcome will not be told."""
        self._batches.remove(batch)
        self._release()
        for _, submit in batch.members:
            self.work.give_up(submit)
            if not submit.done:
                self._desk.fail(submit, code, why, first=submit.first or None)

    def _release(self) -> None:
        # Batches are computed in their order, so what is left starts at the oldest one.
        oldest = self._batches.oldest()
        self.link.release((self.link.end if oldest is None else oldest.request) - 1)

    def _drop_passed_over(self) -> None:
        """Give up what the sequencer took and gave no ids: all that have ids are computed by
        now."""
        index, expected = self._accepted
        if self._results_next <= index:
            return
        # Nor does what the link has let go of come again.
        expected = max(expected, self.link.base)
        while (batch := self._batches.oldest()) is not None and batch.request < expected:
            if batch.first and batch.first + batch.count > self._results_next:
                # It is executed again; the sequencer's status was older than its ids.
                return
            code = ErrorCode.OUTCOME_UNKNOWN if batch.computed else ErrorCode.LOST
            why = "only a part was executed" if batch.computed else "its ids went to others"
            self._drop(batch, code, why)

    # -- transactors -----------------------------------------------------------------------------

    def on_transactor(self, start: int) -> None:
        """Another transactor has begun to execute, at `start`. What the one before told of ids from
        there on is void: the log never got it, and it is executed again. Calls that ran may not run
        this time, or the other way round."""
        if start >= self._results_next:
            return
        self._results_next = start
        self._progress.computed = min(self._progress.computed, start - 1)
        self._recent.cut_at(start)
        unsettled = self._batches.unsettle(start)
        for batch in (*unsettled, *self._batches):
            batch.forget_from(start)
        self._batches.reopen(unsettled)

    # -- terms -----------------------------------------------------------------------------------

    def on_sequencer(self, message: StageStatus, now_ns: int) -> None:
        """The sequencer's status: its term, the ids it gave, and what it took of this gateway."""
        if message.term < self.terms.current or not message.term:
            return
        if message.term > self.terms.current:
            void = self.terms.begin(message.term, message.start, self._progress.committed)
            if void is not None:
                self._on_new_term(void)
        self._progress.given(message.index)
        expected = message.gateways.get(self._incarnation, self.link.base)
        self._accepted = (message.index, expected)
        self._drop_passed_over()
        # The sequencer may ask for requests that were computed since it last heard of them.
        expected = max(expected, self.link.base)
        self.link.acknowledge(message.incarnation, expected, now_ns, full=message.full)

    def _on_new_term(self, void: int) -> None:
        """A new sequencer has begun: ids from `void` on that older terms gave say nothing."""
        self._progress.begin_term(self.terms.start, void)
        self._results_next = min(self._results_next, void)
        dropped = self._recent.cut(void)
        if dropped is not None:
            self._results_next = min(self._results_next, dropped)
        for batch in self._batches:
            if (
                not batch.first
                or batch.term == self.terms.current
                or batch.first + batch.count <= void
            ):
                continue
            if batch.first >= void:
                # It goes to the new sequencer again, unless the log has it.
                batch.forget()
                continue
            self._drop(
                batch,
                ErrorCode.OUTCOME_UNKNOWN,
                f"its batch was cut at id {void} when the sequencer and the transactor were lost",
            )
        unsettled = self._batches.unsettle(void)
        if void == self.terms.start:
            for batch in unsettled:
                self._give_up(batch, void)
            return
        # They may be in the log or not: the outcomes that are asked for again name those that are.
        for batch in unsettled:
            batch.forget()
        self._batches.reopen(unsettled)

    def _give_up(self, batch: PendingBatch, void: int) -> None:
        """It was computed in the term before, and some of its ids are gone."""
        for _, submit in batch.members:
            if submit.done or submit.last < void:
                continue
            if submit.first < void:
                code, why = ErrorCode.OUTCOME_UNKNOWN, "only a part of it is in the log"
            else:
                code, why = ErrorCode.LOST, "it had no effect"
            self._desk.fail(
                submit,
                code,
                "computed but not yet durable when the sequencer and the transactor were lost; "
                + why,
                first=submit.first,
            )

    # -- statuses --------------------------------------------------------------------------------

    def covers(self, tx_id: int) -> bool:
        """Whether the outcomes from this id on are known here, up to the last computed one."""
        return self._recent.covers(tx_id)

    def readable(self, index: int) -> None:
        """The snapshotter answers for ids up to `index`: their outcomes are forgotten."""
        self._recent.forget(index)

    def statuses(self, keys: Any) -> Any:
        """STATUS_DTYPE[n] of the ids `keys` u64[n], right for those that cannot be read yet."""
        progress = self._progress
        rows = np.zeros(len(keys), STATUS_DTYPE)
        rows["stage"][(keys > 0) & (keys <= progress.sequenced)] = Stage.PENDING
        rows["stage"][(keys > 0) & (keys <= progress.computed)] = Stage.COMPUTED
        # Committed with an outcome that is still to be heard of would look like a success.
        committed = min(progress.committed, progress.computed)
        rows["stage"][(keys > 0) & (keys <= committed)] = Stage.COMMITTED
        self._recent.fill(rows, keys)
        return rows
