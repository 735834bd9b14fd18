"""Exceptions out of signal handlers leave a client that works, wherever they come."""

import asyncio
import contextlib
import gc
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from tallybus import AsyncClient, Client, Deposit, OutcomeUnknown, TallybusError, WaitLevel
from tallybus.client import context
from tests.support.fake_gateway import FakeGateway
from tests.support.interruptions import Interrupted, Interruption

OURS = ("tallybus/client/", "zmq/sugar/")


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


def interrupted_everywhere(
    act: Callable[[], Any],
    then: Callable[[str], Any],
    kind: type[BaseException] = Interrupted,
) -> int:
    """Does `act` again and again, interrupted at the first place, at the second, ...; `then` each
    time. Gives the number of places.
    """
    number = 0
    while True:
        number += 1
        assert number < 5_000
        with contextlib.suppress(kind), Interruption(number, *OURS, kind=kind) as interruption:
            act()
        if interruption.where is None:
            return number - 1
        then(interruption.where)


def test_a_read_may_be_interrupted_anywhere(gateway: FakeGateway) -> None:
    with Client(gateway.endpoint) as client:
        client.submit_and_wait(Deposit(1, 70))

        def check(where: str) -> None:
            began = time.monotonic()
            assert client.get_balance(1, timeout=5).balance == 70, where
            assert time.monotonic() - began < 3, where

        places = interrupted_everywhere(lambda: client.get_balance(1, timeout=5), check)
    assert places > 100


def test_a_submit_with_a_reference_may_be_interrupted_anywhere_and_repeated(
    gateway: FakeGateway,
) -> None:
    with Client(gateway.endpoint) as client:
        client.gateway_info()
        ref = 1_000

        def act() -> None:
            nonlocal ref
            ref += 1
            assert client.submit_and_wait(Deposit(1, 5, ref), timeout=5).ok

        def check(where: str) -> None:
            result = client.submit_and_wait(Deposit(1, 5, ref), timeout=5)
            assert result.ok or result.duplicate_of, where
            assert gateway.ledger.effects[1, ref, 1, 5] == 1, where

        interrupted_everywhere(act, check)
    assert set(gateway.ledger.effects.values()) == {1}


def test_an_interrupted_submit_without_a_reference_is_never_sent_later_or_twice(
    gateway: FakeGateway,
) -> None:
    with Client(gateway.endpoint) as client:
        client.gateway_info()
        account = 1_000

        def act() -> None:
            nonlocal account
            account += 1
            client.submit(Deposit(account, 5), timeout=5)

        def check(where: str) -> None:
            client.get_balance(1, timeout=5)  # whatever was in the socket has come before this
            effects = gateway.ledger.effects[1, 0, account, 5]
            assert effects <= 1, where
            client.get_balance(1, timeout=5)
            assert gateway.ledger.effects[1, 0, account, 5] == effects, where

        interrupted_everywhere(act, check)


def test_a_batch_that_was_begun_survives_the_interruption_of_whoever_waits(
    gateway: FakeGateway,
) -> None:
    with Client(gateway.endpoint) as client:
        client.gateway_info()
        ref = 5_000
        pending = client.begin_batch([Deposit(1, 5, ref)], timeout=5)

        def check(where: str) -> None:
            nonlocal pending, ref
            assert pending.result().failed_count == 0, where
            ref += 1
            pending = client.begin_batch([Deposit(1, 5, ref)], timeout=5)

        interrupted_everywhere(lambda: pending.result(timeout=5), check)
    assert set(gateway.ledger.effects.values()) == {1}


def test_other_threads_go_on_while_one_is_interrupted(gateway: FakeGateway) -> None:
    over = threading.Event()
    answers = 0
    wrong: list[BaseException] = []

    def others() -> None:
        nonlocal answers
        while not over.is_set():
            try:
                client.get_balance(2, timeout=5)
            except Exception as error:  # noqa: BLE001 (whatever it is)
                wrong.append(error)
                return
            answers += 1

    with Client(gateway.endpoint) as client:
        client.gateway_info()
        thread = threading.Thread(target=others)
        thread.start()
        for number in random.Random(1).sample(range(1, 150), 40):
            with Interruption(number, *OURS), contextlib.suppress(Interrupted):
                client.get_balance(1, timeout=5)
            so_far, began = answers, time.monotonic()
            while answers == so_far and not wrong:
                assert time.monotonic() - began < 3, number
                time.sleep(0.0005)
        over.set()
        thread.join(10)
    assert not thread.is_alive()
    assert wrong == []


