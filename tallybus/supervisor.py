"""The whole pipeline as processes under one supervisor: what `tallybus up` runs.

It starts one process per service. It restarts what dies, the first time at once and then with
growing pauses. It stops all in pipeline order.

Some services are not restarted: one that cannot recover (damage, a full disk, a wrong setting), one
that keeps ending in the same way, and one that another pipeline's service keeps replacing. Then the
supervisor says why, stops the others, and exits with that service's code.

While it works it holds a lock in the data folder and one in the run folder. So there is one
supervisor for each. ADR 0021 says which failures are final.
"""

from __future__ import annotations

import dataclasses
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, ClassVar, Final

from tallybus.client.sync import Client
from tallybus.common import logs
from tallybus.common.errors import (
    EXIT_BUSY,
    EXIT_HANGUP,
    EXIT_HOPELESS,
    EXIT_REPLACED,
    EXIT_SOFTWARE,
    FINAL_EXIT_CODES,
    ServiceError,
)
from tallybus.common.files import FileLock, FileMissing, Storage, StorageError
from tallybus.common.security import exposure, pairs
from tallybus.common.security.keys import GATEWAY_NAME, ClientKey
from tallybus.common.service import cpus, startup
from tallybus.common.service.failures import Failures
from tallybus.common.service.process import stop_signals
from tallybus.common.service.run_folder import lock_run_folder, make_named_folder, own_run_folder
from tallybus.common.service.runner import RESTARTS, SUPERVISED, run_stage
from tallybus.common.settings import addresses
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.endpoints import reached_at
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import START_ORDER, STOP_ORDER
from tallybus.errors import AccessDenied, TallybusError

BUSY_SECONDS: Final = 5.0
"""How long after the start services of an earlier run may still hold locks and endpoints."""
STOP_SECONDS: Final = 10.0
LAST_ANSWERS_SECONDS: Final = 0.2
"""After a failure, how long those that depend on the failed service have for what still can be
answered: most of it no longer can."""
WATCH_SECONDS: Final = 0.05
ENDING_SECONDS: Final = 0.005
STILL_SECONDS: Final = 10.0
FIRST_PAUSE: Final = 0.05
"""Before the second start in a row; before the first there is none."""
LONGEST_PAUSE: Final = 5.0
HEALTHY_SECONDS: Final = 10.0
"""A service that ran this long counts as well again."""
MOST_REPLACED: Final = 3
"""How often in a row a service may have been replaced by one that was not started here."""
MOST_CRASHES: Final = 3
"""How often in a row a service may crash in the same way before it was healthy."""
MOST_ALIKE: Final = 10
"""How often it may end with the same exit code that is not one of ours, which takes some 15 s."""
LOOK_SECONDS: Final = 1.0
"""How often the supervisor looks whether its lock is still there."""
LOCK_NAME: Final = "supervisor"
_CRASHES: Final = frozenset(
    -number
    for number in (
        *(signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL),
        *(signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP),
    )
)
_PASSING: Final = frozenset({EXIT_BUSY, EXIT_REPLACED, EXIT_HANGUP, 0, -signal.SIGKILL})
"""Ends that say nothing about the next start. SIGKILL comes from outside."""
_COUNTED: Final = frozenset({EXIT_SOFTWARE})
"""What a service itself counts, by the place in its code."""


class StartFailed(ServiceError):
    """The pipeline did not come up. Fields: `service` ("" when none ended), `code` (its exit
    code)."""

    def __init__(self, service: str, code: int | None, seconds: float) -> None:
        what = (
            f"the {service} ended with exit code {code}; its log says why"
            if service
            else f"it did not answer within {seconds:g} seconds"
        )
        super().__init__(f"the pipeline did not start: {what}")
        self.service = service
        self.code = code


class CannotStart(ServiceError):
    """The system starts no more processes. Fields: `service`, `reason`."""

    exit_code: ClassVar[int] = EXIT_BUSY

    def __init__(self, service: str, error: OSError) -> None:
        super().__init__(
            f"the process of the {service} cannot be started: {error.strerror or error}; look at "
            "the limits of processes, memory and open files, and at the installation"
        )
        self.service = service
        self.reason = str(error)


