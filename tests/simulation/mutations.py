"""Does the simulation notice? `python -m tests.simulation.mutations [--seeds 1000] [--only NAME]`.

Each mutation breaks one duty of the delivery between stages on purpose, by patching the product in
this process, and then runs seeds until a checker objects. For each it prints the seed, how many
runs it took and what was said. Exit code 1 if one survives all its seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from tallybus.common.bus.link import LinkReceiver, LinkSender, Verdict
from tallybus.common.bus.messages import (
    Hello,
    Refused,
    Request,
    Results,
    StageStatus,
    Welcome,
)
from tallybus.common.functions.registry import FunctionRegistry
from tallybus.services.gateway.pipeline.submissions import Submissions
from tallybus.services.sequencer.clock import LedgerClock, Moment
from tallybus.services.sequencer.core import SequencerCore
from tallybus.services.transactor.core import TransactorCore
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.registrar import Registrar
from tallybus.services.wal.core import WalCore
from tallybus.services.wal.log import Log
from tallybus.services.wal.service import WalService
from tests.simulation.pipeline import simulate
from tests.simulation.world import SimulationFailure

SAID_CHARACTERS = 300
"""Of what a checker said: enough to know which one it was."""

Changes = list[tuple[type, str, Callable[..., Any]]]
"""Class, name of a method, what replaces it."""


@dataclass(frozen=True)
class Mutation:
    """A duty and how it is broken. `changes` is called once per use."""

    name: str
    does: str
    changes: Callable[[], Changes]


MUTATIONS: dict[str, Mutation] = {}


def mutation(name: str, does: str) -> Callable[[Callable[[], Changes]], Callable[[], Changes]]:
    """Enters a function that gives the changes."""

    def enter(changes: Callable[[], Changes]) -> Callable[[], Changes]:
        MUTATIONS[name] = Mutation(name, does, changes)
        return changes

    return enter


# -- the receiving end -----------------------------------------------------------------------------


@mutation("accept-gap", "a receiver takes what comes after a gap")
def _accept_gap() -> Changes:
    accept = LinkReceiver.accept

    def mutant(self: Any, term: int, incarnation: int, first: int, count: int) -> Any:
        if first > self.next_id and term >= self.term and incarnation == (self.peer or incarnation):
            self.next_id = first
        return accept(self, term, incarnation, first, count)

    return [(LinkReceiver, "accept", mutant)]


@mutation("accept-gap-in-requests", "the sequencer takes a gateway's requests with gaps")
def _accept_gap_in_requests() -> Changes:
    on_request = SequencerCore.on_request

    def mutant(self: Any, message: Request, now: Moment) -> None:
        receiver = self._gateways.get(message.gateway)
        if receiver is not None:
            receiver.next_id = max(receiver.next_id, message.request)
        on_request(self, message, now)

    return [(SequencerCore, "on_request", mutant)]


@mutation("ignore-incarnation", "a receiver takes data of any incarnation")
def _ignore_incarnation() -> Changes:
    accept = LinkReceiver.accept

    def mutant(self: Any, term: int, incarnation: int, first: int, count: int) -> Any:
        return accept(self, term, self.peer, first, count)

    return [(LinkReceiver, "accept", mutant)]


@mutation("ignore-incarnation-and-term", "a receiver takes data of any incarnation and term")
def _ignore_incarnation_and_term() -> Changes:
    accept = LinkReceiver.accept

    def mutant(self: Any, term: int, incarnation: int, first: int, count: int) -> Any:
        return accept(self, max(term, self.term), self.peer, first, count)

    return [(LinkReceiver, "accept", mutant)]


@mutation("keep-what-is-known", "a receiver does not slice off what it has of a message")
def _keep_what_is_known() -> Changes:
    accept = LinkReceiver.accept

    def mutant(self: Any, term: int, incarnation: int, first: int, count: int) -> Any:
        verdict, _ = accept(self, term, incarnation, first, count)
        return verdict, 0

    return [(LinkReceiver, "accept", mutant)]


@mutation("take-repeats", "a receiver takes a message that it has had")
def _take_repeats() -> Changes:
    accept = LinkReceiver.accept

    def mutant(self: Any, term: int, incarnation: int, first: int, count: int) -> Any:
        verdict, skip = accept(self, term, incarnation, first, count)
        return (Verdict.ACCEPT, 0) if verdict is Verdict.REPEATED else (verdict, skip)

    return [(LinkReceiver, "accept", mutant)]


# -- the sending end -------------------------------------------------------------------------------


@mutation("release-early", "a sender forgets what was received, before it is durable")
def _release_early() -> Changes:
    acknowledge = LinkSender.acknowledge

    def mutant(self: Any, incarnation: int, expected: int, now_ns: int, **flags: bool) -> None:
        acknowledge(self, incarnation, expected, now_ns, **flags)
        self.release(self.expected - 1)

    return [(LinkSender, "acknowledge", mutant)]


@mutation("never-rewind", "a sender never sends again")
def _never_rewind() -> Changes:
    def mutant(self: Any, expected: int, now_ns: int) -> None:
        self._repeats = 0
        self._moved_ns = now_ns

    return [(LinkSender, "_rewind", mutant)]


@mutation("ignore-new-incarnation", "a sender does not notice that its receiver was restarted")
def _ignore_new_incarnation() -> Changes:
    acknowledge = LinkSender.acknowledge

    def mutant(self: Any, incarnation: int, expected: int, now_ns: int, **flags: bool) -> None:
        acknowledge(self, self.peer_incarnation or incarnation, expected, now_ns, **flags)

    return [(LinkSender, "acknowledge", mutant)]


@mutation("ignore-stalls", "a sender waits for ever for what got lost at the end of a burst")
def _ignore_stalls() -> Changes:
    def mutant(self: Any, now_ns: int) -> bool:
        return False

    return [(LinkSender, "check_stall", mutant)]


# -- what the stages tell of themselves ------------------------------------------------------------


@mutation("acknowledge-computed", "the transactor calls durable what it has computed")
def _acknowledge_computed() -> Changes:
    status = TransactorCore.status

    def mutant(self: Any) -> StageStatus:
        told = status(self)
        return replace(told, durable=told.index)

    return [(TransactorCore, "status", mutant)]


@mutation("acknowledge-written", "the log stage calls durable what it has written")
def _acknowledge_written() -> Changes:
    status = WalCore.status

    def mutant(self: Any) -> StageStatus:
        told = status(self)
        return replace(told, index=told.next - 1, durable=told.next - 1)

    return [(WalCore, "status", mutant)]


@mutation("sync-nothing", "the log stage takes for synced what is only written")
def _sync_nothing() -> Changes:
    def mutant(self: Any) -> None:
        """Nothing."""

    return [(Log, "sync", mutant)]


@mutation("stream-before-durable", "the log stage offers to the snapshotter what is not durable")
def _stream_before_durable() -> Changes:
    written = WalCore.written

    def mutant(self: Any) -> None:
        durable_index, last_id = self.durable_index, self.due[0].batch.last_id
        written(self)
        self.on_durable(last_id)
        self.durable_index = durable_index

    return [(WalCore, "written", mutant)]


@mutation("assume-success", "a gateway takes the silence about a range for success")
def _assume_success() -> Changes:
    on_results = Submissions.on_results

    def mutant(self: Any, message: Results) -> int:
        if 0 < self._results_next < message.first:
            self._results_next = message.first
        return on_results(self, message)

    return [(Submissions, "on_results", mutant)]


# -- starting, terms, fencing ----------------------------------------------------------------------


@mutation("term-before-disk", "the log stage grants a term before it is on disk")
def _term_before_disk() -> Changes:
    on_hello = WalCore.on_hello

    def mutant(self: Any, peer: bytes, message: Hello) -> None:
        if message.stage == "transactor":
            self.term = max(self.term, message.term)
        on_hello(self, peer, message)

    return [(WalCore, "on_hello", mutant)]


@mutation("term-without-log", "the transactor grants a term without asking the log stage")
def _term_without_log() -> Changes:
    on_hello = TransactorCore.on_hello

    def mutant(self: Any, peer: bytes, message: Hello) -> None:
        on_hello(self, peer, message)
        if self._granting is not None:
            self._granting = None
            self._grant(peer, message, self.term + 1)

    return [(TransactorCore, "on_hello", mutant)]


@mutation("forget-requests", "a new sequencer does not take over which requests were taken")
def _forget_requests() -> Changes:
    on_welcome = SequencerCore.on_welcome

    def mutant(self: Any, message: Welcome, now: Moment) -> None:
        on_welcome(self, replace(message, gateways={}), now)

    return [(SequencerCore, "on_welcome", mutant)]


@mutation("forget-the-last-stamp", "a new sequencer begins at the wall clock, whatever the log has")
def _forget_the_last_stamp() -> Changes:
    on_welcome = SequencerCore.on_welcome

    def mutant(self: Any, message: Welcome, now: Moment) -> None:
        on_welcome(self, replace(message, stamp=0, elapsed=0), now)

    return [(SequencerCore, "on_welcome", mutant)]


@mutation("take-a-jump-for-downtime", "a new sequencer follows a clock that jumped meanwhile")
def _take_a_jump_for_downtime() -> Changes:
    on_welcome = SequencerCore.on_welcome

    def mutant(self: Any, message: Welcome, now: Moment) -> None:
        on_welcome(self, replace(message, elapsed=0), now)

    return [(SequencerCore, "on_welcome", mutant)]


@mutation("follow-any-wall-clock", "the ledger's time is the wall clock's, if that is not back")
def _follow_any_wall_clock() -> Changes:
    def look(self: Any, now: Moment) -> int:
        self.time_ns = max(self.time_ns, now.wall_ns)
        return int(self.time_ns)

    return [(LedgerClock, "look", look)]


@mutation("give-another-id", "the sequencer gives a request another id than its client was told")
def _give_another_id() -> Changes:
    on_request = SequencerCore.on_request

    def mutant(self: Any, message: Request, now: Moment) -> None:
        on_request(self, replace(message, told=0), now)

    return [(SequencerCore, "on_request", mutant)]


@mutation("take-requests-of-any-term", "the sequencer takes what was sent in an older term")
def _take_requests_of_any_term() -> Changes:
    on_request = SequencerCore.on_request

    def mutant(self: Any, message: Request, now: Moment) -> None:
        on_request(self, replace(message, term=self.term), now)

    return [(SequencerCore, "on_request", mutant)]


@mutation("sequencer-stays", "a sequencer goes on when it hears of a newer one")
def _sequencer_stays() -> Changes:
    def on_status(self: Any, message: StageStatus, now_ns: int) -> None:
        if message.peer == self.incarnation:
            status(self, message, now_ns)

    def on_refused(self: Any, message: Refused) -> None:
        """Goes on."""

    status = SequencerCore.on_status
    return [(SequencerCore, "on_status", on_status), (SequencerCore, "on_refused", on_refused)]


@mutation("transactor-stays", "a transactor goes on when it hears of a newer one")
def _transactor_stays() -> Changes:
    def on_status(self: Any, message: StageStatus, now_ns: int) -> None:
        if message.peer == self.incarnation:
            status(self, message, now_ns)

    def on_refused(self: Any, message: Refused) -> None:
        """Goes on."""

    status = TransactorCore.on_status
    return [(TransactorCore, "on_status", on_status), (TransactorCore, "on_refused", on_refused)]


@mutation("forget-references", "a recovering transactor does not take in what was executed before")
def _forget_references() -> Changes:
    insert = Engine._insert_refs

    def mutant(self: Any, words: Any) -> None:
        blank = words.copy()
        blank[:, 1] = 0
        insert(self, blank)

    return [(Engine, "_insert_refs", mutant)]


@mutation("forget-outcomes", "a recovered transactor does not know how the last ones ended")
def _forget_outcomes() -> Changes:
    recovered = TransactorCore.recovered

    def mutant(self: Any, engine: Any, registrar: Any, results: Any = (), stamp: int = 0) -> None:
        recovered(self, engine, registrar, (), stamp)

    return [(TransactorCore, "recovered", mutant)]


@mutation("binary-after-record", "the log stage keeps a binary only after the record names it")
def _binary_after_record() -> Changes:
    def keep(self: Any, *registered: Any) -> None:
        self.kept_late = registered

    def late(self: Any, source: Any, message: Any, now_ns: int) -> None:
        self.kept_late = None
        take(self, source, message, now_ns)
        if self.kept_late is not None:
            keep_binary(self, *self.kept_late)

    take, keep_binary = WalService.take, WalService._keep_binary
    return [(WalService, "_keep_binary", keep), (WalService, "take", late)]


@mutation("forget-functions", "a recovering transactor does not take in what was registered")
def _forget_functions() -> Changes:
    restore = Registrar.restore

    def mutant(self: Any, registry: FunctionRegistry, binaries: Any, *rest: Any) -> Any:
        return restore(self, FunctionRegistry(), {}, *rest)

    return [(Registrar, "restore", mutant)]


@mutation("keep-outcomes-of-the-dead", "a gateway keeps what a dead transactor told")
def _keep_outcomes_of_the_dead() -> Changes:
    def mutant(self: Any, start: int) -> None:
        pass

    return [(Submissions, "on_transactor", mutant)]


@mutation(
    "use-references-of-the-not-run", "a call that was not run uses its reference up in replay"
)
def _use_references() -> Changes:
    insert_refs = Engine._insert_refs

    def mutant(self: Any, words: Any) -> None:
        changed = words.copy()
        # Without a reason it is an old record's own status.
        changed[:, 0] &= ~np.uint64(0xFF << 24)
        insert_refs(self, changed)

    return [(Engine, "_insert_refs", mutant)]


# -- running them ----------------------------------------------------------------------------------


@contextmanager
def applied(name: str) -> Iterator[None]:
    """The product with this mutation."""
    with ExitStack() as stack:
        for owner, method, mutant in MUTATIONS[name].changes():
            stack.enter_context(patch.object(owner, method, mutant))
        yield


class Found(NamedTuple):
    """By which seed a mutation was found, in how many runs, and what the checker said."""

    seed: int
    runs: int
    said: str


def search(name: str, first: int, seeds: int, flavour: str | None = None) -> Found | None:
    """The first seed that finds the mutation; None if none does."""
    with applied(name):
        for runs, seed in enumerate(range(first, first + seeds), 1):
            try:
                simulate(seed, flavour)
            except SimulationFailure as failure:
                said = " ".join(str(failure).partition("\nflavour")[0].split())
                return Found(seed, runs, said[:SAID_CHARACTERS])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.mutations", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=1000, help="runs after which one survives")
    parser.add_argument("--seed-first", type=int, default=0, help="seed of the first of them")
    parser.add_argument("--only", choices=MUTATIONS, action="append", help="this one (repeatable)")
    options = parser.parse_args()
    survivors = []
    for name in options.only or MUTATIONS:
        print(f"{name}: {MUTATIONS[name].does}", flush=True)
        started = time.monotonic()
        found = search(name, options.seed_first, options.seeds)
        seconds = time.monotonic() - started
        if found is None:
            survivors.append(name)
            print(f"    SURVIVED {options.seeds} runs ({seconds:.0f} s)", flush=True)
            continue
        runs = f"{found.runs} run" + "s" * (found.runs > 1)
        print(f"    found by seed {found.seed}, {runs}, {seconds:.1f} s: {found.said}", flush=True)
    if survivors:
        print(f"SURVIVED: {', '.join(survivors)}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
