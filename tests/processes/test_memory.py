"""What the services hold in memory: little at rest, and nothing for a limit that is not used."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tallybus import WaitLevel, deposits
from tests.processes.pipeline import PATIENCE_S, Pipeline

MIB = 1024 * 1024
BOUND = 700 * 10**6
SETTLED_LOOKS = 3
BATCH = 50_000


@dataclass(frozen=True)
class Memory:
    """RSS and PSS by service, in bytes. In the sum of RSS, shared pages count once per process."""

    rss: dict[str, int]
    pss: dict[str, int]

    @property
    def total_rss(self) -> int:
        return sum(self.rss.values())

    def __str__(self) -> str:
        def told(values: dict[str, int]) -> str:
            parts = ", ".join(f"{name} {value / MIB:.0f}" for name, value in values.items())
            return f"{sum(values.values()) / MIB:.0f} MiB ({parts})"

        return f"RSS {told(self.rss)}; PSS {told(self.pss)}"


def memory_of(pipeline: Pipeline) -> Memory:
    rss, pss = {}, {}
    for name, pid in pipeline.pids().items():
        assert pid, f"the {name} does not run"
        fields = {}
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
            field, value, _ = line.split()
            fields[field] = int(value) * 1024
        rss[name], pss[name] = fields["Rss:"], fields["Pss:"]
    return Memory(rss, pss)


def settled_memory(pipeline: Pipeline) -> Memory:
    """What they hold once they are idle: some memory is only brought in when nothing is to do."""
    limit = time.monotonic() + PATIENCE_S
    latest, same = memory_of(pipeline), 0
    while same < SETTLED_LOOKS:
        assert time.monotonic() < limit, f"still changing: {latest}"
        time.sleep(0.4)
        now = memory_of(pipeline)
        same = same + 1 if abs(now.total_rss - latest.total_rss) < MIB else 0
        latest = now
    return latest


def test_a_million_accounts_take_less_than_700_mb_also_after_a_restart(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    pipeline = start_pipeline()
    accounts = np.arange(1, 1_000_001, dtype=np.uint64)
    with pipeline.client() as client:
        for start in range(0, len(accounts), BATCH):
            part = accounts[start : start + BATCH]
            result = client.submit_batch(deposits(part, 100, part), WaitLevel.COMMITTED)
            assert result.ok_count == len(part)
        assert client.get_balance(1_000_000, min_tx_id=len(accounts)).balance == 100
    loaded = settled_memory(pipeline)
    assert loaded.total_rss < BOUND, f"after loading: {loaded}"

    pipeline.supervisor.stop()
    again = start_pipeline()
    with again.client() as client:
        assert client.get_balance(1_000_000, min_tx_id=len(accounts)).balance == 100
        assert client.pipeline_index().snapshot == len(accounts)
    recovered = settled_memory(again)
    assert recovered.total_rss < BOUND, f"after recovery: {recovered}"
    print(f"1 million accounts, loaded: {loaded}; recovered: {recovered}")


def test_the_largest_limit_of_accounts_costs_nothing_until_used(
    start_pipeline: Callable[..., Pipeline],
) -> None:
    measured = []
    for folder, limit in (("few", 1_000), ("many", 2**32)):
        pipeline = start_pipeline(folder, ledger__max_accounts=limit)
        with pipeline.client() as client:
            # The highest and the lowest account that there is: only their pages are touched.
            result = client.submit_batch(deposits([1, limit - 1], [5, 7]), WaitLevel.SNAPSHOT)
            assert result.ok_count == 2
            balances = client.get_balances([0, 1, limit - 1], min_tx_id=2)
            assert balances.balances.tolist() == [-12, 5, 7]
            # Far apart: with huge pages each would take two of 2 MiB.
            apart = np.linspace(2, limit - 2, 200, dtype=np.uint64)
            assert client.submit_batch(deposits(apart, 1), WaitLevel.SNAPSHOT).ok_count == 200
        measured.append(settled_memory(pipeline))
        pipeline.supervisor.stop()
    few, many = measured
    assert many.total_rss - few.total_rss < 25 * MIB, f"few: {few}; many: {many}"
    assert many.total_rss < BOUND, str(many)
