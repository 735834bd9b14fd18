"""Times as people read them, and a clock that only advances."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from typing import Final

_STEADY: Final = getattr(
    time, "CLOCK_BOOTTIME" if sys.platform == "linux" else "CLOCK_MONOTONIC", None
)

NEVER_NS: Final = 2**63 - 1
"""Later than any moment of a monotonic clock: when something is due that is not wanted."""


def steady_ns() -> int:
    """Nanoseconds since some moment, that neither jump nor go back, and go on while the machine is
    suspended, where it has such a clock (Linux: `CLOCK_BOOTTIME`)."""
    return time.monotonic_ns() if _STEADY is None else time.clock_gettime_ns(_STEADY)


def utc_text(timestamp_ns: int) -> str:
    """Unix time in nanoseconds as UTC, to the nanosecond, which a datetime cannot hold."""
    seconds, nanoseconds = divmod(timestamp_ns, 1_000_000_000)
    try:
        shown = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{timestamp_ns} ns since 1970"
    return f"{shown:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
