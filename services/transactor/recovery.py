"""Bringing a new engine to the end of the log: snapshot, then replay. Reads files, writes none.

Balances start at the latest valid snapshot, the duplicate window at the older one of its two
segments; whichever needs the older records decides where reading starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tallybus.common.batch import Batch
from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import Results
from tallybus.common.functions.binaries import read_binary
from tallybus.common.functions.registry import FunctionRegistry, FunctionVersion, registrations
from tallybus.common.record import FAILURE_DTYPE, Status
from tallybus.common.snapshot.balances import DamagedSnapshot, load_latest_snapshot
from tallybus.common.wal.reader import Progress, read_log
from tallybus.services.transactor.engine import Engine, window_start
from tallybus.services.transactor.functions.codefiles import CodeFiles
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.registrar import Registrar
from tallybus.services.transactor.warm import warm_for_replay

TOLD_AGAIN: Final = 1_048_576
"""So many transactions at the end of the log have their outcomes made again. A killed transactor
may have handed them to the log without telling the gateways."""
EACH_BLOCK: Final = 65_536
"""At least so many of these outcomes are told, however small the blocks are. Small blocks before
them are passed over, because so many were never under way."""
BATCHES_TOLD: Final = 1_024
"""Most batches of one message of outcomes."""


@dataclass(frozen=True, slots=True)
class RecoveredEngine:
    """What recovery made: the engine, its functions, recent outcomes in order, snapshots that were
    passed over, functions that cannot run here with the reasons; and the last transaction's time.
    """

    engine: Engine
    registrar: Registrar
    results: list[Results]
    rejected: list[DamagedSnapshot]
    replayed: int
    unusable: list[tuple[FunctionVersion, str]]
    stamp: int


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
    limits: FunctionLimits,
    progress: Progress | None,
    stopping: Callable[[], bool],
    compiling: Progress | None = None,
    code_files: CodeFiles | None = None,
) -> RecoveredEngine:
    """An engine with the state after `next_id - 1`. Raises what the snapshot and log readers raise,
    and BinaryDamaged. `code_files`: where machine code of functions is kept."""
    engine = Engine(max_accounts, transactions_per_segment, seed, limits)
    last = next_id - 1
    snapshot, rejected = load_latest_snapshot(
        folder,
        cluster_id=cluster,
        transactions_per_segment=transactions_per_segment,
        max_accounts=max_accounts,
        durable_index=last,
        fast=True,
    )
    registry = FunctionRegistry()
    if snapshot is not None:
        engine.restore_balances(snapshot.balances, snapshot.touched, snapshot.fields.last_tx_id)
        registry = snapshot.functions
    # From where a duplicate in the tail may be linked to, not only one that is still to come.
    tail = max(1, last - TOLD_AGAIN + 1)
    window_first = window_start(tail, transactions_per_segment)
    first = min(engine.next_id, window_first)
    warm_for_replay(engine.window, last - window_first + 1)
    results: list[Results] = []
    replayed = stamp = 0

    def batches() -> Iterator[Batch]:
        each = max(first, last - EACH_BLOCK + 1)
        yield from read_log(
            folder,
            first,
            each - 1,
            transactions_per_segment,
            cluster_id=cluster,
            progress=progress,
        )
        yield from read_log(folder, each, last, transactions_per_segment, cluster_id=cluster)

    for batch in batches():
        if stopping():
            raise Interrupted
        # No batch crosses a segment's end, and both starting points are at one.
        if batch.first_id >= engine.next_id:
            for version in registrations(batch):
                registry.apply(version)
        engine.apply(
            batch,
            balances=batch.first_id >= engine.next_id,
            window=batch.first_id >= window_first,
        )
        replayed += batch.count
        stamp = batch.timestamp_ns
        if batch.first_id < tail:
            continue
        if batch.sources is None or batch.first_id > last - EACH_BLOCK:
            results.extend(_results(batch, engine, term, incarnation))
        else:
            results.clear()  # of several blocks; what is kept must be without a gap
    registrar = Registrar(engine, limits, code_files)

    def begins(done: int, total: int) -> None:
        if stopping():
            raise Interrupted
        if compiling is not None:
            compiling(done, total)

    try:
        binaries, binaries_bytes = live_binaries(folder, registry)
        unusable = registrar.restore(registry, binaries, begins, binaries_bytes)
    except BaseException:
        registrar.close()
        raise
    return RecoveredEngine(engine, registrar, results, rejected, replayed, unusable, stamp)


def live_binaries(folder: Path, registry: FunctionRegistry) -> tuple[dict[int, bytes], int]:
    """The binary of each live function, by the transaction that registered it; and the bytes of all
    versions. Those that are not live must be there, too: they tell what ran.

    Raises BinaryDamaged.
    """
    live = {version.transaction_id for version in registry.all_live()}
    binaries: dict[int, bytes] = {}
    size = 0
    for version in registry.versions():
        binary = read_binary(folder, version.name, version.version, version.crc32c)
        size += len(binary)
        if version.transaction_id in live:
            binaries[version.transaction_id] = binary
    return binaries, size


def _results(batch: Batch, engine: Engine, term: int, incarnation: int) -> Iterator[Results]:
    """Outcomes of a batch's transactions, in order."""
    failed = np.flatnonzero(batch.records["status"])
    failures = np.zeros(len(failed), FAILURE_DTYPE)
    failures["offset"] = failed
    failures["status"] = batch.records["status"][failed]
    failures["reason"] = batch.records["reason"][failed]
    duplicates = np.flatnonzero(failures["status"] == Status.DUPLICATE)
    failures["duplicate_of"][duplicates] = batch.links
    for place, first in zip(duplicates.tolist(), batch.links.tolist(), strict=True):
        failures["original_status"][place] = engine.window.status_of(first)
    whose = batch.sources
    if whose is None:
        sender = (batch.gateway, batch.request, batch.first_id, batch.count)
        whose = np.array([sender], np.uint64)
    for at in range(0, len(whose), BATCHES_TOLD):
        part = whose[at : at + BATCHES_TOLD]
        starts = part[:, 2].astype(np.int64) - batch.first_id
        ends = starts + part[:, 3].astype(np.int64)
        low, high = np.searchsorted(failed, starts), np.searchsorted(failed, ends)
        own = failures[low[0] : high[-1]]
        own["offset"] -= np.repeat(starts, high - low).astype(np.uint32)
        yield Results(
            term=term,
            incarnation=incarnation,
            first=batch.first_id + int(starts[0]),
            count=int(ends[-1] - starts[0]),
            batches=np.column_stack((part, (high - low).astype(np.uint64))).tolist(),
            failures=as_buffer(own),
        )
