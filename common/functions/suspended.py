"""Functions that an operator has suspended: a small file for each, `suspended/{name}` in the data
folder.

That the file is there suspends the function; what it holds only tells since when and why, so an
empty one made by hand does as well. The transactor watches the folder and never writes to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tallybus.common.files import FileMissing, Storage
from tallybus.common.functions.names import is_function_name

FOLDER_NAME: Final = "suspended"
MAX_REASON_CHARS: Final = 500


@dataclass(frozen=True, slots=True)
class Suspension:
    """One suspended function; `since` in ISO 8601 and `reason`, both empty where nobody told."""

    name: str
    since: str = ""
    reason: str = ""


def suspended_folder(folder: Path) -> Path:
    """Where the files are; `folder` is the data folder."""
    return folder / FOLDER_NAME


def suspend(folder: Path, suspension: Suspension, storage: Storage) -> None:
    """Suspend a function of this data folder, durably. Raises StorageError."""
    own = suspended_folder(folder)
    storage.make_folder(own)
    facts = {"since": suspension.since, "reason": suspension.reason}
    storage.atomic_write(own / suspension.name, [json.dumps(facts).encode()])


def resume(folder: Path, name: str, storage: Storage) -> bool:
    """Let a function run again, durably; False: it was not suspended. Raises StorageError."""
    try:
        storage.remove(suspended_folder(folder) / name)
    except FileMissing:
        return False
    storage.fsync_folder(suspended_folder(folder))
    return True


def suspended_names(folder: Path, storage: Storage) -> frozenset[str]:
    """The functions that are suspended in this data folder. Raises StorageError."""
    try:
        return frozenset(filter(is_function_name, storage.list_names(suspended_folder(folder))))
    except FileMissing:
        return frozenset()


def suspensions(folder: Path, storage: Storage) -> list[Suspension]:
    """The same with what their files tell, in the order of names. Raises StorageError."""
    found = []
    for name in sorted(suspended_names(folder, storage)):
        facts = _facts(suspended_folder(folder) / name)
        since, reason = facts.get("since"), facts.get("reason")
        found.append(
            Suspension(
                name,
                since if isinstance(since, str) else "",
                reason[:MAX_REASON_CHARS] if isinstance(reason, str) else "",
            )
        )
    return found


def _facts(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            facts = json.loads(file.read(16_384) or b"{}")
    except (OSError, ValueError, RecursionError):
        return {}  # that it is there is what counts
    return facts if isinstance(facts, dict) else {}
