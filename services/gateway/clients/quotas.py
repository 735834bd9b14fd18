"""How much one client may ask for: at a time, in a second, and in one request. Pure.

A client is a key, with all its connections; without keys it is a connection. A request weighs as
many as it has operations, or keys of a read; any other request weighs 1. The gateway has limits for
all, and a key's grant may have its own; 0 is none.

- At a time: a request weighs on its client from when it is taken until it is answered.
- In a second: a client may save up one second's worth. A request may weigh more than what is left,
  and passes. The client then waits until that is paid off. So a batch larger than the rate passes,
  once.
- Time of calls: it is counted once it is known. A client that has used up a second's worth calls
  nothing until that is paid off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tallybus.common.buffers import Buffer, size
from tallybus.common.protocol import IN_FLIGHT, LIMIT_NAMES, MESSAGE_BYTES, RATE, WORK_MS, ErrorCode
from tallybus.common.security.keys import Grant
from tallybus.services.gateway.clients.protocol import (
    ClientRequest,
    Read,
    Refusal,
    Submit,
)
from tallybus.services.gateway.clients.usage import Usage

SECOND_NS: Final = 1_000_000_000
MAX_IDLE: Final = 65_536
"""Clients without a request under way that are remembered at most, for the sake of their rate."""
SWEEP_FROM: Final = 1_024


class Quotas:
    """Keeps count of what each client has asked for.

    `limited` says whether the gateway's own limits bound all clients. If they do, `weigh` and
    `take` are for every request. Otherwise they are for requests with a grant.
    """

    def __init__(
        self, in_flight: int = 0, rate: int = 0, message_bytes: int = 0, work_ms: int = 0
    ) -> None:
        self.limited = bool(in_flight or rate or message_bytes or work_ms)
        self._in_flight = in_flight
        self._rate = rate
        self._message_bytes = message_bytes
        self._work_ms = work_ms
        self._usages: dict[bytes, Usage] = {}
        self._sweep_at = SWEEP_FROM

    def __len__(self) -> int:
        return len(self._usages)

    def refusal(
        self, request: ClientRequest, frames: Sequence[Buffer], grant: Grant | None, now_ns: int
    ) -> Refusal | None:
        """Why this request is beyond its client's limits; None: it may be taken."""
        in_flight, rate, message_bytes, work_ms = self._limits(grant)
        if message_bytes and (length := sum(map(size, frames))) > message_bytes:
            return Refusal(
                ErrorCode.INVALID_REQUEST,
                f"the request has {length} bytes; this client may send {message_bytes} in one",
                {"limit": MESSAGE_BYTES, "allowed": message_bytes},
            )
        if not (in_flight or rate or work_ms):
            return None
        weight = weight_of(request)
        if in_flight and weight > in_flight:
            # Not to be tried again: it would never be taken.
            return Refusal(
                ErrorCode.INVALID_REQUEST,
                f"{weight} operations or keys in one request; this client may have {in_flight} "
                "under way at a time",
                {"limit": IN_FLIGHT, "allowed": in_flight},
            )
        usage = self._usages.get(_owner(request, grant))
        if usage is None:
            return None
        if in_flight and usage.in_flight + weight > in_flight:
            return Refusal(
                ErrorCode.OVERLOADED,
                f"{usage.in_flight} operations and reads of this client are under way, it may have "
                f"{in_flight}; nothing was done, try again when some of them are answered",
                {"limit": IN_FLIGHT, "allowed": in_flight},
            )
        if rate and (early_ns := usage.paid_ns - now_ns - SECOND_NS) >= 0:
            retry_ms = early_ns // 1_000_000 + 1
            return Refusal(
                ErrorCode.OVERLOADED,
                f"this client may ask for {rate} operations and reads in a second; nothing was "
                f"done, try again in {retry_ms} ms",
                {"limit": RATE, "allowed": rate, "retry_ms": retry_ms},
            )
        if work_ms and isinstance(request, Submit) and size(request.params):
            early_ns = usage.worked_ns - now_ns - SECOND_NS
            if early_ns >= 0:
                retry_ms = early_ns // 1_000_000 + 1
                return Refusal(
                    ErrorCode.OVERLOADED,
                    f"this client's calls may take {work_ms} ms of the ledger's time in a second; "
                    f"nothing was done, try again in {retry_ms} ms",
                    {"limit": WORK_MS, "allowed": work_ms, "retry_ms": retry_ms},
                )
        return None

    def worked(self, owner: bytes, grant: Grant | None, took_ns: int, now_ns: int) -> None:
        """The calls of this client, with this grant, have taken so much of the ledger's time."""
        work_ms = self._limits(grant)[3]
        if work_ms:
            usage = self._usage(owner, now_ns)
            usage.worked_ns = max(usage.worked_ns, now_ns) + took_ns * 1_000 // work_ms

    def take(self, request: ClientRequest, grant: Grant | None, now_ns: int, held: bool) -> None:
        """Count a request that was taken; one that is `held` until `let_go`."""
        in_flight, rate, _, _ = self._limits(grant)
        if not (in_flight or rate):
            return
        usage = self._usage(_owner(request, grant), now_ns)
        weight = weight_of(request)
        if rate:
            usage.paid_ns = max(usage.paid_ns, now_ns) + -(-weight * SECOND_NS // rate)
        if held:
            usage.in_flight += weight
            request.usage = usage

    def _usage(self, owner: bytes, now_ns: int) -> Usage:
        usage = self._usages.get(owner)
        if usage is None:
            if len(self._usages) >= self._sweep_at:
                self._sweep(now_ns)
            usage = self._usages[owner] = Usage()
        usage.heard_ns = now_ns
        return usage

    def told(self, grant: Grant | None) -> dict[str, int]:
        """A client's limits by name, as a ping tells them. 0: none."""
        return dict(zip(LIMIT_NAMES, self._limits(grant), strict=True))

    def _limits(self, grant: Grant | None) -> tuple[int, int, int, int]:
        if grant is None:
            return self._in_flight, self._rate, self._message_bytes, self._work_ms
        return (
            grant.max_in_flight or self._in_flight,
            grant.max_rate or self._rate,
            grant.max_message_bytes or self._message_bytes,
            grant.max_work_ms or self._work_ms,
        )

    def _sweep(self, now_ns: int) -> None:
        """Forget clients about whom there is nothing to remember."""
        kept = {
            owner: usage
            for owner, usage in self._usages.items()
            if usage.in_flight or max(usage.paid_ns, usage.worked_ns) > now_ns
        }
        idle = [owner for owner, usage in kept.items() if not usage.in_flight]
        if len(idle) > MAX_IDLE:
            idle.sort(key=lambda owner: kept[owner].heard_ns)
            for owner in idle[: len(idle) - MAX_IDLE // 2]:
                del kept[owner]
        self._usages = kept
        self._sweep_at = max(SWEEP_FROM, 2 * len(kept))


def let_go(request: ClientRequest) -> None:
    """A request that was held is answered."""
    usage = request.usage
    if usage is not None:
        usage.in_flight -= weight_of(request)
        request.usage = None


def weight_of(request: ClientRequest) -> int:
    """What a request weighs: its operations, its keys, or 1."""
    if isinstance(request, Submit):
        return request.count
    return len(request.keys) if isinstance(request, Read) else 1


def _owner(request: ClientRequest, grant: Grant | None) -> bytes:
    # With keys every client has a grant, without them none has: the two are never mixed.
    return request.client if grant is None else grant.public
