"""Answers on their way to clients, some of which do not read them.

A socket queues a few answers for each connection. What it does not take waits here, in order, and
bounded in bytes for each client. A client that lets more than that pile up loses the answers that
follow, and finds out by its next ping. So one client that does not read costs the others nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from tallybus.common.buffers import Buffer, size

MAX_WAITING_BYTES: Final = 16 << 20
"""Answers that wait for one client."""
MAX_TOTAL_BYTES: Final = 512 << 20
"""Answers that wait for all clients together."""
OVERHEAD_BYTES: Final = 256
"""What a waiting answer takes beside its frames, about."""

Send = Callable[[bytes, Sequence[Buffer]], bool | None]
"""Hands an answer to a client's connection: True taken, False not now, None the client is gone."""


class AnswerQueue:
    """Sends answers in order for each client. `dropped` counts those that nobody will get."""

    def __init__(self, send: Send) -> None:
        self.dropped = 0
        self._send = send
        self._waiting: dict[bytes, deque[Sequence[Buffer]]] = {}
        self._bytes: dict[bytes, int] = {}
        self._total = 0

    @property
    def waiting(self) -> bool:
        """Whether `retry` has something to do."""
        return bool(self._waiting)

    def put(self, client: bytes, frames: Sequence[Buffer]) -> None:
        """Send an answer, now if the connection takes it and nothing waits before it."""
        queue = self._waiting.get(client)
        if queue is None:
            taken = self._send(client, frames)
            if taken:
                return
            if taken is None:
                self.dropped += 1
                return
            queue = self._waiting[client] = deque()
            self._bytes[client] = 0
        weight = _weight(frames)
        if queue and (
            self._bytes[client] + weight > MAX_WAITING_BYTES or self._total > MAX_TOTAL_BYTES
        ):
            self.dropped += 1
            return
        queue.append(frames)
        self._bytes[client] += weight
        self._total += weight

    def retry(self) -> None:
        """Send what has waited, as far as the connections take it."""
        for client in list(self._waiting):
            queue = self._waiting[client]
            while queue:
                taken = self._send(client, queue[0])
                if taken is None:
                    self.dropped += len(queue)
                    queue.clear()
                    break
                if not taken:
                    break
                weight = _weight(queue.popleft())
                self._bytes[client] -= weight
                self._total -= weight
            if not queue:
                self._total -= self._bytes[client]
                del self._waiting[client], self._bytes[client]


def _weight(frames: Sequence[Buffer]) -> int:
    return OVERHEAD_BYTES + sum(size(frame) for frame in frames)
