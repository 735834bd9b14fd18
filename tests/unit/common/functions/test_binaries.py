"""The binaries of functions on disk: written whole or not at all, and recognised when they are not
what was registered."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
from crc32c import crc32c

from tallybus.common.files import Storage, StorageError
from tallybus.common.functions.binaries import BinaryDamaged, binary_path, read_binary
from tallybus.services.wal.binaries import keep_binary, remove_unfinished
from tests.support.faulty_storage import Fault, FaultyStorage, Keep, MemoryStorage, SimulatedCrash

BINARY = b"\0asm a module"


def test_a_binary_is_read_as_it_was_written(tmp_path: Path) -> None:
    keep_binary(Storage(), tmp_path, "pay", 3, BINARY)
    assert binary_path(tmp_path, "pay", 3) == tmp_path / "functions" / "pay_v3.wasm"
    assert read_binary(tmp_path, "pay", 3, crc32c(BINARY)) == BINARY


def test_an_empty_file_says_unregistered(tmp_path: Path) -> None:
    keep_binary(Storage(), tmp_path, "pay", 4, b"")
    assert read_binary(tmp_path, "pay", 4, 0) == b""


def test_what_an_interrupted_registration_left_is_replaced(tmp_path: Path) -> None:
    keep_binary(Storage(), tmp_path, "pay", 1, b"never confirmed")
    keep_binary(Storage(), tmp_path, "pay", 1, BINARY)
    assert read_binary(tmp_path, "pay", 1, crc32c(BINARY)) == BINARY


@pytest.mark.parametrize("damage", [b"", BINARY[:-1], BINARY + b"x", BINARY.swapcase()])
def test_another_binary_is_refused_by_name_and_path(tmp_path: Path, damage: bytes) -> None:
    path = binary_path(tmp_path, "pay", 1)
    path.parent.mkdir()
    path.write_bytes(damage)
    with pytest.raises(BinaryDamaged) as caught:
        read_binary(tmp_path, "pay", 1, crc32c(BINARY))
    assert (caught.value.path, caught.value.name, caught.value.version) == (path, "pay", 1)
    assert str(path) in str(caught.value)


def test_a_missing_binary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BinaryDamaged, match="cannot be read"):
        read_binary(tmp_path, "pay", 1, crc32c(BINARY))


def test_a_file_where_an_empty_one_belongs_is_refused(tmp_path: Path) -> None:
    keep_binary(Storage(), tmp_path, "pay", 2, b"\xab\x9b\xe0\x9b")
    assert crc32c(b"\xab\x9b\xe0\x9b") == 0
    with pytest.raises(BinaryDamaged):
        read_binary(tmp_path, "pay", 2, 0)


@pytest.mark.parametrize("keep", ["none", "some", "all"])
def test_a_crash_at_every_step_leaves_the_old_file_or_the_new_one(keep: Keep) -> None:
    folder = Path("/data")
    path = binary_path(folder, "pay", 1)
    rng = random.Random(1)
    finished = False
    step = 0
    while not finished:
        step += 1
        disk = MemoryStorage({path: b"from before"})
        with suppress(SimulatedCrash):
            keep_binary(FaultyStorage(disk, crash_at=step), folder, "pay", 1, BINARY)
            finished = True
        after = disk.after_crash(keep, rng)
        found = after.contents()[path]
        assert found == BINARY if finished else found in (b"from before", BINARY)
        remove_unfinished(after, folder)
        assert set(after.contents()) == {path}
    assert step > 5


@pytest.mark.parametrize("operation", ["mkdir", "open", "write", "fsync", "rename", "fsync_folder"])
def test_a_failing_disk_is_told_and_nothing_takes_its_place(operation: str) -> None:
    disk = FaultyStorage(MemoryStorage({Path("/data/wal.bin"): b""}), Fault(operation, 1))
    with pytest.raises(StorageError):
        keep_binary(disk, Path("/data"), "pay", 1, BINARY)
    assert disk.failed == [operation]
