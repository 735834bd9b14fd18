"""Function snapshots: written before the balances, which do not count without them."""

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c

from tallybus.common.files import Buffer, Storage, StorageError
from tallybus.common.functions.registry import FunctionVersion
from tallybus.common.snapshot.balances import (
    DamagedSnapshot,
    Snapshot,
    SnapshotFields,
    SnapshotUnreadable,
    function_snapshot_path,
    list_snapshots,
    load_latest_snapshot,
    prune_snapshots,
    sidecar_path,
    snapshot_path,
    verify_snapshot,
)
from tallybus.common.snapshot.format import sidecar_line
from tallybus.common.snapshot.functions import read_function_snapshot, write_function_snapshot
from tests.support.registries import registry_of
from tests.support.snapshots import write_snapshot

CLUSTER = 0xFEED_0123_4567_89AB
N = 100
ACCOUNTS = 100
VERSIONS = (
    FunctionVersion("fee", 1, 0xDEADBEEF, 3),
    FunctionVersion("f" * 32, 1, 0x01020304, 40),
    FunctionVersion("fee", 2, 0, 41),
    FunctionVersion("fee", 3, 7, 200),
)


def fields(segment: int, **changes: int) -> SnapshotFields:
    values = {
        "cluster_id": CLUSTER,
        "segment": segment,
        "transactions_per_segment": N,
        "term": 3,
        "timestamp_ns": 1_700_000_000_000_000_000,
    }
    return SnapshotFields(**(values | changes))


def write(folder: Path, segment: int, versions: Sequence[FunctionVersion]) -> Path:
    balances = np.zeros(ACCOUNTS, np.int64)
    balances[[0, 1]] = (-segment, segment)
    touched = np.ones(1, np.uint8)
    return write_snapshot(Storage(), folder, fields(segment), balances, touched, versions)


def load(folder: Path) -> tuple[Snapshot | None, list[DamagedSnapshot]]:
    return load_latest_snapshot(
        folder,
        cluster_id=CLUSTER,
        transactions_per_segment=N,
        max_accounts=ACCOUNTS,
        durable_index=1_000_000,
    )


def forge(path: Path, offset: int, data: bytes) -> None:
    """Changes a snapshot and makes all of its checksums right again."""
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    content[116:120] = crc32c(content[128:]).to_bytes(4, "little")
    content[124:128] = crc32c(content[:124]).to_bytes(4, "little")
    path.write_bytes(content)
    sidecar_path(path).write_bytes(sidecar_line(path.name, crc32c(content), len(content)))


