"""Reading snapshot files, of balances and of functions: plain reads, every failure typed.

Reads the data folder and writes nothing.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

from tallybus.common.snapshot.format import (
    DamagedSnapshot,
    SnapshotError,
    SnapshotUnreadable,
    sidecar_path,
)

_SIDECAR_LIMIT: Final = 256


def segments_of(folder: Path, prefix: str, suffix: str) -> list[int]:
    """The segments of the files `PREFIX_N.SUFFIX`, ascending, by their exact names only.

    None if the folder is absent. Raises SnapshotUnreadable.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SnapshotUnreadable(folder, error) from error
    pattern = re.compile(rf"{prefix}_([0-9]{{6}}|[1-9][0-9]{{6,19}})\.{suffix}")
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


class ReadableFile:
    """A file opened for reading; every failure is either damage or SnapshotUnreadable.

    Plain reads and no mapping: a sector that cannot be read is then an error and not a fatal
    signal, and the bytes go straight to where the balances live.
    """

    __slots__ = ("fd", "path")

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._typed(error) from error

    def __enter__(self) -> ReadableFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def size(self) -> int:
        """The length of the file in bytes."""
        try:
            return os.fstat(self.fd).st_size
        except OSError as error:
            raise self._typed(error) from error

    def read(self, count: int, offset: int) -> bytes:
        """Reads `count` bytes from `offset` on."""
        content = bytearray(count)
        self.read_into(memoryview(content), offset)
        return bytes(content)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fills `target` from `offset` on; the end of the file before that is damage."""
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self.fd, [target[done:]], offset + done)
            except OSError as error:
                raise self._typed(error, offset + done) from error
            if count == 0:
                raise DamagedSnapshot(self.path, offset + done, "the file ends too early")
            done += count

    def _typed(self, error: OSError, offset: int = 0) -> SnapshotError:
        if error.errno in (errno.EIO, errno.ENOENT, errno.EISDIR):
            return DamagedSnapshot(self.path, offset, str(error.strerror))
        return SnapshotUnreadable(self.path, error)


def read_sidecar(path: Path) -> bytes:
    """The sidecar of the snapshot file `path`, or so much of it that it cannot be right.

    Raises DamagedSnapshot (of `path`), SnapshotUnreadable.
    """
    try:
        with ReadableFile(sidecar_path(path)) as file:
            size = file.size()
            # A longer one is wrong anyway; it is not worth the memory.
            return file.read(min(size, _SIDECAR_LIMIT), 0)
    except DamagedSnapshot as error:
        raise DamagedSnapshot(
            path, 0, f"its sidecar {sidecar_path(path).name} cannot be read ({error.reason})"
        ) from error
