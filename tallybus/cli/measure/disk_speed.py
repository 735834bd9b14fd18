"""What the disk under a folder can do, measured with the calls that the log itself makes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tallybus.cli.measure.statistics import percentile
from tallybus.common.files import OpenFile, Storage

CHUNK_BYTES: Final = 4 << 20
CHUNKS_PER_SYNC: Final = 8
SEQUENTIAL_BYTES: Final = 256 << 20
SEQUENTIAL_SECONDS: Final = 2.0
SYNC_BYTES: Final = 4_096
SYNCS: Final = 200
SYNC_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """`bytes_written` in `seconds`, with an fdatasync every 32 MiB.

    `sync_ns` has the nanoseconds of single appends of 4 KiB with their fdatasync.
    """

    bytes_written: int
    seconds: float
    sync_ns: tuple[int, ...]

    @property
    def mb_per_s(self) -> float:
        """Sequential write with fdatasync, in 10^6 bytes per second."""
        return self.bytes_written / self.seconds / 1e6

    @property
    def fdatasync_p50_ms(self) -> float:
        """Median of appending 4 KiB and syncing them, in milliseconds."""
        return percentile(self.sync_ns, 50) / 1e6

    def __add__(self, other: DiskLimits) -> DiskLimits:
        """Both measurements taken together."""
        return DiskLimits(
            self.bytes_written + other.bytes_written,
            self.seconds + other.seconds,
            self.sync_ns + other.sync_ns,
        )


def measure_disk(folder: Path, *, sequential_bytes: int = SEQUENTIAL_BYTES) -> DiskLimits:
    """Measure with a new file in `folder`, which is removed again. Takes up to about 3 seconds.

    Raises StorageError.
    """
    storage = Storage()
    file = storage.create(folder / f"tallybus-disk-{os.getpid()}-{time.time_ns()}.tmp")
    try:
        written, seconds = _sequential(storage, file, sequential_bytes)
        return DiskLimits(written, seconds, _syncs(storage, file, written))
    finally:
        storage.close(file)
        storage.remove(file.path)


def _sequential(storage: Storage, file: OpenFile, wanted: int) -> tuple[int, float]:
    # Random bytes: some disks and file systems store zeros, or repeats, for nothing.
    chunk = os.urandom(CHUNK_BYTES)
    offset = 0
    started = time.perf_counter()
    while True:
        for _ in range(CHUNKS_PER_SYNC):
            offset += storage.write_all(file, [chunk], offset)
        storage.fdatasync(file)
        seconds = time.perf_counter() - started
        if offset >= wanted or seconds > SEQUENTIAL_SECONDS:
            return offset, seconds


def _syncs(storage: Storage, file: OpenFile, offset: int) -> tuple[int, ...]:
    page = os.urandom(SYNC_BYTES)
    times: list[int] = []
    deadline = time.perf_counter() + SYNC_SECONDS
    while len(times) < SYNCS and (not times or time.perf_counter() < deadline):
        started = time.perf_counter_ns()
        offset += storage.write_all(file, [page], offset)
        storage.fdatasync(file)
        times.append(time.perf_counter_ns() - started)
    return tuple(times)
