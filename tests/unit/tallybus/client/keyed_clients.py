"""Clients with keys that notice losses soon, blocking and on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tallybus import AsyncClient, Client, Deposit
from tallybus.client.access import PAUSE_NS
from tallybus.client.core import MILLISECOND, SECOND, CoreSettings

PATIENCE_S = 20.0
"""Long enough for a refusal on a busy machine, and short of a call's own 60 seconds."""


class QuickClient(Client):
    """Notices losses sooner, so that tests are short."""

    _settings = CoreSettings(ping_after=25 * MILLISECOND)


class QuickAsyncClient(AsyncClient):
    """The same."""

    _settings = CoreSettings(ping_after=25 * MILLISECOND)


Call = Callable[..., list[object]]


def blocking(endpoint: str, count: int, **options: Any) -> list[object]:
    """What as many calls of one client end with, result or error, made by threads at once."""
    with QuickClient(endpoint, timeout=60, **options) as client, ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(client.submit, Deposit(n + 1, 5, n + 1)) for n in range(count)]
        return [call.exception() or call.result() for call in calls]


def on_a_loop(endpoint: str, count: int, **options: Any) -> list[object]:
    """The same by tasks of one event loop."""

    async def main() -> list[object]:
        async with QuickAsyncClient(endpoint, timeout=60, **options) as client:
            calls = (client.submit(Deposit(n + 1, 5, n + 1)) for n in range(count))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(main())


def until_tried_again() -> None:
    """Waits until a client that was refused just now makes another attempt."""
    time.sleep(PAUSE_NS / SECOND)
