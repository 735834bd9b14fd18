"""Disks that fail: test doubles for `Storage`.

`MemoryStorage` keeps files in memory and knows, as a real disk does, the difference between written
and synced; `after_crash` gives the disk that a machine finds after losing its power.
`FaultyStorage` puts failures in front of any storage: the Nth call of an operation fails, a write
is short, or the process dies at the Nth call. Both override single system calls only, so what runs
above them is the product's own code.
"""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tallybus.common.files import Storage

TORN_UNIT = 16
"""Bytes that the simulated disk writes as one; real ones write at least 512."""

Keep = Literal["synced", "all", "some"]


class SimulatedCrash(BaseException):
    """The process dies here. Not an Exception: nothing may handle it."""


@dataclass(frozen=True, slots=True)
class WriteOp:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TruncateOp:
    size: int


@dataclass(slots=True, eq=False)
class Inode:
    """`cache` is what processes see, `disk` what is durable, `pending` leads there."""

    cache: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    pending: list[WriteOp | TruncateOp] = field(default_factory=list)

    def change(self, op: WriteOp | TruncateOp) -> None:
        apply(self.cache, op)
        self.pending.append(op)

    def sync(self) -> None:
        # Another thread may go on writing: only what is pending now is synced.
        ops = list(self.pending)
        for op in ops:
            apply(self.disk, op)
        del self.pending[: len(ops)]


@dataclass(frozen=True, slots=True)
class NameOp:
    """`name` now stands for `inode` (None: it is gone); a rename also drops `source`."""

    name: Path
    inode: Inode | None
    source: Path | None = None


def apply(content: bytearray, op: WriteOp | TruncateOp) -> None:
    if isinstance(op, TruncateOp):
        size = op.size
    else:
        size = max(len(content), op.offset + len(op.data))
    if size > len(content):
        content.extend(bytes(size - len(content)))
    del content[size:]
    if isinstance(op, WriteOp):
        content[op.offset : op.offset + len(op.data)] = op.data


def apply_name(names: dict[Path, Inode], op: NameOp) -> None:
    if op.source is not None:
        names.pop(op.source, None)
    if op.inode is None:
        names.pop(op.name, None)
    else:
        names[op.name] = op.inode


