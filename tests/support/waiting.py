"""Waits for conditions instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 60.0
"""How long anything may take on a busy machine before a test calls it a failure."""


def eventually(
    condition: Callable[[], object], what: str = "", seconds: float = PATIENCE_S
) -> None:
    """Return once `condition()` is true; fail with `what` when that takes too long."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds:g} s: {what or condition}"
        time.sleep(0.005)
