"""An engine that a test may fill with functions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tallybus.services.transactor.engine import Engine
from tests.unit.services.transactor.functions.engines import ACCOUNTS


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(ACCOUNTS, 1_000_000, 7)
    yield made
    made.close()
