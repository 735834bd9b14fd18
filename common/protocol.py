"""What clients and gateways agree on beside the layouts in `record`, for both ends.

`docs/protocol.md` is its text. The messages between services share the version and the bound of
headers.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

PROTOCOL_VERSION: Final = 1
REVISION: Final = 1
"""Counts what was added to version 1 of the protocol: the keys of requests that came later, each
with the revision that has it. A ping tells a gateway's, and a client sends no key beyond it."""

MAX_HEADER_BYTES: Final = 1 << 20
MAX_PENDING: Final = 10_000
"""Requests that one ping asks for."""

IN_FLIGHT: Final = "in_flight"
RATE: Final = "rate"
MESSAGE_BYTES: Final = "message_bytes"
WORK_MS: Final = "work_ms"
LIMIT_NAMES: Final = (IN_FLIGHT, RATE, MESSAGE_BYTES, WORK_MS)
"""What a client's share is limited by, as pings and refusals call it."""


class ErrorCode(StrEnum):
    """Codes of error replies."""

    INVALID_REQUEST = "invalid_request"
    UNSUPPORTED_VERSION = "unsupported_version"
    FORBIDDEN = "forbidden"
    OVERLOADED = "overloaded"
    TIMEOUT = "timeout"
    LOST = "lost"
    OUTCOME_UNKNOWN = "outcome_unknown"
    UNAVAILABLE = "unavailable"
    INVALID_FUNCTION = "invalid_function"
    INTERNAL = "internal"
