"""Appending: what blocks are written, when segments change, what is refused, what is fatal."""

import errno
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.batch import Batch, InvalidBatch
from tallybus.common.files import LockHeld, Storage, StorageError
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.wal.block import HEADER_FIELDS, Chain
from tallybus.common.wal.check import check_log
from tallybus.common.wal.reader import ACTIVE_NAME, closed_path
from tallybus.services.wal.log import AppendRefused, Log, check_append
from tests.support.batches import batch_of
from tests.support.faulty_storage import Fault, FaultyStorage, MemoryStorage
from tests.support.folders import DOCS
from tests.support.log_samples import (
    CLUSTER,
    FOLDER,
    assert_log_holds,
    headers_of,
    make_log,
    plain_batch,
    sample_batch,
)


def open_memory(size: int = 10) -> tuple[MemoryStorage, Log]:
    disk = MemoryStorage()
    return disk, Log.open(FOLDER, disk, size, CLUSTER)


def test_a_new_log_is_one_file_with_one_marker() -> None:
    disk, log = open_memory()
    assert (log.next_id, log.term, log.cluster_id, log.segment) == (1, 0, CLUSTER, 1)
    assert log.gateways == {}
    (header,) = headers_of(disk.contents()[FOLDER / ACTIVE_NAME], 1, 10)
    assert header.is_marker
    assert header.cluster_id == CLUSTER
    assert disk.after_crash("synced").contents()[FOLDER / ACTIVE_NAME]


def test_each_batch_becomes_one_block() -> None:
    disk, log = open_memory(100)
    for first, count in ((1, 3), (4, 1), (5, 20)):
        log.append(sample_batch(first, count, term=first), durable_index=first - 1)
    headers = headers_of(disk.contents()[FOLDER / ACTIVE_NAME], 1, 100)
    assert [(h.first_id, h.record_count, h.durable_index) for h in headers[1:]] == [
        (1, 3, 0),
        (4, 1, 3),
        (5, 20, 4),
    ]
    assert [h.term for h in headers] == [0, 1, 4, 5]
    assert headers[-1].timestamp_ns == 1_700_000_000_000_000_005
    assert log.term == 5
    assert log.written.last_id == 24
    assert log.written.position == headers[-1].end - 128
    log.append(sample_batch(25, 1, term=25), durable_index=24)
    *before, last = headers_of(disk.contents()[FOLDER / ACTIVE_NAME], 1, 100)
    assert before == headers
    assert last.previous_crc == headers[-1].header_crc, "the chain goes on"


@pytest.mark.parametrize("size", [1, 2, 7, 10])
def test_a_batch_over_several_segments_is_split_and_each_full_segment_closed(size: int) -> None:
    disk, log = open_memory(size)
    log.append(sample_batch(1, 3), 0)
    log.append(sample_batch(4, 31), 3)
    assert log.next_id == 35
    assert log.segment == 34 // size + 1
    for segment in range(1, log.segment):
        headers = headers_of(disk.contents()[closed_path(FOLDER, segment)], segment, size)
        assert headers[0].is_marker
        assert headers[-1].last_id == segment * size
        assert {h.request for h in headers[1:]} <= {1, 4}
    assert_log_holds(disk, 34, size)
    log.close()
    assert check_log(FOLDER, size, storage=disk).chain.next_id == 35


def test_a_segment_is_closed_as_soon_as_it_is_full() -> None:
    disk, log = open_memory(10)
    log.append(plain_batch(1, 10), 0)
    assert closed_path(FOLDER, 1) in disk.contents()
    (opening,) = headers_of(disk.contents()[FOLDER / ACTIVE_NAME], 2, 10)
    assert (opening.first_id, opening.durable_index) == (11, 10)
    assert log.segment == 2


def test_a_closed_segment_is_durable_before_it_has_its_name() -> None:
    disk, log = open_memory(10)
    log.append(sample_batch(1, 25), 0)
    after = disk.after_crash("synced")
    reopened = Log.open(FOLDER, after, 10, 1)
    assert reopened.next_id >= 21
    assert_log_holds(after, reopened.next_id - 1, 10)


def test_marker_carries_a_newer_durable_index_once() -> None:
    disk, log = open_memory()
    log.append(sample_batch(1, 4), 0)
    log.sync()
    assert log.write_marker(4)
    assert not log.write_marker(4)
    assert not log.write_marker(2)
    headers = headers_of(disk.contents()[FOLDER / ACTIVE_NAME], 1, 10)
    assert [(h.record_count, h.durable_index) for h in headers] == [(0, 0), (4, 0), (0, 4)]
    assert log.durable_index == 4
    log.append(sample_batch(5, 1), 3)
    assert log.durable_index == 4


def test_a_marker_keeps_a_higher_term_before_any_batch_of_it() -> None:
    disk, log = open_memory()
    log.append(sample_batch(1, 2, term=3), 0)
    assert log.write_marker(0, term=7)
    assert not log.write_marker(0, term=7)
    with pytest.raises(AppendRefused, match="term 6"):
        log.write_marker(0, term=6)
    with pytest.raises(AppendRefused, match="term 6"):
        log.append(sample_batch(3, 1, term=6), 0)
    log.sync()
    reopened = Log.open(FOLDER, disk.after_crash("synced"), 10, CLUSTER)
    assert (reopened.term, reopened.next_id) == (7, 3)
    assert log.next_id == 3


