"""How far the pipeline has come, as this gateway has heard it, and who waits for which id at which
level.

Four indexes: ids up to `sequenced` are given, up to `computed` their outcomes were heard, up to
`committed` they are durable, up to `snapshot` they can be read. Numbers only; what is done about
those who have waited is the owner's.
"""

from __future__ import annotations

from collections.abc import Iterable

from tallybus.common.record import Level
from tallybus.services.gateway.clients.protocol import ClientRequest
from tallybus.services.gateway.clients.waits import Marks


class Progress:
    """The indexes and their waiters. Only a new term lowers `sequenced` and `computed`."""

    def __init__(self) -> None:
        self.sequenced = 0
        self.computed = 0
        self.committed = 0
        self.snapshot = 0
        self._waits = {level: Marks[ClientRequest]() for level in Level if level}

    def index(self, level: Level) -> int:
        """The last id that has reached this level, which is not NONE."""
        if level is Level.COMMITTED:
            return self.committed
        return self.snapshot if level is Level.SNAPSHOT else self.computed

    def wait(self, level: Level, tx_id: int, request: ClientRequest) -> None:
        """`request` waits until `tx_id` has reached this level."""
        self._waits[level].add(tx_id, request)

    def given(self, tx_id: int) -> None:
        """Ids up to this one were given."""
        self.sequenced = max(self.sequenced, tx_id)

    def advance(self, level: Level, index: int) -> Iterable[ClientRequest]:
        """Ids up to `index` have reached this level: those who waited for one of them, in order."""
        if index <= self.index(level):
            return ()
        if level is Level.COMPUTED:
            self.computed = index
            self.sequenced = max(self.sequenced, index)
        elif level is Level.COMMITTED:
            self.committed = index
        else:
            self.snapshot = index
        return self._waits[level].reached(index)

    def begin_term(self, start: int, void: int) -> None:
        """A sequencer goes on at `start`; what was told of ids from `void` on does not hold."""
        self.sequenced = start - 1
        self.computed = min(self.computed, void - 1)
