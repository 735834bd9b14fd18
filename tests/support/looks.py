"""Looks at a ledger that are made up, and the report that people are shown of them."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from tallybus.cli.top import METRICS_HINT
from tallybus.cli.topdraw import frame
from tallybus.common.stages import SERVICES
from tallybus.common.view.pipeline import Look, PipelineView, Report, StageRow
from tallybus.common.view.scrape import Scrape, parse
from tallybus.functions import FunctionInfo
from tallybus.operations import Status
from tallybus.pipeline import PipelineIndex, ServiceInfo

NOW_NS = 1_700_000_000_000_000_000


STARTED_NS = NOW_NS - 90_000_000_000


def service(stage: str, **changes: Any) -> ServiceInfo:
    facts: dict[str, Any] = {
        "stage": stage,
        "pid": 100,
        "incarnation": 7,
        "term": 1,
        "index": 50,
        "next": 51,
        "durable": 50,
        "retained": 5,
        "started_ns": STARTED_NS,
        "heard_ms": 40,
        "cpu": "",
        "wait": "block",
    }
    return ServiceInfo(**(facts | changes))


def function(calls: int, **changes: Any) -> FunctionInfo:
    facts: dict[str, Any] = {
        "name": "fee",
        "version": 1,
        "crc32c": 9,
        "tx_id": 3,
        "calls": calls,
        "failures": {Status.INSUFFICIENT_FUNDS: 2, 130: 1},
        "fuel_total": 28 * calls,
        "fuel_limit": 1000,
        "mean_ns": 81.5,
    }
    return FunctionInfo(**(facts | changes))


def sample(at_s: float, committed: int = 50, **changes: Any) -> Look:
    """A look at a ledger that is well, two transactions behind at each stage."""
    facts: dict[str, Any] = {
        "index": PipelineIndex(committed + 4, committed + 2, committed, committed - 2, 1),
        "services": tuple(service(stage) for stage in SERVICES),
        "functions": (),
    }
    return Look(at_s, NOW_NS + int(at_s * 1e9), **(facts | changes))


def lost(at_s: float, **changes: Any) -> Look:
    return Look(at_s, NOW_NS + int(at_s * 1e9), error="no answer", **changes)


def shown(*looks: Look) -> Report:
    view = PipelineView(METRICS_HINT)
    return [view.add(each) for each in looks][-1]


def row(report: Report, stage: str) -> StageRow:
    return next(each for each in report.stages if each.stage == stage)


def replaced(stage: str, **changes: Any) -> tuple[ServiceInfo, ...]:
    """The services, one of them with other facts."""
    return tuple(service(each, **(changes if each == stage else {})) for each in SERVICES)


def drawn(report: Report, view: PipelineView | None = None, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    history = list(view.history) if view else []
    console.print(frame(report, history, "tcp://x", width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


GATEWAY = """\
# HELP tallybus_request_seconds Time
# TYPE tallybus_request_seconds histogram
tallybus_request_seconds_bucket{le="0.001",level="committed",stage="gateway"} {fast}
tallybus_request_seconds_bucket{le="0.002",level="committed",stage="gateway"} {all}
tallybus_request_seconds_bucket{le="+Inf",level="committed",stage="gateway"} {all}
tallybus_request_seconds_bucket{le="+Inf",level="read",stage="gateway"} 4.0
tallybus_requests_total{outcome="ok",stage="gateway",type="submit"} 900.0
tallybus_requests_total{outcome="overloaded",stage="gateway",type="submit"} {refused}
tallybus_ready{stage="gateway"} 1.0
tallybus_link_in_flight{stage="gateway"} 3.0
tallybus_max_in_flight_transactions{stage="gateway"} 10.0
"""
TRANSACTOR = """\
tallybus_transactions_total{kind="transfer",stage="transactor",status="ok"} 800.0
tallybus_transactions_total{kind="transfer",stage="transactor",status="duplicate"} {failed}
tallybus_transactions_total{kind="deposit",stage="transactor",status="duplicate"} 1.0
tallybus_transactions_total{kind="deposit",stage="transactor",status="quota_exceeded"} 0.0
tallybus_ready{stage="transactor"} 0.0
"""
WAL = """\
tallybus_log_segment{stage="wal"} 4.0
tallybus_log_segment_transactions{stage="wal"} 250000.0
tallybus_log_segment_capacity_transactions{stage="wal"} 1e+06
"""
SNAPSHOTTER = """\
tallybus_snapshot_segment{stage="snapshotter"} 3.0
tallybus_snapshot_writing{stage="snapshotter"} 1.0
"""


def metrics(at_s: float, **numbers: object) -> dict[str, Scrape | str]:
    """Scrapes of four services; the sequencer's does not answer."""
    texts = {"gateway": GATEWAY, "transactor": TRANSACTOR, "wal": WAL, "snapshotter": SNAPSHOTTER}
    given = {"fast": 0, "all": 0, "refused": 0, "failed": 0} | numbers
    found: dict[str, Scrape | str] = {"sequencer": "127.0.0.1:1: refused"}
    for stage, text in texts.items():
        for name, value in given.items():
            text = text.replace(f"{{{name}}}", str(value))
        found[stage] = parse(text, at_s)
    return found


def measured() -> Report:
    first = metrics(1, fast=100, all=100, refused=5, failed=10)
    second = metrics(3, fast=160, all=200, refused=5, failed=30)
    return shown(sample(1, 1000, metrics=first), sample(3, 151_000, metrics=second))
