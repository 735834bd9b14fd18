"""Real pipelines for tests: five processes on a temporary folder, their fate, and what they leave.

Whatever is started here is stopped here, by process id.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.client import Client
from tallybus.common.record import Status
from tallybus.common.settings.sections import Settings, load, run_folder
from tallybus.common.stages import START_ORDER
from tallybus.common.wal.block import BlockHeader, parse_header
from tallybus.common.wal.reader import read_log
from tallybus.supervisor import Supervisor, running_pipeline
from tests.support.folders import PROJECT
from tests.support.oracle import Oracle
from tests.support.waiting import PATIENCE_S, eventually

RESERVED_PORTS: Final = 256
"""More than any one test needs."""


_reserved: deque[int] = deque()
"""Descriptors of the sockets that keep ports reserved, until this process ends."""


def quiet_endpoint() -> str:
    """A loopback port of the caller's own, that the system gives to no outgoing connection.

    So no client that reconnects to a gateway which is away can take its port meanwhile. It stays
    reserved: whoever binds it with SO_REUSEADDR, as servers do, gets it; this function, here or in
    another process, finds it taken. Two services of one test on one port would be one service.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = random.SystemRandom()
    while True:
        port = ports.randrange(10_000, max(lowest, 20_000))
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _reserved.append(probe.detach())
        if len(_reserved) > RESERVED_PORTS:
            os.close(_reserved.popleft())
        return f"tcp://127.0.0.1:{port}"


def make_settings(data: Path, **overrides: object) -> Settings:
    """Settings of a pipeline on `data`; in overrides `__` is the dot: `ledger__max_accounts=9`."""
    return load(
        environ={},
        overrides={
            "ledger.data": data,
            "gateway.endpoint": quiet_endpoint(),
            "logging.format": "json",
            **{name.replace("__", "."): value for name, value in overrides.items()},
        },
        overrides_origin="test",
    )


def environment() -> dict[str, str]:
    """For commands that are started: this source tree, and nothing that a developer exported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TALLYBUS_")}
    path = [str(PROJECT), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path)}


@dataclass
class Pipeline:
    """Five running services. `errors` is the file that they write their logs to."""

    supervisor: Supervisor
    settings: Settings
    errors: Path

    @property
    def endpoint(self) -> str:
        return self.settings.gateway.endpoint

    @property
    def data(self) -> Path:
        return self.settings.ledger.data

    def client(self, timeout: float = PATIENCE_S) -> Client:
        return Client(self.endpoint, timeout=timeout)

    def pids(self) -> dict[str, int]:
        """Process ids by service, 0 for one that does not run."""
        return {name: self.supervisor.pid(name) for name in START_ORDER}

    def kill(self, order: list[str] | None = None) -> None:
        """SIGKILL to all five, or to those named, and wait until they are gone."""
        processes = [self.supervisor.children[name].process for name in order or START_ORDER]
        for process in processes:
            if process is not None:
                process.send_signal(signal.SIGKILL)
        for process in processes:
            if process is not None:
                process.wait(PATIENCE_S)

    def log_text(self) -> str:
        return self.errors.read_text("utf-8", "replace")


@contextmanager
def pipeline_of(settings: Settings, errors: Path) -> Iterator[Pipeline]:
    """The services with these settings, up and answering; stopped, and tidied up, at the end."""
    try:
        with errors.open("ab") as log, running_pipeline(settings, stderr=log) as supervisor:
            yield Pipeline(supervisor, settings, errors)
    except BaseException as error:
        error.add_note(
            f"--- logs of the services ---\n{errors.read_text('utf-8', 'replace')[-6000:]}"
        )
        raise
    finally:
        tidy(settings)


def tidy(settings: Settings) -> None:
    """Remove a run folder that had to be made outside of the test's own folder."""
    folder = run_folder(settings)
    if folder.parent == Path("/tmp") and folder.name.startswith("tallybus-"):
        shutil.rmtree(folder, ignore_errors=True)


