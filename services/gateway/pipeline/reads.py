"""Reads on their way to the snapshotter and back.

Balance reads of a turn share one query. A query names the snapshot index that was told to clients
when it was made, so that what was readable once stays readable, whatever is restarted meanwhile.
Open queries are sent again to a new snapshotter.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import Answer, Query
from tallybus.services.gateway.clients.protocol import Read

MAX_READ_BYTES: Final = 32 << 20
"""Keys of reads held at a time; beyond it clients are told `overloaded`."""
PRUNE_FROM: Final = 1024
"""Open queries from which on those are dropped that nobody waits for any more."""


class OpenQuery(NamedTuple):
    """A query without an answer, and where in it each read's keys begin."""

    query: Query
    reads: list[tuple[int, Read]]

    @property
    def wanted(self) -> bool:
        return any(not read.done for _, read in self.reads)


class Reads:
    """Gathers, asks, and matches answers. `queries` is what its owner has to send, in order."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self.held_bytes = 0
        self._balances: list[Read] = []
        self._open: dict[int, OpenQuery] = {}
        self._next = 1
        self._prune_at = PRUNE_FROM

    def takes(self, read: Read) -> bool:
        """Whether there is room for this read; counted until `let_go`."""
        size = int(read.keys.nbytes)
        if self.held_bytes and self.held_bytes + size > MAX_READ_BYTES:
            return False
        self.held_bytes += size
        return True

    def let_go(self, read: Read) -> None:
        """The read was answered."""
        self.held_bytes -= int(read.keys.nbytes)

    def add_balances(self, read: Read) -> None:
        """Ask for these balances with the others of this turn."""
        self._balances.append(read)

    def ask_statuses(self, read: Read, snapshot: int) -> None:
        """Ask for the statuses that `read.asked` marks."""
        self._ask("status", snapshot, read.keys[read.asked], [(0, read)])

    def ask_transaction(self, read: Read, snapshot: int) -> None:
        """Ask for the one transaction that `read` names."""
        self._ask("transaction", snapshot, read.keys, [(0, read)])

    def flush(self, snapshot: int) -> None:
        """Make one query of the balance reads of this turn."""
        if not self._balances:
            return
        reads, self._balances = self._balances, []
        places: list[tuple[int, Read]] = []
        offset = 0
        for read in reads:
            places.append((offset, read))
            offset += len(read.keys)
        keys = reads[0].keys if len(reads) == 1 else np.concatenate([read.keys for read in reads])
        self._ask("balances", snapshot, keys, places)

    def answered(self, message: Answer) -> list[tuple[int, Read]]:
        """The reads that an answer is for, with their offsets; none for an unknown or repeated
        one."""
        found = self._open.pop(message.query, None)
        return [] if found is None else [place for place in found.reads if not place[1].done]

    def ask_again(self) -> None:
        """A new snapshotter knows none of the open queries."""
        self._prune()
        self.queries = [each.query for each in self._open.values()]

    def _ask(self, what: str, least: int, keys: Any, reads: list[tuple[int, Read]]) -> None:
        if len(self._open) >= self._prune_at:
            self._prune()
        query = Query(self._next, what, least, as_buffer(np.ascontiguousarray(keys)))
        self._next += 1
        self._open[query.query] = OpenQuery(query, reads)
        self.queries.append(query)

    def _prune(self) -> None:
        self._open = {number: each for number, each in self._open.items() if each.wanted}
        self.queries = [query for query in self.queries if query.query in self._open]
        self._prune_at = max(PRUNE_FROM, 2 * len(self._open))
