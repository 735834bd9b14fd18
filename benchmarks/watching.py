"""What it costs a ledger to be watched: `python -m benchmarks.watching`.

The same load on pipelines of their own, in turns: without metrics, with metrics that nobody asks
for, with all five services scraped once in `--interval` seconds, and with the gateway's page open.
Throughput varies by much more from run to run than watching can cost, so the processor time that
the five services take for a transaction stands beside it; it is what to compare.
"""

from __future__ import annotations

import argparse
import dataclasses
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tallybus.cli.measure.transports import free_ports
from tallybus.common import logs
from tallybus.common.settings.sections import Settings, load, metrics_address, page_address
from tallybus.common.stages import SERVICES
from tallybus.supervisor import Supervisor, running_pipeline

MODES: Final = ("nothing", "metrics", "scraped", "page")
TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
HTTP_SECONDS: Final = 5.0


@dataclasses.dataclass(slots=True)
class Run:
    """One load: transactions per second, and the services' processor time for a million of them."""

    mode: str
    tx_per_s: float
    cpu_s_per_million: float
    looks: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    parser.add_argument("--ops", type=int, default=20_000_000, help="transactions of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two scrapes")
    parser.add_argument("--only", nargs="+", choices=MODES, default=MODES, help="these alone")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    options = parser.parse_args()
    logs.setup("benchmark", level="warning", format="text")
    runs = []
    for number in range(options.rounds):
        # In another order each time: what warms up or fills a disk meets all alike.
        for place in range(len(options.only)):
            mode = options.only[(place + number) % len(options.only)]
            print(f"round {number + 1} of {options.rounds}: {mode}", file=sys.stderr, flush=True)
            runs.append(measure(mode, options.ops, options.interval))
    if options.json:
        print(json.dumps([dataclasses.asdict(run) for run in runs], indent=2))
    else:
        show(runs)
    return 0


def measure(mode: str, ops: int, interval: float) -> Run:
    """One run on a pipeline of its own."""
    with tempfile.TemporaryDirectory(prefix="tallybus-") as home:
        return measure_in(Path(home), mode, ops, interval)


def measure_in(home: Path, mode: str, ops: int, interval: float) -> Run:
    overrides: dict[str, object] = {
        "ledger.data": home / "data",
        "bus.run_folder": home / "run",
        "gateway.endpoint": f"tcp://127.0.0.1:{free_ports(1)}",
        "logging.level": "warning",
    }
    if mode in ("metrics", "scraped"):
        overrides |= {"metrics.address": "127.0.0.1", "metrics.base_port": free_ports(5)}
    if mode == "page":
        overrides["gateway.page"] = f"127.0.0.1:{free_ports(1)}"
    with running_pipeline(load(overrides=overrides)) as pipeline:
        load_once(pipeline.settings.gateway.endpoint, min(ops, 2_000_000))
        before = cpu_seconds(pipeline)
        with watcher(mode, pipeline.settings, interval) as looks:
            report = load_once(pipeline.settings.gateway.endpoint, ops)
        cpu = cpu_seconds(pipeline) - before
    # Funding the accounts and warming up is work, too.
    done = report["ops"] + report["funded_accounts"] + report["warm_up_ops"]
    return Run(mode, report["tx_per_s"], cpu / done * 1e6, len(looks))


def load_once(endpoint: str, ops: int) -> dict[str, Any]:
    """The report of `tallybus load` in a process of its own."""
    command = [
        *(sys.executable, "-P", "-m", "tallybus", "load", "--endpoint", endpoint, "--json"),
        *("--kind", "transfer", "--ops", str(ops), "--batch", "16384"),
        *("--accounts", "1000000", "--unique-refs"),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def cpu_seconds(pipeline: Supervisor) -> float:
    """Processor time of the five services since they started."""
    total = 0
    for service in SERVICES:
        fields = Path(f"/proc/{pipeline.pid(service)}/stat").read_text("ascii").rpartition(")")[2]
        user, system = fields.split()[11:13]
        total += int(user) + int(system)
    return total / TICKS_PER_S


@contextmanager
def watcher(mode: str, settings: Settings, interval: float) -> Iterator[list[int]]:
    """Somebody who watches; the list has the bytes of each look."""
    looks: list[int] = []
    over = threading.Event()
    watch = {
        "scraped": lambda: _scrape(settings, interval, over, looks),
        "page": lambda: _read_page(settings, over, looks),
    }.get(mode)
    if watch is None:
        yield looks
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join(HTTP_SECONDS * 2)
        if not looks:
            raise RuntimeError(f"nothing was seen with {mode}: the run shows nothing")


def _scrape(settings: Settings, interval: float, over: threading.Event, looks: list[int]) -> None:
    while not over.wait(interval):
        for service in SERVICES:
            address = metrics_address(settings, service)
            assert address is not None
            connection = http.client.HTTPConnection(*address, timeout=HTTP_SECONDS)
            connection.request("GET", "/metrics")
            looks.append(len(connection.getresponse().read()))
            connection.close()


def _read_page(settings: Settings, over: threading.Event, looks: list[int]) -> None:
    address = page_address(settings)
    assert address is not None
    connection = http.client.HTTPConnection(*address, timeout=HTTP_SECONDS)
    connection.request("GET", "/events")
    response = connection.getresponse()
    while not over.is_set():
        line = response.readline()
        if line.startswith(b"data:"):
            looks.append(len(line))
    connection.close()


def show(runs: list[Run]) -> None:
    table = Table(title="what watching costs")
    for name in ("watched by", "tx/s, each run", "CPU s for a million", "median", "looks"):
        table.add_column(name, justify="left" if name == "watched by" else "right")
    for mode in MODES:
        own = [run for run in runs if run.mode == mode]
        if not own:
            continue
        costs = [run.cpu_s_per_million for run in own]
        table.add_row(
            mode,
            ", ".join(f"{run.tx_per_s / 1e6:.2f}M" for run in own),
            ", ".join(f"{cost:.3f}" for cost in costs),
            f"{statistics.median(costs):.3f}",
            str(sum(run.looks for run in own)),
        )
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
