"""The measuring tools on a ledger of their own: five real services in a temporary folder."""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from tallybus import Timeout, supervisor
from tallybus.cli import main
from tallybus.cli.measure import latency, load
from tallybus.cli.measure.disk_speed import DiskLimits
from tallybus.cli.target import FULL_BELOW_BYTES, Target
from tallybus.common.files import StorageError
from tallybus.common.settings import sections as configuration

pytestmark = pytest.mark.usefixtures("quick_disk")


def test_load_measures_a_ledger_of_its_own_and_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folders: list[Path] = []

    def noted(settings: configuration.Settings) -> Iterator[supervisor.Supervisor]:
        run_folders.append(configuration.run_folder(settings))
        with running(settings) as started:
            yield started

    running = supervisor.running_pipeline
    monkeypatch.setattr(supervisor, "running_pipeline", contextmanager(noted))
    done = CliRunner().invoke(
        main,
        f"load --spawn --folder {tmp_path} --kind mixed --ops 20000 --batch 1000 --accounts 500 "
        "--unique-refs --json --set ledger.transactions_per_segment=10000".split(),
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["ops"], report["spawned"]) == (20_000, True)
    assert set(report["rejected"]) == {"INSUFFICIENT_FUNDS"}
    assert 100 < report["failed"] < 1_000
    # 40 bytes of a record, and its share of a header of 128 bytes per block.
    assert 40 < report["log_bytes_per_tx"] < 44
    assert report["share_of_disk_limit"] > 0
    assert report["disk_folder"].startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert [folder.exists() for folder in run_folders] == [False]


def test_load_calls_a_function_that_it_registers(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main,
        f"load --spawn --folder {tmp_path} --kind function --ops 20000 --batch 1000 --accounts 500 "
        "--unique-refs --json".split(),
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["ops"], report["kind"]) == (20_000, "function")
    assert set(report["rejected"]) == {"INSUFFICIENT_FUNDS"}
    assert 100 < report["failed"] < 1_000
    # A record, five parameters and three entries, and a share of a block's header.
    assert 125 < report["log_bytes_per_tx"] < 132


def test_latency_measures_beside_a_load_from_another_process(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main,
        f"latency --spawn --folder {tmp_path} --rate 2000 --samples 50 --accounts 100 "
        "--json".split(),
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["p50_ms"] <= report["p99_ms"]
    assert report["reached_rate"] > 0
    assert list(tmp_path.iterdir()) == []


def full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = SimpleNamespace(total=10**9, used=10**9 - free, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


@pytest.mark.parametrize("words", ["load --ops 1000", "latency --samples 10"])
def test_a_disk_too_small_to_be_measured_is_called_full(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(folder: Path, **_: object) -> DiskLimits:
        raise StorageError(folder / "some.tmp", "write", errno.ENOSPC, "start again")

    for module in (load, latency):
        monkeypatch.setattr(module, "measure_disk", no_room)
    done = CliRunner().invoke(main, [*words.split(), "--folder", str(tmp_path)])
    assert done.exit_code == 5
    assert f"Error: the disk is full under {tmp_path}: " in done.stderr
    assert "name a folder on another disk with --folder" in done.stderr


@pytest.mark.parametrize(("free", "told"), [(4_096, True), (FULL_BELOW_BYTES, False)])
def test_services_that_end_for_lack_of_room_are_no_riddle(
    free: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the log's service that found no room, only requests without an answer are seen."""

    @contextmanager
    def started(settings: configuration.Settings) -> Iterator[None]:
        yield

    def unanswered(plan: load.Plan, at: Target) -> load.Outcome:
        full_disk(monkeypatch, free)
        raise Timeout(
            "COMMITTED was not reached in time", request="submit", level=None, seconds=1.0
        )

    monkeypatch.setattr(supervisor, "running_pipeline", started)
    monkeypatch.setattr(load, "run", unanswered)
    done = CliRunner().invoke(main, f"load --spawn --folder {tmp_path} --ops 1000".split())
    assert done.exit_code != 0
    assert "COMMITTED was not reached in time" in done.stderr
    assert ("the disk is full under" in done.stderr) == told
    assert list(tmp_path.iterdir()) == []


def test_where_no_temporary_file_can_be_made_a_full_disk_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_usable() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none_usable)
    done = CliRunner().invoke(main, ["load", "--spawn", "--ops", "1000"])
    assert done.exit_code == 5
    assert "Is the disk full? Make room, or name a folder with --folder" in done.stderr
