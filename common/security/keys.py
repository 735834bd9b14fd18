"""Keys of the network: who may talk to a ledger over tcp, and as what. Reads files, writes none.

A folder of keys (`security.keys`) holds `gateway.key` and `bus.key`, the key pairs with which the
gateway meets its clients and the services one another, and `clients/NAME.toml`, a grant for each
client: its public key, its role and its limits. A client has a file of its own with its pair and
the gateway's public key. All are small TOML files; keys are CURVE25519 in Z85, 40 characters.

What others could change is refused: a secret as well as a grant. A secret that others may read is
taken, as what a shell or a container engine makes of it is often like that, and a warning is
logged, once for each file. On a file system that is mounted read-only nobody can change anything,
and modes say little about who gets to see it: as with the secrets of containers. No message, and no
`repr`, shows a secret.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Final

from tallybus.common.errors import EXIT_SETTINGS, ServiceError
from tallybus.common.functions.names import MAX_PATTERNS, PATTERN_RULE, is_function_pattern

GATEWAY_KEY: Final = "gateway.key"
BUS_KEY: Final = "bus.key"
CLIENTS_FOLDER: Final = "clients"
GRANT_SUFFIX: Final = ".toml"
GATEWAY_NAME: Final = "gateway"
"""The client name of whoever uses the gateway's own key: the supervisor, and tools on its host."""
MAX_FILE_BYTES: Final = 65_536
MAX_LIMIT: Final = 2**63 - 1

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
KEY_TEXT: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)
_FIELD: Final = re.compile(r"[a-z_]{1,32}", re.ASCII)
NAME_RULE: Final = (
    "1 to 64 letters, digits, '.', '_' and '-', of which the first is a letter or a digit"
)
LIMITS: Final = ("max_in_flight", "max_rate", "max_message_bytes", "max_work_ms")

_LOG: Final = logging.getLogger("tallybus.keys")
_told: set[str] = set()
"""Paths of secrets that others may read, of which the log was told."""


class KeyFileError(ServiceError):
    """A file of keys cannot be used. Fields: `path`, `reason`."""

    exit_code: ClassVar[int] = EXIT_SETTINGS
    restart: ClassVar[bool] = False

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"the key file {path} {reason}")
        self.path = path
        self.reason = reason


class Role(IntEnum):
    """What a client may do; each may do what those before it may."""

    READ = 1
    SUBMIT = 2
    ADMIN = 3


_ROLES: Final = {role.name.lower(): role for role in Role}


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A public key and its secret, each 40 characters of Z85."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """What the holder of a public key may do.

    `created` and `revoked` are times as RFC 3339 has them; an empty `revoked` means that it is
    good. Limits of 0 are those that the gateway has for everyone (`gateway.client_…`).

    Of who may submit, `functions` are patterns of the functions that may be called, None: all;
    without `builtins` nothing else may be submitted (ADR 0023).
    """

    name: str
    public: bytes
    role: Role
    created: str
    revoked: str = ""
    max_in_flight: int = 0
    max_rate: int = 0
    max_message_bytes: int = 0
    max_work_ms: int = 0
    functions: tuple[str, ...] | None = None
    builtins: bool = True


@dataclass(frozen=True, slots=True)
class ClientKey:
    """What a client's own file holds: its name, its pair, and the gateway's public key."""

    name: str
    pair: KeyPair
    gateway: bytes


def is_name(text: str) -> bool:
    """Whether a key may be called so; see NAME_RULE."""
    return _NAME.fullmatch(text) is not None


def read_pair(path: Path) -> KeyPair:
    """A key pair of the gateway or the bus. Raises KeyFileError."""
    table = _read(path, secret=True)
    return _pair(path, table)


def read_client_key(path: Path) -> ClientKey:
    """A client's own file. Raises KeyFileError."""
    table = _read(path, secret=True)
    return ClientKey(
        _name(path, table.get("name")), _pair(path, table), _key(path, table, "gateway")
    )


def read_grants(folder: Path) -> dict[bytes, Grant]:
    """The grants in a folder of keys, by public key, also those that were revoked.

    Raises KeyFileError for one that cannot be used: who is refused must never depend on a file that
    is passed over.
    """
    grants, errors = good_grants(folder)
    if errors:
        raise errors[0]
    return grants


