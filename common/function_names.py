"""What a function may be called and how large it may be: rules that clients and services share."""

from __future__ import annotations

import re
from typing import Final

MAX_NAME_BYTES: Final = 32
MAX_BINARY_BYTES: Final = 4 << 20

NAME_RULE: Final = (
    f"1 to {MAX_NAME_BYTES} ASCII letters, digits or underscores, starting with a letter"
)
_NAME: Final = re.compile(rf"[A-Za-z][A-Za-z0-9_]{{0,{MAX_NAME_BYTES - 1}}}", re.ASCII)


def is_function_name(name: object) -> bool:
    """Whether `name` follows `NAME_RULE`."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None
