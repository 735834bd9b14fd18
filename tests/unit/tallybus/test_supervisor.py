"""The supervisor: what it gives up, what it goes on with, and what it holds."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus import supervisor
from tallybus.common.errors import EXIT_BUSY, EXIT_HOPELESS
from tallybus.common.files import LockHeld
from tallybus.common.settings.sections import Settings, load
from tests.support.restored import handlers_and_logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with handlers_and_logs():
        yield


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(environ={}, overrides={"ledger.data": tmp_path / "data"})


class Odd(supervisor.Supervisor):
    """Its services are Pythons that run a line."""

    program = ""

    def command(self, service: str) -> list[str]:
        return [sys.executable, "-S", "-E", "-c", self.program]


@pytest.mark.parametrize(
    ("program", "most"), [("import os; os.abort()", 3), ("raise SystemExit(3)", 10)]
)
def test_what_ends_in_the_same_way_at_every_start_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, program: str, most: int
) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.05)
    odd = Odd(settings)
    odd.program = program
    monkeypatch.setattr(supervisor, "START_ORDER", ("wal",))
    odd.start()
    while odd.failed is None:
        odd.watch()
        odd.wait(1)
    odd.stop()
    assert odd.failed == ("wal", EXIT_HOPELESS)
    assert odd.children["wal"].restarts == most - 1


def test_a_process_that_cannot_be_started_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    plain = supervisor.Supervisor(settings)
    monkeypatch.setattr(supervisor.subprocess, "Popen", refuse)
    assert plain.run() == EXIT_BUSY
    # Later on it may pass: the others go on, and it is tried again.
    child = plain.children["wal"]
    plain._spawn_again(child)
    assert plain.failed is None
    assert child.due is not None


@pytest.mark.parametrize("missing", [True, False])
def test_without_handles_of_processes_the_end_of_one_is_noticed_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    def refuse(_: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    if missing:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    else:
        monkeypatch.setattr(os, "pidfd_open", refuse, raising=False)
    odd = Odd(settings)
    odd.program = "import time; time.sleep(60)"
    monkeypatch.setattr(supervisor, "START_ORDER", ("wal",))
    odd.start()
    try:
        before = odd.pid("wal")
        assert odd.children["wal"].handle is None
        os.kill(before, signal.SIGKILL)
        while odd.children["wal"].restarts == 0:
            odd.wait(supervisor.WATCH_SECONDS)
            odd.watch()
        assert odd.pid("wal") not in (0, before)
    finally:
        odd.stop()


def test_a_supervisor_holds_the_data_whatever_becomes_of_the_run_folder(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one, two = supervisor.Supervisor(settings), supervisor.Supervisor(settings)
    monkeypatch.setattr(supervisor, "START_ORDER", ())
    one.start()
    try:
        (tmp_path / "data" / "run" / "supervisor.lock").unlink()
        (tmp_path / "data" / "run").rmdir()
        with pytest.raises(LockHeld, match=str(tmp_path / "data" / "supervisor.lock")):
            two.start()
        two.stop()
        one.watch()
        with pytest.raises(LockHeld, match=r"run/supervisor\.lock"):
            two.start()
    finally:
        one.stop()
    two.start()
    two.stop()
