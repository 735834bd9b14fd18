"""Bytes that are passed on without being looked at: frames of messages, payloads of blocks."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np

Buffer: TypeAlias = bytes | memoryview
"""Contiguous bytes, never written again once they are part of a message."""

EMPTY: Final = b""


def size(buffer: Buffer) -> int:
    """Length of a buffer in bytes, whatever its item size."""
    return len(buffer) if isinstance(buffer, bytes) else buffer.nbytes


def as_buffer(array: np.ndarray[Any, Any]) -> memoryview:
    """A contiguous array's bytes as a payload frame, without a copy. The array must not change."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(EMPTY)
