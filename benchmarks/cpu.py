"""Processor time that a transaction costs the five services: `python -m benchmarks.cpu [--ops N]`.

Starts a ledger on a temporary folder, drives it with `tallybus load`, and prints as one JSON object
the nanoseconds of processor time a transaction, of all services together and of each, for transfers
and for calls of a function. Wall time on a shared machine is noise; this is much less so. To
compare two versions, run it in both checkouts in turns, at least eight times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processes.pipeline import Pipeline, environment, make_settings, pipeline_of

TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")


def spent_ns(pid: int) -> int:
    """Processor time of a process with all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_NS


def drive(pipeline: Pipeline, kind: str, ops: int) -> dict[str, float]:
    """Nanoseconds a transaction, by service and in all."""
    command = [sys.executable, "-m", "tallybus", "load", "--endpoint", pipeline.endpoint]
    command += ["--kind", kind, "--ops", str(ops), "--batch", "16384", "--accounts", "1000000"]
    command += ["--unique-refs", "--wait", "committed", "--json"]
    before = {stage: spent_ns(pid) for stage, pid in pipeline.pids().items()}
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    after = {stage: spent_ns(pid) for stage, pid in pipeline.pids().items()}
    told = json.loads(done.stdout)
    cost = {stage: (after[stage] - before[stage]) / ops for stage in before}
    rate = float(told["tx_per_s"])
    return {"all": sum(cost.values()), **cost, "tx_per_s": rate, "failed": told["failed"]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--ops", type=int, default=4_000_000, help="transactions of each kind")
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(Path(folder) / "data", ledger__max_accounts=1_000_001)
        with pipeline_of(settings, Path(folder) / "log") as pipeline:
            for kind in ("transfer", "function"):
                drive(pipeline, kind, options.ops // 8)  # nothing is new any more
                found[kind] = drive(pipeline, kind, options.ops)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
