"""The disk of a simulated run: the product's own log on files in memory.

The log is written, verified, cut and read by the product's code (`services/wal`,
`common/wal/reader.py`) on a `MemoryStorage` that knows what was synced. A process may die at each
call that changes a file, in the middle of a write too; a power cut tears and reorders everything
that was not synced.

Beside the files stands what was handed to the log, block by block: the truth that every recovery
and every reader is held against. Snapshots are kept as objects; their files have tests of their
own.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from crc32c import crc32c

from tallybus.common.batch import Batch
from tallybus.common.files import FileMissing
from tallybus.common.functions.binaries import BinaryDamaged, binary_path
from tallybus.common.snapshot.balances import FrozenBalances
from tallybus.common.wal import scan  # noqa: F401 - once it is loaded, the log is read with it
from tallybus.common.wal.reader import LOCK_NAME, read_log
from tallybus.services.wal.log import Log
from tests.simulation.world import check
from tests.support.faulty_storage import MemoryStorage, SimulatedCrash

FOLDER = Path("/ledger")
CLUSTER = 99


def same(one: Batch, other: Batch) -> bool:
    """Whether two blocks of the log hold the same."""
    return (one.term, one.first_id, one.gateway, one.request, one.timestamp_ns) == (
        other.term,
        other.first_id,
        other.gateway,
        other.request,
        other.timestamp_ns,
    ) and all(
        mine.tobytes() == its.tobytes() for mine, its in zip(one.parts, other.parts, strict=True)
    )


class Drive(MemoryStorage):
    """Files in memory. With `calls_left` set, the process that changes them dies at that call."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.calls_left: int | None = None
        self._rng = rng

    def end_process(self) -> None:
        """The log stage is gone: what it had open is closed and unlocked, what it wrote stays."""
        self._descriptors.clear()
        self._locks.clear()
        self.calls_left = None

    def lose_power(self) -> None:
        """Of what was not synced any part is left, torn and out of order."""
        for path, inode in self.names.items():
            if path.name == LOCK_NAME:
                inode.pending.clear()  # a process id, which no run may depend on
        left = self.after_crash("some", self._rng)
        self.names, self.durable_names = left.names, left.durable_names
        self.pending_names = []

    def _dies(self) -> bool:
        if self.calls_left is None:
            return False
        self.calls_left -= 1
        return self.calls_left < 0

    def _sys_write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self._dies():
            data = b"".join(buffers)
            part = data[: self._rng.choice((0, len(data), self._rng.randint(0, len(data))))]
            if part:
                super()._sys_write(descriptor, [memoryview(part)], offset)
            raise SimulatedCrash("in a write")
        return super()._sys_write(descriptor, buffers, offset)

    def _before(self, call: Callable[[], None], name: str) -> None:
        if self._dies():
            raise SimulatedCrash(f"before {name}")
        call()

    def _sys_fdatasync(self, descriptor: int) -> None:
        self._before(partial(super()._sys_fdatasync, descriptor), "fdatasync")

    def _sys_fsync(self, descriptor: int) -> None:
        self._before(partial(super()._sys_fsync, descriptor), "fsync")

    def _sys_fsync_folder(self, descriptor: int) -> None:
        self._before(partial(super()._sys_fsync_folder, descriptor), "fsync of the folder")

    def _sys_truncate(self, descriptor: int, size: int) -> None:
        self._before(partial(super()._sys_truncate, descriptor, size), "truncate")

    def _sys_rename(self, source: Path, target: Path) -> None:
        self._before(partial(super()._sys_rename, source, target), "rename")

    def _sys_remove(self, path: Path) -> None:
        self._before(partial(super()._sys_remove, path), "remove")


class WitnessedLog(Log):
    """The product's log; `disk` is told what was handed to it and what it confirmed."""

    disk: Disk

    def append(self, batch: Batch, durable_index: int) -> None:
        super().append(batch, durable_index)
        self.disk.appended(batch)

    def sync(self) -> None:
        super().sync()
        self.disk.synced = len(self.disk.blocks)


class Disk:
    """Files of the log, its blocks as they were handed over (`synced` of them for good) and
    snapshots, by the last transaction that each one has."""

    def __init__(self, segment_size: int, rng: random.Random) -> None:
        self.segment_size = segment_size
        self.drive = Drive(rng)
        self.blocks: list[Batch] = []
        self.synced = 0
        self.lost = 0
        """Blocks that recoveries no longer found; none of them was synced."""
        self.torn = 0
        """Recoveries that cut off a torn tail."""
        self.snapshots: dict[int, FrozenBalances] = {}

    @property
    def next_id(self) -> int:
        return self.blocks[-1].last_id + 1 if self.blocks else 1

    @property
    def durable(self) -> int:
        return self.blocks[self.synced - 1].last_id if self.synced else 0

    @property
    def dirty(self) -> bool:
        """Whether a power cut could take a block."""
        return self.synced < len(self.blocks)

    def open_log(self) -> WitnessedLog:
        """Recover as a starting log stage does, and hold the outcome against what was written.

        Raises SimulatedCrash, or what `Log.open` raises.
        """
        log = WitnessedLog.open(FOLDER, self.drive, self.segment_size, CLUSTER)
        assert isinstance(log, WitnessedLog)
        log.disk = self
        found = list(self.read_log(1, log.next_id - 1, kernel=False))
        check(
            len(found) >= self.synced,
            f"{self.synced} blocks up to {self.durable} were durable, {len(found)} are left",
        )
        for was, now in zip(self.blocks, found, strict=False):
            check(same(was, now), f"the block of {was.first_id} came back as another: {now}")
        self.lost += max(0, len(self.blocks) - len(found))
        self.torn += log.torn is not None
        self.blocks, self.synced = found, len(found)
        return log

    def appended(self, batch: Batch) -> None:
        """A batch was handed over: one block, or several where it passes the end of a segment."""
        batch.check()
        # Not by `split_at_segments`, which the log cuts with.
        rest = batch
        while rest.count:
            room = self.segment_size - (rest.first_id - 1) % self.segment_size
            head, rest = rest.split(min(room, rest.count))
            self.blocks.append(head)

    def lose_power(self) -> None:
        """Any part of what was not synced is gone; the next `open_log` finds what is left."""
        self.drive.end_process()
        self.drive.lose_power()

    def read_binary(self, folder: Path, name: str, version: int, crc: int) -> bytes:
        """As `common/functions/binaries.py` does it: a function's binary, or BinaryDamaged."""
        path = binary_path(folder, name, version)
        try:
            binary = bytes(self.drive.map_read(path))
        except FileMissing as error:
            raise BinaryDamaged(path, name, version, "is missing") from error
        if crc32c(binary) != crc:
            raise BinaryDamaged(path, name, version, "is another one")
        return binary

    def read(self, first: int, last: int) -> Iterator[Batch]:
        """What was handed over of this range, clipped to it."""
        start = bisect_left(self.blocks, first, key=lambda block: block.last_id)
        for place in range(start, len(self.blocks)):
            block = self.blocks[place]
            if block.first_id > last:
                return
            yield block.clip(first, last)

    def read_log(self, first: int, last: int, *, kernel: bool | None = None) -> Iterator[Batch]:
        """The transactions of this range, as the product reads them from the files; without
        `kernel` a batch per block."""
        return read_log(
            FOLDER,
            first,
            last,
            self.segment_size,
            cluster_id=CLUSTER,
            storage=self.drive,
            kernel=kernel,
        )
