"""What the way to talk costs: `python -m benchmarks.transports`.

The same measurements over ipc, plain tcp and encrypted tcp, all on this machine, in turns: each on
a ledger of its own whose services talk to one another, and to their clients, in that way. They are
those of `tallybus load` and `tallybus latency`: throughput of transfers with unique references,
one deposit at a time with nothing else to do, and 64 clients with one transfer each at a time; all
to COMMITTED. What the disk can do is measured before and after each and stands beside it: a
commit needs it whatever the transport.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tallybus.cli.measure.transports import TRANSPORTS

ACCOUNTS: Final = 1_000_000
BATCH: Final = 16_384
CLIENTS: Final = 64
CLIENT_ACCOUNTS: Final = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: operations by batches, deposits one at a time, operations of the 64."""

    ops: int
    samples: int
    client_ops: int


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """One round of one transport. Times in milliseconds; rates per second.

    The disk's numbers are medians of those taken beside the three measurements.
    """

    transport: str
    tx_per_s: float
    batch_p50_ms: float
    batch_p99_ms: float
    single_p50_ms: float
    single_p99_ms: float
    clients_tx_per_s: float
    clients_p50_ms: float
    clients_p99_ms: float
    disk_mb_per_s: float
    fdatasync_p50_ms: float


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transports", description=__doc__)
    parser.add_argument("--ops", type=int, default=20_000_000, help="transfers by batches")
    parser.add_argument("--samples", type=int, default=2_000, help="deposits one at a time")
    parser.add_argument("--client-ops", type=int, default=200_000, help="transfers of 64 clients")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the ledgers' folders are made")
    parser.add_argument("--json", action="store_true", help="one object instead of tables")
    options = parser.parse_args()
    sizes = Sizes(options.ops, options.samples, options.client_ops)
    runs = []
    for number in range(options.rounds):
        # In another order each time: what warms up or fills a disk meets all alike.
        for place in range(len(TRANSPORTS)):
            transport = TRANSPORTS[(place + number) % len(TRANSPORTS)]
            tell(f"round {number + 1} of {options.rounds}: {transport}")
            runs.append(measure(transport, sizes, options.folder))
    result = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        **dataclasses.asdict(sizes),
        "runs": [dataclasses.asdict(run) for run in runs],
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(runs, sizes)
    return 0


def measure(transport: str, sizes: Sizes, folder: str | None) -> Run:
    """All three measurements, each on a ledger of its own."""
    where = [] if folder is None else ["--folder", folder]
    spawned = ["--spawn", "--transport", transport, "--json", *where]
    tell(f"  {sizes.ops} transfers in batches of {BATCH}")
    batches = tallybus(
        *("load", *spawned, "--kind", "transfer", "--unique-refs", "--ops", str(sizes.ops)),
        *("--batch", str(BATCH), "--accounts", str(ACCOUNTS)),
    )
    tell(f"  {sizes.samples} deposits, one at a time")
    single = tallybus("latency", *spawned, "--samples", str(sizes.samples))
    tell(f"  {sizes.client_ops} transfers of {CLIENTS} clients, one each at a time")
    clients = tallybus(
        *("load", *spawned, "--kind", "transfer", "--unique-refs", "--ops", str(sizes.client_ops)),
        *("--batch", "1", "--clients", str(CLIENTS), "--accounts", str(CLIENT_ACCOUNTS)),
    )
    reports = (batches, single, clients)
    for report in reports:
        if report["transport"] != transport:
            raise RuntimeError(f"asked for {transport}, measured {report['transport']}")
    return Run(
        transport,
        batches["tx_per_s"],
        batches["batch_p50_ms"],
        batches["batch_p99_ms"],
        single["p50_ms"],
        single["p99_ms"],
        clients["tx_per_s"],
        clients["batch_p50_ms"],
        clients["batch_p99_ms"],
        statistics.median(report["disk_mb_per_s"] for report in (batches, clients)),
        statistics.median(report["fdatasync_p50_ms"] for report in reports),
    )


def tallybus(*arguments: str) -> dict[str, Any]:
    """The report of a command in a process of its own. Its progress goes to standard error."""
    command = [sys.executable, "-P", "-m", "tallybus", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def show(runs: list[Run], sizes: Sizes) -> None:
    """Medians over the rounds, and the rates as a share of those over ipc."""
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=170)
    rounds = len(runs) // len(TRANSPORTS)
    console.print(
        f"medians of {rounds} rounds in turns, {os.cpu_count()} cores, {platform.machine()}: "
        f"{sizes.ops} transfers with unique refs over {ACCOUNTS} accounts in batches of {BATCH}; "
        f"{sizes.samples} deposits one at a time; {sizes.client_ops} transfers of {CLIENTS} "
        "clients, one each at a time; all to COMMITTED, services and clients over the transport"
    )
    table = Table()
    table.add_column("transport")
    for name in (
        *("tx/s", "of ipc", "batch p50 / p99 ms", "single p50 / p99 ms"),
        *(f"{CLIENTS} clients tx/s", "of ipc", "p50 / p99 ms", "disk MB/s", "fdatasync p50 ms"),
    ):
        table.add_column(name, justify="right")
    ipc = medians(runs, TRANSPORTS[0])
    for transport in TRANSPORTS:
        own = medians(runs, transport)
        table.add_row(
            transport,
            f"{own.tx_per_s / 1e6:.2f}M",
            f"{own.tx_per_s / ipc.tx_per_s:.0%}",
            f"{own.batch_p50_ms:.1f} / {own.batch_p99_ms:.1f}",
            f"{own.single_p50_ms:.2f} / {own.single_p99_ms:.2f}",
            f"{own.clients_tx_per_s / 1e3:.1f}k",
            f"{own.clients_tx_per_s / ipc.clients_tx_per_s:.0%}",
            f"{own.clients_p50_ms:.2f} / {own.clients_p99_ms:.2f}",
            f"{own.disk_mb_per_s:.0f}",
            f"{own.fdatasync_p50_ms:.2f}",
        )
    console.print(table)
    for transport in TRANSPORTS:
        rates = ", ".join(
            f"{run.tx_per_s / 1e6:.2f}M" for run in runs if run.transport == transport
        )
        console.print(f"tx/s of each round, {transport}: {rates}")


def medians(runs: list[Run], transport: str) -> Run:
    """The median of each number over the rounds of one transport."""
    own = [dataclasses.astuple(run)[1:] for run in runs if run.transport == transport]
    return Run(transport, *(statistics.median(column) for column in zip(*own, strict=True)))


def tell(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
