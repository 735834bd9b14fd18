"""Snapshots of all balances: writing, verifying, loading and pruning their files.

`snapshot_000002.bin` is the state after the last transaction of segment 2, `snapshot_000002.crc`
the proof that it is complete. The functions of that moment lie beside them
(`common/snapshot/functions.py`), and are written first: the balances alone count for nothing. The
snapshotter writes them; the transactor and the snapshotter start from them. A snapshot only saves
time: the log alone gives the same state, so a damaged snapshot is passed over and never repaired.

Balances are kept in chunks of `CHUNK_ACCOUNTS`, and only chunks that were ever used are stored and
loaded: `balances` is int64[max_accounts], allocated lazily, `touched` is uint8 with one item per
chunk.

May read the snapshots in the data folder. Writes and removes only through the given `Storage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.checksum import crc32c
from tallybus.common.files import Storage, flat
from tallybus.common.functions.registry import FunctionRegistry, FunctionVersion
from tallybus.common.memory import CHUNK_ACCOUNTS, account_array
from tallybus.common.record import MAX_I64
from tallybus.common.snapshot.file import ReadableFile, read_sidecar, segments_of
from tallybus.common.snapshot.format import (
    CHUNK_BYTES,
    HEADER_SIZE,
    AccountLimitTooLow,
    DamagedSnapshot,
    SnapshotError,
    SnapshotFields,
    SnapshotHeader,
    SnapshotMismatch,
    SnapshotUnreadable,
    UnbalancedSnapshot,
    decode_header,
    function_snapshot_path,
    sidecar_line,
    sidecar_path,
    snapshot_path,
)
from tallybus.common.snapshot.functions import read_function_snapshot, write_function_snapshot

__all__ = [
    "CHUNK_ACCOUNTS",
    "FrozenBalances",
    "Snapshot",
    "SnapshotFields",
    "SnapshotHeader",
    "SnapshotError",
    "AccountLimitTooLow",
    "DamagedSnapshot",
    "SnapshotMismatch",
    "SnapshotUnreadable",
    "UnbalancedSnapshot",
    "chunk_count",
    "freeze_balances",
    "function_snapshot_path",
    "list_snapshots",
    "load_latest_snapshot",
    "prune_snapshots",
    "sidecar_path",
    "snapshot_path",
    "sum_of_balances",
    "verify_snapshot",
    "write_frozen",
]

_PREFIX: Final = "snapshot"
_FUNCTIONS_PREFIX: Final = "function_snapshot"
_BLOCK_CHUNKS: Final = 32
"""How many chunks (1 MiB) are read, summed and checked at a time, to stay in the cache."""
_BLOCK_ACCOUNTS: Final = _BLOCK_CHUNKS * CHUNK_ACCOUNTS
_MAX_SUMMAND: Final = MAX_I64 // _BLOCK_ACCOUNTS
"""The sum of a block of balances up to this one fits an int64."""


@dataclass(frozen=True, slots=True, eq=False)
class FrozenBalances:
    """A copy of the used chunks: `chunks` uint64[k] ascending, `balances` int64[k, CHUNK_ACCOUNTS].

    Items beyond max_accounts in the last chunk are 0. `functions`: all versions of that moment, in
    order.
    """

    chunks: NDArray[np.uint64]
    balances: NDArray[np.int64]
    functions: tuple[FunctionVersion, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A loaded snapshot.

    `balances` int64[max_accounts], `touched` uint8[chunk_count(max_accounts)] and `functions`
    belong to the caller, who may go on writing them.
    """

    path: Path
    fields: SnapshotFields
    balances: NDArray[np.int64]
    touched: NDArray[np.uint8]
    functions: FunctionRegistry


