"""A service: a core, and around it the parts that every service has.

A shell owns sockets and files and decides nothing; what to do with a message is decided by its
core (`core`). `Shell` is the base of the five. It puts the parts together and runs them from the
start to the end:

- `loop`: what one turn does (`loop`)
- `sockets`, `inbox`, `outbox`: what the stage binds and connects to, what is done with what
  arrives, and how what the core puts out is sent (`stage_sockets`, `inbox`, `outbox`)
- `watch`, `vitals`, `meter`: metrics, health, readiness, handshakes (`watch`)
- `process`: the lock in the run folder, the CPUs, the parent (`process`, `run_folder`)

A service opens what it needs in `prepare` and fills in what it does in a turn beside messages.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from typing import Final

from tallybus.common import logs
from tallybus.common.bus.messages import TOPIC_METRICS, Message, Presence, StageMetrics
from tallybus.common.bus.sockets import Context
from tallybus.common.files import Storage
from tallybus.common.metrics.counters import Meter
from tallybus.common.metrics.health import Vitals
from tallybus.common.security import exposure
from tallybus.common.service.core import Source, StageCore
from tallybus.common.service.inbox import Inbox
from tallybus.common.service.loop import Loop
from tallybus.common.service.outbox import Outbox
from tallybus.common.service.process import Process
from tallybus.common.service.stage_sockets import StageSockets
from tallybus.common.service.watch import Watch
from tallybus.common.settings import addresses
from tallybus.common.settings.sections import Settings

DRAIN_NS: Final = 5_000_000_000
"""How long a clean stop waits for what is under way."""


class Shell(ABC):
    """Base of the services. `run` starts it and returns when it was stopped."""

    stage: str
    core: StageCore
    """From `prepare` on."""

    def __init__(self, settings: Settings, context: Context, storage: Storage) -> None:
        self.settings = settings
        self.storage = storage
        self.log = logs.get(self.stage)
        self.heartbeat_ns = settings.bus.heartbeat_ms * 1_000_000
        self.vitals = Vitals(time.monotonic_ns())
        self.meter: Meter | None = None
        """What it counts, where somebody is shown it."""
        self.loop = Loop(self, settings.service(self.stage).wait)
        self.inbox = Inbox(self)
        self.outbox = Outbox(self.log)
        self.sockets = StageSockets(
            settings, self.stage, context, self.loop, self.inbox, self.outbox
        )
        bus = self.sockets.bus
        self.process = Process(settings, storage, self.stage, bus, self.log)
        self.watch = Watch(self, settings, bus.handshakes, self.tell_metrics)

    # -- from the start to the end ---------------------------------------------------------------

    def run(self) -> None:
        """Turn until `stop` is called. Raises what makes the service unable to go on."""
        loop = self.loop
        try:
            self.process.pin()
            exposure.check(self.settings, (self.stage,))
            addresses.check(self.settings, self.stage)
            self.sockets.secure(self.settings, self.vitals.refused, self.log)
            if self.watch.wanted:
                self.meter = self.new_meter()
            self.watch.serve()
            self.process.run_folder.lock()
            self.prepare()
            self._present()
            self.vitals.prepared = True
            self.log.info("started")
            while not loop.stopping:
                loop.turn()
                if self.watch.became_ready():
                    break
            while not loop.stopping:
                loop.turn()
            if loop.signal:
                # Not by its handler: it may have come in the middle of a line.
                self.log.info("stopping", extra=logs.fields(signal=loop.signal))
            self._drain()
        finally:
            self.close()

    def stop(self, signal: str = "") -> None:
        """Make `run` return once everything under way is done; when called again, after the current
        turn. May be called from any thread, and from the handler of the named signal."""
        self.loop.stop(signal)

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called: long work in `prepare` and `step` looks at it."""
        return self.loop.stopping

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

    def _drain(self) -> None:
        limit = time.monotonic_ns() + DRAIN_NS
        while not self.finished():
            if self.loop.hurried or time.monotonic_ns() > limit:
                self.log.warning("stopped before everything was answered")
                return
            self.loop.turn()

    # -- what a service fills in -----------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Recover, make the core and open the sockets. The run folder is locked by then."""

    def new_incarnation(self) -> int:
        """A random u64 other than 0: what tells this start from every other one."""
        return int.from_bytes(os.urandom(8), "little") | 1

    def new_meter(self) -> Meter:
        """What this service counts; asked for only when its metrics are served or told."""
        return Meter()

    def tell_metrics(self, message: StageMetrics) -> None:
        """Hand the service's numbers to whoever shows them: gateways, by broadcast."""
        self.outbox.broadcast(TOPIC_METRICS, message)

    def timeout_ns(self, now_ns: int) -> int:
        """How long a wait may last when nothing arrives."""
        return self.heartbeat_ns // 2

    def step(self, now_ns: int) -> None:
        """What a shell does once a turn, between reading and sending."""

    def idle(self) -> None:
        """Called in a turn in which nothing arrived, for work that can be done at any time."""

    def flush(self, now_ns: int) -> None:
        """Send everything that the core has put out."""
        self.outbox.send(self.core)

    def finished(self) -> bool:
        """Whether nothing is left that a clean stop has to wait for: the successor has it all."""
        link = self.core.outgoing
        return link is None or link.expected >= link.end

    def close(self) -> None:
        """Close everything. The state on disk is whole at any time, so there is nothing to save."""
        self.watch.close()
        self.sockets.close()
        self.process.run_folder.release()
        self.loop.close()

    # -- messages --------------------------------------------------------------------------------

    def take(self, source: Source, message: Message, now_ns: int) -> None:
        """Hand a message to the core, and do at once what the core wants done on its account."""
        self.core.on_message(source, message, now_ns)
