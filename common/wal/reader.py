"""Reading the write-ahead log: verified blocks as zero-copy views, in the order of their ids.

Shared by the log stage (recovery), the transactor and the snapshotter (replay) and the offline
tools. Nothing is handed out before its header, its place in the chain and its payload have been
checked. The files are only read; other processes may append and rotate at the same time.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tallybus.common.batch import Batch, InvalidBatch, segment_of
from tallybus.common.errors import EXIT_DAMAGED, ServiceError
from tallybus.common.files import FileMissing, Storage
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, RECORD_WORDS
from tallybus.common.wal.block import (
    ALIGNMENT,
    MAX_ID,
    BlockHeader,
    Chain,
    InvalidBlock,
    batch_in,
    parse_header,
    verify_payload,
)

if TYPE_CHECKING:
    from types import ModuleType

ACTIVE_NAME: Final = "wal.bin"
FRESH_NAME: Final = "wal.new"
LOCK_NAME: Final = "wal.lock"
_CLOSED_NAME: Final = re.compile(r"wal_(\d{6,})\.bin")

SMALL_BLOCKS_BEFORE_KERNEL: Final = 200
"""Small blocks read one by one before the compiled kernel is worth loading (some 20 ms)."""
MAX_SMALL_PAYLOAD: Final = 8192
"""Bytes. A larger block is left to the plain code, whose checksum has the CPU's own instruction."""
MAX_RUN_RECORDS: Final = 65_536
MAX_RUN_WORDS: Final = 4 * MAX_RUN_RECORDS
"""Bounds of one gathered run: records, and words each of params and of entries."""
MAX_LEAP_BYTES: Final = 64 * 1024 * 1024
"""What the kernel reads in one go between two calls of `progress`."""

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes total) now and then, and once at the end."""


class LogRefused(ServiceError):
    """The log cannot be used as it is. `path`, `offset` (bytes) and `reason` name the place."""

    exit_code = EXIT_DAMAGED
    restart = False
    advice = "Nothing was changed."

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(f"{path}, offset {offset}: {reason}. {self.advice}")
        self.path = path
        self.offset = offset
        self.reason = reason


class DamagedLog(LogRefused):
    """Something that had been durable is unreadable, missing or in the wrong place."""

    advice = (
        "The log is damaged below its durable index; nothing was changed. "
        "Restore the file from a copy, check the disk, and start again"
    )


class ForeignLog(LogRefused):
    """A readable file of another ledger, another format version or another segment size."""

    advice = "Nothing was changed. Check the data folder and the settings"


class LogEndsEarly(LogRefused):
    """Ids were asked for that the files do not hold."""

    exit_code = 1
    restart = True
    advice = "Ask only for ids that the log stage has announced"


def closed_path(folder: Path, segment: int) -> Path:
    """Path of a closed segment; segments count from 1."""
    return folder / f"wal_{segment:06d}.bin"


def closed_segment_number(name: str) -> int | None:
    """Number of the segment that a file name stands for, or None for any other name."""
    match = _CLOSED_NAME.fullmatch(name)
    if match is None:
        return None
    number = int(match.group(1))
    return number if name == closed_path(Path(), number).name else None


def refusal(path: Path, error: InvalidBlock) -> LogRefused:
    """The typed refusal for an invalid block in a file."""
    kind = ForeignLog if error.conclusive else DamagedLog
    return kind(path, error.offset, error.reason)


class KernelPolicy:
    """Whether the compiled kernel is used: always, never, or (None) once it pays."""

    def __init__(self, use: bool | None = None) -> None:
        self._use = use
        self._small_blocks = 0
        self._module: ModuleType | None = None

    def saw_small_block(self) -> None:
        self._small_blocks += 1

    def get(self) -> ModuleType | None:
        if self._module is None:
            if self._use is False:
                return None
            name = "tallybus.common.wal.scan"
            pays = self._use or self._small_blocks >= SMALL_BLOCKS_BEFORE_KERNEL
            if not pays and name not in sys.modules:
                return None
            # Imported late: a log of big blocks needs no kernel.
            from tallybus.common.wal import scan

            self._module = scan
        return self._module


class BlockScanner:
    """Steps over the blocks of one file, verifying each; `chain` says where it stands.

    All methods raise InvalidBlock and then stand in front of the offending block. `gateways` maps
    each gateway to the highest request number seen in the blocks stepped over.
    """

    def __init__(
        self,
        data: memoryview,
        chain: Chain,
        *,
        gateways: dict[int, int] | None = None,
        policy: KernelPolicy | None = None,
    ) -> None:
        self.data = data
        self.chain = chain
        self.gateways = {} if gateways is None else gateways
        self._policy = KernelPolicy(False) if policy is None else policy
        self._words = np.frombuffer(data, "<u8", len(data) // ALIGNMENT)
        self._after_small_block = False

    @property
    def at_end(self) -> bool:
        return self.chain.offset >= len(self.data)

    def peek(self) -> BlockHeader:
        """The next block's header, verified with its place; the payload is not looked at."""
        header = parse_header(self.data, self.chain.offset)
        problem = self.chain.problem(header)
        if problem is not None:
            raise problem
        return header

    def step(self, *, check_payload: bool = True) -> BlockHeader:
        """Verify the next block and step over it."""
        header = self.peek()
        if check_payload:
            verify_payload(self.data, header)
        elif header.end > len(self.data):
            raise InvalidBlock(header.offset, "the payload is cut short")
        self.chain.advance(header)
        if header.gateway:
            seen = self.gateways.get(header.gateway, 0)
            self.gateways[header.gateway] = max(seen, header.request)
        self._after_small_block = header.payload_length <= MAX_SMALL_PAYLOAD
        if self._after_small_block:
            self._policy.saw_small_block()
        return header

    def leap(self, last_id: int = MAX_ID, *, check_payload: bool = True) -> bool:
        """Step over small whole blocks with ids up to `last_id` where that pays; false if not."""
        return self._leap(last_id, check_payload, 0) is not None

    def gather(self, last_id: int) -> Batch | None:
        """As `leap`, with the transactions copied into one batch; None where it does not pay."""
        return self._leap(last_id, True, MAX_RUN_RECORDS)

    def _leap(self, last_id: int, check_payload: bool, capacity: int) -> Batch | None:
        chain = self.chain
        if not self._after_small_block or chain.cluster_id is None or chain.previous_crc is None:
            return None
        kernel = self._policy.get()
        if kernel is None:
            return None
        state = np.zeros(kernel.STATE_SIZE, np.uint64)
        for slot, value in (
            (kernel.CLUSTER, chain.cluster_id),
            (kernel.SEGMENT, chain.segment),
            (kernel.OFFSET, chain.offset),
            (kernel.NEXT_ID, chain.next_id),
            (kernel.PREVIOUS_CRC, chain.previous_crc),
            (kernel.TERM, chain.term),
            (kernel.DURABLE, chain.durable_index),
            (kernel.TIMESTAMP, chain.timestamp_ns),
            (kernel.PER_SEGMENT, chain.transactions_per_segment),
        ):
            state[slot] = value
        gateways = np.zeros((kernel.MAX_GATEWAYS, 2), np.uint64)
        words = MAX_RUN_WORDS if capacity else 0
        records = np.empty(capacity * RECORD_WORDS, np.uint64)
        links = np.empty(capacity, np.uint64)
        params = np.empty(words, np.uint64)
        entries = np.empty(words, np.uint64)
        batches = np.empty((capacity, 4), np.uint64)
        first_id = chain.next_id
        kernel.scan_blocks(
            self._words,
            (chain.offset + MAX_LEAP_BYTES) // ALIGNMENT,
            np.uint64(last_id),
            np.uint64(MAX_SMALL_PAYLOAD),
            check_payload,
            kernel.TABLES,
            state,
            gateways,
            records,
            links,
            params,
            entries,
            batches,
        )
        if not state[kernel.BLOCKS]:
            self._after_small_block = False
            return None
        chain.offset = int(state[kernel.OFFSET])
        chain.next_id = int(state[kernel.NEXT_ID])
        chain.previous_crc = int(state[kernel.PREVIOUS_CRC])
        chain.term = int(state[kernel.TERM])
        chain.durable_index = int(state[kernel.DURABLE])
        chain.timestamp_ns = int(state[kernel.TIMESTAMP])
        for gateway, request in gateways[: int(state[kernel.GATEWAYS])].tolist():
            self.gateways[gateway] = max(self.gateways.get(gateway, 0), request)
        last = parse_header(self.data, int(state[kernel.LAST_OFFSET]))
        return Batch(
            first_id,
            records[: int(state[kernel.RECORDS]) * RECORD_WORDS].view(RECORD_DTYPE),
            links[: int(state[kernel.LINKS])],
            params[: int(state[kernel.PARAMS])].view(np.int64),
            entries[: int(state[kernel.ENTRIES]) * 2].view(ENTRY_DTYPE),
            last.term,
            last.timestamp_ns,
            last.gateway,
            last.request,
            batches[: int(state[kernel.BATCHES])],
        )

    def verify_rest(self, progress: Callable[[int], None] | None = None) -> None:
        """Verify every block to the end of the file. `progress` gets the offset reached."""
        reported = self.chain.offset
        while not self.at_end:
            if not self.leap():
                self.step()
            if progress is not None and self.chain.offset - reported >= MAX_LEAP_BYTES:
                reported = self.chain.offset
                progress(reported)

    def skip_to(self, first_id: int) -> None:
        """Step over the blocks that end before `first_id`, by their headers alone."""
        while not self.at_end and self.chain.next_id < first_id:
            if self.leap(first_id - 1, check_payload=False):
                continue
            if self.peek().last_id >= first_id:
                return
            self.step(check_payload=False)


