"""Where requests are held and answered: every client gets exactly one reply to each request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from tallybus.common.buffers import Buffer
from tallybus.common.protocol import ErrorCode
from tallybus.services.gateway.clients import protocol
from tallybus.services.gateway.clients.protocol import BadRequest, ClientRequest, Refusal, Submit
from tallybus.services.gateway.clients.quotas import let_go
from tallybus.services.gateway.clients.waits import Marks

MAX_HELD: Final = 262_144
"""Client requests held at a time. One client may take at most as many places as it leaves free, so
there is always room for others."""


class Desk:
    """Requests that are held, with their deadlines, and `answers` (client, frames) to be sent."""

    def __init__(self, max_wait_ns: int) -> None:
        self.answers: list[tuple[bytes, list[Buffer]]] = []
        self.answered: Callable[[ClientRequest | None, str], None] | None = None
        """Where somebody counts, this is called with each request (None: it could not be read) and
        its outcome, "ok" or an error's code."""
        self._max_wait_ns = max_wait_ns
        self._held: dict[tuple[bytes, int], ClientRequest] = {}
        self._places: dict[bytes, int] = {}
        """Held requests of each client that has any."""
        self._deadlines: Marks[ClientRequest] = Marks()

    def __len__(self) -> int:
        return len(self._held)

    def takes(self, request: ClientRequest) -> bool:
        """Whether its client may have one more request held."""
        return self._places.get(request.owner, 0) < MAX_HELD - len(self._held)

    @property
    def submits(self) -> bool:
        """Whether any submission is held."""
        return any(isinstance(request, Submit) for request in self._held.values())

    def holds(self, client: bytes, request_id: int) -> bool:
        """Whether this request of this client waits for its answer."""
        return (client, request_id) in self._held

    def hold(self, request: ClientRequest, now_ns: int) -> None:
        """Keep a request until `finish`, `fail`, or its deadline."""
        self._held[request.client, request.id] = request
        self._places[request.owner] = self._places.get(request.owner, 0) + 1
        request.held_ns = now_ns
        wait_ns = self._max_wait_ns
        if request.timeout_ms is not None:
            wait_ns = min(wait_ns, request.timeout_ms * 1_000_000)
        self._deadlines.add(now_ns + wait_ns, request)

    def late(self, now_ns: int) -> Iterator[ClientRequest]:
        """Held requests whose deadline has passed."""
        return self._deadlines.reached(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When the next held request times out, on the monotonic clock."""
        return self._deadlines.next_mark()

    def finish(self, request: ClientRequest, fields: dict[str, Any], *payloads: Buffer) -> None:
        """Answer a held request."""
        self._let_go(request)
        self.reply(request, fields, *payloads)

    def fail(self, request: ClientRequest, code: ErrorCode, message: str, **details: Any) -> None:
        """Answer a held request with an error."""
        self._let_go(request)
        if self.answered is not None:
            self.answered(request, code)
        frames = protocol.error_reply(request.id, code, message, details)
        self.answers.append((request.client, frames))

    def reply(self, request: ClientRequest, fields: dict[str, Any], *payloads: Buffer) -> None:
        """Answer a request that was never held."""
        if self.answered is not None:
            self.answered(request, "ok")
        self.answers.append((request.client, protocol.reply(request.id, fields, *payloads)))

    def refuse(self, client: bytes, error: BadRequest) -> None:
        """Answer what cannot be served."""
        if self.answered is not None:
            self.answered(None, error.code)
        frames = protocol.error_reply(error.request_id, error.code, str(error), error.details)
        self.answers.append((client, frames))

    def deny(self, request: ClientRequest, refusal: Refusal) -> None:
        """Answer a request that its client may not make, or not now."""
        if self.answered is not None:
            self.answered(request, refusal.code)
        frames = protocol.error_reply(request.id, refusal.code, refusal.message, refusal.details)
        self.answers.append((request.client, frames))

    def overloaded(self, request: ClientRequest, why: str) -> None:
        """Answer a request for which there is no room; nothing was done about it."""
        if self.answered is not None:
            self.answered(request, ErrorCode.OVERLOADED)
        text = f"{why}; nothing was done, try again later"
        frames = protocol.error_reply(request.id, ErrorCode.OVERLOADED, text)
        self.answers.append((request.client, frames))

    def _let_go(self, request: ClientRequest) -> None:
        request.done = True
        if request.usage is not None:
            let_go(request)
        del self._held[request.client, request.id]
        places = self._places[request.owner] - 1
        if places:
            self._places[request.owner] = places
        else:
            del self._places[request.owner]
