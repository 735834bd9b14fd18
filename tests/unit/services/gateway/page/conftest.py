"""The page's server, for tests of what it answers and of what it stands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.listening import listens
from tests.support.waiting import eventually
from tests.unit.services.gateway.page.serving import PATIENCE_S, Serving, threads


@pytest.fixture
def page() -> Iterator[Serving]:
    serving = Serving()
    assert listens(serving.server, PATIENCE_S)
    serving.reports.tell(tx_per_s=5)
    yield serving
    serving.reports.close()
    serving.server.close()
    eventually(lambda: threads() == 0)
