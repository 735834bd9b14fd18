"""What the services' metrics say about the pipeline: latencies, failures, the active segment.

Pure: reads no clock and no socket. Rates and percentiles are of the time between two scrapes of
the same service; a counter that went back was started again, and counts from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tallybus.common.view.scrape import Scrape

LEVELS: Final = ("none", "computed", "committed", "snapshot", "read")
"""What a request waits for, in the order shown. The values of a label."""


@dataclass(frozen=True, slots=True)
class LevelRow:
    """Requests that waited for `level`: answers per second, and their times in milliseconds.

    None: no two scrapes yet. Percentiles are None too when nothing was answered in between.
    """

    level: str
    per_s: float | None
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class FailureRow:
    """How often something failed for a reason: since its service started, and per second.

    `what` is "transaction" (executed, with this status) or "request" (refused by the gateway).
    """

    what: str
    reason: str
    total: int
    per_s: float | None


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """How full the active segment of the log is, and the snapshots behind it.

    `full_in_s`: when it is full at the present rate; None when nothing goes in.
    `snapshot_segment`: at whose end the last snapshot was taken, 0 before the first.
    """

    number: int
    transactions: int
    capacity: int
    full_in_s: float | None
    snapshot_segment: int | None
    snapshot_writing: bool | None


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """What the metrics add to the view. `unreachable` says why, by stage, where there are none."""

    latency: list[LevelRow] = field(default_factory=list)
    failures: list[FailureRow] = field(default_factory=list)
    segment: SegmentRow | None = None
    unreachable: dict[str, str] = field(default_factory=dict)


def rate(now: float, before: float | None, seconds: float) -> float | None:
    """Growth of a counter per second; None without two scrapes of different times."""
    if before is None or seconds <= 0:
        return None
    return (now - before if now >= before else now) / seconds


def latencies(now: Scrape, before: Scrape | None) -> list[LevelRow]:
    """Times of the requests that the gateway answered between the two, by what they waited for."""
    rows = []
    for level in LEVELS:
        seen = _buckets(now, level)
        if not seen:
            continue
        if before is None or now.at_s <= before.at_s:
            rows.append(LevelRow(level, None, None, None))
            continue
        old = dict(_buckets(before, level))
        if any(count < old.get(bound, 0) for bound, count in seen):
            old = {}
        new = [(bound, count - old.get(bound, 0)) for bound, count in seen]
        rows.append(
            LevelRow(
                level,
                new[-1][1] / (now.at_s - before.at_s),
                quantile(0.5, new),
                quantile(0.99, new),
            )
        )
    return rows


def _buckets(scrape: Scrape, level: str) -> list[tuple[float, float]]:
    name = "tallybus_request_seconds_bucket"
    return sorted(
        (float(labels.get("le", "inf")), count)
        for labels, count in scrape.values.get(name, ())
        if labels.get("level") == level
    )


def quantile(share: float, buckets: list[tuple[float, float]]) -> float | None:
    """A quantile in milliseconds from cumulative buckets in seconds, as Prometheus computes it.

    Within a bucket values are taken to be spread evenly; of those beyond the last bound only that
    bound is known. None when the buckets are empty.
    """
    total = buckets[-1][1] if buckets else 0
    if total <= 0:
        return None
    wanted = share * total
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted and count > below:
            if math.isinf(bound):
                break
            return 1000 * (low + (bound - low) * (wanted - below) / (count - below))
        low, below = (low if math.isinf(bound) else bound), count
    return 1000 * low


def failures(
    transactor: tuple[Scrape, Scrape | None] | None, gateway: tuple[Scrape, Scrape | None] | None
) -> list[FailureRow]:
    """Failures by reason, the most frequent first; each service's newest scrape and one before."""
    rows: list[FailureRow] = []
    if transactor:
        rows += _failures("transaction", "tallybus_transactions_total", "status", *transactor)
    if gateway:
        rows += _failures("request", "tallybus_requests_total", "outcome", *gateway)
    return sorted(rows, key=lambda row: (-(row.per_s or 0), -row.total, row.what, row.reason))


def _failures(
    what: str, name: str, label: str, now: Scrape, before: Scrape | None
) -> Iterator[FailureRow]:
    old = None if before is None else before.by(name, label)
    for reason, total in now.by(name, label).items():
        if reason != "ok" and total:
            was = None if old is None else old.get(reason, 0.0)
            seconds = 0.0 if before is None else now.at_s - before.at_s
            yield FailureRow(what, reason, int(total), rate(total, was, seconds))


def segment(
    wal: Scrape | None, snapshotter: Scrape | None, tx_per_s: float | None
) -> SegmentRow | None:
    """Progress of the active segment; None where the log's service does not tell it."""
    if wal is None:
        return None
    number = wal.whole("tallybus_log_segment")
    transactions = wal.whole("tallybus_log_segment_transactions")
    capacity = wal.whole("tallybus_log_segment_capacity_transactions")
    if number is None or transactions is None or capacity is None:
        return None
    writing = snapshotter.whole("tallybus_snapshot_writing") if snapshotter else None
    return SegmentRow(
        number,
        transactions,
        capacity,
        max(0, capacity - transactions) / tx_per_s if tx_per_s else None,
        snapshotter.whole("tallybus_snapshot_segment") if snapshotter else None,
        None if writing is None else bool(writing),
    )
