"""Lets clients send amounts that they refuse: what the ledger makes of them is tested as well."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tallybus import operations
from tallybus.checks import check_int


@contextmanager
def amounts_unchecked() -> Iterator[None]:
    """Inside, an amount is anything that fits its field."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operations, "_check_amounts", lambda _: None)
        patch.setattr(operations, "_amount", lambda value, at: check_int(value, "amount", index=at))
        yield
