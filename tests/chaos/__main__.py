"""`python -m tests.chaos --seconds S --seed N [--services wal,transactor] [--json]`.

A running pipeline under several clients, with services killed and stopped at moments drawn from the
seed; then everything that was told is compared with the log and the oracle. The exit code is 1 when
a promise was broken; the folder with log, histories and faults is kept then.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tallybus.common.stages import START_ORDER
from tests.chaos.run import Report, run_chaos


def services(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names) - set(START_ORDER):
        raise argparse.ArgumentTypeError(f"no service is called {', '.join(sorted(unknown))}")
    return names


def show(report: Report) -> None:
    console = Console()
    console.print(
        f"seed {report.seed}, {report.seconds:g} s: {report.transactions} transactions answered, "
        f"{report.in_log} in the log, {report.segments} segments; {report.requests} requests, "
        f"{report.reads} reads, {report.retries} sent again, {report.unknown} outcomes unknown; "
        f"told below COMMITTED and lost: {report.lost or 0}; {report.supervisors} supervisors"
    )
    console.print(f"settings: {report.settings}")
    console.print(
        f"episodes: {', '.join(f'{name} {count}' for name, count in report.episodes.items())}"
    )
    table = Table("service", "kills", "stops", "pauses", "median s", "worst s")
    for name in (*START_ORDER, "supervisor"):
        pause = report.pauses.get(name, {})
        table.add_row(
            name,
            str(report.kills.get(name, 0)),
            str(report.stops.get(name, 0)),
            f"{pause.get('count', 0):g}",
            f"{pause['median_s']:.3f}" if pause else "",
            f"{pause['worst_s']:.3f}" if pause else "",
        )
    for name, pause in report.pauses.items():
        if name not in START_ORDER:
            table.add_row(
                name,
                "",
                "",
                f"{pause['count']:g}",
                f"{pause['median_s']:.3f}",
                f"{pause['worst_s']:.3f}",
            )
    table.add_row("all", str(sum(report.kills.values())), str(sum(report.stops.values())))
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long there are faults")
    parser.add_argument("--seed", type=int, default=1, help="which faults, load and settings")
    parser.add_argument("--services", type=services, default=START_ORDER, help="only these")
    parser.add_argument("--folder", type=Path, help="where to put the run's folder")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    options = parser.parse_args()
    report = run_chaos(options.seed, options.seconds, options.services, options.folder)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        show(report)
        for violation in report.violations:
            print(f"VIOLATION (seed {report.seed}): {violation}")
        print(f"{len(report.violations)} violations")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
