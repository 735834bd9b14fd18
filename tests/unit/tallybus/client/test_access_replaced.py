"""Clients with keys whose gateway is replaced while they wait: who is told, and what goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tallybus import (
    AccessDenied,
    AsyncClient,
    Client,
    Deposit,
    OutcomeUnknown,
    Timeout,
    Unreachable,
)
from tallybus.client.core import SECOND, Core, CoreSettings
from tallybus.client.wire import Wire
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.keys import ClientKey
from tests.support.fake_door import LET_IN, REFUSED, Door, encrypted_gateway
from tests.support.fake_gateway import FakeGateway, FakeLedger, always
from tests.unit.tallybus.client.keyed_clients import (
    PATIENCE_S,
    QuickAsyncClient,
    QuickClient,
    until_tried_again,
)


class Replaced:
    """A gateway that holds what it is sent, until `replace` puts another one in its place."""

    def __init__(self, keyed: bool = True) -> None:
        self._stack = ExitStack()
        self._ledger = FakeLedger()
        self._pair = new_key_pair()
        self.key = ClientKey("ops", new_key_pair(), self._pair.public)
        self.gateway = self._start(keyed, LET_IN, script=always("hold"))

    def __enter__(self) -> Replaced:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def replace(self, status: bytes = LET_IN) -> Door:
        """Another one with the same keys; gives its door."""
        self._stack.close()
        self._start(True, status, endpoint=self.gateway.endpoint, incarnation=2)
        return self._door

    def _start(self, keyed: bool, status: bytes, **options: Any) -> FakeGateway:
        if not keyed:
            return self._stack.enter_context(FakeGateway(self._ledger, **options))
        behind = encrypted_gateway(status, self._pair, ledger=self._ledger, **options)
        gateway, self._door = self._stack.enter_context(behind)
        return gateway


def test_a_key_that_is_good_no_more_at_a_reconnect_ends_what_waits() -> None:
    with (
        Replaced() as old,
        QuickClient(old.gateway.endpoint, key=old.key, timeout=60) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        read = pool.submit(client.pipeline_index)
        old.gateway.wait_seen(1)
        safe = pool.submit(client.submit, Deposit(1, 5, 77))
        old.gateway.wait_seen(2)
        unsafe = pool.submit(client.submit, Deposit(1, 5))
        old.gateway.wait_seen(3)
        door = old.replace(REFUSED)
        with pytest.raises(AccessDenied):
            read.result(PATIENCE_S)
        for call, retry_safe in ((safe, True), (unsafe, False)):
            error = call.exception(PATIENCE_S)
            assert isinstance(error, OutcomeUnknown)
            assert error.retry_safe == retry_safe
            assert isinstance(error.__cause__, AccessDenied)
        door.status = LET_IN
        until_tried_again()
        assert client.pipeline_index().term == 1


def test_a_ledger_that_asks_for_keys_from_now_on_ends_what_waits() -> None:
    async def main(old: Replaced) -> None:
        async with QuickAsyncClient(old.gateway.endpoint, timeout=60) as client:
            waiting = asyncio.create_task(client.wait_for(1))
            await asyncio.to_thread(old.gateway.wait_seen, 1)
            await asyncio.to_thread(old.replace)
            with pytest.raises(AccessDenied) as caught:
                await asyncio.wait_for(waiting, PATIENCE_S)
            assert caught.value.reason == "encryption"

    with Replaced(keyed=False) as old:
        asyncio.run(main(old))


def test_a_gateway_with_the_same_key_may_be_started_anew_under_requests() -> None:
    with (
        Replaced() as old,
        QuickClient(old.gateway.endpoint, key=old.key, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        safe = pool.submit(client.submit_and_wait, Deposit(1, 5, 77))
        old.gateway.wait_seen(1)
        old.replace()
        assert safe.result(PATIENCE_S).ok
        assert client.get_balance(1).balance == 5


class WaitingClient(Client):
    """Asks the gateway for nothing that was sent."""

    _settings = CoreSettings(ping_after=1_000 * SECOND)


class WaitingAsyncClient(AsyncClient):
    """The same."""

    _settings = CoreSettings(ping_after=1_000 * SECOND)


def test_who_only_waits_is_told_at_once() -> None:
    """There is nothing to send, so that nothing but the refusal can wake the client."""
    with (
        Replaced() as old,
        WaitingClient(old.gateway.endpoint, key=old.key, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        read = pool.submit(client.pipeline_index)
        old.gateway.wait_seen(1)
        old.replace(REFUSED)
        assert isinstance(read.exception(PATIENCE_S), AccessDenied)


def test_which_task_only_waits_is_told_at_once() -> None:
    async def main(old: Replaced) -> None:
        async with WaitingAsyncClient(old.gateway.endpoint, key=old.key, timeout=60) as client:
            read = asyncio.create_task(client.pipeline_index())
            await asyncio.to_thread(old.gateway.wait_seen, 1)
            await asyncio.to_thread(old.replace, REFUSED)
            with pytest.raises(AccessDenied):
                await asyncio.wait_for(read, PATIENCE_S)

    with Replaced() as old:
        asyncio.run(main(old))


def pumps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each time that a client does something."""
    counted: list[int] = []
    pump = Wire.pump

    def counting(wire: Wire, core: Core, now: int, told: bool = False) -> None:
        counted.append(now)
        pump(wire, core, now, told)

    monkeypatch.setattr(Wire, "pump", counting)
    return counted


@pytest.mark.parametrize("kind", [WaitingClient, WaitingAsyncClient])
def test_who_waits_does_nothing(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = pumps(monkeypatch)

    async def main(endpoint: str, key: ClientKey) -> None:
        async with WaitingAsyncClient(endpoint, key=key) as client:
            with pytest.raises(Timeout):
                await client.wait_for(1, timeout=0.5)

    with encrypted_gateway(script=always("hold")) as (gateway, door):
        if kind is WaitingAsyncClient:
            asyncio.run(main(gateway.endpoint, door.key()))
        else:
            with kind(gateway.endpoint, key=door.key()) as client, pytest.raises(Timeout):
                client.wait_for(1, timeout=0.5)
    assert len(counted) < 20


@pytest.mark.parametrize("keyed", [True, False])
def test_who_waits_for_a_gateway_that_is_not_there_does_little(
    keyed: bool, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    counted = pumps(monkeypatch)
    with Door() as door:
        key = door.key() if keyed else None
        with (
            QuickClient(f"tcp://127.0.0.1:{free_port()}", key=key) as client,
            pytest.raises(Unreachable),
        ):
            client.submit(Deposit(1, 5), timeout=1.5)
    assert len(counted) < 300
