"""The processes of a chaos run: a supervisor with its five services, and what happens to them.

Every signal goes to a process that is a child of the supervisor that was started here, or to that
supervisor. What died, and when, is remembered: some losses are allowed then and only then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import zmq

from tallybus.common.bus.messages import TOPIC_STATUS, FrameError, StageStatus, decode
from tallybus.common.settings.sections import Settings, endpoint
from tallybus.common.stages import STAGES, START_ORDER
from tests.processes.pipeline import environment, is_alive, service_of, services_under

END_SECONDS: Final = 60.0
BUSY_EXIT: Final = 75


@dataclass(frozen=True, slots=True)
class Span:
    """A service was dead from some moment in this time on, or stopped all this time."""

    service: str
    from_ns: int
    to_ns: int
    how: str


@dataclass(slots=True)
class Machine:
    """`start` it, hurt it, `end` it. `errors` is the file with the logs of all processes."""

    settings: Settings
    errors: Path
    deaths: list[Span] = field(default_factory=list)
    stops: list[Span] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    stopped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    supervisors: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _frozen: dict[int, tuple[str, int]] = field(default_factory=dict)

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a supervisor on the folder."""
        # A crash of the interpreter tells its stack, and so does a process that is aborted.
        variables = {"PYTHONFAULTHANDLER": "1"}
        with self.errors.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.supervise"],
                env={**environment(), **self.settings.to_environment(), **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.supervisors += 1

    @property
    def supervisor(self) -> int:
        """Process id of the supervisor, 0 when it has ended."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else 0

    def services(self) -> dict[str, int]:
        """Process ids of the services that run now, by name."""
        found = services_under(self.supervisor) if self.supervisor else {}
        return {name: pid for name, pid in found.items() if is_alive(pid)}

    def check(self) -> bool:
        """Whether the supervisor runs; if not, that is a problem."""
        if self.supervisor:
            return True
        code = None if self._process is None else self._process.returncode
        self.problems.append(f"the supervisor ended by itself with exit code {code}")
        return False

    def end(self, *, clean: bool) -> None:
        """Stop everything. A clean end that does not end cleanly is a problem."""
        self.resume_all()
        if self._process is not None and clean and self.supervisor:
            self._process.send_signal(signal.SIGTERM)
            try:
                code = self._process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self.problems.append(f"the supervisor did not stop within {END_SECONDS:g} s")
            else:
                if code != 0:
                    self.problems.append(f"the supervisor stopped with exit code {code}")
        if self.supervisor and self._process is not None:
            self._process.kill()
            self._process.wait()
        left = self._left_behind()
        if left and clean:
            self.problems.append(f"processes were left behind: {left}")
        for pid in left:
            _signal(pid, signal.SIGKILL)

    def _left_behind(self) -> list[int]:
        """Services on this run's data folder, whoever is their parent now."""
        mark = f"TALLYBUS_LEDGER_DATA={self.settings.ledger.data}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and service_of(int(folder.name)):
                with suppress(OSError):
                    if mark in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
        return [pid for pid in found if is_alive(pid)]

    # -- harm ------------------------------------------------------------------------------------

    def kill(self, service: str) -> bool:
        """SIGKILL to a service. False when it does not run."""
        pid = self.services().get(service, 0)
        if not pid or service_of(pid) != service:
            return False
        before = time.monotonic_ns()
        if not _signal(pid, signal.SIGKILL):
            return False
        _await_end(pid)
        self._frozen.pop(pid, None)
        self.deaths.append(Span(service, before, time.monotonic_ns(), "kill"))
        self.kills[service] += 1
        return True

    def kill_all(self, order: list[str], *, supervisor: bool) -> None:
        """SIGKILL to all services as fast as can be, in this order; the supervisor first."""
        services = self.services()
        before = time.monotonic_ns()
        if supervisor and self._process is not None and self.supervisor:
            self._process.kill()
            self._process.wait()
            self.kills["supervisor"] += 1
        killed = [name for name in order if name in services]
        for name in killed:
            _signal(services[name], signal.SIGKILL)
        for name in killed:
            _await_end(services[name])
            self._frozen.pop(services[name], None)
            self.deaths.append(Span(name, before, time.monotonic_ns(), "kill"))
            self.kills[name] += 1

    def kill_supervisor(self) -> None:
        """SIGKILL to the supervisor alone: its services are to end by themselves."""
        self._abandon(signal.SIGKILL, "orphan")
        self.kills["supervisor"] += 1

    def terminate(self) -> None:
        """SIGTERM to the supervisor, which stops all in order under load."""
        self._abandon(signal.SIGTERM, "stop")

    def _abandon(self, number: signal.Signals, how: str) -> None:
        services = self.services()
        before = time.monotonic_ns()
        assert self._process is not None
        self._process.send_signal(number)
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.problems.append(f"the supervisor did not stop within {END_SECONDS:g} s")
            self._process.kill()
            code = self._process.wait()
        if number == signal.SIGTERM and code != 0:
            self.problems.append(f"the supervisor stopped with exit code {code}")
        # They may end at any time until the next supervisor's own could start.
        after = time.monotonic_ns() + 10_000_000_000
        for name in START_ORDER:
            self.deaths.append(Span(name, before, after, how))
        if number == signal.SIGTERM and (left := [p for p in services.values() if is_alive(p)]):
            self.problems.append(f"processes were left behind by a clean stop: {left}")

    def freeze(self, service: str) -> bool:
        """SIGSTOP to a service. False when it does not run."""
        pid = self.services().get(service, 0)
        if not pid or service_of(pid) != service or not _signal(pid, signal.SIGSTOP):
            return False
        self._frozen[pid] = (service, time.monotonic_ns())
        self.stopped[service] += 1
        return True

    def resume(self, service: str) -> None:
        """SIGCONT to a service that was stopped."""
        for pid, (name, since) in list(self._frozen.items()):
            if name == service:
                del self._frozen[pid]
                if is_alive(pid) and service_of(pid) == service:
                    _signal(pid, signal.SIGCONT)
                self.stops.append(Span(name, since, time.monotonic_ns(), "stop"))

    def resume_all(self) -> None:
        for name, _ in list(self._frozen.values()):
            self.resume(name)

    # -- diagnosis -------------------------------------------------------------------------------

    def read_logs(self, wall_minus_monotonic_ns: int) -> list[str]:
        """What services did by themselves: adds their deaths; returns what must not happen."""
        wrong: list[str] = []
        stray: list[str] = []
        for text in self.errors.read_text("utf-8", "replace").splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                stray.append(text[:300])
                continue
            moment = datetime.fromisoformat(line["time"]).timestamp()
            at = int(moment * 1e9) - wall_minus_monotonic_ns
            if "exception" in line:
                wrong.append(f"{line['stage']}: {line['message']}\n{line['exception']}")
            if line["stage"] != "supervisor":
                continue
            code, service = line.get("code"), line.get("service")
            if service is None or code is None or code == -signal.SIGKILL:
                continue
            self.deaths.append(Span(service, at - 500_000_000, at, f"exit {code}"))
            if code != BUSY_EXIT:
                wrong.append(f"the {service} ended by itself with exit code {code}")
        if any(stray):
            wrong.append("on standard error: " + " | ".join(filter(None, stray))[:3_000])
        return wrong

    def statuses(self, seconds: float = 1.0) -> dict[str, str]:
        """The last status that each stage broadcasts within this time: for a stuck pipeline."""
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.SUB)
        socket.set(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, TOPIC_STATUS)
        for stage in STAGES:
            socket.connect(endpoint(self.settings, stage, "index"))
        found = dict.fromkeys(STAGES, "silent")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not socket.poll(50):
                continue
            with suppress(FrameError):
                message = decode(socket.recv_multipart()[1:])
                if isinstance(message, StageStatus):
                    found[message.stage] = str(message)
        context.destroy(linger=0)
        return found

    def abort_services(self) -> None:
        """SIGABRT to the services: each writes its stack to the logs and dies."""
        for pid in self.services().values():
            _signal(pid, signal.SIGABRT)
        time.sleep(0.5)


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _await_end(pid: int) -> None:
    until = time.monotonic() + 5.0
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.001)
