"""One simulated run: five services, clients, a seed. `run` plays it to its end and checks it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from tallybus.common.bus.link import LinkError
from tallybus.common.errors import ServiceError
from tallybus.common.files import LockHeld
from tallybus.common.service.core import Fenced
from tallybus.common.settings.sections import BusSettings, LedgerSettings, Settings
from tallybus.common.snapshot.balances import Snapshot, SnapshotFields, chunk_count
from tallybus.common.snapshot.format import SnapshotMismatch
from tallybus.common.stages import STAGES
from tallybus.common.wal.reader import LogEndsEarly
from tests.simulation.checks import Judge
from tests.simulation.clients import Client
from tests.simulation.disk import CLUSTER, FOLDER, Disk
from tests.simulation.nodes import (
    GatewayNode,
    Node,
    SequencerNode,
    SnapshotterNode,
    TransactorNode,
    WalNode,
)
from tests.simulation.times import Times
from tests.simulation.world import MS, SECOND, Rates, SimulationFailure, World, check
from tests.support.faulty_storage import SimulatedCrash
from tests.support.registries import registry_of

DRAIN_NS: Final = 300 * SECOND
SETTLE_NS: Final = 30 * SECOND
"""How long after the last fault a stage may still find that another has taken its place."""
PATIENCE: Final = 300
"""Steps after which a log stage that was to die at a call to the disk is left alone."""
FLAVOURS: Final = ("messages", "single", "crashes", "power")
"""Lost messages only; one crash at a time, of which clients must notice nothing but a pause;
crashes of any stages at any time; power cuts as well, which take the unsynced tail of the log."""


@dataclass
class Report:
    """What a run did."""

    seed: int
    flavour: str
    steps: int = 0
    transactions: int = 0
    committed: int = 0
    completed: int = 0
    lost: int = 0
    virtual_seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)


class Pipeline:
    """The state of one run."""

    def __init__(self, seed: int, flavour: str | None = None, steps: int | None = None) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.flavour = flavour or FLAVOURS[seed % len(FLAVOURS)]
        self.strict = self.flavour in ("messages", "single")
        self.steps = steps or rng.choice((600, 1500, 3000))
        self.segment_size = rng.choice((7, 30, 100, 400))
        self.snapshot_frequency = rng.choice((1, 2, 3))
        self.max_accounts = rng.choice((4, 40))
        self.max_in_flight = rng.choice((30, 100, 1000))
        self.max_batch = rng.choice((5, 20, 60))
        self.pace = rng.choice((200_000, MS, 3 * MS))
        self.max_wait_ms = 60_000
        self.told_again = 100_000 if self.strict else rng.choice((10, 100, 100_000))
        self.each_block = 100_000 if self.strict else rng.choice((5, 50, 100_000))
        self.functions = rng.random() < 0.3
        """Whether clients register and call functions."""
        self.sync_rate = rng.choice((0.01, 0.05, 0.3, 1.0))
        self.world = World(rng, self._rates(rng))
        self.disk = Disk(self.segment_size, rng)
        self.settings = Settings(
            ledger=LedgerSettings(
                data=FOLDER,
                max_accounts=self.max_accounts,
                transactions_per_segment=self.segment_size,
                snapshot_frequency=self.snapshot_frequency,
            ),
            bus=BusSettings(transport="inproc"),
        )
        self.times = Times()
        self.wall_off = 0
        """How wrong the wall clock is, in nanoseconds."""
        self.judge = Judge(self.disk, self.max_accounts, self.times, strict=self.strict)
        self.shared_refs = [rng.getrandbits(64) | 1 for _ in range(rng.choice((3, 30)))]
        self._amount = 0
        self.committed = 0
        self.draining_since = 0
        self._high = 0
        self._crash_mark = 0
        self._orphans = False
        """Whether requests of a gateway that died are on their way."""
        self._patience = 0
        self.zombies: list[Node] = []
        self._followers: dict[str, set[str]] = {}
        """Zombie by name: who is still connected to it instead of its successor."""
        self._rivalled: set[int] = set()
        """Lives of transactors that ran beside another one."""
        self.nodes: dict[str, Node] = {
            "sequencer": SequencerNode(self, "sequencer"),
            "transactor": TransactorNode(self, "transactor"),
            "wal": WalNode(self, "wal"),
            "snapshotter": SnapshotterNode(self, "snapshotter"),
        }
        gateways = 1 if self.strict else rng.choice((1, 2, 3))
        for number in range(gateways):
            name = f"gateway{number}"
            self.nodes[name] = GatewayNode(self, name)
        if not self.strict and rng.random() < 0.6:
            self._slow_down(f"gateway{rng.randrange(gateways)}")
        self.clients = [
            Client(self, f"client{number}", f"gateway{number % gateways}", rng.choice((1, 3, 8)))
            for number in range(rng.choice((2, 4, 8)))
        ]

    def _rates(self, rng: random.Random) -> Rates:
        harsh = rng.choice((0.0, 0.01, 0.1))
        crash = 0.0 if self.flavour == "messages" else rng.choice((0.002, 0.01))
        return Rates(
            drop=rng.choice((0.0, harsh)),
            repeat=rng.choice((0.0, harsh)),
            reorder=rng.choice((0.0, harsh, 3 * harsh)),
            delay_ms=rng.choice((0.05, 1.0, 10.0)),
            crash=crash,
            power=rng.choice((0.005, 0.02)) if self.flavour == "power" else 0.0,
            jump=rng.choice((0.0, 0.002)),
            wall=rng.choice((0.0, 0.002, 0.01)),
            pause=rng.choice((0.0, 0.002, 0.01)),
            zombie=0.0 if self.strict else rng.choice((0.0, 0.002, 0.005)),
            rival=0.001,
        )

    def _slow_down(self, gateway: str) -> None:
        """The log is behind when the two stages before it die, and one gateway hears of it late:
        what it was told of one term meets what others did in the next."""
        rng, world = self.world.rng, self.world
        world.rates.delay_ms = max(world.rates.delay_ms, 1.0)
        world.slowness["data", "wal", "transactor"] = rng.choice((20.0, 100.0))
        for late in rng.choice((("sequencer",), ("sequencer",), ("transactor",))):
            world.slowness["broadcast", gateway, late] = rng.choice((100.0, 500.0))
        for early in ("wal", "snapshotter"):
            world.slowness["broadcast", gateway, early] = 0.1

    # -- what nodes and clients ask for ------------------------------------------------------------

    def new_amount(self) -> int:
        self._amount += 1
        return self._amount

    def new_ref(self) -> int:
        return self.world.rng.getrandbits(64) | 1

    def snapshot(self, index: int) -> Snapshot:
        """A snapshot as it is loaded, with arrays of its own."""
        frozen = self.disk.snapshots[index]
        touched = np.zeros(chunk_count(self.max_accounts), np.uint8)
        touched[frozen.chunks.astype(np.intp)] = 1
        balances = np.zeros(self.max_accounts, np.int64)
        for chunk, row in zip(frozen.chunks.tolist(), frozen.balances, strict=True):
            assert chunk == 0
            balances[:] = row[: self.max_accounts]
        fields = SnapshotFields(
            cluster_id=CLUSTER,
            segment=index // self.segment_size,
            transactions_per_segment=self.segment_size,
            term=0,
            timestamp_ns=0,
        )
        path = FOLDER / f"snapshot_{index}.bin"
        return Snapshot(path, fields, balances, touched, registry_of(frozen.functions))

    # -- processes ---------------------------------------------------------------------------------

    def processes(self) -> Iterator[Node]:
        """Those of the pipeline, then the zombies."""
        yield from self.nodes.values()
        yield from self.zombies

    def find(self, role: str, life: int) -> Node | None:
        """The process that was started in this role as its `life`th, if it is not gone."""
        for node in self.processes():
            if node.role == role and node.life == life:
                return node
        return None

    def reached(self, sender: Node, role: str) -> Node:
        """Where the sender's connections to this role lead: to a zombie, as long as it lives, if it
        was connected before that was replaced. From there it hears the broadcasts, too."""
        for zombie in self.zombies:
            if zombie.role == role and sender.connection() in self._followers[zombie.name]:
                return zombie
        return self.nodes[role]

    def died(self, node: Node, error: ServiceError) -> None:
        """A stage gave up. Only another life of a stage, or a lost tail of the log, may do that."""
        kind = type(error).__name__
        allowed = isinstance(error, Fenced) and self.flavour != "messages"
        # Two transactors, and the log stage has another life: the one that recovers was overtaken.
        allowed |= isinstance(error, SnapshotMismatch) and not self.strict
        allowed |= isinstance(error, LinkError | LogEndsEarly) and self.flavour == "power"
        # The log has what this one never computed: so another one has.
        allowed |= isinstance(error, LinkError) and node.zombie
        settled = self.draining_since and self.world.now - self.draining_since > SETTLE_NS
        if not allowed or settled:
            raise SimulationFailure(f"{node.name} gave up: {kind}: {error}") from error
        self.stop(node, f"zombie stepped down, {kind}" if node.zombie else kind)

    def crashed(self, node: Node, crash: SimulatedCrash) -> None:
        """A process died at a call to the disk, and in some flavours the machine with it."""
        self.stop(node, f"crash {crash}")
        if self.flavour == "power" and self.world.chance(0.5):
            self._cut_power()
        self._note()
        self._crash_mark = self._high

    def stop(self, node: Node, why: str) -> None:
        """A process ends and, unless it is a zombie, is started again after a while."""
        self.world.faults[f"{why}: {node.stage}"] += 1
        node.stop()
        if node.zombie:
            self.zombies.remove(node)
            del self._followers[node.name]
            return
        pause = self.world.rng.choice((0, 0, 1, 20, 150, 700)) * MS
        node.start_at = self.world.now + pause

    def _replace(self, node: Node) -> None:
        """Stop a process without ending it, and start another one in its place."""
        world, rng = self.world, self.world.rng
        world.faults[f"zombie: {node.stage}"] += 1
        followers = {other.connection() for other in self.processes() if rng.random() < 0.5}
        heir = self.nodes[node.role] = node.replace(f"{node.role}~{node.life}")
        if node.stage == "transactor":
            self._rivalled |= {node.life, node.life + 1}
        heir.start_at = world.now + rng.choice((0, 0, 20, 150)) * MS
        node.stopped_until = world.now + rng.choice((0, 20, 200, 700)) * MS
        self.zombies.append(node)
        self._followers[node.name] = followers

    # -- faults ------------------------------------------------------------------------------------

    def _note(self) -> None:
        sequencer = self.nodes["sequencer"]
        transactor = self.nodes["transactor"]
        if isinstance(sequencer, SequencerNode) and sequencer.up:
            self._high = max(self._high, sequencer.core.index)
        if isinstance(transactor, TransactorNode) and transactor.up and transactor.core.running:
            self._high = max(self._high, transactor.core.status().index)
        if self.strict and self._orphans:
            # A gateway that died cannot send them again: with their sequencer they would be lost.
            self._crash_mark = self._high
        self._orphans = self.strict and any(
            letter.life != self.nodes[gateway].life
            for gateway, letters in self.world.queues.get(("data", "sequencer"), {}).items()
            for letter in letters
        )

    def _settled(self) -> bool:
        """Whether the last crash is over: what there was then is durable, and every stage works."""
        sequencer, transactor = self.nodes["sequencer"], self.nodes["transactor"]
        assert isinstance(sequencer, SequencerNode)
        assert isinstance(transactor, TransactorNode)
        return (
            all(node.up for node in self.nodes.values())
            and sequencer.core.running
            and transactor.core.running
            and transactor.core.receiver.peer == sequencer.core.incarnation
            and self.disk.durable >= self._crash_mark
            and not self._orphans
        )

    def _cut_power(self) -> None:
        """The log stage's machine and what else runs on it."""
        world = self.world
        world.faults["power cut"] += 1
        gateways = [name for name in self.nodes if name.startswith("gateway")]
        machines = (STAGES, STAGES[:3], STAGES[:3], (*STAGES, *gateways), ("transactor",), ())
        fallen = {"wal", *world.rng.choice(machines)}
        for node in list(self.processes()):
            if node.role in fallen and node.up:
                self.stop(node, "power")
        self.disk.lose_power()

    def _inject(self) -> None:
        world, drive = self.world, self.disk.drive
        self._inject_stops()
        if drive.calls_left is not None:
            self._patience -= 1
            if not self._patience:
                drive.calls_left = None
            elif self.strict:
                return  # one crash at a time, and this one is to come
        # Mostly when it hurts.
        if world.chance(world.rates.power * (1.0 if self.disk.dirty else 0.1)):
            self._cut_power()
        if world.chance(world.rates.crash):
            if self.strict and not self._settled():
                return
            if world.chance(0.2):
                # At a call to the disk: while it appends, changes files, or recovers.
                self._patience = PATIENCE
                drive.calls_left = world.rng.choice((0, 1, 2, 5, 10, 20))
                if self.strict or world.chance(0.5):
                    return
            most = 1 if self.strict else world.rng.choice((1, 1, 2, 3))
            fallen = world.rng.sample(sorted(self.nodes), min(most, len(self.nodes)))
            if not self.strict and world.chance(0.4):
                # What only these two know is lost with them, whatever gateways were told of it.
                fallen = ["sequencer", "transactor"]
            elif not self.strict and self.functions and world.chance(0.5):
                # What they executed and gateways were told is executed again, and calls may end
                # otherwise.
                fallen = world.rng.choice((["transactor"], ["transactor", "wal"]))
            for name in fallen:
                if self.nodes[name].up:
                    self.stop(self.nodes[name], "crash")
            self._note()
            self._crash_mark = self._high

    def _inject_stops(self) -> None:
        world = self.world
        if world.chance(world.rates.pause):
            node = self.nodes[world.rng.choice(sorted(self.nodes))]
            if node.running:
                world.faults[f"paused: {node.stage}"] += 1
                node.stopped_until = world.now + world.rng.choice((5, 50, 300, 1000)) * MS
        if world.chance(world.rates.zombie):
            node = self.nodes[world.rng.choice(sorted(self.nodes))]
            if node.up and node.stage != "wal":
                self._replace(node)
        if world.chance(world.rates.rival) and self.nodes["wal"].up:
            world.faults["second log stage refused"] += 1
            try:
                self.disk.open_log()
            except LockHeld:
                pass
            else:
                raise SimulationFailure("two log stages have opened the same folder")
        for zombie in list(self.zombies):
            # Nobody tells these two that they were replaced.
            if zombie.stage in ("snapshotter", "gateway") and zombie.running and world.chance(0.01):
                self.stop(zombie, "zombie ended")

    def _overtaken(self, transactor: TransactorNode) -> bool:
        """Whether another transactor may have gone on where this one stands: the log stage has
        another life since, and took it for the newer one. What this one hears next ends it."""
        return transactor.life in self._rivalled

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> Report:
        """Play it. Raises SimulationFailure."""
        world, rng = self.world, self.world.rng
        for node in self.nodes.values():
            node.start_at = world.now + rng.choice((0, 0, 10, 500)) * MS
        started = world.now
        names = sorted(self.nodes)
        for _ in range(self.steps):
            self._pass_time()
            self._start_due()
            self._inject()
            for name in rng.choices(names, k=3):
                if self.nodes[name].running:
                    self.nodes[name].turn()
            if self.zombies and (zombie := rng.choice(self.zombies)).running:
                zombie.turn()
            rng.choice(self.clients).turn(busy=True)
            self._check()
        steps = self.steps + self._drain()
        self.judge.finish()
        world.faults["unsynced blocks lost"] += self.disk.lost
        world.faults["torn tail cut off"] += self.disk.torn
        return Report(
            seed=self.seed,
            flavour=self.flavour,
            steps=steps,
            transactions=self.judge.durable,
            committed=self.committed,
            completed=sum(client.completed for client in self.clients),
            lost=self.judge.lost,
            virtual_seconds=(world.now - started) / SECOND,
            faults=dict(world.faults),
        )

    def _pass_time(self) -> None:
        world, rng = self.world, self.world.rng
        world.now += rng.randint(1, self.pace)
        if rng.random() < 0.03:
            world.now += rng.randint(1, 60 * MS)
        if world.chance(world.rates.jump):
            world.faults["clock jump"] += 1
            world.now += rng.randint(1, 10 * SECOND)
        if world.chance(world.rates.wall):
            world.faults["wall clock jump"] += 1
            most = rng.choice((1, 50, 100, 10_000)) * SECOND
            self.wall_off = rng.choice((0, rng.randint(-min(most, 900 * SECOND), most)))

    def _start_due(self) -> None:
        for node in self.nodes.values():
            if not node.up and self.world.now >= node.start_at:
                node.start()
                if any(zombie.stage == node.stage == "transactor" for zombie in self.zombies):
                    self._rivalled.add(node.life)

    def _drain(self) -> int:
        """Without further faults everything comes to its end."""
        world = self.world
        self.draining_since = world.now
        world.rates = Rates()
        self.sync_rate = 1.0
        self.disk.drive.calls_left = None
        for zombie in list(self.zombies):
            if zombie.stage in ("snapshotter", "gateway"):
                self.stop(zombie, "zombie ended")
        rounds = 0
        while world.now - self.draining_since < DRAIN_NS:
            rounds += 1
            world.now += 10 * MS
            self._start_due()
            for node in list(self.processes()):
                if node.running:
                    node.turn()
            for client in self.clients:
                client.turn(busy=False)
            self._check()
            if rounds % 16 == 0 and not self._open():
                return rounds
        raise SimulationFailure(f"not everything came to its end: {'; '.join(self._open())}")

    def _open(self) -> list[str]:
        """What is still under way."""
        found = [f"{zombie.name} has not stepped down" for zombie in self.zombies]
        for client in self.clients:
            waiting = [*client.sent.items(), *client.queue]
            if waiting:
                found.append(f"{client.name} waits for {waiting[:2]}")
        for node in self.nodes.values():
            if not node.up:
                found.append(f"{node.name} is down")
                continue
            core = node.any_core
            assert core is not None
            link = core.outgoing
            if link is None and node.stage != "snapshotter":
                found.append(f"{node.name} does not run")
            elif link is not None and link.weight:
                found.append(
                    f"{node.name} keeps {link.base}..{link.end - 1}, cursor {link.cursor}, "
                    f"expected {link.expected}"
                )
            if isinstance(node, GatewayNode) and len(node.core.desk):
                found.append(f"{node.name} holds {len(node.core.desk)} requests")
            if isinstance(node, SnapshotterNode) and (
                node.state is None or node.state.index != self.disk.durable
            ):
                found.append(f"the snapshotter is at {node.state and node.state.index}")
            if isinstance(node, SequencerNode) and node.core.index != self.disk.durable:
                found.append(f"the sequencer is at {node.core.index}, durable {self.disk.durable}")
        return found

    def _check(self) -> None:
        self.judge.follow()
        self._note()
        disk, nodes = self.disk, self.nodes
        sequencer, transactor, wal = nodes["sequencer"], nodes["transactor"], nodes["wal"]
        snapshotter = nodes["snapshotter"]
        assert isinstance(sequencer, SequencerNode)
        assert isinstance(transactor, TransactorNode)
        assert isinstance(wal, WalNode)
        assert isinstance(snapshotter, SnapshotterNode)
        check(disk.durable < disk.next_id, "durable beyond the log")
        if wal.up:
            check(
                wal.core.durable_index <= disk.durable,
                f"told durable {wal.core.durable_index}, is {disk.durable}",
            )
            check(
                wal.core.receiver.next_id == disk.next_id,
                f"the log stage expects {wal.core.receiver.next_id}, the log {disk.next_id}",
            )
            if transactor.up and transactor.core.running:
                index = transactor.core.status().index
                followed = wal.core.receiver.peer == transactor.core.incarnation
                if followed and not self._overtaken(transactor):
                    check(
                        disk.next_id - 1 <= index,
                        f"in the log {disk.next_id - 1}, computed {index}",
                    )
                if (
                    sequencer.up
                    and sequencer.core.running
                    and transactor.core.receiver.peer == sequencer.core.incarnation
                ):
                    check(
                        index <= sequencer.core.index,
                        f"computed {index}, sequenced {sequencer.core.index}",
                    )
        if snapshotter.up and snapshotter.state is not None:
            check(snapshotter.state.index <= disk.durable, "readable beyond durable")
        for node in nodes.values():
            core = node.any_core
            link = core.outgoing if core is not None else None
            if link is not None:
                # What becomes durable at once joins what the snapshotter has not taken.
                bound = self.max_in_flight * (2 if node.stage == "wal" else 1) + self.max_batch
                check(link.weight <= bound, f"{node.name} keeps {link.weight}, bound {bound}")


def simulate(seed: int, flavour: str | None = None, steps: int | None = None) -> Report:
    """One run. A failure names what replays it."""
    pipeline = Pipeline(seed, flavour, steps)
    try:
        return pipeline.run()
    except Exception as error:
        how = f"python -m tests.simulation --seed {seed}"
        if flavour is not None:
            how += f" --flavour {flavour}"
        if steps is not None:
            how += f" --steps {steps}"
        raise SimulationFailure(
            f"{type(error).__name__}: {error}\nflavour {pipeline.flavour}; replay with: {how}"
        ) from error