def chunk_count(max_accounts: int) -> int:
    """The number of chunks that `max_accounts` accounts need: the length of `touched`."""
    return -(-max_accounts // CHUNK_ACCOUNTS)


def freeze_balances(
    balances: NDArray[np.int64],
    touched: NDArray[np.uint8],
    functions: Sequence[FunctionVersion] = (),
) -> FrozenBalances:
    """Copies the used chunks. `balances` int64[n], `touched` uint8[chunk_count(n)].

    Pages of unused chunks are not read.
    """
    chunks = np.flatnonzero(touched)
    frozen = np.empty((len(chunks), CHUNK_ACCOUNTS), np.int64)
    whole = len(balances) // CHUNK_ACCOUNTS
    k = int(np.searchsorted(chunks, whole))
    if k:
        rows = balances[: whole * CHUNK_ACCOUNTS].reshape(whole, CHUNK_ACCOUNTS)
        # The numbers are in range; any mode but "raise" writes to `out` without a buffer between.
        np.take(rows, chunks[:k], axis=0, out=frozen[:k], mode="clip")
    if k < len(chunks):
        rest = balances[whole * CHUNK_ACCOUNTS :]
        frozen[k, : len(rest)] = rest
        frozen[k, len(rest) :] = 0
    return FrozenBalances(chunks.astype(np.uint64), frozen, tuple(functions))


def write_frozen(
    storage: Storage, folder: Path, fields: SnapshotFields, frozen: FrozenBalances
) -> Path:
    """Writes the functions, the balances, and the sidecar of each behind it, all durably.

    Returns the path of the balances. Until their sidecar is there, nothing of it counts.
    Raises UnbalancedSnapshot before anything is written, and StorageError.
    """
    total = sum_of_balances(frozen.balances.reshape(-1))
    if total != 0:
        raise UnbalancedSnapshot(fields.segment, total)
    payload = (
        flat(frozen.chunks.astype("<u8", copy=False)),
        flat(frozen.balances.astype("<i8", copy=False)),
    )
    payload_crc = crc32c(payload[1], crc32c(payload[0]))
    header = SnapshotHeader(fields, len(frozen.chunks), _account_bound(frozen), payload_crc)
    head = header.encode()
    path = snapshot_path(folder, fields.segment)
    file_crc = crc32c(payload[1], crc32c(payload[0], crc32c(head)))
    line = sidecar_line(path.name, file_crc, header.file_size)
    write_function_snapshot(storage, folder, fields, frozen.functions)
    storage.atomic_write(path, [head, *payload])
    storage.atomic_write(sidecar_path(path), [line])
    return path


def list_snapshots(folder: Path) -> list[Path]:
    """The snapshot files in `folder`, newest first, valid or not; none if it is absent.

    Raises SnapshotUnreadable.
    """
    return [
        snapshot_path(folder, segment) for segment in reversed(segments_of(folder, _PREFIX, "bin"))
    ]


def verify_snapshot(path: Path) -> SnapshotHeader:
    """Reads a whole snapshot with all that belongs to it; checks everything but its fit to the log.

    Raises DamagedSnapshot, SnapshotUnreadable.
    """
    with ReadableFile(path) as file:
        header = _verify(file)
        _read_functions(path, header)
        return header


def load_latest_snapshot(
    folder: Path,
    *,
    cluster_id: int,
    transactions_per_segment: int,
    max_accounts: int,
    durable_index: int,
    fast: bool = False,
    looking_back: bool = False,
) -> tuple[Snapshot | None, list[DamagedSnapshot]]:
    """Loads the newest valid snapshot of `folder`; None means the log from its start.

    `durable_index` is the last transaction id that the log holds. `fast`: their owner moves the
    balances all the time, see `account_array`. The list names the newer snapshots that were
    passed over; the caller logs each. With `looking_back` the log goes on behind `durable_index`:
    snapshots of later transactions are not looked at.

    Raises SnapshotMismatch when the newest valid snapshot belongs to another cluster or another
    `transactions_per_segment`, or is newer than the log: then the log lost data or the folder was
    mixed. Raises AccountLimitTooLow, SnapshotUnreadable.
    """
    rejected: list[DamagedSnapshot] = []
    last_segment = durable_index // transactions_per_segment
    for segment in reversed(segments_of(folder, _PREFIX, "bin")):
        if looking_back and segment > last_segment:
            continue
        path = snapshot_path(folder, segment)
        try:
            with ReadableFile(path) as file:
                header = _verify(file)
                functions = _read_functions(path, header)
                _check_fit(path, header.fields, cluster_id, transactions_per_segment, durable_index)
                if header.account_bound > max_accounts:
                    raise AccountLimitTooLow(path, max_accounts, header.account_bound)
                return _load(file, header, max_accounts, functions, fast), rejected
        except DamagedSnapshot as error:
            rejected.append(error)
    return None, rejected


def prune_snapshots(storage: Storage, folder: Path, keep: int) -> list[Path]:
    """Removes the snapshots older than the newest `keep` (at least 1) valid ones, with all parts.

    Returns the paths of the balances that were removed. The newest `keep` are verified in full: a
    good one never gives way to a bad one. Damaged ones that are newer stay, for whoever wants to
    look into them. Raises StorageError, SnapshotUnreadable.
    """
    if keep < 1:
        raise ValueError(f"at least one snapshot must be kept, not {keep}")
    valid = 0
    oldest_kept = 0
    for path in list_snapshots(folder):
        try:
            oldest_kept = verify_snapshot(path).fields.segment
        except DamagedSnapshot:
            continue
        valid += 1
        if valid == keep:
            break
    if valid < keep:
        return []
    # In any order: a part of a snapshot counts for nothing.
    removed: list[Path] = []
    parts: list[Path] = []
    for prefix, path_of in ((_PREFIX, snapshot_path), (_FUNCTIONS_PREFIX, function_snapshot_path)):
        for suffix in ("bin", "crc"):
            for segment in segments_of(folder, prefix, suffix):
                if segment >= oldest_kept:
                    continue
                path = path_of(folder, segment)
                parts.append(path if suffix == "bin" else sidecar_path(path))
                if path_of is snapshot_path and suffix == "bin":
                    removed.append(path)
    for path in parts:
        storage.remove(path)
    if parts:
        storage.fsync_folder(folder)
    return removed


def sum_of_balances(balances: NDArray[np.int64]) -> int:
    """The sum of int64[n] as a Python integer: it cannot wrap. It is 0 in every ledger."""
    total = 0
    for first in range(0, len(balances), _BLOCK_ACCOUNTS):
        block = balances[first : first + _BLOCK_ACCOUNTS]
        if int(block.min()) >= -_MAX_SUMMAND and int(block.max()) <= _MAX_SUMMAND:
            total += int(block.sum())
        else:
            total += (int((block >> 32).sum()) << 32) + int((block & 0xFFFF_FFFF).sum())
    return total


def _account_bound(frozen: FrozenBalances) -> int:
    for i in range(len(frozen.chunks) - 1, -1, -1):
        used = np.flatnonzero(frozen.balances[i])
        if len(used):
            return int(frozen.chunks[i]) * CHUNK_ACCOUNTS + int(used[-1]) + 1
    return 0


def _verify(file: ReadableFile) -> SnapshotHeader:
    path = file.path
    sidecar = read_sidecar(path)
    size = file.size()
    head = file.read(min(size, HEADER_SIZE), 0)
    header = decode_header(path, head, size)
    numbers = _read_chunk_numbers(file, header)
    payload_crc = crc32c(flat(numbers))
    file_crc = crc32c(flat(numbers), crc32c(head))
    total = 0
    scratch = np.empty((_BLOCK_CHUNKS, CHUNK_ACCOUNTS), np.dtype("<i8"))
    for first in range(0, header.chunk_count, _BLOCK_CHUNKS):
        block = scratch[: min(_BLOCK_CHUNKS, header.chunk_count - first)]
        file.read_into(flat(block), header.balances_offset + first * CHUNK_BYTES)
        payload_crc = crc32c(flat(block), payload_crc)
        file_crc = crc32c(flat(block), file_crc)
        total += sum_of_balances(block.reshape(-1))
    if payload_crc != header.payload_crc:
        raise DamagedSnapshot(path, HEADER_SIZE, "the payload's checksum does not match")
    if sidecar != sidecar_line(path.name, file_crc, size):
        raise DamagedSnapshot(path, 0, f"its sidecar {sidecar_path(path).name} does not match it")
    if len(numbers) and (
        not bool((numbers[1:] > numbers[:-1]).all()) or int(numbers[-1]) > MAX_I64 // CHUNK_BYTES
    ):
        raise DamagedSnapshot(path, HEADER_SIZE, "the chunk numbers are not ascending")
    if total != 0:
        raise DamagedSnapshot(path, HEADER_SIZE, f"its balances add up to {total} instead of 0")
    return header


def _read_functions(path: Path, header: SnapshotHeader) -> FunctionRegistry:
    """The functions that belong to the balances `path`; without them these do not count."""
    if not header.has_functions:
        return FunctionRegistry()
    beside = function_snapshot_path(path.parent, header.fields.segment)
    fields, functions = read_function_snapshot(beside)
    for name in ("cluster_id", "transactions_per_segment"):
        if getattr(fields, name) != getattr(header.fields, name):
            raise DamagedSnapshot(beside, 0, f"its {name} is not that of {path.name}")
    return functions


def _read_chunk_numbers(file: ReadableFile, header: SnapshotHeader) -> NDArray[np.uint64]:
    numbers = np.empty(header.chunk_count, np.dtype("<u8"))
    file.read_into(flat(numbers), HEADER_SIZE)
    return numbers


def _check_fit(
    path: Path,
    fields: SnapshotFields,
    cluster_id: int,
    transactions_per_segment: int,
    durable_index: int,
) -> None:
    if fields.cluster_id != cluster_id:
        raise SnapshotMismatch(
            path,
            "cluster_id",
            fields.cluster_id,
            cluster_id,
            "it was written by another ledger. Move the files that do not belong here away",
        )
    if fields.transactions_per_segment != transactions_per_segment:
        raise SnapshotMismatch(
            path,
            "transactions_per_segment",
            fields.transactions_per_segment,
            transactions_per_segment,
            "this setting cannot change once a ledger has started. Set it back",
        )
    if fields.last_tx_id > durable_index:
        raise SnapshotMismatch(
            path,
            "last_tx_id",
            fields.last_tx_id,
            durable_index,
            "it is newer than the log, so the log lost transactions that were durable. "
            "Restore the log, or move this snapshot away only if that loss is accepted",
        )


def _load(
    file: ReadableFile,
    header: SnapshotHeader,
    max_accounts: int,
    functions: FunctionRegistry,
    fast: bool,
) -> Snapshot:
    """Reads a verified snapshot into fresh arrays, each chunk straight to its place.

    What ends in memory is checked once more: the balances are what was verified, or it is damage.
    """
    numbers = _read_chunk_numbers(file, header)
    crc = crc32c(flat(numbers))
    balances = account_array(max_accounts, fast=fast)
    touched = np.zeros(chunk_count(max_accounts), np.uint8)
    whole = max_accounts // CHUNK_ACCOUNTS
    inside = int(np.searchsorted(numbers, whole))
    first = 0
    for last in _run_ends(numbers[:inside]):
        start = int(numbers[first]) * CHUNK_ACCOUNTS
        part = balances[start : start + (last - first) * CHUNK_ACCOUNTS]
        file.read_into(flat(part), header.balances_offset + first * CHUNK_BYTES)
        crc = crc32c(flat(part), crc)
        first = last
    touched[numbers[:inside].astype(np.intp)] = 1
    scratch = np.empty(CHUNK_ACCOUNTS, np.dtype("<i8"))
    for i in range(inside, header.chunk_count):
        offset = header.balances_offset + i * CHUNK_BYTES
        file.read_into(flat(scratch), offset)
        crc = crc32c(flat(scratch), crc)
        start = int(numbers[i]) * CHUNK_ACCOUNTS
        room = max(0, max_accounts - start)
        if scratch[room:].any():
            raise DamagedSnapshot(file.path, offset, "a balance lies beyond its last account")
        if room:
            balances[start:] = scratch[:room]
            touched[int(numbers[i])] = 1
    if crc != header.payload_crc:
        raise DamagedSnapshot(file.path, HEADER_SIZE, "it reads differently a second time")
    return Snapshot(file.path, header.fields, balances, touched, functions)


def _run_ends(numbers: NDArray[np.uint64]) -> list[int]:
    """Where each run that is read at once ends: its chunks adjoin in the file and in memory."""
    if len(numbers) == 0:
        return []
    jumps = np.flatnonzero(numbers[1:] - numbers[:-1] != 1) + 1
    ends: list[int] = []
    first = 0
    for end in [*jumps.tolist(), len(numbers)]:
        ends.extend(range(first + _BLOCK_CHUNKS, end, _BLOCK_CHUNKS))
        ends.append(end)
        first = end
    return ends
