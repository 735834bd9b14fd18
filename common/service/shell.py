"""The loop of every service: wait, drain, step, publish.

A shell owns sockets and files and decides nothing. `Shell.turn` hands what arrived to the core,
ticks it and sends what it put out. Other threads (the committer) wake the loop through `wake`;
signals and an embedding process stop it through `stop`.
"""

from __future__ import annotations

import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from tallybus.common import logs
from tallybus.common.buffers import Buffer
from tallybus.common.bus.handshakes import (
    BAD_HANDSHAKE,
    LOOK_NS,
    NO_ENCRYPTION,
    HandshakeReport,
)
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
    TOPIC_EVENT,
    TOPIC_METRICS,
    TOPIC_STATUS,
    FrameError,
    Message,
    Presence,
    StageMetrics,
    StageStatus,
    decode,
    encode,
)
from tallybus.common.bus.sockets import Bus, BusLimits, Context, EndpointTaken, Port, Selector
from tallybus.common.errors import EXIT_SETTINGS, ServiceError, SettingsError
from tallybus.common.files import FileLock, LockHeld, Storage, StorageError
from tallybus.common.metrics.counters import Meter
from tallybus.common.metrics.health import Vitals, readiness
from tallybus.common.metrics.packed import pack
from tallybus.common.metrics.samples import samples_of
from tallybus.common.security import exposure, pairs
from tallybus.common.service import cpus
from tallybus.common.service.core import HELLO_EVERY_NS, PACE_NS, StageCore
from tallybus.common.settings import addresses
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.sections import Settings

if TYPE_CHECKING:
    from tallybus.common.metrics.server import MetricsServer
    from tallybus.common.security.doorkeeper import Doorkeeper

