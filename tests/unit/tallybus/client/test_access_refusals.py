"""Clients with keys, over real sockets: who is let in, and who is refused and told so at once."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

from tallybus import AccessDenied, AsyncClient, Client, Deposit, Unreachable, WaitLevel
from tallybus.client.access import PAUSE_NS
from tallybus.client.core import SECOND
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.keys import ClientKey, client_key_text
from tests.support.fake_door import FAILED, LET_IN, REFUSED, Door, encrypted_gateway
from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.client.keyed_clients import (
    PATIENCE_S,
    Call,
    QuickAsyncClient,
    QuickClient,
    blocking,
    on_a_loop,
    until_tried_again,
)


def denied(outcomes: list[object], reason: str, began: float) -> str:
    """All were refused for this reason, and did not wait for their deadlines; gives the text."""
    assert time.monotonic() - began < PATIENCE_S
    for outcome in outcomes:
        assert isinstance(outcome, AccessDenied), outcome
        assert (outcome.request, outcome.reason) == (None, reason)
    return str(outcomes[0])


both = pytest.mark.parametrize("call", [blocking, on_a_loop])


@both
def test_who_has_a_key_is_let_in(call: Call, tmp_path: Path) -> None:
    with encrypted_gateway() as (gateway, door):
        assert sorted(call(gateway.endpoint, 3, key=door.key()), key=str) == [1, 2, 3]
        path = tmp_path / "ops.key"
        path.touch(0o600)
        path.write_text(client_key_text(door.key()))
        for given in (path, str(path)):
            assert len(call(gateway.endpoint, 1, key=given)) == 1
        assert door.asked == 3
        assert len(gateway.seen) == 5


@both
def test_without_a_key_a_ledger_that_asks_for_one_refuses(call: Call) -> None:
    with encrypted_gateway() as (gateway, door):
        began = time.monotonic()
        text = denied(call(gateway.endpoint, 3), "encryption", began)
        assert "none was given" in text
        assert "TALLYBUS_KEY" in text
        assert (door.asked, gateway.seen) == (0, [])


@both
def test_with_a_key_nobody_talks_to_a_ledger_that_does_not_encrypt(call: Call) -> None:
    with FakeGateway() as gateway, Door() as door:
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 3, key=door.key())
        assert "does not encrypt" in denied(outcomes, "encryption", began)
        assert gateway.seen == []


@both
@pytest.mark.parametrize(
    ("status", "words"), [(REFUSED, "refuses the key 'ops'"), (FAILED, "could not check")]
)
def test_a_key_that_is_not_good_is_refused(call: Call, status: bytes, words: str) -> None:
    with encrypted_gateway(status) as (gateway, door):
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 3, key=door.key("ops"))
        assert words in denied(outcomes, "key", began)
        assert gateway.seen == []


@both
def test_a_gateway_with_another_key_than_expected_is_not_talked_to(call: Call) -> None:
    with encrypted_gateway() as (gateway, door):
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 3, key=door.key("ops", new_key_pair()))
        assert "another public key" in denied(outcomes, "encryption", began)
        assert (door.asked, gateway.seen) == (0, [])


@both
def test_a_gateway_that_cannot_check_keys_any_more_lets_nobody_in(call: Call) -> None:
    with encrypted_gateway() as (gateway, door):
        door.leave()
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 2, key=door.key())
        assert "cannot check any key" in denied(outcomes, "encryption", began)


def test_a_gateway_that_does_not_answer_about_keys_is_slow() -> None:
    with encrypted_gateway(None) as (gateway, door):
        with (
            QuickClient(gateway.endpoint, key=door.key()) as client,
            pytest.raises(Unreachable, match="never sent"),
        ):
            client.submit(Deposit(1, 5), timeout=1)
        assert door.asked > 0


def test_a_secret_is_in_no_refusal() -> None:
    for status in (REFUSED, FAILED):
        with encrypted_gateway(status) as (gateway, door):
            key = door.key()
            (error,) = blocking(gateway.endpoint, 1, key=key)
            assert key.pair.secret.decode() not in f"{error}{error!r}"


@pytest.mark.parametrize("first", [REFUSED, FAILED])
def test_the_same_client_works_once_its_key_is_granted(first: bytes) -> None:
    with (
        encrypted_gateway(first) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key()) as client,
    ):
        for _ in range(3):
            with pytest.raises(AccessDenied):
                client.submit(Deposit(1, 5))
            until_tried_again()
        door.status = LET_IN
        assert client.submit(Deposit(1, 5)) == 1
        assert client.submit(Deposit(1, 5)) == 2


def test_the_same_async_client_works_once_its_key_is_granted() -> None:
    async def main(gateway: FakeGateway, door: Door) -> None:
        async with QuickAsyncClient(gateway.endpoint, key=door.key()) as client:
            for _ in range(3):
                with pytest.raises(AccessDenied):
                    await client.submit(Deposit(1, 5))
                await asyncio.sleep(PAUSE_NS / SECOND)
            door.status = LET_IN
            assert await client.submit(Deposit(1, 5)) == 1

    with encrypted_gateway(REFUSED) as (gateway, door):
        asyncio.run(main(gateway, door))


def test_calls_in_a_loop_do_not_flood_a_gateway_that_refuses() -> None:
    with (
        encrypted_gateway(REFUSED) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key()) as client,
    ):
        end = time.monotonic() + 3 * PAUSE_NS / SECOND
        calls = 0
        while time.monotonic() < end:
            with pytest.raises(AccessDenied):
                client.submit(Deposit(1, 5))
            calls += 1
        assert calls > 100
        assert 1 < door.asked <= 5


def test_nothing_is_left_behind() -> None:
    import gc
    import warnings

    async def main(endpoint: str, key: ClientKey) -> None:
        async with AsyncClient(endpoint, key=key) as client:
            with pytest.raises(AccessDenied):
                await client.submit(Deposit(1, 5))

    before = threading.active_count()
    with warnings.catch_warnings(), encrypted_gateway(REFUSED) as (gateway, door):
        warnings.simplefilter("error")
        for _ in range(5):
            with (
                Client(gateway.endpoint, key=door.key()) as client,
                pytest.raises(AccessDenied),
            ):
                client.submit(Deposit(1, 5))
            asyncio.run(main(gateway.endpoint, door.key()))
        # While a look is under way.
        with (
            Client(gateway.endpoint, key=door.key("x", new_key_pair())) as client,
            pytest.raises(Unreachable),
        ):
            client.submit(Deposit(1, 5), timeout=0.6)
        gc.collect()
    assert threading.active_count() == before


def test_many_clients_may_share_a_context() -> None:
    with encrypted_gateway() as (gateway, door), zmq.Context() as context:
        clients = [
            QuickClient(gateway.endpoint, key=door.key(), context=context) for _ in range(50)
        ]
        assert [client.submit(Deposit(1, 1)) for client in clients] == list(range(1, 51))
        for client in clients:
            client.close()


def test_a_terminated_context_ends_a_client_that_looks() -> None:
    with encrypted_gateway() as (gateway, door), ThreadPoolExecutor(2) as pool:
        context: zmq.Context[Any] = zmq.Context()
        key = door.key("x", new_key_pair())
        client = QuickClient(gateway.endpoint, key=key, context=context, timeout=60)
        call = pool.submit(client.submit, Deposit(1, 5))
        terminating = pool.submit(context.term)
        assert call.exception(PATIENCE_S) is not None
        client.close()
        terminating.result(PATIENCE_S)


def test_whoever_only_asks_whether_it_is_done_is_told() -> None:
    with (
        encrypted_gateway(REFUSED) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key(), timeout=60) as client,
    ):
        pending = client.begin_batch([Deposit(1, 5)])
        # Without anybody who polls: asking alone has to find it out.
        end = time.monotonic() + PATIENCE_S
        while not pending.done():
            assert time.monotonic() < end
            time.sleep(0.001)
        with pytest.raises(AccessDenied):
            pending.result()
        with pytest.raises(AccessDenied):
            client.begin_batch([Deposit(1, 5)]).result()


def test_a_wait_level_is_no_reason_to_wait() -> None:
    with (
        encrypted_gateway(REFUSED) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key()) as client,
        pytest.raises(AccessDenied),
    ):
        client.wait_for(1, WaitLevel.SNAPSHOT, timeout=60)
