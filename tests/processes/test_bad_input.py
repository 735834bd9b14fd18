"""Hostile clients do not harm: no service ends, good clients see no error, answers are typed.

`FUZZ_SECONDS` and `FUZZ_SEED` in the environment say how long and with which seed. A long run:
`python -m tests.processes.fuzz_gateway --seconds 60 --seed 1`.
"""

import itertools
import os
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq

from tallybus import Client, Deposit, InvalidRequest, WaitLevel, deposits
from tests.processes.fuzz_gateway import (
    MAX_READS,
    SETTINGS,
    Attacker,
    Report,
    fuzz,
    hostile_message,
    readable_id,
)
from tests.processes.pipeline import PATIENCE_S, Pipeline

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))
SEED = int(os.environ.get("FUZZ_SEED", "1"))
PIPELINE_SETTINGS = SETTINGS
MIB = 1024 * 1024
DEAF_REQUESTS = 1_500
"""With keys and answers of 512 KiB each: 1.5 GiB, were all of them kept."""


def test_hostile_clients_harm_neither_services_nor_good_clients(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(**SETTINGS)
    report = fuzz(pipeline, SECONDS, SEED)
    assert report.problems == [], report
    assert report.codes["invalid_request"] > 50
    assert report.codes["unsupported_version"] > 0
    assert report.counts["good rounds"] >= 3


def ask(dealer: "zmq.Socket[bytes]", frames: list[bytes]) -> dict[str, object]:
    dealer.send_multipart(frames)
    assert dealer.poll(int(PATIENCE_S * 1000)), "no answer"
    header: dict[str, object] = msgpack.unpackb(dealer.recv_multipart()[0])
    return header


def record(kind: int, amount: int, ref: int = 0) -> bytes:
    """An operation on account 1, of a transfer on account 2 too, and of a call on none."""
    account, other = int(kind != 4), 2 * (kind == 3)
    return struct.pack("<BBHIQQQQ", kind, 0, 0, 0, ref, account, other, amount)


def test_operations_of_any_kind_and_amount_are_rejected_and_logged_or_refused(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline()
    pids = pipeline.pids()
    context = zmq.Context()
    logged = 0
    with context, context.socket(zmq.DEALER) as dealer:
        dealer.connect(pipeline.endpoint)
        cases = itertools.product(
            (0, 1, 2, 3, 4, 5, 6, 128, 255), (0, 1, 7, 8, 9, 2**31, 2**63, 2**64 - 1)
        )
        for request_id, (kind, amount) in enumerate(cases):
            header = {
                "v": 1,
                "op": "submit",
                "id": request_id,
                "wait": 2,
                "count": 2,
                "names": ["fee"],
            }
            payloads = [record(kind, amount) * 2]
            if kind == 4:
                payloads.append(struct.pack("<8q", 1, -2, 3, 0, 0, 0, 7, 0) * 2)
            answer = ask(dealer, [msgpack.packb(header), *payloads])
            assert answer["id"] == request_id
            assert pipeline.pids() == pids, (kind, amount)
            if kind in (1, 2, 3) or (kind, amount) == (4, 0):
                assert answer["first"] == logged + 1, "nothing that was refused has an id"
                logged += 2
                if kind == 4 or not 0 < amount < 2**63:
                    assert answer["failures"] == 2, (kind, amount, answer)
            else:
                assert answer["error"] == "invalid_request", (kind, amount, answer)
                assert answer["details"] == {
                    "field": "amount" if kind == 4 else "kind",
                    "index": 0,
                    "value": amount if kind == 4 else kind,
                }
        dealer.setsockopt(zmq.LINGER, 0)
    accounts = [0, 1, 2]
    with pipeline.client() as client:
        assert client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT).ok
        assert client.pipeline_index().committed == logged + 1
        balances = client.get_balances(accounts).balances.tolist()
    # And what was logged can be read again.
    pipeline.kill()
    pipeline.supervisor.start()
    pipeline.supervisor.wait_ready()
    with pipeline.client() as client:
        last = client.pipeline_index().committed
        assert last == logged + 1
        assert client.get_balances(accounts, min_tx_id=last).balances.tolist() == balances


def gateway_rss(pipeline: Pipeline) -> int:
    path = Path(f"/proc/{pipeline.pids()['gateway']}/status")
    line = next(each for each in path.read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_a_client_that_never_reads_does_not_fill_the_gateways_memory(pipeline: Pipeline) -> None:
    keys = np.arange(MAX_READS, dtype="<u8").tobytes()
    before = gateway_rss(pipeline)
    stop = threading.Event()
    sent = Counter[str]()

    def be_deaf() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.RCVHWM, 1)
            dealer.setsockopt(zmq.RCVBUF, 4096)
            dealer.setsockopt(zmq.SNDHWM, 4)
            dealer.connect(pipeline.endpoint)
            while not stop.is_set() and sent["requests"] < DEAF_REQUESTS:
                header = {"v": 1, "op": "balances", "id": sent["requests"]}
                if dealer.poll(50, zmq.POLLOUT):
                    dealer.send_multipart([msgpack.packb(header), keys])
                    sent["requests"] += 1

    thread = threading.Thread(target=be_deaf)
    thread.start()
    highest = 0
    try:
        with pipeline.client() as client:
            limit = time.monotonic() + PATIENCE_S
            while sent["requests"] < DEAF_REQUESTS and time.monotonic() < limit:
                assert client.submit_and_wait(Deposit(3, 1)).ok
                highest = max(highest, gateway_rss(pipeline))
            # The good client's answer comes after those to the deaf one that were taken by now.
            assert client.get_balance(3).balance > 0
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    highest = max(highest, gateway_rss(pipeline))
    assert highest - before < 512 * MIB, (
        f"{(highest - before) / MIB:.0f} MiB more after {sent['requests']} unread answers"
    )


def test_a_flood_of_large_pings_does_not_hold_up_others(pipeline: Pipeline) -> None:
    """The gateway's turn stays short: a good client's answer comes soon, whatever others send."""
    stop = threading.Event()
    ping = msgpack.packb({"v": 1, "op": "ping", "id": 1, "pending": list(range(23_000))})

    def flood() -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.setsockopt(zmq.SNDHWM, 1_000)
            dealer.connect(pipeline.endpoint)
            while not stop.is_set():
                if dealer.poll(20, zmq.POLLOUT):
                    dealer.send(ping)
                while dealer.poll(0):
                    dealer.recv()

    thread = threading.Thread(target=flood)
    slowest = 0.0
    with pipeline.client() as client:
        client.submit_and_wait(Deposit(3, 1))
        thread.start()
        try:
            for _ in range(10):
                started = time.monotonic()
                assert client.submit_and_wait(Deposit(3, 1)).ok
                slowest = max(slowest, time.monotonic() - started)
        finally:
            stop.set()
            thread.join(PATIENCE_S)
    assert slowest < 2, f"a single deposit took {slowest:.2f} s beside the flood"


def test_connections_beyond_what_the_system_allows_are_survived(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    """Thousands of connections opened and closed, many of them held at the same time."""
    pipeline = start_pipeline(**SETTINGS)
    pids = pipeline.pids()
    attacker = Attacker(pipeline.endpoint, random.Random(5), Report())
    held = []
    try:
        with pipeline.client() as client:
            assert client.submit_and_wait(Deposit(3, 1)).ok
            for number in range(1_500):
                raw = attacker.tcp()
                if number % 2:
                    raw.close()
                else:
                    held.append(raw)
                if number % 150 == 0:
                    assert client.submit_and_wait(Deposit(3, 1)).ok
            assert client.submit_and_wait(Deposit(3, 1)).ok
            # A new client gets in beside hundreds of idle connections.
            with pipeline.client() as other:
                assert other.get_balance(3).balance > 10
        assert pipeline.pids() == pids
    finally:
        for raw in held:
            raw.close()
        attacker.close()


def test_mistakes_of_a_well_meaning_client_are_told_by_field(pipeline: Pipeline) -> None:
    with pipeline.client() as client:
        limits = client.gateway_info()
        with pytest.raises(InvalidRequest) as too_many:
            client.submit_batch(deposits([1] * (limits.max_batch + 1), 1))
        assert too_many.value.field == "count"
        with pytest.raises(InvalidRequest) as no_such_account:
            client.get_balance(limits.max_accounts)
        assert no_such_account.value.field == "account"
        assert client.submit_and_wait(Deposit(1, 1)).ok


def test_hostile_messages_follow_from_their_seed() -> None:
    def messages(seed: int) -> list[list[bytes]]:
        random_ = random.Random(seed)
        return [hostile_message(random_, number) for number in range(300)]

    assert messages(3) == messages(3)
    assert messages(3) != messages(4)
    with_id = sum(readable_id(frames) is not None for frames in messages(3))
    assert 50 < with_id < 290


def test_the_client_protocol_is_spoken_by_hand(start_pipeline: Callable[..., Pipeline]) -> None:
    """One request of each kind, written byte by byte as a stranger would."""
    pipeline = start_pipeline()
    with Client(pipeline.endpoint, timeout=PATIENCE_S) as client:
        client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT)
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(pipeline.endpoint)

        def request(header: dict[str, object], *payloads: bytes) -> tuple[object, list[bytes]]:
            dealer.send_multipart([msgpack.packb({"v": 1, **header}), *payloads])
            assert dealer.poll(int(PATIENCE_S * 1000)), "no answer"
            first, *rest = dealer.recv_multipart()
            return msgpack.unpackb(first), rest

        submit = {"op": "submit", "id": 2**64 - 1, "wait": 3, "count": 3}
        answer, payload = request(
            submit, record(1, 10, ref=8) + record(1, 10, ref=8) + record(2, 99)
        )
        assert answer == {
            "v": 1,
            "id": 2**64 - 1,
            "first": 2,
            "count": 3,
            "level": 3,
            "failures": 2,
        }
        assert payload == [
            struct.pack("<IBBHQ", 1, 7, 0, 0, 2) + struct.pack("<IBBHQ", 2, 1, 0, 0, 0)
        ]
        answer, payload = request(
            {"op": "balances", "id": 1, "min_tx_id": 4}, struct.pack("<3Q", 0, 1, 77)
        )
        assert answer == {"v": 1, "id": 1, "count": 3, "snapshot": 4}
        assert payload == [struct.pack("<3q", -15, 15, 0)]
        answer, payload = request({"op": "status", "id": 2}, struct.pack("<5Q", 2, 3, 4, 5, 0))
        assert answer == {"v": 1, "id": 2, "count": 5}
        rows = [(4, 0, 0), (5, 7, 2), (5, 1, 0), (0, 0, 0), (0, 0, 0)]
        assert payload == [b"".join(struct.pack("<BB6xQ", *row) for row in rows)]
        answer, payload = request({"op": "index", "id": 3})
        assert answer == {
            "v": 1,
            "id": 3,
            "sequenced": 4,
            "computed": 4,
            "committed": 4,
            "snapshot": 4,
            "term": 1,
        }
        answer, payload = request({"op": "wait", "id": 4, "tx_id": 4, "wait": 2})
        assert answer == {"v": 1, "id": 4, "level": 2}
        answer, payload = request({"op": "wait", "id": 5, "tx_id": 5, "wait": 2, "timeout_ms": 50})
        assert isinstance(answer, dict)
        assert (answer["id"], answer["error"]) == (5, "timeout")
        answer, payload = request({"op": "ping", "id": 6, "pending": [5, 900]})
        assert isinstance(answer, dict)
        assert answer["unknown"] == [5, 900]
        assert answer["protocol"] == 1
        dealer.send(b"\xc1 not msgpack")
        assert dealer.poll(int(PATIENCE_S * 1000))
        answer = msgpack.unpackb(dealer.recv())
        assert answer["v"] == 1
        assert answer["id"] is None
        assert answer["error"] == "invalid_request"
