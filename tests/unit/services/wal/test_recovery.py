"""Opening a log after a crash, at every step of everything, and after every failure of the disk."""

import errno
import random
from collections.abc import Callable
from contextlib import suppress

import pytest

from tallybus.common.files import StorageError
from tallybus.common.wal.block import Chain
from tallybus.common.wal.check import check_log
from tallybus.common.wal.reader import ACTIVE_NAME, FRESH_NAME, LOCK_NAME, DamagedLog, closed_path
from tallybus.services.wal.log import Log
from tests.support.faulty_storage import Fault, FaultyStorage, Keep, MemoryStorage, SimulatedCrash
from tests.support.log_samples import CLUSTER, FOLDER, assert_log_holds, make_log, sample_batch

SIZE = 6
ACTIVE = FOLDER / ACTIVE_NAME
FRESH = FOLDER / FRESH_NAME
CRASHES: list[tuple[Keep, int]] = [
    ("synced", 0),
    ("all", 0),
    *[("some", seed) for seed in range(6)],
]


def scenario(storage: FaultyStorage, durable: list[int]) -> None:
    """Open, append over several segments, sync now and then, stop. `durable` is what was told."""
    log = Log.open(FOLDER, storage, SIZE, CLUSTER)
    durable.append(log.next_id - 1)
    for count in (2, 1, 5, 4, 13, 3):
        log.append(sample_batch(log.next_id, count), durable[-1])
        if count != 5:
            log.sync()
            durable.append(log.next_id - 1)
    log.write_marker(durable[-1])
    log.append(sample_batch(log.next_id, 1), durable[-1])
    log.close()
    durable.append(29)


def calls_of(action: Callable[[FaultyStorage], None]) -> FaultyStorage:
    storage = FaultyStorage(MemoryStorage())
    action(storage)
    return storage


NAMES = {"size": ("stat",), "open": ("lock",)}
"""Under what name a system call fails where the caller asked for something larger."""
TOTAL_CALLS = calls_of(lambda storage: scenario(storage, [])).calls.total()


def reopen_and_check(disk: MemoryStorage, durable: int) -> int:
    """Open, compare with what had been told durable, go on a little, lose the power, open again."""
    log = Log.open(FOLDER, disk, SIZE, CLUSTER)
    last = log.next_id - 1
    assert last >= durable, "something durable was lost"
    assert_log_holds(disk, last, SIZE)
    assert log.durable_index == last
    # What recovery found is durable and certified at once.
    after = disk.after_crash("synced")
    state = check_log(FOLDER, SIZE, storage=after)
    assert state.chain.next_id == last + 1
    assert state.chain.durable_index == last
    log.append(sample_batch(log.next_id, 8, term=9), last)
    log.close()
    assert_log_holds(disk.after_crash("synced"), last + 8, SIZE)
    assert FRESH not in disk.contents()
    return last


@pytest.mark.parametrize(("keep", "seed"), CRASHES)
def test_a_crash_at_any_step_loses_nothing_durable(keep: Keep, seed: int) -> None:
    lengths = set()
    for crash_at in range(1, TOTAL_CALLS + 1):
        disk = MemoryStorage()
        durable: list[int] = [0]
        with suppress(SimulatedCrash):
            scenario(FaultyStorage(disk, crash_at=crash_at), durable)
        after = disk.after_crash(keep, random.Random(seed * 1000 + crash_at))
        lengths.add(reopen_and_check(after, durable[-1]))
    assert 0 in lengths
    assert 28 in lengths


