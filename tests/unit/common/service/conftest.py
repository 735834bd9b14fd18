"""Settings of a ledger in a folder of its own; handlers of signals and logs as they were."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus.common.settings.sections import Settings, load
from tests.support.restored import handlers_and_logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with handlers_and_logs():
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(environ={}, overrides={"ledger.data": tmp_path / "data"})
