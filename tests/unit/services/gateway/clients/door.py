"""A gateway without a pipeline: its clients with their keys, and what they are refused."""

from collections.abc import Mapping
from typing import Any

import msgpack

from tallybus.common.record import RECORD_SIZE, Kind
from tallybus.common.security.keys import Grant, Role
from tallybus.services.gateway.clients.protocol import Limits, Refusal
from tallybus.services.gateway.clients.quotas import Quotas
from tallybus.services.gateway.core import GatewayCore

MS = 1_000_000


WASM = b"\0asm\1\0\0\0"


def key(number: int) -> bytes:
    return b"%040d" % number


def grant(role: Role = Role.ADMIN, *, number: int = 1, **fields: Any) -> Grant:
    return Grant(f"client-{number}", key(number), role, "2026-01-01T00:00:00Z", **fields)


def message(op: str, request_id: int, count: int = 1) -> list[bytes]:
    header: dict[str, Any] = {"v": 1, "op": op, "id": request_id}
    payloads: list[bytes] = []
    if op == "submit":
        header |= {"count": count, "wait": 2}
        payloads = [bytes([Kind.DEPOSIT, *bytes(RECORD_SIZE - 1)]) * count]
    elif op in ("balances", "status"):
        payloads = [bytes(8) * count]
    elif op == "transaction":
        header |= {"tx_id": 1}
    elif op == "wait":
        header |= {"tx_id": 10**6, "wait": 1}
    elif op in ("register", "unregister"):
        header |= {"name": "fee", "wait": 2}
        payloads = [WASM] if op == "register" else []
    return [msgpack.packb(header), *payloads]


class Door:
    """A gateway without a pipeline: requests are held, and nothing answers them but refusals."""

    def __init__(self, grants: Mapping[bytes, Grant] | None = None, **limits: int) -> None:
        self.core = GatewayCore(
            7, 100_000, 100 * MS, Limits(1_000, 1_000, 1_000), 60_000, Quotas(**limits)
        )
        self.core.access.grants = grants
        self.denied: list[tuple[str, Refusal]] = []
        self.core.denied = lambda _, name, refusal: self.denied.append((name, refusal))
        self.now = 0
        self.next_id = 0

    def ask(
        self, op: str, user: bytes = b"", *, client: bytes = b"c", count: int = 1
    ) -> dict[str, Any]:
        """The error that comes back; empty when the request was taken."""
        self.next_id += 1
        frames = message(op, self.next_id, count)
        self.core.on_client(client, frames, self.now, user)
        answers, self.core.desk.answers = self.core.desk.answers, []
        if not answers:
            return {}
        ((asker, (header, *payloads)),) = answers
        answer: dict[str, Any] = msgpack.unpackb(header)
        assert asker == client
        assert answer["id"] == self.next_id
        assert payloads == []
        return answer if "error" in answer else {}

    def ping(self, user: bytes = b"", *, client: bytes = b"c") -> dict[str, Any]:
        """The whole answer to a ping."""
        self.core.on_client(client, message("ping", 1), self.now, user)
        (_, (header,)) = self.core.desk.answers.pop()
        answer: dict[str, Any] = msgpack.unpackb(header)
        return answer

    def answer_all(self) -> None:
        """Every request that is held gets its answer: its time is over."""
        self.now += 120_000 * MS
        self.core.tick(self.now)
        self.core.desk.answers.clear()


def held_by(door: Door) -> int:
    return len(door.core.desk)
