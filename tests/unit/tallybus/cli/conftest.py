"""What tests of commands share: a gateway, a module's file, and a disk that is quickly measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus.cli.measure import latency, load
from tallybus.cli.measure.disk_speed import DiskLimits
from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.cli.commands import BINARY


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


@pytest.fixture
def module(tmp_path: Path) -> Path:
    path = tmp_path / "fee.wasm"
    path.write_bytes(BINARY)
    return path


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's own speed is not what is tested here, and takes seconds to measure."""
    for each in (load, latency):
        monkeypatch.setattr(
            each, "measure_disk", lambda *_, **__: DiskLimits(100_000_000, 0.5, (1_000_000,))
        )
