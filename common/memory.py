"""Large arrays that take memory only where they are written. Touches nothing but memory.

For each array it is decided whether its pages have 4 KiB or 2 MiB. Huge pages are faster to reach
into at random, so they suit tables that are full, or will be. They do not suit an array of which
few items are used: each of these would take 2 MiB. There they are refused, also on systems that
give them unasked. ADR 0022 says which arrays are which.
"""

from __future__ import annotations

import mmap
import resource
import sys
from contextlib import suppress
from typing import ClassVar, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tallybus.common.errors import EXIT_SETTINGS, ServiceError

Item = TypeVar("Item", bound=np.generic)

CHUNK_ACCOUNTS: Final = 4096
"""Accounts per chunk of balances: chunk c holds the accounts c * 4096 .. c * 4096 + 4095. Whether a
chunk was ever used is noted, and snapshots keep those that were."""
DENSE_BYTES: Final = 128 << 20
"""An array of up to this is worth huge pages, even if it is never full."""

# Python names this flag from 3.13 on. Without it, a limit far above the machine's memory is refused
# at once, although nothing is used yet.
_NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0
_HUGE: Final = getattr(mmap, "MADV_HUGEPAGE", None)
_NOT_HUGE: Final = getattr(mmap, "MADV_NOHUGEPAGE", None)


class NoRoom(ServiceError):
    """The system does not even give the addresses that a setting asks for.

    Fields: `setting` is its name, `needed` how many bytes of addresses it takes.
    """

    exit_code: ClassVar[int] = EXIT_SETTINGS
    restart: ClassVar[bool] = False

    def __init__(self, setting: str, needed: int) -> None:
        super().__init__(
            f"{setting} is too large here: it needs {needed / 1e9:.1f} GB of address space, and "
            f"the system does not give that much ({_limits()}). Lower {setting}, or raise that "
            "limit. (Address space is no memory: memory is taken only by what is in use)"
        )
        self.setting = setting
        self.needed = needed


def lazy_zeros(
    count: int, dtype: type[Item], setting: str = "an array", *, huge: bool = False
) -> NDArray[Item]:
    """An array of `count` zeros, aligned to a page; a page of it takes memory once it is written.

    `setting` is what its size follows from, if anything. With `huge` its pages are huge ones where
    the system has such, without it never. Unlike `numpy.zeros` it reserves no memory for what may
    never be used. Raises NoRoom.
    """
    size = count * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(0, dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    try:
        memory = mmap.mmap(-1, size, flags=flags)
    except (OSError, OverflowError, MemoryError) as error:
        raise NoRoom(setting, size) from error
    advice = _HUGE if huge else _NOT_HUGE
    if advice is not None:
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(advice)
    return np.frombuffer(memory, dtype)


def account_array(max_accounts: int, *, fast: bool = False) -> NDArray[np.int64]:
    """A balance for each account that there may be. `fast`: for an owner that moves them all the
    time."""
    huge = fast and max_accounts * 8 <= DENSE_BYTES
    return lazy_zeros(max_accounts, np.int64, "ledger.max_accounts", huge=huge)


def _limits() -> str:
    """What stands in the way, as far as it can be known."""
    told = []
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        told.append(f"the process may have {soft / 1e9:.1f} GB, ulimit -v")
    facts = {}
    try:
        with open("/proc/meminfo", "rb") as file:
            for line in file:
                name, _, value = line.partition(b":")
                facts[name] = int(value.split()[0]) * 1024
        with open("/proc/sys/vm/overcommit_memory", "rb") as file:
            strict = file.read().strip() == b"2"
    except (OSError, ValueError, IndexError):
        return ", ".join(told) or "it does not say why"
    if b"MemTotal" in facts:
        told.append(f"the machine has {facts[b'MemTotal'] / 1e9:.1f} GB of memory")
    if strict and b"CommitLimit" in facts:
        told.append(f"all may commit {facts[b'CommitLimit'] / 1e9:.1f} GB, vm.overcommit_memory=2")
    return ", ".join(told) or "it does not say why"
