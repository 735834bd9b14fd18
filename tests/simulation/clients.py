"""Simulated clients: they submit, wait at every level, read, lose connections and retry.

Each operation has an amount of its own, by which it is recognised in the log. An operation without
`user_ref` is sent again only when an answer says that nothing was done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import FAILURE_DTYPE, RECORD_DTYPE, STATUS_DTYPE, Kind, Level
from tests.simulation.checks import identity
from tests.simulation.functions import EXAMPLES, NAMES, Registration
from tests.simulation.functions import Call as Intent
from tests.simulation.world import MS, SimulationFailure, check

if TYPE_CHECKING:
    from tests.simulation.pipeline import Pipeline

PING_AFTER = 250 * MS


@dataclass(eq=False)
class Call:
    """A request and how it stands."""

    op: str
    header: dict[str, Any]
    payload: NDArray[Any] | None
    """Records of what it submits or registers, or keys."""
    extra: bytes | None = None
    """Parameters of calls, or the module that is registered."""
    sent_at: int = 0
    readable: int = 0
    """What this client knew to be readable when it sent this."""
    retry_at: int | None = None
    unsure: bool = False
    """An earlier sending may have had an effect."""
    bad: bool = False
    """It breaks the protocol, and must be refused."""

    @property
    def submits(self) -> bool:
        return self.op in ("submit", "register", "unregister")

    @property
    def resendable(self) -> bool:
        if not self.submits:
            return True
        assert self.payload is not None
        return bool(self.payload["user_ref"].all())


@dataclass
class Client:
    """One connection. `readable` and `seen_ids` are what answers have told it."""

    pipeline: Pipeline
    name: str
    gateway: str
    most: int
    next_id: int = 1
    readable: int = 0
    life: int = 0
    newest: int = 0
    sent: dict[int, Call] = field(default_factory=dict)
    queue: list[Call] = field(default_factory=list)
    pings: list[int] = field(default_factory=list)
    ping_at: int = 0
    completed: int = 0
    given_up: int = 0

    # -- what it wants ---------------------------------------------------------------------------

    def invent(self) -> None:
        """Think of a request."""
        rng = self.pipeline.world.rng
        if len(self.sent) + len(self.queue) >= self.most:
            return
        kind = rng.random()
        timeout = rng.choice((None, None, 200, 1000, 5000))
        header: dict[str, Any] = {"v": 1}
        if timeout is not None:
            header["timeout_ms"] = timeout
        payload = None
        if self.pipeline.functions and rng.random() < 0.3:
            self.queue.append(self._register(header) if rng.random() < 0.3 else self._call(header))
            return
        if rng.random() < 0.02:
            self.queue.append(self._bad(header))
            return
        if kind < 0.75:
            payload = self._operations(
                rng.choice((1, 1, 1, 2, 3, rng.randint(1, self.pipeline.max_batch)))
            )
            header |= {
                "op": "submit",
                "count": len(payload),
                "wait": rng.choice((0, 1, 2, 2, 2, 3)),
            }
        elif kind < 0.85:
            payload = np.array(
                [rng.randrange(self.pipeline.max_accounts) for _ in range(rng.randint(1, 5))], "<u8"
            )
            header |= {"op": "balances"}
            if self.newest and rng.random() < 0.5:
                header["min_tx_id"] = rng.randint(1, self.newest)
        elif kind < 0.95:
            payload = np.array(
                [rng.randint(0, self.newest + 5) for _ in range(rng.randint(1, 8))], "<u8"
            )
            header |= {"op": "status"}
        elif kind < 0.98:
            header |= {
                "op": "wait",
                "tx_id": rng.randint(0, self.newest + 1),
                "wait": rng.randint(0, 3),
            }
        else:
            header |= {"op": "index"}
        self.queue.append(Call(header["op"], header, payload))

    def _bad(self, header: dict[str, Any]) -> Call:
        """A submit with something in it that no submit has."""
        rng = self.pipeline.world.rng
        records = self._operations(rng.choice((1, 2, rng.randint(1, self.pipeline.max_batch))))
        header |= {"op": "submit", "count": len(records), "wait": rng.randint(0, 3)}
        wrong = rng.choice(("kind", "function", "status", "entry_count", "reason", "level", "key"))
        if wrong == "level":
            del header["wait"]
        elif wrong == "key":
            header["wiat"] = 3
        else:
            records[wrong][rng.randrange(len(records))] = rng.randint(6, 255)
        return Call("submit", header, records, bad=True)

    def _register(self, header: dict[str, Any]) -> Call:
        """Register, replace or end a function."""
        rng = self.pipeline.world.rng
        example = rng.choice((*EXAMPLES, *EXAMPLES, None))
        wanted = Registration(rng.choice(NAMES), example, rng.random() < 0.7)
        records = np.zeros(1, RECORD_DTYPE)
        records["kind"] = Kind.FUNCTION_REGISTERED
        records["user_ref"] = ref = self.pipeline.new_ref()
        self.pipeline.judge.oracle.intents[ref] = wanted
        header |= {"name": wanted.name, "user_ref": ref, "wait": rng.choice((0, 1, 2, 2, 3))}
        if example is None:
            return Call("unregister", header | {"op": "unregister"}, records)
        header |= {"op": "register", "override": wanted.override}
        return Call("register", header, records, wanted.module)

    def _call(self, header: dict[str, Any]) -> Call:
        """Built-in operations, with calls among them."""
        pipeline, rng = self.pipeline, self.pipeline.world.rng
        records = self._operations(rng.choice((1, 2, 3, rng.randint(1, pipeline.max_batch))))
        params = []
        for row in records:
            if rng.random() < 0.3:
                continue
            place = rng.randrange(len(NAMES))
            row["kind"], row["function"] = Kind.FUNCTION, place
            row["account"] = row["counterparty"] = row["amount"] = 0
            row["user_ref"] = ref = pipeline.new_ref()
            call = [rng.randrange(pipeline.max_accounts + 1) for _ in range(3)]
            call += [rng.randint(0, 100), rng.choice((0, 50, 10_001)), 0, 0, 0]
            pipeline.judge.oracle.intents[ref] = Intent(NAMES[place], tuple(call))
            params.append(call)
        header |= {"op": "submit", "count": len(records), "wait": rng.choice((0, 1, 2, 2, 2, 3))}
        if not params:
            return Call("submit", header, records)
        extra = np.array(params, "<i8").tobytes()
        return Call("submit", header | {"names": list(NAMES)}, records, extra)

    def _operations(self, count: int) -> NDArray[Any]:
        pipeline, rng = self.pipeline, self.pipeline.world.rng
        records = np.zeros(count, RECORD_DTYPE)
        refs = rng.choice(("none", "own", "own", "mixed", "shared"))
        for row in records:
            row["kind"] = rng.choice((1, 1, 1, 2, 3, 3, 3, 3, 3))
            # Now and then one that the ledger cannot execute.
            beyond = pipeline.max_accounts * (rng.random() < 0.02)
            row["account"] = rng.randrange(1, pipeline.max_accounts) + beyond
            if row["kind"] == Kind.TRANSFER:
                row["counterparty"] = rng.randrange(pipeline.max_accounts + 1)
            row["amount"] = pipeline.new_amount()
            if refs == "own" or (refs == "mixed" and rng.random() < 0.5):
                row["user_ref"] = pipeline.new_ref()
            elif refs == "shared":
                row["user_ref"] = rng.choice(pipeline.shared_refs)
        return records

    # -- turns -----------------------------------------------------------------------------------

    def turn(self, *, busy: bool) -> None:
        world = self.pipeline.world
        while (letter := world.receive("answer", self.name, self.gateway, lossy=False)) is not None:
            self._receive(letter.frames)
        if busy and world.chance(0.7):
            self.invent()
        if busy and world.chance(0.01):
            self._send_nonsense()
        if not self.pipeline.nodes[self.gateway].up:
            return
        for call in list(self.queue):
            if call.retry_at is not None and call.retry_at > world.now:
                continue
            self.queue.remove(call)
            self._send(call)
        if self.sent and world.now >= self.ping_at:
            oldest = min(call.sent_at for call in self.sent.values())
            if world.now - oldest >= PING_AFTER:
                self.pings.append(self.next_id)
                self._post({"v": 1, "op": "ping", "id": self.next_id, "pending": list(self.sent)})
                self.ping_at = world.now + PING_AFTER

    def _send(self, call: Call) -> None:
        call.sent_at = self.pipeline.world.now
        life = self.pipeline.nodes[self.gateway].life
        if life != self.life:
            # Another gateway promises nothing but what it is asked for with `min_tx_id`.
            self.life, self.readable = life, 0
        call.readable = self.readable
        self.sent[self.next_id] = call
        frames = [] if call.payload is None else [call.payload.tobytes()]
        if call.extra is not None:
            frames = [call.extra] if call.op == "register" else [*frames, call.extra]
        elif call.op == "unregister":
            frames = []
        self._post(call.header | {"id": self.next_id}, *frames)

    def _post(self, header: dict[str, Any], *payloads: bytes) -> None:
        frames = [msgpack.packb(header), *payloads]
        self.pipeline.world.send("client", self.gateway, self.name, 0, frames, lossy=False)
        self.next_id += 1

    def _send_nonsense(self) -> None:
        """Anything may be sent, and the gateway must answer and live."""
        rng = self.pipeline.world.rng
        frames = [rng.randbytes(rng.randint(0, 30)) for _ in range(rng.randint(0, 3))]
        self.pipeline.world.send("client", self.gateway, self.name, 0, frames, lossy=False)  # type: ignore[arg-type]

    # -- answers ---------------------------------------------------------------------------------

    def _receive(self, frames: list[Any]) -> None:
        header = msgpack.unpackb(frames[0])
        request = header["id"]
        if request is None:
            check(header["error"] in ("invalid_request", "unsupported_version"), f"{header}")
            return
        if request in self.pings:
            self.pings = [other for other in self.pings if other > request]
            for lost in header["unknown"]:
                call = self.sent.pop(lost, None)
                if call is not None:
                    self._lost(call)
            return
        call = self.sent.pop(request, None)
        if call is None:
            check("error" in header, f"an answer that nobody waits for: {header}")
            return
        if "error" in header:
            self._failed(call, header)
        else:
            check(not call.bad, f"taken, though it breaks the protocol: {call.header}")
            self.completed += 1
            self._answered(call, header, frames[1:])

    def _answered(self, call: Call, header: dict[str, Any], payload: list[bytes]) -> None:
        judge = self.pipeline.judge
        if call.submits:
            assert call.payload is not None
            failures = np.frombuffer(payload[0], FAILURE_DTYPE)
            check(header["count"] == len(call.payload), "count")
            check(header["failures"] == len(failures), "failures")
            level = Level(call.header["wait"])
            check(header["level"] == level, f"asked for {level}, got {header['level']}")
            judge.submitted(level, header["first"], call.payload, failures)
            last = header["first"] + header["count"] - 1
            if level >= Level.COMMITTED:
                self.pipeline.committed += header["count"]
                self.newest = max(self.newest, last)
            if level is Level.SNAPSHOT:
                self.readable = max(self.readable, last)
        elif call.op == "balances":
            assert call.payload is not None
            values = np.frombuffer(payload[0], "<i8")
            least = max(call.header.get("min_tx_id", 0), call.readable)
            judge.read_balances(call.payload, values, header["snapshot"], least)
        elif call.op == "status":
            assert call.payload is not None
            judge.read_statuses(
                call.payload, np.frombuffer(payload[0], STATUS_DTYPE), call.readable
            )
        elif call.op == "wait":
            level, tx_id = header["level"], call.header["tx_id"]
            if level >= Level.COMMITTED:
                check(
                    tx_id <= judge.durable, f"{tx_id} told as {level}, durable is {judge.durable}"
                )
            if level == Level.SNAPSHOT:
                self.readable = max(self.readable, tx_id)
        else:
            check(header["committed"] <= judge.durable, f"committed told as {header['committed']}")
            check(header["snapshot"] <= judge.durable, f"snapshot told as {header['snapshot']}")

    def _failed(self, call: Call, header: dict[str, Any]) -> None:
        code = header["error"]
        self.pipeline.world.faults[f"answer {code}"] += 1
        if code in ("overloaded", "unavailable"):
            call.retry_at = self.pipeline.world.now + 20 * MS
            self.queue.append(call)
        elif code == "lost":
            check(not self.pipeline.strict, f"lost: {header}")
            self._again(call, sure=True)
        elif code in ("timeout", "outcome_unknown"):
            check(code == "timeout" or not self.pipeline.strict, f"unknown: {header}")
            self._again(call, sure=False)
        elif code == "invalid_request" and (call.bad or call.op == "status"):
            self.completed += 1
        else:
            raise SimulationFailure(f"{call.op} was answered with {header}")

    def _lost(self, call: Call) -> None:
        self._again(call, sure=False)

    def _again(self, call: Call, *, sure: bool) -> None:
        """Send again if that is safe; otherwise nobody knows what became of it."""
        if call.submits and not sure:
            call.unsure = True
        may = call.resendable or (sure and not call.unsure)
        if not may or self.pipeline.world.rng.random() < 0.3 or self.pipeline.draining_since:
            self.given_up += 1
            return
        if call.payload is not None and call.submits:
            self.pipeline.judge.resubmitted.update(identity(row) for row in call.payload)
        call.retry_at = self.pipeline.world.now + 5 * MS
        self.queue.append(call)
