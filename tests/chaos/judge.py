"""The judgement of a chaos run: its history and its log against the oracle.

What must hold is in docs/concepts.md and docs/protocol.md. A violation is a line of text that names
the request, what it was told and what the log has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus import LostTransaction, OutcomeUnknown
from tallybus.common.record import Kind, Level, Stage, Status
from tallybus.common.settings.sections import Settings
from tallybus.common.wal.reader import read_log
from tests.chaos.history import CONTENT, SERIAL_MASK, History, Submission
from tests.chaos.machine import Span
from tests.support.oracle import Oracle

MOST_OF_A_KIND: Final = 10
"""Violations of one kind that are told; the others are counted."""
LONG_STOP_NS: Final = 4_000_000_000
"""A gateway that was stopped so long may have lost its connections."""
LATE_NS: Final = 2_000_000_000
"""How long after a gateway's death a connection may still look alive to a client."""
RECOVERY_NS: Final = 15_000_000_000
"""How long a service may need until it has again what was sent to it before it died."""
TELL_NS: Final = 5_000_000_000
"""How often it is told how far the longest part of the judgement is."""


@dataclass(slots=True)
class Log:
    """The log as read back: row i is transaction i + 1."""

    records: NDArray[Any]
    links: NDArray[np.uint64]
    serials: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.records)


@dataclass(slots=True)
class Findings:
    """What was found. `lost` counts what was told below COMMITTED, is not in the log, and may be
    missing."""

    violations: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    applied_after_window: int = 0

    def wrong(self, kind: str, text: str) -> None:
        self.kinds[kind] += 1
        if self.kinds[kind] <= MOST_OF_A_KIND:
            self.violations.append(f"{kind}: {text}")
        elif self.kinds[kind] == MOST_OF_A_KIND + 1:
            self.violations.append(f"{kind}: and more")


