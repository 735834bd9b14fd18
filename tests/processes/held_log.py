"""A log service that stands still at a chosen call of its storage, to be killed there.

`python -m tests.processes.held_log` runs the real service. The variable HELD_LOG names a folder:
- `arm` holds N: while it is there calls of any storage operation are counted, all together
- `reached` appears, with the operation and the path, when the Nth is about to happen; from then on
  no call of any thread goes on
- `go` says how it ends: `on`, or `power KEEP SEED`: the machine loses its power. It is removed when
  it was read.

A copy of the files in memory knows what was synced. When the power fails the log and the functions'
binaries become what a disk may hold then: of what was not synced nothing, all or a random part, and
the process dies. The lock file and other services' files stay as they are.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from tallybus.common.bus.sockets import Context
from tallybus.common.files import Storage
from tallybus.common.functions.binaries import FOLDER_NAME
from tallybus.common.service.runner import run_service
from tallybus.common.settings.sections import Settings
from tallybus.services.wal.service import WalService
from tests.support.faulty_storage import Inode, Keep, MemoryStorage

VARIABLE: Final = "HELD_LOG"
POLL_S: Final = 0.002


class HeldStorage(Storage):
    """Real files, their copy in memory, and a gate in front of each call."""

    def __init__(self, folder: Path, orders: Path) -> None:
        self._folder = folder
        self._orders = orders
        self._lock = threading.RLock()
        self._count = 0
        self._names_unsynced: set[Path] = set()
        self._twins: dict[int, int] = {}
        found = {path: path.read_bytes() for path in self._own_files()}
        self._copy = MemoryStorage(found)

    def _own_files(self) -> list[Path]:
        return [
            *self._folder.glob("wal*.bin"),
            *self._folder.glob("wal.new"),
            *(self._folder / FOLDER_NAME).glob("*"),
        ]

    @contextmanager
    def _call(self, operation: str, path: Path | str = "") -> Iterator[None]:
        with self._lock:
            arm = self._orders / "arm"
            if arm.exists():
                self._count += 1
                if self._count == int(arm.read_text()):
                    self._stand_still(f"{operation} {path}")
            else:
                self._count = 0
            yield

    def _stand_still(self, where: str) -> None:
        told = self._orders / "reached.tmp"
        told.write_text(where)
        told.rename(self._orders / "reached")
        go = self._orders / "go"
        while not go.exists():
            time.sleep(POLL_S)
        words = go.read_text().split()
        go.unlink()
        if words[0] == "power":
            self._lose_power(cast("Keep", words[1]), random.Random(int(words[2])))
            os.kill(os.getpid(), signal.SIGKILL)

    def _lose_power(self, keep: Keep, rng: random.Random) -> None:
        disk = self._copy.after_crash(keep, rng).contents()
        for path in self._own_files():
            if path not in disk:
                path.unlink()
        for path, content in disk.items():
            if path.exists() and path in self._own_files() and path.read_bytes() == content:
                continue
            if path.suffix != ".lock":
                path.write_bytes(content)
        for folder in self._names_unsynced:
            if keep == "synced" or (keep == "some" and rng.random() < 0.5):
                shutil.rmtree(folder)

    # --- each call on the real files, then on the copy -------------------------------------------

    def _sys_mkdir(self, path: Path) -> None:
        with self._call("mkdir", path):
            super()._sys_mkdir(path)
            self._names_unsynced.add(path)

    def _sys_open(self, path: Path, flags: int) -> int:
        with self._call("open", path):
            descriptor = super()._sys_open(path, flags)
            self._copy.folders.update((path, *path.parents))
            if not flags & (os.O_DIRECTORY | os.O_CREAT) and path not in self._copy.names:
                content = bytearray(path.read_bytes())
                self._copy.names[path] = Inode(content, content[:])
            self._twins[descriptor] = self._copy._sys_open(path, flags)
            return descriptor

    def _sys_close(self, descriptor: int) -> None:
        with self._call("close"):
            super()._sys_close(descriptor)
            self._copy._sys_close(self._twins.pop(descriptor))

    def _sys_write(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        with self._call("write"):
            written = super()._sys_write(descriptor, buffers, offset)
            data = memoryview(b"".join(buffers)[:written])
            self._copy._sys_write(self._twins[descriptor], [data], offset)
            return written

    def _sys_fdatasync(self, descriptor: int) -> None:
        with self._call("fdatasync"):
            super()._sys_fdatasync(descriptor)
            self._copy._sys_fdatasync(self._twins[descriptor])

    def _sys_fsync(self, descriptor: int) -> None:
        with self._call("fsync"):
            super()._sys_fsync(descriptor)
            self._copy._sys_fsync(self._twins[descriptor])

    def _sys_fsync_folder(self, descriptor: int) -> None:
        with self._call("fsync_folder"):
            super()._sys_fsync_folder(descriptor)
            twin = self._twins[descriptor]
            self._copy._sys_fsync_folder(twin)
            folder = self._copy._descriptors[twin]
            self._names_unsynced = {each for each in self._names_unsynced if each.parent != folder}

    def _sys_truncate(self, descriptor: int, size: int) -> None:
        with self._call("truncate"):
            super()._sys_truncate(descriptor, size)
            self._copy._sys_truncate(self._twins[descriptor], size)

    def _sys_rename(self, source: Path, target: Path) -> None:
        with self._call("rename", target):
            super()._sys_rename(source, target)
            self._copy._sys_rename(source, target)

    def _sys_remove(self, path: Path) -> None:
        with self._call("remove", path):
            super()._sys_remove(path)
            self._copy._sys_remove(path)


def main() -> int:
    orders = Path(os.environ[VARIABLE])

    class HeldLog(WalService):
        def __init__(self, settings: Settings, context: Context, _: Storage) -> None:
            super().__init__(settings, context, HeldStorage(settings.ledger.data, orders))

    return run_service(HeldLog)


if __name__ == "__main__":
    raise SystemExit(main())
