"""The five stages: their real cores, in shells with queues for sockets and `Disk` for files."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tallybus.common.errors import ServiceError
from tallybus.common.frames import (
    TOPIC_ACKNOWLEDGE,
    TOPIC_EVENT,
    TOPIC_STATUS,
    Answer,
    Assigned,
    Executed,
    Hello,
    Message,
    Query,
    Refused,
    Request,
    Results,
    ResultsGone,
    ResultsQuery,
    Sequenced,
    StageStatus,
    Welcome,
    as_buffer,
    decode,
    encode,
)
from tallybus.common.record import (
    ENTRY_DTYPE,
    FAILURE_DTYPE,
    RECORD_DTYPE,
    STATUS_DTYPE,
    Stage,
    Status,
)
from tallybus.common.replay import ReplayError
from tallybus.common.stage import StageCore
from tallybus.services.gateway.core import GatewayCore
from tallybus.services.gateway.protocol import Limits
from tallybus.services.sequencer.core import SequencerCore
from tallybus.services.snapshotter.balances import ReadState
from tallybus.services.snapshotter.core import SnapshotterCore
from tallybus.services.transactor.core import TransactorCore
from tallybus.services.transactor.engine import Engine, EngineOrderError, window_start
from tallybus.services.wal.core import WalCore
from tests.simulation.world import MS, Block, SimulationFailure, check

if TYPE_CHECKING:
    from tests.simulation.pipeline import Pipeline

HEARTBEAT_NS = 100 * MS
HIGH_WATER_MARK = 8
CLUSTER = 99
NO_ENTRIES = np.empty(0, ENTRY_DTYPE)
SUBSCRIPTIONS = {
    "sequencer": ("transactor",),
    "transactor": ("wal",),
    "wal": ("snapshotter",),
    "snapshotter": ("wal",),
}
STAGES = ("sequencer", "transactor", "wal", "snapshotter")


class Node:
    """A process that runs one stage, or is down."""

    stage: str
    successor: str | None = None
    """To whom it pushes data."""
    asks: tuple[str, ...] = ()
    """To whom it has a control connection."""
    topics: tuple[bytes, ...] = (TOPIC_ACKNOWLEDGE,)

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self.pipeline = pipeline
        self.world = pipeline.world
        self.name = name
        self.life = 0
        self.up = False
        self.start_at = 0
        self.any_core: StageCore | None = None

    @property
    def subscriptions(self) -> tuple[str, ...]:
        return SUBSCRIPTIONS.get(self.stage, STAGES)

    def connection(self) -> str:
        """Name of this life's control connections."""
        return f"{self.name}/{self.life}"

    def start(self) -> None:
        self.life += 1
        self.up = True
        incarnation = self.world.rng.getrandbits(64) | 1
        self.any_core = self.make_core(incarnation)

    def make_core(self, incarnation: int) -> StageCore:
        raise NotImplementedError

    def stop(self) -> None:
        """Die: what had arrived and was not read is gone, and some of what was sent."""
        world = self.world
        self.up = False
        self.any_core = None
        for kind in ("data", "broadcast", "control", "reply", "client"):
            world.clear(kind, receiver=self.name)
        for (kind, _, sender), queue in list(world.queues.items()):
            if sender in (self.name, self.connection()) or (
                kind == "answer" and sender == self.name
            ):
                # The kernel delivers what it had, up to some point.
                keep = world.rng.choice((0, len(queue), world.rng.randint(0, len(queue))))
                if kind == "broadcast":
                    keep = max(keep, sum(letter.life != self.life for letter in queue))
                del queue[keep:]

    # -- a turn, in the order of common/service.py -------------------------------------------------

    def turn(self) -> None:
        world = self.world
        try:
            for connection in world.rng.sample(
                senders := world.senders("control", self.name), len(senders)
            ):
                self._drain(world.rng.randint(1, 4), "control", connection, self._control)
            for peer in self.asks:
                self._drain(8, "reply", peer, lambda _, message: self.on_reply(message))
            for stage in self.subscriptions:
                self._drain(
                    world.rng.choice((1, 8, 64)),
                    "broadcast",
                    stage,
                    lambda _, message: self.on_broadcast(message),
                )
            self.read_clients()
            self._read_data()
            self.step()
            self.flush()
        except (EngineOrderError, ReplayError) as error:
            raise SimulationFailure(f"{self.name}: {error!r}") from error
        except ServiceError as error:
            self.pipeline.died(self, error)

    def _drain(
        self, most: int, kind: str, sender: str, handle: Callable[[str, Message], None]
    ) -> None:
        for _ in range(most):
            letter = self.world.receive(kind, self.name, sender, lossy=kind == "broadcast")
            if letter is None:
                return
            handle(sender, decode(letter.frames))

    def _control(self, connection: str, message: Message) -> None:
        self.on_control(connection.encode(), message)

    def _read_data(self) -> None:
        for sender in self.world.senders("data", self.name):
            for _ in range(8):
                if not self.wants_input():
                    return
                letter = self.world.receive("data", self.name, sender, lossy=True)
                if letter is None:
                    break
                self.on_data(decode(letter.frames))

    def flush(self) -> None:
        world, core, now = self.world, self.any_core, self.world.now
        assert core is not None
        core.tick(now)
        for topic, message in core.broadcasts:
            frames = encode(message)
            check(topic.startswith(TOPIC_STATUS) == isinstance(message, StageStatus), "topic")
            for node in self.pipeline.nodes.values():
                if node.up and self.stage in node.subscriptions:
                    world.send("broadcast", node.name, self.name, self.life, frames, lossy=True)
        core.broadcasts.clear()
        if self.successor is not None:
            receiver = self.pipeline.nodes[self.successor]
            while (message_due := core.next_data()) is not None:
                if world.pending("data", receiver.name, self.name) >= HIGH_WATER_MARK:
                    break
                if receiver.up:
                    world.send(
                        "data", receiver.name, self.name, self.life, encode(message_due), lossy=True
                    )
                elif not world.chance(0.1):
                    break
                core.data_sent(now)
        for peer, message in core.replies:
            name, _, life = peer.decode().partition("/")
            node = self.pipeline.nodes[name]
            if node.up and node.life == int(life):
                world.send("reply", name, self.name, self.life, encode(message), lossy=False)
        core.replies.clear()
        for message in core.requests:
            self.ask(self.asks[0], message)
        core.requests.clear()

    def ask(self, name: str, message: Message) -> bool:
        """Send over a control connection; False when there is none."""
        if not self.pipeline.nodes[name].up:
            return False
        self.world.send("control", name, self.connection(), self.life, encode(message), lossy=False)
        return True

    def wants_input(self) -> bool:
        return True

    def step(self) -> None:
        """What a shell does between reading and sending."""

    def read_clients(self) -> None:
        """The gateway's clients."""

    def on_control(self, peer: bytes, message: Message) -> None:
        raise SimulationFailure(f"{self.name} was sent {message}")

    def on_reply(self, message: Message) -> None:
        raise SimulationFailure(f"{self.name} was sent {message}")

    def on_broadcast(self, message: Message) -> None:
        raise NotImplementedError

    def on_data(self, message: Message) -> None:
        raise SimulationFailure(f"{self.name} was sent {message}")


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

    def on_data(self, message: Message) -> None:
        assert isinstance(message, Request)
        # The wall clock may go back.
        self.core.on_request(message, self.world.now + self.world.rng.randint(-(10**9), 10**9))

    def on_broadcast(self, message: Message) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, self.world.now)

    def on_reply(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self.core.on_welcome(message, self.world.now)
        elif isinstance(message, Refused):
            self.core.on_refused(message)


class TransactorNode(Node):
    stage = "transactor"
    successor = "wal"
    asks = ("wal",)
    core: TransactorCore

    def make_core(self, incarnation: int) -> StageCore:
        self.core = TransactorCore(incarnation, self.pipeline.max_in_flight, HEARTBEAT_NS)
        self.engine: Engine | None = None
        return self.core

    def wants_input(self) -> bool:
        return self.core.wants_input()

    def on_data(self, message: Message) -> None:
        assert isinstance(message, Sequenced)
        self.core.on_sequenced(message)

    def on_control(self, peer: bytes, message: Message) -> None:
        if isinstance(message, Hello):
            self.core.on_hello(peer, message)
        elif isinstance(message, ResultsQuery):
            self.core.on_results_query(peer, message)

    def on_broadcast(self, message: Message) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, self.world.now)

    def on_reply(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self.core.on_welcome(message, self.world.now)
        elif isinstance(message, Refused):
            self.core.on_refused(message)

    def step(self) -> None:
        if self.core.recovering and self.world.chance(0.5):
            self._recover()

    def _recover(self) -> None:
        """As services/transactor/recovery.py does it with files."""
        welcome = self.core.welcome
        assert welcome is not None
        disk, size = self.pipeline.disk, self.pipeline.segment_size
        if welcome.next > disk.next_id:
            # The log stage has lost its tail meanwhile: the files end early.
            self.pipeline.stop(self, "log ended early")
            return
        engine = Engine(self.pipeline.max_accounts, size, self.world.rng.getrandbits(64))
        last = welcome.next - 1
        snapshots = [tx_id for tx_id in disk.snapshots if tx_id <= last]
        if snapshots and self.world.chance(0.7):
            balances, touched = self.pipeline.thaw(disk.snapshots[max(snapshots)])
            engine.restore_balances(balances, touched, max(snapshots))
        # Duplicates of the tail are linked to the window that stood before it.
        window_first = window_start(max(1, last - self.pipeline.told_again + 1), size)
        first = min(engine.next_id, window_first)
        tail = max(first, last - self.pipeline.told_again + 1)
        results = []
        for low, high in ((first, tail - 1), (tail, last)):
            if low > high:
                continue
            for block in disk.read(low, high):
                engine.apply(
                    block.records,
                    block.first,
                    balances=block.first >= engine.next_id,
                    window=block.first >= window_first,
                )
                if low == tail:
                    results.append(self._results(block, engine, welcome.term))
        self.engine = engine
        self.core.recovered(engine, results)

    def _results(self, block: Block, engine: Engine, term: int) -> Results:
        failed = np.flatnonzero(block.records["status"])
        failures = np.zeros(len(failed), FAILURE_DTYPE)
        failures["offset"] = failed
        failures["status"] = block.records["status"][failed]
        duplicates = np.flatnonzero(failures["status"] == Status.DUPLICATE)
        failures["duplicate_of"][duplicates] = block.links
        for place, first in zip(duplicates.tolist(), block.links.tolist(), strict=True):
            failures["original_status"][place] = engine.window.status_of(first)
        count = len(block.records)
        return Results(
            term=term,
            incarnation=self.core.incarnation,
            first=block.first,
            count=count,
            batches=[[block.gateway, block.request, block.first, count, len(failed)]],
            failures=as_buffer(failures),
        )


class WalNode(Node):
    stage = "wal"
    successor = "snapshotter"
    core: WalCore

    def make_core(self, incarnation: int) -> StageCore:
        disk = self.pipeline.disk
        # What recovery finds it syncs before anything else.
        disk.sync()
        self.core = WalCore(
            incarnation,
            self.pipeline.max_in_flight,
            HEARTBEAT_NS,
            next_id=disk.next_id,
            term=disk.term,
            cluster=CLUSTER,
            gateways=disk.gateways(),
        )
        return self.core

    def wants_input(self) -> bool:
        return self.core.wants_input()

    def on_data(self, message: Message) -> None:
        assert isinstance(message, Executed)
        skip = self.core.accept(message)
        if skip is None:
            return
        records = np.frombuffer(message.records, RECORD_DTYPE)
        links = np.frombuffer(message.extras, "<u8", message.links)
        if skip:
            links = links[int(np.count_nonzero(records["status"][:skip] == Status.DUPLICATE)) :]
            records = records[skip:]
            message.first += skip
            message.count -= skip
            message.records = as_buffer(records)
            message.extras = as_buffer(links)
            message.links = len(links)
        self.pipeline.disk.append(
            Block(
                message.term,
                message.first,
                message.timestamp,
                message.gateway,
                message.request,
                records,
                links,
            )
        )
        self.core.written(message)

    def on_control(self, peer: bytes, message: Message) -> None:
        if isinstance(message, Hello):
            self.core.on_hello(peer, message)

    def on_broadcast(self, message: Message) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, self.world.now)

    def step(self) -> None:
        disk = self.pipeline.disk
        if self.core.term_due:
            disk.mark(max(hello.term for _, hello in self.core.term_due))
            disk.sync()
            self.core.term_kept()
        if self.world.chance(self.pipeline.sync_rate):
            disk.sync()
        if disk.durable > self.core.durable:
            self.pipeline.judge.follow()
            self.core.synced(disk.durable)


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

    def on_data(self, message: Message) -> None:
        assert isinstance(message, Executed)
        self.core.on_executed(message, self.world.now)

    def on_control(self, peer: bytes, message: Message) -> None:
        if isinstance(message, Query):
            self.core.on_query(peer, message)

    def on_broadcast(self, message: Message) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, self.world.now)

    def on_reply(self, message: Message) -> None:
        if isinstance(message, Welcome):
            self.core.on_welcome(message, self.world.now)

    def step(self) -> None:
        disk, rng = self.pipeline.disk, self.world.rng
        if self.core.recovering and self.world.chance(0.5):
            self._recover()
        wanted = self.core.range_to_read(self.world.now)
        if wanted is not None:
            runs = list(disk.read(*wanted))
            for block in runs[: rng.randint(1, 4)]:
                self.core.on_log(
                    block.first, block.records, block.links, NO_ENTRIES, self.world.now
                )
        for segment, frozen in self.core.frozen:
            if self.world.chance(0.8):
                disk.snapshots[segment * self.pipeline.segment_size] = frozen
        self.core.frozen.clear()
        if self.state is not None and self.state.index != self.checked:
            self.checked = self.state.index
            self.pipeline.judge.readable(self.state.index, self.state.balances)

    def _recover(self) -> None:
        disk, pipeline = self.pipeline.disk, self.pipeline
        snapshots = [tx_id for tx_id in disk.snapshots if tx_id <= disk.durable]
        state = ReadState(pipeline.max_accounts, pipeline.segment_size, cold=self._cold)
        if snapshots and self.world.chance(0.7):
            index = self.world.rng.choice((max(snapshots), self.world.rng.choice(snapshots)))
            state.balances, state.touched = pipeline.thaw(disk.snapshots[index])
            state.index = index
            state._first_status = index + 1
        self.state = state
        self.core.recovered(state)

    def _cold(self, ids: Any) -> Any:
        rows = np.zeros(len(ids), STATUS_DTYPE)
        judge = self.pipeline.judge
        for place, tx_id in enumerate(ids.tolist()):
            rows["status"][place] = judge.statuses[tx_id]
            rows["stage"][place] = Stage.ERROR if judge.statuses[tx_id] else Stage.ON_SNAPSHOT
            rows["duplicate_of"][place] = judge.links[tx_id]
        return rows


class GatewayNode(Node):
    stage = "gateway"
    successor = "sequencer"
    topics = (TOPIC_STATUS, TOPIC_EVENT)
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

    def on_broadcast(self, message: Message) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, self.world.now)
        elif isinstance(message, Results):
            self.core.on_results(message)
        elif isinstance(message, Assigned):
            self.core.on_assigned(message)

    def on_reply(self, message: Message) -> None:
        if isinstance(message, Answer):
            self.core.on_answer(message)
        elif isinstance(message, Results):
            self.core.on_results(message)
        elif isinstance(message, ResultsGone):
            self.core.on_results_gone(message)

    def flush(self) -> None:
        super().flush()
        while self.core.reads.queries and self.ask("snapshotter", self.core.reads.queries[0]):
            self.core.reads.queries.pop(0)
        for client, frames in self.core.desk.answers:
            self.world.send("answer", client.decode(), self.name, self.life, frames, lossy=False)
        self.core.desk.answers.clear()
