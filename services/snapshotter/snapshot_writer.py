"""Writes snapshots in a background thread, so that applying and reading go on meanwhile.

Writes and prunes files in the data folder through `Storage`; copies nothing, and does not decide
when a snapshot is due.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from time import monotonic, time
from typing import Final, NamedTuple

from tallybus.common.errors import ServiceError
from tallybus.common.files import Storage
from tallybus.common.snapshot.balances import (
    FrozenBalances,
    SnapshotFields,
    prune_snapshots,
    write_frozen,
)

_log: Final = logging.getLogger("tallybus.snapshotter")


class LastSnapshot(NamedTuple):
    """What was written last: its segment, when it was on disk (Unix time), how long it took, and
    the size of its file in bytes."""

    segment: int
    time: float
    seconds: float
    size: int


class SnapshotWriter:
    """A thread that writes one snapshot after the other and keeps the newest `keep`.

    At most one job waits while another is written. The first error ends the thread: it is in
    `error`, the service must stop, and the next start recovers from the disk. All methods belong to
    one owner.
    """

    def __init__(self, storage: Storage, folder: Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"at least one snapshot must be kept, not {keep}")
        self.last: LastSnapshot | None = None
        self.written = 0
        self.skipped = 0
        self._storage = storage
        self._folder = folder
        self._keep = keep
        self._changed = threading.Condition()
        self._waiting: tuple[SnapshotFields, FrozenBalances] | None = None
        self._writing = False
        self._closing = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="snapshot-writer", daemon=True)
        self._thread.start()

    @property
    def error(self) -> Exception | None:
        """What ended the thread, mostly a StorageError or SnapshotError. None while all is well."""
        with self._changed:
            return self._error

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being written or waits."""
        with self._changed:
            return self._writing or self._waiting is not None

    def offer(self, fields: SnapshotFields, frozen: FrozenBalances) -> bool:
        """Takes a job over, unless another one waits already; returns whether it was taken.

        `frozen` must not change afterwards. A snapshot that was not taken is no loss: the log has
        everything, and the next one comes. Raises the thread's error, and ValueError after `close`.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._closing:
                raise ValueError("the snapshot writer is closed")
            if self._waiting is not None:
                self.skipped += 1
                return False
            self._waiting = (fields, frozen)
            self._changed.notify_all()
            return True

    def close(self, timeout: float | None = None) -> None:
        """Writes what was taken, then ends the thread. Waits `timeout` seconds (None: for ever).

        Look at `error` afterwards. May be called again.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._write(*job)
        except Exception as error:  # noqa: BLE001 - it is handed to the service, whatever it is
            if not isinstance(error, ServiceError):
                _log.exception("no more snapshots are written")
            with self._changed:
                self._error = error
                self._writing = False
                self._waiting = None

    def _next(self) -> tuple[SnapshotFields, FrozenBalances] | None:
        with self._changed:
            self._writing = False
            while self._waiting is None and not self._closing:
                self._changed.wait()
            job, self._waiting = self._waiting, None
            self._writing = job is not None
            return job

    def _write(self, fields: SnapshotFields, frozen: FrozenBalances) -> None:
        started = monotonic()
        path = write_frozen(self._storage, self._folder, fields, frozen)
        self.written += 1
        self.last = LastSnapshot(fields.segment, time(), monotonic() - started, path.stat().st_size)
        removed = prune_snapshots(self._storage, self._folder, self._keep)
        _log.info(
            "wrote %s (%d accounts in chunks) in %.3f s, removed %d older",
            path.name,
            frozen.balances.size,
            monotonic() - started,
            len(removed),
        )
