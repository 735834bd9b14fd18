"""A folder of keys (`security.keys`) as its owner changes it: clients are added and revoked.

All writing goes through a `Storage`, so that a crash at any point leaves a folder that works: a
file has its old content or its new one, and a grant is there only after the key that it is for.
One process at a time may change a folder; services that read it meanwhile are not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tallybus.common.files import Storage, StorageError
from tallybus.common.functions.names import MAX_PATTERNS, PATTERN_RULE, is_function_pattern
from tallybus.common.security.curve import matches, new_key_pair
from tallybus.common.security.keys import (
    BUS_KEY,
    CLIENTS_FOLDER,
    GATEWAY_KEY,
    GATEWAY_NAME,
    LIMITS,
    NAME_RULE,
    ClientKey,
    Grant,
    KeyFileError,
    KeyPair,
    Role,
    client_key_text,
    grant_path,
    grant_text,
    is_name,
    pair_text,
    read_grant,
    read_grants,
    read_pair,
)

LOCK_FILE: Final = ".lock"
PAIRS: Final = {
    GATEWAY_KEY: "Key pair of the gateway of a Tallybus ledger",
    BUS_KEY: "Key pair of the services of a Tallybus ledger, the same for all",
}


class KeyringError(Exception):
    """What was asked for cannot be done with this folder. The message says why."""


@dataclass(frozen=True, slots=True)
class Made:
    """What `create` has made: the client's key, and files that were missing before."""

    key: ClientKey
    pairs: tuple[Path, ...]


class Keyring:
    """A folder of keys. It is made by the first `create`."""

    def __init__(
        self,
        folder: Path,
        storage: Storage | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.folder = folder
        self._storage = storage or Storage()
        self._now = now

    def create(
        self,
        name: str,
        role: Role,
        limits: Mapping[str, int],
        hand_over: Callable[[str], None],
        functions: Sequence[str] | None = None,
        builtins: bool = True,
    ) -> Made:
        """A key for a new client, and its grant. Makes the folder and the pairs of gateway and bus
        where they are missing.

        `limits` are fields of `Grant` that begin with `max_`. `functions` and `builtins` are its
        fields of these names. `hand_over` gets the text of the client's own file, and keeps it
        durably. The grant is written after that, so there is no grant where `hand_over` raises.
        Raises KeyringError for a name that is taken, also by a key that was revoked, and for
        functions that are none; KeyFileError for a damaged file; StorageError.
        """
        _check_name(name)
        granted = None if functions is None else _checked_functions(functions)
        if name == GATEWAY_NAME:
            raise KeyringError(f"{name} is what the gateway itself is called; take another name")
        storage = self._storage
        storage.make_folder(self.folder / CLIENTS_FOLDER)
        with self._locked():
            path = grant_path(self.folder, name)
            if storage.exists(path):
                raise KeyringError(self._taken(path))
            made = tuple(self.folder / file for file in PAIRS if self._make_pair(file))
            # A folder in which a start would fail gets no more keys.
            read_grants(self.folder)
            gateway = self._pair(GATEWAY_KEY)
            self._pair(BUS_KEY)
            key = ClientKey(name, new_key_pair(), gateway.public)
            given = {limit: limits.get(limit, 0) for limit in LIMITS}
            grant = Grant(
                name,
                key.pair.public,
                role,
                self._time(),
                "",
                **given,
                functions=granted,
                builtins=builtins,
            )
            hand_over(client_key_text(key))
            try:
                storage.atomic_write(path, [grant_text(grant).encode()])
            except StorageError:
                # It may be there, only not durably so.
                with suppress(StorageError):
                    storage.remove(path)
                raise
        return Made(key, made)

    def grants(self) -> list[Grant]:
        """All grants by name, those that were revoked too. Raises KeyringError where there is no
        folder of keys, KeyFileError."""
        if not self._storage.exists(self.folder / CLIENTS_FOLDER):
            raise KeyringError(
                f"{self.folder} is no folder of keys; `tallybus keys create` makes one"
            )
        return sorted(read_grants(self.folder).values(), key=lambda grant: grant.name)

    def revoke(self, name: str) -> tuple[Grant, bool]:
        """Refuse the client from now on. Its grant as it is then, and whether this has changed it.

        Raises KeyringError when there is none of that name, KeyFileError, StorageError.
        """
        _check_name(name)
        path = grant_path(self.folder, name)
        if not self._storage.exists(path):
            raise KeyringError(f"there is no key called {name} in {self.folder}")
        with self._locked():
            grant = read_grant(path)
            if grant.revoked:
                return grant, False
            revoked = replace(grant, revoked=self._time())
            self._storage.atomic_write(path, [grant_text(revoked).encode()])
        return revoked, True

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = self._storage.lock_exclusive(self.folder / LOCK_FILE)
        try:
            yield
        finally:
            # The work is done or has failed, whatever becomes of the lock's file.
            with suppress(StorageError):
                lock.release()

    def _time(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def _make_pair(self, file: str) -> bool:
        path = self.folder / file
        if self._storage.exists(path):
            return False
        text = pair_text(new_key_pair(), PAIRS[file])
        self._storage.atomic_write(path, [text.encode()])
        return True

    def _pair(self, file: str) -> KeyPair:
        path = self.folder / file
        pair = read_pair(path)
        if not matches(pair):
            raise KeyFileError(path, "has a public key that does not belong to its secret")
        return pair

    def _taken(self, path: Path) -> str:
        grant = read_grant(path)
        when = f"it was revoked at {grant.revoked}" if grant.revoked else f"made {grant.created}"
        return f"there is a key called {grant.name} already ({when}); take another name"


def write_new(path: Path, text: str, storage: Storage | None = None) -> None:
    """A new file with a secret, durable and only for its owner. StorageError; then there is none.

    An existing file is never touched, nor followed where it is a link.
    """
    storage = storage or Storage()
    file = storage.create(path)
    try:
        try:
            storage.write_all(file, [text.encode()], 0)
            storage.fsync(file)
        finally:
            storage.close(file)
        storage.fsync_folder(path.parent)
    except BaseException:
        with suppress(StorageError):
            storage.remove(path)
        raise


def _check_name(name: str) -> None:
    if not is_name(name):
        raise KeyringError(f"{name[:70]!r} is no name of a key; a name has {NAME_RULE}")


def _checked_functions(functions: Sequence[str]) -> tuple[str, ...]:
    for each in functions:
        if not is_function_pattern(each):
            raise KeyringError(f"{each[:70]!r} names no functions; give {PATTERN_RULE}")
    once = tuple(dict.fromkeys(functions))
    if len(once) > MAX_PATTERNS:
        raise KeyringError(f"{len(once)} names of functions, a key may have up to {MAX_PATTERNS}")
    return once