@pytest.mark.parametrize("seed", range(3))
def test_a_crash_of_the_recovery_itself_loses_nothing(seed: int) -> None:
    rng = random.Random(seed)
    for crash_at in range(1, TOTAL_CALLS + 1, 3):
        disk = MemoryStorage()
        durable: list[int] = [0]
        with suppress(SimulatedCrash):
            scenario(FaultyStorage(disk, crash_at=crash_at), durable)
        second = 0
        while True:
            second += rng.randrange(1, 6)
            after = disk.after_crash("some", random.Random(seed * 1000 + crash_at))
            try:
                Log.open(FOLDER, FaultyStorage(after, crash_at=second), SIZE, CLUSTER)
            except SimulatedCrash:
                reopen_and_check(after.after_crash("some", rng), durable[-1])
            else:
                break


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize(
    ("operation", "number"),
    [
        ("write", errno.ENOSPC),
        ("write", errno.EIO),
        ("fdatasync", errno.EIO),
        ("fsync", errno.ENOSPC),
        ("fsync_folder", errno.EIO),
        ("rename", errno.ENOSPC),
        ("open", errno.EMFILE),
        ("list", errno.EIO),
        ("close", errno.EIO),
    ],
)
def test_when_the_nth_call_fails_nothing_is_told_durable_that_is_not(
    operation: str, forever: bool, number: int
) -> None:
    total = calls_of(lambda storage: scenario(storage, [])).calls[operation]
    assert total
    for nth in range(1, total + 1):
        disk = MemoryStorage()
        durable: list[int] = [0]
        storage = FaultyStorage(disk, Fault(operation, nth, number, forever=forever))
        with suppress(StorageError):
            scenario(storage, durable)
            assert operation == "close", "only a failed close may pass unnoticed"
        assert storage.failed
        # The power goes: what was told durable is on the disk itself.
        reopen_and_check(disk.after_crash("synced"), durable[-1])
        # Only the process ends: the cache may show more than the disk has.
        reopen_and_check(disk.after_crash("some", random.Random(nth)), durable[-1])
        restarted(disk, durable[-1])


def restarted(disk: MemoryStorage, durable: int) -> None:
    """A new process on the same machine, whose cache may hold pages that a failed sync gave up."""
    disk._locks.clear()
    log = Log.open(FOLDER, disk, SIZE, CLUSTER)
    told = log.next_id - 1
    assert told >= durable
    assert reopen_and_check(disk.after_crash("synced"), told) == told
    log.append(sample_batch(log.next_id, 8), told)
    log.close()
    assert reopen_and_check(disk.after_crash("synced"), told + 8) == told + 8


def test_pages_that_a_failed_sync_gave_up_are_written_again() -> None:
    disk = MemoryStorage()
    storage = FaultyStorage(disk)
    log = Log.open(FOLDER, storage, 100, CLUSTER)
    log.append(sample_batch(1, 3), 0)
    log.sync()
    log.append(sample_batch(4, 5), 3)
    storage.faults.append(Fault("fdatasync", storage.calls["fdatasync"] + 1))
    with pytest.raises(StorageError):
        log.sync()
    log.abandon()
    assert check_log(FOLDER, 100, storage=disk).chain.next_id == 9, "the cache still shows it"
    assert check_log(FOLDER, 100, storage=disk.after_crash("synced")).chain.next_id == 4
    assert Log.open(FOLDER, disk, 100, CLUSTER).next_id == 9
    assert check_log(FOLDER, 100, storage=disk.after_crash("synced")).chain.next_id == 9


@pytest.mark.parametrize("forever", [False, True])
@pytest.mark.parametrize(
    "operation",
    ["write", "fdatasync", "fsync", "fsync_folder", "truncate", "open", "map", "size", "list"],
)
def test_failures_of_the_recovery_are_typed_and_harmless(operation: str, forever: bool) -> None:
    crashed = MemoryStorage()
    make_log(crashed, [2, 6, 3], SIZE, clean=False)
    files = crashed.contents()
    files[ACTIVE] += b"torn"
    nth = 0
    while True:
        nth += 1
        disk = MemoryStorage(files)
        storage = FaultyStorage(disk, Fault(operation, nth, forever=forever))
        failure: StorageError | None = None
        try:
            Log.open(FOLDER, storage, SIZE, CLUSTER)
        except StorageError as error:
            failure = error
        if failure is None:
            break
        assert failure.operation in {operation, *NAMES.get(operation, ())}
        reopen_and_check(disk.after_crash("some", random.Random(nth)), 11)
    assert nth > 1


def test_an_interrupted_rotation_is_finished_from_every_state() -> None:
    disk = MemoryStorage()
    make_log(disk, [4], 4, clean=False)
    closed = disk.contents()[closed_path(FOLDER, 1)]
    fresh = disk.contents()[ACTIVE]
    states = {
        "full, nothing else": {ACTIVE: closed},
        "fresh begun": {ACTIVE: closed, FRESH: b""},
        "fresh half written": {ACTIVE: closed, FRESH: fresh[:77]},
        "fresh written": {ACTIVE: closed, FRESH: fresh},
        "closed, not adopted": {closed_path(FOLDER, 1): closed, FRESH: fresh},
        "done": {closed_path(FOLDER, 1): closed, ACTIVE: fresh},
    }
    for name, files in states.items():
        storage = MemoryStorage(files)
        log = Log.open(FOLDER, storage, 4, CLUSTER)
        assert (log.next_id, log.segment) == (5, 2), name
        log.append(sample_batch(5, 3), 4)
        log.close()
        assert_log_holds(storage.after_crash("synced"), 7, 4)
        names = {path.name for path in storage.contents()}
        assert names == {"wal_000001.bin", ACTIVE_NAME, LOCK_NAME}, name


