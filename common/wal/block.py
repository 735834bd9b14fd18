"""One block of the write-ahead log: its header, its checks, and what may follow what.

A block is a 128-byte header and a payload: records (40 bytes each), links of duplicates (u64 each),
parameters of functions (i64 words), entries of functions (16 bytes each), in this order and without
gaps. Everything is little-endian. A block with no records is a marker. `docs/wal-format.md`
describes every byte. The writer and every reader use this module. The fast path for small blocks,
`scan.py`, repeats its checks in a kernel, and leaves to this module what does not pass them.

No I/O here: bytes come in, and headers, batches or errors go out.
ADR 0002 says why markers certify what is durable.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from tallybus.common.batch import Batch
from tallybus.common.checksum import crc32c
from tallybus.common.record import (
    ENTRY_DTYPE,
    ENTRY_SIZE,
    MAX_U64,
    PARAM_SIZE,
    RECORD_DTYPE,
    RECORD_SIZE,
)

MAGIC: Final = b"TBLK"
FORMAT_VERSION: Final = 1
HEADER_SIZE: Final = 128
CHECKED_SIZE: Final = 124
"""The header's checksum covers its first 124 bytes: all but itself."""
ALIGNMENT: Final = 8
"""Every block starts at a multiple of 8 in its file, because every part is a multiple of 8 long."""

LINK_SIZE: Final = 8
MAX_ID: Final = MAX_U64
_NO_RECORDS: Final = np.empty(0, RECORD_DTYPE)

_LAYOUT: Final = struct.Struct("<4sHHQQQQQQQIIIIQQQQIIII")
_CRC: Final = struct.Struct("<I")


class InvalidBlock(Exception):
    """The bytes at an offset are not the block that belongs there.

    `conclusive` is true when the header's own checksum is right but the block can never belong to
    this log as configured (other version, cluster or segment size): such a block was written by
    somebody on purpose and is no torn write.
    """

    def __init__(self, offset: int, reason: str, *, conclusive: bool = False) -> None:
        super().__init__(f"no valid block at offset {offset}: {reason}")
        self.offset = offset
        self.reason = reason
        self.conclusive = conclusive


class BlockHeader(NamedTuple):
    """The fields of a header, without magic, version, size and the reserved word.

    Ids, indexes and terms are u64; counts u32; lengths and offsets in bytes; checksums CRC-32C.
    """

    cluster_id: int
    segment: int
    term: int
    first_id: int
    timestamp_ns: int
    durable_index: int
    transactions_per_segment: int
    record_count: int
    link_count: int
    param_count: int
    entry_count: int
    offset: int
    payload_length: int
    gateway: int
    request: int
    previous_crc: int
    payload_crc: int
    header_crc: int

    @property
    def is_marker(self) -> bool:
        return self.record_count == 0

    @property
    def last_id(self) -> int:
        """Id of the last transaction; of a marker, the id before its `first_id`."""
        return self.first_id + self.record_count - 1

    @property
    def end(self) -> int:
        """Offset of the byte after the block."""
        return self.offset + HEADER_SIZE + self.payload_length

    def pack(self) -> bytes:
        """The 128 bytes, with the checksum computed (the `header_crc` field is not looked at)."""
        packed = _LAYOUT.pack(MAGIC, FORMAT_VERSION, HEADER_SIZE, *self[:-1], 0, 0)
        return packed[:CHECKED_SIZE] + _CRC.pack(crc32c(packed[:CHECKED_SIZE]))


def batch_in(data: memoryview, header: BlockHeader) -> Batch:
    """The transactions of a block inside its file's bytes, zero-copy. `header` must be verified;
    whether the records call for what it counts is for `Batch.check` to say."""
    at = header.offset + HEADER_SIZE
    links_at = at + header.record_count * RECORD_SIZE
    params_at = links_at + header.link_count * LINK_SIZE
    entries_at = params_at + header.param_count * PARAM_SIZE
    return Batch(
        header.first_id,
        np.frombuffer(data, RECORD_DTYPE, header.record_count, at),
        np.frombuffer(data, "<u8", header.link_count, links_at),
        np.frombuffer(data, "<i8", header.param_count, params_at),
        np.frombuffer(data, ENTRY_DTYPE, header.entry_count, entries_at),
        header.term,
        header.timestamp_ns,
        header.gateway,
        header.request,
    )


def checksum(buffers: Iterable[bytes | memoryview]) -> int:
    """CRC-32C over several buffers as if they were one."""
    value = 0
    for buffer in buffers:
        value = crc32c(buffer, value)
    return value


