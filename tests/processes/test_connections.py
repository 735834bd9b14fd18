"""What connections may cost the gateway: endless messages, too many of them, and half-open ones."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import msgpack
import numpy as np
import pytest

from tallybus import Client, Deposit, Timeout, Unreachable, deposits
from tallybus.common.security.keys import Role
from tests.processes.encrypted import Keys
from tests.processes.pipeline import PATIENCE_S, Pipeline, eventually
from tests.processes.raw_client import GREETING, RawClient, frame, mechanism
from tests.processes.services import said

MIB = 1 << 20
MAX_BATCH = 16_384
PIPELINE_SETTINGS: dict[str, object] = {"gateway__max_batch": MAX_BATCH}
ENDLESS_BYTES = 2_000 * MIB
"""What an attacker would send, if nobody stopped it."""


def rss(pipeline: Pipeline) -> int:
    pages = Path(f"/proc/{pipeline.pids()['gateway']}/statm").read_text().split()[1]
    return int(pages) * 4096


def open_files(pipeline: Pipeline) -> int:
    return len(list(Path(f"/proc/{pipeline.pids()['gateway']}/fd").iterdir()))


@pytest.mark.parametrize("length", [0, 50, 60_000, 1_500_000])
def test_a_message_that_never_ends_is_cut_and_its_memory_freed(
    pipeline: Pipeline, length: int
) -> None:
    before = rss(pipeline)
    part = frame(bytes(length), more=True)
    block = part * max(1, (256 << 10) // len(part))
    sent = 0
    cut = threading.Event()

    def send() -> None:
        nonlocal sent
        try:
            while sent < ENDLESS_BYTES:
                attacker.socket.sendall(block)
                sent += len(block)
        except OSError:
            cut.set()

    highest = 0
    with RawClient(pipeline.endpoint) as attacker, pipeline.client() as client:
        thread = threading.Thread(target=send)
        thread.start()
        while thread.is_alive():
            assert client.submit_and_wait(Deposit(1, 1)).ok
            highest = max(highest, rss(pipeline))
        assert cut.is_set(), f"nobody minds {sent / MIB:.0f} MiB"
        eventually(
            lambda: said(pipeline, "cut a connection", address=attacker.address), "it is logged"
        )
        assert client.submit_and_wait(Deposit(1, 1)).ok
    (line,) = said(pipeline, "cut a connection", address=attacker.address)
    assert line["reason"] == "endless_message"
    assert highest - before < 512 * MIB, f"{(highest - before) / MIB:.0f} MiB more"
    eventually(lambda: rss(pipeline) < before + 128 * MIB, "the memory is given back")


def test_many_messages_that_stop_in_their_middle_are_cut_once_they_take_much_memory(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    """None of them is too long by itself."""
    pipeline = start_pipeline()
    with ExitStack() as stack, pipeline.client() as client:
        assert client.submit_and_wait(Deposit(1, 1)).ok
        before = rss(pipeline)
        for _ in range(80):
            raw = stack.enter_context(RawClient(pipeline.endpoint))
            raw.socket.sendall(frame(bytes(4 * MIB), more=True))
        eventually(lambda: said(pipeline, "cut a connection", reason="memory"), "some are cut")
        eventually(lambda: rss(pipeline) < before + 256 * MIB, "their memory is given back")
        assert client.submit_and_wait(Deposit(1, 1)).ok
    assert said(pipeline, "cut a connection", reason="endless_message") == []


def test_a_long_request_that_comes_slowly_is_served(pipeline: Pipeline) -> None:
    """Neither slowness nor the largest length makes a message endless."""
    records = deposits([1] * MAX_BATCH, 1).tobytes()
    header = {"v": 1, "op": "submit", "id": 1, "count": MAX_BATCH, "wait": 2}
    data = frame(msgpack.packb(header), more=True) + frame(records)
    with RawClient(pipeline.endpoint) as slow, pipeline.client() as client:
        for start in range(0, len(data), len(data) // 20):
            slow.socket.sendall(data[start : start + len(data) // 20])
            assert client.submit_and_wait(Deposit(1, 1)).ok
            time.sleep(0.15)
        assert msgpack.unpackb(slow.receive()[0])["count"] == MAX_BATCH
        assert said(pipeline, "cut a connection", address=slow.address) == []


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_clients_that_send_without_a_pause_are_not_cut(
    start_pipeline: Callable[..., Pipeline], tmp_path: Path, encrypted: bool
) -> None:
    settings = {**PIPELINE_SETTINGS}
    key: Path | None = None
    if encrypted:
        keys = Keys(tmp_path)
        key = keys.create("busy")
        settings["security__keys"] = keys.folder
    pipeline = start_pipeline(**settings)
    batch = deposits([1] * MAX_BATCH, 1)
    done: list[int] = []

    def send() -> None:
        with Client(pipeline.endpoint, timeout=PATIENCE_S, key=key) as client:
            for pending in [client.begin_batch(batch) for _ in range(60)]:
                done.append(np.count_nonzero(pending.result().statuses == 0))

    threads = [threading.Thread(target=send) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [MAX_BATCH] * 180
    assert said(pipeline, "cut a connection") == []


@pytest.mark.parametrize(("length", "served"), [(255, True), (256, False), (2_000_000, False)])
def test_who_has_a_routing_id_of_megabytes_is_cut_at_the_first_message(
    pipeline: Pipeline, length: int, served: bool
) -> None:
    question = frame(msgpack.packb({"v": 1, "op": "ping", "id": 1, "pending": []}))
    with RawClient(pipeline.endpoint, identity=b"A" * length) as raw, pipeline.client() as client:
        raw.socket.sendall(question)
        try:
            answered = bool(raw.socket.recv(1))
        except ConnectionError:
            answered = False
        assert answered == served
        assert client.submit_and_wait(Deposit(1, 1)).ok
        if not served:
            eventually(
                lambda: said(pipeline, "cut a connection", address=raw.address), "it is logged"
            )


def test_connections_beyond_the_most_are_closed_and_others_stay(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(gateway__max_connections=20)
    with ExitStack() as stack:
        client = stack.enter_context(pipeline.client())
        assert client.submit_and_wait(Deposit(1, 1)).ok
        held = [stack.enter_context(RawClient(pipeline.endpoint)) for _ in range(19)]
        for each in held:
            assert each.ask({"op": "ping", "id": 1})["id"] == 1
        for _ in range(20):
            # The connection may be cut even before this side has seen that it came about.
            with suppress(OSError), RawClient(pipeline.endpoint, greet=False) as extra:
                assert extra.closed_within(PATIENCE_S)
        for each in held:
            assert each.ask({"op": "ping", "id": 2})["id"] == 2
        assert client.submit_and_wait(Deposit(1, 1)).ok
        held[0].socket.close()

        def let_in() -> bool:
            try:
                with RawClient(pipeline.endpoint) as another:
                    return another.ask({"op": "ping", "id": 3})["id"] == 3
            except OSError:
                return False

        eventually(let_in, "there is room again")
    lines = said(pipeline, "cut a connection", reason="too_many")
    assert 1 <= len(lines) <= 10, "told, and not each time"


def test_a_key_takes_no_more_connections_than_it_leaves_to_others(
    start_pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    keys = Keys(tmp_path)
    greedy, other = keys.create("greedy", Role.READ), keys.create("other")
    pipeline = start_pipeline(
        gateway__max_connections=16, security__keys=keys.folder, metrics__address=""
    )

    def open_client(key: Path, timeout: float = PATIENCE_S) -> Client:
        return Client(pipeline.endpoint, key=key, timeout=timeout)

    with ExitStack() as stack:
        served = 0
        for _ in range(12):
            client = stack.enter_context(open_client(greedy, 1.0))
            with suppress(Timeout, Unreachable):
                client.get_balance(1)
                served += 1
        assert 1 <= served < 12, "not all of them"
        with open_client(other) as client:
            assert client.submit_and_wait(Deposit(1, 1)).ok
    with open_client(greedy) as client:
        eventually(lambda: client.get_balance(1).balance == 1, "there is room again")


def test_thousands_of_quick_connections_leave_nothing_behind(pipeline: Pipeline) -> None:
    with pipeline.client() as client:
        assert client.submit_and_wait(Deposit(1, 1)).ok
        files, memory = open_files(pipeline), rss(pipeline)
        for number in range(5_000):
            raw = RawClient(pipeline.endpoint, greet=number % 10 == 0)
            if number % 20 == 0:
                assert raw.ask({"op": "ping", "id": number})["id"] == number
            raw.socket.close()
            if number % 500 == 0:
                assert client.submit_and_wait(Deposit(1, 1)).ok
        assert client.submit_and_wait(Deposit(1, 1)).ok
        eventually(lambda: open_files(pipeline) <= files + 20, "their descriptors are closed")
    assert rss(pipeline) - memory < 64 * MIB


def test_handshakes_that_hang_are_ended(pipeline: Pipeline) -> None:
    with ExitStack() as stack, pipeline.client() as client:
        hanging = [
            stack.enter_context(RawClient(pipeline.endpoint, greet=False)) for _ in range(60)
        ]
        for number, each in enumerate(hanging):
            each.socket.sendall(GREETING[: number % len(GREETING)])
        assert client.submit_and_wait(Deposit(1, 1)).ok
        for each in hanging:
            assert each.closed_within(PATIENCE_S)
        assert client.submit_and_wait(Deposit(1, 1)).ok


def test_who_does_not_speak_the_transport_is_told_to_the_operator(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline()
    host, _, port = pipeline.endpoint.removeprefix("tcp://").rpartition(":")
    for _ in range(100):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(GREETING.replace(b"NULL\0", b"CURVE"))
            raw.settimeout(PATIENCE_S)
            while raw.recv(4096):
                pass
    eventually(lambda: said(pipeline, "refused a connection"), "it is logged")
    lines = said(pipeline, "refused a connection")
    assert lines[0]["reason"] == "bad_handshake"
    assert lines[0]["why"] == "it encrypts"
    assert len(lines) <= 10, "a flood writes few lines"


def test_the_greeting_tells_that_there_are_no_keys(pipeline: Pipeline) -> None:
    assert mechanism(pipeline.endpoint) == b"NULL"


def test_an_older_connection_with_the_same_routing_id_hears_nothing_more(
    pipeline: Pipeline,
) -> None:
    held = {"op": "wait", "id": 2, "tx_id": 10**9, "wait": 2, "timeout_ms": 500}
    with RawClient(pipeline.endpoint, identity=b"\x01twin") as older:
        assert older.ask({"op": "ping", "id": 1})["id"] == 1
        older.send(held)
        assert older.ask({"op": "ping", "id": 3, "pending": [2]})["unknown"] == []
        with RawClient(pipeline.endpoint, identity=b"\x01twin") as newer:
            assert newer.ask({"op": "ping", "id": 1, "pending": [2]})["unknown"] == []
            older.send({"op": "ping", "id": 4})
            answer = msgpack.unpackb(newer.receive()[0])
            assert (answer["id"], answer["error"]) == (2, "timeout"), "the answer goes to the newer"
            assert newer.ask({"op": "ping", "id": 5})["id"] == 5
            assert not older.closed_within(0.5), "it stays open, and what it sends is dropped"
