"""Clients' submissions, gathered into pipeline batches, and the way back from batch to client.

Gathering is adaptive: a turn's submissions share as few batches as the cap allows, and there is no
timer. A large submission travels alone and uncopied; small ones are joined. Order is kept: two
submissions of one client are never reordered.
"""

from __future__ import annotations

from collections.abc import Iterator
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
class Batch:
    """One request to the sequencer: `members` with their offsets, and how much of it is
    computed."""

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

    def cut(self, next_request: int) -> Iterator[tuple[Batch, Request]]:
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

    def _join(self, request: int, group: list[Submit], count: int) -> tuple[Batch, Request]:
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
        return Batch(request, count, members), message


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