def _read_batches(
    path: Path,
    scanner: BlockScanner,
    first_id: int,
    last_id: int,
    progress: Callable[[int], None] | None,
) -> Iterator[Batch]:
    """The batches of one file, clipped to first_id..last_id; ends with the file or there."""
    chain = scanner.chain
    try:
        scanner.skip_to(first_id)
        while chain.next_id <= last_id and not scanner.at_end:
            batch = None
            if chain.next_id >= first_id:
                batch = scanner.gather(last_id)
            if batch is None:
                batch = batch_in(scanner.data, scanner.step())
            if len(batch.records):
                yield batch.clip(first_id, last_id)
            if progress is not None:
                progress(chain.offset)
    except InvalidBlock as error:
        raise refusal(path, error) from error
    except InvalidBatch as error:
        raise DamagedLog(path, chain.offset, error.reason) from error


def open_segment(storage: Storage, folder: Path, segment: int) -> tuple[Path, memoryview]:
    """Path and mapped content of a segment's file, also while the log stage closes it.

    Raises DamagedLog when it is missing, LogEndsEarly when it is not begun yet, StorageError.
    """
    closed = closed_path(folder, segment)
    active = folder / ACTIVE_NAME
    for _ in range(2):
        try:
            return closed, storage.map_read(closed)
        except FileMissing:
            pass
        try:
            data = storage.map_read(active)
            found = parse_header(data, 0).segment
        except FileMissing:
            continue
        except InvalidBlock as error:
            raise refusal(active, error) from error
        if found == segment:
            return active, data
        if found < segment:
            raise LogEndsEarly(active, len(data), f"segment {segment} is not begun yet")
        # The segment was closed between the two looks: its file has the closed name now.
    raise DamagedLog(closed, 0, f"the file of segment {segment} is missing")