def good_grants(folder: Path) -> tuple[dict[bytes, Grant], list[KeyFileError]]:
    """The grants in a folder of keys that can be used, and what is wrong with the others.

    For a service that runs: a file that was damaged locks its own client out, and nobody else. A
    public key that stands in two files counts in neither, for one of them may be revoked.
    """
    clients = folder / CLIENTS_FOLDER
    try:
        for place in (folder, clients):
            _check_writers(place, os.stat(place), read_only=_is_read_only(os.statvfs(place)))
        names = sorted(os.listdir(clients))
    except FileNotFoundError:
        return {}, []
    except KeyFileError as error:
        return {}, [error]
    except OSError as error:
        return {}, [KeyFileError(clients, f"cannot be listed: {error.strerror}")]
    grants: dict[bytes, Grant] = {}
    twice: set[bytes] = set()
    errors = []
    for file in names:
        if not file.endswith(GRANT_SUFFIX) or file.startswith("."):
            continue
        try:
            grant = read_grant(clients / file)
        except KeyFileError as error:
            errors.append(error)
            continue
        other = grants.setdefault(grant.public, grant)
        if other is not grant:
            twice.add(grant.public)
            errors.append(KeyFileError(clients / file, f"has the public key of {other.name}, too"))
    for public in twice:
        del grants[public]
    return grants, errors


def read_grant(path: Path) -> Grant:
    """One client's grant; its name is the file's. Raises KeyFileError."""
    table = _read(path, secret=False)
    known = {"public", "role", "created", "revoked", "functions", "builtins", *LIMITS}
    unknown = sorted(set(table) - known)
    if unknown:
        # Only what looks like one: it might be a secret that lost its name.
        told = f" {unknown[0]!r}" if _FIELD.fullmatch(unknown[0]) else ""
        raise KeyFileError(path, f"has an unknown field{told}")
    role = _ROLES.get(text) if isinstance(text := table.get("role"), str) else None
    if role is None:
        raise KeyFileError(path, "needs a role: read, submit or admin")
    limits = {name: _limit(path, table, name) for name in LIMITS}
    return Grant(
        name=_name(path, path.name.removesuffix(GRANT_SUFFIX)),
        public=_key(path, table, "public"),
        role=role,
        created=_text(path, table, "created"),
        revoked=_text(path, table, "revoked"),
        functions=_functions(path, table),
        builtins=_builtins(path, table),
        **limits,
    )


def grant_path(folder: Path, name: str) -> Path:
    """The file of the grant called `name` in a folder of keys."""
    return folder / CLIENTS_FOLDER / f"{name}{GRANT_SUFFIX}"


def pair_text(pair: KeyPair, what: str) -> str:
    """The file of a key pair; `what` it is for stands in its first line."""
    return _toml(
        f"{what}. Keep it secret.", {"public": pair.public.decode(), "secret": pair.secret.decode()}
    )


def client_key_text(key: ClientKey) -> str:
    """A client's own file."""
    fields = {
        "name": key.name,
        "public": key.pair.public.decode(),
        "secret": key.pair.secret.decode(),
        "gateway": key.gateway.decode(),
    }
    return _toml(f"Key of the client {key.name} of a Tallybus ledger. Keep it secret.", fields)


def grant_text(grant: Grant) -> str:
    """The file of a grant."""
    fields: dict[str, str | int | tuple[str, ...]] = {
        "public": grant.public.decode(),
        "role": grant.role.name.lower(),
        "created": grant.created,
    }
    if grant.revoked:
        fields["revoked"] = grant.revoked
    for name in LIMITS:
        if limit := getattr(grant, name):
            fields[name] = limit
    # What is not restricted stands nowhere, as in the files of those who made keys before.
    if grant.functions is not None:
        fields["functions"] = grant.functions
    if not grant.builtins:
        fields["builtins"] = False
    return _toml(f"What the client {grant.name} may do.", fields)


def _toml(comment: str, fields: Mapping[str, str | int | tuple[str, ...]]) -> str:
    lines = [f"{name} = {_toml_value(value)}" for name, value in fields.items()]
    return "\n".join([f"# {comment}", *lines, ""])


