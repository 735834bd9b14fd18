"""The write-ahead log as its one writer sees it: append batches as blocks, rotate at segment ends.

What is appended is written, not durable: `Committer` makes it durable from its own thread. The two
share the active file; `Log` swaps it under a lock and only after the closed file is fully
synced, so "the written index as read before syncing the active file" is always durable afterwards.

The first failure of the disk poisons the log: every later call raises it again, and the committer
stops. The process then ends, and the next start recovers from the disk.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tallybus.common.batch import Batch, InvalidBatch
from tallybus.common.buffers import Buffer
from tallybus.common.files import FileLock, Storage, StorageError
from tallybus.common.wal.block import MAX_ID, BlockHeader, Chain
from tallybus.common.wal.check import TornTail
from tallybus.common.wal.reader import LOCK_NAME, Progress
from tallybus.services.wal.recovery import Recovered, recover
from tallybus.services.wal.rotation import rotate


class AppendRefused(Exception):
    """A batch does not belong at the end of the log. Nothing was written; the log works on."""

    def __init__(self, field: str, given: int, expected: int, reason: str) -> None:
        super().__init__(f"{field} {given}: {reason} (the log expects {expected})")
        self.field = field
        self.given = given
        self.expected = expected


class Written(NamedTuple):
    """How far the log is written; always replaced as one, so any thread may read it."""

    last_id: int
    """Last transaction id whose block is written."""
    position: int
    """Bytes written since the log was opened, markers too."""


def check_append(chain: Chain, batch: Batch, durable_index: int) -> None:
    """Raises AppendRefused unless the batch may be appended behind `chain`, InvalidBatch when its
    parts do not fit together."""
    if batch.first_id != chain.next_id:
        raise AppendRefused("first id", batch.first_id, chain.next_id, "out of sequence")
    if batch.term < chain.term:
        raise AppendRefused("term", batch.term, chain.term, "a newer sequencer has written")
    check_durable(chain, durable_index)
    batch.check()
    if not len(batch.records):
        raise InvalidBatch("there are no records")
    if batch.first_id + len(batch.records) > MAX_ID:
        raise AppendRefused("first id", batch.first_id, MAX_ID, "the ids are used up")


def check_durable(chain: Chain, durable_index: int) -> None:
    """Raises AppendRefused when an index is called durable that is not even written."""
    if not 0 <= durable_index < chain.next_id:
        raise AppendRefused(
            "durable index", durable_index, chain.next_id - 1, "it is beyond what is written"
        )


class Log:
    """A locked, recovered, open log. `append`, `write_marker` and `close` belong to one thread.

    `on_written` is called, in that thread, whenever something was written that wants syncing.
    """

    def __init__(
        self, folder: Path, storage: Storage, lock: FileLock, recovered: Recovered
    ) -> None:
        """Use `Log.open`."""
        self.folder = folder
        self.gateways: dict[int, int] = recovered.gateways
        self.torn: TornTail | None = recovered.torn
        """What recovery cut off, for the service to tell the operator."""
        self.written = Written(recovered.durable_index, 0)
        self.failure: StorageError | None = None
        self.on_written: Callable[[], None] | None = None
        self._storage = storage
        self._lock = lock
        self._file = recovered.file
        self._chain = recovered.chain
        self._file_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        folder: Path,
        storage: Storage,
        transactions_per_segment: int,
        new_cluster_id: int,
        progress: Progress | None = None,
    ) -> Log:
        """Lock the folder (made when missing), recover the log in it, or make a new one.

        transactions_per_segment must be what the log was made with. new_cluster_id (u64, random) is
        used for a new log only. After this everything up to `next_id - 1` is durable. Raises
        LockHeld, DamagedLog, ForeignLog, StorageError.
        """
        if transactions_per_segment < 1:
            raise ValueError(
                f"transactions_per_segment must be at least 1, got {transactions_per_segment}"
            )
        storage.make_folder(folder)
        lock = storage.lock_exclusive(folder / LOCK_NAME)
        try:
            recovered = recover(folder, storage, transactions_per_segment, new_cluster_id, progress)
        except BaseException:
            lock.release()
            raise
        return cls(folder, storage, lock, recovered)

    @property
    def next_id(self) -> int:
        return self._chain.next_id

    @property
    def term(self) -> int:
        """Highest term in the log."""
        return self._chain.term

    @property
    def cluster_id(self) -> int:
        if self._chain.cluster_id is None:
            raise AssertionError("an open log knows its cluster")
        return self._chain.cluster_id

    @property
    def transactions_per_segment(self) -> int:
        return self._chain.transactions_per_segment

    @property
    def segment(self) -> int:
        """Number of the active segment."""
        return self._chain.segment

    @property
    def durable_index(self) -> int:
        """The durable index as the log itself has it written, behind what the committer knows; at a
        clean stop `next_id - 1`."""
        return self._chain.durable_index

    def append(self, batch: Batch, durable_index: int) -> None:
        """Write the batch as one block, or as several where it passes a segment's end.

        durable_index: last id known durable, kept in the header as evidence for recovery. The
        buffers may be reused when this returns. Raises AppendRefused or InvalidBatch (nothing
        written) and StorageError (fatal).
        """
        self._check_usable()
        check_append(self._chain, batch, durable_index)
        for part in batch.split_at_segments(self._chain.transactions_per_segment):
            header, packed = self._chain.seal(part, durable_index)
            self._write(header, [packed, *part.buffers()])
            if self._chain.segment_is_full:
                self._rotate()
        if batch.gateway:
            seen = self.gateways.get(batch.gateway, 0)
            self.gateways[batch.gateway] = max(seen, batch.request)

    def write_marker(self, durable_index: int, term: int | None = None) -> bool:
        """Put a newer durable index, or a higher term, into the log; false if it has it.

        Until the marker is on disk itself, a damaged last block looks like a torn tail. Raises
        AppendRefused for a term below the log's (nothing written) and StorageError (fatal).
        """
        self._check_usable()
        check_durable(self._chain, durable_index)
        term = self._chain.term if term is None else term
        if term < self._chain.term:
            raise AppendRefused("term", term, self._chain.term, "a newer sequencer has written")
        if durable_index <= self._chain.durable_index and term == self._chain.term:
            return False
        header, packed = self._chain.seal_marker(durable_index, term)
        self._write(header, [packed])
        return True

    def sync(self) -> None:
        """Make all that is written durable; from any thread. Raises StorageError."""
        with self._file_lock:
            self._check_usable()
            try:
                self._storage.fdatasync(self._file)
            except StorageError as error:
                self.failure = error
                raise
        # A write that failed meanwhile must stop the index too: nothing follows a failure.
        self._check_usable()

    def close(self) -> None:
        """Clean stop: sync, certify everything by a durable marker, close, unlock.

        Stop the committer first. After a failure it only closes. Raises StorageError.
        """
        try:
            if self.failure is None:
                self.sync()
                if self.write_marker(self.next_id - 1):
                    self.sync()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close and unlock without writing, as a crash would."""
        if self.failure is None:
            self.failure = StorageError(self._file.path, "use", errno.EBADF, "the log is closed")
        with self._file_lock, suppress(StorageError):
            self._storage.close(self._file)
        with suppress(StorageError):
            self._lock.release()

    def _check_usable(self) -> None:
        failure = self.failure
        if failure is not None:
            raise StorageError(
                failure.path, failure.operation, failure.errno, "the log is not usable any more"
            ) from failure

    def _write(self, header: BlockHeader, buffers: Sequence[Buffer]) -> None:
        try:
            self._storage.write_all(self._file, buffers, header.offset)
        except StorageError as error:
            self.failure = error
            raise
        self._chain.advance(header)
        self.written = Written(header.last_id, self.written.position + header.end - header.offset)
        if self.on_written is not None:
            self.on_written()

    def _rotate(self) -> None:
        with self._file_lock:
            # A sync that failed while this waited may have lost what it was to make durable, and
            # the next one succeeds all the same: the file must not count as whole.
            self._check_usable()
            try:
                self._file, self._chain = rotate(
                    self._storage, self.folder, self._file, self._chain
                )
            except StorageError as error:
                self.failure = error
                raise
