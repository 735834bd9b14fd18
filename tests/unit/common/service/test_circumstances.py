"""What can only be checked where a service starts: CPUs, addresses, threads; and what repeats."""

import errno
import importlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tallybus import supervisor
from tallybus.common import logs
from tallybus.common.errors import (
    EXIT_BUSY,
    EXIT_HANGUP,
    EXIT_HOPELESS,
    EXIT_SOFTWARE,
    FINAL_EXIT_CODES,
    ServiceError,
    SettingsError,
)
from tallybus.common.files import FileLock, LockHeld, Storage
from tallybus.common.service import cpus, failures, process, startup
from tallybus.common.service.failures import Failures, place_of
from tallybus.common.service.shell import Shell, own_run_folder
from tallybus.common.settings import addresses
from tallybus.common.settings.sections import Settings, load
from tests.support.folders import DOCS


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


# CPUs


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
@pytest.mark.parametrize("text", ["4095", "0-4095", "0,4094"])
def test_a_cpu_that_is_not_there_is_a_wrong_setting(text: str) -> None:
    asked = load(environ={"TALLYBUS_WAL_CPU": text})
    for check in (lambda: cpus.check(asked), lambda: cpus.pin(asked, "wal")):
        with pytest.raises(SettingsError) as caught:
            check()
        assert caught.value.setting == "wal.cpu"
        assert caught.value.origin == "environment TALLYBUS_WAL_CPU"
        assert "cannot be used; usable here: CPU" in caught.value.reason
    cpus.check(asked, ["gateway"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_a_service_may_run_on_cpus_that_its_parent_did_not_use() -> None:
    there = cpus.usable()
    assert there
    before = os.sched_getaffinity(0)
    first, last = min(there), max(there)
    try:
        os.sched_setaffinity(0, {first})
        assert cpus.usable() == there
        assert os.sched_getaffinity(0) == {first}, "looking changes nothing"
        cpus.pin(load(environ={"TALLYBUS_WAL_CPU": str(last)}), "wal")
        assert os.sched_getaffinity(0) == {last}
    finally:
        os.sched_setaffinity(0, before)


def test_a_smaller_cpuset_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: frozenset({2, 3, 4, 7}))
    cpus.check(load(environ={"TALLYBUS_WAL_CPU": "2-4,7"}))
    with pytest.raises(SettingsError, match=r"CPUs 0-1,5 cannot be used; usable here: CPUs 2-4,7"):
        cpus.check(load(environ={"TALLYBUS_WAL_CPU": "0-5"}))


def test_a_system_that_lets_nobody_choose_cpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with pytest.raises(SettingsError, match="does not let this process choose its CPUs"):
        cpus.pin(load(environ={"TALLYBUS_WAL_CPU": "0"}), "wal")


# Addresses


def test_addresses_that_can_never_be_listened_on_are_wrong_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One of those that are for documents: no machine has it.
    wrong = load(environ={"TALLYBUS_METRICS_ADDRESS": "192.0.2.1"})
    with pytest.raises(SettingsError, match="Cannot assign requested address") as caught:
        addresses.check(wrong, "wal")
    assert caught.value.setting == "metrics.address"
    page = load(environ={"TALLYBUS_GATEWAY_PAGE": "192.0.2.1:5580"})
    addresses.check(page, "wal")
    with pytest.raises(SettingsError) as caught:
        addresses.check(page, "gateway")
    assert caught.value.setting == "gateway.page"

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SettingsError, match=r"port 80 of 127\.0\.0\.1: Permission denied"):
        addresses.check(load(environ={"TALLYBUS_GATEWAY_PAGE": "127.0.0.1:80"}), "gateway")


