"""Small logs for tests: transactions of every kind that follow from their ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tallybus.common.files import Storage
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.wal.batch import Payload, make_payload
from tallybus.common.wal.block import BlockHeader, Chain
from tallybus.common.wal.reader import BlockScanner, LogRun, chain_at, read_log
from tallybus.services.wal.log import Log, LogBatch

CLUSTER = 0xC0FFEE00C0FFEE01
FOLDER = Path("/data")


def sample_payload(first_id: int, count: int) -> Payload:
    """Transactions first_id .. first_id+count-1: built-ins, duplicates, functions with extras."""
    records = np.zeros(count, RECORD_DTYPE)
    links: list[int] = []
    params: list[int] = []
    entries: list[tuple[int, int]] = []
    for i in range(count):
        tx = first_id + i
        record = records[i]
        record["user_ref"] = tx * 7
        record["account"] = tx
        match tx % 5:
            case 0:
                record["kind"], record["amount"], record["entry_count"] = Kind.DEPOSIT, 100 + tx, 2
            case 1:
                record["kind"], record["amount"] = Kind.TRANSFER, 5
                record["status"] = Status.DUPLICATE
                links.append(max(tx - 1, 1))
            case 2:
                words = tx % 9
                record["kind"], record["function"] = Kind.FUNCTION, 0xABCD0000 + tx
                record["amount"], record["entry_count"] = words, 2
                params += [tx * 1000 - word for word in range(words)]
                entries += [(tx, 50), (0, -50)]
            case 3:
                record["kind"], record["status"], record["amount"] = Kind.FUNCTION, 130, 1
                params.append(-tx)
            case _:
                record["kind"], record["amount"] = Kind.FUNCTION_REGISTERED, 2
                params += [0x61626364, tx]
    return make_payload(
        records,
        np.array(links, "<u8"),
        np.array(params, "<i8"),
        np.array(entries, ENTRY_DTYPE),
    )


def sample_batch(first_id: int, count: int, *, term: int = 1) -> LogBatch:
    payload = sample_payload(first_id, count)
    return LogBatch(term, first_id, 1_700_000_000_000_000_000 + first_id, 11, first_id, *payload)


def plain_payload(first_id: int, count: int) -> Payload:
    """Deposits only: the smallest blocks."""
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.DEPOSIT
    records["amount"] = [first_id + i for i in range(count)]
    records["entry_count"] = 2
    return make_payload(records)


def plain_batch(first_id: int, count: int, *, term: int = 1, gateway: int = 11) -> LogBatch:
    return LogBatch(term, first_id, first_id, gateway, first_id, *plain_payload(first_id, count))


def make_log(
    storage: Storage,
    sizes: Sequence[int],
    transactions_per_segment: int,
    *,
    folder: Path = FOLDER,
    cluster: int = CLUSTER,
    clean: bool = True,
    synced: bool = True,
) -> None:
    """A log of batches of these sizes. synced: each one is durable before the next is appended."""
    log = Log.open(folder, storage, transactions_per_segment, cluster)
    durable = log.next_id - 1
    for size in sizes:
        log.append(sample_batch(log.next_id, size), durable)
        if synced:
            log.sync()
            durable = log.next_id - 1
    if clean:
        log.close()
    else:
        log.abandon()


def headers_of(
    data: bytes, segment: int, transactions_per_segment: int, cluster: int | None = None
) -> list[BlockHeader]:
    """The headers of a whole valid segment file."""
    chain: Chain = chain_at(segment, transactions_per_segment, cluster)
    scanner = BlockScanner(memoryview(data), chain)
    headers = []
    while not scanner.at_end:
        headers.append(scanner.step())
    return headers


def joined(runs: Sequence[LogRun]) -> Payload:
    """All runs as one payload; checks that their ids have no gaps."""
    for before, after in pairwise(runs):
        assert after.first_id == before.last_id + 1

    def join(parts: list[npt.NDArray[Any]], empty: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate(parts) if parts else empty

    nothing = sample_payload(1, 0)
    return Payload(
        join([run.records for run in runs], nothing.records),
        join([run.links for run in runs], nothing.links),
        join([run.params for run in runs], nothing.params),
        join([run.entries for run in runs], nothing.entries),
    )


def same(left: Payload, right: Payload) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


def assert_log_holds(
    storage: Storage, last_id: int, transactions_per_segment: int, *, folder: Path = FOLDER
) -> None:
    """The log's transactions are exactly the sample's 1 .. last_id."""
    runs = list(read_log(folder, 1, last_id, transactions_per_segment, storage=storage))
    assert same(joined(runs), sample_payload(1, last_id))
