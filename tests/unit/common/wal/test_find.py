"""Finding single transactions in the log: each is found, wherever it stands, or its damage is."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.batch import Batch
from tallybus.common.files import Storage
from tallybus.common.record import RECORD_DTYPE, Kind
from tallybus.common.wal import find as module
from tallybus.common.wal.block import FORMAT_VERSION, HEADER_SIZE, MAGIC, BlockHeader, Chain
from tallybus.common.wal.find import find_block, find_transaction
from tallybus.common.wal.reader import (
    ACTIVE_NAME,
    DamagedLog,
    ForeignLog,
    LogEndsEarly,
    closed_path,
)
from tallybus.services.wal.log import Log
from tests.support.batches import batch_of
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

FIRST_WORD = int.from_bytes(
    MAGIC + FORMAT_VERSION.to_bytes(2, "little") + HEADER_SIZE.to_bytes(2, "little"), "little"
)


def find(
    tx_id: int, last_id: int, n: int, *, storage: Storage | None = None, folder: Path = FOLDER
) -> Batch:
    return find_transaction(folder, tx_id, n, cluster_id=CLUSTER, last_id=last_id, storage=storage)


def check(run: Batch, tx_id: int, expected: Batch | None = None) -> None:
    assert (run.first_id, run.last_id) == (tx_id, tx_id)
    assert same(joined([run]), expected or sample_batch(tx_id, 1))


@pytest.mark.parametrize("sizes", [(1,) * 60, (60,), (1, 1, 30, 2, 7, 1, 18), (7,) * 8 + (4,)])
@pytest.mark.parametrize("n", [7, 16, 1000])
def test_every_transaction_is_found_with_what_belongs_to_it(sizes: Sequence[int], n: int) -> None:
    storage = MemoryStorage()
    make_log(storage, sizes, n)
    for tx_id in range(1, 61):
        for last_id in {tx_id, 60}:
            check(find(tx_id, last_id, n, storage=storage), tx_id)


@pytest.mark.parametrize(("tx_id", "last_id"), [(0, 5), (6, 5), (1, 0)])
def test_what_is_not_durable_is_not_looked_for(tx_id: int, last_id: int) -> None:
    with pytest.raises(ValueError, match="not one of"):
        find(tx_id, last_id, 10, storage=MemoryStorage())


class Segment:
    """One file with blocks of the given sizes and markers between, as large as asked for."""

    def __init__(self, sizes: Iterator[int], last: int) -> None:
        chain = Chain(last, cluster_id=CLUSTER, previous_crc=0)
        parts: list[bytes] = []
        self.headers: list[BlockHeader] = []
        markers = random.Random(5)

        def add(batch: Batch | None) -> None:
            header, packed = chain.seal_marker() if batch is None else chain.seal(batch)
            chain.advance(header)
            self.headers.append(header)
            parts.extend((packed, *(() if batch is None else batch.buffers())))

        add(None)
        while chain.next_id <= last:
            add(plain_batch(chain.next_id, min(next(sizes), last - chain.next_id + 1)))
            if chain.next_id <= last and markers.random() < 0.05:
                add(None)
        self.content = b"".join(parts)
        self.last = last

    def storage(self, content: bytes | None = None, name: str = ACTIVE_NAME) -> MemoryStorage:
        return MemoryStorage({FOLDER / name: self.content if content is None else content})

    def find(self, tx_id: int, storage: MemoryStorage, last_id: int | None = None) -> None:
        run = find(tx_id, last_id or self.last, self.last, storage=storage)
        check(run, tx_id, plain_batch(tx_id, 1))


def uneven() -> Iterator[int]:
    """Stretches of single transactions and of large blocks: every guess is wrong."""
    sizes = random.Random(9)
    while True:
        kind = sizes.choice(((1,) * 400, (1, 2, 3) * 50, (900,) * 8, (5000,)))
        yield from kind


@pytest.fixture(scope="module")
def large() -> Segment:
    return Segment(uneven(), 40_000)


def test_each_is_found_in_few_looks(large: Segment, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    inner = module._next_header

    def counted(*arguments: object) -> object:
        nonlocal looks
        looks += 1
        return inner(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_next_header", counted)
    storage = large.storage()
    edges = [edge for header in large.headers for edge in (header.first_id, header.last_id)]
    for tx_id in sorted({1, large.last, *edges[:: len(edges) // 300], *range(7, large.last, 997)}):
        if not 1 <= tx_id <= large.last:
            continue
        looks = 0
        large.find(tx_id, storage)
        # Halving alone, every third look, takes 3 * log2(file / one step).
        assert looks <= 48, tx_id


def test_it_is_found_whatever_is_still_being_written_behind(large: Segment) -> None:
    header = large.headers[len(large.headers) // 2]
    assert header.record_count
    for torn in (1, 100, 129):
        following = large.content[header.end : header.end + torn]
        for tail in (following, bytes(4096), b"\xff" * 4096):
            storage = large.storage(large.content[: header.end] + tail)
            for tx_id in (1, header.first_id // 2, header.first_id, header.last_id):
                large.find(tx_id, storage, header.last_id)


def test_a_file_that_ends_before_it_is_told(large: Segment) -> None:
    header = large.headers[len(large.headers) // 2]
    for cut in (header.offset, header.end - 1, header.offset + 64):
        storage = large.storage(large.content[:cut])
        with pytest.raises((LogEndsEarly, DamagedLog)) as caught:
            find(header.last_id, header.last_id, large.last, storage=storage)
        assert caught.value.path == FOLDER / ACTIVE_NAME
        assert header.offset <= caught.value.offset <= cut


def test_damage_to_its_block_is_told_with_its_place(large: Segment) -> None:
    blocks = [header for header in large.headers if header.record_count]
    rng = random.Random(3)
    for header in rng.sample(blocks, 30):
        for offset in (*range(0, 128, 9), *range(128, header.end - header.offset, 997)):
            content = bytearray(large.content)
            content[header.offset + offset] ^= 1 << rng.randrange(8)
            storage = large.storage(bytes(content))
            tx_id = rng.randint(header.first_id, header.last_id)
            with pytest.raises((DamagedLog, ForeignLog)) as caught:
                find(tx_id, large.last, large.last, storage=storage)
            assert caught.value.offset == header.offset


def test_damage_elsewhere_never_gives_a_wrong_answer(large: Segment) -> None:
    rng = random.Random(4)
    found = 0
    for _ in range(200):
        content = bytearray(large.content)
        at = rng.randrange(len(content) - 4096)
        content[at : at + rng.choice((1, 8, 4096))] = b""  # what follows is misplaced
        storage = large.storage(bytes(content))
        tx_id = rng.randint(1, large.last)
        try:
            large.find(tx_id, storage)
            found += 1
        except (DamagedLog, ForeignLog, LogEndsEarly):
            continue
    assert found, "what stands before the damage is found"


def test_what_clients_write_is_not_taken_for_a_header() -> None:
    """A batch full of words as a header begins with, and whole copies of an older header."""
    chain = Chain(10_000, cluster_id=CLUSTER, previous_crc=0)
    parts: list[bytes] = []
    older = b""
    tx = 1

    def add(batch: Batch | None) -> None:
        nonlocal older
        header, packed = chain.seal_marker() if batch is None else chain.seal(batch)
        chain.advance(header)
        parts.extend((packed, *(() if batch is None else batch.buffers())))
        older = packed

    add(None)
    while tx <= 8000:
        records = np.zeros(500, RECORD_DTYPE)
        records["kind"], records["status"] = Kind.TRANSFER, 5
        words = records.view("<u8").reshape(500, 5)
        words[:, 1:] = FIRST_WORD
        copies = np.frombuffer(older, "<u8")[:15]
        words[:400, 1:].reshape(-1)[: 15 * 100] = np.tile(copies, 100)
        add(batch_of(tx, records))
        tx += 500
    storage = MemoryStorage({FOLDER / ACTIVE_NAME: b"".join(parts)})
    for tx_id in range(1, 8001, 37):
        assert find(tx_id, 8000, 10_000, storage=storage).first_id == tx_id
        block = find_block(FOLDER, tx_id, 10_000, cluster_id=CLUSTER, last_id=8000, storage=storage)
        assert (block.first_id, block.count) == ((tx_id - 1) // 500 * 500 + 1, 500)


def test_a_block_comes_whole_and_no_cluster_need_be_known(large: Segment) -> None:
    storage = large.storage()
    for header in large.headers[::50]:
        if header.record_count:
            run = find_block(
                FOLDER, header.last_id, large.last, last_id=large.last, storage=storage
            )
            assert (run.first_id, run.last_id) == (header.first_id, header.last_id)
            assert same(joined([run]), plain_batch(header.first_id, header.record_count))


def test_a_block_whose_records_call_for_other_extras_is_damaged() -> None:
    records = np.zeros(2, RECORD_DTYPE)
    records["kind"] = Kind.FUNCTION
    records["amount"] = (1, 0)
    words = np.array([5], "<i8")
    batch = batch_of(1, records, params=words)
    records["amount"] = (1, 1)
    chain = Chain(100, cluster_id=CLUSTER, previous_crc=0)
    parts = []
    header, packed = chain.seal_marker()
    chain.advance(header)
    parts += [packed, chain.seal(batch)[1]]
    parts += [part.tobytes() for part in batch.parts]
    storage = MemoryStorage({FOLDER / ACTIVE_NAME: b"".join(parts)})
    with pytest.raises(DamagedLog, match="the records call for"):
        find(1, 2, 100, storage=storage)


def test_another_ledgers_log_is_refused() -> None:
    storage = MemoryStorage()
    make_log(storage, (5, 5), 100, cluster=CLUSTER + 1)
    with pytest.raises(ForeignLog):
        find(3, 10, 100, storage=storage)
    with pytest.raises(ForeignLog):
        find_transaction(FOLDER, 3, 99, cluster_id=CLUSTER + 1, last_id=10, storage=storage)


def test_a_missing_segment_is_told() -> None:
    storage = MemoryStorage()
    make_log(storage, (5, 5, 5), 5)
    storage.remove(closed_path(FOLDER, 2))
    check(find(3, 15, 5, storage=storage), 3)
    with pytest.raises(DamagedLog):
        find(7, 15, 5, storage=storage)


def test_transactions_are_found_while_their_segment_is_closed(tmp_path: Path) -> None:
    """Every moment of a rotation, as the log stage leaves it on disk."""
    folder = tmp_path / "data"
    log = Log.open(folder, Storage(), 8, CLUSTER)
    for first in range(1, 31, 3):
        log.append(sample_batch(first, 3), 0)
        for tx_id in range(1, first + 3):
            check(find(tx_id, first + 2, 8, folder=folder), tx_id)
    log.close()


def test_headers_of_the_sample_are_as_the_log_stage_writes_them(large: Segment) -> None:
    assert headers_of(large.content, 1, large.last) == large.headers