def test_gateways_are_known_again_after_reopening() -> None:
    disk = MemoryStorage()
    log = Log.open(FOLDER, disk, 4, CLUSTER)
    for first, gateway, request in ((1, 7, 1), (2, 2**64 - 1, 9), (3, 7, 2), (4, 0, 5), (5, 8, 1)):
        log.append(replace(plain_batch(first, 1, gateway=gateway), request=request), 0)
    expected = {7: 2, 2**64 - 1: 9, 8: 1}
    assert log.gateways == expected
    log.close()
    assert Log.open(FOLDER, disk, 4, CLUSTER).gateways == expected


@pytest.mark.parametrize(
    ("batch", "durable", "field"),
    [
        (plain_batch(5, 1, term=3), 0, "first id"),
        (plain_batch(3, 1, term=3), 0, "first id"),
        (plain_batch(4, 1, term=2), 0, "term"),
        (plain_batch(4, 1, term=3), 4, "durable index"),
        (plain_batch(4, 1, term=3), -1, "durable index"),
    ],
)
def test_what_does_not_belong_at_the_end_is_refused_and_harmless(
    batch: Batch, durable: int, field: str
) -> None:
    disk, log = open_memory()
    log.append(plain_batch(1, 3, term=3), 0)
    before = disk.contents()
    with pytest.raises(AppendRefused) as caught:
        log.append(batch, durable)
    assert caught.value.field == field
    assert disk.contents() == before
    log.append(plain_batch(4, 1, term=3), 3)


def test_batches_whose_parts_do_not_fit_are_refused_and_harmless() -> None:
    disk, log = open_memory()
    good = sample_batch(1, 5)
    before = disk.contents()
    for bad in (Batch(1, good.records, term=1), Batch(1, np.zeros(0, RECORD_DTYPE), term=1)):
        with pytest.raises(InvalidBatch):
            log.append(bad, 0)
    assert disk.contents() == before
    log.append(good, 0)


def test_ids_do_not_wrap() -> None:
    chain = Chain(10, cluster_id=1, segment=2**60, next_id=2**64 - 2, term=1)
    with pytest.raises(AppendRefused, match="used up"):
        check_append(chain, plain_batch(2**64 - 2, 2), 0)


def test_batches_are_taken_as_raw_frames() -> None:
    disk, log = open_memory(3)
    batch = sample_batch(1, 8)
    log.append(
        batch_of(
            1,
            memoryview(bytes(np.asarray(batch.records).tobytes())),
            bytearray(np.asarray(batch.links).tobytes()),
            np.asarray(batch.params).tobytes(),
            memoryview(np.asarray(batch.entries).tobytes()),
            term=1,
        ),
        0,
    )
    assert_log_holds(disk, 8, 3)


def test_short_writes_leave_a_whole_log() -> None:
    disk = MemoryStorage()
    faults = [Fault("write", nth, 0, keep=1 + nth * 7 % 50) for nth in range(2, 60)]
    log = Log.open(FOLDER, FaultyStorage(disk, *faults), 10, CLUSTER)
    log.append(sample_batch(1, 37), 0)
    log.close()
    assert_log_holds(disk, 37, 10)


