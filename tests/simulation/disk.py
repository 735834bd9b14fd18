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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crc32c import crc32c
from numpy.typing import NDArray

from tallybus.common.files import FileMissing
from tallybus.common.functions.binaries import BinaryDamaged, binary_path
from tallybus.common.snapshot.balances import FrozenBalances
from tallybus.common.wal import scan  # noqa: F401 - once it is loaded, the log is read with it
from tallybus.common.wal.batch import Payload, make_payload
from tallybus.common.wal.reader import LOCK_NAME, LogRun, read_log
from tallybus.services.wal.log import Log, LogBatch
from tests.simulation.world import check
from tests.support.faulty_storage import MemoryStorage, SimulatedCrash

FOLDER = Path("/ledger")
CLUSTER = 99


@dataclass(slots=True)
class Block:
    """A block of the log that holds transactions."""

    term: int
    first: int
    gateway: int
    request: int
    timestamp: int
    payload: Payload

    @property
    def records(self) -> NDArray[Any]:
        return self.payload.records

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1

    def same(self, other: Block) -> bool:
        return (self.term, self.first, self.gateway, self.request, self.timestamp) == (
            other.term,
            other.first,
            other.gateway,
            other.request,
            other.timestamp,
        ) and all(
            mine.tobytes() == its.tobytes()
            for mine, its in zip(self.payload, other.payload, strict=True)
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

    def append(self, batch: LogBatch, durable_index: int) -> None:
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
        self.blocks: list[Block] = []
        self.synced = 0
        self.lost = 0
        """Blocks that recoveries no longer found; none of them was synced."""
        self.torn = 0
        """Recoveries that cut off a torn tail."""
        self.snapshots: dict[int, FrozenBalances] = {}

    @property
    def next_id(self) -> int:
        return self.blocks[-1].last + 1 if self.blocks else 1

    @property
    def durable(self) -> int:
        return self.blocks[self.synced - 1].last if self.synced else 0

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
        found = [
            Block(
                run.header.term,
                run.first_id,
                run.header.gateway,
                run.header.request,
                run.header.timestamp_ns,
                Payload(run.records, run.links, run.params, run.entries),
            )
            for run in self.read_log(1, log.next_id - 1, merge_small=False)
        ]
        check(
            len(found) >= self.synced,
            f"{self.synced} blocks up to {self.durable} were durable, {len(found)} are left",
        )
        for was, now in zip(self.blocks, found, strict=False):
            check(was.same(now), f"the block of {was.first} came back as another: {now}")
        self.lost += max(0, len(self.blocks) - len(found))
        self.torn += log.torn is not None
        self.blocks, self.synced = found, len(found)
        return log

    def appended(self, batch: LogBatch) -> None:
        """A batch was handed over: one block, or several where it passes the end of a segment."""
        payload = make_payload(batch.records, batch.links, batch.params, batch.entries)
        first = batch.first_id
        while len(payload.records):
            room = self.segment_size - (first - 1) % self.segment_size
            head, payload = payload.split(min(room, len(payload.records)))
            self.blocks.append(
                Block(batch.term, first, batch.gateway, batch.request, batch.timestamp_ns, head)
            )
            first += len(head.records)

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

    def read(self, first: int, last: int) -> Iterator[Block]:
        """What was handed over of this range, clipped to it."""
        for place in range(bisect_left(self.blocks, first, key=lambda b: b.last), len(self.blocks)):
            block = self.blocks[place]
            if block.first > last:
                return
            low, high = max(first - block.first, 0), min(last, block.last) - block.first + 1
            yield Block(
                block.term,
                block.first + low,
                block.gateway,
                block.request,
                block.timestamp,
                block.payload.slice(low, high),
            )

    def read_log(self, first: int, last: int, *, merge_small: bool = True) -> Iterator[LogRun]:
        """The transactions of this range, as the product reads them from the files."""
        return read_log(
            FOLDER,
            first,
            last,
            self.segment_size,
            cluster_id=CLUSTER,
            storage=self.drive,
            merge_small=merge_small,
        )
