"""The key that a client was given: which file it is, and whether it can be used. Reads that file.

Nothing that comes from here shows a secret: not even one that was given where a path belongs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, TypeAlias

from tallybus.common.security.curve import matches
from tallybus.common.security.keys import KEY_TEXT, ClientKey, KeyFileError, read_client_key
from tallybus.errors import InvalidRequest

Key: TypeAlias = ClientKey | str | os.PathLike[str]
"""A client's key, or the path of its file."""

UNENCRYPTED: Final = ("ipc:", "inproc:")
"""Transports within one machine. The modes of files say who may use them, never keys."""


def usable_key(key: Key | None, endpoint: object) -> ClientKey | None:
    """The key to use for `endpoint`, None where none is needed. Raises InvalidRequest."""
    if key is None or (isinstance(endpoint, str) and endpoint.startswith(UNENCRYPTED)):
        return None
    if not isinstance(key, ClientKey):
        key = _read(key)
    if not matches(key.pair):
        raise InvalidRequest(
            f"the key {key.name!r} is damaged: its public part does not belong to its secret one",
            field="key",
        )
    return key


def _read(key: str | os.PathLike[str]) -> ClientKey:
    try:
        path = os.fspath(key)
    except TypeError:
        path = None
    if not isinstance(path, str) or "\0" in path:
        raise InvalidRequest(
            f"key must be the path of a client's key file, not {type(key).__name__}", field="key"
        )
    if ("\n" in path or KEY_TEXT.fullmatch(path)) and not os.path.exists(path):
        raise InvalidRequest(
            "key must be the path of a client's key file; what was given looks like what is in one",
            field="key",
        )
    try:
        return read_client_key(Path(path))
    except KeyFileError as error:
        raise InvalidRequest(str(error), field="key", value=path) from error
