"""Whoever waits for a level, or reads with `min_tx_id`, sees exactly what that promises."""

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from tallybus import (
    AsyncClient,
    Client,
    Deposit,
    Stage,
    Status,
    Timeout,
    Transfer,
    WaitLevel,
    Withdrawal,
    deposits,
)
from tallybus.errors import TallybusError
from tests.processes.pipeline import PATIENCE_S, Pipeline, assert_balances, replay

WRITERS = 4


def last_id(pipeline: Pipeline) -> int:
    with pipeline.client() as client:
        return client.pipeline_index().sequenced


def assert_as_replayed(pipeline: Pipeline) -> None:
    with pipeline.client() as client:
        last = client.pipeline_index().sequenced
        client.wait_for(last, WaitLevel.SNAPSHOT)
        assert_balances(client, replay(pipeline.settings, last).oracle, 300, last)


def run_all(workers: list[Callable[[], None]]) -> None:
    """Run each in a thread of its own; the first error is raised here."""
    errors: list[Exception] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except (TallybusError, AssertionError) as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_concurrent_clients_read_what_they_wrote(pipeline: Pipeline) -> None:
    def writer(number: int) -> None:
        account, held = 10 + number, 0
        with pipeline.client() as client:
            for round_ in range(40):
                result = client.submit_and_wait(Deposit(account, 7), WaitLevel.COMPUTED)
                held += 7
                if round_ % 3 == 0:
                    result = client.submit_and_wait(Withdrawal(account, 2), WaitLevel.COMMITTED)
                    held -= 2
                balance = client.get_balance(account, min_tx_id=result.tx_id)
                assert balance.balance == held
                assert balance.last_snapshot_tx_id >= result.tx_id
                status = client.get_status(result.tx_id, min_tx_id=result.tx_id)
                assert (status.stage, status.status) == (Stage.ON_SNAPSHOT, Status.NONE)

    before = last_id(pipeline)
    run_all([lambda n=number: writer(n) for number in range(WRITERS)])  # type: ignore[misc]
    assert last_id(pipeline) == before + WRITERS * (40 + 14)
    assert_as_replayed(pipeline)


def test_after_snapshot_every_other_client_sees_it_without_asking_for_it(
    pipeline: Pipeline,
) -> None:
    with pipeline.client() as writer, pipeline.client() as reader:
        held = 0
        for number in range(40):
            batch = deposits([205] * (1 + number), 3)
            result = writer.submit_batch(batch, WaitLevel.SNAPSHOT)
            assert result.level == WaitLevel.SNAPSHOT
            held += 3 * len(batch)
            balance = reader.get_balance(205)
            assert balance.balance == held
            assert balance.last_snapshot_tx_id == result.first_tx_id + number


@pytest.mark.parametrize("level", list(WaitLevel))
def test_an_answer_comes_when_its_level_was_reached_and_not_before(
    level: WaitLevel, pipeline: Pipeline
) -> None:
    before = last_id(pipeline)
    with pipeline.client() as client:
        for number in range(before + 1, before + 30):
            result = client.submit_and_wait(Deposit(206, 1), level)
            assert result.level == level
            assert result.tx_id == number
            index = client.pipeline_index()
            reached = {
                WaitLevel.NONE: index.sequenced,
                WaitLevel.COMPUTED: index.computed,
                WaitLevel.COMMITTED: index.committed,
                WaitLevel.SNAPSHOT: index.snapshot,
            }[level]
            assert reached >= number
            assert index.sequenced >= index.computed
            assert index.computed >= index.committed >= index.snapshot


def test_indexes_only_grow_and_stay_in_order_under_load(pipeline: Pipeline) -> None:
    stop = threading.Event()

    def write() -> None:
        with pipeline.client() as client:
            for _ in range(150):
                client.submit_batch(deposits(np.arange(300, 500), 1), WaitLevel.COMPUTED)
        stop.set()

    def watch() -> None:
        with pipeline.client() as client:
            before = client.pipeline_index()
            while not stop.is_set():
                index = client.pipeline_index()
                assert index.sequenced >= index.computed >= index.committed >= index.snapshot
                assert index.sequenced >= before.sequenced
                assert index.computed >= before.computed
                assert index.committed >= before.committed
                assert index.snapshot >= before.snapshot
                assert index.term == before.term
                before = index

    run_all([write, watch, watch])


