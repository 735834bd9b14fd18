"""Outcomes that a starting transactor makes again from the log, however its blocks come."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tallybus.common.bus.messages import Results
from tallybus.common.files import Storage
from tallybus.common.record import FAILURE_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.wal import reader
from tallybus.services.transactor import recovery
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.recovery import recover_engine
from tallybus.services.wal.log import Log

SEGMENT = 3_000
ACCOUNTS = 100
CLUSTER = 77


def operations(random_: np.random.Generator, count: int) -> NDArray[np.void]:
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = random_.choice([Kind.DEPOSIT, Kind.TRANSFER, Kind.WITHDRAWAL], count)
    records["account"] = random_.integers(1, ACCOUNTS, count)
    records["counterparty"] = random_.integers(1, ACCOUNTS, count)
    records["amount"] = random_.integers(1, 50, count)
    records["user_ref"] = random_.integers(1, 2_000, count)  # so that many are duplicates
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 5,000 transactions, most of them in blocks of one to three."""
    folder = tmp_path_factory.mktemp("log")
    random_ = np.random.default_rng(1)
    engine = Engine(ACCOUNTS, SEGMENT, 1)
    log = Log.open(folder, Storage(), SEGMENT, CLUSTER)
    requests = {11: 0, 12: 0}
    while log.next_id <= 5_000:
        count = 400 if random_.random() < 0.002 else int(random_.integers(1, 4))
        done = engine.execute(operations(random_, count), log.next_id)
        gateway = int(random_.choice([11, 12]))
        requests[gateway] += 1
        log.append(
            replace(
                done.batch,
                term=1,
                timestamp_ns=log.next_id,
                gateway=gateway,
                request=requests[gateway],
            ),
            log.next_id - 1,
        )
    log.sync()
    log.close()
    return folder


def recovered(folder: Path, next_id: int) -> list[Results]:
    results = recover_engine(
        folder,
        cluster=CLUSTER,
        next_id=next_id,
        term=3,
        incarnation=5,
        max_accounts=ACCOUNTS,
        transactions_per_segment=SEGMENT,
        seed=9,
        limits=FunctionLimits(),
        progress=None,
        stopping=lambda: False,
    ).results
    following = results[0].first
    for each in results:
        assert (each.term, each.incarnation) == (3, 5)
        assert each.first == following, "no gap"
        following += each.count
    assert following == next_id
    return results


def told(results: list[Results]) -> tuple[list[list[int]], NDArray[np.void]]:
    """Whose the transactions are, and what failed, by transaction id."""
    failures = []
    for each in results:
        part = np.frombuffer(each.failures, FAILURE_DTYPE).copy()
        # Offsets count from the first id of their own batch.
        firsts = np.repeat([row[2] for row in each.batches], [row[4] for row in each.batches])
        counts = np.repeat([row[3] for row in each.batches], [row[4] for row in each.batches])
        assert len(firsts) == len(part)
        assert (part["offset"] < counts).all()
        part["offset"] += firsts.astype(np.uint32)
        failures.append(part)
    return [row for each in results for row in each.batches], np.concatenate(failures)


@pytest.mark.parametrize("last", [5_000, 3_000, 2_999, 1])
def test_small_blocks_tell_the_same_gathered_as_one_by_one(
    last: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SMALL_BLOCKS_BEFORE_KERNEL", 1)
    gathered = recovered(folder, last + 1)
    monkeypatch.setattr(reader.KernelPolicy, "get", lambda _: None)
    one_by_one = recovered(folder, last + 1)
    assert told(gathered)[0] == told(one_by_one)[0]
    assert (told(gathered)[1] == told(one_by_one)[1]).all()
    if last == 5_000:
        assert len(gathered) < len(one_by_one) / 100
        assert (told(gathered)[1]["status"] == Status.DUPLICATE).sum() > 100


def test_of_older_small_blocks_nothing_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "SMALL_BLOCKS_BEFORE_KERNEL", 1)
    monkeypatch.setattr(recovery, "EACH_BLOCK", 100)
    batches, _ = told(recovered(folder, 5_001))
    assert batches[0][2] <= 4_901, "the last hundred at least"
    assert all(count > 3 for _, _, first, count, _ in batches if first < 4_901), "only large ones"
