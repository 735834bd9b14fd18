"""The bytes of a snapshot: header, sidecar, names, and the errors about them.

`docs/snapshot-format.md` describes every byte. `common/snapshot.py` reads and writes the files;
this module touches none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from crc32c import crc32c

from tallybus.common.errors import ServiceError

CHUNK_ACCOUNTS: Final = 4096
"""Accounts per chunk: chunk c holds the accounts c * 4096 .. c * 4096 + 4095."""
CHUNK_BYTES: Final = CHUNK_ACCOUNTS * 8

MAGIC: Final = b"TSNP"
FORMAT_VERSION: Final = 1
HEADER_SIZE: Final = 128
_HEADER: Final = struct.Struct("<4sHHQQQQQQIIQQQ28sI")
_HEADER_END: Final = struct.Struct("<II")
_RESERVED: Final = bytes(28)
_MAX_U64: Final = 2**64 - 1

if _HEADER.size + _HEADER_END.size != HEADER_SIZE:
    raise AssertionError("the header's fields do not fill its size")


class SnapshotError(ServiceError):
    """Something about a snapshot that the caller must decide on, or end with."""


class DamagedSnapshot(SnapshotError):
    """A snapshot that is not what was written. It is passed over: an older one or the log serves.

    Fields: `path`, `offset` (where it was noticed; 0 for the file as a whole), `reason`.
    """

    def __init__(self, path: Path, offset: int, reason: str) -> None:
        super().__init__(
            f"{path} is damaged at offset {offset}: {reason}. An older snapshot or the log is used "
            "instead; the file may be moved away"
        )
        self.path = path
        self.offset = offset
        self.reason = reason


class SnapshotMismatch(SnapshotError):
    """An undamaged snapshot that contradicts the log or the settings: the start is refused.

    Fields: `path`, `field` (its name), `found` (in the snapshot), `expected`.
    """

    exit_code: ClassVar[int] = 65  # EX_DATAERR of sysexits.h
    restart: ClassVar[bool] = False

    def __init__(self, path: Path, field: str, found: int, expected: int, advice: str) -> None:
        super().__init__(
            f"{path} is undamaged, but its {field} is {found} where {expected} was expected: "
            f"{advice}"
        )
        self.path = path
        self.field = field
        self.found = found
        self.expected = expected


class AccountLimitTooLow(SnapshotError):
    """`max_accounts` leaves out an account that has a balance.

    Fields: `path`, `max_accounts` (as set), `needed` (the lowest value that works).
    """

    exit_code: ClassVar[int] = 78  # EX_CONFIG of sysexits.h
    restart: ClassVar[bool] = False

    def __init__(self, path: Path, max_accounts: int, needed: int) -> None:
        super().__init__(
            f"max_accounts is {max_accounts}, but {path} holds a balance of account {needed - 1}: "
            f"set max_accounts to at least {needed}"
        )
        self.path = path
        self.max_accounts = max_accounts
        self.needed = needed


class UnbalancedSnapshot(SnapshotError):
    """The balances to be written do not add up to zero; nothing was written.

    Fields: `segment`, `total` (what they add up to).
    """

    def __init__(self, segment: int, total: int) -> None:
        super().__init__(
            f"the balances at the end of segment {segment} add up to {total} instead of 0: no "
            "snapshot was written. The state in memory is wrong; restart this service, so that it "
            "is rebuilt from the log"
        )
        self.segment = segment
        self.total = total


class SnapshotUnreadable(SnapshotError):
    """The system refused to read a snapshot, for a reason that is not damage.

    Fields: `path`, `code` (the errno).
    """

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} could not be read: {error.strerror}. Check the permissions and limits of the "
            "data folder, then start again"
        )
        self.path = path
        self.code = error.errno


@dataclass(frozen=True, slots=True)
class SnapshotFields:
    """What a snapshot says about itself. All u64; `segment` and `transactions_per_segment` from 1.

    Raises ValueError for values that the format cannot hold.
    """

    cluster_id: int
    segment: int
    transactions_per_segment: int
    term: int
    timestamp_ns: int

    def __post_init__(self) -> None:
        values = (self.cluster_id, self.term, self.timestamp_ns, self.last_tx_id)
        if min(*values, self.segment - 1, self.transactions_per_segment - 1) < 0:
            raise ValueError(f"a field of the snapshot is too small: {self}")
        if max(values) > _MAX_U64:
            raise ValueError(f"a field of the snapshot is too large: {self}")

    @property
    def last_tx_id(self) -> int:
        """The id of the last transaction in it: the last one of its segment."""
        return self.segment * self.transactions_per_segment


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """The header: `account_bound` is 1 + the highest account with a balance (0: none has)."""

    fields: SnapshotFields
    chunk_count: int
    account_bound: int
    payload_crc: int

    @property
    def balances_offset(self) -> int:
        """Where in the file the balances begin, behind the chunk numbers."""
        return HEADER_SIZE + 8 * self.chunk_count

    @property
    def file_size(self) -> int:
        """The length of the whole file in bytes."""
        return self.balances_offset + CHUNK_BYTES * self.chunk_count

    def encode(self) -> bytes:
        """The header's 128 bytes."""
        fields = self.fields
        head = _HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            HEADER_SIZE,
            fields.cluster_id,
            fields.segment,
            fields.last_tx_id,
            fields.transactions_per_segment,
            fields.term,
            fields.timestamp_ns,
            CHUNK_ACCOUNTS,
            0,
            self.chunk_count,
            self.account_bound,
            self.file_size - HEADER_SIZE,
            _RESERVED,
            self.payload_crc,
        ) + bytes(4)
        return head + crc32c(head).to_bytes(4, "little")


