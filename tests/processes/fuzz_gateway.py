"""Hostile clients against a real gateway, with good clients beside them.

`python -m tests.processes.fuzz_gateway --seconds 60 --seed 1` runs it for a minute on a pipeline of
its own and prints what happened; the suite runs it for a few seconds. What must hold:

- every message of a hostile client that gets through to the gateway is answered, with its id where
  one can be read, and every error has one of the protocol's codes;
- the good clients see no error and right results;
- no service ends, and the ledger still nets to zero.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack
import numpy as np
import zmq

from tallybus import Client, Deposit, Transfer, WaitLevel, transfers
from tallybus.common.functions.names import MAX_BINARY_BYTES
from tallybus.common.protocol import MAX_HEADER_BYTES
from tallybus.common.record import Kind
from tallybus.common.settings.sections import HEADER_BYTES, OPERATION_BYTES
from tallybus.errors import TallybusError
from tests.processes.pipeline import (
    PATIENCE_S,
    Pipeline,
    assert_balances,
    make_settings,
    pipeline_of,
    replay,
)
from tests.processes.raw_client import RawClient, frame

CODES: Final = {
    "invalid_request",
    "unsupported_version",
    "overloaded",
    "timeout",
    "lost",
    "outcome_unknown",
    "unavailable",
    "internal",
}
MAX_U64: Final = 2**64 - 1
MAX_BATCH: Final = 16_384
MAX_READS: Final = 65_536
LARGEST_FRAME: Final = max(MAX_BATCH * OPERATION_BYTES, MAX_BINARY_BYTES) + HEADER_BYTES
"""A client's frame may be as large as the largest request that is allowed."""
ENDLESS_BYTES: Final = 1 << 30
MAX_ACCOUNTS: Final = 1_000_000
GOOD_ACCOUNTS: Final = 900_000
"""The good clients' accounts begin here; hostile operations hardly ever hit them."""
REQUEST_WAIT_MS: Final = 2_000
"""The gateway gives up any request after this time, so that each gets its answer soon."""

SETTINGS: Final = {
    "ledger__max_accounts": MAX_ACCOUNTS,
    "bus__max_message_bytes": LARGEST_FRAME,
    "gateway__max_batch": MAX_BATCH,
    "gateway__max_reads": MAX_READS,
    "gateway__max_request_wait_ms": REQUEST_WAIT_MS,
}