REST_NS: Final = 1_000_000
"""How long a `low_cpu` service rests after a turn with work, so that more gathers for the next."""
DRAIN_NS: Final = 5_000_000_000
"""How long a clean stop waits for what is under way."""
DRAIN_INPUT_NS: Final = 4_000_000
"""How long a turn reads one socket: expensive messages of some must not hold up all."""
PROGRESS_NS: Final = 1_000_000_000
METRICS_NS: Final = 1_000_000_000
"""How often a service tells its metrics where the gateway has a page to show them on."""
RUN_FOLDER_NS: Final = 1_000_000_000
"""How often a service looks whether its lock and its sockets are still there."""
_NO_PLACE: Final = frozenset(
    (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
)
"""Why a folder cannot be made that say nothing about the disk."""
READY_LOOK_NS: Final = 20_000_000
"""How often a service that is not ready yet looks whether it is."""


class UnsafeRunFolder(ServiceError):
    """Others could read or replace this ledger's sockets. Fields: `folder`, `owner`, `mode`."""

    exit_code: ClassVar[int] = EXIT_SETTINGS
    restart: ClassVar[bool] = False

    def __init__(self, folder: str, owner: int, mode: int) -> None:
        super().__init__(
            f"the run folder {folder} belongs to user {owner} with mode {mode:04o}; it must "
            f"belong to user {os.getuid()} with mode 0700: correct it, or set bus.run_folder"
        )
        self.folder = folder
        self.owner = owner
        self.mode = mode


def make_named_folder(settings: Settings, storage: Storage, folder: Path, key: str) -> None:
    """Make a folder that the setting `key` leads to, where it is missing.

    Raises SettingsError where there can be none, StorageError where the disk is to blame.
    """
    try:
        storage.make_folder(folder)
    except StorageError as error:
        if error.errno not in _NO_PLACE:
            raise
        origin = settings.origins.get(key, "default")
        reason = f"the folder {folder} cannot be made: {os.strerror(error.errno)}; choose another"
        raise SettingsError(key, origin, reason) from error


def own_run_folder(settings: Settings, storage: Storage) -> Path:
    """The run folder, made where it is missing, and surely nobody else's.

    Raises UnsafeRunFolder, and what `make_named_folder` does.
    """
    folder = configuration.run_folder(settings)
    key = "ledger.data" if settings.bus.run_folder is None else "bus.run_folder"
    make_named_folder(settings, storage, folder, key)
    state = os.stat(folder)
    if state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise UnsafeRunFolder(str(folder), state.st_uid, state.st_mode & 0o777)
    return folder


def lock_run_folder(settings: Settings, storage: Storage, name: str) -> FileLock | None:
    """Hold `name` in the run folder, which is made where it is missing; None: there is no folder.

    Raises what `own_run_folder` does, StorageError, and LockHeld when another process holds it.
    """
    if settings.bus.transport != "ipc":
        return None
    return storage.lock_exclusive(own_run_folder(settings, storage) / f"{name}.lock")


@dataclass(slots=True)
class Input:
    """A socket, what to do with each of its messages, whether to read it now, how many in a
    turn."""

    port: Port
    handle: Callable[[list[Buffer], int], None]
    wanted: Callable[[], bool]
    most: int


class Shell(ABC):
    """Base of the services. `prepare` opens what is needed; then `run` turns until `stop`."""

    stage: str
    core: StageCore

    def __init__(self, settings: Settings, context: Context, storage: Storage) -> None:
        self.settings = settings
        self.storage = storage
        self.log = logs.get(self.stage)
        self.bus = Bus(
            context,
            lambda stage, socket, bind: configuration.endpoint(settings, stage, socket, bind=bind),
            BusLimits(settings.bus.high_water_mark, settings.bus.max_message_bytes),
        )
        self._context = context
        self.malformed = 0
        self.restarts = 0
        self.refused: dict[str, int] = {}
        """Connections that were not let in, by reason; each reason is counted by one thread."""
        self.doorkeeper: Doorkeeper | None = None
        self._handshakes = HandshakeReport(self.log, self.refused)
        self._handshakes_due_ns = 0
        self.vitals = Vitals(time.monotonic_ns())
        self.meter: Meter | None = None
        self._metrics: MetricsServer | None = None
        self._watched = configuration.page_address(settings) is not None
        self._metrics_due_ns = 0
        self._started = time.time()
        self.heartbeat_ns = settings.bus.heartbeat_ms * 1_000_000
        self._inputs: list[Input] = []
        self._stopping = False
        self._hurried = False
        self._stopped_by = ""
        self._parent = 0
        self._look_ns = 0
        self._rests = settings.service(self.stage).wait == "low_cpu"
        self._selector = Selector(settings.service(self.stage).wait)
        self._run_lock: FileLock | None = None
        self._run_folder_due_ns = 0
        self._run_folder_told = ""
        self.ready_since: float | None = None
        """When it became ready, by the monotonic clock in seconds."""
        self._publisher: Port | None = None
        self._router: Port | None = None
        self._peer: Port | None = None
        self._push: Port | None = None
        self._push_blocked = False
        self._rewinds = 0

    # -- set-up ----------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Recover, make the core and open the sockets."""

    def new_incarnation(self) -> int:
        """A random u64 other than 0: what tells this start from every other one."""
        return int.from_bytes(os.urandom(8), "little") | 1

    def lock_run_folder(self) -> None:
        """Make sure that this is the only one of its stage: binding an ipc address steals it
        silently."""
        self._run_lock = lock_run_folder(self.settings, self.storage, self.stage)

    def _look_at_run_folder(self, now_ns: int) -> None:
        """Whatever cleans temporary folders may take locks and sockets away under a service that
        runs: make them again. Connections that there are live on meanwhile.

        Raises LockHeld and EndpointUnusable when another process has taken the place.
        """
        self._run_folder_due_ns = now_ns + RUN_FOLDER_NS
        lock = self._run_lock
        if (lock is None or lock.in_place) and not self.bus.lost_files():
            return
        try:
            if lock is not None and not lock.in_place:
                self.lock_run_folder()
                lock.release()
            self.bus.listen_again()
        except (LockHeld, EndpointTaken):
            raise
        except ServiceError as error:
            # Those that are connected need no folder.
            if self._run_folder_told != str(error):
                self._run_folder_told = str(error)
                self.log.error("the run folder was removed and cannot be made again: %s", error)
            return
        self._run_folder_told = ""
        self.log.warning("what was removed from the run folder was made again")

    def pin(self) -> None:
        """Run on the configured CPUs only."""
        cpus.pin(self.settings, self.stage)

    def read(
        self,
        port: Port,
        handle: Callable[[list[Buffer], int], None],
        wanted: Callable[[], bool] = lambda: True,
        most: int = 64,
    ) -> None:
        """Read a socket in every turn, at most `most` messages."""
        self._inputs.append(Input(port, handle, wanted, most))

    def open_stage(self, successor: str | None, *, hello: bool = True) -> None:
        """The sockets that every stage of the pipeline has, and those to its successor.

        With `hello`, also the one over which it says hello to the successor.
        """
        if self._publisher is None:
            self.open_publisher()
        self._router = self.bus.router(self.stage)
        self.read(self._router, self._on_control)
        if successor is not None:
            self._push = self.bus.push(successor)
            if hello:
                self.open_control(successor)

    def open_publisher(self) -> None:
        """The socket for broadcasts alone, for a stage that recovers before it opens the others."""
        self._publisher = self.bus.publisher(self.stage)

    def open_control(self, stage: str) -> None:
        """The socket for hellos and questions to another stage."""
        self._peer = self.bus.dealer(stage)
        self.read(self._peer, self._on_peer)

    def open_client_of(self, successor: str) -> None:
        """Only the data socket to a successor (the gateway says no hello)."""
        self._push = self.bus.push(successor)

    # -- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until `stop` is called. Raises what makes the service unable to go on."""
        try:
            self.pin()
            exposure.check(self.settings, (self.stage,))
            addresses.check(self.settings, self.stage)
            self._set_doorkeeper()
            self._serve_metrics()
            self.prepare()
            self._present()
            self.vitals.prepared = True
            self.log.info("started")
            self._turn_until_ready()
            while not self._stopping:
                self.turn()
            self._tell_stopping()
            self._drain_out()
        finally:
            self.close()

    def _turn_until_ready(self) -> None:
        """The log says "ready" when /readyz does for the first time, and not before."""
        look_ns = 0
        while not self._stopping:
            self.turn()
            now = time.monotonic_ns()
            if now < look_ns:
                continue
            if readiness(self, now).good:
                self.ready_since = time.monotonic()
                self.log.info("ready")
                return
            look_ns = now + READY_LOOK_NS

    def _set_doorkeeper(self) -> None:
        """With keys: read those of this service, and let in nobody else from the first socket on.

        Raises KeyFileError.
        """
        keys = pairs.load(self.settings, self.stage)
        self.bus.security = keys
        folder = self.settings.security.keys
        if keys is None or folder is None:
            return
        if (keys.clients if self.stage == "gateway" else keys.bus) is None:
            return  # nothing of it listens over tcp
        # Told from the start, as 0: rates of them are right from the first one on.
        self.refused.update({NO_ENCRYPTION: 0, BAD_HANDSHAKE: 0})
        # Not for those who do without.
        from tallybus.common.security.doorkeeper import Doorkeeper

        self.doorkeeper = Doorkeeper(
            self._context, keys, folder, self.log, self.refused, changed=self.wake
        )
        self.doorkeeper.start()

    def _look_at_handshakes(self, now_ns: int) -> None:
        if not self.bus.handshakes or now_ns < self._handshakes_due_ns:
            return
        self._handshakes_due_ns = now_ns + LOOK_NS
        self._handshakes.take(self.bus.handshakes.look(), now_ns / 1e9)

    def new_meter(self) -> Meter:
        """What this service counts; asked for only when its metrics are served or told."""
        return Meter()

    def _serve_metrics(self) -> None:
        address = configuration.metrics_address(self.settings, self.stage)
        if address is not None or self._watched:
            self.meter = self.new_meter()
        if address is None:
            return
        # Not for those who do without: the exposition alone takes 9 MB.
        from tallybus.common.metrics.exposition import serve

        self._metrics = serve(self, address)

    def _tell_metrics_in_time(self, now_ns: int) -> None:
        if not self._watched or now_ns < self._metrics_due_ns:
            return
        self._metrics_due_ns = now_ns + METRICS_NS
        try:
            self.tell_metrics(
                StageMetrics(
                    stage=self.stage,
                    incarnation=self.core.incarnation if self.vitals.prepared else 0,
                    time=time.time_ns(),
                    reasons=readiness(self, now_ns).facts["reasons"],
                    samples=pack(samples_of(self, self._started, now_ns)),
                )
            )
        except Exception:
            # Whatever it is, the ledger goes on without being watched.
            self._watched = False
            self.log.exception("metrics are not told to the gateway's page any more")

    def tell_metrics(self, message: StageMetrics) -> None:
        """Hand the service's numbers to whoever shows them: gateways, by broadcast."""
        if self._publisher is not None:
            self._publisher.send([TOPIC_METRICS, *encode(message)])

    def _present(self) -> None:
        own = self.settings.service(self.stage)
        self.core.presence = Presence(
            stage=self.stage,
            incarnation=self.core.incarnation,
            pid=os.getpid(),
            started=time.time_ns(),
            cpu=own.cpu,
            wait=own.wait,
        )

    def finished(self) -> bool:
        """Whether nothing is left that a clean stop has to wait for: the successor has it all."""
        link = self.core.outgoing
        return link is None or link.expected >= link.end

    def _drain_out(self) -> None:
        limit = time.monotonic_ns() + DRAIN_NS
        while not self.finished():
            if self._hurried or time.monotonic_ns() > limit:
                self.log.warning("stopped before everything was answered")
                return
            self.turn()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: long work in `prepare` and `step` looks at it."""
        return self._stopping

    def stop(self, signal: str = "") -> None:
        """Make `run` return once everything under way is done; when called again, after the current
        turn. May be called from any thread, and from the handler of the named signal."""
        self._stopped_by = signal or self._stopped_by
        self._hurried = self._stopping
        self._stopping = True
        self.wake()

    def _tell_stopping(self) -> None:
        if self._stopped_by:
            self.log.info("stopping", extra=logs.fields(signal=self._stopped_by))

    def report_progress(self, what: str) -> Callable[[int, int], None]:
        """A callback for long work: tells bytes done of bytes in all, at most once a second."""
        told_ns = time.monotonic_ns()

        def report(done: int, total: int) -> None:
            nonlocal told_ns
            now = time.monotonic_ns()
            self.vitals.working(now, what, done, total)
            self._tell_metrics_in_time(now)
            self._look_at_handshakes(now)
            if now - told_ns >= PROGRESS_NS:
                told_ns = now
                share = round(100 * done / total, 1) if total else 100.0
                self.log.info(what, extra=logs.fields(percent=share, bytes=done, of=total))

        return report

    def wake(self) -> None:
        """End the current wait. May be called from any thread."""
        self._selector.wake()

    def _orphaned(self, now_ns: int) -> bool:
        self._look_ns = now_ns + self.heartbeat_ns
        return os.getppid() != self._parent

    def stop_with(self, parent: int) -> None:
        """Stop when the process with this id is no longer the parent of this one."""
        self._parent = parent

    def turn(self) -> None:
        """One turn: wait for something, hand it to the core, send what comes out."""
        ready = self._await()
        now = self.vitals.turned_ns = time.monotonic_ns()
        if self._parent and now >= self._look_ns and self._orphaned(now):
            self.log.warning("stopping: the supervisor is gone")
            self._parent = 0
            # Its neighbours stop at this moment, too: there is nothing to wait for.
            self.stop()
            self.stop()
        for item in self._inputs:
            if item.port.socket in ready:
                self._drain(item, now)
        if not ready:
            self.idle()
        self._tell_metrics_in_time(now)
        self.step(now)
        self.flush(now)
        self._look_at_handshakes(now)
        if now >= self._run_folder_due_ns:
            self._look_at_run_folder(now)
        if self._rests and ready:
            time.sleep(REST_NS / 1e9)

    def step(self, now_ns: int) -> None:
        """What a shell does once a turn, between reading and sending."""

    def idle(self) -> None:
        """Called in a turn in which nothing arrived, for work that can be done at any time."""

    def flush(self, now_ns: int) -> None:
        """Send everything that the core has put out."""
        core = self.core
        core.tick(now_ns)
        link = core.outgoing
        if link is not None and link.rewinds != self._rewinds:
            self._rewinds = link.rewinds
            self.log.info(
                "sending again",
                extra=logs.fields(peer=link.peer, expected=link.expected, rewinds=link.rewinds),
            )
        if core.broadcasts and self._publisher is not None:
            for topic, broadcast in core.broadcasts:
                self._publisher.send([topic, *encode(broadcast)])
            core.broadcasts.clear()
        if self._push is not None:
            self._push_blocked = False
            # Outcomes were broadcast first: what reaches the log has been told as well.
            while (message := core.next_data()) is not None:
                if not self._push.send(encode(message)):
                    self._push_blocked = True
                    break
                # Not the turn's time: a long turn would look like a stall.
                core.data_sent(time.monotonic_ns())
        if core.replies and self._router is not None:
            for peer, reply in core.replies:
                self._router.send_to(peer, encode(reply))
            core.replies.clear()
        if core.requests and self._peer is not None:
            for request in core.requests:
                # Hellos and questions are repeated until they are answered, so none is queued here.
                self._peer.send(encode(request))
            core.requests.clear()

    def close(self) -> None:
        """Close everything. The state on disk is whole at any time, so there is nothing to save."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        self.bus.close()
        if self.doorkeeper is not None:
            # After the sockets: one that listens and asks nobody looks like another's to clients.
            self.doorkeeper.close()
            self.doorkeeper = None
        self.bus.release_files()
        if self._run_lock is not None:
            self._run_lock.release()
            self._run_lock = None
        self._selector.close()

    # -- messages --------------------------------------------------------------------------------

    def on_control(self, peer: bytes, message: Message, now_ns: int) -> None:
        """A hello or a query from another stage."""

    def on_reply(self, message: Message, now_ns: int) -> None:
        """An answer on the socket of `open_control`."""

    def on_broadcast(self, message: Message, now_ns: int) -> None:
        """A status, or an event from a stage that was subscribed to."""

    def on_data(self, message: Message, now_ns: int) -> None:
        """A batch from the predecessor."""

    def decoded(self, frames: list[Buffer]) -> Message | None:
        """The message, or None for a malformed one, which is counted, told once in a while and
        dropped."""
        try:
            return decode(frames)
        except FrameError as error:
            self.malformed += 1
            if self.malformed & (self.malformed - 1) == 0:
                self.log.warning(
                    "dropped a malformed message",
                    extra=logs.fields(reason=str(error), dropped=self.malformed),
                )
            return None

    def receive_broadcast(self, frames: list[Buffer], now_ns: int) -> None:
        """Handler of a subscriber socket."""
        if frames[0] not in (TOPIC_STATUS, TOPIC_ACKNOWLEDGE, TOPIC_EVENT, TOPIC_METRICS):
            return
        message = self.decoded(frames[1:])
        if message is not None:
            if isinstance(message, StageStatus):
                self.vitals.heard[message.stage] = now_ns
            self.on_broadcast(message, now_ns)

    def receive_data(self, frames: list[Buffer], now_ns: int) -> None:
        """Handler of the data socket."""
        message = self.decoded(frames)
        if message is None:
            return
        if self.meter is None:
            self.on_data(message, now_ns)
        else:
            started_ns = time.monotonic_ns()
            self.on_data(message, now_ns)
            self.meter.handled(getattr(message, "count", 0), started_ns)

    def _on_control(self, frames: list[Buffer], now_ns: int) -> None:
        message = self.decoded(frames[1:])
        if message is not None:
            self.on_control(bytes(frames[0]), message, now_ns)

    def _on_peer(self, frames: list[Buffer], now_ns: int) -> None:
        message = self.decoded(frames)
        if message is not None:
            self.on_reply(message, now_ns)

    # -- waiting ---------------------------------------------------------------------------------

    def timeout_ns(self, now_ns: int) -> int:
        """How long a wait may last when nothing arrives."""
        return self.heartbeat_ns // 2

    def _await(self) -> set[object]:
        for item in self._inputs:
            self._selector.watch(item.port, item.wanted())
        if self._push is not None:
            self._selector.watch(self._push, readable=False, writable=self._push_blocked)
        timeout_ns = self.timeout_ns(time.monotonic_ns())
        if self.core.status_pending:
            timeout_ns = min(timeout_ns, PACE_NS)
        if self.core.greeting:
            timeout_ns = min(timeout_ns, HELLO_EVERY_NS)
        return self._selector.wait(timeout_ns)

    def _drain(self, item: Input, now_ns: int) -> None:
        until = time.monotonic_ns() + DRAIN_INPUT_NS
        for _ in range(item.most):
            if not item.wanted():
                return
            frames = item.port.receive()
            if frames is None:
                return
            item.handle(frames, now_ns)
            if time.monotonic_ns() >= until:
                return
