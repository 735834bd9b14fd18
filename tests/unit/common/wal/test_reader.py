"""Reading the log: exactly the wanted ids, verified, by the plain code and by the kernel alike."""

import random
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.batch import Batch
from tallybus.common.files import Storage
from tallybus.common.wal.block import InvalidBlock
from tallybus.common.wal.check import check_log
from tallybus.common.wal.reader import (
    ACTIVE_NAME,
    MAX_SMALL_PAYLOAD,
    BlockScanner,
    DamagedLog,
    ForeignLog,
    KernelPolicy,
    LogEndsEarly,
    chain_at,
    closed_path,
    closed_segment_number,
    read_log,
)
from tallybus.services.wal.log import Log
from tests.support.faulty_storage import MemoryStorage
from tests.support.log_samples import (
    CLUSTER,
    FOLDER,
    headers_of,
    joined,
    make_log,
    plain_batch,
    same,
    sample_batch,
)

KERNEL = pytest.mark.parametrize("kernel", [False, True])
SIZES = (1, 1, 1, 3, 7, 1, 20, 1, 1, 1, 2, 30, 1, 1, 1, 1)
LAST = sum(SIZES)


@pytest.fixture(scope="module")
def disk() -> MemoryStorage:
    """73 transactions in segments of 16."""
    storage = MemoryStorage()
    make_log(storage, SIZES, 16)
    return storage


@KERNEL
def test_every_range_of_ids_comes_exactly(disk: MemoryStorage, kernel: bool) -> None:
    last = LAST
    for first_id in range(1, last + 1):
        for last_id in {first_id, first_id + 1, (first_id + last) // 2, last - 1, last}:
            runs = list(
                read_log(FOLDER, first_id, last_id, 16, storage=disk, kernel=kernel)
                if last_id <= last
                else []
            )
            if not runs:
                continue
            assert runs[0].first_id == first_id
            assert runs[-1].last_id == last_id
            wanted = sample_batch(first_id, last_id - first_id + 1)
            assert same(joined(runs), wanted), (first_id, last_id)


def test_without_the_fast_path_each_run_is_one_block(disk: MemoryStorage) -> None:
    runs = list(read_log(FOLDER, 1, LAST, 16, storage=disk, kernel=False))
    assert [(run.first_id, len(run.records)) for run in runs][:7] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (4, 3),
        (7, 7),
        (14, 1),
        (15, 2),
    ]
    assert all(run.sources is None for run in runs)
    written = sample_batch(7, 1)
    assert (runs[4].term, runs[4].timestamp_ns) == (written.term, written.timestamp_ns)
    assert (runs[4].gateway, runs[4].request) == (written.gateway, written.request)


def test_merged_batches_tell_the_time_of_the_last_block_and_whose_each_was(
    disk: MemoryStorage,
) -> None:
    blocks = {
        block.first_id: block for block in read_log(FOLDER, 1, LAST, 16, storage=disk, kernel=False)
    }
    merged = [
        batch
        for batch in read_log(FOLDER, 1, LAST, 16, storage=disk, kernel=True)
        if batch.sources is not None
    ]
    assert merged
    for batch in merged:
        own = [blocks[first] for first in batch.sources[:, 2].tolist()]
        assert own[-1].last_id == batch.last_id
        assert (batch.term, batch.timestamp_ns) == (own[-1].term, own[-1].timestamp_ns)
        assert (batch.gateway, batch.request) == (own[-1].gateway, own[-1].request)
        assert batch.sources.tolist() == [
            [block.gateway, block.request, block.first_id, block.count] for block in own
        ]


def test_an_empty_range_reads_nothing() -> None:
    assert list(read_log(Path("/nowhere"), 5, 4, 16)) == []
    with pytest.raises(ValueError, match="start at 1"):
        list(read_log(Path("/nowhere"), 0, 4, 16))