class Pair:
    """A folder with the snapshots of segments 1 and 2, of which the functions of 2 get damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions = {1: VERSIONS[:3], 2: VERSIONS}
        for segment, versions in self.versions.items():
            write(folder, segment, versions)
        self.path = function_snapshot_path(folder, 2)
        self.sidecar = sidecar_path(self.path)

    def loaded_segment(self) -> int:
        """What a start finds: balances and functions always of one moment."""
        snapshot, rejected = load(self.folder)
        assert snapshot is not None
        segment = snapshot.fields.segment
        assert snapshot.balances[1] == segment
        assert snapshot.functions.versions() == self.versions[segment]
        assert [error.path for error in rejected] == [self.path] * (2 - segment)
        return segment


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    pair = Pair(tmp_path)
    assert pair.loaded_segment() == 2
    return pair


def test_every_byte_is_where_the_format_says(tmp_path: Path) -> None:
    path = write_function_snapshot(Storage(), tmp_path, fields(2), VERSIONS)
    assert path == tmp_path / "function_snapshot_000002.bin"
    data = path.read_bytes()
    assert len(data) == 128 + 4 * 48
    assert data[:8] == b"TFSN" + bytes([1, 0, 128, 0])
    assert struct.unpack_from("<6Q", data, 8) == (CLUSTER, 2, 200, N, 3, 1_700_000_000_000_000_000)
    assert struct.unpack_from("<IIQQQ", data, 56) == (48, 0, 4, 0, 4 * 48)
    assert data[88:116] == bytes(28)
    assert struct.unpack_from("<III", data, 116) == (crc32c(data[128:]), 0, crc32c(data[:124]))
    assert struct.unpack_from("<32sIIQ", data, 128) == (
        b"fee" + bytes(29), 1, 0xDEADBEEF, 3,
    )  # fmt: skip
    assert struct.unpack_from("<32sIIQ", data, 128 + 48) == (b"f" * 32, 1, 0x01020304, 40)
    assert struct.unpack_from("<32sIIQ", data, 128 + 96) == (b"fee" + bytes(29), 2, 0, 41)
    assert sidecar_path(path).read_text("ascii") == (
        f"crc32c {crc32c(data):08x} size {len(data)} file function_snapshot_000002.bin\n"
    )


@pytest.mark.parametrize("count", range(5))
def test_functions_come_back_as_they_were_written(tmp_path: Path, count: int) -> None:
    write(tmp_path, 2, VERSIONS[:count])
    found, registry = read_function_snapshot(function_snapshot_path(tmp_path, 2))
    assert found == fields(2)
    assert registry == registry_of(VERSIONS[:count])
    snapshot, rejected = load(tmp_path)
    assert snapshot is not None
    assert rejected == []
    assert snapshot.functions == registry
    snapshot.functions.apply(FunctionVersion("later", 1, 9, 500))


def test_functions_of_after_the_snapshot_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes after"):
        write_function_snapshot(Storage(), tmp_path, fields(1), VERSIONS)
    assert list(tmp_path.iterdir()) == []


def flip_every_bit(pair: Pair, path: Path) -> None:
    content = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    try:
        for offset in range(len(content)):
            for bit in range(8):
                os.pwrite(descriptor, bytes([content[offset] ^ (1 << bit)]), offset)
                assert pair.loaded_segment() == 1, f"byte {offset}, bit {bit}"
            os.pwrite(descriptor, content[offset : offset + 1], offset)
    finally:
        os.close(descriptor)
    assert pair.loaded_segment() == 2


def test_every_flipped_bit_is_noticed(pair: Pair) -> None:
    flip_every_bit(pair, pair.path)


def test_every_flipped_bit_of_the_sidecar_is_noticed(pair: Pair) -> None:
    flip_every_bit(pair, pair.sidecar)


@pytest.mark.parametrize("name", ["path", "sidecar"])
def test_cutting_anywhere_and_appending_anything_is_noticed(pair: Pair, name: str) -> None:
    path: Path = getattr(pair, name)
    content = path.read_bytes()
    for size in range(len(content) - 1, -1, -1):
        os.truncate(path, size)
        assert pair.loaded_segment() == 1, f"{size} bytes"
    for extra in (b"\0", b"\n", b"x" * 4096):
        path.write_bytes(content + extra)
        assert pair.loaded_segment() == 1
    path.write_bytes(content)
    assert pair.loaded_segment() == 2


@pytest.mark.parametrize("missing", ["path", "sidecar"])
def test_balances_without_their_functions_do_not_count(pair: Pair, missing: str) -> None:
    getattr(pair, missing).unlink()
    assert pair.loaded_segment() == 1
    with pytest.raises(DamagedSnapshot):
        verify_snapshot(snapshot_path(pair.folder, 2))


def test_functions_without_balances_do_not_count(pair: Pair) -> None:
    write_function_snapshot(Storage(), pair.folder, fields(3), VERSIONS)
    assert pair.loaded_segment() == 2


def test_with_all_functions_damaged_the_log_serves_from_its_start(pair: Pair) -> None:
    paths = [function_snapshot_path(pair.folder, segment) for segment in (2, 1)]
    for path in paths:
        path.write_bytes(b"")
    snapshot, rejected = load(pair.folder)
    assert snapshot is None
    assert [error.path for error in rejected] == paths
    assert str(paths[0]) in str(rejected[0])


def test_the_functions_of_another_segment_are_not_taken(pair: Pair) -> None:
    older = function_snapshot_path(pair.folder, 1)
    content = older.read_bytes()
    pair.path.write_bytes(content)
    pair.sidecar.write_bytes(sidecar_line(pair.path.name, crc32c(content), len(content)))
    assert pair.loaded_segment() == 1


@pytest.mark.parametrize("changes", [{"cluster_id": 5}, {"transactions_per_segment": N + 1}])
def test_the_functions_of_another_ledger_are_not_taken(pair: Pair, changes: dict[str, int]) -> None:
    write_function_snapshot(Storage(), pair.folder, fields(2, **changes), VERSIONS)
    assert pair.loaded_segment() == 1


def test_balances_under_the_name_of_functions_are_not_taken(pair: Pair) -> None:
    content = snapshot_path(pair.folder, 2).read_bytes()
    pair.path.write_bytes(content)
    pair.sidecar.write_bytes(sidecar_line(pair.path.name, crc32c(content), len(content)))
    assert pair.loaded_segment() == 1


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (0, b"TSNP", "begin"),
        (4, b"\2\0", "version 2"),
        (6, b"\0\1", "sizes"),
        (16, b"\1", "segment 1"),
        (24, b"\xff" * 8, "last transaction"),
        (56, b"\x28", "sizes"),
        (60, b"\1", "reserved"),
        (64, b"\xff" * 8, "length"),
        (64, b"\1", "length"),
        (72, b"\1", "reserved"),
        (80, b"\0" * 8, "length"),
        (100, b"\1", "reserved"),
        (120, b"\1", "reserved"),
        (128, b"\0", "name"),
        (128, b"9", "name"),
        (128, b"\xff", "name"),
        (128 + 10, b"x", "name"),
        (128, b"g", "next one is 1"),
        (128 + 32, b"\2", "next one is 1"),
        (128 + 32, b"\0", "version 0"),
        (128 + 36, bytes(4), "not registered"),
        (128 + 40, b"\0", "no such transaction"),
        (128 + 40, b"\x28", "after transaction 40"),
        (128 + 3 * 48 + 40, b"\xc9", "comes after it"),
    ],
)
def test_nonsense_with_right_checksums_is_not_believed(
    pair: Pair, offset: int, data: bytes, reason: str
) -> None:
    forge(pair.path, offset, data)
    assert pair.loaded_segment() == 1
    with pytest.raises(DamagedSnapshot, match=reason):
        read_function_snapshot(pair.path)


def test_a_snapshot_of_before_there_were_functions_still_opens(tmp_path: Path) -> None:
    path = write(tmp_path, 2, ())
    forge(path, 4, b"\1\0")
    for part in (function_snapshot_path(tmp_path, 2), sidecar_path(path)):
        assert part.exists()
    os.unlink(function_snapshot_path(tmp_path, 2))
    os.unlink(sidecar_path(function_snapshot_path(tmp_path, 2)))
    snapshot, rejected = load(tmp_path)
    assert rejected == []
    assert snapshot is not None
    assert snapshot.balances[1] == 2
    assert len(snapshot.functions) == 0
    assert prune_snapshots(Storage(), tmp_path, 1) == []
    assert list_snapshots(tmp_path) == [path]


def test_pruning_does_not_count_balances_without_functions(tmp_path: Path) -> None:
    for segment in range(1, 6):
        write(tmp_path, segment, ())
    function_snapshot_path(tmp_path, 5).unlink()
    sidecar_path(function_snapshot_path(tmp_path, 3)).write_bytes(b"nothing")
    assert prune_snapshots(Storage(), tmp_path, 2) == [snapshot_path(tmp_path, 1)]
    names = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in names if "000001" in name}
    assert len(names) == 4 * 4 - 1


def test_functions_left_behind_are_pruned(tmp_path: Path) -> None:
    for segment in range(1, 4):
        write(tmp_path, segment, ())
    snapshot_path(tmp_path, 1).unlink()
    sidecar_path(snapshot_path(tmp_path, 1)).unlink()
    snapshot_path(tmp_path, 2).unlink()
    assert prune_snapshots(Storage(), tmp_path, 1) == []
    assert all("000003" in path.name for path in tmp_path.iterdir())


class Recorded(Storage):
    """Remembers which files were made, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def atomic_write(self, path: Path, buffers: Sequence[Buffer]) -> None:
        self.names.append(path.name)
        super().atomic_write(path, buffers)


