"""`python -m tests.simulation --seeds N [--jobs J]`: so many simulated runs, and what they did.

`--seed S` replays one of them. Exit code 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import sys
import traceback

from tests.simulation.pipeline import FLAVOURS, simulate
from tests.simulation.runner import Totals, outcomes
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
    parser.add_argument("--jobs", type=int, default=1, help="processes to run them in")
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--keep-going", action="store_true", help="also after a failure")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed, options.flavour, options.steps)
    seeds = range(options.first, options.first + options.seeds)
    failed: list[int] = []
    totals = Totals()
    with outcomes(seeds, options.flavour, options.steps, options.jobs) as found:
        for seed, report, failure in found:
            if report is not None:
                totals.add(report)
            else:
                failed.append(seed)
                print(f"seed {seed}: {failure}", flush=True)
                if not options.keep_going:
                    break
            if options.seconds is not None and totals.seconds > options.seconds:
                break
    print("\n".join(totals.lines()))
    if failed:
        print(f"FAILED: seeds {sorted(failed)}")
    return 1 if failed else 0


def replay(seed: int, flavour: str | None, steps: int | None) -> int:
    """One run, with the traceback of what it found."""
    totals = Totals()
    try:
        totals.add(simulate(seed, flavour, steps))
    except SimulationFailure:
        traceback.print_exc()
        return 1
    print("\n".join(totals.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
