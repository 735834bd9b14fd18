"""The committer: durable means synced after it was written, and a failure ends it for good."""

import errno
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

import pytest

from tallybus.common.files import StorageError
from tallybus.services.wal.committer import Committer
from tallybus.services.wal.log import Log, Written
from tests.support.faulty_storage import Fault, FaultyStorage, MemoryStorage
from tests.support.log_samples import CLUSTER, FOLDER, assert_log_holds, sample_batch

WAIT = 20.0
"""Seconds; only a hang takes this long."""


class HeldLog:
    """A log whose syncs the test lets through one by one."""

    def __init__(self) -> None:
        self.written = Written(0, 0)
        self.on_written: Callable[[], None] | None = None
        self.began = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.error: Exception | None = None
        self.syncs = 0

    def write(self, last_id: int) -> None:
        self.written = Written(last_id, self.written.position + 10)
        if self.on_written is not None:
            self.on_written()

    def sync(self) -> None:
        self.syncs += 1
        self.began.release()
        assert self.may_end.acquire(timeout=WAIT)
        if self.error is not None:
            raise self.error


class Notes:
    """Collects the durable index at each notification, and waits for them."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.committer: Committer | None = None
        self._arrived = threading.Semaphore(0)

    def __call__(self) -> None:
        assert self.committer is not None
        self.seen.append(self.committer.durable_index)
        self._arrived.release()

    def wait(self) -> None:
        assert self._arrived.acquire(timeout=WAIT)


def started(log: HeldLog | Log) -> tuple[Committer, Notes]:
    notes = Notes()
    committer = Committer(log, notes)
    notes.committer = committer
    committer.start()
    return committer, notes


@pytest.fixture
def held() -> Iterator[HeldLog]:
    log = HeldLog()
    yield log
    for _ in range(100):
        log.may_end.release()


def test_what_is_written_during_a_sync_waits_for_the_next(held: HeldLog) -> None:
    committer, notes = started(held)
    held.write(1)
    assert held.began.acquire(timeout=WAIT)
    held.write(2)
    held.write(3)
    assert committer.durable_index == 0
    held.may_end.release()
    notes.wait()
    assert held.began.acquire(timeout=WAIT)
    assert committer.durable_index == 1
    held.may_end.release()
    notes.wait()
    assert committer.durable_index == 3
    held.may_end.release()
    committer.close()
    assert notes.seen == [1, 3]
    assert held.syncs == 2, "two batches shared one sync, and nothing was synced twice"


def test_a_marker_is_synced_without_an_advance(held: HeldLog) -> None:
    committer, notes = started(held)
    held.write(0)
    assert held.began.acquire(timeout=WAIT)
    held.may_end.release()
    committer.close()
    assert (held.syncs, notes.seen, committer.durable_index) == (1, [], 0)


def test_closing_syncs_what_is_written(held: HeldLog) -> None:
    notes = Notes()
    committer = notes.committer = Committer(held, notes)
    held.write(5)
    held.may_end.release()
    committer.start()
    committer.close()
    assert committer.durable_index == 5
    assert held.on_written is None


def test_closing_before_the_start_is_harmless(held: HeldLog) -> None:
    committer = Committer(held, lambda: None)
    held.write(1)
    committer.close()
    assert committer.durable_index == 0


@pytest.mark.parametrize(
    "error", [StorageError(FOLDER, "fdatasync", errno.EIO), RuntimeError("a bug")]
)
def test_the_first_error_is_the_last_thing_it_does(held: HeldLog, error: Exception) -> None:
    committer, notes = started(held)
    held.write(1)
    held.may_end.release()
    notes.wait()
    held.error = error
    held.write(2)
    held.may_end.release()
    notes.wait()
    held.error = None
    held.write(3)
    held.may_end.release()
    committer.close()
    assert committer.failure is error
    assert committer.durable_index == 1
    assert held.syncs == 2, "never tried again"
    assert notes.seen == [1, 1], "told once of the advance, once of the failure"


def test_a_failing_callback_stops_the_index(held: HeldLog) -> None:
    def notify() -> None:
        raise RuntimeError("the service is gone")

    committer = Committer(held, notify)
    held.write(1)
    held.may_end.release()
    held.may_end.release()
    committer.start()
    committer.close()
    assert isinstance(committer.failure, RuntimeError)


def test_durable_is_on_disk_at_every_moment_over_rotations() -> None:
    disk = MemoryStorage()
    log = Log.open(FOLDER, disk, 7, CLUSTER)
    committer, notes = started(log)
    for size in (1, 3, 10, 2, 20, 1, 5) * 5:
        log.append(sample_batch(log.next_id, size), committer.durable_index)
    committer.close()
    assert committer.failure is None
    assert committer.durable_index == log.next_id - 1 == 210
    assert notes.seen == sorted(set(notes.seen))
    assert_log_holds(disk.after_crash("synced"), 210, 7)


class Checking(MemoryStorage):
    """Right after each sync of a file, looks what a power failure would leave."""

    def __init__(self) -> None:
        super().__init__()
        self.log: Log | None = None
        self.committer: Committer | None = None

    def _sys_fdatasync(self, descriptor: int) -> None:
        if self.committer is not None:
            durable = self.committer.durable_index
            reopened = Log.open(FOLDER, self.after_crash("synced"), 5, CLUSTER)
            assert reopened.next_id > durable
        super()._sys_fdatasync(descriptor)


def test_a_rotation_between_reading_the_index_and_syncing_loses_nothing() -> None:
    disk = Checking()
    log = Log.open(FOLDER, disk, 5, CLUSTER)
    committer, _ = started(log)
    disk.committer = committer
    for _ in range(60):
        log.append(sample_batch(log.next_id, 2), committer.durable_index)
    committer.close()
    assert committer.failure is None
    assert committer.durable_index == 120


class HeldSync(MemoryStorage):
    """Holds the first fdatasync made while `armed`, and tells when its descriptor is closed."""

    def __init__(self, events: SimpleQueue[str]) -> None:
        super().__init__()
        self.events = events
        self.armed = False
        self.held: int | None = None
        self.may_end = threading.Event()

    def _sys_fdatasync(self, descriptor: int) -> None:
        if self.armed:
            self.armed = False
            self.held = descriptor
            self.events.put("sync began")
            assert self.may_end.wait(WAIT)
            self.held = None
        super()._sys_fdatasync(descriptor)

    def _sys_close(self, descriptor: int) -> None:
        if descriptor == self.held:
            self.events.put("closed under the sync")
        super()._sys_close(descriptor)


class TellingLock:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self, events: SimpleQueue[str]) -> None:
        self._events = events
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._events.put("waits")
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_rotation_waits_for_the_sync_of_the_file_it_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: SimpleQueue[str] = SimpleQueue()
    disk = HeldSync(events)
    log = Log.open(FOLDER, disk, 5, CLUSTER)
    monkeypatch.setattr(log, "_file_lock", TellingLock(events))
    log.append(sample_batch(1, 4), 0)
    disk.armed = True
    syncing = threading.Thread(target=log.sync)
    syncing.start()
    assert events.get(timeout=WAIT) == "sync began"
    rotating = threading.Thread(target=log.append, args=(sample_batch(5, 3), 0))
    rotating.start()
    try:
        assert events.get(timeout=WAIT) == "waits"
    finally:
        disk.may_end.set()
        syncing.join()
        rotating.join()
    assert events.empty()
    assert (log.segment, log.failure) == (2, None)
    log.close()
    assert_log_holds(disk.after_crash("synced"), 7, 5)


@pytest.mark.parametrize("operation", ["write", "fdatasync", "fsync", "fsync_folder", "rename"])
def test_a_failure_of_either_side_stops_both(operation: str) -> None:
    disk = MemoryStorage()
    storage = FaultyStorage(disk)
    log = Log.open(FOLDER, storage, 10, CLUSTER)
    committer, _ = started(log)
    log.append(sample_batch(1, 4), 0)
    storage.faults.append(Fault(operation, storage.calls[operation] + 3, forever=True))

    def append_until_it_fails() -> None:
        for _ in range(100):
            log.append(sample_batch(log.next_id, 4), committer.durable_index)

    with pytest.raises(StorageError):
        append_until_it_fails()
    committer.close()
    durable = committer.durable_index
    assert log.failure is not None
    log.abandon()
    reopened = Log.open(FOLDER, disk, 10, CLUSTER)
    assert reopened.next_id > durable
    assert Log.open(FOLDER, disk.after_crash("synced"), 10, CLUSTER).next_id == reopened.next_id
