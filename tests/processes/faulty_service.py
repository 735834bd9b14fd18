"""A service on a disk that fails, or one that dies: tests start it in place of the real one.

`python -m tests.processes.faulty_service STAGE [--supervised]` runs the real service. The variable
DISK_FAULTS holds a JSON object with any of
- `faults`: objects with the fields of `tests.support.faulty_storage.Fault`
- `armed`: "start" counts calls from the start of the process on, "ready" (the default) from when
  the service has recovered and runs, a path while a file is there
- `die_while`: a path; while a file is there, the process ends at once with exit code `code`.

What was written and not synced when the process ends is lost, as by a power failure: the log's
files are cut at what the disk has confirmed. A file whose sync failed keeps what was confirmed
before, and later syncs of it confirm nothing, as on Linux.
"""

from __future__ import annotations

import importlib
import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tallybus.common.bus.sockets import Context
from tallybus.common.files import Storage
from tallybus.common.service.runner import run_service
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import Settings
from tests.support.faulty_storage import Fault, FaultyStorage

VARIABLE = "DISK_FAULTS"


class FailingDisk(FaultyStorage):
    """Real files on a disk with faults and a cache. `armed`: whether calls are counted now."""

    def __init__(self, *faults: Fault, armed: str) -> None:
        super().__init__(Storage(), *faults)
        self.armed = armed == "start"
        self._switch = Path(armed) if "/" in armed else None
        self._confirmed: dict[int, int] = {}
        self._failed: set[int] = set()

    def _enter(self, operation: str) -> Fault | None:
        armed = self.armed if self._switch is None else self._switch.exists()
        return super()._enter(operation) if armed else None

    def _sys_write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        # Recovery writes the tail again after a failed sync: then a sync really confirms it.
        self._confirmed.setdefault(os.fstat(descriptor).st_ino, 0)
        return super()._sys_write(descriptor, buffers, offset)

    def _sync(self, operation: str, descriptor: int) -> None:
        state = os.fstat(descriptor)
        if state.st_ino in self._failed:
            return
        try:
            super()._sync(operation, descriptor)
        except OSError:
            self._failed.add(state.st_ino)
            raise
        if stat.S_ISREG(state.st_mode):
            self._confirmed[state.st_ino] = max(self._confirmed.get(state.st_ino, 0), state.st_size)

    def lose_the_cache(self, folder: Path) -> None:
        """Cut the log's files at what was confirmed."""
        for path in [*folder.glob("wal*.bin"), *folder.glob("wal.new")]:
            state = path.stat()
            confirmed = self._confirmed.get(state.st_ino, state.st_size)
            if confirmed < state.st_size:
                os.truncate(path, confirmed)


def on_failing_disk(shell: type[Shell], asked: dict[str, Any]) -> type[Shell]:
    """The service on a disk with the faults that are asked for."""
    faults = [Fault(**fault) for fault in asked.get("faults", [])]

    class OnFailingDisk(shell):  # type: ignore[misc, valid-type]
        def __init__(self, settings: Settings, context: Context, storage: Storage) -> None:
            self.disk = FailingDisk(*faults, armed=asked.get("armed", "ready"))
            super().__init__(settings, context, self.disk)

        def prepare(self) -> None:
            super().prepare()
            self.disk.armed = True

        def close(self) -> None:
            try:
                super().close()
            finally:
                self.disk.lose_the_cache(self.settings.ledger.data)

    return OnFailingDisk


def main() -> int:
    asked = json.loads(os.environ.get(VARIABLE, "{}"))
    if "die_while" in asked and Path(asked["die_while"]).exists():
        return int(asked["code"])
    stage = sys.argv[1]
    module = importlib.import_module(f"tallybus.services.{stage}.service")
    return run_service(on_failing_disk(getattr(module, f"{stage.capitalize()}Service"), asked))


if __name__ == "__main__":
    raise SystemExit(main())
