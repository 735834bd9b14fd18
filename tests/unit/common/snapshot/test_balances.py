"""Snapshot files: what is written is loaded, what does not fit is refused, old ones are pruned."""

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tallybus.common.files import Storage, StorageError
from tallybus.common.memory import CHUNK_ACCOUNTS
from tallybus.common.snapshot.balances import (
    AccountLimitTooLow,
    DamagedSnapshot,
    Snapshot,
    SnapshotFields,
    SnapshotMismatch,
    SnapshotUnreadable,
    UnbalancedSnapshot,
    chunk_count,
    freeze_balances,
    list_snapshots,
    load_latest_snapshot,
    prune_snapshots,
    sidecar_path,
    snapshot_path,
    sum_of_balances,
    verify_snapshot,
)
from tallybus.common.snapshot.format import sidecar_line
from tests.support.folders import PROJECT
from tests.support.snapshots import write_snapshot

CLUSTER = 0xFEED_0123_4567_89AB
N = 100


def fields(segment: int, **changes: int) -> SnapshotFields:
    values = {
        "cluster_id": CLUSTER,
        "segment": segment,
        "transactions_per_segment": N,
        "term": 3,
        "timestamp_ns": 1_700_000_000_000_000_000,
    }
    return SnapshotFields(**(values | changes))


