"""The page about operating: its script for backups keeps its order, its sizes are the code's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE
from tallybus.common.settings.sections import LedgerSettings
from tallybus.common.wal.block import HEADER_SIZE
from tallybus.services.transactor.window import Generation
from tests.support.folders import DOCS

PAGE = (DOCS / "operations.md").read_text("utf-8")

MOVES_ON = """#!/bin/sh
# `cp` beside a ledger that closes its segment just before `wal.bin` is copied for the first time.
case "$2" in
    */wal.bin) [ -e "{data}/wal_000002.bin" ] || {{
        mv "{data}/wal.bin" "{data}/wal_000002.bin"
        printf third > "{data}/wal.bin"
    }} ;;
esac
exec {cp} "$@"
"""
FAILS = """#!/bin/sh
case "$2" in */wal_000001.bin) echo "no space left" >&2; exit 1 ;; esac
exec {cp} "$@"
"""
PRUNES = """#!/bin/sh
# `cp` beside a ledger that deletes its oldest snapshot just before it is copied.
case "$2" in */snapshot_000001.*) rm -f "$2" ;; esac
exec {cp} "$@"
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for name, content in {
        "snapshot_000001.bin": "balances",
        "snapshot_000001.crc": "sum",
        "function_snapshot_000001.bin": "functions",
        "function_snapshot_000001.crc": "sum",
        "wal_000001.bin": "first",
        "wal.bin": "second",
        "wal.lock": "1",
        "run/wal.lock": "1",
        "functions/pay_v1.wasm": "code",
        "suspended/pay": "since",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def back_up(data: Path, to: Path, cp: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the page's script, with a `cp` of its own where one is given."""
    found = re.search(r"```bash\n(#!/usr/bin/env bash\n# backup .*?)```", PAGE, re.DOTALL)
    assert found
    script = data.parent / "backup"
    script.write_text(found[1])
    tools = data.parent / "tools"
    tools.mkdir(exist_ok=True)
    if cp:
        (tools / "cp").write_text(cp.format(data=data, cp=shutil.which("cp")))
        (tools / "cp").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    command = ["bash", str(script), str(data), str(to)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def test_a_backup_has_all_but_locks_and_sockets(data: Path, tmp_path: Path) -> None:
    done = back_up(data, tmp_path / "copy")
    assert (done.returncode, done.stderr) == (0, "")
    kept = {name: text for name, text in files(data).items() if not name.endswith(".lock")}
    assert files(tmp_path / "copy") == kept


def test_a_segment_that_is_closed_during_the_backup_is_in_it(data: Path, tmp_path: Path) -> None:
    done = back_up(data, tmp_path / "copy", MOVES_ON)
    assert done.returncode == 0, done.stderr
    copied = files(tmp_path / "copy")
    assert (copied["wal_000001.bin"], copied["wal_000002.bin"]) == ("first", "second")
    assert copied["wal.bin"] == "third"


def test_a_snapshot_that_is_deleted_during_the_backup_is_no_failure(
    data: Path, tmp_path: Path
) -> None:
    done = back_up(data, tmp_path / "copy", PRUNES)
    assert done.returncode == 0, done.stderr
    copied = files(tmp_path / "copy")
    assert "snapshot_000001.bin" not in copied
    assert copied["wal.bin"] == "second"


def test_a_backup_that_lacks_a_segment_fails(data: Path, tmp_path: Path) -> None:
    done = back_up(data, tmp_path / "copy", FAILS)
    assert done.returncode != 0
    assert "no space left" in done.stderr


def test_the_next_backup_adds_what_is_new(data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    assert back_up(data, copy).returncode == 0
    (data / "wal.bin").rename(data / "wal_000002.bin")
    (data / "wal.bin").write_text("third")
    (data / "suspended" / "pay").unlink()
    before = (copy / "wal_000001.bin").stat().st_ino
    assert back_up(data, copy).returncode == 0
    copied = files(copy)
    assert (copied["wal_000002.bin"], copied["wal.bin"]) == ("second", "third")
    assert (copy / "wal_000001.bin").stat().st_ino == before
    assert "suspended/pay" not in copied


def test_a_ledger_without_snapshots_and_functions_is_backed_up(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "wal.bin").write_text("first")
    assert back_up(data, tmp_path / "copy").returncode == 0
    assert files(tmp_path / "copy") == {"wal.bin": "first"}


def test_the_sizes_that_the_page_tells_are_those_of_the_code() -> None:
    record, entry = RECORD_DTYPE.itemsize, ENTRY_DTYPE.itemsize
    assert f"| deposit, withdrawal, transfer | {record} |" in PAGE
    assert f"| {record}, and 8 for each parameter" in PAGE
    assert f"and {entry} for each entry |" in PAGE
    assert f"| batch | {HEADER_SIZE} for its header." in PAGE
    each = Generation(1_000)
    window = (each.table.nbytes + each.refs.nbytes + each.statuses.nbytes) * 2 // 1_000
    assert f", {window} when the window is full" in PAGE
    assert f"`ledger.snapshots_kept` ({LedgerSettings().snapshots_kept} by default)" in PAGE
