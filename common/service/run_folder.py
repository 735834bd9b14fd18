"""The run folder: where the sockets of a ledger's services meet, and who may be one of them.

Its owner alone reads it. A lock in it, `STAGE.lock`, says that a service is the only one of its
stage: to bind an `ipc` address takes it away from whoever listens there, silently. So nothing is
bound before the lock is held. The supervisor holds one, too.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import ClassVar, Final

from tallybus.common.bus.sockets import Bus, EndpointTaken
from tallybus.common.errors import EXIT_SETTINGS, ServiceError, SettingsError
from tallybus.common.files import FileLock, LockHeld, Storage, StorageError
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.sections import Settings

LOOK_NS: Final = 1_000_000_000
"""How often a service looks whether its lock and its sockets are still there."""
_NO_PLACE: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
)
"""Why a folder cannot be made that say nothing about the disk."""


class UnsafeRunFolder(ServiceError):
    """Others could read or replace this ledger's sockets. Fields: `folder`, `owner`, `mode`."""

    exit_code: ClassVar[int] = EXIT_SETTINGS
    restart: ClassVar[bool] = False

    def __init__(self, folder: str, owner: int, mode: int) -> None:
        super().__init__(
            f"the run folder {folder} belongs to user {owner} with mode {mode:04o}; it must "
            f"belong to user {os.getuid()} with mode 0700: correct it, or set bus.run_folder"
        )
        self.folder = folder
        self.owner = owner
        self.mode = mode


def make_named_folder(settings: Settings, storage: Storage, folder: Path, key: str) -> None:
    """Make a folder that the setting `key` leads to, where it is missing.

    Raises SettingsError where there can be none, StorageError where the disk is to blame.
    """
    try:
        storage.make_folder(folder)
    except StorageError as error:
        if error.errno not in _NO_PLACE:
            raise
        origin = settings.origins.get(key, "default")
        reason = f"the folder {folder} cannot be made: {os.strerror(error.errno)}; choose another"
        raise SettingsError(key, origin, reason) from error


def own_run_folder(settings: Settings, storage: Storage) -> Path:
    """The run folder, made where it is missing, and surely nobody else's.

    Raises UnsafeRunFolder, and what `make_named_folder` does.
    """
    folder = configuration.run_folder(settings)
    key = "ledger.data" if settings.bus.run_folder is None else "bus.run_folder"
    make_named_folder(settings, storage, folder, key)
    state = os.stat(folder)
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise UnsafeRunFolder(str(folder), state.st_uid, state.st_mode & 0o777)
    return folder


def lock_run_folder(settings: Settings, storage: Storage, name: str) -> FileLock | None:
    """Hold `name` in the run folder, which is made where it is missing; None: there is no folder.

    Raises what `own_run_folder` does, StorageError, and LockHeld when another process holds it.
    """
    if settings.bus.transport != "ipc":
        return None
    return storage.lock_exclusive(own_run_folder(settings, storage) / f"{name}.lock")


class RunFolder:
    """What one service has in the run folder while it runs: its lock, and its sockets' files.

    The loop calls `look` once `due_ns` has come.
    """

    def __init__(
        self, settings: Settings, storage: Storage, stage: str, bus: Bus, log: logging.Logger
    ) -> None:
        self.due_ns = 0
        self._settings = settings
        self._storage = storage
        self._stage = stage
        self._bus = bus
        self._log = log
        self._held: FileLock | None = None
        self._told = ""

    def lock(self) -> None:
        """Make sure that this is the only one of its stage.

        Raises what `lock_run_folder` does.
        """
        self._held = lock_run_folder(self._settings, self._storage, self._stage)

    def look(self, now_ns: int) -> None:
        """Whatever cleans temporary folders may take locks and sockets away under a service that
        runs: make them again. Connections that there are live on meanwhile.

        Raises LockHeld and EndpointTaken when another process has taken the place.
        """
        self.due_ns = now_ns + LOOK_NS
        held = self._held
        if (held is None or held.in_place) and not self._bus.lost_files():
            return
        try:
            if held is not None and not held.in_place:
                self.lock()
                held.release()
            self._bus.listen_again()
        except (LockHeld, EndpointTaken):
            raise
        except ServiceError as error:
            # Those that are connected need no folder.
            if self._told != str(error):
                self._told = str(error)
                self._log.error("the run folder was removed and cannot be made again: %s", error)
            return
        self._told = ""
        self._log.warning("what was removed from the run folder was made again")

    def release(self) -> None:
        """Let another one of this stage start. May be called again."""
        if self._held is not None:
            self._held.release()
            self._held = None
