"""Files of the `ipc` sockets that a process listens on: each is one process's own.

Binding an address takes its file away from whoever listens there, silently. So a lock beside the
file is held before anything is bound, by whichever spelling of its path, until the file is gone. It
is a hidden file that stays: to remove it would let two processes hold "the" lock.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from tallybus.common.files import FileLock, FileMissing, LockHeld, Storage, StorageError


class SocketInUse(Exception):
    """A socket must not be bound at a path. The message says why."""


class SocketFiles:
    """Those of one process, from `claim` to `release`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._locks: list[FileLock] = []
        self._paths: list[Path] = []

    def claim(self, path: Path) -> None:
        """Before binding there: nobody else does from now on. Raises SocketInUse, StorageError."""
        held = len(self._locks)
        try:
            for place in lock_paths(path):
                self._locks.append(self._lock(place))
            _check_unused(path)
        except BaseException:
            while len(self._locks) > held:
                self._locks.pop().release()
            raise
        self._paths.append(path)

    def release(self) -> None:
        """After the sockets were closed: remove their files, which libzmq leaves behind."""
        while self._paths:
            with suppress(FileMissing):
                self._storage.remove(self._paths.pop())
        while self._locks:
            self._locks.pop().release()

    def _lock(self, place: Path) -> FileLock:
        try:
            return self._storage.lock_exclusive(place)
        except LockHeld as error:
            holder = error.holder or "another process"
            raise SocketInUse(f"{holder} listens there, and holds {place}") from error
        except FileMissing as error:
            raise SocketInUse(f"the folder {place.parent} does not exist") from error
        except StorageError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            # The lock of another user, or a folder in which nothing can be made.
            raise SocketInUse(str(error)) from error


def lock_paths(path: Path) -> list[Path]:
    """The locks of a socket's file: the same by whatever links its folder is reached. Two where the
    file is a link itself, for who binds puts a file in its place."""
    folder = os.path.realpath(path.parent)
    places = {os.path.join(folder, path.name), os.path.realpath(path)}
    return [Path(place).with_name(f".{Path(place).name}.lock") for place in sorted(places)]


def _check_unused(path: Path) -> None:
    """Raises SocketInUse where somebody listens who holds no lock, or what is there is no socket:
    binding would remove it."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketInUse(f"{path} cannot be looked at: {error.strerror}") from error
    if not stat.S_ISSOCK(mode):
        raise SocketInUse(f"{path} is there and is no socket; it would be overwritten")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # A full queue of connections is refused otherwise than by nobody: EAGAIN.
        if probe.connect_ex(str(path)) in (0, errno.EAGAIN, errno.EACCES):
            raise SocketInUse("another process listens there")
