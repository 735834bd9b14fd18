"""Durable file operations: loops, orders, and every failure typed."""

import errno
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.errors import FINAL_EXIT_CODES
from tallybus.common.files import (
    MAX_BUFFERS_PER_WRITE,
    FileMissing,
    LockHeld,
    NoDescriptors,
    Storage,
    StorageError,
)
from tests.support.faulty_storage import Fault, FaultyStorage, Keep, MemoryStorage, SimulatedCrash
from tests.support.folders import PROJECT


def test_many_buffers_are_written_in_order(tmp_path: Path) -> None:
    storage = Storage()
    file = storage.create(tmp_path / "a")
    parts = [bytes([i % 251]) * (i % 7) for i in range(3 * MAX_BUFFERS_PER_WRITE)]
    array = np.arange(10, dtype="<u8")
    written = storage.write_all(file, [*parts, array, bytearray(b"end"), memoryview(b"")], 5)
    expected = b"".join(parts) + array.tobytes() + b"end"
    assert written == len(expected)
    assert bytes(storage.map_read(file.path)) == bytes(5) + expected
    storage.close(file)


@pytest.mark.parametrize("seed", range(5))
def test_short_writes_go_on_from_where_they_ended(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    faults = [Fault("write", nth, 0, keep=rng.randrange(1, 60)) for nth in range(1, 30)]
    storage = FaultyStorage(None, *faults)
    file = storage.create(tmp_path / "a")
    parts = [rng.randbytes(rng.randrange(40)) for _ in range(100)]
    storage.write_all(file, parts, 0)
    storage.close(file)
    assert (tmp_path / "a").read_bytes() == b"".join(parts)


def test_a_write_that_writes_nothing_is_an_error_not_a_loop() -> None:
    storage = FaultyStorage(MemoryStorage(), Fault("write", 1, 0, forever=True, keep=0))
    file = storage.create(Path("/a"))
    with pytest.raises(StorageError, match="wrote nothing"):
        storage.write_all(file, [b"x"], 0)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "operation",
    ["write", "fdatasync", "fsync", "fsync_folder", "truncate", "rename", "remove", "close"],
)
def test_every_failure_carries_path_operation_and_errno(operation: str, number: int) -> None:
    storage = FaultyStorage(MemoryStorage(), Fault(operation, 1, number, forever=True))
    path = Path("/folder/a")
    assert isinstance(storage.inner, MemoryStorage)
    storage.inner.folders.add(path.parent)
    file = storage.create(path)
    actions: dict[str, Callable[[], object]] = {
        "write": lambda: storage.write_all(file, [b"x"], 0),
        "fdatasync": lambda: storage.fdatasync(file),
        "fsync": lambda: storage.fsync(file),
        "truncate": lambda: storage.truncate(file, 0),
        "rename": lambda: storage.rename(path, Path("/folder/b")),
        "remove": lambda: storage.remove(path),
        "close": lambda: storage.close(file),
        "fsync_folder": lambda: storage.fsync_folder(path.parent),
    }
    with pytest.raises(StorageError) as caught:
        actions[operation]()
    assert caught.value.errno == number
    assert caught.value.operation == operation
    assert caught.value.path == (path.parent if operation == "fsync_folder" else path)
    assert errno.errorcode[number] in str(caught.value)
    assert str(caught.value.path) in str(caught.value)
    fatal = operation not in ("rename", "remove", "close")
    full = number in (errno.ENOSPC, errno.EDQUOT)
    assert ("stop and start again" in str(caught.value)) == (fatal and not full)
    assert ("make room there and start again" in str(caught.value)) == (fatal and full)


def test_missing_files_have_their_own_type(tmp_path: Path) -> None:
    storage = Storage()
    missing = tmp_path / "missing"
    for action in (storage.open_append, storage.map_read, storage.size, storage.list_names):
        with pytest.raises(FileMissing):
            action(missing)


def test_create_refuses_an_existing_file(tmp_path: Path) -> None:
    storage = Storage()
    storage.close(storage.create(tmp_path / "a"))
    with pytest.raises(StorageError) as caught:
        storage.create(tmp_path / "a")
    assert caught.value.errno == errno.EEXIST


