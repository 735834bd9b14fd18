"""Waiting for a server of ours to listen."""

import time
from typing import Protocol


class Listening(Protocol):
    @property
    def port(self) -> int:
        """The port it listens on, 0 until it does."""


def listens(server: Listening, seconds: float) -> bool:
    """Whether it listens; waits so many seconds for that."""
    until = time.monotonic() + seconds
    while not server.port:
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True
