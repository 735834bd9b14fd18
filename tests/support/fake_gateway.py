"""A gateway for tests of the clients: a ROUTER in a thread in front of a tiny ledger, which fails
on cue.

It answers every request at once unless its script says otherwise. The ledger sequences, applies
each operation, and knows every `user_ref` it has seen, so a test can count effects.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zmq
from crc32c import crc32c

RECORD = struct.Struct("<BBHIQQQQ")
FAILURE = struct.Struct("<IBBHQ")
ENTRY = struct.Struct("<Qq")
REJECTED = 999_999
"""An amount that this ledger rejects."""
TIMESTAMP = 1_700_000_000_123_456_789
Script = Callable[["Message"], str]


@dataclass
class Message:
    """One message from a client. `number` counts a gateway's messages other than pings, from 0."""

    client: bytes
    header: dict[str, Any]
    payload: list[bytes]
    number: int

    @property
    def op(self) -> str:
        return str(self.header["op"])


@dataclass
class Kept:
    """A transaction as it is read back: a record as in the log, and what belongs to it."""

    record: bytes
    entries: bytes = b""
    params: list[int] = field(default_factory=list)
    function: dict[str, Any] | None = None
    duplicate_of: int = 0
    name: str | None = None


@dataclass
class Registered:
    """A live function. A call of it moves its second parameter from account 0 to its first one, or
    fails with the status that is its third parameter. But `load_fee_transfer` does what it says.
    """

    version: int
    crc: int
    tx_id: int
    calls: int = 0
    failures: Counter[int] = field(default_factory=Counter)


