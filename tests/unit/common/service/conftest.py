"""Settings of a ledger in a folder of its own; handlers of signals and logs as they were."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus.common import logs
from tallybus.common.settings.sections import Settings, load


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in asked}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    logs.teardown()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(environ={}, overrides={"ledger.data": tmp_path / "data"})
