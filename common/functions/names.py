"""What a function may be called and how large it may be: rules that clients and services share."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

MAX_NAME_BYTES: Final = 32
MAX_BINARY_BYTES: Final = 4 << 20
WASM_MAGIC: Final = b"\0asm"
"""What a WebAssembly binary begins with."""

NAME_RULE: Final = (
    f"1 to {MAX_NAME_BYTES} ASCII letters, digits or underscores, starting with a letter"
)
_NAME: Final = re.compile(rf"[A-Za-z][A-Za-z0-9_]{{0,{MAX_NAME_BYTES - 1}}}", re.ASCII)


def is_function_name(name: object) -> bool:
    """Whether `name` follows `NAME_RULE`."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


MAX_PATTERNS: Final = 256
PATTERN_RULE: Final = (
    f"the name of a function, in which `*` may stand for any characters and `?` for one, of at "
    f"most {MAX_NAME_BYTES} characters"
)
_PATTERN: Final = re.compile(rf"[A-Za-z*?][A-Za-z0-9_*?]{{0,{MAX_NAME_BYTES - 1}}}", re.ASCII)


def is_function_pattern(text: object) -> bool:
    """Whether `text` follows `PATTERN_RULE`."""
    return isinstance(text, str) and _PATTERN.fullmatch(text) is not None


@lru_cache(maxsize=1024)
def name_matcher(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """A test for names: does one of these patterns stand for this function? It is false for every
    name that no function can have (ADR 0023)."""
    plain = frozenset(each for each in patterns if is_function_name(each))
    # `translate` makes expressions without backtracking, so that no name takes long.
    others = "|".join(fnmatch.translate(each) for each in patterns if each not in plain)
    matches = re.compile(others).match if others else None

    def granted(name: str) -> bool:
        if name in plain:
            return True
        return matches is not None and is_function_name(name) and matches(name) is not None

    return granted
