"""Makes a segment and changes over to it, in four steps. A crash may follow any of them.

1. `fdatasync` of wal.bin, which is full.
2. wal.new is written with the opening marker of the next segment; fsync of file and folder.
3. wal.bin is renamed to wal_NNNNNN.bin; fsync of the folder.
4. wal.new is renamed to wal.bin; fsync of the folder.
The folder is synced between the two renames. Without that the disk could keep the second rename and
not the first, and the new file would have replaced the full one. At every moment one of the two
names tells where the log ends, and recovery goes on from there.
"""

from __future__ import annotations

from pathlib import Path

from tallybus.common.files import OpenFile, Storage
from tallybus.common.wal.block import Chain
from tallybus.common.wal.reader import ACTIVE_NAME, FRESH_NAME, closed_path


def create_fresh(storage: Storage, folder: Path, chain: Chain) -> OpenFile:
    """wal.new with the opening marker of `chain`'s segment, durable; advances `chain` over it."""
    file = storage.create(folder / FRESH_NAME)
    try:
        header, packed = chain.seal_marker(chain.next_id - 1)
        storage.write_all(file, [packed], 0)
        storage.fsync(file)
        storage.fsync_folder(folder)
    except BaseException:
        storage.close(file)
        raise
    chain.advance(header)
    return file


def adopt_fresh(storage: Storage, folder: Path) -> None:
    """Give wal.new its name wal.bin, durably. There must be no wal.bin."""
    storage.rename(folder / FRESH_NAME, folder / ACTIVE_NAME)
    storage.fsync_folder(folder)


def rotate(storage: Storage, folder: Path, full: OpenFile, chain: Chain) -> tuple[OpenFile, Chain]:
    """Close the full segment and open the next; returns its file and the chain behind its marker.

    Closes `full`. Raises StorageError: then the folder is in one of the states that recovery knows,
    and nobody may write to either file any more.
    """
    storage.fdatasync(full)
    following = chain.next_segment()
    fresh = create_fresh(storage, folder, following)
    try:
        storage.rename(folder / ACTIVE_NAME, closed_path(folder, chain.segment))
        storage.fsync_folder(folder)
        adopt_fresh(storage, folder)
    except BaseException:
        storage.close(fresh)
        raise
    fresh.path = folder / ACTIVE_NAME
    storage.close(full)
    return fresh, following