def ledger(
    max_accounts: int, values: dict[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Balances with these values, account 0 making up for them."""
    balances = np.zeros(max_accounts, np.int64)
    touched = np.zeros(chunk_count(max_accounts), np.uint8)
    for account, value in values.items():
        balances[account] = value
        touched[account // CHUNK_ACCOUNTS] = 1
    balances[0] -= sum(values.values())
    touched[0] = 1
    return balances, touched


def write(folder: Path, segment: int, values: dict[int, int], max_accounts: int = 10_000) -> Path:
    return write_snapshot(Storage(), folder, fields(segment), *ledger(max_accounts, values))


def load(folder: Path, **changes: int) -> tuple[Snapshot | None, list[DamagedSnapshot]]:
    arguments = {
        "cluster_id": CLUSTER,
        "transactions_per_segment": N,
        "max_accounts": 10_000,
        "durable_index": 1_000_000,
    }
    return load_latest_snapshot(folder, **(arguments | changes))


def loaded(folder: Path, **changes: int) -> Snapshot:
    snapshot, rejected = load(folder, **changes)
    assert rejected == []
    assert snapshot is not None
    return snapshot


def test_a_snapshot_comes_back_as_it_was_written(tmp_path: Path) -> None:
    balances, touched = ledger(10_000, {1: 5, 4095: 7, 9_999: -(2**62)})
    path = write_snapshot(Storage(), tmp_path, fields(2), balances, touched)
    assert path == tmp_path / "snapshot_000002.bin"
    snapshot = loaded(tmp_path)
    assert snapshot.fields == fields(2)
    assert snapshot.fields.last_tx_id == 200
    assert snapshot.balances.dtype == np.int64
    np.testing.assert_array_equal(snapshot.balances, balances)
    np.testing.assert_array_equal(snapshot.touched, touched)
    snapshot.balances[1] += 1


def test_every_byte_is_where_the_format_says(tmp_path: Path) -> None:
    path = write(tmp_path, 2, {4096 + 3: 9})
    data = path.read_bytes()
    assert len(data) == 128 + 2 * 8 + 2 * 4096 * 8
    assert data[:8] == b"TSNP" + bytes([2, 0, 128, 0])
    assert struct.unpack_from("<6Q", data, 8) == (CLUSTER, 2, 200, N, 3, 1_700_000_000_000_000_000)
    assert struct.unpack_from("<IIQQQ", data, 56) == (4096, 0, 2, 4096 + 4, len(data) - 128)
    assert data[88:116] == bytes(28)
    assert struct.unpack_from("<III", data, 116) == (crc32c(data[128:]), 0, crc32c(data[:124]))
    assert struct.unpack_from("<QQ", data, 128) == (0, 1)
    assert struct.unpack_from("<q", data, 144) == (-9,)
    assert struct.unpack_from("<q", data, 144 + 8 * (4096 + 3)) == (9,)
    assert sidecar_path(path).read_text("ascii") == (
        f"crc32c {crc32c(data):08x} size {len(data)} file snapshot_000002.bin\n"
    )


def test_a_snapshot_of_nothing_is_one(tmp_path: Path) -> None:
    balances = np.zeros(10_000, np.int64)
    path = write_snapshot(Storage(), tmp_path, fields(1), balances, np.zeros(3, np.uint8))
    assert path.stat().st_size == 128
    snapshot = loaded(tmp_path)
    assert not snapshot.balances.any()
    assert not snapshot.touched.any()


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path, 1, {5: 6}).read_bytes()
    assert write(tmp_path, 1, {5: 6}).read_bytes() == first


def test_balances_that_do_not_add_up_are_not_written(tmp_path: Path) -> None:
    balances, touched = ledger(10_000, {1: 5})
    balances[2] = 1
    with pytest.raises(UnbalancedSnapshot) as caught:
        write_snapshot(Storage(), tmp_path, fields(2), balances, touched)
    assert (caught.value.segment, caught.value.total) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_sum_that_is_zero_only_by_wrapping_is_not_zero(tmp_path: Path) -> None:
    balances, touched = ledger(10_000, {})
    balances[1:5] = 2**62
    with pytest.raises(UnbalancedSnapshot) as caught:
        write_snapshot(Storage(), tmp_path, fields(2), balances, touched)
    assert caught.value.total == 2**64


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_sums_are_exact(values: list[int]) -> None:
    assert sum_of_balances(np.array(values, np.int64)) == sum(values)


@pytest.mark.parametrize("largest", [1, 2**63 - 1])
def test_sums_of_many_balances_are_exact(largest: int) -> None:
    balances = np.full(300_000, largest, np.int64)
    balances[-1] = -(2**63)
    assert sum_of_balances(balances) == 299_999 * largest - 2**63


@pytest.mark.parametrize(
    "changes",
    [
        {"segment": 0},
        {"transactions_per_segment": 0},
        {"cluster_id": 2**64},
        {"term": -1},
        {"segment": 2**40, "transactions_per_segment": 2**40},
    ],
)
def test_fields_beyond_the_format_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"too (small|large)"):
        fields(**({"segment": 1} | changes))


def test_without_snapshots_there_is_none(tmp_path: Path) -> None:
    assert load(tmp_path) == (None, [])
    assert load(tmp_path / "absent") == (None, [])


def test_the_newest_snapshot_is_loaded_whatever_else_is_there(tmp_path: Path) -> None:
    for segment in (1, 3, 2):
        write(tmp_path, segment, {segment: 10})
    for name in (
        "snapshot_9.bin",
        "snapshot_0000009.bin",
        "snapshot_000009.bin.tmp",
        "snapshot_000009.crc",
        "function_snapshot_000009.bin",
        "wal.bin",
    ):
        (tmp_path / name).write_bytes(b"?")
    assert loaded(tmp_path).fields.segment == 3


def test_segments_beyond_six_digits_are_found(tmp_path: Path) -> None:
    write(tmp_path, 999_999, {1: 1})
    write(tmp_path, 1_000_000, {1: 2})
    assert loaded(tmp_path, durable_index=10**9).balances[1] == 2


@pytest.mark.parametrize("damage", ["no sidecar", "cut", "flipped", "empty", "folder"])
def test_a_damaged_snapshot_gives_way_to_an_older_one(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, {1: 1})
    path = write(tmp_path, 2, {1: 2})
    data = bytearray(path.read_bytes())
    if damage == "no sidecar":
        sidecar_path(path).unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "flipped":
        data[5000] ^= 16
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    snapshot, rejected = load(tmp_path)
    assert snapshot is not None
    assert (snapshot.fields.segment, snapshot.balances[1]) == (1, 1)
    assert [error.path for error in rejected] == [path]
    assert str(path) in str(rejected[0])


def test_with_every_snapshot_damaged_the_log_serves_from_its_start(tmp_path: Path) -> None:
    paths = [write(tmp_path, segment, {1: 1}) for segment in (1, 2)]
    for path in paths:
        sidecar_path(path).write_bytes(b"")
    snapshot, rejected = load(tmp_path)
    assert snapshot is None
    assert [error.path for error in rejected] == paths[::-1]


def test_a_snapshot_under_another_ones_name_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path, 1, {1: 1})
    data = path.read_bytes()
    other = snapshot_path(tmp_path, 2)
    other.write_bytes(data)
    sidecar_path(other).write_bytes(sidecar_line(other.name, crc32c(data), len(data)))
    snapshot, rejected = load(tmp_path)
    assert snapshot is not None
    assert snapshot.fields.segment == 1
    assert [error.reason for error in rejected] == ["it is the snapshot of segment 1"]


def test_a_sidecar_of_another_snapshot_proves_nothing(tmp_path: Path) -> None:
    first, second = write(tmp_path, 1, {1: 1}), write(tmp_path, 2, {1: 1})
    sidecar_path(second).write_bytes(sidecar_path(first).read_bytes())
    assert [error.path for error in load(tmp_path)[1]] == [second]


def forge(path: Path, offset: int, data: bytes) -> None:
    """Changes a snapshot and makes all of its checksums right again."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    content[116:120] = crc32c(content[128:]).to_bytes(4, "little")
    content[124:128] = crc32c(content[:124]).to_bytes(4, "little")
    path.write_bytes(content)
    sidecar_path(path).write_bytes(sidecar_line(path.name, crc32c(content), len(content)))


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"TBLK", "begin"),
        (4, b"\3\0", "version 3"),
        (6, b"\0\1", "sizes"),
        (16, b"\0" * 8, "too small"),
        (24, b"\xff" * 8, "last transaction"),
        (32, b"\xff" * 8, "too large"),
        (56, b"\0\0\1\0", "sizes"),
        (60, b"\1", "reserved"),
        (64, b"\xff" * 8, "length"),
        (64, b"\1", "length"),
        (80, b"\0" * 8, "length"),
        (100, b"\1", "reserved"),
        (120, b"\1", "reserved"),
        (128, b"\1", "ascending"),
        (136, b"\xff" * 8, "ascending"),
        (144 + 800, b"\1", "add up to 1"),
    ],
)
def test_nonsense_with_right_checksums_is_not_believed(
    tmp_path: Path, offset: int, data: bytes, reason: str
) -> None:
    path = write(tmp_path, 2, {4096: 1})
    forge(path, offset, data)
    snapshot, rejected = load(tmp_path)
    assert snapshot is None
    assert reason in rejected[0].reason


