"""The pipeline as it is shown to people: looks at a ledger in, a report out.

Shared by `tallybus top` and by the gateway's page, which take their looks in different ways. Pure:
reads no clock, socket or terminal. A look has what the ledger told at one moment, or why it told
nothing. `PipelineView` keeps of earlier looks what rates, restarts and the history need, and no
more than `HISTORY` of anything. Rates are differences over the time that really passed, so the
first rate after an outage is the mean since the last answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from tallybus.common.record import Status
from tallybus.common.stages import SERVICES
from tallybus.common.view.report import MetricsReport, failures, latencies, segment
from tallybus.common.view.scrape import Scrape

"""In the order that a transaction passes them."""
LEVEL_OF: Final = {
    "sequencer": "sequenced",
    "transactor": "computed",
    "wal": "committed",
    "snapshotter": "snapshot",
}
"""Which index of the pipeline a stage advances."""
SILENT_MS: Final = 2000
"""A service that was not heard for longer is down. Services broadcast every 100 ms."""
HISTORY: Final = 120
"""Rates that are kept for the history."""


class Index(Protocol):
    """The last transaction that each stage has passed, and the term. None: not known."""

    @property
    def sequenced(self) -> int | None: ...
    @property
    def computed(self) -> int | None: ...
    @property
    def committed(self) -> int | None: ...
    @property
    def snapshot(self) -> int | None: ...
    @property
    def term(self) -> int | None: ...


class Service(Protocol):
    """What the gateway last heard of a service, `heard_ms` ago. 0: not known yet."""

    @property
    def stage(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def incarnation(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def retained(self) -> int: ...
    @property
    def started_ns(self) -> int: ...
    @property
    def heard_ms(self) -> int: ...


class Function(Protocol):
    """A live function, and what was counted of it since the transactor started."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def failures(self) -> Mapping[Status | int, int]: ...
    @property
    def fuel_total(self) -> int: ...
    @property
    def fuel_mean(self) -> float | None: ...
    @property
    def mean_ns(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the ledger, at `at_s` (monotonic) and `unix_ns`.

    `index` None: the gateway did not answer, and `error` says why. `functions` None: they could not
    be read, and `functions_error` says why, or there is nothing new of them; `functions_at_s` is
    when they were counted, None: at `at_s`. `metrics`: by stage the scrape, or why there is none;
    None when nobody asks for them.
    """

    at_s: float
    unix_ns: int
    index: Index | None = None
    services: tuple[Service, ...] = ()
    functions: tuple[Function, ...] | None = None
    metrics: Mapping[str, Scrape | str] | None = None
    error: str = ""
    functions_error: str = ""
    functions_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class StageRow:
    """One service. None: not known.

    `state`: "up"; "down" (not heard for `SILENT_MS`, or never); "not ready" (by its metrics);
    "unknown" (the gateway does not answer, so nobody tells). `behind`: transactions that it is
    behind the stage before it. `restarts`: new incarnations seen while this view looks. `in_flight`
    and `max_in_flight` come from the metrics.
    """

    stage: str
    state: str
    index: int | None = None
    behind: int | None = None
    tx_per_s: float | None = None
    retained: int | None = None
    in_flight: int | None = None
    max_in_flight: int | None = None
    term: int | None = None
    pid: int | None = None
    incarnation: str | None = None
    restarts: int = 0
    uptime_s: float | None = None
    last_word_s: float | None = None


@dataclass(frozen=True, slots=True)
class FunctionRow:
    """One function, counted since the transactor started; `calls_per_s` between two looks."""

    name: str
    version: int
    calls: int
    calls_per_s: float | None
    failures: dict[str, int]
    fuel_total: int
    fuel_mean: float | None
    mean_ns: float | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one frame shows. Without `answers` the rest is as it was last told.

    `tx_per_s`: growth of the index `committed`; `in_flight`: sequenced and not yet committed.
    `interval_s`: between the two looks that rates come from. `lost_s`: how long ago the
    gateway answered last (or the first look was taken, if it never did), None while it answers.
    """

    unix_ns: int
    interval_s: float | None
    answers: bool
    error: str | None
    lost_s: float | None
    term: int | None
    terms_seen: int
    tx_per_s: float | None
    in_flight: int | None
    stages: list[StageRow]
    functions: list[FunctionRow] | None
    functions_error: str | None
    metrics: MetricsReport | None
    metrics_hint: str | None

    def as_json(self) -> dict[str, Any]:
        """The report as an object of JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Process:
    """What was last known of the process behind a stage, and how often it was a new one."""

    incarnation: int
    pid: int
    restarts: int = 0

    def see(self, info: Service) -> None:
        changed = info.incarnation != self.incarnation
        # A process id is told up to a second later than the incarnation; until then it is 0.
        if changed or (self.pid and info.pid and info.pid != self.pid):
            self.restarts += 1
        if changed or info.pid:
            self.incarnation, self.pid = info.incarnation, info.pid


@dataclass(slots=True)
class _Metrics:
    """The last scrape of a service, and the one before it."""

    now: Scrape
    before: Scrape | None = None
    fresh: bool = field(default=True)


class PipelineView:
    """Takes looks in the order of their time; `history` has the rates of `committed`.

    A rate is None in the history where there is none: at the first answer, and while the gateway
    does not answer. `metrics_hint`: what to tell where looks come without metrics.
    """

    def __init__(self, metrics_hint: str | None = None) -> None:
        self.history: deque[float | None] = deque(maxlen=HISTORY)
        self._metrics_hint = metrics_hint
        self._good: Look | None = None
        self._lost_at_s: float | None = None
        self._processes: dict[str, _Process] = {}
        self._terms: set[int] = set()
        self._scrapes: dict[str, _Metrics] = {}
        self._calls: tuple[float, dict[tuple[str, int], int]] | None = None
        self._functions: list[FunctionRow] | None = None

    def add(self, look: Look) -> Report:
        """What is to be shown after this look."""
        before = self._good
        unreachable = self._take_metrics(look)
        if look.index is None:
            if self._lost_at_s is None:
                self._lost_at_s = before.at_s if before else look.at_s
            rates: dict[str, float | None] = {}
            interval_s = None
        else:
            self._lost_at_s = None
            self._good = look
            if look.index.term is not None:
                self._terms.add(look.index.term)
            for info in look.services:
                known = self._processes.setdefault(info.stage, _Process(info.incarnation, info.pid))
                known.see(info)
            interval_s = look.at_s - before.at_s if before else None
            rates = _rates(look, before)
            self._functions = self._function_rows(look)
        tx_per_s = rates.get("wal")
        self.history.append(tx_per_s)
        index = self._good.index if self._good else None
        return Report(
            unix_ns=look.unix_ns,
            interval_s=interval_s,
            answers=look.index is not None,
            error=look.error or None,
            lost_s=None if self._lost_at_s is None else look.at_s - self._lost_at_s,
            term=index.term if index else None,
            terms_seen=len(self._terms),
            tx_per_s=tx_per_s,
            in_flight=_gap(index.sequenced, index.committed) if index else None,
            stages=[self._stage_row(stage, look, rates.get(stage)) for stage in SERVICES],
            functions=self._functions,
            functions_error=look.functions_error or None,
            metrics=self._metrics_report(look, unreachable, tx_per_s),
            metrics_hint=self._metrics_hint if look.metrics is None else None,
        )

    def _take_metrics(self, look: Look) -> dict[str, str]:
        unreachable: dict[str, str] = {}
        for known in self._scrapes.values():
            known.fresh = False
        for stage, told in (look.metrics or {}).items():
            if isinstance(told, str):
                unreachable[stage] = told
            else:
                last = self._scrapes.get(stage)
                if last is not None and last.now.at_s == told.at_s:
                    last.fresh = True  # nothing newer since: the rates are what they were
                else:
                    self._scrapes[stage] = _Metrics(told, last.now if last else None)
        return unreachable

    def _scrape(self, stage: str) -> Scrape | None:
        """What the service told in this very look."""
        known = self._scrapes.get(stage)
        return known.now if known and known.fresh else None

    def _pair(self, stage: str) -> tuple[Scrape, Scrape | None] | None:
        known = self._scrapes.get(stage)
        return (known.now, known.before) if known and known.fresh else None

    def _metrics_report(
        self, look: Look, unreachable: dict[str, str], tx_per_s: float | None
    ) -> MetricsReport | None:
        if look.metrics is None:
            return None
        gateway = self._pair("gateway")
        return MetricsReport(
            latency=latencies(*gateway) if gateway else [],
            failures=failures(self._pair("transactor"), gateway),
            segment=segment(self._scrape("wal"), self._scrape("snapshotter"), tx_per_s),
            unreachable=unreachable,
        )

    def _stage_row(self, stage: str, look: Look, rate: float | None) -> StageRow:
        scrape, good, known = self._scrape(stage), self._good, self._processes.get(stage)
        in_flight = scrape.whole("tallybus_link_in_flight") if scrape else None
        limit = scrape.whole("tallybus_max_in_flight_transactions") if scrape else None
        info = None
        if good is not None:
            info = next((each for each in good.services if each.stage == stage), None)
        restarts = known.restarts if known else 0
        if good is None or info is None:
            return StageRow(
                stage,
                _state(stage, look, None, scrape),
                index=_index(good, stage),
                behind=_behind(good, stage),
                tx_per_s=rate,
                in_flight=in_flight,
                max_in_flight=limit,
                restarts=restarts,
            )
        since_s = max(0.0, look.at_s - good.at_s)
        age_s = info.heard_ms / 1000 + since_s
        state = _state(stage, look, info, scrape)
        known_ns = info.started_ns if info.heard_ms <= SILENT_MS else 0
        up_ns = look.unix_ns - known_ns if known_ns else -1
        index = _index(good, stage)
        return StageRow(
            stage,
            state,
            index=info.index if index is None else index,
            behind=_behind(good, stage),
            tx_per_s=rate,
            retained=info.retained,
            in_flight=in_flight,
            max_in_flight=limit,
            term=info.term,
            pid=info.pid or None,
            incarnation=f"{info.incarnation:016x}",
            restarts=restarts,
            uptime_s=up_ns / 1e9 if up_ns >= 0 and state in ("up", "not ready") else None,
            last_word_s=age_s,
        )

    def _function_rows(self, look: Look) -> list[FunctionRow] | None:
        if look.functions is None:
            return self._functions
        calls = {(each.name, each.version): each.calls for each in look.functions}
        at_s = look.at_s if look.functions_at_s is None else look.functions_at_s
        old_at_s, old = self._calls or (at_s, {})
        seconds = at_s - old_at_s
        rows = []
        for each in look.functions:
            was = old.get((each.name, each.version))
            # Fewer than before: the transactor was started again, and counts from 0.
            new = each.calls if was is None or each.calls < was else each.calls - was
            rows.append(
                FunctionRow(
                    each.name,
                    each.version,
                    each.calls,
                    new / seconds if seconds > 0 else None,
                    {_status_name(status): number for status, number in each.failures.items()},
                    each.fuel_total,
                    each.fuel_mean,
                    each.mean_ns,
                )
            )
        self._calls = at_s, calls
        return sorted(rows, key=lambda row: (-(row.calls_per_s or 0), -row.calls, row.name))


def _rates(now: Look, before: Look | None) -> dict[str, float | None]:
    """Growth of each index per second, by stage; None where it is not known or went back (a lost
    sequencer)."""
    if before is None or before.index is None or now.at_s <= before.at_s:
        return {}
    rates: dict[str, float | None] = {}
    for stage, level in LEVEL_OF.items():
        new: int | None = getattr(now.index, level)
        old: int | None = getattr(before.index, level)
        if new is None or old is None or new < old:
            rates[stage] = None
        else:
            rates[stage] = (new - old) / (now.at_s - before.at_s)
    return rates


def _index(look: Look | None, stage: str) -> int | None:
    """The indexes, each of the same moment where the ledger told them together, so that no gap is
    negative."""
    if look is None or look.index is None or stage not in LEVEL_OF:
        return None
    index: int | None = getattr(look.index, LEVEL_OF[stage])
    return index


def _behind(look: Look | None, stage: str) -> int | None:
    own = _index(look, stage)
    ahead = _index(look, SERVICES[SERVICES.index(stage) - 1])
    # The gateway has no index, so the sequencer is behind nobody.
    return _gap(ahead, own)


def _gap(ahead: int | None, behind: int | None) -> int | None:
    return None if ahead is None or behind is None else max(0, ahead - behind)


def _state(stage: str, look: Look, info: Service | None, scrape: Scrape | None) -> str:
    if look.index is not None:
        if info is None or info.heard_ms > SILENT_MS:
            # A service that recovers is silent, but its metrics may say that it does.
            return "not ready" if scrape and scrape.one("tallybus_ready") == 0 else "down"
    elif stage == "gateway" or look.metrics is None:
        return "down" if stage == "gateway" else "unknown"
    elif scrape is None:
        return "unknown"  # its metrics do not answer either, which alone does not mean down
    return "not ready" if scrape and scrape.one("tallybus_ready") == 0 else "up"


def _status_name(status: Status | int) -> str:
    return status.name if isinstance(status, Status) else f"FUNCTION_{int(status)}"