@KERNEL
def test_asking_beyond_the_end_gives_what_is_there_and_then_says_so(
    disk: MemoryStorage, kernel: bool
) -> None:
    runs: list[Batch] = []
    reading = read_log(FOLDER, 60, 75, 16, storage=disk, kernel=kernel)
    with pytest.raises(LogEndsEarly, match="before id 74"):
        runs.extend(iter(lambda: next(reading), None))
    assert same(joined(runs), sample_batch(60, 14))
    with pytest.raises(LogEndsEarly, match="segment 7 is not begun"):
        list(read_log(FOLDER, 97, 97, 16, storage=disk))


def test_the_unfinished_tail_behind_the_wanted_ids_is_not_looked_at() -> None:
    storage = MemoryStorage()
    make_log(storage, [4, 4], 16, clean=False)
    content = storage.contents()[FOLDER / ACTIVE_NAME]
    torn = MemoryStorage({FOLDER / ACTIVE_NAME: content + b"TBLK half a block"})
    runs = list(read_log(FOLDER, 3, 8, 16, storage=torn))
    assert same(joined(runs), sample_batch(3, 6))


def test_damage_in_wanted_blocks_names_file_and_offset(disk: MemoryStorage) -> None:
    path = closed_path(FOLDER, 2)
    content = bytearray(disk.contents()[path])
    content[300] ^= 1
    damaged = MemoryStorage({**disk.contents(), path: bytes(content)})
    for kernel in (False, True):
        list(read_log(FOLDER, 1, 16, 16, storage=damaged, kernel=kernel))
        with pytest.raises(DamagedLog) as caught:
            list(read_log(FOLDER, 10, 40, 16, storage=damaged, kernel=kernel))
        assert caught.value.path == path
        assert caught.value.offset <= 300
        assert str(path) in str(caught.value)


def test_other_ledgers_files_are_foreign(disk: MemoryStorage) -> None:
    with pytest.raises(ForeignLog, match="cluster"):
        list(read_log(FOLDER, 1, 5, 16, storage=disk, cluster_id=1))
    with pytest.raises(ForeignLog, match="transactions_per_segment"):
        list(read_log(FOLDER, 1, 5, 17, storage=disk))
    assert list(read_log(FOLDER, 1, 5, 16, storage=disk, cluster_id=CLUSTER))


def test_a_missing_segment_is_damage(disk: MemoryStorage) -> None:
    files = disk.contents()
    del files[closed_path(FOLDER, 3)]
    with pytest.raises(DamagedLog, match="missing"):
        list(read_log(FOLDER, 1, LAST, 16, storage=MemoryStorage(files)))


def test_the_chain_is_followed_over_segments(disk: MemoryStorage) -> None:
    other = MemoryStorage()
    make_log(other, (5, *SIZES), 16)
    mixed = {**disk.contents(), closed_path(FOLDER, 2): other.contents()[closed_path(FOLDER, 2)]}
    with pytest.raises(DamagedLog, match="does not continue"):
        list(read_log(FOLDER, 1, LAST, 16, storage=MemoryStorage(mixed)))


class Rotating(MemoryStorage):
    """Closes the segment between a reader's two looks for it."""

    def __init__(self, log: Log | None = None) -> None:
        super().__init__()
        self.looks = 0
        self.log = log

    def _sys_open(self, path: Path, flags: int) -> int:
        if self.log is not None and path.name == ACTIVE_NAME:
            log, self.log = self.log, None
            log.append(sample_batch(log.next_id, 16), 0)
        return super()._sys_open(path, flags)


def test_a_segment_that_is_closed_while_it_is_opened_is_found() -> None:
    storage = Rotating()
    log = Log.open(FOLDER, storage, 16, CLUSTER)
    log.append(sample_batch(1, 20), 0)
    storage.log = log
    assert same(joined(list(read_log(FOLDER, 17, 20, 16, storage=storage))), sample_batch(17, 4))
    assert log.segment == 3


def note_progress(seen: list[tuple[int, int]], done: int, total: int) -> None:
    seen.append((done, total))


