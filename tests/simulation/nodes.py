"""The five services: their real cores, in shells with queues for sockets and `Disk` for files.

The log stage and the transactor run their real shells, too, and the transactor its real recovery:
what those do with messages and files is decided in them. For the others the few lines of a shell
are written again here.
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from tallybus.common.bus.messages import (
    TOPIC_STATUS,
    Message,
    StageStatus,
    Welcome,
    decode,
    encode,
)
from tallybus.common.bus.sockets import new_context
from tallybus.common.errors import ServiceError
from tallybus.common.files import Storage
from tallybus.common.service import loop
from tallybus.common.service.core import (
    FROM_ANSWER,
    FROM_BROADCAST,
    FROM_DATA,
    Channel,
    Source,
    StageCore,
)
from tallybus.common.settings.sections import Settings
from tallybus.common.snapshot.balances import DamagedSnapshot, Snapshot
from tallybus.common.snapshot.format import SnapshotMismatch
from tallybus.common.stages import DEPENDS_ON
from tallybus.common.wal.reader import read_log
from tallybus.common.wal.replay import ReplayError
from tallybus.services.gateway.clients.protocol import Limits
from tallybus.services.gateway.core import GatewayCore
from tallybus.services.sequencer.clock import Moment
from tallybus.services.sequencer.core import SequencerCore
from tallybus.services.snapshotter.cold_statuses import LogStatuses
from tallybus.services.snapshotter.core import SnapshotterCore
from tallybus.services.snapshotter.read_state import ReadState
from tallybus.services.transactor import core as transactor_core
from tallybus.services.transactor import recovery
from tallybus.services.transactor import service as transactor_service
from tallybus.services.transactor.core import TransactorCore
from tallybus.services.transactor.engine import EngineOrderError
from tallybus.services.transactor.functions.budget import UNBOUNDED, WorkBudget
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.registrar import Registrar
from tallybus.services.transactor.service import TransactorService
from tallybus.services.wal.binaries import remove_unfinished
from tallybus.services.wal.committer import Committer
from tallybus.services.wal.core import WalCore
from tallybus.services.wal.service import WalService
from tests.simulation.disk import CLUSTER, FOLDER, Disk, WitnessedLog
from tests.simulation.functions import NAMES
from tests.simulation.world import MS, SimulationFailure, check
from tests.support.compilers import inline
from tests.support.faulty_storage import SimulatedCrash

if TYPE_CHECKING:
    from tests.simulation.pipeline import Pipeline

HEARTBEAT_NS = 100 * MS
HIGH_WATER_MARK = 8
MOST_ASKED = 64
"""Hellos and questions that a control connection queues."""
INPUTS = ("data", "broadcast", "control", "reply", "client")
NO_BUS = new_context()
"""Shells are made with one; nothing is ever opened in it."""


class Node:
    """A process that runs one stage, or is down.

    `role` is its place in the pipeline. `name` tells its queues apart: once a process was replaced
    while it was stopped, it is a zombie and has a name of its own.
    """

    stage: str
    successor: str | None = None
    """To whom it pushes data."""
    asks: tuple[str, ...] = ()
    """To whom it has a control connection."""

    def __init__(self, pipeline: Pipeline, role: str, life: int = 0) -> None:
        self.pipeline = pipeline
        self.world = pipeline.world
        self.role = role
        self.name = role
        self.life = life
        self.up = False
        self.start_at = 0
        self.stopped_until = 0
        """Until then it makes no turn (SIGSTOP)."""
        self.any_core: StageCore | None = None
        self.subscriptions = DEPENDS_ON[self.stage]

    @property
    def zombie(self) -> bool:
        return self.name != self.role

    @property
    def running(self) -> bool:
        return self.up and self.world.now >= self.stopped_until

    def connection(self) -> str:
        """Name of this life's control connections."""
        return f"{self.role}/{self.life}"

    def start(self) -> None:
        self.life += 1
        self.up = True
        incarnation = self.world.rng.getrandbits(64) | 1
        self.any_core = self.make_core(incarnation)
        self.routes = self.any_core.routes()

    def make_core(self, incarnation: int) -> StageCore:
        raise NotImplementedError

    def replace(self, zombie_name: str) -> Node:
        """Another process takes this one's place while it is stopped. Returns the other one."""
        self.name = zombie_name
        for kind in INPUTS:
            self.world.hand_over(kind, self.role, self.name)
        return type(self)(self.pipeline, self.role, self.life)

    def stop(self) -> None:
        """Die: what had arrived and was not read is gone, and some of what was sent."""
        world = self.world
        self.up = False
        self.any_core = None
        self.stopped_until = 0
        for kind in INPUTS:
            world.clear(kind, self.name)
        world.cut(self.name, self.life, kinds=("data", "reply", "answer"))
        world.cut(self.role, self.life, kinds=("broadcast",))
        world.cut(self.connection(), self.life, kinds=("control",))

    # -- a turn, in the order of common/service/loop.py ------------------------------------------

    def turn(self) -> None:
        world = self.world
        try:
            if len(connections := world.senders("control", self.name)) > 1:
                world.rng.shuffle(connections)
            for connection in connections:
                self._drain(
                    world.rng.randint(1, 4),
                    "control",
                    connection,
                    Source(Channel.CONTROL, connection.encode()),
                )
            for peer in world.senders("reply", self.name):
                self._drain(8, "reply", peer, FROM_ANSWER)
            for stage in world.senders("broadcast", self.name):
                self._drain(
                    world.rng.choice((1, 8, 64)),
                    "broadcast",
                    stage,
                    FROM_BROADCAST,
                )
            self.read_clients()
            self._read_data()
            self.step()
            self.flush()
        except SimulatedCrash as crash:
            self.pipeline.crashed(self, crash)
        except (EngineOrderError, ReplayError) as error:
            raise SimulationFailure(f"{self.name}: {error!r}") from error
        except ServiceError as error:
            self.pipeline.died(self, error)

    def _drain(self, most: int, kind: str, sender: str, source: Source) -> None:
        for _ in range(most):
            letter = self.world.receive(kind, self.name, sender, lossy=kind == "broadcast")
            if letter is None:
                return
            self._hand_over(source, decode(letter.frames))

    def _hand_over(self, source: Source, message: Message) -> None:
        core = self.any_core
        assert core is not None
        route = source.channel, type(message)
        if source.channel is not Channel.BROADCAST and route not in self.routes:
            raise SimulationFailure(f"{self.name} was sent {message} on {source.channel.name}")
        self.take(source, message)

    def _read_data(self) -> None:
        for sender in self.world.senders("data", self.name):
            for _ in range(8):
                if not self.wants_input():
                    return
                letter = self.world.receive("data", self.name, sender, lossy=True)
                if letter is None:
                    break
                self._hand_over(FROM_DATA, decode(letter.frames))

    def flush(self) -> None:
        world, core, now = self.world, self.any_core, self.world.now
        assert core is not None
        core.tick(now)
        for topic, message in core.broadcasts:
            frames = encode(message)
            check(topic.startswith(TOPIC_STATUS) == isinstance(message, StageStatus), "topic")
            for node in self.pipeline.processes():
                if (
                    node.up
                    and self.stage in node.subscriptions
                    and self.pipeline.reached(node, self.role) is self
                ):
                    world.send("broadcast", node.name, self.role, self.life, frames, lossy=True)
        core.broadcasts.clear()
        if self.successor is not None:
            self._push(core, self.pipeline.reached(self, self.successor), now)
        for peer, message in core.replies:
            role, _, life = peer.decode().partition("/")
            asking = self.pipeline.find(role, int(life))
            if asking is not None and asking.up:
                world.send("reply", asking.name, self.name, self.life, encode(message), lossy=False)
        core.replies.clear()
        for message in core.requests:
            self.ask(self.asks[0], message)
        core.requests.clear()

    def _push(self, core: StageCore, receiver: Node, now: int) -> None:
        world = self.world
        while (message := core.next_data()) is not None:
            if world.pending("data", receiver.name, self.name) >= HIGH_WATER_MARK:
                break
            if receiver.up:
                frames = encode(message)
                world.send("data", receiver.name, self.name, self.life, frames, lossy=True)
            elif not world.chance(0.1):
                break
            core.data_sent(now)

    def ask(self, role: str, message: Message) -> bool:
        """Send over a control connection; False when there is none, or it takes no more."""
        world, asked = self.world, self.pipeline.reached(self, role)
        if not asked.up or world.pending("control", asked.name, self.connection()) >= MOST_ASKED:
            return False
        world.send(
            "control", asked.name, self.connection(), self.life, encode(message), lossy=False
        )
        return True

    def wants_input(self) -> bool:
        return True

    def step(self) -> None:
        """What a shell does between reading and sending."""

    def read_clients(self) -> None:
        """The gateway's clients."""

    def take(self, source: Source, message: Message) -> None:
        """What `Shell.take` does."""
        assert self.any_core is not None
        self.any_core.on_message(source, message, self.world.now)