class MemoryStorage(Storage):
    """A disk in memory, with one process on it at a time. Folders are durable at once."""

    def __init__(self, files: dict[Path, bytes] | None = None) -> None:
        self.names: dict[Path, Inode] = {}
        self.durable_names: dict[Path, Inode] = {}
        self.pending_names: list[NameOp] = []
        self.folders: set[Path] = {Path("/")}
        self._descriptors: dict[int, Inode | Path] = {}
        self._locks: dict[int, Inode] = {}
        self._next_descriptor = 3
        for path, content in (files or {}).items():
            inode = Inode(bytearray(content), bytearray(content))
            self.names[path] = self.durable_names[path] = inode
            self.folders.update(path.parents)

    def contents(self) -> dict[Path, bytes]:
        """What processes read now."""
        return {path: bytes(inode.cache) for path, inode in self.names.items()}

    def after_crash(self, keep: Keep, rng: random.Random | None = None) -> MemoryStorage:
        """The disk after a crash: of what was not synced, keep nothing, all, or a random part.

        Keeping all is the death of the process alone; parts may be torn and out of order.
        """
        names = dict(self.durable_names)
        for name_op in list(self.pending_names):
            if keep == "all" or (keep == "some" and rng is not None and rng.random() < 0.5):
                apply_name(names, name_op)
        found: dict[Path, bytes] = {}
        for path, inode in names.items():
            content = bytearray(inode.disk)
            for op in list(inode.pending):
                if keep == "all":
                    apply(content, op)
                elif keep == "some" and rng is not None:
                    for part in torn(op, rng):
                        apply(content, part)
            if keep == "all":
                content = bytearray(inode.cache)
            found[path] = bytes(content)
        disk = MemoryStorage(found)
        disk.folders = set(self.folders)
        return disk

    def lose_pending(self, descriptor: int) -> None:
        """What Linux does after a failed fsync: the pages count as clean and are never written."""
        inode = self._descriptors[descriptor]
        if isinstance(inode, Inode):
            inode.pending.clear()

    def make_private_folder(self, folder: Path) -> None:
        self.make_folder(folder)

    def _file(self, descriptor: int) -> Inode:
        inode = self._descriptors.get(descriptor)
        if not isinstance(inode, Inode):
            raise OSError(errno.EBADF, "not an open file")
        return inode

    def _named(self, path: Path) -> Inode:
        if path not in self.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return self.names[path]

    def _rename_op(self, op: NameOp) -> None:
        apply_name(self.names, op)
        self.pending_names.append(op)

    def _sys_mkdir(self, path: Path) -> None:
        self.folders.add(path)

    def _sys_open(self, path: Path, flags: int) -> int:
        found: Inode | Path
        if flags & os.O_DIRECTORY:
            if path not in self.folders:
                raise FileNotFoundError(errno.ENOENT, "no such folder", str(path))
            found = path
        elif path in self.names:
            if flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, "file exists", str(path))
            found = self.names[path]
        elif flags & os.O_CREAT:
            found = Inode()
            self._rename_op(NameOp(path, found))
        else:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        self._next_descriptor += 1
        self._descriptors[self._next_descriptor] = found
        return self._next_descriptor

    def _sys_close(self, descriptor: int) -> None:
        if self._descriptors.pop(descriptor, None) is None:
            raise OSError(errno.EBADF, "closed twice")
        self._locks.pop(descriptor, None)

    def _sys_flock(self, descriptor: int) -> None:
        inode = self._file(descriptor)
        if inode in self._locks.values():
            raise BlockingIOError(errno.EWOULDBLOCK, "locked")
        self._locks[descriptor] = inode

    def _sys_write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        data = b"".join(buffers)
        self._file(descriptor).change(WriteOp(offset, data))
        return len(data)

    def _sys_fdatasync(self, descriptor: int) -> None:
        self._file(descriptor).sync()

    def _sys_fsync(self, descriptor: int) -> None:
        self._file(descriptor).sync()

    def _sys_fsync_folder(self, descriptor: int) -> None:
        folder = self._descriptors[descriptor]
        rest = []
        for op in self.pending_names:
            if op.name.parent == folder:
                apply_name(self.durable_names, op)
            else:
                rest.append(op)
        self.pending_names = rest

    def _sys_truncate(self, descriptor: int, size: int) -> None:
        self._file(descriptor).change(TruncateOp(size))

    def _sys_rename(self, source: Path, target: Path) -> None:
        self._rename_op(NameOp(target, self._named(source), source))

    def _sys_remove(self, path: Path) -> None:
        self._named(path)
        self._rename_op(NameOp(path, None))

    def _sys_exists(self, path: Path) -> bool:
        return path in self.names or path in self.folders

    def _sys_size(self, path: Path) -> int:
        return len(self._named(path).cache)

    def _sys_list(self, folder: Path) -> Iterable[str]:
        return [path.name for path in self.names if path.parent == folder]

    def _sys_map(self, descriptor: int) -> memoryview:
        return memoryview(bytes(self._file(descriptor).cache))


