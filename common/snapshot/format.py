"""The bytes of a snapshot: header, sidecar, names, and the errors about them.

Snapshots of balances and of functions have one header, of which some fields mean what their kind
needs. `docs/snapshot-format.md` describes every byte. `common/snapshot/balances.py` and
`common/snapshot/functions.py` read and write the files; this module touches none.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from tallybus.common.checksum import crc32c
from tallybus.common.errors import ServiceError
from tallybus.common.memory import CHUNK_ACCOUNTS
from tallybus.common.record import MAX_U64

CHUNK_BYTES: Final = CHUNK_ACCOUNTS * 8

MAGIC: Final = b"TSNP"
FORMAT_VERSION: Final = 2
VERSION_WITHOUT_FUNCTIONS: Final = 1
"""Of a release that knew no functions: the same bytes, and no function snapshot belongs to it."""

FUNCTIONS_MAGIC: Final = b"TFSN"
FUNCTIONS_VERSION: Final = 1
FUNCTION_SIZE: Final = 48
"""Bytes of one version of a function."""

HEADER_SIZE: Final = 128
_HEADER: Final = struct.Struct("<4sHHQQQQQQIIQQQ28sI")
_HEADER_END: Final = struct.Struct("<II")
_RESERVED: Final = bytes(28)

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
        if max(values) > MAX_U64:
            raise ValueError(f"a field of the snapshot is too large: {self}")

    @property
    def last_tx_id(self) -> int:
        """The id of the last transaction in it: the last one of its segment."""
        return self.segment * self.transactions_per_segment


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """The header of a snapshot of balances.

    `account_bound` is 1 + the highest account with a balance (0: none has). `version` is that of
    the format.
    """

    fields: SnapshotFields
    chunk_count: int
    account_bound: int
    payload_crc: int
    version: int = FORMAT_VERSION

    @property
    def balances_offset(self) -> int:
        """Where in the file the balances begin, behind the chunk numbers."""
        return HEADER_SIZE + 8 * self.chunk_count

    @property
    def file_size(self) -> int:
        """The length of the whole file in bytes."""
        return self.balances_offset + CHUNK_BYTES * self.chunk_count

    @property
    def has_functions(self) -> bool:
        """Whether a function snapshot belongs to it; without one it is incomplete then."""
        return self.version != VERSION_WITHOUT_FUNCTIONS

    def encode(self) -> bytes:
        """The header's 128 bytes."""
        return _encode(
            MAGIC,
            self.version,
            self.fields,
            CHUNK_ACCOUNTS,
            self.chunk_count,
            self.account_bound,
            self.file_size,
            self.payload_crc,
        )


@dataclass(frozen=True, slots=True)
class FunctionsHeader:
    """The header of a snapshot of functions; `count` of all their versions."""

    fields: SnapshotFields
    count: int
    payload_crc: int

    @property
    def file_size(self) -> int:
        """The length of the whole file in bytes."""
        return HEADER_SIZE + FUNCTION_SIZE * self.count

    def encode(self) -> bytes:
        """The header's 128 bytes."""
        return _encode(
            FUNCTIONS_MAGIC,
            FUNCTIONS_VERSION,
            self.fields,
            FUNCTION_SIZE,
            self.count,
            0,
            self.file_size,
            self.payload_crc,
        )


def _encode(
    magic: bytes,
    version: int,
    fields: SnapshotFields,
    item: int,
    count: int,
    bound: int,
    file_size: int,
    payload_crc: int,
) -> bytes:
    head = _HEADER.pack(
        magic,
        version,
        HEADER_SIZE,
        fields.cluster_id,
        fields.segment,
        fields.last_tx_id,
        fields.transactions_per_segment,
        fields.term,
        fields.timestamp_ns,
        item,
        0,
        count,
        bound,
        file_size - HEADER_SIZE,
        _RESERVED,
        payload_crc,
    ) + bytes(4)
    return head + crc32c(head).to_bytes(4, "little")


