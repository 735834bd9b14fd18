"""Memory and disk that a ledger takes: `python -m benchmarks.memory`.

Starts ledgers on temporary folders and reads the memory of their services from the system: idle,
with a duplicate window that is full, and with many accounts in use. Prints a table, and what one
account and one transaction take. The memory of a process is its share of what is mapped ("PSS"), so
that a library which five processes have loaded is counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tallybus.cli.measure.transports import free_ports
from tallybus.common.settings.sections import Settings, load
from tallybus.common.stages import START_ORDER
from tallybus.supervisor import Supervisor, running_pipeline

MIB = 1 << 20
SETTLED = 0.01
"""Memory that changed by less than this share in each of `QUIET_S` seconds is settled."""
QUIET_S = 5
PATIENCE_S = 60


def settings_of(folder: Path, **overrides: object) -> Settings:
    endpoint = f"tcp://127.0.0.1:{free_ports(1)}"
    given: dict[str, object] = {"ledger.data": folder / "data", "gateway.endpoint": endpoint}
    given |= {name.replace("__", "."): value for name, value in overrides.items()}
    return load(environ={}, overrides=given, overrides_origin="benchmark")


def memory_of(pid: int) -> int:
    """Bytes of a process: its own pages, and its share of those that others have as well."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no Pss of process {pid}")


def settled(supervisor: Supervisor) -> dict[str, int]:
    """Memory by service once it stopped growing: pages are brought in while a service is idle."""
    last, quiet = {stage: memory_of(supervisor.pid(stage)) for stage in START_ORDER}, 0
    for _ in range(PATIENCE_S):
        time.sleep(1)
        now = {stage: memory_of(supervisor.pid(stage)) for stage in START_ORDER}
        quiet = quiet + 1 if abs(sum(now.values()) / sum(last.values()) - 1) < SETTLED else 0
        if quiet == QUIET_S:
            return now
        last = now
    return last


def drive(settings: Settings, *arguments: str) -> None:
    command = [sys.executable, "-m", "tallybus", "load", "--endpoint", settings.gateway.endpoint]
    command += ["--batch", "16384", "--json", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TALLYBUS_")}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


def bytes_of(data: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in data.glob(pattern))


def committed(settings: Settings) -> int:
    command = [sys.executable, "-m", "tallybus", "index", "--json"]
    command += ["--endpoint", settings.gateway.endpoint]
    return int(
        json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["committed"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--accounts", type=int, default=10_000_000, help="accounts in use")
    parser.add_argument("--window", type=int, default=10_000_000, help="transactions_per_segment")
    options = parser.parse_args()
    rows: list[tuple[str, dict[str, int]]] = []
    told: list[str] = []
    with tempfile.TemporaryDirectory() as name, (Path(name) / "log").open("ab") as log:
        folder = Path(name)
        for window in (1_000_000, options.window):
            settings = settings_of(folder / f"w{window}", ledger__transactions_per_segment=window)
            with running_pipeline(settings, stderr=log) as supervisor:
                idle = settled(supervisor)
                rows.append((f"idle, {window:,} transactions a segment", idle))
                if window != options.window:
                    continue
                drive(
                    settings,
                    "--kind",
                    "transfer",
                    "--accounts",
                    "1000",
                    "--unique-refs",
                    "--ops",
                    str(window * 5 // 2),
                )
                rows.append((f"the same, after {committed(settings):,}", settled(supervisor)))
                data = settings.ledger.data
                disk = bytes_of(data, "wal*.bin") / committed(settings)
                told.append(f"a transfer in the log: {disk:.2f} bytes")
        settings = settings_of(
            folder / "accounts",
            ledger__transactions_per_segment=1_000_000,
            ledger__max_accounts=options.accounts + 1,
        )
        with running_pipeline(settings, stderr=log) as supervisor:
            drive(settings, "--kind", "transfer", "--accounts", "1000", "--ops", "3000000")
            before = settled(supervisor)
            rows.append(("the same, after 3,000,000, 1,000 accounts", before))
            drive(
                settings,
                "--kind",
                "transfer",
                "--accounts",
                str(options.accounts),
                "--ops",
                "1000000",
            )
            after = settled(supervisor)
            rows.append((f"{options.accounts:,} accounts, 1,000,000 transactions a segment", after))
            for stage in ("transactor", "snapshotter"):
                grown = (after[stage] - before[stage]) / options.accounts
                told.append(f"an account in the {stage}: {grown:.1f} bytes")
            files = sorted(settings.ledger.data.glob("snapshot_*.bin"))
            size = files[-1].stat().st_size
            told.append(f"an account in a snapshot: {size / options.accounts:.2f} bytes")
    stages = list(reversed(START_ORDER))
    print("memory in MiB", *stages, "all", sep="\t")
    for what, memory in rows:
        shown = [f"{memory[stage] / MIB:.0f}" for stage in stages]
        print(what, *shown, f"{sum(memory.values()) / MIB:.0f}", sep="\t")
    print(*told, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
