"""How `tallybus top` looks: numbers, widths, text of others."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tallybus.cli.top import METRICS_HINT
from tallybus.cli.topdraw import count, frame, milliseconds, per_second, span, sparkline
from tallybus.common.stages import SERVICES
from tallybus.common.view.pipeline import PipelineView
from tests.support.looks import drawn, function, lost, measured, metrics, sample, shown


def test_a_sparkline_is_scaled_to_its_highest_value() -> None:
    assert sparkline([0, 50, 100, None, 100]) == "▁▅█ █"
    assert sparkline([0, 50, 100], ascii_only=True) == "_=#"
    assert sparkline([None, 0, 0]) == " ▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (span(None), "-"),
        (span(0.0404), "40 ms"),
        (span(59.94), "59.9 s"),
        (span(61), "1 min 1 s"),
        (span(7_260), "2 h 1 min"),
        (span(90_000), "1 d 1 h"),
        (count(None), "-"),
        (count(1_234_567), "1,234,567"),
        (per_second(0), "0"),
        (per_second(0.25), "0.2"),
        (per_second(1234.5), "1,234"),
        (milliseconds(0.1234), "0.123 ms"),
        (milliseconds(2500), "2,500 ms"),
        (milliseconds(None), "-"),
    ],
)
def test_numbers_are_short(text: str, expected: str) -> None:
    assert text == expected


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    view = PipelineView(METRICS_HINT)
    for at in range(300):
        report = view.add(
            sample(at, 10**12 * at, functions=(function(10**9),), metrics=metrics(at))
        )
    lines = drawn(report, view, width).splitlines()
    assert max(map(len, lines)) <= width
    for stage in SERVICES:
        assert any(line.startswith(stage) for line in lines)


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_number_is_shown_whole_or_not_at_all(width: int) -> None:
    report = shown(sample(1, 10**9), sample(2, 10**9 + 10**7, functions=(function(10**9),)))
    text = drawn(report, width=width)
    assert "1,010,000,000" in text
    table = text[: text.index("latency")]
    assert "…" not in table
    told = set(re.findall(r"[\d,]{7,}", text))
    assert told <= {
        *("1,010,000,004", "1,010,000,002", "1,010,000,000", "1,009,999,998", "10,000,000"),
        *("1,000,000,000", "28,000,000,000"),
    }


def test_what_others_wrote_is_not_taken_for_markup() -> None:
    bad = lost(1, metrics={"wal": "[red]x[/]"})
    report = shown(bad)
    assert "[red]x[/]" in drawn(report)


def test_a_frame_in_plain_ascii() -> None:
    report = measured()
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(frame(report, [1.0, 2.0], "tcp://x", 120, ascii_only=True))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().isascii()