class SequencerNode(Node):
    stage = "sequencer"
    successor = "transactor"
    asks = ("transactor",)
    core: SequencerCore

    def make_core(self, incarnation: int) -> StageCore:
        self.core = SequencerCore(incarnation, self.pipeline.max_in_flight, HEARTBEAT_NS)
        return self.core

    def wants_input(self) -> bool:
        return self.core.wants_input()

    def take(self, source: Source, message: Message) -> None:
        was_running = self.core.running
        self.core.moment = self._moment()
        super().take(source, message)
        if self.core.running and not was_running:
            assert isinstance(message, Welcome)
            self.pipeline.times.began(self.core, message, self.world.now)

    def step(self) -> None:
        clock = self.core.clock
        if not self.core.running:
            return
        clock.look(self._moment())
        self.pipeline.times.shown(self.core, self.world.now)
        if clock.held and self.world.chance(0.01):
            self.world.faults["clock accepted"] += 1
            clock.accept(self._moment())
            self.pipeline.times.accepted(self.core, self.world.now)

    def _moment(self) -> Moment:
        """The wall clock trembles, and has jumped by what the run says."""
        trembling = self.world.rng.randint(-(10**9), 10**9)
        wall = self.world.now + self.pipeline.wall_off + trembling
        return Moment(wall, self.world.now)


