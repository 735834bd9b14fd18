"""The ledger that a measuring tool works on: a running one, or one started for the occasion."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.measure import transports
from tallybus.extras import need_server

FULL_BELOW_BYTES: Final = 1 << 20
"""A disk with less room than this stands in the way, whatever the error says."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where the ledger listens, and which folder's disk stands beside the measurement.

    `key` is the path of the key file to connect with, None where none is needed.
    `data` is the ledger's data folder where it was started for this run, else None: then `folder`
    is a folder for temporary files, which may be on another disk than the ledger's.
    """

    endpoint: str
    folder: Path
    data: Path | None
    key: str | None = None

    def log_bytes(self) -> int | None:
        """Bytes in the files of the log, or None where they cannot be seen."""
        if self.data is None:
            return None
        return sum(path.stat().st_size for path in self.data.glob("wal*.bin"))

    @property
    def transport(self) -> str:
        """How its clients reach it, one of `transports.TRANSPORTS`."""
        return transports.name_of(self.endpoint, self.key)

    @property
    def folder_is(self) -> str:
        """What `folder` is, for the report."""
        return "data folder" if self.data is not None else "temporary folder of this machine"


@contextmanager
def target(
    *,
    spawn: bool,
    endpoint: str,
    folder: str | None,
    overrides: dict[str, object],
    key: str | None = None,
    transport: str = transports.IPC,
) -> Iterator[Target]:
    """The ledger at `endpoint`, or with `spawn` five services as processes on a temporary folder.

    `key` is the path of a key file for the ledger at `endpoint`. A ledger that is started talks
    over `transport`, one of `transports.TRANSPORTS`. The temporary folder is made in `folder`
    (default: the system's) and removed at the end. `overrides` are settings of the started
    services, by dotted name. Raises CommandFailed where the folder's disk is full, and lets every
    other error pass.
    """
    base = Path(folder) if folder is not None else _temporary_folder()
    if not spawn:
        with _telling_of_a_full_disk(base):
            yield Target(endpoint, base, None, key)
        return
    need_server("a ledger of one's own (--spawn)")
    from tallybus.common.settings.sections import load, run_folder
    from tallybus.supervisor import running_pipeline

    with (
        tempfile.TemporaryDirectory(prefix="tallybus-", dir=base) as made,
        _telling_of_a_full_disk(base),
    ):
        data = Path(made) / "data"
        data.mkdir(mode=0o700)
        chosen = transports.make(transport, Path(made))
        settings = load(
            overrides={
                # What the services tell of their ordinary life would stand among the progress.
                "logging.level": "warning",
                **chosen.settings,
                **overrides,
                "ledger.data": data,
                "bus.run_folder": "",
            }
        )
        try:
            with running_pipeline(settings):
                own_key = None if chosen.key is None else str(chosen.key)
                yield Target(settings.gateway.endpoint, data, data, own_key)
        finally:
            # With a long path of the data folder the sockets are elsewhere.
            shutil.rmtree(run_folder(settings), ignore_errors=True)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        # What it says is that none was found; that a full disk is the usual reason, it does not.
        raise CommandFailed(
            f"no file can be written in any folder for temporary files: {error.strerror}. Is the "
            "disk full? Make room, or name a folder with --folder",
            ExitCode.FAILED,
        ) from error


@contextmanager
def _telling_of_a_full_disk(folder: Path) -> Iterator[None]:
    """An error inside that comes of it, as told by the disk or not, becomes one that says so.

    Services that end for lack of room are seen from here as requests that are not answered.
    """
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        try:
            free = shutil.disk_usage(folder).free
        except OSError:
            raise error from None
        if number not in (errno.ENOSPC, errno.EDQUOT) and free >= FULL_BELOW_BYTES:
            raise
        what = "the quota is used up" if number == errno.EDQUOT else "the disk is full"
        raise CommandFailed(
            f"{what} under {folder}: {free / 1e6:.1f} MB are free now. Measuring the disk takes up "
            "to 300 MB for a moment. The log of a ledger that was started with --spawn takes 40 "
            "bytes or more for each operation. Make room, or name a folder on another disk with "
            f"--folder ({error})",
            ExitCode.FAILED,
        ) from error