def test_the_proof_of_the_balances_is_written_last(tmp_path: Path) -> None:
    storage = Recorded()
    balances, touched = np.zeros(ACCOUNTS, np.int64), np.zeros(1, np.uint8)
    write_snapshot(storage, tmp_path, fields(2), balances, touched, VERSIONS)
    assert storage.names == [
        "function_snapshot_000002.bin",
        "function_snapshot_000002.crc",
        "snapshot_000002.bin",
        "snapshot_000002.crc",
    ]


def failing_at(number: int) -> Storage:
    """Its nth write of a file fails, before or after the file has its name, and all that follow."""
    left = number

    class Failing(Storage):
        def _sys_fsync(self, descriptor: int) -> None:
            self._count(lambda: super(Failing, self)._sys_fsync(descriptor))

        def _sys_fsync_folder(self, descriptor: int) -> None:
            self._count(lambda: super(Failing, self)._sys_fsync_folder(descriptor))

        def _count(self, call: Callable[[], None]) -> None:
            nonlocal left
            if left == 0:
                raise OSError(28, "No space left on device")
            left -= 1
            call()

    return Failing()


def test_a_failure_at_any_step_leaves_a_whole_pair(tmp_path: Path) -> None:
    write(tmp_path, 1, VERSIONS[:3])
    balances = np.zeros(ACCOUNTS, np.int64)
    balances[[0, 1]] = (-2, 2)
    touched = np.ones(1, np.uint8)
    found = []
    for number in range(8):
        with pytest.raises(StorageError):
            write_snapshot(failing_at(number), tmp_path, fields(2), balances, touched, VERSIONS)
        snapshot, _ = load(tmp_path)
        assert snapshot is not None
        segment = snapshot.fields.segment
        assert snapshot.balances[1] == segment
        assert snapshot.functions.versions() == (VERSIONS if segment == 2 else VERSIONS[:3])
        found.append(segment)
    assert found == [1] * 7 + [2], "only the last step is after the proof has its name"


def test_what_the_system_refuses_is_no_damage(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refuse(path: Path, flags: int) -> int:
        if Path(path).name == pair.path.name:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags)

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(SnapshotUnreadable) as caught:
        load(pair.folder)
    assert caught.value.path == pair.path
