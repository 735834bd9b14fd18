"""The one place where commands get their clients from, so that tests can give them others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallybus.client import Client


def open_client(endpoint: str, timeout_s: float) -> Client:
    """A client of the ledger at `endpoint`; its calls take `timeout_s` seconds at most."""
    from tallybus.client import Client

    return Client(endpoint, timeout=timeout_s)


@contextmanager
def open_clients(endpoint: str, timeout_s: float, count: int) -> Iterator[list[Client]]:
    """`count` clients with a connection each, closed at the end.

    They share one I/O thread: a thread for each would measure the machine's scheduler.
    """
    from tallybus.client import Client
    from tallybus.common.bus import new_context

    context = new_context()
    try:
        with ExitStack() as stack:
            yield [
                stack.enter_context(Client(endpoint, timeout=timeout_s, context=context))
                for _ in range(count)
            ]
    finally:
        context.term()