@pytest.mark.parametrize("operation", ["write", "fdatasync", "fsync", "fsync_folder", "rename"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_the_first_failure_poisons_the_log(operation: str, number: int) -> None:
    disk = MemoryStorage()
    storage = FaultyStorage(disk)
    log = Log.open(FOLDER, storage, 10, CLUSTER)
    storage.faults.append(Fault(operation, storage.calls[operation] + 1, number))
    with pytest.raises(StorageError) as caught:
        log.append(sample_batch(1, 12), 0)
    assert caught.value.errno == number
    assert log.failure is caught.value
    calls = storage.calls.total()
    for action in (
        lambda: log.append(sample_batch(log.next_id, 1), 0),
        lambda: log.write_marker(log.next_id - 1),
        log.sync,
    ):
        with pytest.raises(StorageError):
            action()
    assert storage.calls.total() == calls, "nothing may touch the disk after a failure"
    log.close()
    assert_log_holds(disk, Log.open(FOLDER, disk, 10, CLUSTER).next_id - 1, 10)


def test_a_failed_sync_poisons_the_log() -> None:
    storage = FaultyStorage(MemoryStorage())
    log = Log.open(FOLDER, storage, 10, CLUSTER)
    log.append(sample_batch(1, 2), 0)
    storage.faults.append(Fault("fdatasync", storage.calls["fdatasync"] + 1))
    with pytest.raises(StorageError) as caught:
        log.sync()
    assert log.failure is caught.value
    with pytest.raises(StorageError):
        log.append(sample_batch(3, 1), 0)
    with pytest.raises(StorageError):
        log.sync()


def test_a_sync_that_ends_after_a_failed_write_does_not_count() -> None:
    failure = StorageError(FOLDER, "write", errno.ENOSPC)

    class FailsMeanwhile(MemoryStorage):
        log: Log | None = None

        def _sys_fdatasync(self, descriptor: int) -> None:
            super()._sys_fdatasync(descriptor)
            if self.log is not None:
                self.log.failure = failure

    disk = FailsMeanwhile()
    disk.log = log = Log.open(FOLDER, disk, 10, CLUSTER)
    log.append(sample_batch(1, 2), 0)
    with pytest.raises(StorageError) as caught:
        log.sync()
    assert caught.value.__cause__ is failure


def test_a_full_segment_is_not_closed_after_a_sync_that_failed_meanwhile() -> None:
    """What that sync lost, the next one does not bring back, and says nothing of it."""
    failure = StorageError(FOLDER, "fdatasync", errno.EIO)

    class FailsMeanwhile(MemoryStorage):
        log: Log | None = None

        def _sys_write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            written = super()._sys_write(descriptor, buffers, offset)
            if self.log is not None:
                self.log.failure = failure
            return written

    disk = FailsMeanwhile()
    log = Log.open(FOLDER, disk, 10, CLUSTER)
    disk.log = log
    with pytest.raises(StorageError) as caught:
        log.append(sample_batch(1, 10), 0)
    assert caught.value.__cause__ is failure
    assert closed_path(FOLDER, 1) not in disk.contents()
    assert FOLDER / ACTIVE_NAME in disk.contents()


def test_a_clean_stop_leaves_everything_certified() -> None:
    disk = MemoryStorage()
    make_log(disk, [3, 4, 5], 10, synced=False)
    after = disk.after_crash("synced")
    state = check_log(FOLDER, 10, storage=after)
    assert (state.chain.next_id, state.chain.durable_index) == (13, 12)
    before = after.contents()[FOLDER / ACTIVE_NAME]
    Log.open(FOLDER, after, 10, CLUSTER).close()
    assert after.contents()[FOLDER / ACTIVE_NAME] == before, "nothing to add to a clean log"


def test_a_closed_log_takes_nothing_more() -> None:
    disk, log = open_memory()
    log.close()
    with pytest.raises(StorageError):
        log.append(plain_batch(1, 1), 0)
    Log.open(FOLDER, disk, 10, CLUSTER).close()


def test_a_second_log_on_the_folder_is_refused(tmp_path: Path) -> None:
    log = Log.open(tmp_path / "data", Storage(), 10, CLUSTER)
    with pytest.raises(LockHeld):
        Log.open(tmp_path / "data", Storage(), 10, CLUSTER)
    log.append(sample_batch(1, 33), 0)
    log.close()
    reopened = Log.open(tmp_path / "data", Storage(), 10, 5)
    assert (reopened.next_id, reopened.cluster_id) == (34, CLUSTER)
    reopened.close()
    assert_log_holds(Storage(), 33, 10, folder=tmp_path / "data")


PAGE = (DOCS / "wal-format.md").read_text("utf-8")


def test_the_worked_example_of_the_docs_is_real() -> None:
    rows = re.findall(r"^([0-9a-f]{4})  ((?:[0-9a-f]{2} ?){16})$", PAGE, re.MULTILINE)
    assert [int(at, 16) for at, _ in rows] == list(range(0, 0x2E0, 16))
    shown = bytes.fromhex("".join(row for _, row in rows))

    disk = MemoryStorage()
    log = Log.open(FOLDER, disk, 1000, 0x1122334455667788)
    records = np.zeros(2, RECORD_DTYPE)
    records[0] = (Kind.DEPOSIT, 0, 2, 0, 0, 42, 1, 0, 1000)
    records[1] = (Kind.TRANSFER, 0, 2, 0, 0, 43, 1, 2, 300)
    log.append(
        Batch(1, records, term=1, timestamp_ns=1_700_000_000_000_000_000, gateway=5, request=1), 0
    )
    log.sync()
    records = np.zeros(2, RECORD_DTYPE)
    records[0] = (Kind.DEPOSIT, Status.DUPLICATE, 0, 0, 0, 42, 1, 0, 1000)
    records[1] = (Kind.FUNCTION, 0, 2, 0, 0xA1B2C3D4, 44, 0, 0, 3)
    links = np.array([1], "<u8")
    params = np.array([1, 2, 50], "<i8")
    entries = np.array([(1, -50), (2, 50)], ENTRY_DTYPE)
    batch = Batch(3, records, links, params, entries, 1, 1_700_000_000_000_500_000, 5, 2)
    log.append(batch, 2)
    log.close()
    assert disk.contents()[FOLDER / ACTIVE_NAME] == shown


def test_the_docs_name_every_header_field_with_its_place() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (u\d+) \| `(\w+)` \|", PAGE, re.MULTILINE)
    sizes = {"<Q": ("8", "u64"), "<I": ("4", "u32")}
    expected = [(str(at), *sizes[kind], name) for name, at, kind in HEADER_FIELDS]
    assert rows == [*expected, ("124", "4", "u32", "header_crc")]
