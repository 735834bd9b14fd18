"""Frames of messages: the msgpack header that comes first, and what its fields may hold.

Nothing that comes from outside is trusted or walked into: what does not follow the format raises
`FrameError`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from tallybus.common.buffers import Buffer, size
from tallybus.common.errors import ServiceError
from tallybus.common.protocol import MAX_HEADER_BYTES
from tallybus.common.record import MAX_U64


class FrameError(ServiceError):
    """A message that does not follow the format. Fields: `reason`, `message_type`."""

    def __init__(self, reason: str, message_type: str = "") -> None:
        super().__init__(
            f"malformed message{f' of type {message_type}' if message_type else ''}: {reason}"
        )
        self.reason = reason
        self.message_type = message_type


def shown(value: object) -> str:
    """A value from outside, for an error message: short, and never walked into."""
    if value is None or isinstance(value, int | float | str | bytes):
        text = repr(value[:64] if isinstance(value, str | bytes) else value)
        return text if len(text) <= 64 else text[:61] + "..."
    return f"a {type(value).__name__}"


def unpack_header(frame: Buffer, *, unique: bool = False) -> dict[str, Any]:
    """A msgpack map, bounded; raises `FrameError` for anything else. With `unique` also for a key
    that it has twice, of which otherwise the last value counts."""
    if size(frame) > MAX_HEADER_BYTES:
        raise FrameError(f"header of {size(frame)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    try:
        hook = _unique if unique else None
        header = msgpack.unpackb(frame, strict_map_key=False, raw=False, object_pairs_hook=hook)
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError) as error:
        raise FrameError(
            f"header is not valid msgpack ({error or type(error).__name__})"
        ) from error
    if not isinstance(header, dict):
        raise FrameError(f"header is a {type(header).__name__}, not a map")
    return header


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The map of these pairs. Raises ValueError, as msgpack does."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shown(key)} is there twice")
            seen.add(key)
    return found


def _is_u64(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_U64


def _is_str(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 4096


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and all(_is_u64(item) for item in value)


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list) and all(_is_u64(cell) for cell in row) for row in value
    )


def _is_u64_map(value: object) -> bool:
    return isinstance(value, dict) and all(_is_u64(k) and _is_u64(v) for k, v in value.items())


def _is_details(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, int | str) for k, v in value.items()
    )


def _is_maps(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and all(isinstance(key, str) for key in item) for item in value
    )


FIELD_CHECKS: Final[Mapping[str, Callable[[object], bool]]] = {
    "int": _is_u64,
    "str": _is_str,
    "bool": _is_bool,
    "list[str]": _is_names,
    "list[int]": _is_numbers,
    "list[list[int]]": _is_rows,
    "dict[int, int]": _is_u64_map,
    "dict[str, int | str]": _is_details,
    "list[dict[str, Any]]": _is_maps,
}
"""What a field of a header may hold, by the type that its message says."""