@KERNEL
def test_progress_runs_from_start_to_total(disk: MemoryStorage, kernel: bool) -> None:
    for first_id, last_id in ((1, LAST), (20, 50)):
        seen: list[tuple[int, int]] = []
        note = partial(note_progress, seen)
        list(read_log(FOLDER, first_id, last_id, 16, storage=disk, kernel=kernel, progress=note))
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        assert len({total for _, total in seen}) == 1
        assert seen[-1][0] == seen[-1][1] > 0


def test_names_of_closed_segments() -> None:
    assert closed_path(FOLDER, 7).name == "wal_000007.bin"
    assert closed_segment_number("wal_000007.bin") == 7
    assert closed_segment_number(closed_path(FOLDER, 12345678).name) == 12345678
    for name in (
        "wal.bin",
        "wal_7.bin",
        "wal_0000007.bin",
        "wal_000007.bin.crc",
        "wal_000007.seal",
    ):
        assert closed_segment_number(name) is None


def test_views_of_big_blocks_are_not_copied(tmp_path: Path) -> None:
    make_log(Storage(), [300, 250], 1000, folder=tmp_path)
    first, second = read_log(tmp_path, 1, 550, 1000)
    assert not first.records.flags.owndata
    assert not first.records.flags.writeable
    first_at, second_at = (run.records.__array_interface__["data"][0] for run in (first, second))
    content = (tmp_path / ACTIVE_NAME).read_bytes()
    blocks = [each for each in headers_of(content, 1, 1000) if each.record_count]
    assert second_at - first_at == blocks[1].offset - blocks[0].offset, "one mapping"


def scan_both(data: bytes) -> tuple[list[object], list[object]]:
    """Where each implementation stops, with what state and complaint."""
    results: list[list[object]] = []
    for kernel in (False, True):
        scanner = BlockScanner(
            memoryview(data), chain_at(1, 1000, None), policy=KernelPolicy(kernel)
        )
        problem = ""
        try:
            scanner.verify_rest()
        except InvalidBlock as error:
            problem = str(error)
        results.append([scanner.chain, scanner.gateways, problem])
    return results[0], results[1]


@pytest.fixture(scope="module")
def small_blocks() -> bytes:
    storage = MemoryStorage()
    log = Log.open(FOLDER, storage, 1000, CLUSTER)
    rng = random.Random(3)
    while log.next_id < 60:
        batch = sample_batch(
            log.next_id, rng.choice((1, 1, 2, 5)), term=log.next_id, timestamp_ns=7
        )
        log.append(replace(batch, gateway=rng.randrange(4)), max(log.next_id - 3, 0))
    log.close()
    return storage.contents()[FOLDER / ACTIVE_NAME]