def read_log(
    folder: Path,
    first_id: int,
    last_id: int,
    transactions_per_segment: int,
    *,
    cluster_id: int | None = None,
    storage: Storage | None = None,
    progress: Progress | None = None,
    kernel: bool | None = None,
) -> Iterator[Batch]:
    """The transactions `first_id`..`last_id`, in order and without gaps, each run verified.

    A run is one block; the compiled fast path gathers small blocks into runs of fresh arrays (at
    most 65,536 records each). `kernel` forces that path on or off (None: once it pays). Only blocks
    that hold wanted ids are read, so the tail of the active file may be in the making. Blocks of
    the first file that lie wholly before `first_id` are checked by their headers, not by their
    payloads.

    Raises DamagedLog or ForeignLog with file and offset, LogEndsEarly when the files end before
    `last_id`, StorageError when a file cannot be opened.
    """
    if first_id < 1:
        raise ValueError(f"ids start at 1, got {first_id}")
    if first_id > last_id:
        return
    reader = storage or Storage()
    first_segment = segment_of(first_id, transactions_per_segment)
    last_segment = segment_of(last_id, transactions_per_segment)
    done = 0
    total = _total_size(reader, folder, first_segment, last_segment) if progress else 0
    policy = KernelPolicy(kernel)
    chain = chain_at(first_segment, transactions_per_segment, cluster_id)
    for segment in range(first_segment, last_segment + 1):
        path, data = open_segment(reader, folder, segment)
        scanner = BlockScanner(data, chain, policy=policy)
        base = done
        report = (
            None
            if progress is None
            else lambda offset, base=base: progress(min(base + offset, total), total)
        )
        yield from _read_batches(path, scanner, first_id, last_id, report)
        if chain.next_id <= min(last_id, chain.segment_end):
            raise LogEndsEarly(
                path, len(data), f"the file ends before id {chain.next_id}, wanted is {last_id}"
            )
        done += len(data)
        chain = chain.next_segment()
    if progress is not None:
        progress(total, total)


def chain_at(segment: int, transactions_per_segment: int, cluster_id: int | None) -> Chain:
    """Before the first block of a segment, with nothing known of the segments before it."""
    return Chain(
        transactions_per_segment,
        cluster_id=cluster_id,
        segment=segment,
        next_id=(segment - 1) * transactions_per_segment + 1,
        previous_crc=0 if segment == 1 else None,
    )


def _total_size(storage: Storage, folder: Path, first_segment: int, last_segment: int) -> int:
    total = 0
    for segment in range(first_segment, last_segment + 1):
        for path in (closed_path(folder, segment), folder / ACTIVE_NAME):
            try:
                total += storage.size(path)
                break
            except FileMissing:
                continue
    return total
