"""Files of the `ipc` sockets that a process listens on. Each belongs to one process.

Binding an address takes its file away from whoever listens there, without a word. So a lock is held
from before the binding until the file is gone. The lock is a hidden file beside the socket's, the
same for every spelling of the path. It stays after the end, because removing it would let two
processes hold "the" lock (ADR 0022).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tallybus.common.files import FileLock, FileMissing, LockHeld, Storage, StorageError


class SocketInUse(Exception):
    """Another process has the path. The message says what is known of it."""


class SocketImpossible(Exception):
    """No socket can be at a path as long as nobody changes something. The message says why."""


class SocketFiles:
    """Those of one process, from `claim` to `release`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._locks: dict[Path, list[FileLock]] = {}

    def claim(self, path: Path) -> None:
        """Before binding there: nobody else does from now on.

        Raises SocketInUse, SocketImpossible, StorageError.
        """
        self._locks.setdefault(path, []).extend(self._claimed(path))

    def claim_again(self, path: Path) -> None:
        """As `claim`, of a path whose file was removed, perhaps together with its locks."""
        held = self._locks.get(path, [])
        if all(lock.in_place for lock in held):
            _check_unused(path)
            return
        self._locks[path] = self._claimed(path)
        for lock in held:
            lock.release()

    def release(self, files: Iterable[Path]) -> None:
        """After the sockets were closed: remove these files, which libzmq leaves behind."""
        for path in files:
            with suppress(FileMissing):
                self._storage.remove(path)
        for locks in self._locks.values():
            for lock in locks:
                lock.release()
        self._locks.clear()

    def _claimed(self, path: Path) -> list[FileLock]:
        if not path.parent.is_dir():
            raise SocketImpossible(f"there is no folder {path.parent}")
        locks: list[FileLock] = []
        try:
            for place in lock_paths(path):
                locks.append(self._lock(place))
            _check_unused(path)
        except BaseException:
            for lock in locks:
                lock.release()
            raise
        return locks

    def _lock(self, place: Path) -> FileLock:
        try:
            return self._storage.lock_exclusive(place)
        except LockHeld as error:
            holder = error.holder or "another process"
            raise SocketInUse(f"{holder} listens there, and holds {place}") from error
        except FileMissing as error:
            raise SocketImpossible(f"there is no folder {place.parent}") from error
        except StorageError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            if os.path.lexists(place):
                raise SocketInUse(f"another user has {place}") from error
            raise SocketImpossible(os.strerror(error.errno)) from error


def lock_paths(path: Path) -> list[Path]:
    """The locks of a socket's file: the same by whatever links its folder is reached. Two where the
    file is a link itself, for binding puts a file in its place."""
    folder = os.path.realpath(path.parent)
    places = {os.path.join(folder, path.name), os.path.realpath(path)}
    return [Path(place).with_name(f".{Path(place).name}.lock") for place in sorted(places)]


def _check_unused(path: Path) -> None:
    """Raises SocketInUse where a process listens that holds no lock. Raises SocketImpossible where
    the path is no socket, because binding would remove what is there."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketImpossible(f"it cannot be looked at: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise SocketImpossible("what is there is no socket, and would be overwritten")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # EAGAIN: a process listens, and its queue of connections is full.
        if probe.connect_ex(os.fsencode(path)) in (0, errno.EAGAIN, errno.EACCES):
            raise SocketInUse("another process listens there")
