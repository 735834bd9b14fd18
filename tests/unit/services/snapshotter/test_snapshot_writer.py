"""The snapshot writer: in the background, one job waiting at most, errors are told and final."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.buffers import Buffer
from tallybus.common.files import Storage, StorageError
from tallybus.common.snapshot.balances import (
    FrozenBalances,
    SnapshotFields,
    UnbalancedSnapshot,
    freeze_balances,
    list_snapshots,
    load_latest_snapshot,
)
from tallybus.services.snapshotter.snapshot_writer import SnapshotWriter

DEADLINE = 30.0


def job(segment: int) -> tuple[SnapshotFields, FrozenBalances]:
    balances = np.zeros(10_000, np.int64)
    balances[[0, 9_000]] = (-segment, segment)
    return SnapshotFields(1, segment, 10, 1, 1), freeze_balances(
        balances, np.array([1, 0, 1], np.uint8)
    )


class SlowStorage(Storage):
    """Writes a file only when the test lets it."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def atomic_write(self, path: Path, buffers: Sequence[Buffer]) -> None:
        self.begun.release()
        assert self.go_on.acquire(timeout=DEADLINE)
        super().atomic_write(path, buffers)


class BrokenStorage(Storage):
    def __init__(self) -> None:
        self.calls = 0

    def _sys_fsync(self, descriptor: int) -> None:
        self.calls += 1
        raise OSError(5, "Input/output error")


def segments(folder: Path) -> list[str]:
    return [path.name[9:15] for path in list_snapshots(folder)]


def test_closing_writes_what_was_taken(tmp_path: Path) -> None:
    writer = SnapshotWriter(Storage(), tmp_path, 3)
    assert writer.offer(*job(1))
    writer.close(DEADLINE)
    assert writer.error is None
    assert not writer.busy
    assert writer.last is not None
    assert writer.last.segment == 1
    snapshot, rejected = load_latest_snapshot(
        tmp_path, cluster_id=1, transactions_per_segment=10, max_accounts=10_000, durable_index=10
    )
    assert rejected == []
    assert snapshot is not None
    assert snapshot.balances[9_000] == 1


def test_at_most_one_job_waits(tmp_path: Path) -> None:
    storage = SlowStorage()
    writer = SnapshotWriter(storage, tmp_path, 3)
    assert not writer.busy
    assert writer.offer(*job(1))
    assert storage.begun.acquire(timeout=DEADLINE)
    assert writer.busy
    assert writer.offer(*job(2))
    assert not writer.offer(*job(3))
    for _ in range(2 * 4):
        storage.go_on.release()
    writer.close(DEADLINE)
    assert segments(tmp_path) == ["000002", "000001"]
    assert writer.last is not None
    assert writer.last.segment == 2


def test_old_snapshots_go_when_new_ones_are_durable(tmp_path: Path) -> None:
    for segment in range(1, 6):
        writer = SnapshotWriter(Storage(), tmp_path, 2)
        assert writer.offer(*job(segment))
        writer.close(DEADLINE)
    assert segments(tmp_path) == ["000005", "000004"]


def test_a_storage_error_is_final(tmp_path: Path) -> None:
    storage = BrokenStorage()
    writer = SnapshotWriter(storage, tmp_path, 2)
    assert writer.offer(*job(1))
    writer.close(DEADLINE)
    assert isinstance(writer.error, StorageError)
    assert not writer.busy
    assert writer.last is None
    assert storage.calls == 1
    with pytest.raises(StorageError):
        writer.offer(*job(2))
    assert segments(tmp_path) == []


def test_an_error_drops_the_waiting_job(tmp_path: Path) -> None:
    class Storage1(SlowStorage):
        def _sys_fsync(self, descriptor: int) -> None:
            raise OSError(28, "No space left on device")

    storage = Storage1()
    writer = SnapshotWriter(storage, tmp_path, 2)
    assert writer.offer(*job(1))
    assert storage.begun.acquire(timeout=DEADLINE)
    assert writer.offer(*job(2))
    storage.go_on.release()
    writer.close(DEADLINE)
    assert isinstance(writer.error, StorageError)
    assert not writer.busy
    assert segments(tmp_path) == []


def test_balances_that_do_not_add_up_are_an_error(tmp_path: Path) -> None:
    fields, frozen = job(1)
    frozen.balances[0, 1] = 1
    writer = SnapshotWriter(Storage(), tmp_path, 2)
    assert writer.offer(fields, frozen)
    writer.close(DEADLINE)
    assert isinstance(writer.error, UnbalancedSnapshot)
    assert segments(tmp_path) == []


def test_a_closed_writer_takes_nothing(tmp_path: Path) -> None:
    writer = SnapshotWriter(Storage(), tmp_path, 2)
    writer.close(DEADLINE)
    writer.close(DEADLINE)
    with pytest.raises(ValueError, match="closed"):
        writer.offer(*job(1))


def test_keeping_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        SnapshotWriter(Storage(), tmp_path, 0)
