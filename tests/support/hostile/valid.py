"""Every module that is meant to do harm and is a function all the same, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.hostile.expensive import ALLOWED
from tests.support.hostile.failing import FAILING
from tests.support.hostile.remembering import FORGETTING_TRAPS, REMEMBERING, STATELESS

VALID: dict[str, Callable[[], bytes]] = {
    **ALLOWED,
    **REMEMBERING,
    **STATELESS,
    **{name: failing.binary for name, failing in FAILING.items()},
    **{name: binary for name, (binary, _) in FORGETTING_TRAPS.items()},
}