class NoSelector:
    """Nobody waits, and nobody is woken."""

    def __init__(self, strategy: str) -> None:
        pass

    def wake(self) -> None:
        pass


class TransactorShell(TransactorService):
    """The product's shell with neither sockets nor threads."""

    def __init__(self, settings: Settings, storage: Storage, core: TransactorCore) -> None:
        with patch.object(loop, "Selector", NoSelector):
            super().__init__(settings, NO_BUS, storage)
        self.core = core
        self._warmer = None
        self._registrar = None
        self._watcher = None
        self._mismatched_at = 0

    def _look_at_modules(self, registrar: Registrar) -> None:
        # What the lanes do, here.
        while self.core.modules:
            module = self.core.modules.popleft()
            try:
                registrar.prepared.take(module.binary)
            except InvalidFunction as error:
                self.core.prepared(module, str(error))
            else:
                self.core.prepared(module, None)

    def _recover(self) -> None:
        with inline():
            super()._recover()

    def _code_files(self, limits: FunctionLimits) -> None:
        return None  # nothing is kept beside the simulated disk

    def _watch(self, registrar: Registrar) -> None:
        pass  # no threads: the node suspends functions itself

    def close(self) -> None:
        if self._registrar is not None:
            self._registrar.close()


class TransactorNode(Node):
    stage = "transactor"
    successor = "wal"
    asks = ("wal",)
    core: TransactorCore

    def make_core(self, incarnation: int) -> StageCore:
        pipeline = self.pipeline
        rng = self.world.rng
        # A call takes some 120 units of fuel, which are nanoseconds here.
        budget = WorkBudget(rng.choice((1, 250, 10**9)), 10**9) if pipeline.functions else None
        self.limits = FunctionLimits(virtual_time=True)
        self.slice_ns = rng.choice((1, 500, 10**9))
        self.fresh = True
        self.core = TransactorCore(
            incarnation, pipeline.max_in_flight, HEARTBEAT_NS, budget or UNBOUNDED
        )
        self.shell = TransactorShell(pipeline.settings, pipeline.disk.drive, self.core)
        return self.core

    def wants_input(self) -> bool:
        return self.core.wants_input()

    def take(self, source: Source, message: Message) -> None:
        with patch.object(transactor_core, "SLICE_NS", self.slice_ns):
            self.shell.take(source, message, self.world.now)

    def _suspend(self) -> None:
        """An operator suspends some functions, or lets them run again."""
        registrar = self.shell._registrar
        if registrar is not None and registrar._engine.has_functions:
            names = [name for name in NAMES if self.world.chance(0.3)]
            registrar._engine.functions.suspend(frozenset(names))

    def step(self) -> None:
        if self.core.recovering and self.world.chance(0.5):
            return
        pipeline, disk = self.pipeline, self.pipeline.disk
        if not self.core.recovering:
            if pipeline.functions and self.world.chance(0.5 if self.fresh else 0.02):
                # One that starts often finds others suspended than the one before had: what it
                # executes again ends otherwise.
                self._suspend()
            self.fresh = self.fresh and not self.core.running
            with patch.object(transactor_core, "SLICE_NS", self.slice_ns):
                self.shell.step(self.world.now)
            return
        # The product's recovery, fed from the run's disk.
        with (
            patch.object(recovery, "read_log", partial(read_log, storage=disk.drive)),
            patch.object(recovery, "read_binary", disk.read_binary),
            patch.object(recovery, "load_latest_snapshot", self._load_snapshot),
            patch.object(recovery, "TOLD_AGAIN", pipeline.told_again),
            patch.object(recovery, "EACH_BLOCK", pipeline.each_block),
            patch.object(transactor_service, "limits_from", lambda _: self.limits),
        ):
            self.shell.step(self.world.now)

    def stop(self) -> None:
        super().stop()
        self.shell.close()

    def _load_snapshot(
        self, folder: Path, *, max_accounts: int, durable_index: int, **_: Any
    ) -> tuple[Snapshot | None, list[DamagedSnapshot]]:
        pipeline, rng = self.pipeline, self.world.rng
        snapshots = sorted(pipeline.disk.snapshots)
        if not snapshots or self.world.chance(0.2):
            return None, []
        index = rng.choice((snapshots[-1], rng.choice(snapshots)))
        check(index <= pipeline.disk.durable, f"a snapshot of {index}, which is not durable")
        if index > durable_index:
            path = folder / f"snapshot_{index}.bin"
            raise SnapshotMismatch(path, "last_tx_id", index, durable_index, "the log lost data")
        return pipeline.snapshot(index), []


