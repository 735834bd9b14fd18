"""What a service's process needs of the system, and what stops it."""

import logging
import os
import signal
import threading

import pytest

from tallybus.common.errors import EXIT_HANGUP
from tallybus.common.files import Storage
from tallybus.common.service import open_files, process
from tallybus.common.service.process import (
    LEAST_FILES,
    MOST_FILES,
    Process,
    StopSignals,
    ThreadsRefused,
    TooFewOpenFiles,
)
from tallybus.common.settings.sections import Settings
from tallybus.common.times import NEVER_NS

START_NS = 10**15


# The parent


@pytest.fixture
def made(settings: Settings) -> Process:
    log = logging.getLogger("test_process")
    return Process(settings, Storage(), "wal", None, log)  # type: ignore[arg-type]


def test_a_service_that_nobody_supervises_has_no_parent_to_look_for(made: Process) -> None:
    assert made.parent_due_ns == NEVER_NS


def test_a_parent_is_looked_for_once_in_a_heartbeat_and_its_end_is_told_once(
    made: Process, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 4711)
    made.stop_with(4711)
    assert made.parent_due_ns == 0, "the first turn looks: it may be gone by then"
    assert not made.orphaned(START_NS)
    assert made.parent_due_ns == START_NS + settings.bus.heartbeat_ms * 1_000_000
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert made.orphaned(made.parent_due_ns)
    assert made.parent_due_ns == NEVER_NS


# Signals


def test_signals_that_were_ignored_at_the_start_stay_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert process.stop_signals() == [signal.SIGTERM, signal.SIGINT]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert process.stop_signals() == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, EXIT_HANGUP)],
)
def test_each_signal_stops_by_its_name_and_a_hangup_is_no_clean_end(
    number: signal.Signals, code: int
) -> None:
    stopped: list[str] = []
    signals = StopSignals(stopped.append)
    signals.catch(supervised=False)
    os.kill(os.getpid(), number)
    assert stopped == [number.name]
    assert signals.exit_code == code


def test_a_supervisor_can_stop_what_was_started_to_ignore_that() -> None:
    for supervised, handled in ((False, False), (True, True)):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        StopSignals(lambda _: None).catch(supervised=supervised)
        assert (signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN) == handled


# What the system allows


def test_threads_that_were_tried_are_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    process.check_threads()
    assert threading.active_count() == before
    start, started = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ThreadsRefused):
        process.check_threads()
    assert threading.active_count() == before


def test_as_many_files_as_may_be_are_allowed_and_too_few_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def allow(wanted: int) -> int:
        asked.append(wanted)
        return allowed

    monkeypatch.setattr(open_files, "allow", allow)
    allowed = LEAST_FILES
    process.allow_open_files()
    assert asked == [MOST_FILES]
    allowed = LEAST_FILES - 1
    with pytest.raises(TooFewOpenFiles) as caught:
        process.allow_open_files()
    assert (caught.value.allowed, caught.value.needed) == (LEAST_FILES - 1, LEAST_FILES)
