"""The one place where commands get their clients from, so that tests can give them others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tallybus.client import Client

SOCKETS_OF_A_CLIENT: Final = 4
SPARE_SOCKETS: Final = 16


def open_client(endpoint: str, timeout_s: float, key: str | None = None) -> Client:
    """A client of the ledger at `endpoint`; its calls take `timeout_s` seconds at most.

    `key` is the path of a client's key file. Raises InvalidRequest.
    """
    from tallybus.client import Client

    return Client(endpoint, key=key, timeout=timeout_s)


@contextmanager
def open_clients(
    endpoint: str, timeout_s: float, count: int, key: str | None = None
) -> Iterator[list[Client]]:
    """`count` clients with a connection each, closed at the end.

    They share one I/O thread: a thread for each would measure the machine's scheduler.
    """
    from tallybus.client import Client
    from tallybus.common.bus.sockets import new_context

    context = new_context()
    context.max_sockets = SOCKETS_OF_A_CLIENT * count + SPARE_SOCKETS
    try:
        with ExitStack() as stack:
            yield [
                stack.enter_context(Client(endpoint, key=key, timeout=timeout_s, context=context))
                for _ in range(count)
            ]
    finally:
        context.term()
