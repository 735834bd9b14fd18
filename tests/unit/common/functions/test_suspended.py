"""`tallybus function suspend|resume|suspended` and the files behind them."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tallybus.cli import main, owner, suspend
from tallybus.cli.errors import CommandFailed
from tallybus.common.files import Storage, StorageError
from tallybus.common.functions.suspended import (
    Suspension,
    resume,
    suspended_names,
    suspensions,
)
from tests.support.faulty_storage import Fault, FaultyStorage


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def run(*arguments: object, data: Path) -> Result:
    return CliRunner().invoke(main, ["function", *map(str, arguments), "--data", str(data)])


def test_what_is_suspended_is_seen_until_it_is_resumed(data: Path) -> None:
    assert suspended_names(data, Storage()) == frozenset()
    assert run("suspend", "fee", "payout", "--reason", "loops", data=data).exit_code == 0
    assert suspended_names(data, Storage()) == {"fee", "payout"}
    shown = json.loads(run("suspended", "--json", data=data).stdout)["suspended"]
    assert [(row["name"], row["reason"]) for row in shown] == [
        ("fee", "loops"),
        ("payout", "loops"),
    ]
    assert all(row["since"] for row in shown)
    done = run("resume", "fee", data=data)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "fee runs again" in done.stderr
    assert suspended_names(data, Storage()) == {"payout"}


def test_suspending_twice_keeps_the_last_reason(data: Path) -> None:
    run("suspend", "fee", "--reason", "one", data=data)
    run("suspend", "fee", "--reason", "two " * 500, data=data)
    (only,) = suspensions(data, Storage())
    assert only.reason.startswith("two two")
    assert len(only.reason) == 500


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"since": 5, "reason": ["x"]}', b"\xff" * 50, b"[" * 20_000]
)
def test_a_file_made_by_hand_suspends_whatever_it_holds(data: Path, content: bytes) -> None:
    (data / "suspended").mkdir()
    (data / "suspended" / "fee").write_bytes(content)
    assert suspensions(data, Storage()) == [Suspension("fee")]
    assert run("suspended", data=data).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for others")
def test_root_suspends_as_the_user_whose_ledger_it_is() -> None:
    # As another user the transactor could not look into the folder, and would go on calling.
    # Not in the test's folder: another user gets no further than to its parents.
    with tempfile.TemporaryDirectory() as made_for_all:
        Path(made_for_all).chmod(0o755)
        data = Path(made_for_all) / "data"
        data.mkdir(mode=0o700)
        os.chown(data, 12345, 12346)
        assert run("suspend", "fee", data=data).exit_code == 0
        assert os.geteuid() == 0
        for made in (data / "suspended", data / "suspended" / "fee"):
            assert (made.stat().st_uid, made.stat().st_gid) == (12345, 12346)
        assert run("resume", "fee", data=data).exit_code == 0
        assert suspended_names(data, Storage()) == frozenset()


def test_where_root_may_not_act_as_the_owner_nothing_is_changed(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_id: int) -> None:
        raise PermissionError

    real = os.stat(data)
    state = os.stat_result((real.st_mode, 0, 0, 0, 65534, 65534, 0, 0, 0, 0))
    monkeypatch.setattr(os, "stat", lambda _path, **_how: state)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "setegid", refused)
    with pytest.raises(CommandFailed, match="belongs to user 65534"), owner.as_owner(data):
        pytest.fail("it went on as somebody else")


def test_other_files_in_the_folder_suspend_nothing(data: Path) -> None:
    (data / "suspended").mkdir()
    for name in ("fee.tmp", ".hidden", "1st", "a b", "x" * 33, "naïve"):
        (data / "suspended" / name).touch()
    assert suspended_names(data, Storage()) == frozenset()


def test_resuming_what_is_not_suspended_changes_nothing(data: Path) -> None:
    run("suspend", "fee", data=data)
    done = run("resume", "fee", "other", data=data)
    assert done.exit_code == 2
    assert "other is not suspended" in done.stderr
    assert suspended_names(data, Storage()) == {"fee"}
    assert not resume(data, "other", Storage())


@pytest.mark.parametrize("name", ["1st", "a-b", "../x", "x" * 33, ""])
def test_names_that_no_function_has_are_refused(data: Path, name: str) -> None:
    assert run("suspend", name, data=data).exit_code == 2
    assert not (data / "suspended").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for command in (["suspend", "fee"], ["resume", "fee"], ["suspended"]):
        done = run(*command, data=tmp_path / "nowhere")
        assert done.exit_code == 2
        assert "nowhere" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_file_that_cannot_be_written_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspend, "STORAGE", FaultyStorage(None, Fault("fsync", 1, errno.ENOSPC)))
    done = run("suspend", "fee", data=data)
    assert done.exit_code not in (0, 2)
    assert "Traceback" not in done.output
    assert suspended_names(data, Storage()) == frozenset()


def test_a_folder_that_cannot_be_listed_is_told(data: Path) -> None:
    (data / "suspended").write_text("a file")
    with pytest.raises(StorageError):
        suspended_names(data, Storage())
