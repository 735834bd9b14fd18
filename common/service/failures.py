"""Whether a service fails again and again in the same place: then another start does not help.

Kept in a small file in the run folder, because the process that fails is gone afterwards, and
whatever starts it again (the supervisor, systemd, a container engine) sees an exit code alone.
Where the file cannot be kept, each failure counts as the first (ADR 0021).
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from tallybus.common.errors import ServiceError
from tallybus.common.files import Storage

MOST: Final = 3
"""So many failures in a row in one place are for good."""
STEADY_SECONDS: Final = 60.0
"""A service that was ready for so long was helped by its start, so its failures are counted
anew."""
_LONGEST: Final = 4096
_PACKAGE: Final = str(Path(__file__).resolve().parents[2])


def place_of(error: BaseException) -> str:
    """Where an exception came from: its type, and the innermost line of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    named = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if not frames:
        return named
    paths = [str(Path(frame.filename).resolve()) for frame in frames]
    ours = [at for at, path in enumerate(paths) if _is_ours(path)]
    at = ours[-1] if ours else len(frames) - 1
    path = paths[at].removeprefix(_PACKAGE).lstrip(os.sep)
    return f"{named} at {path}:{frames[at].lineno} in {frames[at].name}"


def _is_ours(path: str) -> bool:
    # In a checkout the environment lies below the same folder.
    return path.startswith(_PACKAGE + os.sep) and "site-packages" not in path[len(_PACKAGE) :]


class Failures:
    """Those of one service. `folder` makes the run folder where it is missing and gives it."""

    def __init__(self, storage: Storage, folder: Callable[[], Path], stage: str) -> None:
        self._storage = storage
        self._folder = folder
        self._name = f"{stage}.failed"

    def note(self, place: str, *, steady: bool) -> int:
        """How often the service has failed in this place in a row, this time included.

        `steady`: it had been ready for `STEADY_SECONDS`.
        """
        with suppress(ServiceError, OSError):
            path = self._folder() / self._name
            before, count = self._read(path)
            count = count + 1 if before == place and not steady else 1
            text = json.dumps({"place": place, "count": count})
            self._storage.atomic_write(path, [text.encode()])
            return count
        return 1

    def forget(self) -> None:
        """Count anew: it has ended as it should, or a person has started it."""
        with suppress(ServiceError, OSError):
            path = self._folder() / self._name
            if self._storage.exists(path):
                self._storage.remove(path)

    @staticmethod
    def _read(path: Path) -> tuple[str, int]:
        try:
            with path.open("rb") as file:
                kept = json.loads(file.read(_LONGEST))
            return str(kept["place"]), int(kept["count"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", 0
