"""The file of an import: its bytes, and whether they are still those that were read.

An import takes the references of its rows from the content of the file. So a file that changes
while it is read is refused, and the message says where it changed. A file that changed later must
not be imported again.
"""

from __future__ import annotations

import os
import select
import stat
from collections.abc import Iterator
from io import UnsupportedOperation
from typing import BinaryIO, Final
from zlib import crc32

from tallybus.cli.signals import SLICE_S

BLOCK_BYTES: Final = 1 << 20
MARK_BYTES: Final = 1 << 16
"""How exactly it is told where a file has changed."""

State = tuple[int, int, int, int, int]


class FileChanged(Exception):
    """The file is not what it was when it was read, or somebody writes to it."""


class Source:
    """`file` as it is read from where it stands; `path` is its name, None for standard input.

    A pipe has no size and cannot be read again. So nobody can tell whether it changed.
    """

    def __init__(self, file: BinaryIO, path: str | None) -> None:
        self._file = file
        self._path = path
        self._descriptor, self._pipe = _descriptors(file)
        self._state: State | None = None
        self._start = 0
        self._marks: list[tuple[int, int]] = []
        """Of each piece of `MARK_BYTES`: its checksum, and the line in which it begins."""
        self._read = 0
        if self._descriptor is not None:
            self._state = _state(os.fstat(self._descriptor))
            self._start = file.tell()

    @property
    def size(self) -> int | None:
        """Bytes to be read, where that is known."""
        return None if self._state is None else max(0, self._state[2] - self._start)

    def blocks(self) -> Iterator[bytes]:
        """All of its bytes."""
        line = 1
        while block := self._next():
            if self._state is not None:
                view = memoryview(block)
                for at in range(0, len(block), MARK_BYTES):
                    piece = view[at : at + MARK_BYTES]
                    self._marks.append((crc32(piece), line))
                    line += bytes(piece).count(b"\n")
            self._read += len(block)
            yield block

    def _next(self) -> bytes:
        """Some bytes; empty at the end. A signal's handler is run while a pipe gives none: the call
        that waits for its bytes would not notice a signal that came just before it."""
        pipe = self._pipe
        if pipe is None:
            return self._file.read(BLOCK_BYTES)
        poller = select.poll()
        poller.register(pipe, select.POLLIN)
        while not poller.poll(SLICE_S * 1000):
            continue
        return os.read(pipe, BLOCK_BYTES)

    def check(self) -> None:
        """Raises FileChanged when it is not what was read."""
        if self._state is None or self._descriptor is None:
            return
        now = _state(os.fstat(self._descriptor))
        if now != self._state or now[2] - self._start != self._read:
            where = self._where()
            if where:
                raise FileChanged(
                    f"the file changed while it was read: {where}; nothing was sent. "
                    "Import it when nothing writes to it"
                )
            self._state = now  # touched, no more
        if self._replaced():
            raise FileChanged(
                "the file was replaced by another one while it was read; nothing was sent. "
                "Import it when nothing writes to it"
            )

    def differs(self) -> bool:
        """Whether it has changed since `check`."""
        if self._state is None or self._descriptor is None:
            return False
        if self._replaced():
            return True
        return _state(os.fstat(self._descriptor)) != self._state and bool(self._where())

    def _replaced(self) -> bool:
        if self._path is None or self._state is None:
            return False
        try:
            return _state(os.stat(self._path))[:2] != self._state[:2]
        except OSError:
            return True

    def _where(self) -> str:
        """How the file differs from what was read, and where. Empty if it does not."""
        assert self._descriptor is not None
        size, line = 0, 1
        for checksum, line in self._marks:
            wanted = min(MARK_BYTES, self._read - size)
            piece = os.pread(self._descriptor, wanted, self._start + size)
            if crc32(piece) != checksum:
                if len(piece) < wanted:
                    line += piece.count(b"\n")
                    return f"it was cut off in line {line}, after {size + len(piece)} bytes"
                return f"line {line} or one that follows, behind byte {size}, is another one now"
            size += wanted
            line += piece.count(b"\n")
        if os.pread(self._descriptor, 1, self._start + self._read):
            return f"it has grown, from line {line} (behind byte {self._read}) on"
        return ""


def _descriptors(file: BinaryIO) -> tuple[int | None, int | None]:
    """The descriptor of a file on disk, and that of a pipe or a terminal; None for what it is not.

    Nothing was read from it yet, so nothing is in its buffer.
    """
    try:
        descriptor = file.fileno()
    except (AttributeError, OSError, UnsupportedOperation):
        return None, None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor, None
    return None, descriptor


def _state(seen: os.stat_result) -> State:
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
