"""Damage: a log is recovered exactly, or refused.

It is never wrong, and never short of what a later block shows to have been durable.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus.common.wal.block import BlockHeader, Chain
from tallybus.common.wal.check import check_log
from tallybus.common.wal.reader import (
    ACTIVE_NAME,
    FRESH_NAME,
    LOCK_NAME,
    DamagedLog,
    ForeignLog,
    LogRefused,
    chain_at,
    closed_path,
    read_log,
)
from tallybus.services.wal.log import Log
from tests.support.faulty_storage import MemoryStorage
from tests.support.log_samples import (
    CLUSTER,
    FOLDER,
    assert_log_holds,
    headers_of,
    joined,
    make_log,
    same,
    sample_batch,
)

SIZE = 4
SIZES = (3, 2, 1, 3, 1)
"""Ids 1..10: segments 1..4 and 5..8 closed, 9..10 in the active file."""
ACTIVE = FOLDER / ACTIVE_NAME

Files = dict[Path, bytes]


def files_of(*, clean: bool, synced: bool = True, sizes: tuple[int, ...] = SIZES) -> Files:
    disk = MemoryStorage()
    make_log(disk, sizes, SIZE, clean=clean, synced=synced)
    files = disk.contents()
    del files[FOLDER / LOCK_NAME]
    return files


CLEAN = files_of(clean=True)
CRASHED = files_of(clean=False)
LOGS = pytest.mark.parametrize("files", [CLEAN, CRASHED], ids=["clean", "crashed"])


def active_headers(files: Files) -> list[BlockHeader]:
    return headers_of(files[ACTIVE], 3, SIZE)


def outcome_of(files: Files) -> int | type[LogRefused]:
    """Last id of the log as recovered, its content checked; or how it was refused."""
    disk = MemoryStorage(files)
    try:
        state = check_log(FOLDER, SIZE, storage=disk)
    except LogRefused as error:
        return type(error)
    last = state.chain.next_id - 1
    assert_log_holds(disk, last, SIZE)
    return last


def recovered(files: Files) -> int | type[LogRefused]:
    """The same with the real recovery: what it says must agree, and the log must go on."""
    expected = outcome_of(files)
    disk = MemoryStorage(files)
    refused: type[LogRefused] | None = None
    try:
        log = Log.open(FOLDER, disk, SIZE, 1)
    except LogRefused as error:
        refused = type(error)
    if refused is not None:
        assert refused is expected
        left = disk.contents()
        assert {**left, FOLDER / LOCK_NAME: b""} == {**files, FOLDER / LOCK_NAME: b""}, (
            "a refused log must stay as it is"
        )
        return refused
    last = log.next_id - 1
    assert last == expected
    log.close()
    assert check_log(FOLDER, SIZE, storage=disk.after_crash("synced")).chain.next_id == last + 1
    return last


def expected_when_damaged(headers: list[BlockHeader], at: int) -> int | type[LogRefused]:
    """By the rules of docs/wal-format.md, for damage in the active file at byte `at`."""
    for position, header in enumerate(headers):
        if header.offset <= at < header.end:
            if position == 0:
                return DamagedLog
            if any(later.durable_index >= header.first_id for later in headers[position + 1 :]):
                return DamagedLog
            return header.first_id - 1
    raise AssertionError(f"no block at {at}")


def damaged(files: Files, path: Path, at: int, content: bytes) -> Files:
    whole = files[path]
    return {**files, path: whole[:at] + content + whole[at + len(content) :]}


def bits(files: Files, path: Path) -> Iterator[tuple[int, Files]]:
    for at in range(len(files[path])):
        for bit in range(8):
            yield at, damaged(files, path, at, bytes([files[path][at] ^ 1 << bit]))


def test_the_samples_are_what_they_should_be() -> None:
    assert outcome_of(CLEAN) == 10
    assert outcome_of(CRASHED) == 10
    assert recovered(CLEAN) == 10
    assert recovered(CRASHED) == 10
    assert [header.durable_index for header in active_headers(CLEAN)] == [8, 8, 9, 10]
    assert [header.durable_index for header in active_headers(CRASHED)] == [8, 8, 9]


@LOGS
def test_every_flipped_bit_of_the_active_file(files: Files) -> None:
    headers = active_headers(files)
    seen = set()
    for at, changed in bits(files, ACTIVE):
        expected = expected_when_damaged(headers, at)
        assert outcome_of(changed) == expected, f"byte {at}"
        seen.add(expected)
    # A clean log refuses all but damage of its last marker, which loses nothing.
    assert seen == ({DamagedLog, 10} if files is CLEAN else {DamagedLog, 9})


@pytest.mark.parametrize("segment", [1, 2])
def test_every_flipped_bit_of_a_closed_file_is_refused(segment: int) -> None:
    path = closed_path(FOLDER, segment)
    for at, changed in bits(CLEAN, path):
        with pytest.raises(DamagedLog) as caught:
            check_log(FOLDER, SIZE, storage=MemoryStorage(changed))
        assert caught.value.path == path
        assert caught.value.offset <= at


@LOGS
def test_recovery_agrees_for_a_flip_in_every_byte(files: Files) -> None:
    rng = random.Random(7)
    for path, content in files.items():
        for at in range(len(content)):
            recovered(damaged(files, path, at, bytes([content[at] ^ 1 << rng.randrange(8)])))


@LOGS
def test_every_length_of_the_active_file(files: Files) -> None:
    headers = active_headers(files)
    for length in range(len(files[ACTIVE])):
        expected: int | type[LogRefused] = DamagedLog
        for header in headers:
            if header.end <= length:
                expected = header.last_id
        assert recovered({**files, ACTIVE: files[ACTIVE][:length]}) == expected, length


@pytest.mark.parametrize("segment", [1, 2])
def test_every_shorter_length_of_a_closed_file_is_refused(segment: int) -> None:
    path = closed_path(FOLDER, segment)
    for length in range(len(CLEAN[path])):
        shorter = {**CLEAN, path: CLEAN[path][:length]}
        with pytest.raises(DamagedLog) as caught:
            check_log(FOLDER, SIZE, storage=MemoryStorage(shorter))
        assert caught.value.path == path
        assert caught.value.offset <= length


@LOGS
def test_zeros_over_any_part_of_the_active_file(files: Files) -> None:
    """Dropped writes: a sector or a block that never arrived."""
    headers = active_headers(files)
    for length in (8, 64, 200):
        for at in range(0, len(files[ACTIVE]) - length, 8):
            changed = damaged(files, ACTIVE, at, bytes(length))
            if changed == files:
                continue
            first = next(
                i for i in range(at, at + length) if changed[ACTIVE][i] != files[ACTIVE][i]
            )
            touched = [h for h in headers if h.end > first]
            intact = [h for h in touched if h.offset >= at + length]
            expected: int | type[LogRefused] = touched[0].first_id - 1
            if touched[0] is headers[0] or any(
                h.durable_index >= touched[0].first_id for h in intact
            ):
                expected = DamagedLog
            got = outcome_of(changed)
            # A marker that is partly zeroed may keep its meaning for the blocks before it.
            assert got == expected or (got is DamagedLog and touched[-1] not in intact), (
                at,
                length,
            )


@LOGS
def test_garbage_behind_the_end_is_cut_off(files: Files) -> None:
    rng = random.Random(1)
    last_block = files[ACTIVE][active_headers(files)[-1].offset :]
    for garbage in (bytes(1), bytes(500), rng.randbytes(300), b"TBLK" * 50, last_block):
        assert recovered({**files, ACTIVE: files[ACTIVE] + garbage}) == 10


@LOGS
def test_reordered_and_repeated_blocks_of_the_active_file(files: Files) -> None:
    headers = active_headers(files)
    content = files[ACTIVE]
    blocks = [content[header.offset : header.end] for header in headers]
    for i in range(1, len(blocks)):
        for j in range(1, len(blocks)):
            if i == j:
                continue
            swapped = list(blocks)
            swapped[i], swapped[j] = blocks[j], blocks[i]
            repeated = [*blocks[:i], blocks[j], *blocks[i:]]
            for order in (swapped, repeated):
                got = recovered({**files, ACTIVE: b"".join(order)})
                # What is given for recovered is a prefix that no header shows to be too short.
                shown = max(header.durable_index for header in headers)
                assert got is DamagedLog or (isinstance(got, int) and shown <= got <= 10)


def test_missing_repeated_and_exchanged_files_are_refused() -> None:
    one, two = closed_path(FOLDER, 1), closed_path(FOLDER, 2)
    without = {path: {p: c for p, c in CLEAN.items() if p != path} for path in CLEAN}
    cases: dict[str, Files] = {
        "first missing": without[one],
        "second missing": without[two],
        "active missing": without[ACTIVE],
        "only the active": {ACTIVE: CLEAN[ACTIVE]},
        "exchanged": {**CLEAN, one: CLEAN[two], two: CLEAN[one]},
        "repeated": {**CLEAN, two: CLEAN[one]},
        "closed twice": {**CLEAN, closed_path(FOLDER, 3): CLEAN[two]},
        "active is the first": {**CLEAN, ACTIVE: CLEAN[one]},
        "active is the second": {**CLEAN, ACTIVE: CLEAN[two]},
        "closed by hand": {**without[ACTIVE], closed_path(FOLDER, 3): CLEAN[ACTIVE]},
        "closed too early": {**CLEAN, closed_path(FOLDER, 3): CLEAN[ACTIVE]},
        "a later new file alone": {FOLDER / FRESH_NAME: CLEAN[ACTIVE][:128]},
        "the active as new file alone": {FOLDER / FRESH_NAME: CLEAN[ACTIVE]},
        "empty closed": {**CLEAN, one: b""},
        "empty active": {**CLEAN, ACTIVE: b""},
        "more behind a closed one": {**CLEAN, one: CLEAN[one] + CLEAN[one][-128:]},
        "zero behind a closed one": {**CLEAN, one: CLEAN[one] + bytes(1)},
        "new file beside an unfinished segment": {
            **CLEAN,
            FOLDER / FRESH_NAME: CLEAN[ACTIVE][:128],
        },
        "empty new file beside an unfinished segment": {**CLEAN, FOLDER / FRESH_NAME: b""},
    }
    for name, files in cases.items():
        assert recovered(files) is DamagedLog, name


def test_files_of_another_ledger_are_refused() -> None:
    disk = MemoryStorage()
    make_log(disk, SIZES, SIZE, cluster=CLUSTER + 1)
    other = disk.contents()
    for path in CLEAN:
        got = recovered({**CLEAN, path: other[path]})
        assert got is ForeignLog, path
    # The last one: even behind a whole log a foreign block is nobody's torn write.
    assert recovered({**CLEAN, ACTIVE: CLEAN[ACTIVE] + other[ACTIVE][:128]}) is ForeignLog


def test_another_size_of_segments_is_refused() -> None:
    for size in (SIZE - 1, SIZE + 1, 1, 1000):
        with pytest.raises(ForeignLog, match="transactions_per_segment"):
            Log.open(FOLDER, MemoryStorage(CLEAN), size, CLUSTER)


def test_a_history_that_took_another_course_is_refused() -> None:
    """Same cluster, ids and sizes, but other blocks: only the chain tells."""
    other = files_of(clean=True, sizes=(1, *SIZES[1:], 2))
    for path in (closed_path(FOLDER, 1), closed_path(FOLDER, 2)):
        assert recovered({**CLEAN, path: other[path]}) is DamagedLog
    assert recovered({**CLEAN, ACTIVE: other[ACTIVE]}) is DamagedLog


def test_an_unsynced_tail_may_be_lost_in_any_order() -> None:
    """Blocks behind the durable index, each on the disk or not: recovered up to the first gap."""
    files = files_of(clean=False, synced=False, sizes=(4, 4, 1, 1, 1))
    headers = headers_of(files[ACTIVE], 3, SIZE)
    assert len(headers) == 4
    for kept in range(8):
        content = bytearray(files[ACTIVE])
        expected = 11
        for position in (2, 1, 0):
            header = headers[position + 1]
            if not kept >> position & 1:
                content[header.offset : header.end] = bytes(header.end - header.offset)
                expected = header.first_id - 1
        assert recovered({**files, ACTIVE: bytes(content)}) == expected


def test_the_window_in_which_damage_looks_like_a_torn_tail() -> None:
    """The last blocks before anything certifies them: documented, and no larger than documented."""
    headers = active_headers(CRASHED)
    last, before = headers[-1], headers[-2]
    assert recovered(damaged(CRASHED, ACTIVE, last.offset + 130, b"\xff")) == 9
    assert recovered(damaged(CRASHED, ACTIVE, before.offset + 130, b"\xff")) is DamagedLog
    # Opened once, it is certified, and the window is closed.
    disk = MemoryStorage(CRASHED)
    Log.open(FOLDER, disk, SIZE, CLUSTER).abandon()
    files = disk.after_crash("synced").contents()
    assert recovered(damaged(files, ACTIVE, last.offset + 130, b"\xff")) is DamagedLog


def test_evidence_in_a_block_that_is_misplaced_still_counts() -> None:
    headers = active_headers(CLEAN)
    marker = CLEAN[ACTIVE][headers[-1].offset :]
    data = damaged(CLEAN, ACTIVE, headers[-2].offset, bytes(20))[ACTIVE]
    for shift in range(1, 20):
        moved = data[: headers[-1].offset] + bytes(shift) + marker
        assert outcome_of({**CLEAN, ACTIVE: moved}) is DamagedLog


def test_forged_evidence_needs_the_cluster_id() -> None:
    """What a client may have chosen, in the shape of a header, in a tail that is really torn."""
    headers = active_headers(CRASHED)
    chain = Chain(SIZE, CLUSTER ^ 1, 3, 128, 9, 0, 1, 8)
    forged = chain.seal_marker(8)[0]._replace(durable_index=2**60).pack()
    torn = CRASHED[ACTIVE][: headers[-1].offset + 60] + forged
    assert recovered({**CRASHED, ACTIVE: torn}) == 9


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_never_gives_a_wrong_answer(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        files = dict(rng.choice((CLEAN, CRASHED)))
        for _ in range(rng.randrange(1, 4)):
            path = rng.choice(sorted(files))
            content = bytearray(files[path])
            at = rng.randrange(len(content) + 1)
            match rng.randrange(4):
                case 0:
                    content[at : at + 1] = rng.randbytes(1)
                case 1:
                    content[at : at + 64] = rng.randbytes(rng.choice((0, 8, 64)))
                case 2:
                    donor = files[rng.choice(sorted(files))]
                    source = rng.randrange(len(donor) // 8 + 1) * 8
                    content[at // 8 * 8 : at // 8 * 8] = donor[source : source + 128]
                case _:
                    del content[at:]
            files[path] = bytes(content)
        got = recovered(files)
        assert isinstance(got, type) or 8 <= got <= 10


@LOGS
def test_readers_never_hand_out_damaged_transactions(files: Files) -> None:
    for path in files:
        for at, changed in bits(files, path):
            if at % 5:
                continue
            disk = MemoryStorage(changed)
            runs = []
            try:
                for run in read_log(FOLDER, 1, 10, SIZE, storage=disk, cluster_id=CLUSTER):
                    runs.append(run)
            except LogRefused:
                pass
            got = joined(runs)
            assert same(got, sample_batch(1, len(got.records)))


def test_the_chain_starts_anywhere_but_only_once() -> None:
    assert chain_at(1, SIZE, None).previous_crc == 0
    assert chain_at(2, SIZE, None).previous_crc is None
