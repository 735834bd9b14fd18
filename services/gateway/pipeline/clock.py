"""Questions about the ledger's time, on their way to the sequencer and back."""

from __future__ import annotations

from typing import Final

from tallybus.common.bus.messages import ClockAnswer, ClockQuery
from tallybus.services.gateway.clients.protocol import AcceptClock, ClockRead

ASK_AGAIN_NS: Final = 200_000_000


class ClockQuestions:
    """`questions` is what its owner has to send to the sequencer, in order."""

    def __init__(self) -> None:
        self.questions: list[ClockQuery] = []
        self._waiting: dict[int, ClockRead] = {}
        self._last = 0
        self._asked_ns = 0

    def ask(self, read: ClockRead) -> None:
        """Ask, or tell that the wall clock is right."""
        self._last += 1
        self._waiting[self._last] = read
        self.questions.append(self._query(self._last))

    def answered(self, message: ClockAnswer) -> ClockRead | None:
        """The request that an answer is for, if it still waits for it."""
        read = self._waiting.pop(message.query, None)
        return None if read is None or read.done else read

    def tick(self, now_ns: int) -> None:
        """Repeat what was not answered for long: the sequencer may be another one by now."""
        if self.questions:
            self._asked_ns = now_ns
        elif self._waiting and now_ns - self._asked_ns >= ASK_AGAIN_NS:
            self._asked_ns = now_ns
            self._waiting = {key: read for key, read in self._waiting.items() if not read.done}
            self.questions.extend(map(self._query, self._waiting))

    def _query(self, query: int) -> ClockQuery:
        return ClockQuery(query, accept=isinstance(self._waiting[query], AcceptClock))