def _toml_value(value: str | int | tuple[str, ...]) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    # No text holds a quote or a backslash: names, patterns, times and Z85 have none.
    return f'"{value}"'


def _read(path: Path, *, secret: bool) -> dict[str, Any]:
    try:
        # So that a pipe in place of a file is not waited for.
        with open(path, "rb", opener=_open_at_once) as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise KeyFileError(path, "is no file")
            read_only = _is_read_only(os.fstatvfs(file.fileno()))
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeyFileError(path, f"cannot be read: {error.strerror}") from error
    _check_writers(path, state, read_only=read_only)
    if secret and not read_only:
        _tell_readers(path, state)
    if len(text) > MAX_FILE_BYTES:
        raise KeyFileError(path, "is too long for a key")
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        # What is wrong in it could show a part of a secret.
        raise KeyFileError(path, "is not valid TOML") from (None if secret else error)


def _is_read_only(system: os.statvfs_result) -> bool:
    return bool(system.f_flag & os.ST_RDONLY)


def _check_writers(path: Path, state: os.stat_result, *, read_only: bool) -> None:
    """Raises KeyFileError where others could change it: who is let in, or which ledger is met."""
    mode = stat.S_IMODE(state.st_mode)
    # Root may look after the files of another user, whose services or clients these are.
    strange = os.getuid() and state.st_uid not in (os.getuid(), 0)
    if not read_only and (strange or mode & 0o022):
        raise KeyFileError(
            path,
            f"belongs to user {state.st_uid} with mode {mode:04o}, so others may change it; it "
            f"must belong to user {os.getuid()} or root, and nobody else may write to it: "
            f"`chown {os.getuid()}` and `chmod {'700' if stat.S_ISDIR(state.st_mode) else '600'}`",
        )


def _tell_readers(path: Path, state: os.stat_result) -> None:
    mode = stat.S_IMODE(state.st_mode)
    if mode & 0o044 and str(path) not in _told:
        _told.add(str(path))
        _LOG.warning(
            "the key file %s has mode %04o, so other users can read its secret; "
            "unless you want that, call `chmod 600`",
            path,
            mode,
        )


def _open_at_once(path: str, _flags: int) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _pair(path: Path, table: Mapping[str, Any]) -> KeyPair:
    return KeyPair(_key(path, table, "public"), _key(path, table, "secret"))


def _key(path: Path, table: Mapping[str, Any], name: str) -> bytes:
    value = table.get(name)
    if not isinstance(value, str) or KEY_TEXT.fullmatch(value) is None:
        raise KeyFileError(path, f"has no key {name!r} of 40 characters in Z85")
    return value.encode("ascii")


def _name(path: Path, value: object) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise KeyFileError(path, f"has no good name; a name has {NAME_RULE}")
    return value


def _text(path: Path, table: Mapping[str, Any], name: str) -> str:
    value = table.get(name, "")
    if not isinstance(value, str) or re.fullmatch(r"[0-9TZ:.+-]{0,40}", value, re.ASCII) is None:
        raise KeyFileError(path, f"has a field {name!r} that is no time")
    return value


def _limit(path: Path, table: Mapping[str, Any], name: str) -> int:
    value = table.get(name, 0)
    if type(value) is not int or not 0 <= value <= MAX_LIMIT:
        raise KeyFileError(path, f"has a field {name!r} that is no whole number from 0 on")
    return value


def _functions(path: Path, table: Mapping[str, Any]) -> tuple[str, ...] | None:
    value = table.get("functions")
    if value is None:
        return None
    if not isinstance(value, list) or len(value) > MAX_PATTERNS:
        raise KeyFileError(path, f"has a field 'functions' that is no list of up to {MAX_PATTERNS}")
    if not all(map(is_function_pattern, value)):
        raise KeyFileError(path, f"has a field 'functions' with something else than {PATTERN_RULE}")
    return tuple(value)


def _builtins(path: Path, table: Mapping[str, Any]) -> bool:
    value = table.get("builtins", True)
    if type(value) is not bool:
        raise KeyFileError(path, "has a field 'builtins' that is neither true nor false")
    return value