# What is left to be finalized says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_client_that_was_interrupted_while_closing_can_be_closed(gateway: FakeGateway) -> None:
    number = 0
    while True:
        number += 1
        client = Client(gateway.endpoint)
        pending = client.begin_batch([Deposit(1, 5, number)], timeout=5)
        with (
            contextlib.suppress(Interrupted),
            Interruption(number, "tallybus/client/") as interruption,
        ):
            client.close()
        client.close()
        assert pending.done()
        if interruption.where is None:
            break
    assert number > 20
    gc.collect()


# What is left to be finalized says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_making_a_client_may_be_interrupted_anywhere(
    gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libzmq ends no context in which a socket is open, and the traceback of whoever was
    interrupted holds what was being made."""
    held: list[BaseException] = []
    places: list[str] = []

    def act() -> None:
        while True:
            # With a context of its own it is the only client, whose end is the context's.
            monkeypatch.setattr(context, "_shared", context._Shared())
            try:
                with Interruption(len(held) + 1, *OURS):
                    Client(gateway.endpoint).close()
            except Interrupted as interrupted:
                held.append(interrupted)
                places.append(str(interrupted))
            else:
                return

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), f"hangs after {places[-1]}"
    assert len(places) > 50
    with Client(gateway.endpoint) as client:
        client.submit_and_wait(Deposit(1, 70), timeout=5)
    held.clear()
    gc.collect()


@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt])
# A coroutine that was made, and not awaited as the exception came between, says so.
@pytest.mark.filterwarnings("ignore:coroutine")
def test_an_interrupted_call_of_a_loop_leaves_an_async_client_that_works(
    gateway: FakeGateway, kind: type[BaseException]
) -> None:
    loop = asyncio.new_event_loop()

    async def make() -> AsyncClient:
        client = AsyncClient(gateway.endpoint)
        await client.submit_and_wait(Deposit(1, 70))
        return client

    client = loop.run_until_complete(make())
    loop.set_exception_handler(lambda *_: None)

    def check(where: str) -> None:
        # asyncio itself may have asked the loop to stop when it was interrupted: that is over then.
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert loop.run_until_complete(client.get_balance(1, timeout=5)).balance == 70, where

    try:
        places = interrupted_everywhere(
            lambda: loop.run_until_complete(client.get_balance(1, timeout=5)), check, kind
        )
        assert places > 50
        loop.run_until_complete(client.close())
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()


@pytest.mark.parametrize("limit", [0.0, 0.0005, 0.002])
def test_calls_of_an_async_client_may_be_cancelled(gateway: FakeGateway, limit: float) -> None:
    async def run() -> None:
        async with AsyncClient(gateway.endpoint) as client:
            await client.gateway_info()
            for number in range(50):
                try:
                    async with asyncio.timeout(limit * random.random()):
                        await client.submit_and_wait(Deposit(1, 5, number + 1))
                except TimeoutError:
                    pass
                result = await client.submit_and_wait(Deposit(1, 5, number + 1))
                assert result.ok or result.duplicate_of

    asyncio.run(run())
    assert set(gateway.ledger.effects.values()) == {1}


@pytest.fixture
def alarms() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarms")
def test_time_limits_by_a_timer_leave_a_client_that_works(gateway: FakeGateway) -> None:
    moments = random.Random(7)
    interrupted = 0
    with Client(gateway.endpoint) as client:
        client.submit_and_wait(Deposit(1, 70))
        for _ in range(600):
            try:
                signal.setitimer(signal.ITIMER_REAL, moments.random() * 0.001 + 1e-6)
                client.get_balance(1, timeout=5)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted:
                interrupted += 1
                assert client.get_balance(1, timeout=5).balance == 70
    assert interrupted > 50


@pytest.mark.usefixtures("alarms")
def test_a_wait_ends_at_the_handlers_exception_and_not_at_the_timeout() -> None:
    with FakeGateway(script=lambda _: "hold") as gateway, Client(gateway.endpoint) as client:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        began = time.monotonic()
        with pytest.raises(Interrupted):
            client.submit_and_wait(Deposit(1, 5, 9), WaitLevel.COMMITTED, timeout=20)
        assert time.monotonic() - began < 5
        gateway.script = lambda _: "answer"
        assert client.submit_and_wait(Deposit(1, 5, 9), timeout=5).duplicate_of == 1


def test_what_others_had_under_way_without_a_reference_ends_with_a_typed_error(
    gateway: FakeGateway,
) -> None:
    """A message torn between its parts costs the connection, and with it certainty."""
    gateway.script = lambda message: "hold" if message.op == "submit" else "answer"
    with Client(gateway.endpoint) as client:
        client.gateway_info()
        pending = client.begin_batch([Deposit(1, 5)], timeout=5)
        with Interruption(1, "zmq/sugar/socket.py"), pytest.raises(Interrupted):
            client.get_balance(1)
        with pytest.raises(OutcomeUnknown) as unknown:
            pending.result()
        assert not unknown.value.retry_safe
        assert isinstance(unknown.value, TallybusError)