@dataclass(frozen=True, slots=True)
class _Decoded:
    version: int
    fields: SnapshotFields
    count: int
    bound: int
    payload_length: int
    payload_crc: int


def decode_header(path: Path, data: bytes, size: int) -> SnapshotHeader:
    """Checks and decodes the first `HEADER_SIZE` bytes of the snapshot `path` of `size` bytes.

    Raises DamagedSnapshot.
    """
    known = (VERSION_WITHOUT_FUNCTIONS, FORMAT_VERSION)
    found = _decode(path, data, size, MAGIC, known, CHUNK_ACCOUNTS, snapshot_path)
    header = SnapshotHeader(
        found.fields, found.count, found.bound, found.payload_crc, found.version
    )
    _check_size(path, found, "chunks", header.file_size, size)
    return header


def decode_functions_header(path: Path, data: bytes, size: int) -> FunctionsHeader:
    """As `decode_header`, of a snapshot of functions."""
    known = (FUNCTIONS_VERSION,)
    found = _decode(path, data, size, FUNCTIONS_MAGIC, known, FUNCTION_SIZE, function_snapshot_path)
    if found.bound:
        raise DamagedSnapshot(path, 72, "reserved bytes are not zero")
    header = FunctionsHeader(found.fields, found.count, found.payload_crc)
    _check_size(path, found, "functions", header.file_size, size)
    return header


def _decode(
    path: Path,
    data: bytes,
    size: int,
    magic: bytes,
    versions: tuple[int, ...],
    item_size: int,
    path_of: Callable[[Path, int], Path],
) -> _Decoded:
    if size < HEADER_SIZE:
        raise DamagedSnapshot(path, size, "the file ends within the header")
    if data[:4] != magic:
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
        item,
        reserved_1,
        count,
        bound,
        payload_length,
        reserved_2,
        payload_crc,
    ) = _HEADER.unpack_from(data)
    if version not in versions:
        raise DamagedSnapshot(path, 4, f"format version {version} is not known to this release")
    if (header_size, item) != (HEADER_SIZE, item_size):
        raise DamagedSnapshot(path, 6, "the sizes in the header are not those of its version")
    if reserved_1 or reserved_2 != _RESERVED or reserved_3:
        raise DamagedSnapshot(path, 60, "reserved bytes are not zero")
    try:
        fields = SnapshotFields(cluster_id, segment, transactions_per_segment, term, timestamp_ns)
    except ValueError as error:
        raise DamagedSnapshot(path, 8, str(error)) from error
    if path.name != path_of(path.parent, segment).name:
        raise DamagedSnapshot(path, 16, f"it is the snapshot of segment {segment}")
    if last_tx_id != fields.last_tx_id:
        raise DamagedSnapshot(path, 24, "its last transaction is not the last one of its segment")
    return _Decoded(version, fields, count, bound, payload_length, payload_crc)


def _check_size(path: Path, found: _Decoded, what: str, expected: int, size: int) -> None:
    if found.payload_length != expected - HEADER_SIZE:
        raise DamagedSnapshot(path, 80, f"the payload's length does not match the number of {what}")
    if size != expected:
        raise DamagedSnapshot(
            path, min(size, expected), f"the file has {size} bytes, its header says {expected}"
        )


def function_snapshot_path(folder: Path, segment: int) -> Path:
    """The file of the functions after `segment`, beside the snapshot of the balances."""
    return folder / f"function_snapshot_{segment:06d}.bin"


def snapshot_path(folder: Path, segment: int) -> Path:
    """The file of the snapshot after `segment`."""
    return folder / f"snapshot_{segment:06d}.bin"


def sidecar_path(path: Path) -> Path:
    """The sidecar of the snapshot file `path`."""
    return path.with_suffix(".crc")


def sidecar_line(name: str, crc: int, size: int) -> bytes:
    """The whole content of a sidecar: CRC-32C and length in bytes of the snapshot file `name`."""
    return f"crc32c {crc:08x} size {size} file {name}\n".encode("ascii")
