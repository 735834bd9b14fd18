"""Clients' submissions, gathered into pipeline batches, and the way back from batch to client.

Gathering is adaptive: a turn's submissions share as few batches as the cap allows, and there is no
timer. A large submission travels alone and uncopied; small ones are joined. Order is kept: two
submissions of one client are never reordered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tallybus.common.buffers import EMPTY, Buffer, size
from tallybus.common.bus.messages import Request
from tallybus.common.record import RECORD_DTYPE, Kind, Level
from tallybus.services.gateway.clients.protocol import (
    MAX_NAMES,
    MAX_NAMES_BYTES,
    Register,
    Submit,
    name_length,
)

JOIN_BYTES: Final = 65_536
"""Submissions below this size are copied into a shared batch; above it a batch of their own is
cheaper."""


@dataclass(slots=True, eq=False)
class PendingBatch:
    """A batch on its way, one request to the sequencer: the submits joined in it, `members`, with
    their offsets, and how much of it is computed."""

    request: int
    count: int
    members: list[tuple[int, Submit]]
    first: int = 0
    term: int = 0
    computed: int = 0
    told: int = 0
    sent: bool = False
    failures: list[Any] = field(default_factory=list)

    @property
    def answered(self) -> bool:
        """Whether nobody waits for any of it."""
        return all(submit.done for _, submit in self.members)

    def forget_from(self, tx_id: int) -> None:
        """The outcomes of ids from this one on do not hold any more; the ids do."""
        kept = max(0, tx_id - self.first)
        if not self.first or self.computed <= kept:
            return
        self.computed = kept
        self.failures = [rows[rows["offset"] < kept] for rows in self.failures]
        for _, submit in self.members:
            if submit.last >= tx_id:
                submit.computed, submit.failures = False, ()

    def forget(self) -> None:
        """Nothing that was told of it holds any more."""
        self.first, self.computed, self.failures = 0, 0, []
        for _, submit in self.members:
            submit.first, submit.computed, submit.failures = 0, False, ()


class PendingBatches:
    """The batches of a gateway, in the order of their requests: those that are not computed, and
    behind them, settled, computed ones of which some members wait for more."""

    def __init__(self) -> None:
        self._open: dict[int, PendingBatch] = {}
        self._settled: deque[PendingBatch] = deque()

    def __len__(self) -> int:
        """How many are not computed."""
        return len(self._open)

    def __iter__(self) -> Iterator[PendingBatch]:
        """Those that are not computed, as they are now."""
        return iter(tuple(self._open.values()))

    def get(self, request: int) -> PendingBatch | None:
        """The batch of this request, if it is not computed."""
        return self._open.get(request)

    def oldest(self) -> PendingBatch | None:
        """The first that is not computed."""
        return next(iter(self._open.values()), None)

    def add(self, batch: PendingBatch) -> None:
        """The next batch."""
        self._open[batch.request] = batch

    def remove(self, batch: PendingBatch) -> None:
        """It is computed, or given up."""
        self._open.pop(batch.request, None)

    def settle(self, batch: PendingBatch) -> None:
        """It is computed, and those whose level is not reached wait."""
        self._settled.append(batch)
        while self._settled and self._settled[0].answered:
            self._settled.popleft()

    def unsettle(self, tx_id: int) -> list[PendingBatch]:
        """Takes out, in order, the settled ones that have ids from this one on."""
        taken: list[PendingBatch] = []
        while self._settled and self._settled[-1].first + self._settled[-1].count > tx_id:
            taken.append(self._settled.pop())
        return taken[::-1]

    def reopen(self, batches: Sequence[PendingBatch]) -> None:
        """These, taken out by `unsettle`, are not computed any more, if anybody waits for them."""
        waiting = {batch.request: batch for batch in batches if not batch.answered}
        self._open = waiting | self._open


class Gatherer:
    """Collects a turn's submissions and cuts them into batches of at most `max_batch`
    operations."""

    def __init__(self, gateway: int, max_batch: int) -> None:
        self._gateway = gateway
        self._max_batch = max_batch
        self._waiting: list[Submit] = []

    def add(self, submit: Submit) -> None:
        """One more submission for this turn."""
        self._waiting.append(submit)

    def cut(self, next_request: int) -> Iterator[tuple[PendingBatch, Request]]:
        """Everything gathered, in order, as batches numbered from `next_request`."""
        group: list[Submit] = []
        count = 0
        names = 0
        name_bytes = 0
        for submit in self._waiting:
            alone = size(submit.records) >= JOIN_BYTES or isinstance(submit, Register)
            own_bytes = sum(map(name_length, submit.names))
            names += len(submit.names)
            name_bytes += own_bytes
            if group and (
                alone
                or count + submit.count > self._max_batch
                or names > MAX_NAMES
                or name_bytes > MAX_NAMES_BYTES
            ):
                yield self._join(next_request, group, count)
                next_request += 1
                group, count, names, name_bytes = [], 0, len(submit.names), own_bytes
            group.append(submit)
            count += submit.count
            if alone:
                yield self._join(next_request, group, count)
                next_request += 1
                group, count, names, name_bytes = [], 0, 0, 0
        if group:
            yield self._join(next_request, group, count)
        self._waiting = []

    def _join(self, request: int, group: list[Submit], count: int) -> tuple[PendingBatch, Request]:
        members: list[tuple[int, Submit]] = []
        offset = 0
        for submit in group:
            members.append((offset, submit))
            offset += submit.count
        if len(group) == 1:
            only = group[0]
            records, params, names = only.records, only.params, only.names
        else:
            records, params, names = _joined(group)
        registers = isinstance(group[0], Register)
        binary = group[0].binary if isinstance(group[0], Register) else EMPTY
        for submit in group:
            # The batch has them now; a request that waits for long must not hold them as well.
            submit.records = submit.params = EMPTY
            if isinstance(submit, Register):
                submit.binary = EMPTY
        message = Request(
            gateway=self._gateway,
            request=request,
            count=count,
            records=records,
            params=params,
            names=names,
            tell=any(submit.level is Level.NONE for submit in group),
            registers=registers,
            binary=binary,
            counts=[submit.count for submit in group] if len(group) > 1 and size(params) else [],
        )
        return PendingBatch(request, count, members), message


def _joined(group: list[Submit]) -> tuple[Buffer, Buffer, list[str]]:
    params = b"".join(submit.params for submit in group)
    if not params:
        return b"".join(submit.records for submit in group), params, []
    # Function operations hold an index into their own names; in a joint batch the names are joint
    # too.
    names: dict[str, int] = {}
    parts: list[Any] = []
    for submit in group:
        records = np.frombuffer(submit.records, RECORD_DTYPE)
        if submit.params:
            places = np.array([names.setdefault(n, len(names)) for n in submit.names], "<u4")
            records = records.copy()
            calls = (records["kind"] == Kind.FUNCTION) & (records["function"] < len(places))
            unknown = (records["kind"] == Kind.FUNCTION) & ~calls
            records["function"][calls] = places[records["function"][calls]]
            records["function"][unknown] = np.iinfo("<u4").max
        parts.append(records)
    return np.concatenate(parts).tobytes(), params, list(names)