@dataclass
class FakeLedger:
    """Outlives its gateways. `effects` counts the executions per (kind, user_ref, account, amount),
    of registrations per (5, override, crc, version).
    """

    next_id: int = 1
    refs: dict[int, tuple[int, int]] = field(default_factory=dict)
    balances: Counter[int] = field(default_factory=Counter)
    effects: Counter[tuple[int, int, int, int]] = field(default_factory=Counter)
    kept: dict[int, Kept] = field(default_factory=dict)
    functions: dict[str, Registered] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)

    def submit(
        self, records: bytes, names: list[str] | None = None, params: bytes = b""
    ) -> tuple[int, list[bytes]]:
        """First id and failures. An amount of REJECTED is an INVALID_OPERATION, and consumes its
        reference.
        """
        first, failures = self.next_id, []
        calls = struct.iter_unpack("<8q", params)
        for offset, row in enumerate(RECORD.iter_unpack(records)):
            kind, _, _, function, user_ref, account, counterparty, amount = row
            tx_id = first + offset
            kept = Kept(RECORD.pack(*row))
            self.kept[tx_id] = kept
            values = next(calls) if kind == 4 else ()
            original, was = self.refs.get(user_ref, (0, 0)) if user_ref else (0, 0)
            if original:
                failures.append(FAILURE.pack(offset, 7, was, 0, original))
                kept.duplicate_of = original
                kept.record = RECORD.pack(kind, 7, 0, 0, *row[4:])
                continue
            if kind == 4:
                status = self._call(kept, row, (names or [])[function], values)
            else:
                status = 5 if amount in (0, REJECTED) else 0
                kept.record = RECORD.pack(kind, status, 2 if not status else 0, *row[3:])
            if user_ref:
                self.refs[user_ref] = (tx_id, status)
            if status:
                failures.append(FAILURE.pack(offset, status, 0, 0, 0))
                continue
            self.effects[kind, user_ref, account, amount] += 1
            if kind == 4:
                continue
            source, target = {1: (0, account), 2: (account, 0), 3: (account, counterparty)}[kind]
            kept.entries = ENTRY.pack(source, -amount) + ENTRY.pack(target, amount)
            self.balances[target] += amount
            self.balances[source] -= amount
        self.next_id = first + len(records) // RECORD.size
        return first, failures

    def _call(self, kept: Kept, row: tuple[int, ...], name: str, values: tuple[int, ...]) -> int:
        function = self.functions.get(name)
        words = len(values)
        while words and not values[words - 1]:
            words -= 1
        kept.params = list(values[:words])
        status, entries = self._effect(name, values)
        crc = 0
        if function is not None:
            crc = function.crc
            kept.function = {"name": name, "version": function.version}
            function.calls += 1
            if status:
                function.failures[status] += 1
        for account, amount in entries:
            self.balances[account] += amount
        kept.entries = b"".join(ENTRY.pack(*entry) for entry in entries)
        kept.record = RECORD.pack(4, status, len(entries), crc, row[4], 0, 0, words)
        return status

    def _effect(self, name: str, values: tuple[int, ...]) -> tuple[int, list[tuple[int, int]]]:
        """Status and entries of a call."""
        if name not in self.functions:
            return 5, []
        if name == "load_fee_transfer":
            sender, receiver, fee_account, amount, fee_bps = values[:5]
            fee = -(-amount * fee_bps // 10_000)
            if self.balances[sender] < amount + fee:
                return 1, []
            return 0, [(sender, -amount - fee), (receiver, amount), (fee_account, fee)]
        account, amount, status = values[:3]
        return status, [] if status or not amount else [(0, -amount), (account, amount)]

    def register(
        self, name: str, binary: bytes, override: bool, user_ref: int
    ) -> tuple[int, list[bytes]]:
        """Id and failures of a registration; without a binary, of an unregistration."""
        tx_id = self.next_id
        self.next_id += 1
        words = -(-len(name) // 8)
        if user_ref in self.refs:
            original, was = self.refs[user_ref]
            record = RECORD.pack(5, 7, 0, 0, user_ref, 0, 0, words)
            self.kept[tx_id] = Kept(record, duplicate_of=original, name=name)
            return tx_id, [FAILURE.pack(0, 7, was, 0, original)]
        there = name in self.functions
        status = 5 if (there and not override if binary else not there) else 0
        self.refs[user_ref] = (tx_id, status)
        crc, version = (0, 0) if status else (crc32c(binary), self.versions[name] + 1)
        record = RECORD.pack(5, status, 0, crc, user_ref, version, 0, words)
        self.kept[tx_id] = Kept(record, name=name)
        if status:
            return tx_id, [FAILURE.pack(0, status, 0, 0, 0)]
        self.effects[5, int(override), crc, version] += 1
        self.versions[name] = version
        if binary:
            self.functions[name] = Registered(version, crc, tx_id)
        else:
            del self.functions[name]
        return tx_id, []


def always(verdict: str) -> Script:
    """A script that says the same of every message."""
    return lambda _: verdict


def first_time(verdict: str) -> Script:
    """A script for the first message; the others are answered."""
    return lambda message: verdict if message.number == 0 else "answer"


answer_all = always("answer")


class FakeGateway:
    """Serves at `endpoint` (a free port of the loopback address if none is given) until `stop`.

    `script` says what becomes of each message that is no ping: "answer"; "ignore" (lost on its way
    here); "mute" (executed, the reply lost); "hold" (executed and kept until `release`); "garbage";
    or an error code, with `details`. Pings are answered truthfully, unless `silent`. `secure` sets
    options of the socket before it is bound.
    """

    def __init__(
        self,
        ledger: FakeLedger | None = None,
        script: Script = answer_all,
        *,
        endpoint: str = "tcp://127.0.0.1:*",
        context: zmq.Context[Any] | None = None,
        incarnation: int = 1,
        silent: bool = False,
        secure: Callable[[zmq.Socket[Any]], None] = lambda _: None,
    ) -> None:
        self.ledger = ledger or FakeLedger()
        self.script = script
        self.incarnation = incarnation
        self.silent = silent
        self.details: dict[str, Any] = {}
        self.revision = 1
        self.seen: list[Message] = []
        self.pings: list[Message] = []
        self.held: list[tuple[Message, list[bytes]]] = []
        self._own_context = zmq.Context() if context is None else None
        self._context = context or self._own_context or zmq.Context.instance()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.ROUTER_HANDOVER, 1)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.LINGER, 0)
        secure(self._socket)
        self._socket.bind(endpoint)
        bound = self._socket.get(zmq.LAST_ENDPOINT)
        assert isinstance(bound, bytes)
        self.endpoint = bound.rstrip(b"\0").decode()
        self._control, self._controlled = socket.socketpair()
        self._heard = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name="fake gateway", daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeGateway:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes the socket; what it holds is gone."""
        if self._thread.is_alive():
            self._control.send(b"q")
            self._thread.join(10)
            self._control.close()
            self._controlled.close()
            if self._own_context is not None:
                self._own_context.term()

    def release(self) -> None:
        """Answers everything that is held, in order."""
        self._control.send(b"r")

    def wait_seen(self, count: int, *, pings: bool = False) -> None:
        """Returns when so many messages (or pings) have come."""
        messages = self.pings if pings else self.seen
        with self._heard:
            assert self._heard.wait_for(lambda: len(messages) >= count, 10), len(messages)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._controlled, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._controlled.fileno() in ready:
                command = self._controlled.recv(1)
                if command == b"q":
                    break
                for message, frames in self.held:
                    self._send(message.client, frames)
                self.held.clear()
            with contextlib.suppress(zmq.Again):
                while True:
                    self._take(self._socket.recv_multipart(zmq.DONTWAIT))
        self._socket.close()

    def _take(self, frames: list[bytes]) -> None:
        header = msgpack.unpackb(frames[1])
        message = Message(frames[0], header, frames[2:], len(self.seen))
        if message.op == "ping":
            self.pings.append(message)
            if not self.silent:
                self._send(message.client, self._pong(message))
        else:
            self.seen.append(message)
            self._obey(message)
        with self._heard:
            self._heard.notify_all()

    def _obey(self, message: Message) -> None:
        verdict = self.script(message)
        if verdict == "ignore":
            return
        if verdict == "garbage":
            self._send(message.client, [b"\xc1", b"?"])
            return
        if verdict not in ("answer", "mute", "hold"):
            text = f"scripted {verdict}"
            header = {"error": verdict, "message": text, "details": self.details}
            self._send(message.client, [self._header(message, header)])
            return
        reply = self.reply(message)
        if verdict == "answer":
            self._send(message.client, reply)
        elif verdict == "hold":
            self.held.append((message, reply))

    def _pong(self, message: Message) -> list[bytes]:
        held = {(other.client, other.header["id"]) for other, _ in self.held}
        pending = message.header["pending"]
        fields = {
            "unknown": [item for item in pending if (message.client, item) not in held],
            "incarnation": self.incarnation,
            "protocol": 1,
            "revision": self.revision,
            "max_batch": 16_384,
            "max_reads": 65_536,
            "max_accounts": 1_000_000,
            "max_request_wait_ms": 60_000,
            "role": "admin",
            "limits": {"in_flight": 0, "rate": 0, "message_bytes": 0},
        }
        return [self._header(message, fields)]

    def reply(self, message: Message) -> list[bytes]:
        """Executes a request and gives its reply."""
        header, payload, ledger = message.header, message.payload, self.ledger
        last = ledger.next_id - 1
        match message.op:
            case "submit":
                first, failures = ledger.submit(
                    payload[0], header.get("names"), b"".join(payload[1:])
                )
                if header["wait"] == 0:
                    failures = []
                return self._submitted(message, first, header["count"], failures)
            case "register" | "unregister":
                binary = payload[0] if message.op == "register" else b""
                first, failures = ledger.register(
                    header["name"], binary, header.get("override", False), header["user_ref"]
                )
                return self._submitted(message, first, 1, failures)
            case "functions":
                functions = [
                    {
                        "name": name,
                        "version": each.version,
                        "crc32c": each.crc,
                        "registered": each.tx_id,
                        "calls": each.calls,
                        "failures": dict(each.failures),
                        "fuel": 10 * each.calls,
                        "fuel_limit": 1_000_000,
                        "mean_ns": 81.5 if each.calls else None,
                        "compile_seconds": 0.5,
                        "code_bytes": 10_000,
                        "start_fuel": 3_300,
                        "unusable": "",
                    }
                    for name, each in sorted(ledger.functions.items())
                ]
                totals = {
                    "binaries_bytes": 3 << 20,
                    "binaries_limit": 256 << 20,
                    "code_bytes": 1 << 20,
                    "code_limit": 512 << 20,
                    "compile_ms": 1_500,
                    "compile_limit_ms": 120_000,
                    "waiting": 2,
                    "waiting_bytes": 77,
                }
                return [self._header(message, {"functions": functions, "totals": totals})]
            case "transaction":
                tx_id = header["tx_id"]
                kept = ledger.kept.get(tx_id)
                found = kept or Kept(b"")
                fields = {
                    "tx_id": tx_id,
                    "timestamp": TIMESTAMP if kept else 0,
                    "term": 1 if kept else 0,
                    "found": kept is not None,
                    "snapshot": last,
                    "function": found.function,
                    "duplicate_of": found.duplicate_of,
                    "params": found.params,
                    "name": found.name,
                }
                return [self._header(message, fields), found.record, found.entries]
            case "balances":
                accounts = struct.unpack(f"<{len(payload[0]) // 8}Q", payload[0])
                balances = [ledger.balances[account] for account in accounts]
                fields = {"count": len(accounts), "snapshot": last}
                return [
                    self._header(message, fields),
                    struct.pack(f"<{len(balances)}q", *balances),
                ]
            case "status":
                ids = struct.unpack(f"<{len(payload[0]) // 8}Q", payload[0])
                rows = [struct.pack("<BB6xQ", 4 if tx_id <= last else 0, 0, 0) for tx_id in ids]
                return [self._header(message, {"count": len(ids)}), b"".join(rows)]
            case "services":
                return [self._header(message, {"services": []})]
            case "index":
                names = ("sequenced", "computed", "committed", "snapshot")
                return [self._header(message, dict.fromkeys(names, last) | {"term": 1})]
            case _:
                return [self._header(message, {"level": header["wait"]})]

    def _submitted(
        self, message: Message, first: int, count: int, failures: list[bytes]
    ) -> list[bytes]:
        fields = {
            "first": first,
            "count": count,
            "level": message.header["wait"],
            "failures": len(failures),
        }
        return [self._header(message, fields), b"".join(failures)]

    def _header(self, message: Message, fields: dict[str, Any]) -> bytes:
        return bytes(msgpack.packb({"v": 1, "id": message.header["id"], **fields}))

    def _send(self, client: bytes, frames: list[bytes]) -> None:
        with contextlib.suppress(zmq.ZMQError):  # the client is gone
            self._socket.send_multipart([client, *frames], zmq.DONTWAIT)


class CuttingProxy:
    """Forwards TCP to `port`, but cuts the first connection after some bytes (at least 1).

    `upstream` and `downstream` say after how many bytes towards the gateway, or towards the client;
    None = never. Later connections are forwarded whole. `cut` tells whether it has been done.
    """

    def __init__(self, port: int, upstream: int | None, downstream: int | None) -> None:
        self._target = port
        self._left = {True: upstream, False: downstream}
        self.forwarded = {True: 0, False: 0}
        self.cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._control, self._controlled = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="cutting proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._control.send(b"q")
        self._thread.join(10)
        self._control.close()
        self._controlled.close()
        self._listener.close()

    def _serve(self) -> None:
        pairs: dict[socket.socket, tuple[socket.socket, bool, bool]] = {}
        first = True
        while True:
            readable, _, _ = select.select([self._listener, self._controlled, *pairs], [], [])
            if self._controlled in readable:
                break
            for source in readable:
                if source is self._listener:
                    client, _ = self._listener.accept()
                    try:
                        gateway = socket.create_connection(("127.0.0.1", self._target))
                    except OSError:
                        client.close()
                        continue
                    pairs[client] = (gateway, True, first)
                    pairs[gateway] = (client, False, first)
                    first = False
                elif source in pairs and not self._forward(source, *pairs[source]):
                    target = pairs.pop(source)[0]
                    pairs.pop(target, None)
                    source.close()
                    target.close()
        for left in list(pairs):
            left.close()

    def _forward(
        self, source: socket.socket, target: socket.socket, to_gateway: bool, first: bool
    ) -> bool:
        """Forwards what there is; False if the connection is to be closed."""
        left = self._left[to_gateway] if first else None
        try:
            data = source.recv(65_536 if left is None else min(left, 65_536))
            # Told before the last bytes are there: whoever gets them may look at once.
            self.cut = self.cut or left == len(data)
            target.sendall(data)
        except OSError:
            return False
        if first:
            self.forwarded[to_gateway] += len(data)
        if left is not None:
            self._left[to_gateway] = left - len(data)
            if left == len(data):
                return False
        return bool(data)


@contextlib.contextmanager
def restarting(
    ledger: FakeLedger, first: Script, second: Script = answer_all
) -> Iterator[tuple[FakeGateway, Callable[[], FakeGateway]]]:
    """A gateway, and a function that stops it and starts its next incarnation on the same port."""
    gateways = [FakeGateway(ledger, first)]

    def restart() -> FakeGateway:
        gateways[0].stop()
        gateways.append(FakeGateway(ledger, second, endpoint=gateways[0].endpoint, incarnation=2))
        return gateways[1]

    try:
        yield gateways[0], restart
    finally:
        for gateway in gateways:
            gateway.stop()
