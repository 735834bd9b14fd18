"""A service run to its end: exit codes, and what the last lines of its log say."""

import errno
import importlib
import json
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from tallybus.common.errors import (
    EXIT_BUSY,
    EXIT_HANGUP,
    EXIT_HOPELESS,
    EXIT_SOFTWARE,
    FINAL_EXIT_CODES,
    ServiceError,
)
from tallybus.common.service import failures, process, runner, startup
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import Settings
from tests.support.folders import DOCS


class Failing(Shell):
    """A service that does one thing, and ends."""

    stage = "sequencer"
    does: Callable[[], None]

    def prepare(self) -> None:
        """Nothing."""

    def run(self) -> None:
        try:
            type(self).does()
        finally:
            self.close()


def first() -> None:
    raise KeyError("first")


def second() -> None:
    raise KeyError("second")


def run(settings: Settings, does: Callable[[], Any]) -> int:
    class Service(Failing):
        pass

    Service.does = staticmethod(does)
    return runner.run_service(Service, settings)


def test_the_same_defect_three_times_in_a_row_is_for_good(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [run(settings, does) for does in (first, second, first, first, first, first)]
    assert again == [EXIT_SOFTWARE] * 4 + [EXIT_HOPELESS] * 2
    assert EXIT_HOPELESS in FINAL_EXIT_CODES
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    last = lines[-1]
    assert last["message"].startswith(
        "stopped for good: KeyError at tests/unit/common/service/test_runner"
    )
    assert "in first, 4 times in a row" in last["message"]
    assert "Traceback" in last["exception"]


def test_an_error_that_says_so_is_not_tried_again(settings: Settings) -> None:
    class Hopeless(ServiceError):
        restart = False

    def fail() -> None:
        raise Hopeless("no")

    assert run(settings, fail) == EXIT_HOPELESS


def test_a_refused_thread_is_told_and_may_pass(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def start() -> None:
        threading.Thread(target=print).start()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert run(settings, lambda: None) == EXIT_BUSY
    monkeypatch.setattr(process, "check_threads", lambda: None)
    assert run(settings, start) == EXIT_BUSY
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = [line for line in lines if line["level"] == "error"]
    assert [line["error"] for line in told] == ["ThreadsRefused"] * 2
    assert all("raise the limit of processes" in line["message"] for line in told)


def test_a_hangup_stops_a_service_with_a_code_that_is_no_clean_end(settings: Settings) -> None:
    assert run(settings, lambda: os.kill(os.getpid(), signal.SIGHUP)) == EXIT_HANGUP


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ImportError("no zmq"), EXIT_HOPELESS),
        (SyntaxError("half a file"), EXIT_HOPELESS),
        (RuntimeError("cannot cache function"), EXIT_HOPELESS),
        (AttributeError("another version"), EXIT_HOPELESS),
        (RuntimeError(startup.NO_THREAD), None),
        (OSError(errno.EMFILE, "too many"), None),
    ],
)
def test_a_module_that_cannot_be_imported_is_not_tried_for_ever(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    code: int | None,
) -> None:
    def fails(_name: str) -> NoReturn:
        raise raised

    monkeypatch.setattr(importlib, "import_module", fails)
    if code is None:
        with pytest.raises(type(raised)):
            runner.run_stage("wal")
    else:
        assert runner.run_stage("wal") == code
        assert str(raised) in capsys.readouterr().err


def test_the_page_about_running_it_tells_the_codes_that_are_final() -> None:
    text = (DOCS / "deployment.md").read_text("utf-8")
    assert failures.MOST == 3
    assert "for the third time in a row" in text
    for code in (*FINAL_EXIT_CODES, EXIT_HANGUP):
        assert f"| {code} |" in text
    assert f"`RestartPreventExitStatus={' '.join(map(str, sorted(FINAL_EXIT_CODES)))}`" in text
    *others, last = map(str, sorted(FINAL_EXIT_CODES))
    assert f"**{', '.join(others)} and {last} are final**" in text
