"""Machine code of functions, kept in files: a start loads it and compiles nothing.

Loading code is executing it, so a file only counts if nobody else can have written it: folder and
file belong to the user of this process and are writable to nobody else. A file that is not of this
module, compiler, processor and these settings, or is damaged, counts as absent: the module is
compiled again. Nothing here is ever needed, and all of it may be deleted.

One file for each module, by its SHA-256: a checksum, a header in JSON (what it is, how long it took
to compile), the code. Reads and, through `Storage`, writes only in its folder. May be used by
several threads (ADR 0017).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Final

from tallybus.common.files import Storage, StorageError
from tallybus.common.kernels import machinecode
from tallybus.services.transactor.functions import instructions, module, wasm_engine, weighing
from tallybus.services.transactor.functions.compiler import Code, facts_from
from tallybus.services.transactor.functions.limits import FunctionLimits

FOLDER_NAME: Final = "compiled"
SUFFIX: Final = ".code"
UNUSED_SECONDS: Final = 600.0
"""Code of a module that is not live is kept for so long: its registration may be under way."""
_MAGIC: Final = b"TLBCODE1"
_DIGEST_BYTES: Final = 32
_WORD: Final = 8
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MAX_FILE_BYTES: Final = 1 << 30
_OPEN: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
"""A pipe in the place of a file must not be waited for."""


def key_of(binary: bytes) -> str:
    """What names a module's file."""
    return hashlib.sha256(binary).hexdigest()


def identity_of(limits: FunctionLimits) -> bytes:
    """Of all that code depends on beside its module: compiler, settings, weights, processor."""
    told = [wasm_engine.description(limits.stack_bytes, limits.memory_bytes)]
    # With the texts of what decides on it, so that whoever changes them has no files to clear.
    told += [
        Path(str(each.__file__)).read_text("utf-8") for each in (instructions, module, weighing)
    ]
    told.append(str(limits.table_elements))
    return machinecode.identity("\0".join(told))


class CodeFiles:
    """The files of one folder. `max_bytes`: of all files together. `tell` gets, once each, why
    nothing can be kept."""

    def __init__(
        self,
        folder: Path,
        identity: bytes,
        max_bytes: int,
        storage: Storage | None = None,
        tell: Callable[[str], None] = lambda _why: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._identity = identity
        self._max_bytes = max_bytes
        self._storage = Storage() if storage is None else storage
        self._tell = tell
        self._told: set[str] = set()
        self._clock = clock
        self._live: frozenset[str] = frozenset()
        self._lock = Lock()

    def load(self, key: str) -> Code | None:
        """The code that was kept for this module, if it is whole and trustworthy."""
        path = self._path(key)
        try:
            content = self._content(path)
        except OSError:
            return None
        if content is None:
            return None
        start = len(_MAGIC) + 2 * _DIGEST_BYTES
        body = content[start:]
        expected = _MAGIC + self._identity + hashlib.sha256(_whole(key, body)).digest()
        if content[:start] != expected:
            return None
        try:
            end = _WORD + int.from_bytes(body[:_WORD], "little")
            told = json.loads(body[_WORD:end])
            return Code(facts_from(told["facts"]), body[end:], float(told["seconds"]))
        except (ValueError, KeyError, TypeError):
            return None

    def store(self, key: str, code: Code) -> None:
        """Keep it, if there is room and the folder can be written; nothing depends on it."""
        told = {"facts": asdict(code.facts), "seconds": code.seconds}
        header = json.dumps(told).encode()
        body = b"".join((len(header).to_bytes(_WORD, "little"), header, code.machine_code))
        digest = hashlib.sha256(_whole(key, body)).digest()
        size = len(_MAGIC) + 2 * _DIGEST_BYTES + len(body)
        with self._lock:
            try:
                self._storage.make_private_folder(self.folder)
                if not self._make_room(size):
                    self._say(
                        f"there is no room for {size} bytes: code of functions has "
                        f"{self._max_bytes} bytes by functions.code_mib"
                    )
                    return
                parts = [_MAGIC, self._identity, digest, body]
                self._storage.atomic_write(self._path(key), parts)
            except StorageError as error:
                self._say(str(error))

    def drop(self, key: str) -> None:
        """Forget it: it could not be used."""
        with suppress(StorageError):
            self._storage.remove(self._path(key))

    def keep(self, live: Iterable[str]) -> None:
        """These modules are live; of the others only what is new stays."""
        with self._lock:
            self._live = frozenset(self._path(key).name for key in live)
            with suppress(StorageError, OSError):
                for path, size, changed in self._files():
                    old = abs(self._clock() - changed) > UNUSED_SECONDS
                    if path.name not in self._live and (old or not size):
                        self._storage.remove(path)

    def _make_room(self, size: int) -> bool:
        files = self._files()
        total = sum(each for _, each, _ in files)
        for path, each, _ in files:
            if total + size <= self._max_bytes:
                break
            if path.name not in self._live:
                self._storage.remove(path)
                total -= each
        return total + size <= self._max_bytes

    def _files(self) -> list[tuple[Path, int, float]]:
        """Path, bytes and time of each file, the oldest first."""
        found = []
        for name in self._storage.list_names(self.folder):
            with suppress(OSError):
                path = self.folder / name
                about = path.lstat()
                if stat.S_ISREG(about.st_mode):
                    found.append((path, about.st_size, about.st_mtime))
        return sorted(found, key=lambda each: each[2])

    def _content(self, path: Path) -> bytes | None:
        about = os.lstat(self.folder)
        if not stat.S_ISDIR(about.st_mode) or not _ours(about):
            self._say(
                f"{self.folder} is not used: it is no folder, belongs to another user, or others "
                f"may write to it. Its owner must be user {os.geteuid()}, its mode 0700"
            )
            return None
        with os.fdopen(os.open(path, os.O_RDONLY | _OPEN), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or not _ours(about):
                self._say(f"{path} is not used: it is not ours alone to write")
                return None
            if about.st_size > _MAX_FILE_BYTES:
                return None
            return file.read()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key[:40]}-{self._identity.hex()[:16]}{SUFFIX}"

    def _say(self, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            self._tell(why)


def _ours(about: os.stat_result) -> bool:
    return about.st_uid == os.geteuid() and not about.st_mode & _OTHERS_WRITE


def _whole(key: str, body: bytes) -> bytes:
    """What the checksum covers: a file under another module's name does not fit."""
    return key.encode() + body