def test_a_full_segment_in_doubt_is_written_again_before_it_is_closed() -> None:
    """Its last sync failed: the next one succeeds although the pages are not on the disk."""
    disk = MemoryStorage()
    storage = FaultyStorage(disk)
    log = Log.open(FOLDER, storage, 4, CLUSTER)
    storage.faults.append(Fault("fdatasync", 1))
    with pytest.raises(StorageError):
        log.append(sample_batch(1, 4), 0)
    log.abandon()
    assert Log.open(FOLDER, disk, 4, CLUSTER).next_id == 5
    assert_log_holds(disk.after_crash("synced"), 4, 4)


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128])
def test_an_interrupted_first_start_begins_again(length: int) -> None:
    chain = Chain(SIZE, cluster_id=5)
    marker = chain.seal_marker()[1]
    disk = MemoryStorage({FRESH: marker[:length]})
    log = Log.open(FOLDER, disk, SIZE, CLUSTER)
    assert (log.next_id, log.cluster_id) == (1, CLUSTER)
    assert FRESH not in disk.contents()


def test_a_torn_tail_is_cut_off_and_told() -> None:
    disk = MemoryStorage()
    make_log(disk, [2, 1], SIZE, clean=False)
    whole = disk.contents()[ACTIVE]
    disk = MemoryStorage({ACTIVE: whole + whole[128:300]})
    log = Log.open(FOLDER, disk, SIZE, CLUSTER)
    assert log.torn is not None
    assert (log.torn.path, log.torn.offset, log.torn.length) == (ACTIVE, len(whole), 172)
    assert log.next_id == 4
    log.close()
    assert Log.open(FOLDER, disk, SIZE, CLUSTER).torn is None


def test_what_is_opened_is_synced_before_it_is_read() -> None:
    disk = MemoryStorage()
    make_log(disk, [2, 9], SIZE, clean=False)
    order: list[str] = []

    class Watching(FaultyStorage):
        def _enter(self, operation: str) -> Fault | None:
            order.append(operation)
            return super()._enter(operation)

    Log.open(FOLDER, Watching(disk), SIZE, CLUSTER)
    first_read = order.index("map")
    assert order[:first_read].count("fsync") == 2
    assert order[:first_read].count("fsync_folder") == 1


def test_progress_covers_the_whole_log() -> None:
    disk = MemoryStorage()
    make_log(disk, [2, 30], SIZE)
    total = sum(len(content) for path, content in disk.contents().items() if path.suffix == ".bin")
    seen: list[tuple[int, int]] = []
    Log.open(FOLDER, disk, SIZE, CLUSTER, progress=lambda *at: seen.append(at))
    assert seen[-1] == (total, total)
    assert {each for _, each in seen} == {total}


def test_other_files_in_the_folder_do_not_disturb() -> None:
    disk = MemoryStorage()
    make_log(disk, [2, 30], SIZE)
    names = ("snapshot_000002.bin", "wal_000001.crc", "wal_1.bin", "wal_000001.bin.tmp", "notes")
    disk = MemoryStorage({**disk.contents(), **{FOLDER / name: b"x" for name in names}})
    assert Log.open(FOLDER, disk, SIZE, CLUSTER).next_id == 33


def test_a_refused_log_can_be_opened_once_it_is_restored() -> None:
    disk = MemoryStorage()
    make_log(disk, [2, 30], SIZE)
    files = disk.contents()
    missing = files.pop(closed_path(FOLDER, 2))
    broken = MemoryStorage(files)
    with pytest.raises(DamagedLog, match=r"wal_000002\.bin"):
        Log.open(FOLDER, broken, SIZE, CLUSTER)
    broken.names.update(MemoryStorage({closed_path(FOLDER, 2): missing}).names)
    assert Log.open(FOLDER, broken, SIZE, CLUSTER).next_id == 33


def test_sizes_of_segments_must_make_sense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Log.open(FOLDER, MemoryStorage(), 0, CLUSTER)
