"""Files that survive a crash: the only place in common and services that writes to disk.

`Storage` turns single system calls into operations that are durable or raise. Every OSError becomes
a `StorageError`, which is fatal for what was being written. After a failed write or fsync nobody
knows what the disk holds. So the caller stops, and the next start recovers from the disk. Nothing
in here retries an fsync.

The methods that begin with `_sys_` do one system call each. They are the seam for fault injection:
a test double overrides them and exercises the real loops, checks and orders above them.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tallybus.common.errors import EXIT_BUSY, EXIT_STORAGE, ServiceError

Buffer = bytes | bytearray | memoryview | npt.NDArray[Any]

MAX_BUFFERS_PER_WRITE: Final = 1024
"""What Linux takes in one call (IOV_MAX)."""
TEMPORARY_SUFFIX: Final = ".tmp"
FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700


class StorageError(ServiceError):
    """An operation on a file failed. `path`, `operation` and `errno` say which, where and why."""

    exit_code = EXIT_STORAGE
    restart = False

    def __init__(self, path: Path, operation: str, number: int, hint: str = "") -> None:
        name = errno.errorcode.get(number, str(number))
        super().__init__(
            f"{operation} of {path} failed: {os.strerror(number)} ({name})"
            + (f"; {hint}" if hint else "")
        )
        self.path = path
        self.operation = operation
        self.errno = number


class FileMissing(StorageError):
    """There is no such file or folder."""


class LockHeld(StorageError):
    """Another process works on this folder. `holder` is what it wrote into the lock file."""

    exit_code = EXIT_BUSY
    restart = True

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(
            path,
            "lock",
            errno.EWOULDBLOCK,
            f"it is held by {holder or 'another process'}; stop that one first",
        )
        self.holder = holder


class NoDescriptors(StorageError):
    """The process has as many files open as it may: connections, mostly. Nothing is wrong with the
    disk, and a new process has none of them."""

    exit_code = 1
    restart = True


_FATAL_HINT: Final = "stop and start again: recovery goes by what the disk holds"
_FULL_HINT: Final = "make room there and start again: recovery goes by what the disk holds"
_FATAL_OPERATIONS: Final = frozenset({"write", "fdatasync", "fsync", "fsync_folder", "truncate"})


def _typed(path: Path, operation: str, error: OSError) -> StorageError:
    number = error.errno or errno.EIO
    if number == errno.ENOENT:
        return FileMissing(path, operation, number)
    if number in (errno.EMFILE, errno.ENFILE):
        return NoDescriptors(path, operation, number, "raise the limit of open files (ulimit -n)")
    hint = ""
    if operation in _FATAL_OPERATIONS:
        hint = _FULL_HINT if number in (errno.ENOSPC, errno.EDQUOT) else _FATAL_HINT
    return StorageError(path, operation, number, hint)


@dataclass(slots=True, eq=False)
class OpenFile:
    """A descriptor (-1 once closed) and its path (kept up to date over renames by the owner)."""

    path: Path
    descriptor: int


def flat(buffer: Buffer) -> memoryview:
    """The bytes of a buffer, not copied. Arrays must be contiguous."""
    if isinstance(buffer, np.ndarray):
        if not buffer.size:
            return memoryview(b"")
        return buffer.reshape(-1).view(np.uint8).data
    view = memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


class FileLock:
    """An exclusive lock, held until `release` or the end of the process.

    A process that is forked from this one does not hold it: its copy of the descriptor would keep
    the lock for as long as that process lives.
    """

    def __init__(self, storage: Storage, file: OpenFile) -> None:
        self._storage = storage
        self._file: OpenFile | None = file
        _LOCKS.add(self)

    @property
    def in_place(self) -> bool:
        """Whether the file that is locked is still the one at its path: where it was removed or
        replaced, another process can lock the new one."""
        if self._file is None:
            return False
        try:
            found = os.stat(self._file.path)
            held = os.fstat(self._file.descriptor)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino)

    def release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._storage.close(file)


_LOCKS: Final[weakref.WeakSet[FileLock]] = weakref.WeakSet()


def _leave_locks_to_the_parent() -> None:
    for lock in list(_LOCKS):
        file, lock._file = lock._file, None
        if file is not None:
            with suppress(OSError):
                os.close(file.descriptor)


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


class Storage:
    """Durable operations on real files. Stateless, may be shared by threads."""

    # --- making, opening, closing ---------------------------------------------------------------

    def make_folder(self, folder: Path) -> None:
        """Create the folder and its parents where missing, each durable in its own parent."""
        missing = []
        at = folder
        while not self.exists(at):
            missing.append(at)
            at = at.parent
        for path in reversed(missing):
            try:
                self._sys_mkdir(path)
            except FileExistsError:
                continue
            except OSError as error:
                raise _typed(path, "make_folder", error) from error
            self.fsync_folder(path.parent)

    def make_private_folder(self, folder: Path) -> None:
        """As `make_folder`; afterwards it is ours and nobody else can look into it.

        Raises StorageError (EPERM) when it belongs to another user.
        """
        self.make_folder(folder)
        try:
            found = os.stat(folder)
            if found.st_uid != os.geteuid():
                raise StorageError(
                    folder,
                    "make_private_folder",
                    errno.EPERM,
                    f"it belongs to user {found.st_uid}; choose another folder",
                )
            if stat.S_IMODE(found.st_mode) != FOLDER_MODE:
                os.chmod(folder, FOLDER_MODE)
        except OSError as error:
            raise _typed(folder, "make_private_folder", error) from error

    def create(self, path: Path) -> OpenFile:
        """A new empty file, open for reading and writing. Fails when it exists already."""
        return self._open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, "create")

    def open_append(self, path: Path) -> OpenFile:
        """An existing file, open for reading and writing. The caller names every offset."""
        return self._open(path, os.O_RDWR, "open")

    def _open(self, path: Path, flags: int, operation: str) -> OpenFile:
        try:
            return OpenFile(path, self._sys_open(path, flags | os.O_CLOEXEC))
        except OSError as error:
            raise _typed(path, operation, error) from error

    def close(self, file: OpenFile) -> None:
        """Close, once; says nothing about durability."""
        descriptor, file.descriptor = file.descriptor, -1
        if descriptor < 0:
            return
        try:
            self._sys_close(descriptor)
        except OSError as error:
            raise _typed(file.path, "close", error) from error

    def lock_exclusive(self, path: Path) -> FileLock:
        """Lock the file at `path` (made when missing) for this process. Raises LockHeld at once."""
        file = self._open(path, os.O_RDWR | os.O_CREAT, "lock")
        try:
            self._sys_flock(file.descriptor)
        except OSError as error:
            holder = b""
            with suppress(OSError):
                holder = bytes(self._sys_map(file.descriptor)[:100])
            self.close(file)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise LockHeld(path, holder.decode("utf-8", "replace").strip()) from error
            raise _typed(path, "lock", error) from error
        try:
            self.truncate(file, 0)
            self.write_all(file, [b"process %d\n" % os.getpid()], 0)
        except StorageError:
            self.close(file)
            raise
        return FileLock(self, file)

    # --- writing --------------------------------------------------------------------------------

    def write_all(self, file: OpenFile, buffers: Sequence[Buffer], offset: int) -> int:
        """Write the buffers one after the other from `offset` on; returns the bytes written.

        A short write goes on from where it really ended. Raises StorageError; then any part of the
        bytes may be in the file.
        """
        rest = [view for view in map(flat, buffers) if view.nbytes]
        start = offset
        while rest:
            try:
                written = self._sys_write(file.descriptor, rest[:MAX_BUFFERS_PER_WRITE], offset)
            except OSError as error:
                raise _typed(file.path, "write", error) from error
            if written <= 0:
                raise StorageError(file.path, "write", errno.EIO, "the system wrote nothing")
            offset += written
            done = 0
            while done < len(rest) and written >= rest[done].nbytes:
                written -= rest[done].nbytes
                done += 1
            rest = rest[done:]
            if written:
                rest[0] = rest[0][written:]
        return offset - start

    def fdatasync(self, file: OpenFile) -> None:
        """Returns when the content is on disk. After a failure never call it again."""
        try:
            self._sys_fdatasync(file.descriptor)
        except OSError as error:
            raise _typed(file.path, "fdatasync", error) from error

    def fsync(self, file: OpenFile) -> None:
        """As `fdatasync`, with all of the file's metadata."""
        try:
            self._sys_fsync(file.descriptor)
        except OSError as error:
            raise _typed(file.path, "fsync", error) from error

    def fsync_path(self, path: Path) -> None:
        """`fsync` of a file by name: whatever any process has written to it so far."""
        file = self._open(path, os.O_RDONLY, "open")
        try:
            self.fsync(file)
        finally:
            self.close(file)

    def fsync_folder(self, folder: Path) -> None:
        """Returns when the names in the folder are on disk (after create, rename, remove)."""
        file = self._open(folder, os.O_RDONLY | os.O_DIRECTORY, "open")
        try:
            self._sys_fsync_folder(file.descriptor)
        except OSError as error:
            raise _typed(folder, "fsync_folder", error) from error
        finally:
            self.close(file)

    def truncate(self, file: OpenFile, size: int) -> None:
        try:
            self._sys_truncate(file.descriptor, size)
        except OSError as error:
            raise _typed(file.path, "truncate", error) from error

    def rename(self, source: Path, target: Path, *, replace: bool = False) -> None:
        """Rename within a folder. Unless `replace`, an existing target is an error, never lost."""
        if not replace and self.exists(target):
            raise StorageError(target, "rename", errno.EEXIST, f"{source} was not renamed")
        try:
            self._sys_rename(source, target)
        except OSError as error:
            raise _typed(source, "rename", error) from error

    def remove(self, path: Path) -> None:
        try:
            self._sys_remove(path)
        except OSError as error:
            raise _typed(path, "remove", error) from error

    def atomic_write(self, path: Path, buffers: Sequence[Buffer]) -> None:
        """The file has its old content or, durably, the new; never anything between.

        Temporary file, fsync, rename, fsync of the folder. One writer per path.
        """
        temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
        with suppress(FileMissing):
            self.remove(temporary)
        file = self.create(temporary)
        try:
            try:
                self.write_all(file, buffers, 0)
                self.fsync(file)
            finally:
                self.close(file)
            self.rename(temporary, path, replace=True)
        except StorageError:
            with suppress(StorageError):
                self.remove(temporary)
            raise
        self.fsync_folder(path.parent)

    def remove_temporary(self, folder: Path) -> list[Path]:
        """Remove what interrupted `atomic_write`s left in the folder; returns their paths."""
        left = [
            folder / name for name in self.list_names(folder) if name.endswith(TEMPORARY_SUFFIX)
        ]
        for path in left:
            self.remove(path)
        return left

    # --- reading --------------------------------------------------------------------------------

    def size(self, path: Path) -> int:
        """Bytes in the file at this moment."""
        try:
            return self._sys_size(path)
        except OSError as error:
            raise _typed(path, "stat", error) from error

    def exists(self, path: Path) -> bool:
        try:
            return self._sys_exists(path)
        except OSError as error:
            raise _typed(path, "stat", error) from error

    def list_names(self, folder: Path) -> list[str]:
        """Names in the folder, sorted."""
        try:
            return sorted(self._sys_list(folder))
        except OSError as error:
            raise _typed(folder, "list", error) from error

    def map_read(self, path: Path) -> memoryview:
        """The file as it is now, memory mapped and read only, until the last view of it is gone.

        Bytes appended later are not in the view. A disk that fails while the pages are read ends
        the process (SIGBUS): damage is never served, but then only the kernel's log names the
        place.
        """
        file = self._open(path, os.O_RDONLY, "open")
        try:
            return self._sys_map(file.descriptor)
        except OSError as error:
            raise _typed(path, "map", error) from error
        finally:
            self.close(file)

    # --- one system call each -------------------------------------------------------------------

    def _sys_mkdir(self, path: Path) -> None:
        os.mkdir(path, FOLDER_MODE)

    def _sys_open(self, path: Path, flags: int) -> int:
        return os.open(path, flags, FILE_MODE)

    def _sys_close(self, descriptor: int) -> None:
        os.close(descriptor)

    def _sys_flock(self, descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _sys_write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(descriptor, buffers, offset)

    def _sys_fdatasync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def _sys_fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def _sys_fsync_folder(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def _sys_truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def _sys_rename(self, source: Path, target: Path) -> None:
        os.rename(source, target)

    def _sys_remove(self, path: Path) -> None:
        os.unlink(path)

    def _sys_exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def _sys_size(self, path: Path) -> int:
        return os.stat(path).st_size

    def _sys_list(self, folder: Path) -> Iterable[str]:
        return os.listdir(folder)

    def _sys_map(self, descriptor: int) -> memoryview:
        if not os.fstat(descriptor).st_size:
            return memoryview(b"")
        mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_SEQUENTIAL)
        return memoryview(mapped)
