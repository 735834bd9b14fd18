"""The pause that clients see when a service is killed: `python -m benchmarks.restart`.

Builds a log of `--transactions` deposits with unique references by batches, stops, starts again
under a supervisor, and then kills each service in turn while one client commits single operations
one after the other and another one reads a balance. A pause is the longest time between two answers
around a kill. The services come back by the supervisor, as they do under `tallybus up`; each was
healthy before it was killed, so that it is started again at once.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from tallybus import Client, Deposit, WaitLevel, deposits
from tallybus.cli.measure.transports import free_ports
from tallybus.client.sync import Pending
from tallybus.common import logs
from tallybus.common.settings.sections import Settings, load
from tallybus.common.stages import START_ORDER
from tallybus.supervisor import (
    HEALTHY_SECONDS,
    WATCH_SECONDS,
    Supervisor,
    running_pipeline,
)

BATCH: Final = 16_384
IN_FLIGHT: Final = 8
ACCOUNTS: Final = 1_000_000
TIMEOUT_S: Final = 120.0
CALM_S: Final = 0.5
"""Answers must have come without a pause for so long before the next kill."""


@dataclass(frozen=True, slots=True)
class Pauses:
    """Seconds between answers, over the rounds: of the client that commits, and of the reader."""

    service: str
    commit_median: float
    commit_worst: float
    read_median: float
    read_worst: float


class Watched:
    """A client that does the same call over and over; the times of its answers."""

    def __init__(self, endpoint: str, call: Callable[[Client], object]) -> None:
        self.times: list[float] = []
        self.error: Exception | None = None
        self._going = True
        self._call = call
        self._endpoint = endpoint
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with Client(self._endpoint, timeout=TIMEOUT_S) as client:
                while self._going:
                    self._call(client)
                    self.times.append(time.monotonic())
        except Exception as error:  # noqa: BLE001 (raised where the thread is watched)
            self.error = error

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def longest_gap(self, since: float) -> float:
        """The longest time without an answer from `since` on."""
        times = np.array(self.times)
        return float(np.diff(times[max(0, int(np.searchsorted(times, since)) - 1) :]).max())

    def stop(self) -> None:
        self._going = False
        self._thread.join(TIMEOUT_S)
        self.check()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--transactions", type=int, default=10_000_000, help="in the log")
    parser.add_argument("--rounds", type=int, default=5, help="kills of each service")
    parser.add_argument("--folder", type=Path, help="where to make the data folder")
    parser.add_argument("--json", action="store_true", help="one object instead of a table")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="tallybus-restart-", dir=options.folder))
    try:
        result = measure(home, options.transactions, options.rounds)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0


def measure(home: Path, transactions: int, rounds: int) -> dict[str, Any]:
    """Build the log, then kill."""
    settings = load(
        environ={},
        overrides={
            "ledger.data": home / "data",
            "bus.run_folder": home / "run",
            "gateway.endpoint": f"tcp://127.0.0.1:{free_ports(1)}",
            "logging.format": "text",
        },
        overrides_origin="benchmark",
    )
    errors = home / "services.log"
    try:
        with errors.open("a") as log:
            logs.setup("supervisor", level="info", format="text", stream=log)
            began = time.monotonic()
            with running_pipeline(settings, stderr=log):
                fill(settings.gateway.endpoint, transactions)
            filled = time.monotonic() - began
            log_bytes = sum(path.stat().st_size for path in (home / "data").glob("wal*.bin"))
            began = time.monotonic()
            with running_pipeline(settings, stderr=log) as supervisor:
                start = time.monotonic() - began
                pauses = kill_each(supervisor, rounds, transactions)
    except BaseException:
        logs.teardown()
        sys.stderr.write(errors.read_text("utf-8", "replace")[-4_000:])
        raise
    logs.teardown()
    return {
        "transactions": transactions,
        "rounds": rounds,
        "log_bytes": log_bytes,
        "fill_s": round(filled, 2),
        "start_of_all_s": round(start, 3),
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "pauses": [asdict(each) for each in pauses],
    }


def fill(endpoint: str, transactions: int) -> None:
    """So many deposits with unique references."""
    rng = np.random.default_rng(1)
    with Client(endpoint, timeout=TIMEOUT_S) as client:
        flying: deque[Pending] = deque()
        for first in range(1, transactions + 1, BATCH):
            count = min(BATCH, transactions + 1 - first)
            refs = np.arange(first, first + count, dtype=np.uint64)
            refs *= np.uint64(0x9E3779B97F4A7C15)  # odd, so they stay unique
            batch = deposits(rng.integers(1, ACCOUNTS, count), 100, refs)
            flying.append(client.begin_batch(batch, WaitLevel.COMMITTED))
            if len(flying) >= IN_FLIGHT:
                flying.popleft().result()
        while flying:
            flying.popleft().result()
        client.wait_for(transactions, WaitLevel.SNAPSHOT)


@contextmanager
def watched(supervisor: Supervisor) -> Iterator[None]:
    """The supervisor restarts what dies, in a thread."""
    going = threading.Event()

    def watch() -> None:
        while not going.is_set() and supervisor.failed is None:
            supervisor.watch()
            supervisor.wait(WATCH_SECONDS)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        going.set()
        thread.join()


def kill_each(supervisor: Supervisor, rounds: int, transactions: int) -> list[Pauses]:
    """Kill every service `rounds` times, one after the other."""
    settings: Settings = supervisor.settings
    endpoint = settings.gateway.endpoint
    next_ref = iter(range(1, 2**62))

    def commit(client: Client) -> None:
        # Should one of them be in the log already, its answer takes as long.
        client.submit_and_wait(Deposit(1, 1, (1 << 63) | next(next_ref)), WaitLevel.COMMITTED)

    commits: dict[str, list[float]] = {name: [] for name in START_ORDER}
    reads: dict[str, list[float]] = {name: [] for name in START_ORDER}
    with watched(supervisor), Client(endpoint, timeout=TIMEOUT_S) as client:
        client.wait_for(transactions, WaitLevel.SNAPSHOT)
        committer = Watched(endpoint, commit)
        reader = Watched(endpoint, lambda client: client.get_balance(1))
        for _ in range(rounds):
            for name in START_ORDER:
                await_calm(supervisor, name, [committer, reader])
                killed = time.monotonic()
                os.kill(supervisor.pid(name), signal.SIGKILL)
                await_calm(supervisor, "", [committer, reader], since=killed)
                tx_id = client.submit_and_wait(Deposit(2, 1), WaitLevel.SNAPSHOT).tx_id
                client.get_balance(2, min_tx_id=tx_id)
                commits[name].append(committer.longest_gap(killed))
                reads[name].append(reader.longest_gap(killed))
        committer.stop()
        reader.stop()
    return [
        Pauses(
            name,
            round(statistics.median(commits[name]), 3),
            round(max(commits[name]), 3),
            round(statistics.median(reads[name]), 3),
            round(max(reads[name]), 3),
        )
        for name in START_ORDER
    ]


def await_calm(
    supervisor: Supervisor, healthy: str, clients: list[Watched], since: float = 0.0
) -> None:
    """Until all services run, `healthy` for long enough, and clients are answered without pause."""
    limit = time.monotonic() + TIMEOUT_S
    while True:
        time.sleep(0.02)
        for client in clients:
            client.check()
        if supervisor.failed is not None:
            raise RuntimeError(f"a service cannot go on: {supervisor.failed}")
        now = time.monotonic()
        if now > limit:
            raise TimeoutError(f"not calm within {TIMEOUT_S:g} s")
        if not all(supervisor.pid(name) for name in START_ORDER):
            continue
        if healthy and now - supervisor.children[healthy].started < HEALTHY_SECONDS:
            continue
        calm_since = now - CALM_S
        if calm_since < since:
            continue
        if all(
            client.times and now - client.times[-1] < 0.1 and client.longest_gap(calm_since) < 0.1
            for client in clients
        ):
            return


def show(result: dict[str, Any]) -> None:
    """The result as a table."""
    table = Table(
        "killed service", "commit median s", "commit worst s", "read median s", "read worst s"
    )
    for row in result["pauses"]:
        table.add_row(
            row["service"],
            *(
                f"{row[name]:.3f}"
                for name in ("commit_median", "commit_worst", "read_median", "read_worst")
            ),
        )
    console = Console()
    console.print(
        f"{result['transactions']} transactions in the log ({result['log_bytes'] / 1e6:.0f} MB), "
        f"{result['rounds']} rounds, {result['cores']} cores; all five services started in "
        f"{result['start_of_all_s']:g} s"
    )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
