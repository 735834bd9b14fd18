"""Small logs for tests: transactions of every kind that follow from their ids alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tallybus.common.batch import Batch
from tallybus.common.files import Storage
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.wal.block import BlockHeader, Chain
from tallybus.common.wal.reader import BlockScanner, chain_at, read_log
from tallybus.services.wal.log import Log
from tests.support.batches import batch_of

CLUSTER = 0xC0FFEE00C0FFEE01
FOLDER = Path("/data")


def sample_batch(
    first_id: int, count: int, *, term: int = 1, timestamp_ns: int | None = None
) -> Batch:
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
    return batch_of(
        first_id,
        records,
        np.array(links, "<u8"),
        np.array(params, "<i8"),
        np.array(entries, ENTRY_DTYPE),
        term=term,
        timestamp_ns=1_700_000_000_000_000_000 + first_id if timestamp_ns is None else timestamp_ns,
        gateway=11,
        request=first_id,
    )


def plain_batch(first_id: int, count: int, *, term: int = 1, gateway: int = 11) -> Batch:
    """Deposits only: the smallest blocks."""
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.DEPOSIT
    records["amount"] = [first_id + i for i in range(count)]
    records["entry_count"] = 2
    return batch_of(
        first_id, records, term=term, timestamp_ns=first_id, gateway=gateway, request=first_id
    )


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


def joined(batches: Sequence[Batch]) -> Batch:
    """All of them as one batch; checks that their ids have no gaps."""
    for before, after in pairwise(batches):
        assert after.first_id == before.last_id + 1

    def join(parts: list[npt.NDArray[Any]], empty: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate(parts) if parts else empty

    nothing = sample_batch(1, 0)
    return Batch(
        batches[0].first_id if batches else 1,
        join([batch.records for batch in batches], nothing.records),
        join([batch.links for batch in batches], nothing.links),
        join([batch.params for batch in batches], nothing.params),
        join([batch.entries for batch in batches], nothing.entries),
    )


def same(left: Batch, right: Batch) -> bool:
    """Whether the two hold the same transactions with all that belongs to them."""
    return left.first_id == right.first_id and all(
        a.tobytes() == b.tobytes() for a, b in zip(left.parts, right.parts, strict=True)
    )


def assert_log_holds(
    storage: Storage, last_id: int, transactions_per_segment: int, *, folder: Path = FOLDER
) -> None:
    """The log's transactions are exactly the sample's 1 .. last_id."""
    batches = list(read_log(folder, 1, last_id, transactions_per_segment, storage=storage))
    assert same(joined(batches), sample_batch(1, last_id))
