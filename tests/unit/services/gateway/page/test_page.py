"""The page's own threads: a report of everything that is handed over, and of silence."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from tallybus.services.gateway.page import page
from tallybus.services.gateway.page.feed import Feed, Heard, Index
from tallybus.services.gateway.page.page import EVERY_NS, Page, Reporter

LOG = logging.getLogger("tallybus.test")
PATIENCE_S = 20.0


def heard(committed: int) -> Heard:
    now_ns = time.monotonic_ns()
    index = Index(committed, committed, committed, committed, 1)
    return Heard(now_ns, time.time_ns(), index, (), {})


@pytest.fixture
def reporter() -> Iterator[Reporter]:
    running = Reporter(Feed({"version": "1.2.3"}), LOG)
    running.start()
    yield running
    running.close()
    assert not any(thread.name == "page-reports" for thread in threading.enumerate())


def newest(reporter: Reporter, after: int = 0) -> tuple[int, dict[str, Any]]:
    found = reporter.wait(after, PATIENCE_S)
    assert found is not None
    return found[0], json.loads(found[1])


def test_what_is_handed_over_is_reported(reporter: Reporter) -> None:
    reporter.take(heard(5))
    number, report = newest(reporter)
    assert (number, report["version"], report["stages"][3]["index"]) == (1, "1.2.3", 5)
    assert reporter.wait(1, 0.01) is None
    reporter.take(heard(9))
    number, report = newest(reporter, 1)
    assert (number, report["stages"][3]["index"]) == (2, 9)
    assert newest(reporter)[0] == 2, "the newest for who asks for any"


def test_a_report_is_one_line(reporter: Reporter) -> None:
    reporter.take(heard(5))
    found = reporter.wait(0, PATIENCE_S)
    assert found is not None
    assert b"\n" not in found[1]


def test_silence_is_reported_again_and_again(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter.take(heard(5))
    assert newest(reporter)[1]["answers"]
    monkeypatch.setattr(page, "SILENT_S", 0.05)
    monkeypatch.setattr(page, "EVERY_NS", 20_000_000)
    reporter.take(heard(6))
    number, report = newest(reporter, 2)
    assert not report["answers"]
    assert "loop" in report["error"]
    assert newest(reporter, number + 2)[1]["lost_s"] > 0
    monkeypatch.setattr(page, "SILENT_S", PATIENCE_S)
    reporter.take(heard(7))
    while not report["answers"]:
        number, report = newest(reporter, number)
    assert report["lost_s"] is None


def test_closing_ends_who_waits() -> None:
    running = Reporter(Feed({}), LOG)
    running.start()
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(running.wait(0, PATIENCE_S)))
    thread.start()
    started = time.monotonic()
    running.close()
    thread.join()
    assert found == [None]
    assert time.monotonic() - started < PATIENCE_S / 2


def test_an_error_ends_the_reports_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Feed):
        def add(self, heard: Heard) -> dict[str, Any]:
            raise RuntimeError("on purpose")

    running = Reporter(Broken({}), LOG)
    running.start()
    running.take(heard(1))
    assert running.wait(0, 0.2) is None
    running.close()
    assert "makes no reports" in caplog.text


def test_the_loop_is_asked_once_a_second() -> None:
    shown = Page(("127.0.0.1", 0), {}, lambda: None, LOG)
    start = 10**15
    asked = [now for now in range(start, start + 5 * EVERY_NS, EVERY_NS // 20) if shown.due(now)]
    gaps = [(later - now) / EVERY_NS for now, later in pairwise(asked)]
    assert gaps[1:] == [1.0] * len(gaps[1:])
    assert len(asked) in (5, 6)
    assert shown.due(start + 60 * EVERY_NS)
    assert not shown.due(start + 60 * EVERY_NS + EVERY_NS // 4), "what was missed is left out"