@dataclasses.dataclass(slots=True)
class Child:
    """One service's process and how often it was started."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    restarts: int = 0
    pause: float = 0.0
    due: float | None = None
    replaced: int = 0
    ended: int = 0
    """Exit code of the last time."""
    alike: int = 0
    """How often in a row it ended so before it was healthy."""
    handle: int | None = None
    """Descriptor of the process, readable once it has ended, where the system has such."""


class Supervisor:
    """Five child processes. `start`, then `watch` regularly, then `stop`; or `run`, which does it
    all."""

    def __init__(self, settings: Settings, *, stderr: Any = None) -> None:
        self.settings = settings
        self.children = {name: Child(name) for name in START_ORDER}
        self.failed: tuple[str, int] | None = None
        self._log = logs.get("supervisor")
        self._stderr = stderr
        self._stopping = False
        self._hurried = False
        self._lock: FileLock | None = None
        self._data_lock: FileLock | None = None
        self._look = 0.0
        self._lock_told = ""
        self._started = 0.0
        self._key: ClientKey | None = None
        self._environment = _environment(settings)

    def pid(self, service: str) -> int:
        """Process id of a service, 0 while it is not running."""
        process = self.children[service].process
        return process.pid if process is not None and process.poll() is None else 0

    def start(self) -> None:
        """Start all five; they find one another in any order.

        Raises LockHeld when another supervisor works on this data folder or run folder,
        SettingsError, ExposedAddress and KeyFileError when the services could not or should not
        run so, CannotStart when the system starts no process.
        """
        exposure.check(self.settings)
        cpus.check(self.settings)
        for name in START_ORDER:
            addresses.check(self.settings, name)
        self._key = _own_key(self.settings)
        storage = Storage()
        if self._lock is None:
            self._lock = lock_run_folder(self.settings, storage, LOCK_NAME)
        if self._data_lock is None:
            # A run folder may lie where temporary files are removed, and its locks with them.
            folder = configuration.data_folder(self.settings)
            make_named_folder(self.settings, storage, folder, "ledger.data")
            self._data_lock = storage.lock_exclusive(folder / f"{LOCK_NAME}.lock")
        self._started = time.monotonic()
        for name in START_ORDER:
            # Somebody has asked for it: what failed before may have been mended.
            self._failures(name).forget()
            self._spawn(self.children[name])

    def _failures(self, service: str) -> Failures:
        storage = Storage()
        return Failures(storage, lambda: own_run_folder(self.settings, storage), service)

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until the pipeline answers. Raises `StartFailed`.

        With an infinite timeout it waits as long as no service has ended for good: a long log is
        replayed for minutes. It says so every ten seconds.
        """
        began = told = time.monotonic()
        with self._client() as client:
            while (now := time.monotonic()) < began + timeout and not self._stopping:
                self.watch()
                if self.failed is not None:
                    raise StartFailed(*self.failed, timeout)
                if now - told >= STILL_SECONDS:
                    told = now
                    self._log.info("still starting", extra=logs.fields(seconds=round(now - began)))
                try:
                    client.pipeline_index(timeout=0.25)
                    return
                except AccessDenied:
                    # Told without delay: it would be asked again and again, all the time.
                    self.wait(WATCH_SECONDS)
                except TallybusError:
                    continue
        if not self._stopping:
            raise StartFailed("", None, timeout)

    def _client(self) -> Client:
        endpoint = reached_at(self.settings.gateway.endpoint)
        return Client(endpoint) if self._key is None else Client(endpoint, key=self._key)

    def watch(self) -> None:
        """Restart what died and is due; note what cannot be restarted in `failed`."""
        now = time.monotonic()
        if now >= self._look:
            self._look = now + LOOK_SECONDS
            self._keep_lock()
        for child in self.children.values():
            if child.process is None:
                if child.due is not None and now >= child.due:
                    self._spawn_again(child)
                continue
            code = child.process.poll()
            if code is None:
                continue
            self._forget(child)
            if now - child.started >= HEALTHY_SECONDS:
                child.pause = 0.0
                child.replaced = 0
                child.alike = 0
            child.replaced += code == EXIT_REPLACED
            child.alike = child.alike + 1 if code == child.ended else 1
            child.ended = code
            busy = code == EXIT_BUSY and now - self._started > BUSY_SECONDS
            if code in FINAL_EXIT_CODES or busy or child.replaced >= MOST_REPLACED:
                self._fail(child.name, code)
                return
            most = MOST_CRASHES if code in _CRASHES else MOST_ALIKE
            if child.alike >= most and code not in _PASSING | _COUNTED:
                self._log.error(
                    "a service ended in the same way again and again, soon after its start",
                    extra=logs.fields(service=child.name, code=code, times=child.alike),
                )
                self._fail(child.name, EXIT_HOPELESS)
                return
            child.due = now + child.pause
            self._log.warning(
                "a service died and is started again",
                extra=logs.fields(service=child.name, code=code, pause=child.pause),
            )
            child.pause = min(max(child.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            if child.due <= now:
                self._spawn_again(child)

    def _spawn_again(self, child: Child) -> None:
        child.restarts += 1
        try:
            self._spawn(child)
        except CannotStart as error:
            # That may pass, and the others go on meanwhile.
            child.pause = min(max(child.pause * 2, FIRST_PAUSE), LONGEST_PAUSE)
            child.due = time.monotonic() + child.pause
            self._log.error(str(error), extra=logs.fields(pause=child.pause))

    def _keep_lock(self) -> None:
        """Whatever cleans temporary folders may take the lock away: take the new file's."""
        lock = self._lock
        if lock is None or lock.in_place:
            return
        try:
            self._lock = lock_run_folder(self.settings, Storage(), LOCK_NAME)
        except ServiceError as error:
            # One that finds it free is refused by the lock in the data folder, and gives it back.
            if str(error) != self._lock_told:
                self._lock_told = str(error)
                self._log.error("the lock in the run folder is gone: %s", error)
        else:
            self._lock_told = ""
            lock.release()

    def wait(self, seconds: float) -> None:
        """Until `watch` has something to do, at most so long."""
        poll = select.poll()
        now = time.monotonic()
        for child in self.children.values():
            if child.handle is not None:
                poll.register(child.handle, select.POLLIN)
            elif child.due is not None:
                seconds = min(seconds, child.due - now)
        poll.poll(max(0.0, seconds * 1_000))

    def stop(self) -> None:
        """Stop all in pipeline order; what does not stop in time is killed."""
        for name in STOP_ORDER:
            child = self.children[name]
            process, child.due = child.process, None
            if process is None:
                continue
            if process.poll() is None:
                self._end(name, process)
            self._forget(child)
            if process.returncode in FINAL_EXIT_CODES and self.failed is None:
                # Whoever runs this must not take it for a clean stop.
                self._fail(name, process.returncode)
        if self._lock is not None:
            self._remove_sockets()
            self._lock.release()
            self._lock = None
        if self._data_lock is not None:
            self._data_lock.release()
            self._data_lock = None

    def _end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        # A stopped process takes no other signal than this one.
        process.send_signal(signal.SIGCONT)
        hurried = False
        limit = time.monotonic() + STOP_SECONDS
        hurry = time.monotonic() + (LAST_ANSWERS_SECONDS if self._cut_off(name) else STOP_SECONDS)
        while process.poll() is None:
            now = time.monotonic()
            if now > limit:
                self._log.warning("killed, it did not stop", extra=logs.fields(service=name))
                process.kill()
                process.wait()
            elif (self._hurried and not hurried) or now > hurry:
                # Another one ends its draining. Repeated, for two at a time may arrive as one.
                process.send_signal(signal.SIGTERM)
                hurried, hurry = True, now + WATCH_SECONDS
            time.sleep(ENDING_SECONDS)

    def _cut_off(self, name: str) -> bool:
        """Whether a service waits for one that has failed and does not come back."""
        return self.failed is not None and (
            STOP_ORDER.index(name) < STOP_ORDER.index(self.failed[0])
        )

    def _fail(self, name: str, code: int) -> None:
        self.failed = (name, code)
        self._log.error(
            "a service cannot go on, stopping all", extra=logs.fields(service=name, code=code)
        )

    def _remove_sockets(self) -> None:
        """Remove the socket files of services that were killed and could not do it themselves."""
        if self.settings.bus.transport != "ipc":
            return
        storage = Storage()
        folder = configuration.run_folder(self.settings)
        for stage in STOP_ORDER:
            try:
                lock = storage.lock_exclusive(folder / f"{stage}.lock")
            except StorageError:
                continue  # held: another run has taken over; or there is no run folder
            for name in configuration.SOCKETS:
                with suppress(FileMissing):
                    storage.remove(folder / f"{stage}.{name}")
            lock.release()

    def run(self, on_ready: Callable[[], None] | None = None) -> int:
        """Start, watch until SIGTERM, SIGINT, SIGHUP (the terminal is gone) or a failure, stop;
        returns the exit code. Of these signals, those that are ignored already stay so."""

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            self._hurried = self._stopping
            self._stopping = True

        before = {number: signal.signal(number, on_signal) for number in stop_signals()}
        logs.setup(
            "supervisor", level=self.settings.logging.level, format=self.settings.logging.format
        )
        try:
            self.start()
            self.wait_ready(math.inf)
            if on_ready is not None and not self._stopping:
                self._tell_ready(on_ready)
            while not self._stopping and self.failed is None:
                self.watch()
                self.wait(WATCH_SECONDS)
        except StartFailed as error:
            self._log.error(str(error))
            return error.code or 1
        except ServiceError as error:
            self._log.error(str(error), extra=logs.fields(error=type(error).__name__))
            return error.exit_code
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.failed[1] if self.failed is not None else 0

    def _tell_ready(self, on_ready: Callable[[], None]) -> None:
        try:
            on_ready()
        except (OSError, ValueError) as error:
            # Nobody reads it, or the disk under it is full. The ledger is up all the same.
            self._log.warning(
                "the ledger is up, but its endpoint cannot be printed",
                extra=logs.fields(reason=str(error)),
            )

    def command(self, service: str) -> list[str]:
        """The process that runs a service."""
        restarts = str(self.children[service].restarts)
        arguments = [SUPERVISED, str(os.getpid()), RESTARTS, restarts]
        return startup.command(f"tallybus.services.{service}", arguments)

    def _spawn(self, child: Child) -> None:
        child.due = None
        child.started = time.monotonic()
        try:
            child.process = subprocess.Popen(
                self.command(child.name),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stderr=self._stderr,
                # A terminal's Ctrl-C is for the supervisor, which stops the services in order.
                start_new_session=True,
            )
        except OSError as error:
            raise CannotStart(child.name, error) from error
        child.handle = _handle(child.process.pid)

    @staticmethod
    def _forget(child: Child) -> None:
        child.process = None
        if child.handle is not None:
            os.close(child.handle)
            child.handle = None


def _handle(pid: int) -> int | None:
    """A descriptor that is readable once the child has ended; None where the system gives none: an
    old kernel has no such call, a sandbox may forbid it. Then `watch` finds out a little later."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def serve(stage: str, settings: Settings) -> int:
    """Run one service in this process until it is told to stop; returns the exit code."""
    return run_stage(stage, settings)


@contextmanager
def running_pipeline(settings: Settings, *, stderr: Any = None) -> Iterator[Supervisor]:
    """The five services as processes, up and answering, with exactly these settings."""
    supervisor = Supervisor(settings, stderr=stderr)
    try:
        supervisor.start()
        supervisor.wait_ready()
        yield supervisor
    finally:
        supervisor.stop()


def _own_key(settings: Settings) -> ClientKey | None:
    """With keys, the gateway's own: its host may ask with it, and change nothing."""
    keys = pairs.load(settings, "gateway")
    if keys is None or keys.clients is None:
        return None
    return ClientKey(GATEWAY_NAME, keys.clients, keys.clients.public)


def _environment(settings: Settings) -> Mapping[str, str]:
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(configuration.ENVIRONMENT_PREFIX)
    }
    return startup.environment({**others, **settings.to_environment()})
