"""Nanoseconds per operation of the transactor's kernels, alone: `python -m benchmarks.kernel`.

One engine, 1M accounts, both generations of the duplicate window full (10M references each) before
anything is timed, batches of 16,384. A repetition runs some batches; its time is divided by its
operations. Times are the thread's processor time, so that a busy machine disturbs them less, and
include what `Engine` does around the kernel. Beside that: calls of functions, in turns with the
built-in transfer; replay per record; and what a fresh process costs in time and memory. Nothing is
written to disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from wasmtime import wat2wasm

from tallybus.common.batch import Batch
from tallybus.common.record import RECORD_DTYPE, Kind
from tallybus.common.snapshot.balances import sum_of_balances
from tallybus.common.wal.replay import replay_balances
from tallybus.services.transactor.engine import Engine

ACCOUNTS: Final = 1_000_000
BATCH: Final = 16_384
SEGMENT: Final = 10_000_000
FUNDS: Final = 10**9

_EXECUTE: Final = (
    '(func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32) (local $fee i64)'
)
FUNCTIONS: Final = {
    "empty": f"(module {_EXECUTE} (i32.const 0)))",
    "fee transfer": f"""(module
        (import "ledger" "credit" (func $credit (param i64 i64)))
        (import "ledger" "debit" (func $debit (param i64 i64)))
        (import "ledger" "get_balance" (func $balance (param i64) (result i64)))
        {_EXECUTE}
        (local.set $fee (i64.div_u (i64.mul (local.get 3) (local.get 4)) (i64.const 10000)))
        (if (i64.lt_s (call $balance (local.get 0)) (i64.add (local.get 3) (local.get $fee)))
            (then (return (i32.const 1))))
        (call $credit (local.get 0) (i64.add (local.get 3) (local.get $fee)))
        (call $debit (local.get 1) (local.get 3))
        (call $debit (local.get 2) (local.get $fee))
        (i32.const 0)))""",
    "transfer": f"""(module
        (import "ledger" "credit" (func $credit (param i64 i64)))
        (import "ledger" "debit" (func $debit (param i64 i64)))
        {_EXECUTE}
        (call $credit (local.get 0) (local.get 3)) (call $debit (local.get 1) (local.get 3))
        (i32.const 0)))""",
    "writes a global": f"""(module (global $n (mut i64) (i64.const 0)) {_EXECUTE}
        (global.set $n (local.get 0)) (i32.const 0)))""",
    "writes memory": f"""(module (memory 17) (data (i32.const 1048576) "some") {_EXECUTE}
        (i64.store (i32.const 1048000) (local.get 0)) (i32.const 0)))""",
    "traps": f"(module {_EXECUTE} unreachable))",
}
"""What is called. Those that write get a fresh instance for every call. Parameters: three random
accounts, amount, hundredths of a percent. All calls of the one that traps fail."""

FRESH_PROCESS: Final = """
import json, time
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
began = time.perf_counter()
import numba
numba_seconds = time.perf_counter() - began
import numpy as np
from tallybus.common.record import RECORD_DTYPE
from tallybus.services.transactor.engine import Engine
import_seconds = time.perf_counter() - began
imported = resident()
engine = Engine(100_000_000, 10_000_000, 1)
first = np.zeros(1, RECORD_DTYPE)
engine.execute(first, 1)
ready_seconds = time.perf_counter() - began
idle = resident()
records = np.zeros(16_384, RECORD_DTYPE)
records["kind"] = records["amount"] = 1
for start in range(0, 1_000_000, 16_384):
    records["account"] = np.arange(start, start + 16_384)
    records["user_ref"] = records["account"] + 1
    engine.execute(records, engine.next_id)