def parse_header(data: memoryview, offset: int) -> BlockHeader:
    """The header at `offset`, with its checksum, its version and its lengths checked.

    Raises InvalidBlock. Whether the block belongs there is for `Chain.problem` to say.
    """
    left = len(data) - offset
    if left < HEADER_SIZE:
        raise InvalidBlock(offset, f"{left} bytes are left, a header has {HEADER_SIZE}")
    magic, version, header_size, *fields, reserved, header_crc = _LAYOUT.unpack_from(data, offset)
    if magic != MAGIC:
        raise InvalidBlock(offset, f"it starts with {bytes(magic)!r} instead of {MAGIC!r}")
    if crc32c(data[offset : offset + CHECKED_SIZE]) != header_crc:
        raise InvalidBlock(offset, "the checksum of the header is wrong")
    if version != FORMAT_VERSION or header_size != HEADER_SIZE or reserved:
        raise InvalidBlock(
            offset,
            f"format version {version} with a header of {header_size} bytes and reserved word "
            f"{reserved}; this program reads version {FORMAT_VERSION}",
            conclusive=True,
        )
    header = BlockHeader._make((*fields, header_crc))
    expected = (
        header.record_count * RECORD_SIZE
        + header.link_count * LINK_SIZE
        + header.param_count * PARAM_SIZE
        + header.entry_count * ENTRY_SIZE
    )
    if header.payload_length != expected:
        raise InvalidBlock(
            offset, f"payload length {header.payload_length}, the counts give {expected}"
        )
    return header


def verify_payload(data: memoryview, header: BlockHeader) -> None:
    """Raises InvalidBlock when the payload is cut short or its checksum is wrong."""
    start = header.offset + HEADER_SIZE
    end = header.end
    if end > len(data):
        raise InvalidBlock(
            header.offset, f"the payload ends at {end}, the file already at {len(data)}"
        )
    if crc32c(data[start:end]) != header.payload_crc:
        raise InvalidBlock(header.offset, "the checksum of the payload is wrong")


@dataclass(slots=True)
class Chain:
    """Where a log stands after a block: everything that the next block must continue.

    The writer seals with it and every reader checks with it, so both know the same rules.
    `cluster_id` and `previous_crc` are None as long as they are not known (a reader that starts in
    the middle takes them from the first block it meets).
    """

    transactions_per_segment: int
    cluster_id: int | None = None
    segment: int = 1
    offset: int = 0
    next_id: int = 1
    previous_crc: int | None = 0
    term: int = 0
    durable_index: int = 0
    timestamp_ns: int = 0

    @property
    def segment_end(self) -> int:
        """Last id of the segment."""
        return self.segment * self.transactions_per_segment

    @property
    def segment_is_full(self) -> bool:
        return self.next_id > self.segment_end

    def next_segment(self) -> Chain:
        """The state at offset 0 of the following file."""
        return replace(self, segment=self.segment + 1, offset=0)

    def seal(
        self,
        batch: Batch,
        durable_index: int = 0,
    ) -> tuple[BlockHeader, bytes]:
        """The header, parsed and as bytes, of the block that carries `batch` next.

        Nothing is changed: call `advance` when the block is written. The durable index never goes
        back: a smaller one than in an earlier block is replaced by that. Raises ValueError for a
        batch that does not come next.
        """
        return self._seal(batch, batch.buffers(), durable_index)

    def seal_marker(
        self, durable_index: int = 0, term: int | None = None
    ) -> tuple[BlockHeader, bytes]:
        """The header of a block without transactions, as `seal` does it. None: the term stays."""
        nothing = Batch(
            self.next_id,
            _NO_RECORDS,
            term=self.term if term is None else term,
            timestamp_ns=self.timestamp_ns,
        )
        return self._seal(nothing, [], durable_index)

    def _seal(
        self, batch: Batch, payload: Sequence[memoryview], durable_index: int
    ) -> tuple[BlockHeader, bytes]:
        if self.cluster_id is None or self.previous_crc is None:
            raise ValueError("a block cannot be sealed before the cluster and the chain are known")
        header = BlockHeader(
            cluster_id=self.cluster_id,
            segment=self.segment,
            term=batch.term,
            first_id=batch.first_id,
            timestamp_ns=batch.timestamp_ns,
            durable_index=max(self.durable_index, durable_index),
            transactions_per_segment=self.transactions_per_segment,
            record_count=len(batch.records),
            link_count=len(batch.links),
            param_count=len(batch.params),
            entry_count=len(batch.entries),
            offset=self.offset,
            payload_length=batch.byte_length,
            gateway=batch.gateway,
            request=batch.request,
            previous_crc=self.previous_crc,
            payload_crc=checksum(payload),
            header_crc=0,
        )
        packed = header.pack()
        header = header._replace(header_crc=_CRC.unpack_from(packed, CHECKED_SIZE)[0])
        problem = self.problem(header)
        if problem is not None:
            raise ValueError(f"the block would not be readable: {problem.reason}")
        return header, packed

    def problem(self, header: BlockHeader) -> InvalidBlock | None:
        """Why this block may not come next, or None. The checksums are checked elsewhere."""
        if self.cluster_id is not None and header.cluster_id != self.cluster_id:
            return self._foreign(
                f"it belongs to cluster {header.cluster_id:#018x}, not {self.cluster_id:#018x}"
            )
        if header.transactions_per_segment != self.transactions_per_segment:
            return self._foreign(
                f"the log was made with transactions_per_segment = "
                f"{header.transactions_per_segment}, configured is {self.transactions_per_segment}"
            )
        for name, found, expected in (
            ("segment", header.segment, self.segment),
            ("offset", header.offset, self.offset),
            ("first id", header.first_id, self.next_id),
        ):
            if found != expected:
                return InvalidBlock(self.offset, f"it says {name} {found} instead of {expected}")
        if self.previous_crc is not None and header.previous_crc != self.previous_crc:
            return InvalidBlock(self.offset, "it does not continue the block before it")
        if header.term < self.term:
            return InvalidBlock(self.offset, f"term {header.term} comes after term {self.term}")
        if not self.durable_index <= header.durable_index < header.first_id:
            return InvalidBlock(
                self.offset,
                f"durable index {header.durable_index} after {self.durable_index} "
                f"and before first id {header.first_id}",
            )
        if header.last_id > self.segment_end or (self.segment_is_full and self.offset):
            return InvalidBlock(
                self.offset, f"it goes beyond id {self.segment_end}, the end of its segment"
            )
        if self.offset == 0 and not header.is_marker:
            return InvalidBlock(self.offset, "a segment opens with a marker, this has records")
        return None

    def _foreign(self, reason: str) -> InvalidBlock:
        return InvalidBlock(self.offset, reason, conclusive=True)

    def advance(self, header: BlockHeader) -> None:
        """Step over a block for which `problem` returned None."""
        self.cluster_id = header.cluster_id
        self.offset = header.end
        self.next_id = header.first_id + header.record_count
        self.previous_crc = header.header_crc
        self.term = header.term
        self.durable_index = header.durable_index
        self.timestamp_ns = header.timestamp_ns


