"""The transactor's decisions, without I/O.

It starts with a hello to the log stage, which fences older transactors off and says which id comes
next; its shell replays the files up to exactly there, and only then does it execute. Executed
records are kept until durable, so that a new log stage can be given what its files do not have.
Outcomes are kept for a while, so that a gateway that missed a broadcast can ask again instead of
assuming success.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from tallybus.common.batch import Batch
from tallybus.common.buffers import EMPTY, Buffer, as_buffer, size
from tallybus.common.bus.link import LinkReceiver, LinkSender, Verdict, weigh
from tallybus.common.bus.messages import (
    Executed,
    FunctionsAnswer,
    FunctionsQuery,
    Hello,
    Message,
    Prepare,
    Prepared,
    Refused,
    Results,
    ResultsGone,
    ResultsQuery,
    Sequenced,
    StageStatus,
    Welcome,
)
from tallybus.common.record import MAX_PARAMS, RECORD_DTYPE, RECORD_SIZE, Kind
from tallybus.common.service.core import Channel, Fenced, Routes, StageCore, alone, answered, timed
from tallybus.services.transactor.functions.budget import UNBOUNDED, WorkBudget
from tallybus.services.transactor.outcome import Outcome
from tallybus.services.transactor.stamps import LastStamp

RESULTS_KEPT: Final = 4_194_304
"""Transactions whose outcomes can be asked for again."""
RESULTS_PER_ANSWER: Final = 64
_NO_PARAMS: Final = np.empty((0, 8), "<i8")


SLICE_NS: Final = 10_000_000
"""How long calls of functions run before everything else has its turn (ADR 0016)."""
SHARING_NS: Final = 1_000_000_000
MAX_EXECUTED_BYTES: Final = 4 << 20
"""Of one message to the log. Functions may make a hundred times more of a batch than came in."""


class Begun(Protocol):
    """What the core needs of a batch that the engine has begun."""

    @property
    def done(self) -> bool: ...
    @property
    def times(self) -> list[int]: ...


class Executor(Protocol):
    """What the core needs of `Engine`."""

    def begin(
        self,
        records: np.ndarray[Any, Any],
        first_id: int,
        names: Sequence[str],
        params: np.ndarray[Any, Any],
        counts: Sequence[int],
        budget: WorkBudget,
    ) -> Any: ...
    def go_on(self, batch: Any, slice_ns: int) -> Outcome: ...


class Registers(Protocol):
    """What the core needs of `Registrar`."""

    def register(
        self, record: np.ndarray[Any, Any], first_id: int, name: str, binary: bytes
    ) -> Outcome: ...
    def rows(self) -> list[dict[str, Any]]: ...
    def totals(self) -> dict[str, int]: ...


@dataclass(slots=True)
class UnderWay:
    """A batch that is executed in slices: `next` is its first id that is not executed, `gone` how
    many of its submits a transactor before this one has executed."""

    message: Sequenced
    next: int
    gone: int
    batch: Begun


class Module(NamedTuple):
    """A module that a gateway wants to be looked at before it is registered."""

    peer: bytes
    query: int
    name: str
    binary: bytes
    client: bytes = b""
    """Whom it is compiled for: the gateway, and which of its clients."""


class TransactorCore(StageCore):
    """State machine of the transactor: `hello`, `recovering` (the shell replays), `running`."""

    stage = "transactor"

    def __init__(
        self,
        incarnation: int,
        max_in_flight: int,
        heartbeat_ns: int,
        budget: WorkBudget = UNBOUNDED,
    ) -> None:
        """`budget`: of the calls of one submit."""
        super().__init__(incarnation, heartbeat_ns)
        self._budget = budget
        self._under_way: UnderWay | None = None
        self._computed = 0
        self._sharing: set[int] = set()
        """Gateways whose operations were executed in this interval, and in the one before."""
        self._shared: set[int] = set()
        self._sharing_ns = 0
        self.welcome: Welcome | None = None
        self.link: LinkSender[Executed] | None = None
        self.receiver = LinkReceiver(0)
        self._engine: Executor | None = None
        self._registrar: Registers | None = None
        self._max_in_flight = max_in_flight
        self._gateways: dict[int, int] = {}
        self._results: deque[Results] = deque()
        self._results_count = 0
        self._durable_index = 0
        self._accepted_by_log = False
        self._followed_by: int | None = None
        self._retired: set[int] = set()
        self._granting: tuple[bytes, Hello] | None = None
        self._stamp = LastStamp()
        self.count: Callable[[np.ndarray[Any, Any], np.ndarray[Any, Any]], None] | None = None
        """Called with the records and failures of each batch, where somebody counts them."""
        self.modules: deque[Module] = deque()
        """To be validated and compiled, in order; the shell takes them and calls `prepared`."""
        self._preparing: set[tuple[bytes, int]] = set()

    def routes(self) -> Routes:
        return {
            (Channel.DATA, Sequenced): alone(self.on_sequenced),
            (Channel.CONTROL, Hello): answered(self.on_hello),
            (Channel.CONTROL, ResultsQuery): answered(self.on_results_query),
            (Channel.CONTROL, Prepare): answered(self.on_prepare),
            (Channel.CONTROL, FunctionsQuery): answered(self.on_functions_query),
            (Channel.ANSWER, Welcome): timed(self.on_welcome),
            (Channel.ANSWER, Refused): alone(self.on_refused),
            (Channel.BROADCAST, StageStatus): timed(self.on_status),
        }

    @property
    def recovering(self) -> bool:
        """Whether the shell has to replay the log up to `welcome.next - 1` and call `recovered`."""
        return self.welcome is not None and self._engine is None

    @property
    def running(self) -> bool:
        return self._engine is not None

    @property
    def greeting(self) -> bool:
        return not self._accepted_by_log or self._granting is not None

    @property
    def awaits(self) -> str:
        if self._engine is not None and not self.receiver.peer:
            return "no sequencer has said hello yet"
        return super().awaits

    def wants_input(self) -> bool:
        """Whether the sequencer's batches may be read; otherwise back-pressure holds them."""
        return self.link is not None and not self.link.full and self._under_way is None

    def on_welcome(self, message: Welcome, now_ns: int) -> None:
        """The log stage's answer to a hello."""
        if message.peer != self.incarnation:
            return
        self._accepted_by_log = True
        if self._granting is not None and message.term > self.term:
            peer, hello = self._granting
            self._granting = None
            self._grant(peer, hello, message.term)
        if self.welcome is not None:
            if self.running and message.term > self.term:
                raise Fenced(self.stage, self.incarnation, f"one that granted term {message.term}")
            return
        self.welcome = message
        self.term = message.term
        self._durable_index = message.durable
        self._gateways = {gateway: expected - 1 for gateway, expected in message.gateways.items()}

    def ask_again(self) -> None:
        """The files are not as the welcome says: the log may follow another transactor by now."""
        self.welcome = None
        self._accepted_by_log = False

    def on_refused(self, message: Refused) -> None:
        """The log stage follows a newer transactor."""
        if message.peer == self.incarnation:
            raise Fenced(self.stage, self.incarnation, "a newer transactor")

    def recovered(
        self,
        engine: Executor,
        registrar: Registers,
        results: Sequence[Results] = (),
        stamp: int = 0,
    ) -> None:
        """The shell has replayed the log: `engine` and `registrar` hold the state after
        `welcome.next - 1`.

        `results`: outcomes of the last transactions in the log, for gateways that missed them.
        `stamp`: the last transaction's time.
        """
        assert self.welcome is not None
        self._stamp.recovered(stamp)
        for outcome in results:
            self._keep(outcome)
        self._engine = engine
        self._registrar = registrar
        self._computed = self.welcome.next - 1
        self.receiver = LinkReceiver(self.welcome.next, self.term)
        self.link = LinkSender(self.welcome.next, self._max_in_flight, "the log")

    def on_hello(self, peer: bytes, message: Hello) -> None:
        """A sequencer starts (term 0), or comes back to a transactor that started anew."""
        if self._engine is None or message.stage != "sequencer":
            return
        if self._granting is not None and self._granting[1].incarnation == message.incarnation:
            self._granting = (peer, message)
            return
        if message.term > self.term:
            # The log told this one of every term that was granted before it was followed. So
            # another one was followed since, and what this one holds may be void.
            raise Fenced(self.stage, self.incarnation, f"one that granted term {message.term}")
        known = message.incarnation == self.receiver.peer
        if message.incarnation in self._retired or (
            not known
            and message.term
            and (message.term < self.term or (message.term == self.term and self.receiver.peer))
        ):
            refusal = Refused(
                self.stage, message.incarnation, self.receiver.term, "a newer sequencer"
            )
            self.replies.append((peer, refusal))
        elif known:
            self._greet(peer, message.incarnation)
        elif message.term:
            self._grant(peer, message, message.term)
        else:
            # Nothing of the old term is taken any more. The new one is granted when the log has it
            # on disk, behind everything of the old one: no term is ever granted twice (ADR 0003).
            self._granting = (peer, message)
            self._follow(message.incarnation, self.term + 1)

    def _grant(self, peer: bytes, message: Hello, term: int) -> None:
        self.term = term
        self._follow(message.incarnation, term)
        self._greet(peer, message.incarnation)

    def _follow(self, incarnation: int, term: int) -> None:
        if self.receiver.peer not in (0, incarnation):
            self._retired.add(self.receiver.peer)
        self.receiver.fence(incarnation, term)

    def _greet(self, peer: bytes, incarnation: int) -> None:
        self.replies.append(
            (
                peer,
                Welcome(
                    stage=self.stage,
                    incarnation=self.incarnation,
                    peer=incarnation,
                    term=self.term,
                    next=self.receiver.next_id,
                    durable=self._durable_index,
                    cluster=0 if self.welcome is None else self.welcome.cluster,
                    gateways={gateway: last + 1 for gateway, last in self._gateways.items()},
                    stamp=self._stamp.value,
                    elapsed=self._stamp.elapsed_ns,
                ),
            )
        )

    def on_sequenced(self, message: Sequenced) -> None:
        """Execute the part of a batch that is new: all of it, or a first slice."""
        if self._engine is None or self.link is None or not self.receiver.peer or self.under_way:
            return
        assert self._registrar is not None
        verdict, skip = self.receiver.accept(
            message.term, message.incarnation, message.first, message.count
        )
        if verdict is not Verdict.ACCEPT:
            return
        self._gateways[message.gateway] = message.request
        self._sharing.add(message.gateway)
        self._stamp.given(message.timestamp)
        first = message.first + skip
        count = message.count - skip
        records = np.frombuffer(message.records, RECORD_DTYPE, count, skip * RECORD_SIZE)
        if message.registers:
            outcome = self._registrar.register(
                records, first, message.names[0], bytes(message.binary)
            )
            self._executed(message, outcome)
            return
        gone, counts = _submits_behind(message.counts, skip)
        batch = self._engine.begin(
            records, first, message.names, _params(message, skip), counts, self._budget
        )
        self._slice(UnderWay(message, first, gone, batch))

    @property
    def under_way(self) -> bool:
        """Whether a batch is executed in part: the shell calls `go_on` in every turn."""
        return self._under_way is not None

    @property
    def may_go_on(self) -> bool:
        """Whether `go_on` would execute something."""
        return self._under_way is not None and self.link is not None and not self.link.full

    def go_on(self) -> None:
        """Execute a slice of the batch under way, if the log takes more."""
        if self.may_go_on and self._under_way is not None:
            self._slice(self._under_way)

    def _slice(self, current: UnderWay) -> None:
        assert self._engine is not None
        outcome = self._engine.go_on(current.batch, SLICE_NS)
        count = outcome.batch.count
        current.next += count
        work: list[int] = []
        self._under_way = None if current.batch.done else current
        if current.batch.done and current.batch.times:
            work = [0] * current.gone + current.batch.times
        if count:
            self._executed(current.message, outcome, work)

    def _executed(self, message: Sequenced, outcome: Outcome, work: Sequence[int] = ()) -> None:
        """Hand a batch, or a part of it, on to the log and its outcomes to the gateways."""
        batch = outcome.batch
        first, count = batch.first_id, batch.count
        failures = len(outcome.failures)
        if self.count is not None:
            self.count(batch.records, outcome.failures)
        batch.term, batch.timestamp_ns = message.term, message.timestamp
        batch.gateway, batch.request = message.gateway, message.request
        self._offer(batch, message.binary if message.registers and not failures else EMPTY)
        self._computed = batch.last_id
        results = Results(
            term=message.term,
            incarnation=self.incarnation,
            first=first,
            count=count,
            batches=[[message.gateway, message.request, first, count, failures]],
            failures=as_buffer(outcome.failures),
            work=list(work),
        )
        self._keep(results)
        self.announce(results)

    def _offer(self, batch: Batch, binary: Buffer) -> None:
        """Queue what was executed for the log, in pieces that every socket takes. `binary`: of a
        registration that succeeded."""
        assert self.link is not None
        for piece in batch.pieces(MAX_EXECUTED_BYTES):
            message = Executed.of(piece, self.incarnation, binary)
            weight = weigh(piece.count, size(message.extras) + size(binary))
            self.link.offer(piece.first_id, piece.count, message, weight)

    def on_prepare(self, peer: bytes, message: Prepare) -> None:
        """A gateway asks whether a module could be registered. It asks again, so once is enough."""
        asked = (peer, message.query)
        if self._engine is not None and asked not in self._preparing:
            self._preparing.add(asked)
            client = peer + message.client.encode()
            self.modules.append(
                Module(peer, message.query, message.name, bytes(message.binary), client)
            )

    def prepared(self, module: Module, refusal: str | None, busy: bool = False) -> None:
        """The shell has looked at a module: it can be registered, or not for this reason. `busy`:
        it was not looked at for this reason, and may be asked about again."""
        self._preparing.discard((module.peer, module.query))
        answer = Prepared(module.query, refusal is not None, refusal or "", busy)
        self.replies.append((module.peer, answer))

    def totals_of_functions(self) -> dict[str, int]:
        """What all functions take together, and may take."""
        return {} if self._registrar is None else self._registrar.totals()

    def live_functions(self) -> list[dict[str, Any]]:
        """The live functions with their statistics, a row for each."""
        return [] if self._registrar is None else self._registrar.rows()

    def on_functions_query(self, peer: bytes, message: FunctionsQuery) -> None:
        """A gateway asks which functions are live."""
        if self._registrar is not None:
            totals = self._registrar.totals()
            answer = FunctionsAnswer(message.query, self._registrar.rows(), {**totals})
            self.replies.append((peer, answer))

    def on_results_query(self, peer: bytes, message: ResultsQuery) -> None:
        """A gateway missed outcomes: send those of the batches that cover its range, a bounded
        number."""
        if not self._results:
            return
        oldest = self._results[0].first
        if message.first < oldest:
            self.replies.append((peer, ResultsGone(oldest)))
            return
        sent = 0
        for results in self._results:
            if results.first + results.count <= message.first:
                continue
            if results.first > message.last or sent == RESULTS_PER_ANSWER:
                break
            # What is kept here is the history as it is now, whichever term it was executed in.
            self.replies.append((peer, replace(results, term=self.term)))
            sent += 1

    def on_status(self, message: StageStatus, now_ns: int) -> None:
        """The log stage's broadcast."""
        if message.stage != "wal" or self.link is None:
            return
        if message.peer != self.incarnation:
            # A status may have been sent before our hello was read; once it named us, it is final.
            if message.peer and message.incarnation == self._followed_by:
                raise Fenced(self.stage, self.incarnation, f"transactor {message.peer:016x}")
            self._accepted_by_log = False
            return
        self._accepted_by_log = True
        self._followed_by = message.incarnation
        self._durable_index = max(self._durable_index, message.durable)
        self.link.acknowledge(
            message.incarnation, message.next, now_ns, gap=message.gap, full=message.full
        )
        self.link.release(message.durable)

    def tick(self, now_ns: int) -> None:
        """Once a turn: hello, stall check, broadcast."""
        self._stamp.tick(now_ns)
        if not self._accepted_by_log and self.hello_due(now_ns):
            self.requests.append(Hello(self.stage, self.incarnation, self.term))
        if self.link is None:
            # Silence until the log is replayed: a status is a promise about an index.
            return
        self.link.check_stall(now_ns)
        if now_ns - self._sharing_ns >= SHARING_NS:
            self._sharing_ns = now_ns
            self._shared, self._sharing = self._sharing, set()
        if (
            self._granting is not None
            and self._accepted_by_log
            and self.link.expected == self.link.end
            and self._under_way is None
            and self.hello_due(now_ns)
        ):
            self.requests.append(Hello(self.stage, self.incarnation, self.term + 1, asks=True))
        self.heartbeat(now_ns)

    def next_data(self) -> Message | None:
        return self.link.peek() if self.link is not None and self._accepted_by_log else None

    def data_sent(self, now_ns: int) -> None:
        assert self.link is not None
        self.link.sent(now_ns)

    def status(self) -> StageStatus:
        running = self._engine is not None and self.welcome is not None
        return StageStatus(
            stage=self.stage,
            term=self.term,
            incarnation=self.incarnation,
            index=self._computed,
            next=self.receiver.next_id if running else 1,
            durable=self._durable_index,
            start=self.welcome.next if running and self.welcome is not None else 0,
            sharers=len(self._shared | self._sharing),
            gap=self.receiver.gap,
            full=not self.wants_input(),
            peer=self.receiver.peer,
            retained=0 if self.link is None else self.link.weight,
        )

    def _keep(self, results: Results) -> None:
        self._results.append(results)
        self._results_count += results.count
        while self._results_count > RESULTS_KEPT and len(self._results) > 1:
            self._results_count -= self._results.popleft().count


def _params(message: Sequenced, skip: int) -> np.ndarray[Any, Any]:
    """int64[k, 8]: the parameters of the function calls behind the first `skip` records."""
    if not size(message.params):
        return _NO_PARAMS
    params = np.frombuffer(message.params, "<i8").reshape(-1, MAX_PARAMS)
    if not skip:
        return params
    known = np.frombuffer(message.records, RECORD_DTYPE, skip)
    return params[int(np.count_nonzero(known["kind"] == Kind.FUNCTION)) :]


def _submits_behind(counts: Sequence[int], skip: int) -> tuple[int, Sequence[int]]:
    """How many of a batch's submits lie wholly within its first `skip` records, and how many
    records each of the others has behind them."""
    gone = 0
    while gone < len(counts) and skip >= counts[gone]:
        skip -= counts[gone]
        gone += 1
    if not skip:
        return gone, counts[gone:]
    return gone, [counts[gone] - skip, *counts[gone + 1 :]] if counts else []