@dataclass
class Report:
    """What happened: counts by name, answers by code, and what should not have happened."""

    counts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_good_s: float = 0.0

    def problem(self, text: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(text)


# --- good clients -----------------------------------------------------------------------------


class GoodClient(threading.Thread):
    """Deposits once, then moves money around its own two accounts and reads what it wrote.

    Every result is known beforehand, so any other one is an error.
    """

    def __init__(self, endpoint: str, number: int, report: Report) -> None:
        super().__init__(name=f"good {number}")
        self.endpoint = endpoint
        self.first = GOOD_ACCOUNTS + 2 * number
        self.report = report
        self.stop = threading.Event()
        self.funded = threading.Event()
        """Set once it has its money: hostile deposits may bring account 0 to its limit."""
        self.rounds = 0

    def run(self) -> None:
        try:
            with Client(self.endpoint, timeout=PATIENCE_S) as client:
                self._work(client)
        except (TallybusError, AssertionError) as error:
            self.report.problem(f"{self.name}: {type(error).__name__}: {error}")
            self.funded.set()

    def _work(self, client: Client) -> None:
        one, two = self.first, self.first + 1
        held = [1_000_000, 0]
        result = client.submit_and_wait(Deposit(one, held[0]))
        assert result.ok, result
        self.funded.set()
        while not self.stop.is_set():
            started = time.monotonic()
            amount = 1 + self.rounds % 100
            result = client.submit_and_wait(Transfer(one, two, amount))
            assert result.ok, result
            held = [held[0] - amount, held[1] + amount]
            back = client.submit_batch(transfers([two] * 20, [one] * 20, [2**62] * 19 + [amount]))
            # Nobody has so much: 19 rejections, and one success.
            assert back.statuses.tolist() == [1] * 19 + [0], back.statuses
            held = [held[0] + amount, held[1] - amount]
            last = int(back.first_tx_id) + 19
            read = client.get_balances([one, two], min_tx_id=last).balances.tolist()
            assert read == held, (read, held)
            self.rounds += 1
            self.report.slowest_good_s = max(self.report.slowest_good_s, time.monotonic() - started)


# --- requests and how they are spoilt -----------------------------------------------------------


def records(random_: random.Random, count: int) -> bytes:
    """Operations on accounts that are not the good clients'; in one of four submits one of them has
    something in it that no operation has."""
    parts = []
    for _ in range(count):
        kind = random_.choice([1, 2, 3, 3, 3, Kind.FUNCTION])
        call = kind == Kind.FUNCTION
        account = 0 if call else random_.randrange(500)
        other = random_.randrange(500) if kind == Kind.TRANSFER else 0
        amount = random_.choice([1, 5, 2**62, 2**63 - 1, random_.getrandbits(64)])
        ref = random_.choice([0, random_.randrange(1, 100), random_.getrandbits(64)])
        amount = 0 if call else amount
        parts.append(struct.pack("<BBHIQQQQ", kind, 0, 0, 0, ref, account, other, amount))
    if random_.random() < 0.25:
        place = random_.randrange(count)
        spoilt = bytearray(parts[place])
        spoilt[random_.choice([0, 1, 2, 3, 4, 7, 24, 31])] = random_.randrange(256)
        parts[place] = bytes(spoilt)
    return b"".join(parts)


def params_for(encoded: bytes) -> list[bytes]:
    calls = sum(encoded[at] == Kind.FUNCTION for at in range(0, len(encoded), 40))
    return [bytes(64 * calls)] if calls else []


def valid_request(random_: random.Random, request_id: int) -> tuple[dict[Any, Any], list[bytes]]:
    """A header and payload frames as a client sends them."""
    header: dict[Any, Any] = {"v": 1, "id": request_id, "timeout_ms": 1_000}
    operation = random_.choice(["submit", "submit", "balances", "status", "index", "wait", "ping"])
    header["op"] = operation
    payloads: list[bytes] = []
    if operation == "submit":
        count = random_.choice([1, 1, 2, 50, 3_000])
        encoded = records(random_, count)
        header |= {"wait": random_.randrange(4), "count": count}
        if params := params_for(encoded):
            header["names"] = ["fee"]
            payloads = [encoded, *params]
        else:
            payloads = [encoded]
    elif operation in ("balances", "status"):
        count = random_.choice([1, 10, 3_000])
        payloads = [b"".join(struct.pack("<Q", random_.randrange(1_000)) for _ in range(count))]
        if random_.random() < 0.3:
            header["min_tx_id"] = random_.choice([0, 1, 1_000, MAX_U64])
    elif operation == "wait":
        header |= {"tx_id": random_.choice([0, 1, 100, MAX_U64]), "wait": random_.randrange(4)}
    elif operation == "ping":
        header["pending"] = [random_.randrange(1_000_000) for _ in range(random_.randrange(50))]
    return header, payloads


def odd_value(random_: random.Random) -> Any:
    """Something that a field should hardly ever hold."""
    return random_.choice(
        [
            None,
            True,
            False,
            -1,
            0,
            1,
            4,
            2**31,
            2**32,
            2**63,
            MAX_U64,
            -(2**63),
            1.5,
            float("nan"),
            float("inf"),
            "",
            "submit",
            "\x00" * 100,
            "é" * 1_000,
            b"",
            b"\xff" * 300,
            [],
            {},
            [[[[]]]] * 10,
            {"a": {"b": [1]}},
            list(range(300)),
            ["x"] * 5_000,
            "n" * 40_000,
            msgpack.Timestamp(1, 2),
            msgpack.ExtType(5, b"abc"),
        ]
    )


def spoil_header(random_: random.Random, header: dict[Any, Any]) -> dict[Any, Any]:
    spoilt = dict(header)
    for _ in range(random_.randint(1, 3)):
        what = random_.randrange(4)
        # The id is left alone most of the time: the answer is to be found again.
        names = [name for name in spoilt if name != "id" or random_.random() < 0.1]
        if what == 0 and names:
            spoilt[random_.choice(names)] = odd_value(random_)
        elif what == 1 and names:
            del spoilt[random_.choice(names)]
        elif what == 2:
            names_ = ["op", "wait", "count", "names", "pending", "min_tx_id", "tx_id", "v"]
            spoilt[random_.choice(names_)] = odd_value(random_)
        else:
            names_ = ["extra", "wiat", 5, b"raw", 1.5, None, True]
            spoilt[random_.choice(names_)] = odd_value(random_)
    return spoilt


def spoil_bytes(random_: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert."""
    spoilt = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        at = random_.randrange(len(spoilt) + 1)
        what = random_.randrange(5)
        if what == 0 and at < len(spoilt):
            spoilt[at] ^= 1 << random_.randrange(8)
        elif what == 1:
            del spoilt[at:]
        elif what == 2:
            del spoilt[at : at + random_.randrange(1, 9)]
        elif what == 3:
            spoilt[at:at] = random_.randbytes(random_.randrange(1, 9))
        else:
            spoilt[at:at] = spoilt[:at][-64:]
    return bytes(spoilt)


def hostile_message(random_: random.Random, request_id: int) -> list[bytes]:
    """Frames of one message, from nearly right to pure noise. Never without a frame."""
    style = random_.randrange(8)
    if style == 0:
        frames = [random_.randbytes(random_.choice([0, 1, 3, 40, 1_000, 100_000]))]
        return frames * random_.choice([1, 1, 2, 20])
    header, payloads = valid_request(random_, request_id)
    if style == 1:
        return [msgpack.packb(header), *payloads]
    if style == 2:
        return [msgpack.packb(spoil_header(random_, header)), *payloads]
    if style == 3:
        return [spoil_bytes(random_, msgpack.packb(header)), *payloads]
    if style == 4:
        return [msgpack.packb(header), *(spoil_bytes(random_, part) for part in payloads)]
    if style == 5:
        extra = [random_.randbytes(random_.choice([0, 8, 40])) for _ in range(3)]
        return [msgpack.packb(header), *random_.sample([*payloads, *extra], random_.randrange(4))]
    if style == 6:
        # The empty frame of a REQ socket, a header twice, frames in the wrong order.
        frames = [msgpack.packb(header), *payloads]
        return random_.choice([[b"", *frames], frames + frames, frames[::-1], [b""], [b"", b""]])
    return [msgpack.packb(odd_value(random_)), *payloads]


def readable_id(frames: Sequence[bytes]) -> int | None:
    """The id that an answer must carry, by the protocol; None where there is none to read."""
    if len(frames[0]) > MAX_HEADER_BYTES:
        return None
    try:
        header = msgpack.unpackb(frames[0], strict_map_key=False, raw=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        return None
    if not isinstance(header, dict):
        return None
    value = header.get("id")
    return value if type(value) is int and 0 <= value <= MAX_U64 else None


# --- hostile clients -----------------------------------------------------------------------------


class Attacker:
    """One hostile program. `attack` is called again and again until the time is up."""

    def __init__(self, endpoint: str, random_: random.Random, report: Report) -> None:
        self.endpoint = endpoint
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self.address = (host, int(port))
        self.random = random_
        self.report = report
        self.context = zmq.Context()

    def dealer(self, **options: int) -> zmq.Socket[bytes]:
        made = self.context.socket(zmq.DEALER)
        made.setsockopt(zmq.LINGER, 0)
        for name, value in options.items():
            made.setsockopt(getattr(zmq, name), value)
        made.connect(self.endpoint)
        return made

    def tcp(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def close(self) -> None:
        self.context.destroy(linger=0)

    # Each of these is one attack.

    def spoilt_messages(self) -> None:
        """Mutated and random messages; each must be answered, to its id where it has one."""
        with self.dealer(RCVHWM=0, SNDHWM=0) as dealer:
            expected: Counter[int | None] = Counter()
            for _ in range(200):
                frames = hostile_message(self.random, self.random.randrange(2**48))
                expected[readable_id(frames)] += 1
                dealer.send_multipart(frames)
            self.report.counts["spoilt messages"] += 200
            self._take_answers(dealer, expected)

    def _take_answers(self, dealer: zmq.Socket[bytes], expected: Counter[int | None]) -> None:
        limit = time.monotonic() + REQUEST_WAIT_MS / 1000 + PATIENCE_S
        while expected.total():
            if not dealer.poll(max(1, int(1000 * (limit - time.monotonic())))):
                self.report.problem(
                    f"{expected.total()} messages got no answer, ids {list(expected)[:5]}"
                )
                return
            answer = dealer.recv_multipart()
            header = msgpack.unpackb(answer[0])
            answered = header.get("id")
            if expected[answered] <= 0:
                self.report.problem(f"an answer nobody asked for: {header}")
                return
            expected[answered] -= 1
            if not expected[answered]:
                del expected[answered]
            if header.get("v") != 1:
                self.report.problem(f"an answer without its version: {header}")
            if "error" not in header:
                self.report.codes["ok"] += 1
                if answered is None:
                    self.report.problem(f"success for a message without an id: {header}")
                continue
            self.report.codes[header["error"]] += 1
            well_formed = (
                header["error"] in CODES
                and isinstance(header.get("message"), str)
                and header["message"]
                and isinstance(header.get("details"), dict)
                and len(answer) == 1
            )
            if not well_formed or header["error"] == "internal":
                self.report.problem(f"a bad error answer: {header}")

    def noise_on_the_port(self) -> None:
        """Bytes that are not the transport's protocol, or stop being it somewhere."""
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
        command = b"\x04" + bytes([len(ready)]) + ready
        random_ = self.random
        openings = [
            random_.randbytes(random_.choice([1, 64, 5_000])),
            b"GET / HTTP/1.1\r\nHost: ledger\r\n\r\n",
            greeting[: random_.randrange(1, 64)],
            spoil_bytes(random_, greeting),
            greeting + spoil_bytes(random_, command),
            greeting + command + random_.randbytes(random_.choice([1, 20, 3_000])),
            # Frames that promise far more than they bring.
            greeting + command + b"\x02" + struct.pack(">Q", random_.choice([2**62, 2**40])),
            greeting + command + b"\x02" + struct.pack(">Q", LARGEST_FRAME - 1) + b"x" * 99,
            # A command in the middle of a message, an unknown command, a bad subscription.
            greeting + command + b"\x01\x01x" + command,
            greeting + command + b"\x04\x08\x07UNKNOWN",
        ]
        for _ in range(30):
            with self.tcp() as raw, suppress(OSError):
                raw.sendall(random_.choice(openings))
                if random_.random() < 0.3:
                    raw.shutdown(socket.SHUT_WR)
                if random_.random() < 0.3:
                    select.select([raw], [], [], 0.01)
                if random_.random() < 0.3:
                    # A reset instead of an orderly end.
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.report.counts["noisy connections"] += 30

    def huge_frames(self) -> None:
        """Frames above the limit cut the connection of whoever sends them, only that."""
        with self.dealer(RCVHWM=0) as dealer:
            header = msgpack.packb({"v": 1, "op": "submit", "id": 1, "count": 1, "wait": 0})
            for frames in (
                [bytes(LARGEST_FRAME + 1)],
                [header, bytes(LARGEST_FRAME + 1)],
            ):
                dealer.send_multipart(frames)
            # After reconnecting the same program may behave.
            ping = msgpack.packb({"v": 1, "op": "ping", "id": 7})
            limit = time.monotonic() + PATIENCE_S
            while time.monotonic() < limit:
                dealer.send(ping)
                if dealer.poll(200):
                    break
            else:
                self.report.problem("no answer to a ping after a huge frame")
        self.report.counts["huge frames"] += 2

    def largest_frames(self) -> None:
        """The largest frames and most frames that get through: refused, with the id."""
        with self.dealer(RCVHWM=0, SNDHWM=0) as dealer:
            expected: Counter[int | None] = Counter()
            header = {"v": 1, "op": "submit", "id": 11, "count": 1, "wait": 0}
            for message in (
                [msgpack.packb(header), bytes(LARGEST_FRAME)],
                [msgpack.packb(header), *[b"x"] * 5_000],
                [msgpack.packb({**header, "names": ["y" * 200] * 300}), bytes(40)],
                [bytes(LARGEST_FRAME)],
                [b"\x91" * 60_000],
                [b"\xdd\xff\xff\xff\xff" * 9],
                [b"\xdf\xff\xff\xff\xff" * 9],
                [b"\xc6\x7f\xff\xff\xff" * 9],
                [b"\x81\xa2id" + b"\x91" * 500 + b"\x01"],
            ):
                expected[readable_id(message)] += 1
                dealer.send_multipart(message)
            self.report.counts["large messages"] += 9
            self._take_answers(dealer, expected)

    def many_connections(self) -> None:
        """Connections by the hundred, closed at once or held for a while."""
        held: list[socket.socket] = []
        for _ in range(250):
            with suppress(OSError):
                raw = self.tcp()
                if self.random.random() < 0.3:
                    held.append(raw)
                else:
                    raw.close()
        for raw in held:
            raw.close()
        self.report.counts["opened connections"] += 250

    def many_clients(self) -> None:
        """Clients that introduce themselves, ask, and are gone before the answer."""
        for _ in range(15):
            with self.dealer() as dealer:
                for number in range(3):
                    header, payloads = valid_request(self.random, number)
                    dealer.send_multipart([msgpack.packb(header), *payloads])
                if self.random.random() < 0.5:
                    dealer.poll(20)
        for kind in (zmq.REQ, zmq.PUSH, zmq.SUB, zmq.PAIR, zmq.ROUTER, zmq.STREAM):
            with self.context.socket(kind) as other:
                other.setsockopt(zmq.LINGER, 0)
                if kind == zmq.SUB:
                    other.setsockopt(zmq.SUBSCRIBE, b"")
                other.connect(self.endpoint)
                with suppress(zmq.ZMQError):
                    other.send(msgpack.packb({"v": 1, "op": "index", "id": 1}), zmq.NOBLOCK)
                time.sleep(0.005)
        self.report.counts["short-lived clients"] += 21

    def deaf_client(self) -> None:
        """Asks for much, and reads none of it."""
        keys = np.arange(MAX_READS, dtype="<u8").tobytes()
        with self.dealer(RCVHWM=1, SNDHWM=0, RCVBUF=4096) as dealer:
            for number in range(60):
                header = {"v": 1, "op": "balances", "id": number}
                dealer.send_multipart([msgpack.packb(header), keys])
            for number in range(60, 3_000):
                dealer.send(msgpack.packb({"v": 1, "op": "index", "id": number}))
            time.sleep(0.2)
        self.report.counts["unread answers"] += 3_000

    def endless_messages(self) -> None:
        """Messages that never end are cut; those that stop in their middle harm nobody."""
        stopped: list[RawClient] = []
        for _ in range(10):
            raw = RawClient(self.endpoint)
            stopped.append(raw)
            raw.socket.sendall(frame(bytes(self.random.randrange(100_000)), more=True))
        part = frame(bytes(self.random.choice([0, 1, 300, 70_000, 1_000_000])), more=True)
        block = part * max(1, 200_000 // len(part))
        sent = 0
        with RawClient(self.endpoint) as endless, suppress(OSError):
            while sent < ENDLESS_BYTES:
                endless.socket.sendall(block)
                sent += len(block)
            self.report.problem(f"nobody minds an endless message of {sent} bytes")
        for raw in stopped:
            raw.socket.close()
        self.report.counts["endless messages"] += 1

    def ping_flood(self) -> None:
        """Pings with the longest lists, one over the limit among them."""
        ids = list(range(23_000))
        with self.dealer(RCVHWM=0, SNDHWM=0) as dealer:
            expected: Counter[int | None] = Counter()
            for number in range(40):
                length = self.random.choice([len(ids), 20_000, 10_000, 100])
                header = {"v": 1, "op": "ping", "id": number, "pending": ids[:length]}
                frame = msgpack.packb(header)
                expected[readable_id([frame])] += 1
                dealer.send(frame)
            self.report.counts["pings"] += 40
            self._take_answers(dealer, expected)

    def same_identity(self) -> None:
        """Two connections with one routing id: the later takes over, nothing else happens."""
        name = self.random.choice([b"a", b"\x01" * 255, b"\xffbinary"])
        with self.context.socket(zmq.DEALER) as one, self.context.socket(zmq.DEALER) as two:
            for dealer in (one, two):
                dealer.setsockopt(zmq.LINGER, 0)
                dealer.setsockopt(zmq.ROUTING_ID, name)
                dealer.connect(self.endpoint)
                for number in range(20):
                    dealer.send(msgpack.packb({"v": 1, "op": "index", "id": number}))
                dealer.poll(20)
        self.report.counts["stolen identities"] += 1

    ATTACKS: Final = (
        spoilt_messages,
        spoilt_messages,
        spoilt_messages,
        spoilt_messages,
        noise_on_the_port,
        huge_frames,
        largest_frames,
        many_connections,
        many_clients,
        deaf_client,
        endless_messages,
        ping_flood,
        same_identity,
    )


# --- the run ----------------------------------------------------------------------------------


def fuzz(pipeline: Pipeline, seconds: float, seed: int, good: int = 3) -> Report:
    """Attack a running pipeline for a while; every attack is made at least once.

    The order and content of the attacks follow from the seed. Problems are in the report, not
    raised.
    """
    random_ = random.Random(seed)
    report = Report()
    pids = pipeline.pids()
    clients = [GoodClient(pipeline.endpoint, number, report) for number in range(good)]
    attacker = Attacker(pipeline.endpoint, random_, report)
    for client in clients:
        client.start()
        if not client.funded.wait(PATIENCE_S):
            report.problem(f"{client.name} could not deposit")
    until = time.monotonic() + seconds
    try:
        attacks: list[Callable[[Attacker], None]] = []
        first = True
        while first or time.monotonic() < until:
            if not attacks:
                attacks = random_.sample(Attacker.ATTACKS, len(Attacker.ATTACKS))
            attack = attacks.pop()
            try:
                attack(attacker)
            except (OSError, zmq.ZMQError) as error:
                report.problem(f"{attack.__name__}: {type(error).__name__}: {error}")
            report.counts["attacks"] += 1
            first = first and bool(attacks)
            if pipeline.pids() != pids:
                report.problem(f"a service ended after {attack.__name__} (seed {seed})")
                break
    finally:
        for client in clients:
            client.stop.set()
        for client in clients:
            client.join(2 * PATIENCE_S)
            if client.is_alive():
                report.problem(f"{client.name} hangs")
            report.counts["good rounds"] += client.rounds
            if not client.rounds:
                report.problem(f"{client.name} got nothing done")
        attacker.close()
    if pipeline.pids() != pids:
        report.problem(f"a service ended: {pids} became {pipeline.pids()}")
    else:
        _check_ledger(pipeline, report)
    return report


def _check_ledger(pipeline: Pipeline, report: Report) -> None:
    with pipeline.client() as client:
        last = client.pipeline_index().sequenced
        client.wait_for(last, WaitLevel.COMMITTED)
        try:
            log = replay(pipeline.settings, last)
            assert_balances(client, log.oracle, 1_000, last)
            total = sum(log.oracle.balances.values())
            assert total == 0
            if len(log.records):
                calls = log.records["kind"] == Kind.FUNCTION
                assert ((log.records["kind"] >= 1) & (log.records["kind"] <= 4)).all(), "kinds"
                one_sided = log.records["kind"] < Kind.TRANSFER
                others = log.records["counterparty"][calls | one_sided]
                assert not others.any(), "a field that means nothing got into the log"
        except AssertionError as error:
            report.problem(f"the ledger and the oracle differ: {error}")
    report.counts["transactions"] = last


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--good-clients", type=int, default=3)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tallybus-fuzz-") as folder:
        settings = make_settings(Path(folder) / "data", **SETTINGS)
        with pipeline_of(settings, Path(folder) / "services.log") as pipeline:
            report = fuzz(pipeline, chosen.seconds, chosen.seed, chosen.good_clients)
            if report.problems:
                print(pipeline.log_text()[-4_000:], file=sys.stderr)
    print(
        json.dumps(
            {
                "seed": chosen.seed,
                **report.counts,
                "answers": dict(report.codes),
                "slowest_good_round_s": round(report.slowest_good_s, 3),
                "problems": report.problems,
            },
            indent=2,
        )
    )
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