class Command:
    """A command of the product as a process of its own; its output is gathered by threads."""

    def __init__(self, *arguments: str | Path, cwd: Path | None = None) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tallybus", *map(str, arguments)],
            env=environment(),
            cwd=cwd or PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._gather, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _gather(stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    @property
    def stdout(self) -> str:
        return "\n".join(self.out)

    @property
    def stderr(self) -> str:
        return "\n".join(self.err)

    def wait_first_line(self) -> str:
        """The first line on standard output. Fails when the process ends without one."""
        eventually(
            lambda: self.out or self.process.poll() is not None,
            "a line on standard output",
        )
        self._settle()
        assert self.out, f"ended with {self.process.poll()} without output:\n{self.stderr}"
        return self.out[0]

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """The exit code; all output has been gathered then."""
        code = self.process.wait(seconds)
        self._settle()
        return code

    def _settle(self) -> None:
        if self.process.poll() is not None:
            # Grandchildren may hold the pipes open for a moment.
            for reader in self._readers:
                reader.join(10)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """SIGTERM, then SIGKILL, and for what it leaves behind too. May be called again."""
        left = children_of(self.pid)
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in left:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


def run_command(
    *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the product to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tallybus", *map(str, arguments)],
        env=environment(),
        cwd=cwd or PROJECT,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def children_of(pid: int) -> list[int]:
    """Process ids of the direct children of a process that this test started."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def service_of(pid: int) -> str:
    """Which service a process runs, by its command line; "" when it is gone or none."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return ""
    return next((w.rpartition(".")[2] for w in words if w.startswith("tallybus.services.")), "")


def services_under(pid: int) -> dict[str, int]:
    """The services among the children of a supervisor, by name."""
    found = {service_of(child): child for child in children_of(pid)}
    found.pop("", None)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def blocks(path: Path) -> list[BlockHeader]:
    """Headers of all whole blocks of a log file."""
    data = memoryview(path.read_bytes())
    found = []
    offset = 0
    while offset < len(data):
        found.append(parse_header(data, offset))
        offset = found[-1].end
    return found


@dataclass
class Replayed:
    """A log as read back, and what the oracle makes of it."""

    records: NDArray[Any]
    duplicate_of: NDArray[np.uint64]
    oracle: Oracle
    balances: dict[int, int] = field(default_factory=dict)


def replay(settings: Settings, last_id: int) -> Replayed:
    """Read transactions 1..last_id from disk and execute them again with the oracle.

    Fails when the log's statuses or links differ from what the oracle says they must be.
    """
    ledger = settings.ledger
    size = ledger.transactions_per_segment
    records: list[NDArray[Any]] = []
    links: list[NDArray[Any]] = []
    next_id = 1
    for run in read_log(ledger.data, 1, last_id, size):
        assert run.first_id == next_id, "ids have no gaps"
        next_id = run.last_id + 1
        records.append(run.records.copy())
        links.append(run.links.copy())
    assert next_id == last_id + 1
    oracle = Oracle(ledger.max_accounts, size)
    if not records:
        return Replayed(np.empty(0), np.empty(0, np.uint64), oracle)
    log = np.concatenate(records)
    outcomes = oracle.execute(log)
    expected = np.array([outcome.status for outcome in outcomes])
    wrong = np.flatnonzero(log["status"] != expected)
    assert not len(wrong), (
        f"transaction {wrong[0] + 1} of {last_id}: the log has {log[wrong[0]]}, the oracle says "
        f"{outcomes[wrong[0]]}"
    )
    duplicate_of = np.array([outcome.duplicate_of for outcome in outcomes], np.uint64)
    duplicates = log["status"] == Status.DUPLICATE
    assert (np.concatenate(links) == duplicate_of[duplicates]).all(), "links of duplicates"
    assert oracle.sum_of_balances() == 0, "the oracle's own sum"
    return Replayed(log, duplicate_of, oracle)


def assert_balances(client: Client, oracle: Oracle, accounts: int, min_tx_id: int) -> None:
    """Every balance of the first `accounts` accounts is the oracle's."""
    read = client.get_balances(np.arange(accounts), min_tx_id=min_tx_id).balances.tolist()
    expected = [oracle.balance(number) for number in range(accounts)]
    wrong = [(n, a, b) for n, (a, b) in enumerate(zip(read, expected, strict=True)) if a != b]
    assert not wrong, f"as of {min_tx_id} (account, ledger's, oracle's): {wrong[:5]}"
