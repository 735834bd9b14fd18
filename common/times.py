"""Times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_text(timestamp_ns: int) -> str:
    """Unix time in nanoseconds as UTC, to the nanosecond, which a datetime cannot hold."""
    seconds, nanoseconds = divmod(timestamp_ns, 1_000_000_000)
    try:
        shown = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{timestamp_ns} ns since 1970"
    return f"{shown:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z"
