"""Clients that were made before a fork: they work in the child, and the parent's stay whole."""

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tallybus import AsyncClient, Client, Deposit, ForkedProcess, Ledger, WaitLevel
from tests.support.fake_gateway import FakeGateway

# What was inherited says at the child's end that nobody closed it: right, it is the parent's.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


def in_child(act: Callable[[], Any], seconds: float = 10) -> None:
    """Runs `act` in a forked child, which must end well, and soon."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:  # noqa: BLE001 (nothing may leave the child)
            traceback.print_exc()
        finally:
            os._exit(code)
    patience = time.monotonic() + seconds
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > patience:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


def test_a_client_goes_on_in_the_child_over_a_connection_of_its_own(gateway: FakeGateway) -> None:
    with Client(gateway.endpoint) as client:
        client.submit_and_wait(Deposit(1, 70))

        def act() -> None:
            assert client.get_balance(1, timeout=5).balance == 70
            assert client.submit_and_wait(Deposit(1, 5, 9), timeout=5).ok
            client.close()

        in_child(act)
        in_child(lambda: client.get_balance(1, timeout=5))
        assert client.get_balance(1, timeout=5).balance == 75
    assert len({message.client for message in gateway.seen}) == 3


def test_a_client_of_a_users_own_context_goes_on_in_the_child(gateway: FakeGateway) -> None:
    context: zmq.Context[Any] = zmq.Context()
    with Client(gateway.endpoint, context=context) as client:
        client.gateway_info()
        in_child(lambda: client.get_balance(1, timeout=5))
        client.get_balance(1, timeout=5)
    context.term()


def test_a_client_that_the_child_only_drops_does_no_harm(gateway: FakeGateway) -> None:
    client = Client(gateway.endpoint)
    client.gateway_info()
    held = [client]

    def act() -> None:
        held.clear()
        gc.collect()

    def leave() -> None:
        with client:
            pass

    in_child(act)
    in_child(leave)
    in_child(lambda: client.close(wait=False))
    assert client.get_balance(1, timeout=5).balance == 0
    client.close()


def test_what_is_under_way_stays_the_parents(gateway: FakeGateway) -> None:
    gateway.script = lambda message: "hold" if message.op == "submit" else "answer"
    with Client(gateway.endpoint) as client:
        client.gateway_info()
        pending = client.begin_batch([Deposit(1, 5)], timeout=20)
        gateway.wait_seen(1)

        def act() -> None:
            with pytest.raises(ForkedProcess):
                pending.result(timeout=5)
            client.get_balance(1, timeout=5)
            client.close()

        in_child(act)
        gateway.release()
        assert pending.result(timeout=5).failed_count == 0
    assert gateway.ledger.effects == {(1, 0, 1, 5): 1}


def test_a_child_of_one_thread_works_whatever_the_other_threads_did(gateway: FakeGateway) -> None:
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            client.get_balance(2, timeout=5)

    with Client(gateway.endpoint) as client:
        threads = [threading.Thread(target=busy) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                in_child(lambda: client.get_balance(1, timeout=5))
        finally:
            over.set()
            for thread in threads:
                thread.join(10)


def test_workers_of_a_pool_share_what_was_made_before_it(gateway: FakeGateway) -> None:
    with Client(gateway.endpoint) as client:
        client.submit_and_wait(Deposit(1, 70))
        results: Any = multiprocessing.get_context("fork").SimpleQueue()

        def work() -> None:
            results.put(client.get_balance(1, timeout=5).balance)

        workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(10)
            assert worker.exitcode == 0
        assert [results.get() for _ in workers] == [70, 70, 70]


def test_an_async_client_goes_on_in_the_child_and_in_the_parent(gateway: FakeGateway) -> None:
    async def balance() -> int:
        return (await client.get_balance(1, timeout=5)).balance

    async def make() -> AsyncClient:
        made = AsyncClient(gateway.endpoint)
        await made.submit_and_wait(Deposit(1, 70))
        return made

    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(make())

    def act() -> None:
        assert asyncio.run(balance()) == 70
        asyncio.run(client.close())

    in_child(act)
    assert loop.run_until_complete(balance()) == 70
    loop.run_until_complete(client.close())
    loop.close()


def test_an_async_client_moves_to_the_next_loop(gateway: FakeGateway) -> None:
    client = AsyncClient(gateway.endpoint)

    async def balance() -> int:
        return (await client.get_balance(1, timeout=5)).balance

    assert [asyncio.run(balance()) for _ in range(3)] == [0, 0, 0]
    asyncio.run(client.close())


def test_a_client_over_inproc_says_in_the_child_that_it_cannot(gateway: FakeGateway) -> None:
    context: zmq.Context[Any] = zmq.Context()
    name = "inproc://forks"
    with FakeGateway(endpoint=name, context=context), Client(name, context=context) as client:
        client.gateway_info()

        def act() -> None:
            began = time.monotonic()
            with pytest.raises(ForkedProcess):
                client.get_balance(1, timeout=20)
            assert time.monotonic() - began < 1
            client.close()

        in_child(act)
        client.gateway_info()
    context.term()


def test_a_ledger_is_the_parents(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "data", max_accounts=1000)
    assert ledger.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT).ok
    stay, go = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            began = time.monotonic()
            for act in (lambda: ledger.get_balance(1), lambda: ledger.submit(Deposit(1, 5))):
                with pytest.raises(ForkedProcess):
                    act()
            ledger.close()
            assert time.monotonic() - began < 2
            os.close(go)
            os.read(stay, 1)  # lives on, as the parent closes and opens the ledger
            code = 0
        finally:
            os._exit(code)
    os.close(stay)
    try:
        assert ledger.get_balance(1).balance == 5
        ledger.close()
        with Ledger.open(tmp_path / "data", max_accounts=1000) as again:
            assert again.get_balance(1).balance == 5
    finally:
        os.close(go)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