class WalShell(WalService):
    """The product's shell with neither sockets nor threads: `commit` is the committer's turn."""

    def __init__(self, settings: Settings, disk: Disk, log: WitnessedLog, core: WalCore) -> None:
        with patch.object(loop, "Selector", NoSelector):
            super().__init__(settings, NO_BUS, disk.drive)
        self.core = core
        self._log = log
        self._committer = Committer(log, lambda: None)
        self._appended_ns = 0

    def commit(self) -> None:
        self._committer._commit()


class WalNode(Node):
    stage = "wal"
    successor = "snapshotter"
    core: WalCore

    def start(self) -> None:
        try:
            super().start()
        except SimulatedCrash as crash:
            self.pipeline.crashed(self, crash)

    def make_core(self, incarnation: int) -> StageCore:
        pipeline = self.pipeline
        log = pipeline.disk.open_log()
        remove_unfinished(pipeline.disk.drive, FOLDER)
        pipeline.judge.follow()
        self.core = WalCore(
            incarnation,
            pipeline.max_in_flight,
            HEARTBEAT_NS,
            next_id=log.next_id,
            term=log.term,
            cluster=log.cluster_id,
            gateways=dict(log.gateways),
        )
        self.shell = WalShell(pipeline.settings, pipeline.disk, log, self.core)
        return self.core

    def stop(self) -> None:
        super().stop()
        self.pipeline.disk.drive.end_process()

    def wants_input(self) -> bool:
        return self.core.wants_input()

    def take(self, source: Source, message: Message) -> None:
        self.shell.take(source, message, self.world.now)

    def step(self) -> None:
        if self.world.chance(self.pipeline.sync_rate):
            self.shell.commit()
        self.pipeline.judge.follow()
        self.shell.step(self.world.now)


