"""What the page shows: what the gateway knows of the pipeline in, a report as JSON out.

Pure: reads no clock and no socket. Once a second the gateway's loop notes what it has heard
(`Heard`), and the page's thread makes the report of it, the one that `tallybus top --json` prints
and some facts more. When no notes come, the report says that the gateway does not answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tallybus.common.bus.messages import StageMetrics
from tallybus.common.metrics.packed import unpack
from tallybus.common.record import Status
from tallybus.common.view.pipeline import SILENT_MS, Look, PipelineView, Report
from tallybus.common.view.scrape import Scrape

STALE_NS: Final = 3_000_000_000
"""Metrics that are older say nothing about now. Services tell them every second."""
_STATUSES: Final = {status.name.lower(): status for status in Status}


@dataclass(frozen=True, slots=True)
class Index:
    """The last transaction that each stage has passed, and the term; None: not heard of yet."""

    sequenced: int | None
    computed: int | None
    committed: int | None
    snapshot: int | None
    term: int | None


@dataclass(frozen=True, slots=True)
class Service:
    """A row of the reply to a client's `services`."""

    stage: str
    pid: int
    incarnation: int
    term: int
    index: int
    next: int
    durable: int
    retained: int
    started_ns: int
    heard_ms: int
    cpu: str
    wait: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What a gateway knows at one moment, `now_ns` of the monotonic clock and `unix_ns`.

    `metrics`: of each stage the last broadcast of its numbers and when it came.
    """

    now_ns: int
    unix_ns: int
    index: Index
    services: tuple[Service, ...]
    metrics: Mapping[str, tuple[StageMetrics, int]]


@dataclass(frozen=True, slots=True)
class Function:
    """A live function as the transactor's metrics tell of it."""

    name: str
    version: int
    calls: int
    failures: Mapping[Status | int, int]
    fuel_total: int
    mean_ns: float | None

    @property
    def fuel_mean(self) -> float | None:
        return self.fuel_total / self.calls if self.calls else None


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The metrics of one service, unpacked, or why they could not be."""

    message: StageMetrics
    scrape: Scrape | None = None
    error: str = ""
    functions: tuple[Function, ...] = field(default=())


class Feed:
    """Makes reports, in the order of time. `facts` stand in every one of them."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = dict(facts)
        self._view = PipelineView()
        self._numbers: dict[str, _Numbers] = {}
        self._counted: _Numbers | None = None
        self._reasons: dict[str, list[str]] = {}

    def add(self, heard: Heard) -> dict[str, Any]:
        """The report after these notes."""
        metrics: dict[str, Scrape | str] = {}
        self._reasons = {}
        # A service that recovers tells its numbers, but not yet its status.
        speaking = {
            each.stage: each.incarnation for each in heard.services if each.heard_ms <= SILENT_MS
        }
        for stage, (message, came_ns) in heard.metrics.items():
            age_ns = heard.now_ns - came_ns
            known = self._take(message)
            if message.incarnation not in (0, speaking.get(stage, message.incarnation)):
                metrics[stage] = "told by another process than its status"
            elif age_ns > STALE_NS:
                metrics[stage] = f"told nothing for {age_ns / 1e9:.1f} s"
            elif known.scrape is None:
                metrics[stage] = known.error
            else:
                metrics[stage] = known.scrape
                self._reasons[stage] = message.reasons
        for each in heard.services:
            metrics.setdefault(each.stage, "told nothing yet; gateway.page must be set there too")
        return self._report(self._look(heard, metrics))

    def silence(self, now_ns: int, unix_ns: int, why: str) -> dict[str, Any]:
        """The report when the gateway's loop notes nothing."""
        self._reasons = {}
        return self._report(Look(now_ns / 1e9, unix_ns, metrics={}, error=why))

    def _take(self, message: StageMetrics) -> _Numbers:
        known = self._numbers.get(message.stage)
        if known is not None and known.message is message:
            return known
        try:
            scrape = unpack(message.samples, message.time / 1e9)
        except ValueError as error:
            known = _Numbers(message, error=str(error))
        else:
            functions = tuple(_functions(scrape)) if message.stage == "transactor" else ()
            known = _Numbers(message, scrape, functions=functions)
        self._numbers[message.stage] = known
        return known

    def _look(self, heard: Heard, metrics: Mapping[str, Scrape | str]) -> Look:
        told = metrics.get("transactor")
        functions, why = None, ""
        at_s: float | None = None
        silent = [each.heard_ms for each in heard.services if each.stage == "transactor"]
        if not silent or silent[0] > SILENT_MS:
            why = "the transactor is down"
        elif not isinstance(told, Scrape):
            why = told or ""
        elif told.one("tallybus_term") is None:
            why = "the transactor is recovering"
        elif self._counted is not (numbers := self._numbers["transactor"]):
            self._counted = numbers
            functions, at_s = numbers.functions, told.at_s
        return Look(
            heard.now_ns / 1e9,
            heard.unix_ns,
            index=heard.index,
            services=heard.services,
            functions=functions,
            metrics=metrics,
            functions_error=why,
            functions_at_s=at_s,
        )

    def _report(self, look: Look) -> dict[str, Any]:
        report = self._view.add(look)
        told = report.as_json() | self._facts
        told["history"] = list(self._view.history)
        told["not_ready"] = {
            row.stage: self._reasons.get(row.stage, [])
            for row in report.stages
            if row.state == "not ready"
        }
        self._count_restarts(report, told)
        return told

    def _count_restarts(self, report: Report, told: dict[str, Any]) -> None:
        """Those that the supervisor counted began before this gateway did, or include its own."""
        for row, shown in zip(report.stages, told["stages"], strict=True):
            numbers = self._numbers.get(row.stage)
            if numbers is not None and numbers.scrape is not None:
                counted = numbers.scrape.whole("tallybus_restarts_total") or 0
                shown["restarts"] = max(row.restarts, counted)


def _functions(scrape: Scrape) -> Iterator[Function]:
    versions = scrape.by("tallybus_function_version", "function")
    fuel = scrape.by("tallybus_function_fuel_total", "function")
    seconds = scrape.by("tallybus_function_call_seconds", "function")
    failures: dict[str, dict[Status | int, int]] = {}
    for labels, count in scrape.values.get("tallybus_function_failures_total", ()):
        text = labels.get("status", "")
        status: Status | int | None = int(text) if text.isdecimal() else _STATUSES.get(text)
        if status is not None:
            failures.setdefault(labels.get("function", ""), {})[status] = int(count)
    for name, calls in scrape.by("tallybus_function_calls_total", "function").items():
        mean_s = seconds.get(name)
        yield Function(
            name,
            int(versions.get(name, 0)),
            int(calls),
            failures.get(name, {}),
            int(fuel.get(name, 0)),
            None if mean_s is None else mean_s * 1e9,
        )


def as_services(rows: list[dict[str, Any]]) -> tuple[Service, ...]:
    """The rows that a client's `services` is answered with."""
    names = Service.__dataclass_fields__
    return tuple(Service(**{name: row[name] for name in names}) for row in rows)
