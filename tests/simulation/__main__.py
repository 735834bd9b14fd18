"""`python -m tests.simulation --seeds N [--seed S] [--flavour F] [--steps K]`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from tests.simulation.pipeline import FLAVOURS, simulate
from tests.simulation.world import SimulationFailure


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of them")
    parser.add_argument("--seed", type=int, help="this run alone, with the whole traceback")
    parser.add_argument(
        "--flavour", choices=FLAVOURS, help="instead of the one that the seed chooses"
    )
    parser.add_argument("--steps", type=int, help="instead of the number that the seed chooses")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--keep-going", action="store_true", help="also after a failure")
    options = parser.parse_args()
    seeds = (
        range(options.first, options.first + options.seeds)
        if options.seed is None
        else [options.seed]
    )
    faults: Counter[str] = Counter()
    steps = transactions = committed = completed = lost = runs = 0
    virtual = 0.0
    failed: list[int] = []
    started = time.monotonic()
    for seed in seeds:
        try:
            report = simulate(seed, options.flavour, options.steps)
        except SimulationFailure as failure:
            failed.append(seed)
            if options.seed is not None:
                traceback.print_exc()
            else:
                print(f"seed {seed}: {failure}", flush=True)
            if not options.keep_going:
                break
            continue
        runs += 1
        steps += report.steps
        transactions += report.transactions
        committed += report.committed
        completed += report.completed
        lost += report.lost
        virtual += report.virtual_seconds
        faults.update(report.faults)
        if options.seconds is not None and time.monotonic() - started > options.seconds:
            break
    seconds = time.monotonic() - started
    print(f"{runs} runs, {steps} steps, {virtual:.0f} s of simulated time in {seconds:.1f} s")
    print(
        f"{transactions} transactions in the logs, {committed} acknowledged as committed, "
        f"{completed} requests answered, {lost} told below COMMITTED and lost; "
        f"{transactions / max(seconds, 1e-9):.0f} transactions/s"
    )
    for name, count in sorted(faults.items()):
        print(f"  {name}: {count}")
    if failed:
        print(f"FAILED: seeds {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