def test_all_balances_of_one_read_are_of_the_same_moment(pipeline: Pipeline) -> None:
    """Transfers go round among accounts; whoever reads all of them always sees the same sum."""
    accounts = np.arange(601, 651)
    stop = threading.Event()

    def write(seed: int) -> None:
        random_ = np.random.default_rng(seed)
        with pipeline.client() as client:
            for _ in range(100):
                pairs = random_.integers(601, 651, (40, 2)).tolist()
                batch = [Transfer(a, b, 1 + a % 9) for a, b in pairs]
                client.submit_batch(batch, WaitLevel.COMPUTED)
        stop.set()

    def read() -> None:
        with pipeline.client() as client:
            while not stop.is_set():
                assert client.get_balances(accounts).balances.sum() == 50_000
                assert sum(client.get_balances(np.arange(1_000)).balances.tolist()) == 0

    with pipeline.client() as client:
        client.submit_batch(deposits(accounts, 1_000), WaitLevel.SNAPSHOT)
    run_all([lambda: write(1), lambda: write(2), read])


def test_64_concurrent_submitters_of_one_async_client(pipeline: Pipeline) -> None:
    async def submit(client: AsyncClient, number: int) -> list[int]:
        ids = []
        account, held = 100 + number, 0
        for round_ in range(15):
            ref = 1 + number * 1_000 + round_
            result = await client.submit_and_wait(Deposit(account, 1 + round_, user_ref=ref))
            assert result.ok
            assert result.level == WaitLevel.COMMITTED
            held += 1 + round_
            ids.append(result.tx_id)
            if round_ % 5 == 4:
                again = await client.submit_and_wait(Deposit(account, 1 + round_, user_ref=ref))
                assert again.status == Status.DUPLICATE
                assert again.tx_id == again.duplicate_of == result.tx_id
                balance = await client.get_balance(account, min_tx_id=result.tx_id)
                assert balance.balance == held
        return ids

    async def run() -> list[list[int]]:
        async with AsyncClient(pipeline.endpoint, timeout=PATIENCE_S) as client:
            return await asyncio.gather(*(submit(client, number) for number in range(64)))

    before = last_id(pipeline)
    ids = asyncio.run(run())
    assert all(each == sorted(each) for each in ids), "a client's ids rise in its order"
    flat = [one for each in ids for one in each]
    assert len(set(flat)) == 64 * 15
    assert last_id(pipeline) == before + 64 * 18
    assert_as_replayed(pipeline)


def test_reads_and_waits_for_what_is_not_there_yet_wait_and_then_time_out(
    pipeline: Pipeline,
) -> None:
    with pipeline.client() as client:
        last = client.submit_and_wait(Deposit(700, 1), WaitLevel.SNAPSHOT).tx_id
        with pytest.raises(Timeout):
            client.get_balance(700, min_tx_id=last + 1, timeout=0.3)
        with pytest.raises(Timeout):
            client.get_status(last, min_tx_id=last + 1, timeout=0.3)
        with pytest.raises(Timeout):
            client.wait_for(last + 1, WaitLevel.COMPUTED, timeout=0.3)
        assert client.get_status(last + 1).stage == Stage.UNKNOWN

        seen: list[int] = []

        def read_later() -> None:
            with Client(pipeline.endpoint, timeout=PATIENCE_S) as other:
                seen.append(other.get_balance(700, min_tx_id=last + 2).balance)
                assert other.wait_for(last + 2, WaitLevel.COMMITTED) >= WaitLevel.COMMITTED

        def write() -> None:
            client.submit_and_wait(Deposit(700, 10))
            client.submit_and_wait(Deposit(700, 100))

        run_all([read_later, write])
        assert seen == [111]