def decode_header(path: Path, data: bytes, size: int) -> SnapshotHeader:
    """Checks and decodes the first `HEADER_SIZE` bytes of the file `path` of `size` bytes.

    Raises DamagedSnapshot.
    """
    if size < HEADER_SIZE:
        raise DamagedSnapshot(path, size, "the file ends within the header")
    if data[:4] != MAGIC:
        raise DamagedSnapshot(path, 0, "it does not begin as a snapshot does")
    reserved_3, header_crc = _HEADER_END.unpack_from(data, _HEADER.size)
    if crc32c(data[: HEADER_SIZE - 4]) != header_crc:
        raise DamagedSnapshot(path, 0, "the header's checksum does not match")
    (
        _,
        version,
        header_size,
        cluster_id,
        segment,
        last_tx_id,
        transactions_per_segment,
        term,
        timestamp_ns,
        chunk_accounts,
        reserved_1,
        chunks,
        account_bound,
        payload_length,
        reserved_2,
        payload_crc,
    ) = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise DamagedSnapshot(path, 4, f"format version {version} is not known to this release")
    if (header_size, chunk_accounts) != (HEADER_SIZE, CHUNK_ACCOUNTS):
        raise DamagedSnapshot(path, 6, "the sizes in the header are not those of its version")
    if reserved_1 or reserved_2 != _RESERVED or reserved_3:
        raise DamagedSnapshot(path, 60, "reserved bytes are not zero")
    try:
        fields = SnapshotFields(cluster_id, segment, transactions_per_segment, term, timestamp_ns)
    except ValueError as error:
        raise DamagedSnapshot(path, 8, str(error)) from error
    if path.name != snapshot_path(path.parent, segment).name:
        raise DamagedSnapshot(path, 16, f"it is the snapshot of segment {segment}")
    if last_tx_id != fields.last_tx_id:
        raise DamagedSnapshot(path, 24, "its last transaction is not the last one of its segment")
    header = SnapshotHeader(fields, chunks, account_bound, payload_crc)
    if payload_length != header.file_size - HEADER_SIZE:
        raise DamagedSnapshot(path, 80, "the payload's length does not match the number of chunks")
    if size != header.file_size:
        raise DamagedSnapshot(
            path,
            min(size, header.file_size),
            f"the file has {size} bytes, its header says {header.file_size}",
        )
    return header


def snapshot_path(folder: Path, segment: int) -> Path:
    """The file of the snapshot after `segment`."""
    return folder / f"snapshot_{segment:06d}.bin"


def sidecar_path(path: Path) -> Path:
    """The sidecar of the snapshot file `path`."""
    return path.with_suffix(".crc")


def sidecar_line(name: str, crc: int, size: int) -> bytes:
    """The whole content of a sidecar: CRC-32C and length in bytes of the snapshot file `name`."""
    return f"crc32c {crc:08x} size {size} file {name}\n".encode("ascii")
