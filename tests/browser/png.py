"""PNG files of few colours: a screenshot of a page fits in 256, at a third of its size.

Pure: pixels in, bytes out.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_COLORS: Final = 256


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG with a palette of `pixels`, (height, width, 3). Of more than 256 colours those that
    are most frequent stay, and each other becomes the one of these that is nearest to it."""
    height, width, _ = pixels.shape
    shades = pixels.reshape(-1, 3).astype(np.uint32)
    packed = shades[:, 0] << 16 | shades[:, 1] << 8 | shades[:, 2]
    colors, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[:MAX_COLORS])
    palette = _channels(colors[kept])
    distance = ((_channels(colors)[:, None, :] - palette[None, :, :]) ** 2).sum(axis=2)
    indexes = distance.argmin(axis=1).astype(np.uint8)[where].reshape(height, width)
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = indexes
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", head),
            _chunk(b"PLTE", palette.astype(np.uint8).tobytes()),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def _channels(packed: NDArray[Any]) -> NDArray[np.int32]:
    return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=1).astype(np.int32)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