def torn(op: WriteOp | TruncateOp, rng: random.Random) -> list[WriteOp | TruncateOp]:
    """What a disk may have done of one write when the power went."""
    if isinstance(op, TruncateOp) or rng.random() < 0.3:
        return [op] if rng.random() < 0.5 else []
    kept = rng.choice((0.2, 0.8, 0.97))
    return [
        WriteOp(op.offset + at, op.data[at : at + TORN_UNIT])
        for at in range(0, len(op.data), TORN_UNIT)
        if rng.random() < kept
    ]


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` call (from 1) of an operation, and with `forever` all after it, go wrong.

    `error` is the errno; 0 with the operation "write" makes it short by `keep` bytes kept.
    """

    operation: str
    nth: int
    error: int = errno.EIO
    forever: bool = False
    keep: int | None = None

    def hits(self, count: int) -> bool:
        return count == self.nth or (self.forever and count > self.nth)


class FaultyStorage(Storage):
    """Failures in front of another storage.

    Operations: mkdir, open, close, flock, write, fdatasync, fsync, fsync_folder, truncate, rename,
    remove, exists, size, list, map. `calls` counts them. `crash_at`: at that call of any of them
    (from 1, all counted together) the process dies before it happens, and later calls die, too.
    """

    def __init__(
        self, inner: Storage | None = None, *faults: Fault, crash_at: int | None = None
    ) -> None:
        self.inner = inner or Storage()
        self.faults = list(faults)
        self.crash_at = crash_at
        self.calls: Counter[str] = Counter()
        self.failed: list[str] = []

    def make_private_folder(self, folder: Path) -> None:
        self.inner.make_private_folder(folder)

    def _enter(self, operation: str) -> Fault | None:
        """Count the call; raises what a fault says; returns the fault of a short write."""
        self.calls[operation] += 1
        if self.crash_at is not None and self.calls.total() >= self.crash_at:
            raise SimulatedCrash(f"at {operation}, call {self.calls.total()}")
        for fault in self.faults:
            if fault.operation == operation and fault.hits(self.calls[operation]):
                self.failed.append(operation)
                if fault.keep is None:
                    raise OSError(fault.error, os.strerror(fault.error))
                return fault
        return None

    def _sys_mkdir(self, path: Path) -> None:
        self._enter("mkdir")
        self.inner._sys_mkdir(path)

    def _sys_open(self, path: Path, flags: int) -> int:
        self._enter("open")
        return self.inner._sys_open(path, flags)

    def _sys_close(self, descriptor: int) -> None:
        self._enter("close")
        self.inner._sys_close(descriptor)

    def _sys_flock(self, descriptor: int) -> None:
        self._enter("flock")
        self.inner._sys_flock(descriptor)

    def _sys_write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        fault = self._enter("write")
        if fault is None or fault.keep is None:
            return self.inner._sys_write(descriptor, buffers, offset)
        data = b"".join(buffers)[: fault.keep]
        if not data:
            return 0
        return self.inner._sys_write(descriptor, [memoryview(data)], offset)

    def _sys_fdatasync(self, descriptor: int) -> None:
        self._sync("fdatasync", descriptor)
        self.inner._sys_fdatasync(descriptor)

    def _sys_fsync(self, descriptor: int) -> None:
        self._sync("fsync", descriptor)
        self.inner._sys_fsync(descriptor)

    def _sync(self, operation: str, descriptor: int) -> None:
        try:
            self._enter(operation)
        except OSError:
            if isinstance(self.inner, MemoryStorage):
                self.inner.lose_pending(descriptor)
            raise

    def _sys_fsync_folder(self, descriptor: int) -> None:
        self._enter("fsync_folder")
        self.inner._sys_fsync_folder(descriptor)

    def _sys_truncate(self, descriptor: int, size: int) -> None:
        self._enter("truncate")
        self.inner._sys_truncate(descriptor, size)

    def _sys_rename(self, source: Path, target: Path) -> None:
        self._enter("rename")
        self.inner._sys_rename(source, target)

    def _sys_remove(self, path: Path) -> None:
        self._enter("remove")
        self.inner._sys_remove(path)

    def _sys_exists(self, path: Path) -> bool:
        self._enter("exists")
        return self.inner._sys_exists(path)

    def _sys_size(self, path: Path) -> int:
        self._enter("size")
        return self.inner._sys_size(path)

    def _sys_list(self, folder: Path) -> Iterable[str]:
        self._enter("list")
        return self.inner._sys_list(folder)

    def _sys_map(self, descriptor: int) -> memoryview:
        self._enter("map")
        return self.inner._sys_map(descriptor)
