"""How `tallybus top` looks: a report in, something that rich prints out.

Pure: decides nothing about the ledger, and writes nothing. What does not fit the terminal is left
out: the columns that matter least, and from below. States are told in words as well as in colours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tallybus.common.view.pipeline import FunctionRow, Report, StageRow
from tallybus.common.view.report import MetricsReport

NONE: Final = "-"
BARS: Final = "▁▂▃▄▅▆▇█"
ASCII_BARS: Final = "_.:-=+*#"
ROOMY: Final = 100
"""Columns of a terminal from which on two spaces stand between those of a table, not one."""
_STAGE_COLUMNS: Final = (
    *("stage", "state", "index", "behind", "tx/s", "restarts", "heard", "retained", "uptime"),
    *("in flight", "pid", "term"),
)
_AT_LEAST: Final = {"state": 9, "tx/s": 9, "heard": 6, "uptime": 12}
"""Room for what these columns may soon hold, lest others come and go with every frame."""
_STYLES: Final = {"up": "green", "down": "bold red", "not ready": "yellow", "unknown": "dim"}
_MAX_FAILURES: Final = 6


def frame(
    report: Report,
    history: Sequence[float | None],
    endpoint: str,
    width: int = 120,
    ascii_only: bool = False,
) -> RenderableType:
    """One frame for a terminal of `width` columns."""
    parts: list[RenderableType] = [_head(report, endpoint)]
    if not report.answers:
        parts.append(_lost(report))
    parts += [_rate(report, history, width, ascii_only), Text(), _stages(report.stages, width)]
    parts += _metrics(report, ascii_only)
    parts += _functions(report, width, ascii_only)
    return Group(*parts)


def sparkline(values: Iterable[float | None], ascii_only: bool = False) -> str:
    """A character for each value, as high as its share of the highest one; None is a space."""
    values = list(values)
    bars = ASCII_BARS if ascii_only else BARS
    top = max((value for value in values if value is not None), default=0.0)
    return "".join(
        " " if value is None else bars[round(value / top * (len(bars) - 1)) if top > 0 else 0]
        for value in values
    )


def count(value: float | None) -> str:
    """A whole number with its digits in groups of three."""
    return NONE if value is None else f"{round(value):,}"


def per_second(value: float | None) -> str:
    """A rate; small ones with a decimal, so that a trickle is not shown as nothing."""
    if value is None:
        return NONE
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def span(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def milliseconds(value: float | None) -> str:
    """A time in milliseconds with three digits that mean something."""
    return NONE if value is None else f"{value:.3g} ms" if value < 1000 else f"{value:,.0f} ms"


def _head(report: Report, endpoint: str) -> Text:
    moment = time.strftime("%H:%M:%S", time.gmtime(report.unix_ns / 1e9))
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("tallybus top", "bold")
    text.append(f"  {endpoint}  {moment} UTC")
    if report.term is not None:
        text.append(f"  term {report.term}")
        if report.terms_seen > 1:
            text.append(f" ({report.terms_seen} seen)", "yellow")
    return text


def _lost(report: Report) -> Text:
    text = Text(style="bold red", overflow="fold")
    text.append(f"the gateway does not answer, for {span(report.lost_s)}: {report.error or ''}")
    text.append("; below is what was told last", "dim")
    return text


def _rate(
    report: Report, history: Sequence[float | None], width: int, ascii_only: bool
) -> RenderableType:
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"{per_second(report.tx_per_s):>12}", "bold cyan")
    text.append(" tx/s committed  ")
    text.append(f"{count(report.in_flight)} in flight  ")
    room = max(0, width - text.cell_len)
    shown = list(history)[-room:] if room else []
    text.append(sparkline(shown, ascii_only), "cyan")
    return text


def _stages(rows: Sequence[StageRow], width: int) -> Table:
    cells = [
        {
            "stage": Text(row.stage),
            "state": Text(row.state, _STYLES.get(row.state, "")),
            "index": Text(count(row.index)),
            "behind": Text(count(row.behind)),
            "tx/s": Text(per_second(row.tx_per_s)),
            "retained": Text(_of(row.retained, row.max_in_flight)),
            "in flight": Text(count(row.in_flight)),
            "heard": Text("never" if row.last_word_s is None else span(row.last_word_s)),
            "restarts": Text(str(row.restarts), "yellow" if row.restarts else ""),
            "uptime": Text(span(row.uptime_s)),
            "term": Text(NONE if row.term is None else str(row.term)),
            "pid": Text(NONE if row.pid is None else str(row.pid)),
        }
        for row in rows
    ]
    return _fitted(cells, _STAGE_COLUMNS, width, left=("stage", "state"))


def _fitted(
    rows: Sequence[dict[str, Text]],
    by_weight: Sequence[str],
    width: int,
    left: Sequence[str],
) -> Table:
    """A table of the columns that have room, those that weigh most first, in the rows' order.

    A number is shown whole or not at all: a part of one could be taken for another.
    """
    gap = 2 if width >= ROOMY else 1
    needed = {
        name: max(len(name), _AT_LEAST.get(name, 0), *(row[name].cell_len for row in rows)) + gap
        for name in rows[0]
    }
    taken: set[str] = set()
    room = width + gap  # the last one needs none
    for name in by_weight:
        if needed[name] <= room or not taken:
            room -= needed[name]
            taken.add(name)
    table = Table(box=None, header_style="bold", padding=(0, gap, 0, 0), pad_edge=False)
    names = [name for name in rows[0] if name in taken]
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _of(value: int | None, limit: int | None) -> str:
    if value is None or not limit:
        return count(value)
    return f"{count(value)} ({100 * value / limit:.0f}%)"


def _title(name: str, ascii_only: bool) -> Rule:
    return Rule(
        Text(name, "bold"), align="left", style="dim", characters="-" if ascii_only else "─"
    )


def _metrics(report: Report, ascii_only: bool) -> list[RenderableType]:
    titles = "latency, failures, segment"
    if report.metrics is None:
        hint = Text(report.metrics_hint or NONE, "dim")
        return [_title(titles, ascii_only), hint]
    found = report.metrics
    parts: list[RenderableType] = []
    parts += [_title("latency by wait level", ascii_only), _latency(found)]
    parts += [_title("failures by reason", ascii_only), _failures(found)]
    parts += [_title("log segment", ascii_only), _segment(found, ascii_only)]
    if found.unreachable:
        text = Text(style="yellow", overflow="fold")
        text.append("no metrics: ")
        text.append("; ".join(f"{stage}: {why}" for stage, why in found.unreachable.items()))
        parts.append(text)
    return parts


def _missing(stage: str, found: MetricsReport) -> Text:
    why = "does not answer" if stage in found.unreachable else "does not tell yet"
    return Text(f"the {stage}'s metrics: {why}", "dim")


def _latency(found: MetricsReport) -> RenderableType:
    if not found.latency:
        return _missing("gateway", found)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("wait", no_wrap=True)
    for name in ("answers/s", "p50", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.latency:
        table.add_row(
            row.level, per_second(row.per_s), milliseconds(row.p50_ms), milliseconds(row.p99_ms)
        )
    return table


def _failures(found: MetricsReport) -> RenderableType:
    asked = [stage for stage in ("transactor", "gateway") if stage in found.unreachable]
    if not found.failures:
        return _missing(asked[0], found) if asked else Text("none since the start", "dim")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("what", "reason"):
        table.add_column(name, no_wrap=True)
    for name in ("total", "per second"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.failures[:_MAX_FAILURES]:
        table.add_row(row.what, Text(row.reason), count(row.total), per_second(row.per_s))
    left = len(found.failures) - _MAX_FAILURES
    return Group(table, Text(f"and {left} more reasons", "dim")) if left > 0 else table


def _segment(found: MetricsReport, ascii_only: bool) -> RenderableType:
    row = found.segment
    if row is None:
        return _missing("wal", found)
    share = min(1.0, row.transactions / row.capacity) if row.capacity else 0.0
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    done = round(share * 20)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{row.number}  ")
    text.append(full * done + empty * (20 - done), "cyan")
    text.append(f"  {count(row.transactions)} of {count(row.capacity)} ({100 * share:.1f}%)")
    if row.full_in_s is not None:
        text.append(f", full in {span(row.full_in_s)}")
    if row.snapshot_segment is not None:
        text.append(f"; last snapshot: {row.snapshot_segment or 'none yet'}")
        text.append(", writing one" if row.snapshot_writing else "")
    return text


def _functions(report: Report, width: int, ascii_only: bool) -> list[RenderableType]:
    parts: list[RenderableType] = [_title("functions", ascii_only)]
    if report.functions_error:
        parts.append(Text(f"not read: {report.functions_error}", "yellow", overflow="fold"))
    if report.functions:
        parts.append(_function_table(report.functions, width))
    elif not report.functions_error:
        parts.append(Text("none registered" if report.functions is not None else NONE, "dim"))
    return parts


def _function_table(rows: Sequence[FunctionRow], width: int) -> Table:
    cells = []
    for row in rows:
        why = ", ".join(f"{name} {number:,}" for name, number in row.failures.items())
        cells.append(
            {
                "name": Text(row.name),
                "calls": Text(count(row.calls)),
                "calls/s": Text(per_second(row.calls_per_s)),
                "failures": Text(count(sum(row.failures.values()))),
                "fuel": Text(count(row.fuel_total)),
                "mean fuel": Text(count(row.fuel_mean)),
                "mean time": Text(NONE if row.mean_ns is None else f"{row.mean_ns:,.0f} ns"),
                "version": Text(str(row.version)),
                "failed with": Text(why),
            }
        )
    return _fitted(cells, list(cells[0]), width, left=("name", "failed with"))