def test_kernel_and_plain_code_agree_on_damaged_logs(small_blocks: bytes) -> None:
    rng = random.Random(11)
    plain, compiled = scan_both(small_blocks)
    assert plain == compiled
    assert plain[2] == ""
    for _ in range(1500):
        data = bytearray(small_blocks)
        match rng.randrange(4):
            case 0:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                del data[rng.randrange(len(data)) :]
            case 2:
                at = rng.randrange(len(data) // 8) * 8
                data[at : at + rng.choice((8, 64, 512))] = bytes(8)
            case _:
                at = rng.randrange(len(data) // 8) * 8
                data[at:at] = data[at : at + 168]
        plain, compiled = scan_both(bytes(data))
        assert plain == compiled


def test_kernel_and_plain_code_agree_on_well_made_wrong_headers(small_blocks: bytes) -> None:
    """Headers with right checksums and wrong contents, which no random damage makes."""
    complaints = set()
    for header in headers_of(small_blocks, 1, 1000)[1:]:
        for field in header._fields[:-1]:
            for change in (1, -1, 2**20):
                value = getattr(header, field) + change
                limit = 2**32 if field.endswith(("_count", "_crc")) else 2**64
                changed = header._replace(**{field: value % limit}).pack()
                data = bytearray(small_blocks)
                data[header.offset : header.offset + 128] = changed
                plain, compiled = scan_both(bytes(data))
                assert plain == compiled, (field, change)
                complaints.add(str(plain[2]).partition(": ")[2][:12])
    assert len(complaints) > 8


def test_skipping_stops_in_front_of_the_first_block_wanted(small_blocks: bytes) -> None:
    for first_id in range(1, 62):
        stops = []
        for kernel in (False, True):
            chain = chain_at(1, 1000, None)
            scanner = BlockScanner(memoryview(small_blocks), chain, policy=KernelPolicy(kernel))
            scanner.skip_to(first_id)
            stops.append((chain, scanner.gateways))
        assert stops[0] == stops[1]
        assert stops[0][0].next_id <= first_id


def test_kernel_and_plain_code_end_with_the_segment() -> None:
    """Blocks that go on, well chained, where the segment is full."""
    storage = MemoryStorage()
    log = Log.open(FOLDER, storage, 1000, CLUSTER)
    for tx in range(1, 12):
        log.append(plain_batch(tx, 1), 0)
    log.write_marker(5)
    for size in range(1, 14):
        data = bytearray()
        previous = 0
        for header in headers_of(storage.contents()[FOLDER / ACTIVE_NAME], 1, 1000):
            block = storage.contents()[FOLDER / ACTIVE_NAME][header.offset + 128 : header.end]
            packed = header._replace(transactions_per_segment=size, previous_crc=previous).pack()
            previous = int.from_bytes(packed[124:], "little")
            data += packed + block
        stops = []
        for kernel in (False, True):
            chain = chain_at(1, size, None)
            scanner = BlockScanner(memoryview(data), chain, policy=KernelPolicy(kernel))
            with suppress(InvalidBlock):
                scanner.verify_rest()
            stops.append(chain)
        assert stops[0] == stops[1]
        assert stops[0].next_id == min(size, 11) + 1
        assert (stops[0].offset == len(data)) == (size > 11)


def many_gateways(count: int) -> MemoryStorage:
    storage = MemoryStorage()
    log = Log.open(FOLDER, storage, 10_000, CLUSTER)
    for tx in range(1, count + 1):
        log.append(plain_batch(tx, 1, gateway=2**63 + tx % 150 + 1), 0)
    log.close()
    return storage


def test_the_kernel_knows_any_number_of_gateways() -> None:
    storage = many_gateways(700)
    plain = check_log(FOLDER, 10_000, storage=storage, kernel=False)
    compiled = check_log(FOLDER, 10_000, storage=storage, kernel=True)
    assert len(plain.gateways) == 150
    assert plain == compiled


def test_gathered_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    log = Log.open(FOLDER, storage, 10_000, CLUSTER)
    for _ in range(300):
        log.append(sample_batch(log.next_id, 3), 0)
    monkeypatch.setattr("tallybus.common.wal.reader.MAX_RUN_RECORDS", 100)
    monkeypatch.setattr("tallybus.common.wal.reader.MAX_RUN_WORDS", 150)
    runs = list(read_log(FOLDER, 1, 900, 10_000, storage=storage, kernel=True))
    assert max(len(run.records) for run in runs) <= 100
    assert 9 <= len(runs) < 100
    assert same(joined(runs), sample_batch(1, 900))


@pytest.mark.parametrize("sizes", [(1,) * 50, (210,), (1, 210, 1, 1, 210, 210, 1)])
def test_small_and_big_blocks_may_alternate(sizes: Sequence[int]) -> None:
    storage = MemoryStorage()
    log = Log.open(FOLDER, storage, 100_000, CLUSTER)
    for size in sizes:
        log.append(plain_batch(log.next_id, size), 0)
    assert plain_batch(1, 210).byte_length > MAX_SMALL_PAYLOAD
    runs = list(read_log(FOLDER, 1, sum(sizes), 100_000, storage=storage, kernel=True))
    amounts = np.concatenate([run.records["amount"] for run in runs])
    assert amounts.tolist() == list(range(1, sum(sizes) + 1))


def test_a_copy_of_the_folder_reads_the_same(tmp_path: Path) -> None:
    make_log(Storage(), SIZES, 16, folder=tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert same(joined(list(read_log(tmp_path / "b", 1, LAST, 16))), sample_batch(1, LAST))
