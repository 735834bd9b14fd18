"""Opening a log folder: verify all of it, repair what a crash left, refuse what is damaged.

What is read is synced first: the kernel's cache may hold writes of a dead process that never
reached the disk, and nothing may be reported durable that could still vanish. Afterwards everything
in the log is durable and, by a marker, known to be.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tallybus.common.files import OpenFile, Storage, StorageError
from tallybus.common.wal.block import Chain
from tallybus.common.wal.check import TornTail, check_log, read_layout
from tallybus.common.wal.reader import (
    ACTIVE_NAME,
    FRESH_NAME,
    BlockScanner,
    KernelPolicy,
    Progress,
    chain_at,
    closed_path,
)
from tallybus.services.wal.rotation import adopt_fresh, create_fresh, rotate

REWRITE_BYTES: Final = 16 * 1024 * 1024
"""Bytes copied at once when the tail is written again."""


@dataclass(slots=True)
class Recovered:
    """An open log: the active file, the state behind its last block, and what was found."""

    file: OpenFile
    chain: Chain
    gateways: dict[int, int] = field(default_factory=dict)
    torn: TornTail | None = None

    @property
    def durable_index(self) -> int:
        """Everything that recovery found is durable."""
        return self.chain.next_id - 1


def recover(
    folder: Path,
    storage: Storage,
    transactions_per_segment: int,
    new_cluster_id: int,
    progress: Progress | None = None,
) -> Recovered:
    """Open the log in an existing folder that the caller has locked; make a log in an empty one.

    Raises DamagedLog or ForeignLog (nothing was changed then) and StorageError (start again).
    """
    _sync_everything(folder, storage)
    state = check_log(folder, transactions_per_segment, storage=storage, progress=progress)
    chain = state.chain
    if state.layout.is_empty:
        return _create(folder, storage, chain, new_cluster_id, leftover=state.layout.fresh)
    if not state.layout.active:
        adopt_fresh(storage, folder)
    file = storage.open_append(folder / ACTIVE_NAME)
    try:
        if state.torn is not None:
            storage.truncate(file, state.torn.offset)
            storage.fsync(file)
        _write_tail_again(folder, storage, file, chain)
        if chain.segment_is_full:
            if state.layout.fresh:
                storage.remove(folder / FRESH_NAME)
                storage.fsync_folder(folder)
            full = file
            file, chain = rotate(storage, folder, full, chain)
        elif chain.durable_index < chain.next_id - 1:
            _certify(storage, file, chain)
        else:
            storage.fdatasync(file)
    except BaseException:
        with suppress(StorageError):
            storage.close(file)
        raise
    return Recovered(file, chain, state.gateways, state.torn)


def _sync_everything(folder: Path, storage: Storage) -> None:
    layout = read_layout(folder, storage.list_names(folder))
    paths = [closed_path(folder, number) for number in range(1, layout.closed + 1)]
    if layout.active:
        paths.append(folder / ACTIVE_NAME)
    if layout.fresh:
        paths.append(folder / FRESH_NAME)
    for path in paths:
        storage.fsync_path(path)
    storage.fsync_folder(folder)


def _create(
    folder: Path, storage: Storage, chain: Chain, cluster_id: int, *, leftover: bool
) -> Recovered:
    if leftover:
        # A first start was interrupted: wal.new never became the log, so nothing is in it.
        storage.remove(folder / FRESH_NAME)
        storage.fsync_folder(folder)
    chain.cluster_id = cluster_id
    file = create_fresh(storage, folder, chain)
    try:
        adopt_fresh(storage, folder)
    except BaseException:
        storage.close(file)
        raise
    file.path = folder / ACTIVE_NAME
    return Recovered(file, chain)


def _write_tail_again(folder: Path, storage: Storage, file: OpenFile, chain: Chain) -> None:
    """Write everything behind the last certified block once more, over itself.

    It may be in the kernel's cache alone: after a failed sync the kernel takes the pages for clean,
    and the next sync succeeds without writing them. The sync that the caller does next really does.
    """
    data = storage.map_read(folder / ACTIVE_NAME)
    start = chain_at(chain.segment, chain.transactions_per_segment, chain.cluster_id)
    scanner = BlockScanner(data, start, policy=KernelPolicy())
    scanner.skip_to(chain.durable_index + 1)
    for offset in range(scanner.chain.offset, chain.offset, REWRITE_BYTES):
        piece = bytes(data[offset : min(offset + REWRITE_BYTES, chain.offset)])
        storage.write_all(file, [piece], offset)


def _certify(storage: Storage, file: OpenFile, chain: Chain) -> None:
    """A durable marker that all is durable: damage from now on is told from a torn tail."""
    header, packed = chain.seal_marker(chain.next_id - 1)
    storage.write_all(file, [packed], chain.offset)
    storage.fdatasync(file)
    chain.advance(header)
