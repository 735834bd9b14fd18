"""Many simulated runs, in this process or in several, and what they add up to."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from tests.simulation.pipeline import Report, simulate
from tests.simulation.world import SimulationFailure

SEEDS_AT_ONCE = 4
"""Handed to another process at a time."""


class Outcome(NamedTuple):
    """Of one run: its report, or why it failed."""

    seed: int
    report: Report | None
    failure: str


@dataclass
class Totals:
    """What runs add up to. `seconds` is the time that they took together."""

    runs: int = 0
    steps: int = 0
    transactions: int = 0
    committed: int = 0
    completed: int = 0
    lost: int = 0
    virtual_seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)

    def add(self, report: Report) -> None:
        self.runs += 1
        self.steps += report.steps
        self.transactions += report.transactions
        self.committed += report.committed
        self.completed += report.completed
        self.lost += report.lost
        self.virtual_seconds += report.virtual_seconds
        self.faults.update(report.faults)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def lines(self) -> list[str]:
        """For people."""
        seconds = max(self.seconds, 1e-9)
        injected = sum(count for name, count in self.faults.items() if not _is_answer(name))
        found = [f"{self.runs} runs, {self.steps} steps, {self.virtual_seconds:.0f} s simulated"]
        found.append(f"in {seconds:.1f} s: {self.runs / seconds:.1f} runs/s")
        found.append(
            f"{self.transactions} transactions in the logs, "
            f"{self.transactions / seconds:.0f} simulated transactions/s"
        )
        found.append(
            f"{self.completed} requests answered, {self.committed} transactions acknowledged as "
            f"committed, {self.lost} told below COMMITTED and lost"
        )
        found.append(f"{injected} faults:")
        found += [
            f"  {name}: {n}" for name, n in sorted(self.faults.items()) if not _is_answer(name)
        ]
        found.append("errors that clients were told:")
        found += [f"  {name}: {n}" for name, n in sorted(self.faults.items()) if _is_answer(name)]
        return found


def _is_answer(name: str) -> bool:
    return name.startswith("answer ")


def attempt(seed: int, flavour: str | None = None, steps: int | None = None) -> Outcome:
    """One run; a violation is an outcome."""
    try:
        return Outcome(seed, simulate(seed, flavour, steps), "")
    except SimulationFailure as failure:
        return Outcome(seed, None, str(failure))


@contextmanager
def outcomes(
    seeds: Sequence[int], flavour: str | None, steps: int | None, jobs: int
) -> Iterator[Iterable[Outcome]]:
    """The outcomes of all seeds; with several jobs in the order in which they come."""
    run = partial(attempt, flavour=flavour, steps=steps)
    if jobs == 1:
        yield map(run, seeds)
        return
    # Fresh interpreters: nothing of this one's state can reach a run.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield pool.imap_unordered(run, seeds, SEEDS_AT_ONCE)