print(json.dumps({
    "import_numba_s": numba_seconds, "import_engine_s": import_seconds, "ready_s": ready_seconds,
    "rss_imported_mb": imported, "rss_idle_mb": idle, "rss_1m_deposits_mb": resident(),
}))
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One row: nanoseconds per operation or record."""

    name: str
    refs: str
    median_ns: float
    best_ns: float


def machine() -> dict[str, str | int]:
    """What ran it."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass  # not Linux: the architecture has to do
    return {
        "cpu": model,
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def batches(kind: str, count: int, rng: np.random.Generator) -> list[NDArray[np.void]]:
    """Batches that all succeed: random accounts, small amounts."""
    made = []
    for _ in range(count):
        batch = np.zeros(BATCH, RECORD_DTYPE)
        if kind == "mixed":
            batch["kind"] = rng.integers(1, 4, BATCH)
        else:
            batch["kind"] = Kind[kind.upper()]
        batch["account"] = rng.integers(1, ACCOUNTS, BATCH)
        batch["counterparty"] = rng.integers(1, ACCOUNTS, BATCH)
        batch["amount"] = rng.integers(1, 100, BATCH)
        made.append(batch)
    return made


def funded_engine(rng: np.random.Generator) -> Engine:
    """Every account has funds; both generations of the window are full; next comes a new one."""
    engine = Engine(ACCOUNTS, SEGMENT, int(rng.integers(2**63)))
    piece = np.zeros(100_000, RECORD_DTYPE)
    piece["kind"] = Kind.DEPOSIT
    piece["amount"] = FUNDS
    piece["entry_count"] = 2
    for first in range(0, 2 * SEGMENT, len(piece)):
        piece["account"] = np.arange(first, first + len(piece)) % ACCOUNTS
        piece["entry_count"] = np.where(piece["account"] == 0, 0, 2)
        piece["user_ref"] = rng.integers(1, 2**63, len(piece))
        if first < ACCOUNTS:
            engine.apply(Batch(first + 1, piece))
        else:
            piece["status"] = 1
            piece["entry_count"] = 0
            engine.apply(Batch(first + 1, piece))
    return engine


def measure(repetitions: int, count: int) -> list[Case]:
    """All cases, on one engine."""
    rng = np.random.default_rng(1)
    engine = funded_engine(rng)
    cases = []
    for kind in ("deposit", "withdrawal", "transfer", "mixed"):
        given = batches(kind, count, rng)
        for refs in ("none", "unique"):
            results = []
            for repetition in range(repetitions + 1):
                spent = 0
                for batch in given:
                    if refs == "unique":
                        batch["user_ref"] = rng.integers(1, 2**63, BATCH)
                    began = time.thread_time_ns()
                    executed = engine.execute(batch, engine.next_id)
                    spent += time.thread_time_ns() - began
                    if len(executed.failures):
                        raise AssertionError(f"{kind}: {len(executed.failures)} operations failed")
                if repetition:  # the first one warms up
                    results.append(spent / (count * BATCH))
            cases.append(Case(kind, refs, median(results), min(results)))
    if sum_of_balances(engine.balances) != 0:
        raise AssertionError("the sum of all balances is not zero")
    cases += measure_functions(engine, repetitions, count, rng)
    return cases + measure_replay(repetitions, count, rng)


def measure_functions(
    engine: Engine, repetitions: int, count: int, rng: np.random.Generator
) -> list[Case]:
    """Calls without references; every repetition also runs built-in transfers and a mixture."""
    for name, text in FUNCTIONS.items():
        compiled = engine.functions.compile(bytes(wat2wasm(text)))
        engine.functions.install(name, 1, compiled.crc32c, compiled)
    transfers = batches("transfer", count, rng)
    params = []
    for batch in transfers:
        rows = np.zeros((BATCH, 8), np.int64)
        rows[:, 0], rows[:, 1] = batch["account"], batch["counterparty"]
        rows[:, 2] = rng.integers(1, ACCOUNTS, BATCH)
        rows[:, 3], rows[:, 4] = 10_000, 50
        params.append(rows)
    calls = np.zeros(BATCH, RECORD_DTYPE)
    calls["kind"] = Kind.FUNCTION
    # Instances and pages cost microseconds: fewer calls tell as much.
    slow = {"writes a global": 8, "writes memory": 64}
    results: dict[str, list[float]] = {}

    def run(case: str, name: str, share: int = 1, every: int = 1) -> None:
        size = BATCH // share
        spent = 0
        for transfer, rows in zip(transfers, params, strict=True):
            records = transfer[:size].copy()
            if name:
                records[::every] = calls[: len(records[::every])]
            called = rows[:size][::every] if name else None
            began = time.thread_time_ns()
            executed = engine.execute(records, engine.next_id, [name], called)
            spent += time.thread_time_ns() - began
            if len(executed.failures) != (size if name == "traps" else 0):
                raise AssertionError(f"{case}: {len(executed.failures)} of {size} failed")
        results.setdefault(case, []).append(spent / (count * size))

    for _ in range(repetitions + 1):
        run("built-in transfer", "", every=BATCH + 1)
        for name in FUNCTIONS:
            run(f"function: {name}", name, slow.get(name, 1))
        run("transfer, fee transfer in turns", "fee transfer", every=2)
    if sum_of_balances(engine.balances) != 0:
        raise AssertionError("the sum of all balances is not zero")
    return [Case(name, "none", median(row[1:]), min(row[1:])) for name, row in results.items()]


def measure_replay(repetitions: int, count: int, rng: np.random.Generator) -> list[Case]:
    """Transfers with unique references from the log: balances, window, both."""
    log = np.concatenate(batches("transfer", count, rng))
    log["entry_count"] = np.where(log["account"] == log["counterparty"], 0, 2)
    balances = np.full(ACCOUNTS, FUNDS, np.int64)
    touched = np.zeros(ACCOUNTS // 4096 + 1, np.uint8)
    runs = np.array_split(log, max(len(log) // (4 * BATCH), 1))
    window_engine = funded_engine(rng)
    results: dict[str, list[float]] = {"replay balances": [], "replay window": []}
    for repetition in range(repetitions + 1):
        log["user_ref"] = rng.integers(1, 2**63, len(log))
        spent = [0, 0]
        for run in runs:
            began = time.thread_time_ns()
            replay_balances(Batch(1, run), balances, touched)
            middle = time.thread_time_ns()
            window_engine.apply(Batch(window_engine.window.next_id, run), balances=False)
            spent[0] += middle - began
            spent[1] += time.thread_time_ns() - middle
        if repetition:
            for name, nanoseconds in zip(results, spent, strict=True):
                results[name].append(nanoseconds / len(log))
    both = [sum(pair) for pair in zip(*results.values(), strict=True)]
    results["replay both"] = both
    return [
        Case(name, "none" if name == "replay balances" else "unique", median(row), min(row))
        for name, row in results.items()
    ]


def fresh_process() -> dict[str, float]:
    """Seconds and MiB of a new process with 100M accounts and a window of 10M, kernels cached."""
    if sys.platform != "linux":
        return {}
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS], check=True, capture_output=True, text=True
    )
    numbers: dict[str, float] = json.loads(done.stdout)
    return numbers


def show(report: dict[str, Any], cases: list[Case]) -> None:
    """The report for people."""
    console = Console()
    about = report["machine"]
    table = Table(
        title=f"{about['cpu']}, {about['cores']} cores, Python {about['python']}",
        caption=(
            f"{ACCOUNTS:,} accounts, batches of {BATCH:,}, window of 2 x {SEGMENT:,}, "
            f"load {os.getloadavg()[0]:.1f}"
        ),
    )
    table.add_column("case")
    table.add_column("user_ref")
    table.add_column("median ns", justify="right")
    table.add_column("best ns", justify="right")
    table.add_column("million/s", justify="right")
    for case in cases:
        table.add_row(
            case.name,
            case.refs,
            f"{case.median_ns:.1f}",
            f"{case.best_ns:.1f}",
            f"{1000 / case.median_ns:.1f}",
        )
    console.print(table)
    for name, value in report["fresh_process"].items():
        console.print(f"{name:>22} {value:10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repetitions", type=int, default=5, help="timed repetitions of a case")
    parser.add_argument("--batches", type=int, default=60, help="batches of a repetition")
    arguments = parser.parse_args()
    if min(arguments.repetitions, arguments.batches) < 1:
        parser.error("--repetitions and --batches must be at least 1")
    cases = measure(arguments.repetitions, arguments.batches)
    report = {
        "machine": machine(),
        "accounts": ACCOUNTS,
        "batch": BATCH,
        "transactions_per_segment": SEGMENT,
        "repetitions": arguments.repetitions,
        "cases": [asdict(case) for case in cases],
        "fresh_process": fresh_process(),
    }
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report, cases)


if __name__ == "__main__":
    main()
