"""The snapshotter's decisions, without I/O.

It applies committed batches in order, answers queries, and hands frozen balances to its shell at
segment boundaries. When it is behind what the stream still holds (after a start, or after a pause),
it names the range of the log that its shell has to read to it, then goes on with the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from tallybus.common.batch import Batch
from tallybus.common.buffers import as_buffer
from tallybus.common.bus.link import LinkReceiver, Verdict
from tallybus.common.bus.messages import Answer, Executed, Hello, Query, StageStatus, Welcome
from tallybus.common.bus.transaction import LoggedTransaction, fill_answer, transaction_of
from tallybus.common.functions.registry import FunctionRegistry
from tallybus.common.service.core import Channel, Routes, StageCore, answered, timed
from tallybus.common.snapshot.balances import FrozenBalances

BEHIND_NS: Final = 300_000_000
"""After this long without progress, below the durable index, the files are read instead."""

MAX_PARKED: Final = 65_536
"""Queries that wait for a higher index, as after a restart, and as many look-ups of transactions;
who asks for more is told so at once."""


class QueryRefused(Exception):
    """A query that cannot be answered as asked. Fields: `code` of the client protocol,
    `details`."""

    def __init__(self, message: str, details: dict[str, int | str]) -> None:
        super().__init__(message)
        self.details = details


class ReadModel(Protocol):
    """What the core needs of `ReadState`."""

    @property
    def index(self) -> int: ...
    @property
    def functions(self) -> FunctionRegistry: ...
    def apply(self, batch: Batch) -> None: ...
    def freeze(self) -> FrozenBalances: ...
    def get_balances(self, accounts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]: ...
    def get_statuses(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]: ...


class Lookup(NamedTuple):
    """A transaction that the shell has to read from the log, and who asked for it."""

    peer: bytes
    query: int
    tx_id: int


class SnapshotterCore(StageCore):
    """State machine of the snapshotter.

    It asks the log stage which log this is (`hello`), its shell loads the latest snapshot
    (`recovering`), then it is `behind` while its shell reads the log to it, or follows the stream.
    """

    stage = "snapshotter"

    def __init__(
        self,
        incarnation: int,
        heartbeat_ns: int,
        *,
        transactions_per_segment: int,
        snapshot_frequency: int,
    ) -> None:
        super().__init__(incarnation, heartbeat_ns)
        self.welcome: Welcome | None = None
        self.receiver = LinkReceiver(0)
        self.durable_index = 0
        self.frozen: list[tuple[int, FrozenBalances]] = []
        self.lookups: deque[Lookup] = deque()
        self._state: ReadModel | None = None
        self._segment_size = transactions_per_segment
        self._frequency = snapshot_frequency
        self._behind = True
        self._progress_ns = 0
        self._parked: list[tuple[bytes, Query]] = []

    def routes(self) -> Routes:
        return {
            (Channel.DATA, Executed): timed(self.on_executed),
            (Channel.CONTROL, Query): answered(self.on_query),
            (Channel.ANSWER, Welcome): timed(self.on_welcome),
            (Channel.BROADCAST, StageStatus): timed(self.on_status),
        }

    @property
    def greeting(self) -> bool:
        return self.welcome is None

    @property
    def awaits(self) -> str:
        if self._state is not None and self._behind:
            behind = self.durable_index + 1 - self.receiver.next_id
            return f"{behind} transactions of the log are still to be read"
        return super().awaits

    @property
    def recovering(self) -> bool:
        """Whether the shell has to load the latest snapshot and call `recovered`."""
        return self.welcome is not None and self._state is None

    def on_welcome(self, message: Welcome, now_ns: int) -> None:
        """The log stage's answer to a hello."""
        if message.peer != self.incarnation or self.welcome is not None:
            return
        self.welcome = message
        self.term = message.term
        self.durable_index = message.durable

    def recovered(self, state: ReadModel) -> None:
        """The shell has loaded a snapshot, or starts from nothing."""
        self._state = state
        self.receiver = LinkReceiver(state.index + 1)

    def on_status(self, message: StageStatus, now_ns: int) -> None:
        """The log stage's broadcast."""
        if message.stage != "wal" or self._state is None:
            return
        self.term = max(self.term, message.term)
        self.durable_index = max(self.durable_index, message.durable)
        if self.receiver.next_id > self.durable_index:
            self._behind = False
            self._progress_ns = now_ns

    def on_executed(self, message: Executed, now_ns: int) -> None:
        """A committed batch from the stream."""
        if self._state is None:
            return
        verdict, skip = self.receiver.accept(0, message.incarnation, message.first, message.count)
        if verdict is Verdict.GAP:
            self._behind = True
        if verdict is not Verdict.ACCEPT:
            return
        self._progress_ns = now_ns
        # The log's broadcast of a new term may come later, and an index is told with its term: a
        # gateway that knows only the older one would take these ids for its own.
        self.term = max(self.term, message.term)
        self._apply(message.batch().skip(skip))

    def range_to_read(self, now_ns: int) -> tuple[int, int] | None:
        """First and last id that the shell has to read from the log, or None."""
        if self._state is None or self.receiver.next_id > self.durable_index:
            return None
        if not self._behind and now_ns - self._progress_ns < BEHIND_NS:
            return None
        return self.receiver.next_id, self.durable_index

    def on_log(self, batch: Batch, now_ns: int) -> None:
        """A part of the log, read by the shell, that starts at `range_to_read()[0]`."""
        self.receiver.next_id = batch.last_id + 1
        self.receiver.gap = False
        self._progress_ns = now_ns
        self._apply(batch)
        if self.receiver.next_id > self.durable_index:
            self._behind = False

    @property
    def parked(self) -> int:
        """How many queries wait for a higher index."""
        return len(self._parked)

    def on_query(self, peer: bytes, message: Query) -> None:
        """A gateway asks for balances, statuses or a transaction."""
        if self._state is None:
            # The gateway asks again when this stage's first status tells that it is up.
            return
        if message.least > self._state.index:
            if len(self._parked) < MAX_PARKED:
                self._parked.append((peer, message))
            else:
                waiting = f"{len(self._parked)} queries wait for the snapshot to come as far"
                self._turn_away(peer, message.query, waiting)
            return
        self._answer(peer, message)

    def _answer(self, peer: bytes, message: Query) -> None:
        assert self._state is not None
        keys = np.frombuffer(message.keys, "<u8")
        answer = Answer(query=message.query, index=self._state.index)
        try:
            if message.what == "balances":
                answer.values = as_buffer(self._state.get_balances(keys))
            elif message.what == "status":
                answer.values = as_buffer(self._state.get_statuses(keys))
            elif message.what == "transaction":
                if self._look_up(peer, message.query, keys):
                    return
            else:
                answer.error = f"unknown query {message.what!r}"
        except QueryRefused as error:
            answer.error = str(error)
            answer.details = error.details
        self.replies.append((peer, answer))

    def _look_up(self, peer: bytes, query: int, keys: np.ndarray[Any, Any]) -> bool:
        """Asks the shell for a transaction; false if there is no such transaction yet."""
        assert self._state is not None
        if len(keys) != 1:
            raise QueryRefused(
                f"a query is for one transaction, not {len(keys)}", {"asked": len(keys)}
            )
        tx_id = int(keys[0])
        if not 1 <= tx_id <= self._state.index:
            return False
        if len(self.lookups) < MAX_PARKED:
            self.lookups.append(Lookup(peer, query, tx_id))
        else:
            waiting = f"{len(self.lookups)} transactions are still to be looked up"
            self._turn_away(peer, query, waiting)
        return True

    def _turn_away(self, peer: bytes, query: int, waiting: str) -> None:
        answer = Answer(query, self.receiver.next_id - 1, error=waiting, overloaded=True)
        self.replies.append((peer, answer))

    def looked_up(self, lookup: Lookup, found: LoggedTransaction) -> None:
        """The shell has read the transaction that `lookup`, taken from `lookups`, asks for."""
        assert self._state is not None
        answer = Answer(query=lookup.query, index=self._state.index)
        fill_answer(answer, transaction_of(found, self._state.functions))
        self.replies.append((lookup.peer, answer))

    def lookup_failed(self, lookup: Lookup, reason: str, details: Mapping[str, int | str]) -> None:
        """The shell could not read it."""
        assert self._state is not None
        answer = Answer(query=lookup.query, index=self._state.index, error=reason)
        answer.details = dict(details)
        self.replies.append((lookup.peer, answer))

    def tick(self, now_ns: int) -> None:
        """Once a turn: hello, broadcast."""
        if self.welcome is None and self.hello_due(now_ns):
            self.requests.append(Hello(self.stage, self.incarnation))
        if self._state is None:
            return
        if self._parked:
            parked, self._parked = self._parked, []
            for peer, query in parked:
                self.on_query(peer, query)
        self.heartbeat(now_ns)

    def urgent(self, status: StageStatus, last: StageStatus) -> bool:
        # Clients wait for the snapshot index.
        return status.index != last.index

    def status(self) -> StageStatus:
        return StageStatus(
            stage=self.stage,
            term=self.term,
            incarnation=self.incarnation,
            index=self.receiver.next_id - 1,
            next=self.receiver.next_id,
            durable=self.durable_index,
            gap=self.receiver.gap,
        )

    def _apply(self, batch: Batch) -> None:
        assert self._state is not None
        # A batch may cross the end of a segment, and the snapshot is the state exactly there.
        for part in batch.split_at_segments(self._segment_size):
            self._state.apply(part)
            segment, behind = divmod(part.last_id, self._segment_size)
            if not behind and segment % self._frequency == 0:
                self.frozen.append((segment, self._state.freeze()))
