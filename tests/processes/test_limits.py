"""Limits of one client, on a real pipeline: the client waits, others do not."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tallybus import Client, Deposit, InvalidRequest, Overloaded, deposits
from tests.processes.encrypted import Keys
from tests.processes.pipeline import PATIENCE_S, Pipeline, eventually
from tests.processes.raw_client import RawClient
from tests.processes.scraped import measured, scrape, value
from tests.processes.services import said

RATE = 400
"""Operations a second: a client that waits for its turn does so for long enough to be seen."""


def test_a_client_beyond_its_rate_waits_and_others_do_not(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(**measured(gateway__client_rate=RATE))
    with pipeline.client() as greedy, pipeline.client() as modest:
        started = time.monotonic()
        large = greedy.submit_batch(deposits([1] * 4 * RATE, 1))
        assert np.count_nonzero(large.statuses) == 0
        waiting = greedy.begin_batch(deposits([1], 1))
        for _ in range(50):
            assert modest.submit_and_wait(Deposit(2, 1)).ok
        assert not waiting.done() or time.monotonic() - started >= 3
        assert np.count_nonzero(waiting.result().statuses) == 0
        # One second's worth was saved up; the other three had to be paid off.
        assert time.monotonic() - started >= 3
        assert greedy.get_balance(1).balance > 0
    with pipeline.client(timeout=0.5) as hasty:
        hasty.submit_batch(deposits([1] * 10 * RATE, 1))
        with pytest.raises(Overloaded, match=f"{RATE} operations and reads in a second"):
            hasty.submit_and_wait(Deposit(1, 1))
    samples = scrape(pipeline.settings, "gateway")
    assert value(samples, "tallybus_limited_requests_total", limit="rate") >= 2
    assert value(samples, "tallybus_limited_requests_total", limit="in_flight") == 0
    assert said(pipeline, "a client is beyond its limits", request="submit", key="")


def test_requests_under_way_are_limited_for_each_connection(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline(**measured(gateway__client_in_flight=10))
    with ExitStack() as stack:
        full = stack.enter_context(RawClient(pipeline.endpoint))
        for number in range(10):
            header = {"op": "wait", "tx_id": 10**9, "wait": 2, "timeout_ms": 60_000}
            full.send({**header, "id": number})
        refused = full.ask({"op": "index", "id": 100})
        assert refused["error"] == "overloaded"
        assert refused["details"] == {"limit": "in_flight", "allowed": 10}
        assert full.ask({"op": "ping", "id": 101, "pending": [3]})["unknown"] == []
        other = stack.enter_context(pipeline.client())
        assert other.submit_and_wait(Deposit(1, 1)).ok
        with pytest.raises(InvalidRequest, match="may have 10 under way"):
            other.submit_batch(deposits([1] * 11, 1))
        samples = scrape(pipeline.settings, "gateway")
        assert value(samples, "tallybus_limited_requests_total", limit="in_flight") == 2
        assert value(samples, "tallybus_connections") == 2
    eventually(
        lambda: value(scrape(pipeline.settings, "gateway"), "tallybus_connections") == 0,
        "no connection is left",
        PATIENCE_S,
    )


def test_connections_of_one_key_share_its_limit(
    start_pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    keys = Keys(tmp_path)
    small, free = keys.create("small", max_rate=RATE), keys.create("free")
    pipeline = start_pipeline(security__keys=keys.folder)
    with ExitStack() as stack:
        one, other = (
            stack.enter_context(Client(pipeline.endpoint, timeout=0.5, key=small)) for _ in range(2)
        )
        unlimited = stack.enter_context(Client(pipeline.endpoint, timeout=PATIENCE_S, key=free))
        assert unlimited.submit_and_wait(Deposit(1, 1)).ok
        one.submit_batch(deposits([1] * 10 * RATE, 1), timeout=PATIENCE_S)
        with pytest.raises(Overloaded, match=f"{RATE} operations and reads in a second"):
            other.get_balance(1)
        assert unlimited.submit_and_wait(Deposit(1, 1)).ok
    assert said(pipeline, "a client is beyond its limits", key="small")
    assert not said(pipeline, "a client is beyond its limits", key="free")


def test_the_length_of_a_request_is_limited(start_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = start_pipeline(gateway__client_message_bytes=4_000)
    with pipeline.client() as client:
        assert np.count_nonzero(client.submit_batch(deposits([1] * 90, 1)).statuses) == 0
        with pytest.raises(InvalidRequest, match="may send 4000 in one"):
            client.submit_batch(deposits([1] * 100, 1))
        assert client.submit_and_wait(Deposit(1, 1)).ok
