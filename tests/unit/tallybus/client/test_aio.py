"""The asyncio client against a gateway that fails on cue, over real sockets."""

import asyncio
import gc
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import zmq
import zmq.asyncio

from tallybus import (
    AsyncClient,
    ClientClosed,
    Deposit,
    InvalidRequest,
    OutcomeUnknown,
    Result,
    Status,
    Timeout,
    Transfer,
    WaitLevel,
    deposits,
)
from tallybus.client.core import MILLISECOND, CoreSettings
from tests.support.fake_gateway import (
    REJECTED,
    CuttingProxy,
    FakeGateway,
    FakeLedger,
    always,
    first_time,
    restarting,
)

EFFECT = (1, 77, 1, 5)


class QuickClient(AsyncClient):
    """Notices losses sooner, so that tests are short."""

    _settings = CoreSettings(ping_after=25 * MILLISECOND)


def run(test: Callable[[AsyncClient, FakeGateway], Awaitable[None]], **options: Any) -> None:
    """Runs a test with a gateway and a client of its own."""

    async def main() -> None:
        async with QuickClient(gateway.endpoint) as client:
            await test(client, gateway)

    with FakeGateway(**options) as gateway:
        asyncio.run(main())


def test_every_method_gets_its_answer() -> None:
    async def test(client: AsyncClient, gateway: FakeGateway) -> None:
        assert await client.submit(Deposit(1, 100, 5)) == 1
        assert await client.submit_and_wait(Deposit(1, 100, 5)) == Result(
            1, Status.DUPLICATE, WaitLevel.COMMITTED, 1, Status.OK
        )
        batch = await client.submit_batch([Transfer(1, 2, 30), Deposit(3, REJECTED), Deposit(3, 7)])
        assert batch.tx_ids.tolist() == [3, 4, 5]
        assert batch.statuses.tolist() == [0, Status.INVALID_OPERATION, 0]
        assert (await client.get_balance(2, min_tx_id=3)).balance == 30
        assert (await client.get_balances([1, 2, 9])).balances.tolist() == [70, 30, 0]
        assert (await client.get_status(5)).stage == 4
        assert (await client.get_statuses([5, 6])).stages.tolist() == [4, 0]
        assert (await client.pipeline_index()).sequenced == 5
        assert await client.wait_for(5, WaitLevel.SNAPSHOT, timeout=5) is WaitLevel.SNAPSHOT
        assert (await client.gateway_info()).incarnation == 1
        with pytest.raises(InvalidRequest):
            await client.submit_batch([])

    run(test)


def test_many_requests_are_in_flight_at_once() -> None:
    async def test(client: AsyncClient, gateway: FakeGateway) -> None:
        ids = await asyncio.gather(*(client.submit(Deposit(n, 1)) for n in range(1, 501)))
        assert list(ids) == list(range(1, 501))
        futures = [client.begin_batch(deposits([n, n], 1)) for n in range(50)]
        assert [(await future).first_tx_id for future in futures] == list(range(501, 601, 2))

    run(test)


def test_an_array_may_be_changed_once_the_batch_has_begun() -> None:
    async def test(client: AsyncClient, gateway: FakeGateway) -> None:
        records = deposits(np.arange(3000), 1)
        futures = []
        for n in range(4):
            records["amount"] = n + 1
            futures.append(client.begin_batch(records))
        records["amount"] = 0
        assert [(await future).failed_count for future in futures] == [0] * 4

    run(test)


@pytest.mark.parametrize("verdict", ["ignore", "mute"])
def test_a_lost_request_has_one_effect_or_an_unknown_outcome(verdict: str) -> None:
    async def test(client: AsyncClient, gateway: FakeGateway) -> None:
        safe, unsafe = await asyncio.gather(
            client.submit_and_wait(Deposit(1, 5, 77)),
            client.submit_and_wait(Deposit(2, 5)),
            return_exceptions=True,
        )
        assert isinstance(safe, Result)
        assert (safe.tx_id > 0, safe.status) == (True, Status.NONE)
        assert isinstance(unsafe, OutcomeUnknown)
        assert gateway.ledger.effects[EFFECT] == 1
        assert gateway.ledger.effects[1, 0, 2, 5] == (verdict == "mute")

    run(test, script=lambda message: verdict if message.number < 2 else "answer")


def test_a_gateway_may_be_restarted_under_requests() -> None:
    ledger = FakeLedger()

    async def main() -> None:
        async with QuickClient(gateway.endpoint) as client:
            safe = client.begin_batch(deposits(1, [5], [77]))
            unsafe = asyncio.create_task(client.submit(Deposit(2, 5)))
            await asyncio.to_thread(gateway.wait_seen, 2)
            await asyncio.to_thread(restart)
            result = await safe
            assert (result.first_tx_id > 1, result.tx_ids.tolist()) == (True, [1])
            assert result.statuses.tolist() == [0]
            with pytest.raises(OutcomeUnknown):
                await unsafe
            assert ledger.effects[EFFECT] == 1

    with restarting(ledger, always("hold")) as (gateway, restart):
        asyncio.run(main())