class Judge:
    """Compares one run. `began_ns`: the zero of the times in texts. `tell` is called with what is
    being done, now and then: a long run takes minutes to judge."""

    def __init__(
        self,
        history: History,
        made: NDArray[Any],
        settings: Settings,
        deaths: Iterable[Span],
        stops: Iterable[Span],
        began_ns: int,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.findings = Findings()
        self._tell = tell
        self.oracle = Oracle(settings.ledger.max_accounts, settings.ledger.transactions_per_segment)
        self._history = history
        self._made = made
        self._settings = settings
        self._deaths = sorted(deaths, key=lambda span: span.from_ns)
        self._stops = list(stops)
        self._began_ns = began_ns
        refs, counts = np.unique(made["user_ref"], return_counts=True)
        self._shared_refs = refs[counts > 1]
        self._log = Log(np.empty(0), np.empty(0, np.uint64), np.empty(0, np.intp))
        self._by_serial = np.empty(0, np.intp)
        self._sorted_serials = np.empty(0, np.intp)
        self._evidence_ns = np.empty(0, np.int64)
        self._evidence_index = np.empty(0, np.int64)

    def judge(self, last_id: int) -> Findings:
        """Read transactions 1 to `last_id` from disk and judge everything by them."""
        requests = f"{len(self._history.submissions)} requests"
        self._tell(f"reading {last_id} transactions from disk")
        self._read(last_id)
        self._gather_evidence()
        self._replay()
        self._tell("comparing what is in the log with what was sent")
        self._check_contents()
        self._tell(f"comparing the answers to {requests} with the log")
        self._check_answers()
        self._check_errors()
        self._tell(f"checking the order of {requests} and what reads saw")
        self._check_order()
        self._check_freshness()
        self._check_statuses()
        return self.findings

    # -- the log -----------------------------------------------------------------------------------

    def _read(self, last_id: int) -> None:
        records: list[NDArray[Any]] = []
        links: list[NDArray[np.uint64]] = []
        next_id, term, timestamp = 1, 0, 0
        ledger = self._settings.ledger
        runs = read_log(ledger.data, 1, last_id, ledger.transactions_per_segment, kernel=False)
        for run in runs:
            if run.first_id != next_id:
                self.findings.wrong("gap", f"id {next_id} is followed by a run of {run.first_id}")
            next_id = run.last_id + 1
            if run.term < term or run.timestamp_ns < timestamp:
                self.findings.wrong(
                    "history",
                    f"block of id {run.first_id} has term {run.term} after {term}, "
                    f"time {run.timestamp_ns} after {timestamp}",
                )
            term, timestamp = run.term, run.timestamp_ns
            own = np.zeros(len(run.records), np.uint64)
            own[run.records["status"] == Status.DUPLICATE] = run.links
            records.append(run.records.copy())
            links.append(own)
        if next_id != last_id + 1:
            self.findings.wrong("gap", f"the log ends with {next_id - 1}, {last_id} was committed")
        if records:
            all_records = np.concatenate(records)
            serials = (all_records["amount"] & SERIAL_MASK).astype(np.intp)
            self._log = Log(all_records, np.concatenate(links), serials)
        self._by_serial = np.argsort(self._log.serials, kind="stable")
        self._sorted_serials = self._log.serials[self._by_serial]

    def _places(self, serial: int) -> list[int]:
        """The ids under which an operation is in the log."""
        low, high = np.searchsorted(self._sorted_serials, (serial, serial + 1))
        return [int(place) + 1 for place in self._by_serial[low:high]]

    def _replay(self) -> None:
        """Execute the log again; compare every status and link, and all balances that were read."""
        log, step = self._log, 5_000
        reads = sorted(self._history.balances, key=lambda read: read.index)
        stops = sorted({*range(0, len(log), step), len(log), *(read.index for read in reads)})
        position, told_ns = 0, 0
        for start, stop in zip([0, *stops], stops, strict=False):
            if time.monotonic_ns() - told_ns >= TELL_NS:
                told_ns = time.monotonic_ns()
                self._tell(f"executing the log again, {start} of {len(log)} transactions")
            if stop > len(log):
                read = reads[position]
                self.findings.wrong(
                    "read", f"{self._at(read.sent_ns)} index {read.index} not in log"
                )
                return
            outcomes = self.oracle.execute(log.records[start:stop])
            statuses = log.records["status"][start:stop].tolist()
            links = log.links[start:stop].tolist()
            rows = zip(outcomes, statuses, links, strict=True)
            for offset, (outcome, *told) in enumerate(rows, start):
                if told != [outcome.status, outcome.duplicate_of]:
                    self.findings.wrong(
                        "execution",
                        f"the log has {offset + 1} with {tuple(told)}, the oracle {outcome}",
                    )
            while position < len(reads) and reads[position].index == stop:
                read = reads[position]
                position += 1
                expected = [self.oracle.balance(a) for a in read.accounts.tolist()]
                if expected != read.values.tolist():
                    self.findings.wrong(
                        "balance",
                        f"{read.client} at {self._at(read.sent_ns)}: balances as of {stop} differ "
                        f"from the oracle's",
                    )
        if self.oracle.sum_of_balances() != 0:
            self.findings.wrong("sum", f"balances sum to {self.oracle.sum_of_balances()}")

    def _check_contents(self) -> None:
        """What is in the log was sent, as it is; nothing is there twice that may be there once."""
        log, made = self._log, self._made
        if not len(log):
            return
        known = (log.serials > 0) & (log.serials < len(made))
        for place in np.flatnonzero(~known)[:MOST_OF_A_KIND]:
            self.findings.wrong("invented", f"id {place + 1} was sent by nobody")
        sent = made[np.where(known, log.serials, 0)]
        same = known.copy()
        for name in CONTENT:
            same &= log.records[name] == sent[name]
        for place in np.flatnonzero(known & ~same):
            self.findings.wrong(
                "content", f"id {place + 1} is {log.records[place]}, sent was {sent[place]}"
            )
        moves = (log.records["status"] == 0) & (_source(log.records) != _target(log.records))
        wrong_entries = log.records["entry_count"] != np.where(moves, 2, 0)
        for place in np.flatnonzero(wrong_entries):
            self.findings.wrong("entries", f"id {place + 1} is {log.records[place]}")
        executed = np.flatnonzero(log.records["status"] != Status.DUPLICATE)
        order = executed[np.argsort(log.serials[executed], kind="stable")]
        again = np.flatnonzero(log.serials[order][1:] == log.serials[order][:-1])
        window = self._settings.ledger.transactions_per_segment
        for place in again:
            first, second = int(order[place]) + 1, int(order[place + 1]) + 1
            if log.records["user_ref"][first - 1] == 0 or second - first < window:
                self.findings.wrong("twice", f"{log.records[first - 1]} is {first} and {second}")
            else:
                self.findings.applied_after_window += 1
        plain = log.records["user_ref"] == 0
        serials, counts = np.unique(log.serials[plain], return_counts=True)
        for serial in serials[counts > 1]:
            self.findings.wrong("twice", f"{made[serial]} is in the log as {self._places(serial)}")

    # -- answers -----------------------------------------------------------------------------------

    def _check_answers(self) -> None:
        for submission in self._history.submissions:
            if submission.tx_ids is None or submission.reached is None:
                if submission.error is None:
                    self.findings.wrong("unanswered", self._name(submission))
                continue
            if submission.reached < submission.level:
                self.findings.wrong(
                    "level", f"{self._name(submission)} reached {submission.reached.name}"
                )
            differing = self._differing(submission)
            if differing:
                self._judge_missing(submission, differing)

    def _differing(self, submission: Submission) -> list[int]:
        """Operations of an answered submission that the log does not have as they were told."""
        log = self._log
        assert submission.tx_ids is not None
        assert submission.statuses is not None
        assert submission.links is not None
        ids = submission.tx_ids.astype(np.int64) - 1
        in_log = (ids >= 0) & (ids < len(log))
        rows = np.where(in_log, ids, 0)
        if not len(log):
            return list(range(len(ids)))
        serials = (submission.records["amount"] & SERIAL_MASK).astype(np.intp)
        refs = submission.records["user_ref"]
        plain = submission.links == 0
        duplicate = ~plain & (submission.statuses == Status.DUPLICATE)
        earlier = ~plain & ~duplicate
        logged = log.records["status"][rows]
        same_status = (logged == submission.statuses) | (submission.reached == Level.NONE)
        same_ref = log.records["user_ref"][rows] == refs
        same_serial = log.serials[rows] == serials
        # Whoever was first with such a reference, a client that sends again is told of as its own.
        shared = self._is_shared(refs)
        right = in_log & (
            (plain & same_serial & same_status)
            | (duplicate & same_ref & (logged != Status.DUPLICATE))
            | (earlier & same_ref & same_status & (same_serial | shared))
        )
        for place in np.flatnonzero(right & duplicate):
            right[place] = self._has_duplicate(submission, int(place), int(serials[place]))
        return [int(place) for place in np.flatnonzero(~right)]

    def _is_shared(self, refs: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of these references were sent more than once. Those that were are sorted."""
        if not len(self._shared_refs):
            return np.zeros(len(refs), np.bool_)
        places = np.searchsorted(self._shared_refs, refs)
        found = self._shared_refs[np.minimum(places, len(self._shared_refs) - 1)]
        shared: NDArray[np.bool_] = found == refs
        return shared

    def _has_duplicate(self, submission: Submission, place: int, serial: int) -> bool:
        """Whether the log has the operation as a duplicate of what was told."""
        log = self._log
        assert submission.links is not None
        own = [submission.first + place] if submission.first else self._places(serial)
        return any(
            0 < tx_id <= len(log)
            and log.serials[tx_id - 1] == serial
            and log.records["status"][tx_id - 1] == Status.DUPLICATE
            and log.links[tx_id - 1] == submission.links[place]
            for tx_id in own
        )

    def _judge_missing(self, submission: Submission, places: list[int]) -> None:
        assert submission.reached is not None
        assert submission.tx_ids is not None
        assert submission.statuses is not None
        assert submission.links is not None
        place = places[0]
        tx_id = int(submission.tx_ids[place])
        serial = int(submission.records["amount"][place]) & SERIAL_MASK
        elsewhere = self._places(serial)
        row = self._log.records[tx_id - 1] if 0 < tx_id <= len(self._log) else None
        text = (
            f"{self._name(submission)}, {len(places)} of them, the first is operation {place} "
            f"{submission.records[place]}, told with id {tx_id}, status "
            f"{submission.statuses[place]}, duplicate of {submission.links[place]}; the log has "
            f"there {row}, and the operation as {elsewhere}{self._deaths_around(submission)}"
        )
        own = submission.first + place if submission.first else tx_id
        if submission.reached >= Level.COMMITTED:
            self.findings.wrong("acknowledged", text)
        elif not self._may_be_lost(submission, own):
            self.findings.wrong("lost", text)
        elif elsewhere and not submission.shared:
            self.findings.wrong("another id", text)
        else:
            self.findings.lost[submission.reached.name] += len(places)

    def _may_be_lost(self, submission: Submission, tx_id: int) -> bool:
        """Told below COMMITTED: lost if the sequencer and another keeper of it died while it was
        not known to be durable."""
        sequencer = self._first_death(("sequencer",), submission.sent_ns)
        if submission.reached is Level.NONE:
            # Its id depends on all that was sequenced before it and is lost with the sequencer.
            keepers = ("transactor", "gateway")
            keeper = self._first_death(keepers, submission.sent_ns - RECOVERY_NS)
        else:
            keeper = self._first_death(("transactor",), submission.sent_ns)
        if sequencer is None or keeper is None:
            return False
        both_ns = max(sequencer, keeper)
        start, stop = np.searchsorted(self._evidence_ns, (submission.done_ns, both_ns))
        durable = self._evidence_index[start:stop].max(initial=0)
        return bool(durable < tx_id)

    def _first_death(self, services: Iterable[str], since_ns: int) -> int | None:
        """When one of them may have died for the first time after `since_ns`."""
        times = [d.from_ns for d in self._deaths if d.service in services and d.to_ns > since_ns]
        return min(times, default=None)

    def _gather_evidence(self) -> None:
        """When it was known to clients, at the latest, that ids were durable."""
        events = [(read.done_ns, read.committed) for read in self._history.indexes]
        events += [(read.done_ns, read.index) for read in self._history.balances]
        for submission in self._history.submissions:
            if submission.reached is not None and submission.reached >= Level.COMMITTED:
                assert submission.tx_ids is not None
                events.append((submission.done_ns, int(submission.tx_ids.max())))
        events.sort()
        self._evidence_ns = np.array([at for at, _ in events], np.int64)
        self._evidence_index = np.array([index for _, index in events], np.int64)

    # -- errors ------------------------------------------------------------------------------------

    def _check_errors(self) -> None:
        for submission in self._history.submissions:
            error = submission.error
            if error is None:
                continue
            name = f"{self._name(submission)}: {error!r}{self._deaths_around(submission)}"
            serials = (submission.records["amount"] & SERIAL_MASK).tolist()
            if isinstance(error, OutcomeUnknown):
                self.findings.unknown += 1
                if submission.has_refs:
                    self.findings.wrong("unknown with references", name)
                elif not self._may_be_unknown(submission):
                    self.findings.wrong("unknown without cause", name)
            elif isinstance(error, LostTransaction):
                self.findings.lost["reported"] += len(serials)
                there = [serial for serial in serials if self._places(serial)]
                if there and not submission.shared:
                    self.findings.wrong("reported lost and executed", f"{name}: {there}")
                if submission.has_refs or not self._died(
                    "sequencer", submission.sent_ns - LATE_NS, submission.done_ns
                ):
                    self.findings.wrong("lost without cause", name)
            else:
                self.findings.wrong("error", name)
        for client, sent, failed, text in self._history.read_errors:
            self.findings.wrong(
                "read error", f"{client} {self._at(sent)} to {self._at(failed)}: {text}"
            )

    def _may_be_unknown(self, submission: Submission) -> bool:
        since, until = submission.sent_ns, submission.done_ns
        if self._died("gateway", since - LATE_NS, until):
            return True
        if any(
            stop.service == "gateway"
            and stop.to_ns - stop.from_ns >= LONG_STOP_NS
            and stop.from_ns < until
            and stop.to_ns > since - LATE_NS
            for stop in self._stops
        ):
            return True
        # Documented as `outcome_unknown`: only a part is in the log.
        return (
            "connection" not in str(submission.error)
            and self._died("sequencer", since, until)
            and self._died("transactor", since, until)
        )

    def _died(self, service: str, since_ns: int, until_ns: int) -> bool:
        return any(
            d.service == service and d.from_ns < until_ns and d.to_ns > since_ns
            for d in self._deaths
        )

    # -- order in time -----------------------------------------------------------------------------

    def _check_order(self) -> None:
        """What was submitted after an answer has larger ids than that answer told."""
        spans = []
        for submission in self._history.submissions:
            if not submission.first or submission.tx_ids is None or submission.links is None:
                continue
            own = np.flatnonzero(submission.links == 0)
            serials = (submission.records["amount"] & SERIAL_MASK).astype(np.intp)
            ids = submission.tx_ids[own].astype(np.int64)
            there = (ids <= len(self._log)) & (ids > 0)
            own, ids = own[there], ids[there]
            found = ids[self._log.serials[ids - 1] == serials[own]]
            if len(found):
                low, high = int(found.min()), int(found.max())
                spans.append((submission.sent_ns, submission.done_ns, low, high, submission))
        answered = sorted(spans, key=lambda span: span[1])
        highest, position = 0, 0
        by: Submission | None = None
        for sent, _, low, _, submission in sorted(spans, key=lambda span: span[0]):
            while position < len(answered) and answered[position][1] < sent:
                if answered[position][3] > highest:
                    highest, by = answered[position][3], answered[position][4]
                position += 1
            if low < highest and by is not None:
                self.findings.wrong(
                    "order",
                    f"{self._name(submission)} has id {low}, but id {highest} was told before by "
                    f"{self._name(by)}{self._deaths_around(submission)}",
                )

    def _check_freshness(self) -> None:
        """What was readable, or committed, stays so: no read goes back, all see own writes."""
        readable = [(read.done_ns, read.index) for read in self._history.balances]
        readable += [(read.done_ns, read.snapshot) for read in self._history.indexes]
        for submission in self._history.submissions:
            if submission.reached is Level.SNAPSHOT and submission.tx_ids is not None:
                readable.append((submission.done_ns, int(submission.tx_ids.max())))
        committed = list(
            zip(self._evidence_ns.tolist(), self._evidence_index.tolist(), strict=True)
        )
        reads = [(r.sent_ns, r.index, r.least, r.client) for r in self._history.balances]
        exact = [read for read in self._history.indexes if read.exact]
        indexes = [(r.sent_ns, r.snapshot, 0, r.client) for r in exact]
        told = [(r.sent_ns, r.committed, 0, r.client) for r in exact]
        self._not_before("read", readable, reads)
        self._not_before("index", readable, indexes)
        self._not_before("durable index", committed, told)

    def _not_before(
        self,
        kind: str,
        known: list[tuple[int, int]],
        reads: list[tuple[int, int, int, str]],
    ) -> None:
        known = sorted(known)
        position, floor = 0, 0
        for sent, index, least, client in sorted(reads):
            while position < len(known) and known[position][0] < sent:
                floor = max(floor, known[position][1])
                position += 1
            if index < max(floor, least):
                self.findings.wrong(
                    f"{kind} went back",
                    f"{client} at {self._at(sent)} saw {index}; {floor} was known before, "
                    f"{least} asked for",
                )

    def _check_statuses(self) -> None:
        highest = np.maximum.accumulate(np.concatenate([[0], self._evidence_index]))
        for read in self._history.statuses:
            durable = highest[np.searchsorted(self._evidence_ns, read.sent_ns)]
            for place, tx_id in enumerate(read.ids.tolist()):
                stage, status = int(read.stages[place]), int(read.statuses[place])
                link = int(read.links[place])
                text = (
                    f"{read.client} at {self._at(read.sent_ns)}: {tx_id} is told with stage "
                    f"{stage}, status {status}, link {link}"
                )
                if tx_id > len(self._log) or tx_id == 0:
                    if stage in (Stage.COMMITTED, Stage.ON_SNAPSHOT):
                        self.findings.wrong("status", f"{text}; it is not in the log")
                    continue
                expected = (
                    int(self._log.records["status"][tx_id - 1]),
                    int(self._log.links[tx_id - 1]),
                )
                if stage in (Stage.COMMITTED, Stage.ON_SNAPSHOT):
                    if expected != (0, 0):
                        self.findings.wrong("status", f"{text}; the log has {expected}")
                elif tx_id <= durable and (stage != Stage.ERROR or (status, link) != expected):
                    self.findings.wrong(
                        "status", f"{text}; it was committed, the log has {expected}"
                    )

    # -- texts -------------------------------------------------------------------------------------

    def _at(self, moment_ns: int) -> str:
        return f"{(moment_ns - self._began_ns) / 1e9:.3f}s"

    def _name(self, submission: Submission) -> str:
        return (
            f"{submission.client} ({len(submission.records)} operations, "
            f"{submission.level.name}, {self._at(submission.sent_ns)} to "
            f"{self._at(submission.done_ns)})"
        )

    def _deaths_around(self, submission: Submission) -> str:
        near = [
            f"{d.service} {d.how} {self._at(d.from_ns)}"
            for d in self._deaths
            if d.to_ns > submission.sent_ns - 2 * LATE_NS
            and d.from_ns < submission.done_ns + LATE_NS
        ]
        near += [
            f"{s.service} stopped {self._at(s.from_ns)} to {self._at(s.to_ns)}"
            for s in self._stops
            if s.to_ns > submission.sent_ns - LATE_NS and s.from_ns < submission.done_ns
        ]
        return f" [{'; '.join(near) or 'no deaths around'}]"


def _source(records: NDArray[Any]) -> NDArray[np.uint64]:
    source: NDArray[np.uint64] = np.where(records["kind"] == Kind.DEPOSIT, 0, records["account"])
    return source


def _target(records: NDArray[Any]) -> NDArray[np.uint64]:
    target: NDArray[np.uint64] = np.select(
        [records["kind"] == Kind.DEPOSIT, records["kind"] == Kind.WITHDRAWAL],
        [records["account"], np.zeros_like(records["account"])],
        records["counterparty"],
    )
    return target
