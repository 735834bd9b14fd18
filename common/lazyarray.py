"""Large arrays that take memory only where they are written. Touches nothing but memory."""

from __future__ import annotations

import mmap
import sys
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item", bound=np.generic)

# Python names this flag from 3.13 on. Without it, a limit far above the machine's memory is refused
# at once, although nothing is used yet.
_NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0


def lazy_zeros(count: int, dtype: type[Item]) -> NDArray[Item]:
    """An array of `count` zeros, aligned to a page; a page of it takes memory once it is written.

    Unlike `numpy.zeros` it neither asks for huge pages, which would make one used account cost as
    much as 262,144, nor reserves memory for what may never be used.
    """
    size = count * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(0, dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype)
