"""Finds one transaction in the log without reading what stands before it.

A block's header says, under its checksum, where in its file it stands. So a reader can begin
anywhere: the next header of this ledger that names its own offset begins a block. The search
guesses where the transaction stands, looks which block is there, and guesses better. A handful of
looks finds it in a segment of any size, and nothing is kept in memory. Reads files, writes none.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tallybus.common.batch import Batch, InvalidBatch, segment_of
from tallybus.common.files import Storage
from tallybus.common.wal.block import (
    ALIGNMENT,
    HEADER_FIELDS,
    HEADER_SIZE,
    MAGIC,
    BlockHeader,
    Chain,
    InvalidBlock,
    batch_in,
    parse_header,
    verify_payload,
)
from tallybus.common.wal.block import FORMAT_VERSION as BLOCK_VERSION
from tallybus.common.wal.reader import (
    BlockScanner,
    DamagedLog,
    LogEndsEarly,
    chain_at,
    open_segment,
    refusal,
)

STEPS: Final = 16
"""Blocks stepped over one by one before the next look elsewhere."""
SMALL_WINDOW: Final = 2048
LARGE_WINDOW: Final = 131_072
"""Words searched for a header at a time: few at first, for most blocks are small."""

_FIRST_WORD: Final = np.uint64(
    int.from_bytes(
        MAGIC + BLOCK_VERSION.to_bytes(2, "little") + HEADER_SIZE.to_bytes(2, "little"), "little"
    )
)
_PLACES: Final = {name: offset // ALIGNMENT for name, offset, _ in HEADER_FIELDS}
_OFFSET_WORD: Final = _PLACES["offset"]
_CLUSTER_WORD: Final = _PLACES["cluster_id"]
_SEGMENT_WORD: Final = _PLACES["segment"]
_HEADER_WORDS: Final = HEADER_SIZE // ALIGNMENT


def find_transaction(
    folder: Path,
    transaction_id: int,
    transactions_per_segment: int,
    *,
    cluster_id: int | None = None,
    last_id: int,
    storage: Storage | None = None,
) -> Batch:
    """This one transaction, with all that belongs to it; raises as `find_block`."""
    block = find_block(
        folder,
        transaction_id,
        transactions_per_segment,
        cluster_id=cluster_id,
        last_id=last_id,
        storage=storage,
    )
    return block.clip(transaction_id, transaction_id)


def find_block(
    folder: Path,
    transaction_id: int,
    transactions_per_segment: int,
    *,
    cluster_id: int | None = None,
    last_id: int,
    storage: Storage | None = None,
) -> Batch:
    """The transactions of the whole block that holds this transaction, verified.

    `last_id` is the last transaction known durable, at least `transaction_id`; the closer to the
    end of the log, the better the first guess. Raises DamagedLog or ForeignLog with file and
    offset, LogEndsEarly when the files end before it, StorageError when a file cannot be opened.
    """
    if not 1 <= transaction_id <= last_id:
        raise ValueError(f"transaction {transaction_id} is not one of 1 to {last_id}")
    segment = segment_of(transaction_id, transactions_per_segment)
    path, data = open_segment(storage or Storage(), folder, segment)
    _advise(data, mmap.MADV_RANDOM)
    scanner = BlockScanner(data, chain_at(segment, transactions_per_segment, cluster_id))
    try:
        header = _find_header(scanner, transaction_id, last_id)
        if header is None:
            raise LogEndsEarly(
                path,
                len(data),
                f"the file ends before id {scanner.chain.next_id}, wanted is {transaction_id}",
            )
        _advise(data, mmap.MADV_WILLNEED, header.offset, header.end)
        verify_payload(data, header)
        batch = batch_in(data, header)
        batch.check()
    except InvalidBlock as error:
        raise refusal(path, error) from error
    except InvalidBatch as error:
        raise DamagedLog(path, scanner.chain.offset, error.reason) from error
    return batch


def _advise(data: memoryview, advice: int, start: int = 0, end: int | None = None) -> None:
    """Tell the system how a mapped file will be read: what is not in its cache costs the most."""
    if isinstance(data.obj, mmap.mmap):
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        data.obj.madvise(advice, first, min(len(data), end or len(data)) - first)


def _find_header(scanner: BlockScanner, wanted: int, last_id: int) -> BlockHeader | None:
    """The header of the block that holds `wanted`; None when the file ends before it.

    Raises InvalidBlock. The chain of `scanner` stands in front of the segment's first block.
    """
    chain = scanner.chain
    size = len(scanner.data)
    words = np.frombuffer(scanner.data, "<u8", size // ALIGNMENT)
    # The block begins between the chain's place and `end`; `end_id`, always above `wanted`, is
    # about the id at `end`.
    end = size
    end_id = min(chain.segment_end, last_id) + 1
    looks = 0
    while True:
        for _ in range(STEPS):
            if scanner.at_end:
                return None
            header = scanner.step(check_payload=False)
            if header.first_id <= wanted <= header.last_id:
                return header
        if chain.offset >= end:
            continue  # it comes now, or what stands there is damaged
        looks += 1
        ahead = end - chain.offset
        if looks % 3:
            # A little before the guess: from there it can be stepped to.
            share = (wanted - chain.next_id) / (end_id - chain.next_id)
            distance = int(ahead * share * 63 / 64)
        else:
            distance = ahead // 2
        start = (chain.offset + distance) // ALIGNMENT
        found = _next_header(scanner.data, words, start, end // ALIGNMENT, chain)
        if found is None or found.first_id > wanted:
            # No block begins between `start` and what was found.
            end = start * ALIGNMENT
            end_id = found.first_id if found is not None else end_id
        else:
            chain.advance(found)
            if found.last_id >= wanted:
                return found


def _next_header(
    data: memoryview,
    words: npt.NDArray[Any],
    start: int,
    end: int,
    chain: Chain,
) -> BlockHeader | None:
    """The first header of `chain`'s file that begins in words start..end-1, or None.

    What clients wrote cannot pass for one unless they know the cluster id, which is random, and
    where in the file it will stand.
    """
    # The first block of the file has told the cluster.
    cluster, segment = np.uint64(chain.cluster_id or 0), np.uint64(chain.segment)
    end = min(end, len(words) - _HEADER_WORDS + 1)
    window = SMALL_WINDOW
    while start < end:
        stop = min(start + window, end)
        at = np.flatnonzero(words[start:stop] == _FIRST_WORD) + start
        if len(at):
            true_place = words[at + _OFFSET_WORD] == at.astype(np.uint64) * np.uint64(ALIGNMENT)
            ours = (words[at + _CLUSTER_WORD] == cluster) & (words[at + _SEGMENT_WORD] == segment)
            for place in at[true_place & ours].tolist():
                try:
                    return parse_header(data, place * ALIGNMENT)
                except InvalidBlock:
                    continue  # damaged; a reader that needs it meets it again
        start = stop
        window = min(2 * window, LARGE_WINDOW)
    return None