def find_evidence(data: memoryview, start: int, cluster_id: int | None, wanted: int) -> int | None:
    """Offset of a whole header at or after `start` that shows `wanted` durable, or None.

    Looks at every occurrence of the magic, wherever it stands: a header with a right checksum and
    of this cluster states a fact about the log, even in the wrong place. (Data that clients chose
    cannot pass for one, unless they know the random cluster id.)
    """
    whole = data.obj
    if isinstance(whole, (bytes, bytearray, mmap.mmap)) and len(whole) == len(data):
        base, at = 0, whole.find(MAGIC, start)
    else:
        whole = bytes(data[start:])
        base, at = start, whole.find(MAGIC)
    while at >= 0:
        try:
            header = parse_header(data, base + at)
        except InvalidBlock:
            pass
        else:
            if cluster_id in (None, header.cluster_id) and header.durable_index >= wanted:
                return base + at
        at = whole.find(MAGIC, at + 1)
    return None


def _check_layout() -> None:
    """The layout above, against the numbers of docs/wal-format.md."""
    if _LAYOUT.size != HEADER_SIZE:
        raise AssertionError(f"the header has {_LAYOUT.size} bytes, the format says {HEADER_SIZE}")
    if HEADER_SIZE % ALIGNMENT or RECORD_SIZE % ALIGNMENT or ENTRY_SIZE % ALIGNMENT:
        raise AssertionError(f"a part of a block is no multiple of {ALIGNMENT} bytes long")
    probe = BlockHeader(*range(1, len(BlockHeader._fields) + 1)).pack()
    for position, (name, offset, kind) in enumerate(HEADER_FIELDS, start=1):
        if (
            struct.unpack_from(kind, probe, offset)[0] != position
            or name != (BlockHeader._fields[position - 1])
        ):
            raise AssertionError(f"header field {name} is not at offset {offset}")


HEADER_FIELDS: Final = (
    ("cluster_id", 8, "<Q"),
    ("segment", 16, "<Q"),
    ("term", 24, "<Q"),
    ("first_id", 32, "<Q"),
    ("timestamp_ns", 40, "<Q"),
    ("durable_index", 48, "<Q"),
    ("transactions_per_segment", 56, "<Q"),
    ("record_count", 64, "<I"),
    ("link_count", 68, "<I"),
    ("param_count", 72, "<I"),
    ("entry_count", 76, "<I"),
    ("offset", 80, "<Q"),
    ("payload_length", 88, "<Q"),
    ("gateway", 96, "<Q"),
    ("request", 104, "<Q"),
    ("previous_crc", 112, "<I"),
    ("payload_crc", 116, "<I"),
)
"""Name, offset and type of every field after magic (0), version (4) and header size (6), but for
the reserved word (120) and the header's checksum (124)."""

_check_layout()
