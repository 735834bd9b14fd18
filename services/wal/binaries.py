"""The binaries of functions on their way to the disk: each before the record that speaks of it.

A crash in between leaves a file that nothing names; the next registration of that name replaces it.
ADR 0009 says why the log stage writes them.
"""

from __future__ import annotations

from pathlib import Path

from tallybus.common.files import Buffer, Storage
from tallybus.common.functions.binaries import FOLDER_NAME, binary_path


def keep_binary(storage: Storage, folder: Path, name: str, version: int, binary: Buffer) -> None:
    """Write one version's file, durably when this returns. Raises StorageError (fatal)."""
    path = binary_path(folder, name, version)
    storage.make_folder(path.parent)
    storage.atomic_write(path, [binary])


def remove_unfinished(storage: Storage, folder: Path) -> None:
    """Remove what an interrupted `keep_binary` left."""
    if storage.exists(folder / FOLDER_NAME):
        storage.remove_temporary(folder / FOLDER_NAME)