def test_an_address_that_is_taken_or_a_name_is_waited_for(free_port: Callable[[], int]) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert addresses.refusal("127.0.0.1", port) == 0
    assert addresses.refusal("127.0.0.1", port) == 0
    assert addresses.refusal("no-such-name.invalid", port) == 0


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("ledger.data", {"ledger.data": "/dev/null/x"}),
        ("bus.run_folder", {"bus.run_folder": "/proc/x"}),
    ],
)
def test_a_folder_that_cannot_be_made_is_a_wrong_setting(
    key: str, overrides: dict[str, object], tmp_path: Path
) -> None:
    wrong = load(environ={}, overrides={"ledger.data": tmp_path / "data", **overrides})
    for locked in (lambda: supervisor.Supervisor(wrong).start(), lambda: own(wrong)):
        with pytest.raises(SettingsError, match="cannot be made") as caught:
            locked()
        assert caught.value.setting == key


def own(settings: Settings) -> Path:
    return own_run_folder(settings, Storage())


# What repeats


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
    return process.run_service(Service, settings)


def test_the_same_defect_three_times_in_a_row_is_for_good(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [run(settings, does) for does in (first, second, first, first, first, first)]
    assert again == [EXIT_SOFTWARE] * 4 + [EXIT_HOPELESS] * 2
    assert EXIT_HOPELESS in FINAL_EXIT_CODES
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    last = lines[-1]
    assert last["message"].startswith(
        "stopped for good: KeyError at tests/unit/common/service/test_circumstances"
    )
    assert "in first, 4 times in a row" in last["message"]
    assert "Traceback" in last["exception"]


def test_a_service_that_was_ready_for_long_has_got_better_by_its_start(tmp_path: Path) -> None:
    kept = Failures(Storage(), lambda: tmp_path, "wal")
    assert [kept.note("a", steady=False) for _ in range(4)] == [1, 2, 3, 4]
    assert kept.note("a", steady=True) == 1
    assert kept.note("a", steady=False) == 2
    kept.forget()
    assert kept.note("a", steady=False) == 1
    assert Failures(Storage(), lambda: tmp_path, "gateway").note("a", steady=False) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"place":"a"}', '{"place":"a","count":"x"}'])
def test_a_record_of_failures_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "wal.failed").write_text(text)
    assert Failures(Storage(), lambda: tmp_path, "wal").note("a", steady=False) == 1


def test_where_nothing_can_be_kept_each_failure_is_the_first() -> None:
    def refuse() -> Path:
        raise LockHeld(Path("x"), "")

    kept = Failures(Storage(), refuse, "wal")
    assert [kept.note("a", steady=False) for _ in range(4)] == [1] * 4
    kept.forget()


def test_the_place_is_the_innermost_line_of_ours() -> None:
    try:
        load(environ={}, overrides={"ledger.data": 3})
    except SettingsError as error:
        place = place_of(error)
    assert place.startswith("tallybus.common.errors.SettingsError at common/settings/table.py:")
    assert place_of(KeyError()) == "KeyError"


def test_an_error_that_says_so_is_not_tried_again(settings: Settings) -> None:
    class Hopeless(ServiceError):
        restart = False

    def fail() -> None:
        raise Hopeless("no")

    assert run(settings, fail) == EXIT_HOPELESS


# Threads


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


# Signals


def test_a_hangup_stops_a_service_with_a_code_that_is_no_clean_end(settings: Settings) -> None:
    assert run(settings, lambda: os.kill(os.getpid(), signal.SIGHUP)) == EXIT_HANGUP


def test_signals_that_were_ignored_at_the_start_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert process.stop_signals() == [signal.SIGTERM, signal.SIGINT]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert process.stop_signals() == [signal.SIGTERM]


# The supervisor


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


# Locks


def test_a_lock_whose_file_was_removed_or_replaced_is_not_in_place(tmp_path: Path) -> None:
    storage = Storage()
    path = tmp_path / "x.lock"
    lock = storage.lock_exclusive(path)
    assert lock.in_place
    path.unlink()
    assert not lock.in_place
    other: FileLock = storage.lock_exclusive(path)
    assert other.in_place
    assert not lock.in_place
    lock.release()
    assert not lock.in_place
    other.release()


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
            process.run_stage("wal")
    else:
        assert process.run_stage("wal") == code
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
