"""Bringing a new engine to the end of the log: snapshot, then replay. Reads files, writes none.

Balances start at the latest valid snapshot, the duplicate window at the older one of its two
segments;
whichever needs the older records decides where reading starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tallybus.common.frames import Results, as_buffer
from tallybus.common.logreader import LogRun, Progress, read_log
from tallybus.common.record import FAILURE_DTYPE, Status
from tallybus.common.snapshot import DamagedSnapshot, load_latest_snapshot
from tallybus.services.transactor.engine import Engine, window_start

TOLD_AGAIN: Final = 1_048_576
"""Transactions at the end of the log whose outcomes are made again: a killed transactor may have
handed them to the log without telling the gateways."""
EACH_BLOCK: Final = 65_536
"""Of those, so many are read block by block, however small the blocks are. Before that, small ones
come gathered, without saying whose they were: what was under way of them is never as much."""


@dataclass(frozen=True, slots=True)
class RecoveredEngine:
    """What recovery made: the engine, recent outcomes in order, snapshots that were passed over."""

    engine: Engine
    results: list[Results]
    rejected: list[DamagedSnapshot]
    replayed: int


class Interrupted(Exception):
    """The service was told to stop while it recovered."""


def recover_engine(
    folder: Path,
    *,
    cluster: int,
    next_id: int,
    term: int,
    incarnation: int,
    max_accounts: int,
    transactions_per_segment: int,
    seed: int,
    progress: Progress | None,
    stopping: Callable[[], bool],
) -> RecoveredEngine:
    """An engine with the state after `next_id - 1`. Raises what the snapshot and log readers
    raise."""
    engine = Engine(max_accounts, transactions_per_segment, seed)
    last = next_id - 1
    snapshot, rejected = load_latest_snapshot(
        folder,
        cluster_id=cluster,
        transactions_per_segment=transactions_per_segment,
        max_accounts=max_accounts,
        durable_index=last,
    )
    if snapshot is not None:
        engine.restore_balances(snapshot.balances, snapshot.touched, snapshot.fields.last_tx_id)
    # From where a duplicate in the tail may be linked to, not only one that is still to come.
    tail = max(1, last - TOLD_AGAIN + 1)
    window_first = window_start(tail, transactions_per_segment)
    first = min(engine.next_id, window_first)
    results: list[Results] = []
    replayed = 0

    def runs() -> Iterator[LogRun]:
        each = max(first, last - EACH_BLOCK + 1)
        yield from read_log(
            folder,
            first,
            each - 1,
            transactions_per_segment,
            cluster_id=cluster,
            progress=progress,
        )
        yield from read_log(
            folder, each, last, transactions_per_segment, cluster_id=cluster, merge_small=False
        )

    for run in runs():
        if stopping():
            raise Interrupted
        # No run crosses a segment's end, and both starting points are at one.
        engine.apply(
            run.records,
            run.first_id,
            run.entries,
            balances=run.first_id >= engine.next_id,
            window=run.first_id >= window_first,
        )
        replayed += len(run.records)
        if run.first_id < tail:
            continue
        if run.header.first_id <= run.first_id:
            results.append(_results(run, engine, term, incarnation))
        else:
            results.clear()  # of several blocks; what is kept must be without a gap
    return RecoveredEngine(engine, results, rejected, replayed)


def _results(run: LogRun, engine: Engine, term: int, incarnation: int) -> Results:
    failed = np.flatnonzero(run.records["status"])
    failures = np.zeros(len(failed), FAILURE_DTYPE)
    failures["offset"] = failed
    failures["status"] = run.records["status"][failed]
    duplicates = np.flatnonzero(failures["status"] == Status.DUPLICATE)
    failures["duplicate_of"][duplicates] = run.links
    for place, first in zip(duplicates.tolist(), run.links.tolist(), strict=True):
        failures["original_status"][place] = engine.window.status_of(first)
    return Results(
        term=term,
        incarnation=incarnation,
        first=run.first_id,
        count=len(run.records),
        batches=[
            [run.header.gateway, run.header.request, run.first_id, len(run.records), len(failed)]
        ],
        failures=as_buffer(failures),
    )
