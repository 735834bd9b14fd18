"""Machine code of kernels, kept in files: a start links it and needs no compiler.

numba takes 0.3 s and 70 MB to load; linking what it once made takes milliseconds. A file holds the
object files of one kernel behind a key of what it was made from, by and for. What does not fit, is
damaged or cannot be read counts as absent, and the caller compiles again. The folder is
`NUMBA_CACHE_DIR` where that is set, otherwise `__pycache__` beside the module, or the user's cache
folder where that one is not writable. Reads and, through `Storage`, writes only there (ADR 0010).
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Final

import llvmlite
import llvmlite.binding as llvm

from tallybus.common.files import Storage, StorageError

ENTRY: Final = "entry"
"""Name of the symbol where a kernel is entered."""
_MAGIC: Final = b"TLBKERN1"
_DIGEST_BYTES: Final = 32
_LENGTH_BYTES: Final = 8
_READABLE: Final = 0o644
_engines: Final[list[Any]] = []
"""What is linked stays so as long as its engine lives."""
_lock: Final = Lock()


def identity(description: str) -> bytes:
    """Key of a kernel that `description` tells in full: with the compiler's and the CPU's.

    Each release of numba needs one of llvmlite of its own, which so stands for both.
    """
    parts = (
        description,
        llvmlite.__version__,
        llvm.get_process_triple(),
        llvm.get_host_cpu_name(),
        llvm.get_host_cpu_features().flatten(),
    )
    return hashlib.sha256("\0".join(parts).encode()).digest()


def load(module: Path, name: str, key: bytes) -> list[bytes] | None:
    """The object files that were stored under this key for the kernel `name` of a module's file."""
    for folder in _folders(module):
        with suppress(OSError):
            content = _path(folder, module, name).read_bytes()
            start = len(_MAGIC) + 2 * _DIGEST_BYTES
            if content[:start] == _MAGIC + key + hashlib.sha256(content[start:]).digest():
                return _unpacked(content, start)
    return None


def store(module: Path, name: str, key: bytes, objects: Sequence[bytes]) -> None:
    """Keep them in the first folder that takes them; where none does, every start compiles."""
    storage = Storage()
    body = b"".join(len(each).to_bytes(_LENGTH_BYTES, "little") + each for each in objects)
    for folder in _folders(module):
        path = _path(folder, module, name)
        # Services that start at the same time may write the same: each a file of its own.
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(StorageError, OSError):
            storage.make_folder(folder)
            file = storage.create(temporary)
            try:
                storage.write_all(file, [_MAGIC, key, hashlib.sha256(body).digest(), body], 0)
                # It may be another user who runs what one has installed.
                temporary.chmod(_READABLE)
                storage.rename(temporary, path, replace=True)
            except StorageError:
                storage.remove(temporary)
                raise
            finally:
                storage.close(file)
            return


def assemble(text: str) -> bytes:
    """The object file of a module in LLVM's assembly language."""
    _start()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=3)
    return bytes(machine.emit_object(llvm.parse_assembly(text)))


def link(objects: Sequence[bytes]) -> int:
    """Address of `ENTRY` in these object files, for the life of the process."""
    _start()
    machine = llvm.Target.from_default_triple().create_target_machine()
    # One engine for each: helpers that two kernels have inlined may bear one name.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for each in objects:
        engine.add_object_file(llvm.ObjectFileRef.from_data(each))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(ENTRY))


def _start() -> None:
    with _lock:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()


def _unpacked(content: bytes, at: int) -> list[bytes]:
    objects = []
    while at < len(content):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(content[at:start], "little")
        objects.append(content[start:at])
    return objects


def _folders(module: Path) -> list[Path]:
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return [Path(chosen)]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return [module.parent / "__pycache__", Path(cache) / "tallybus"]


def _path(folder: Path, module: Path, name: str) -> Path:
    tag = sys.implementation.cache_tag
    return folder / f"{module.parent.name}.{module.stem}.{name}.{tag}.kernel"
