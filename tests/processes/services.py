"""Single services as processes, each with settings of its own, for tests without a supervisor.

So one of them can be replaced by another program, by a second one, or by nothing. Whatever is
started here is ended here, by process id.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tallybus.common.settings.sections import SOCKETS, Settings, endpoint, run_folder
from tallybus.common.stages import START_ORDER
from tests.processes.pipeline import (
    PATIENCE_S,
    Pipeline,
    children_of,
    environment,
    eventually,
    is_alive,
    tidy,
)
from tests.support.folders import PROJECT

FAULTY: Final = "tests.processes.faulty_service"


class Service:
    """One process. What it writes to standard error is in `path`."""

    def __init__(self, words: list[str], variables: Mapping[str, str], path: Path) -> None:
        self.path = path
        self.output = path.with_suffix(".out")
        with path.open("ab") as errors, self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *words],
                env={**environment(), **variables},
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
            )
        self.pid = self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def text(self) -> str:
        """Everything it has written so far."""
        return self.path.read_text("utf-8", "replace")

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log, one dictionary for each line."""
        return log_lines(self.text)

    def said(self, message: str) -> bool:
        return any(line["message"] == message for line in self.lines)

    def wait_started(self) -> None:
        """Until it has opened its sockets."""
        self._wait_said("started")

    def wait_ready(self) -> None:
        """Until it has recovered and has its place in the pipeline."""
        self._wait_said("ready")

    def _wait_said(self, message: str) -> None:
        what = f"{self.path.name} says {message!r}"
        eventually(lambda: self.said(message) or not self.running, what)
        assert self.running, f"it ended with {self.process.poll()}:\n{self.text}"

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            error.add_note(self.text[-3000:])
            raise

    def stop(self) -> int:
        """A clean stop; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def freeze(self) -> None:
        """SIGSTOP, and wait until it really stands still."""
        self.process.send_signal(signal.SIGSTOP)
        eventually(lambda: state_of(self.pid) in "Tt", f"{self.path.name} stands still")

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.running:
            self.process.kill()
        self.process.wait(PATIENCE_S)


class Up(Service):
    """`tallybus up` with these settings; with `faults`, for its service `faulty`.

    Use it as a context: then nothing of it is left, however it ended.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        *,
        faulty: str = "wal",
        faults: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        options = []
        for entry in settings.effective():
            if entry.origin != "default":
                options += ["--set", f"{entry.setting.key}={entry.value}"]
        path = folder / f"up.{len(list(folder.glob('up.*.log')))}.log"
        if faults is None:
            super().__init__(["tallybus", "up", *options], {}, path)
        else:
            words = ["tests.processes.faulty_up", faulty, *options]
            super().__init__(words, {"DISK_FAULTS": json.dumps(faults)}, path)
        self.seen: set[int] = set()

    def __enter__(self) -> Up:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"--- up ({self.process.poll()}) ---\n{self.text[-6000:]}")
        self.services()
        if self.running:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.kill()
        for pid in filter(is_alive, self.seen):
            os.kill(pid, signal.SIGKILL)
        tidy(self.settings)

    def wait_up(self) -> None:
        """Until it has printed the endpoint."""
        endpoint_ = self.settings.gateway.endpoint
        eventually(lambda: self.output.read_text() or not self.running, "the endpoint is printed")
        assert self.output.read_text() == f"{endpoint_}\n", f"it ended with {self.process.poll()}"
        assert set(self.services()) == set(START_ORDER)

    def services(self) -> dict[str, int]:
        """Process ids of its services, by name."""
        found: dict[str, int] = {}
        for pid in children_of(self.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except OSError:
                continue
            names = [word.removeprefix("tallybus.services.") for word in words]
            found |= {name: pid for name in START_ORDER if name in names}
        self.seen |= set(found.values())
        return found

    def assert_nothing_left(self) -> None:
        """When it has ended: no process of its own, no socket in the run folder."""
        assert not self.running
        assert not any(map(is_alive, self.seen))
        assert processes_of(self.settings) == []
        assert left_over(self.settings) == []


class Services:
    """Processes of one test. `folder` takes their logs, named after them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.all: dict[str, Service] = {}
        self._settings: list[Settings] = []

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for service in self.all.values():
            service.kill()
        for settings in self._settings:
            tidy(settings)
        if error is not None:
            for name, service in self.all.items():
                error.add_note(
                    f"--- {name} ({service.process.returncode}) ---\n{service.text[-1500:]}"
                )

    def start(
        self,
        stage: str,
        settings: Settings,
        name: str = "",
        *,
        faults: Mapping[str, Any] | None = None,
    ) -> Service:
        """A service with these settings, called `name`; with `faults` on a disk that has them."""
        name = name or stage
        assert name not in self.all or not self.all[name].running, f"two processes called {name}"
        variables = settings.to_environment()
        words = [f"tallybus.services.{stage}"]
        if faults is not None:
            variables |= {"DISK_FAULTS": json.dumps(faults)}
            words = [FAULTY, stage]
        self._settings.append(settings)
        number = sum(key.partition(".")[0] == name for key in self.all)
        if name in self.all:
            self.all[f"{name}.{number}"] = self.all.pop(name)
        service = Service(words, variables, self.folder / f"{name}.{number}.log")
        self.all[name] = service
        return service

    def start_all(self, settings: Settings, but: tuple[str, ...] = ()) -> None:
        """The five services, or those that are not in `but`."""
        for stage in START_ORDER:
            if stage not in but:
                self.start(stage, settings)

    def __getitem__(self, name: str) -> Service:
        return self.all[name]

    def stop(self, *names: str) -> None:
        """Clean stops, one after the other."""
        for name in names:
            assert self[name].stop() == 0, self[name].text


def log_lines(text: str) -> list[dict[str, Any]]:
    """Lines of JSON logs; what is no JSON is a traceback or worse, and fails."""
    lines = text.splitlines()
    if lines and not text.endswith("\n"):
        lines.pop()  # still being written
    return [json.loads(line) for line in lines]


def said(pipeline: Pipeline, message: str, **fields: object) -> list[dict[str, Any]]:
    """Lines of the services' logs with this message and these fields."""
    return [
        line
        for line in log_lines(pipeline.log_text())
        if line["message"] == message and fields.items() <= line.items()
    ]


def state_of(pid: int) -> str:
    """The process's state as the kernel names it: R, S, T (stopped) …; "X" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def meeting(settings: Settings, *stages: str) -> dict[str, str]:
    """Overrides for `make_settings`: these stages are reached where `settings` says they are."""
    return {
        f"bus__{stage}_{socket}": endpoint(settings, stage, socket)
        for stage in stages
        for socket in SOCKETS
    }


def left_over(settings: Settings) -> list[str]:
    """Sockets in the run folder."""
    folder = run_folder(settings)
    return (
        sorted(path.name for path in folder.iterdir() if path.is_socket())
        if folder.exists()
        else []
    )


def processes_of(settings: Settings) -> list[int]:
    """Services on this machine that were started with this data folder and still run."""
    wanted = f"TALLYBUS_LEDGER_DATA={settings.ledger.data}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables and is_alive(int(entry.name)):
            found.append(int(entry.name))
    return found