def test_a_balance_beyond_the_stated_bound_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path, 2, {4096 + 100: 1})
    forge(path, 72, (50).to_bytes(8, "little"))
    snapshot, rejected = load(tmp_path, max_accounts=4096 + 60)
    assert snapshot is None
    assert "beyond" in rejected[0].reason


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cluster_id": 1}, "cluster_id"),
        ({"transactions_per_segment": 99}, "transactions_per_segment"),
        ({"durable_index": 199}, "last_tx_id"),
    ],
)
def test_an_undamaged_snapshot_that_contradicts_the_log_refuses_the_start(
    tmp_path: Path, changes: dict[str, int], field: str
) -> None:
    write(tmp_path, 1, {1: 1})
    path = write(tmp_path, 2, {1: 1})
    with pytest.raises(SnapshotMismatch) as caught:
        load(tmp_path, **changes)
    assert (caught.value.path, caught.value.field) == (path, field)
    assert caught.value.expected in changes.values()
    assert not caught.value.restart


def test_a_snapshot_exactly_as_new_as_the_log_fits(tmp_path: Path) -> None:
    write(tmp_path, 2, {1: 1})
    assert loaded(tmp_path, durable_index=200).fields.segment == 2


@pytest.mark.parametrize("highest", [4095, 4096, 8191, 9_000])
def test_a_limit_below_a_used_account_names_the_needed_one(tmp_path: Path, highest: int) -> None:
    path = write(tmp_path, 2, {1: 1, highest: 1})
    with pytest.raises(AccountLimitTooLow) as caught:
        load(tmp_path, max_accounts=highest)
    assert (caught.value.path, caught.value.needed) == (path, highest + 1)
    assert f"at least {highest + 1}" in str(caught.value)
    assert loaded(tmp_path, max_accounts=highest + 1).balances[highest] == 1


def test_used_chunks_that_are_empty_again_do_not_count(tmp_path: Path) -> None:
    balances, touched = ledger(10_000, {7: 1})
    touched[2] = 1
    write_snapshot(Storage(), tmp_path, fields(2), balances, touched)
    snapshot = loaded(tmp_path, max_accounts=8)
    assert snapshot.balances.tolist() == [-1, 0, 0, 0, 0, 0, 0, 1]
    assert snapshot.touched.tolist() == [1]