def test_rename_never_overwrites_unless_asked(tmp_path: Path) -> None:
    storage = Storage()
    for name in "ab":
        storage.atomic_write(tmp_path / name, [name.encode()])
    with pytest.raises(StorageError, match="EEXIST"):
        storage.rename(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"b"
    storage.rename(tmp_path / "a", tmp_path / "b", replace=True)
    assert (tmp_path / "b").read_bytes() == b"a"


def test_empty_file_maps_to_nothing(tmp_path: Path) -> None:
    storage = Storage()
    storage.close(storage.create(tmp_path / "a"))
    assert bytes(storage.map_read(tmp_path / "a")) == b""


def test_a_mapped_file_stays_readable_after_its_last_name_is_gone(tmp_path: Path) -> None:
    storage = Storage()
    storage.atomic_write(tmp_path / "a", [b"abc"])
    view = storage.map_read(tmp_path / "a")
    storage.remove(tmp_path / "a")
    assert bytes(view) == b"abc"


def test_a_second_lock_names_its_holder(tmp_path: Path) -> None:
    storage = Storage()
    lock = storage.lock_exclusive(tmp_path / "lock")
    with pytest.raises(LockHeld, match="process") as caught:
        Storage().lock_exclusive(tmp_path / "lock")
    assert caught.value.holder.startswith("process ")
    lock.release()
    lock.release()
    storage.lock_exclusive(tmp_path / "lock").release()


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tallybus.common.files import Storage\n"
        "lock = Storage().lock_exclusive(Path(sys.argv[1])); print('locked', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        with pytest.raises(LockHeld, match=f"process {process.pid}"):
            Storage().lock_exclusive(tmp_path / "lock")
        process.kill()
        process.wait()
    Storage().lock_exclusive(tmp_path / "lock").release()


def test_private_folder_is_closed_to_others(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "y"
    folder.mkdir(parents=True, mode=0o755)
    Storage().make_private_folder(folder)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_make_folder_makes_parents_and_is_repeatable(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    Storage().make_folder(folder)
    Storage().make_folder(folder)
    assert folder.is_dir()


def test_temporary_files_are_found_and_removed(tmp_path: Path) -> None:
    storage = Storage()
    (tmp_path / "snapshot_000001.bin.tmp").write_bytes(b"half")
    (tmp_path / "keep.bin").write_bytes(b"whole")
    assert storage.remove_temporary(tmp_path) == [tmp_path / "snapshot_000001.bin.tmp"]
    assert storage.list_names(tmp_path) == ["keep.bin"]


@pytest.mark.parametrize("keep", ["synced", "all", "some"])
def test_atomic_write_is_all_or_nothing_at_every_crash(keep: Keep) -> None:
    path = Path("/d/state")
    crash = 0
    finished = False
    while not finished:
        crash += 1
        disk = MemoryStorage({path: b"old" * 50})
        storage = FaultyStorage(disk, crash_at=crash)
        with suppress(SimulatedCrash):
            storage.atomic_write(path, [b"new" * 40, b"more"])
            finished = True
        for seed in range(10 if keep == "some" else 1):
            after = disk.after_crash(keep, random.Random(seed))
            content = after.contents()[path]
            assert content in (b"old" * 50, b"new" * 40 + b"more")
            assert content != b"old" * 50 or not finished
            after.atomic_write(path, [b"next"])
            assert after.contents() == {path: b"next"}
    assert crash > 5


@pytest.mark.parametrize("operation", ["open", "write", "fsync", "close", "rename", "fsync_folder"])
def test_atomic_write_keeps_the_old_file_or_has_the_new_when_the_disk_fails(operation: str) -> None:
    path = Path("/d/state")
    disk = MemoryStorage({path: b"old"})
    with pytest.raises(StorageError):
        FaultyStorage(disk, Fault(operation, 1)).atomic_write(path, [b"new"])
    assert disk.contents()[path] == (b"new" if operation == "fsync_folder" else b"old")
    assert list(disk.contents()) == [path]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_no_fault_of_the_disk(tmp_path: Path, number: int) -> None:
    """Connections of strangers may use them up; a new process has none of those."""
    storage = FaultyStorage(None, Fault("open", 1, number))
    with pytest.raises(NoDescriptors) as raised:
        storage.create(tmp_path / "wal.new")
    assert raised.value.restart
    assert raised.value.exit_code not in FINAL_EXIT_CODES
    assert "raise the limit of open files" in str(raised.value)


def test_a_lock_whose_file_was_removed_or_replaced_is_not_in_place(tmp_path: Path) -> None:
    storage = Storage()
    path = tmp_path / "x.lock"
    lock = storage.lock_exclusive(path)
    assert lock.in_place
    path.unlink()
    assert not lock.in_place
    other = storage.lock_exclusive(path)
    assert other.in_place
    assert not lock.in_place
    lock.release()
    assert not lock.in_place
    other.release()