def test_a_connection_may_be_cut_at_every_point_of_a_request() -> None:
    async def submit(proxy: CuttingProxy) -> Result:
        async with QuickClient(proxy.endpoint) as client:
            return await client.submit_and_wait(Deposit(1, 5, 77), timeout=20)

    for upstream, downstream in [(1, None), (64, None), (None, 64), (None, 150), (200, None)]:
        with FakeGateway() as gateway:
            port = int(gateway.endpoint.rpartition(":")[2])
            with CuttingProxy(port, upstream, downstream) as proxy:
                result = asyncio.run(submit(proxy))
                assert (proxy.cut, result.tx_id, result.ok) == (True, 1, True)
                assert gateway.ledger.effects == {EFFECT: 1}


def test_deadlines_end_requests() -> None:
    async def test(client: AsyncClient, gateway: FakeGateway) -> None:
        with pytest.raises(Timeout):
            await client.submit(Deposit(1, 5), timeout=0.05)
        slow = asyncio.create_task(client.wait_for(1, timeout=20))
        with pytest.raises(Timeout):
            await client.wait_for(1, timeout=0.05)
        gateway.release()
        assert await slow is WaitLevel.COMMITTED

    run(test, script=always("hold"))


def test_a_refused_request_is_retried() -> None:
    async def test(client: AsyncClient, gateway: FakeGateway) -> None:
        assert await client.submit(Deposit(1, 5)) == 1
        assert len(gateway.seen) == 2

    run(test, script=first_time("overloaded"))


def test_a_cancelled_request_is_given_up() -> None:
    async def test(client: AsyncClient, gateway: FakeGateway) -> None:
        task = asyncio.create_task(client.submit(Deposit(1, 5)))
        await asyncio.to_thread(gateway.wait_seen, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await client.pipeline_index()
        assert client._core.outstanding == ()
        gateway.script = always("answer")
        gateway.release()
        assert await client.submit(Deposit(1, 5)) == 2

    run(test, script=always("hold"))


def test_closing_waits_or_fails_what_is_outstanding() -> None:
    async def main() -> None:
        client = QuickClient(gateway.endpoint)
        task = asyncio.create_task(client.wait_for(1))
        await asyncio.to_thread(gateway.wait_seen, 1)
        closing = asyncio.create_task(client.close())
        await asyncio.to_thread(gateway.wait_seen, 1, pings=True)
        assert not closing.done()
        with pytest.raises(ClientClosed):
            await client.submit(Deposit(1, 5))
        gateway.release()
        await closing
        assert await task is WaitLevel.COMMITTED
        await client.close()

        client = QuickClient(gateway.endpoint)
        read = asyncio.create_task(client.wait_for(1))
        batch = client.begin_batch([Deposit(1, 5)])
        await asyncio.to_thread(gateway.wait_seen, 3)
        await client.close(wait=False)
        with pytest.raises(ClientClosed):
            await read
        with pytest.raises(OutcomeUnknown):
            await batch

    with FakeGateway(script=always("hold")) as gateway:
        asyncio.run(main())


def test_a_client_belongs_to_one_event_loop() -> None:
    with FakeGateway() as gateway:
        client = QuickClient(gateway.endpoint)
        with asyncio.Runner() as first:
            first.run(client.submit(Deposit(1, 5)))
            with asyncio.Runner() as second, pytest.raises(RuntimeError, match="event loop"):
                second.run(client.submit(Deposit(1, 5)))
            first.run(client.close())


def test_nothing_is_left_behind() -> None:
    async def main() -> None:
        for _ in range(5):
            async with AsyncClient(gateway.endpoint) as client:
                await client.submit(Deposit(1, 5))
        await AsyncClient(gateway.endpoint).close()

    with warnings.catch_warnings(), FakeGateway() as gateway:
        warnings.simplefilter("error")
        asyncio.run(main(), debug=True)
        gc.collect()


@pytest.mark.parametrize("kind", [zmq.Context, zmq.asyncio.Context])
def test_any_context_serves_inproc(kind: type[zmq.Context[Any]]) -> None:
    async def main() -> None:
        async with QuickClient(gateway.endpoint, context=context) as client:
            assert await client.submit(Deposit(1, 5)) == 1

    context = kind()
    plain = zmq.Context(shadow=context)
    with FakeGateway(endpoint="inproc://ledger", context=plain) as gateway:
        asyncio.run(main())
    context.term()


def test_a_terminated_context_ends_every_request() -> None:
    async def main() -> None:
        context: zmq.Context[Any] = zmq.Context()
        async with QuickClient(gateway.endpoint, context=context) as client:
            waiting = asyncio.create_task(client.wait_for(1))
            await asyncio.to_thread(gateway.wait_seen, 1)
            terminating = asyncio.create_task(asyncio.to_thread(context.term))
            with pytest.raises(ClientClosed):
                await waiting
        await terminating

    with FakeGateway(script=always("hold")) as gateway:
        asyncio.run(main())