def test_a_higher_limit_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path, 2, {9_999: 1})
    snapshot = loaded(tmp_path, max_accounts=20_001)
    assert len(snapshot.balances) == 20_001
    assert len(snapshot.touched) == 5
    assert np.flatnonzero(snapshot.balances).tolist() == [0, 9_999]
    assert snapshot.touched.tolist() == [1, 0, 1, 0, 0]


@given(
    st.integers(1, 40 * CHUNK_ACCOUNTS),
    st.lists(
        st.tuples(st.integers(0, 40 * CHUNK_ACCOUNTS - 1), st.integers(-(2**62), 2**62)),
        max_size=60,
    ),
    st.integers(0, 3 * CHUNK_ACCOUNTS),
)
def test_any_sparse_state_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    max_accounts: int,
    moves: list[tuple[int, int]],
    more_accounts: int,
) -> None:
    folder = tmp_path_factory.mktemp("snapshots")
    balances = np.zeros(max_accounts, np.int64)
    touched = np.zeros(chunk_count(max_accounts), np.uint8)
    for account, value in moves:
        source, target = account % max_accounts, (account * 7 + 1) % max_accounts
        for at, amount in ((source, -value), (target, value)):
            if not -(2**63) <= int(balances[at]) + amount < 2**63:
                break
        else:
            if source != target:
                balances[source] -= value
                balances[target] += value
                touched[[source // CHUNK_ACCOUNTS, target // CHUNK_ACCOUNTS]] = 1
    path = write_snapshot(Storage(), folder, fields(1), balances, touched)
    snapshot = loaded(folder, max_accounts=max_accounts + more_accounts)
    np.testing.assert_array_equal(snapshot.balances[:max_accounts], balances)
    assert not snapshot.balances[max_accounts:].any()
    np.testing.assert_array_equal(np.flatnonzero(snapshot.touched), np.flatnonzero(touched))
    before = path.read_bytes()
    write_snapshot(Storage(), folder, fields(1), snapshot.balances, snapshot.touched)
    assert path.read_bytes() == before


def test_freezing_copies_only_what_was_used() -> None:
    balances, touched = ledger(CHUNK_ACCOUNTS * 3 + 5, {CHUNK_ACCOUNTS * 3 + 4: 6})
    frozen = freeze_balances(balances, touched)
    assert frozen.chunks.tolist() == [0, 3]
    assert frozen.balances.shape == (2, CHUNK_ACCOUNTS)
    assert frozen.balances[1, 4] == 6
    assert not frozen.balances[1, 5:].any()
    balances[0] = 1
    assert frozen.balances[0, 0] == -6


def test_pruning_keeps_the_newest_valid_ones(tmp_path: Path) -> None:
    paths = [write(tmp_path, segment, {1: segment}) for segment in range(1, 6)]
    (tmp_path / "wal_000001.bin").write_bytes(b"log")
    assert prune_snapshots(Storage(), tmp_path, 2) == paths[:3]
    assert list_snapshots(tmp_path) == [paths[4], paths[3]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "function_snapshot_000004.bin",
        "function_snapshot_000004.crc",
        "function_snapshot_000005.bin",
        "function_snapshot_000005.crc",
        "snapshot_000004.bin",
        "snapshot_000004.crc",
        "snapshot_000005.bin",
        "snapshot_000005.crc",
        "wal_000001.bin",
    ]
    assert prune_snapshots(Storage(), tmp_path, 2) == []


def test_pruning_does_not_count_damaged_ones(tmp_path: Path) -> None:
    paths = [write(tmp_path, segment, {1: segment}) for segment in range(1, 6)]
    sidecar_path(paths[4]).unlink()
    paths[2].write_bytes(b"")
    assert prune_snapshots(Storage(), tmp_path, 2) == [paths[0]]
    assert list_snapshots(tmp_path) == [paths[4], paths[3], paths[2], paths[1]]


def test_pruning_never_removes_the_only_valid_one(tmp_path: Path) -> None:
    paths = [write(tmp_path, segment, {1: segment}) for segment in range(1, 4)]
    for path in paths[1:]:
        sidecar_path(path).write_bytes(b"nothing\n")
    assert prune_snapshots(Storage(), tmp_path, 1) == []
    snapshot, rejected = load(tmp_path)
    assert snapshot is not None
    assert snapshot.fields.segment == 1
    assert len(rejected) == 2


def test_pruning_removes_sidecars_that_were_left_behind(tmp_path: Path) -> None:
    write(tmp_path, 1, {1: 1}).unlink()
    write(tmp_path, 2, {1: 1})
    assert prune_snapshots(Storage(), tmp_path, 1) == []
    assert not sidecar_path(snapshot_path(tmp_path, 1)).exists()
    assert len(list(tmp_path.iterdir())) == 4


def test_pruning_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        prune_snapshots(Storage(), tmp_path, 0)


class FailingStorage(Storage):
    """Fails its nth system call that changes the disk, and all that follow."""

    def __init__(self, number: int) -> None:
        self.left = number

    def _count(self) -> None:
        if self.left == 0:
            raise OSError(28, "No space left on device")
        self.left -= 1

    def _sys_open(self, path: Path, flags: int) -> int:
        self._count()
        return super()._sys_open(path, flags)

    def _sys_write(self, descriptor: int, buffers: Any, offset: int) -> int:
        self._count()
        return super()._sys_write(descriptor, [memoryview(buffers[0])[:20_000]], offset)

    def _sys_fsync(self, descriptor: int) -> None:
        self._count()
        super()._sys_fsync(descriptor)

    def _sys_fsync_folder(self, descriptor: int) -> None:
        self._count()
        super()._sys_fsync_folder(descriptor)

    def _sys_rename(self, source: Path, target: Path) -> None:
        self._count()
        super()._sys_rename(source, target)


def test_a_failure_at_any_step_of_writing_leaves_the_older_snapshot(tmp_path: Path) -> None:
    write(tmp_path, 1, {1: 1})
    balances, touched = ledger(10_000, {1: 2})
    failures = 0
    while True:
        storage = FailingStorage(failures)
        try:
            write_snapshot(storage, tmp_path, fields(2), balances, touched)
        except StorageError:
            pass
        else:
            break
        snapshot, _ = load(tmp_path)
        assert snapshot is not None
        # The last steps may fail after the sidecar is there: then it is complete.
        assert snapshot.balances[1] == snapshot.fields.segment
        failures += 1
    assert failures >= 10
    assert loaded(tmp_path).balances[1] == 2


def test_a_refusal_of_the_system_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 1, {1: 1})

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.preadv", refuse)
    with pytest.raises(SnapshotUnreadable) as caught:
        verify_snapshot(path)
    assert caught.value.code == 13


def test_a_sector_that_cannot_be_read_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, 1, {1: 1})

    def fail(_descriptor: int, _buffers: object, offset: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.preadv", fail)
    snapshot, rejected = load(tmp_path)
    assert snapshot is None
    assert [error.path for error in rejected] == [path]


def test_a_large_limit_takes_memory_only_for_used_chunks(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import numpy as np
from tallybus.common.files import Storage
from tallybus.common.memory import lazy_zeros
from tallybus.common.snapshot.balances import *
from tests.support.snapshots import write_snapshot

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

folder = Path(sys.argv[1])
limit = 100_000_000
fields = SnapshotFields(1, 1, 10, 1, 1)
start = resident()
balances = lazy_zeros(limit, np.int64)
touched = np.zeros(chunk_count(limit), np.uint8)
# Every 64th chunk: 2 MiB apart, so that a huge page for any of them would show.
used = np.arange(0, chunk_count(limit) - 1, 64)
balances[used * 4096 + 1] = 3
balances[used * 4096 + 2] = -3
touched[used] = 1
write_snapshot(Storage(), folder, fields, balances, touched)
del balances
written = resident()
snapshot, rejected = load_latest_snapshot(
    folder, cluster_id=1, transactions_per_segment=10, max_accounts=limit, durable_index=10
)
assert rejected == [] and (snapshot.balances[used * 4096 + 1] == 3).all()
print(len(used) * 32768, written - start, resident() - written)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=PROJECT,
    )
    stored, grown_by_writing, grown_by_loading = map(int, done.stdout.split())
    assert grown_by_writing < 2 * stored + 32_000_000
    assert grown_by_loading < stored + 8_000_000
