"""The ledger that a measuring tool works on: a running one, or one started for the occasion."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """Where the ledger listens, and which folder's disk stands beside the measurement.

    `data` is the ledger's data folder where it was started for this run, else None: then `folder`
    is a folder for temporary files, which may be on another disk than the ledger's.
    """

    endpoint: str
    folder: Path
    data: Path | None

    def log_bytes(self) -> int | None:
        """Bytes in the files of the log, or None where they cannot be seen."""
        if self.data is None:
            return None
        return sum(path.stat().st_size for path in self.data.glob("wal*.bin"))

    @property
    def folder_is(self) -> str:
        """What `folder` is, for the report."""
        return "data folder" if self.data is not None else "temporary folder of this machine"


@contextmanager
def target(
    *, spawn: bool, endpoint: str, folder: str | None, overrides: dict[str, object]
) -> Iterator[Target]:
    """The ledger at `endpoint`, or with `spawn` five services as processes on a temporary folder.

    The temporary folder is made in `folder` (default: the system's) and removed at the end.
    `overrides` are settings of the started services, by dotted name.
    """
    if not spawn:
        yield Target(endpoint, Path(folder or tempfile.gettempdir()), None)
        return
    from tallybus.common.settings import load, run_folder
    from tallybus.supervisor import running_pipeline

    with tempfile.TemporaryDirectory(prefix="tallybus-", dir=folder) as made:
        data = Path(made) / "data"
        data.mkdir(mode=0o700)
        settings = load(
            overrides={
                # What the services tell of their ordinary life would stand among the progress.
                "logging.level": "warning",
                "gateway.endpoint": _endpoint(Path(made)),
                **overrides,
                "ledger.data": data,
                "bus.run_folder": "",
            }
        )
        try:
            with running_pipeline(settings):
                yield Target(settings.gateway.endpoint, data, data)
        finally:
            # With a long path of the data folder the sockets are elsewhere.
            shutil.rmtree(run_folder(settings), ignore_errors=True)


def _endpoint(folder: Path) -> str:
    """In the folder of the run where the path is short enough for a socket, else a loopback
    port."""
    from tallybus.common.settings_table import MAX_IPC_PATH_BYTES
    from tallybus.supervisor import free_endpoint

    path = folder / "clients"
    return f"ipc://{path}" if len(os.fsencode(path)) <= MAX_IPC_PATH_BYTES else free_endpoint()