class SnapshotterNode(Node):
    stage = "snapshotter"
    asks = ("wal",)
    core: SnapshotterCore

    def make_core(self, incarnation: int) -> StageCore:
        self.core = SnapshotterCore(
            incarnation,
            HEARTBEAT_NS,
            transactions_per_segment=self.pipeline.segment_size,
            snapshot_frequency=self.pipeline.snapshot_frequency,
        )
        self.state: ReadState | None = None
        self.checked = 0
        return self.core

    def step(self) -> None:
        """As services/snapshotter/service.py does it, with snapshots that are objects."""
        disk, rng = self.pipeline.disk, self.world.rng
        if self.core.recovering and self.world.chance(0.5):
            self._recover()
        wanted = self.core.range_to_read(self.world.now)
        if wanted is not None:
            runs = disk.read_log(*wanted, kernel=None if rng.random() < 0.5 else False)
            for batch in islice(runs, rng.randint(1, 4)):
                self.core.on_log(batch, self.world.now)
        for segment, frozen in self.core.frozen:
            if self.world.chance(0.8):
                disk.snapshots[segment * self.pipeline.segment_size] = frozen
        self.core.frozen.clear()
        if self.state is not None and self.state.index != self.checked:
            self.checked = self.state.index
            self.pipeline.judge.readable(self.state.index, self.state.balances)

    def _recover(self) -> None:
        pipeline, rng = self.pipeline, self.world.rng
        size = pipeline.segment_size
        cold = LogStatuses(FOLDER, size, cluster_id=CLUSTER, storage=pipeline.disk.drive)
        snapshots = sorted(pipeline.disk.snapshots)
        if snapshots and self.world.chance(0.7):
            index = rng.choice((snapshots[-1], rng.choice(snapshots)))
            self.state = ReadState.from_snapshot(pipeline.snapshot(index), cold=cold)
        else:
            self.state = ReadState(pipeline.max_accounts, size, cold=cold)
        self.core.recovered(self.state)


class GatewayNode(Node):
    stage = "gateway"
    successor = "sequencer"
    asks = ("transactor", "snapshotter")
    core: GatewayCore

    def make_core(self, incarnation: int) -> StageCore:
        pipeline = self.pipeline
        self.core = GatewayCore(
            incarnation,
            pipeline.max_in_flight,
            HEARTBEAT_NS,
            Limits(max_batch=pipeline.max_batch, max_reads=64, max_accounts=pipeline.max_accounts),
            max_wait_ms=pipeline.max_wait_ms,
        )
        return self.core

    def read_clients(self) -> None:
        for client in self.world.senders("client", self.name):
            for _ in range(8):
                letter = self.world.receive("client", self.name, client, lossy=False)
                if letter is None:
                    break
                self.core.on_client(client.encode(), letter.frames, self.world.now)

    def flush(self) -> None:
        super().flush()
        for question in self.core.registrations.questions:
            self.ask("transactor", question)
        self.core.registrations.questions.clear()
        while self.core.reads.queries and self.ask("snapshotter", self.core.reads.queries[0]):
            self.core.reads.queries.pop(0)
        for client, frames in self.core.desk.answers:
            if not self.zombie:  # its clients have gone to the other one
                self.world.send(
                    "answer", client.decode(), self.name, self.life, frames, lossy=False
                )
        self.core.desk.answers.clear()
