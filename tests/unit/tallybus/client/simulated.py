"""A client's core on a simulated clock, with a gateway played by hand."""

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from tallybus import TallybusError, WaitLevel, deposits
from tallybus.client.codec import Request
from tallybus.client.core import MILLISECOND, SECOND, Call, Core, new_call
from tallybus.client.submit import SubmitBatch, SubmitOne
from tallybus.common.record import FAILURE_DTYPE
from tallybus.operations import Deposit, encode_operation

PING = 250 * MILLISECOND


class Sim:
    """A core with its clock, an open connection, and the messages that went over it."""

    def __init__(self, random: Callable[[], float] = lambda: 0.0) -> None:
        self.core = Core(random)
        self.now = 1000 * SECOND
        self.connected = True
        self.sent: list[dict[str, Any]] = []

    def start(self, request: Request[Any], seconds: float = 30.0) -> Call[Any]:
        call = new_call(request, self.now, seconds)
        self.core.begin(call, self.now)
        self.flush()
        return call

    def flush(self) -> None:
        while (frames := self.core.next_message(self.now)) is not None:
            if not self.connected:
                self.core.message_refused()
                break
            self.sent.append(msgpack.unpackb(frames[0]) | {"payload": frames[1:]})
            self.core.message_sent(self.now)

    def take(self) -> list[dict[str, Any]]:
        """What was sent since the last call."""
        taken, self.sent = self.sent, []
        return taken

    def reply(self, request_id: int | None, *payload: bytes, **fields: Any) -> None:
        header = msgpack.packb({"v": 1, "id": request_id, **fields})
        self.core.receive([header, *payload], self.now)
        self.flush()

    def submitted(self, request_id: int, first: int, table: bytes = b"", count: int = 1) -> None:
        failures = len(table) // 16
        self.reply(request_id, table, first=first, count=count, level=2, failures=failures)

    def refuse(self, request_id: int, code: str, **details: Any) -> None:
        self.reply(request_id, error=code, message="because", details=details)

    def pong(self, ping_id: int, unknown: list[int], **more: Any) -> None:
        fields = {"incarnation": 2, "protocol": 1, "max_batch": 5, "max_accounts": 6}
        self.reply(ping_id, unknown=unknown, **fields | more)

    def advance(self, nanoseconds: int) -> None:
        """Lets time pass, waking the core whenever it wants to be."""
        end = self.now + nanoseconds
        while (wake := self.core.next_wake()) is not None and wake <= end:
            assert wake >= self.now or self.now == end, "the core wants to wake in the past"
            self.now = max(self.now, wake)
            self.core.tick(self.now)
            self.flush()
            new = self.core.next_wake()
            assert new is None or new > self.now, "the core does not let time go on"
        self.now = end

    def done(self) -> list[Call[Any]]:
        """The calls that have finished since the last time."""
        finished = list(self.core.finished)
        self.core.finished.clear()
        assert all(call.done for call in finished)
        return finished


def one(user_ref: int = 0, level: WaitLevel = WaitLevel.COMMITTED) -> SubmitOne:
    return SubmitOne(encode_operation(Deposit(1, 5, user_ref))[0], level)


def batch(*user_refs: int) -> SubmitBatch:
    records = deposits(1, 5, user_refs)
    return SubmitBatch(records.tobytes(), len(records), WaitLevel.COMMITTED)


def duplicate(offset: int, original: int, first: int) -> bytes:
    row = np.zeros(1, FAILURE_DTYPE)
    row["offset"], row["status"], row["original_status"], row["duplicate_of"] = (
        *(offset, 7),
        *(original, first),
    )
    return row.tobytes()


def error_of(call: Call[Any], kind: type[TallybusError]) -> Any:
    assert call.done
    with pytest.raises(kind) as caught:
        call.result()
    assert type(caught.value) is kind
    return caught.value


def lose(sim: Sim) -> None:
    """The gateway does not know anything that was sent so far."""
    sim.advance(PING)
    ping = sim.take()[-1]
    assert ping["op"] == "ping"
    sim.pong(ping["id"], ping["pending"])
