"""The loop of a service: what one turn does, and in which order.

A turn waits for the sockets that somebody wants to read, hands their messages on, lets the service
do its part, and sends what came out (`Loop.turn` is the list). It decides nothing and knows no
message. Each look at the surroundings has a time at which it is due, so that a turn in which none
is due costs nothing for them.

All of it runs in one thread. Only `stop` and `wake` may be called from others, and from handlers of
signals: they note, wake and log nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from tallybus.common.buffers import Buffer
from tallybus.common.bus.sockets import Port, Selector
from tallybus.common.metrics.health import Vitals
from tallybus.common.service.core import HELLO_EVERY_NS, PACE_NS, StageCore
from tallybus.common.service.process import Process
from tallybus.common.service.watch import Watch

REST_NS: Final = 1_000_000
"""How long a `low_cpu` service rests after a turn with work, so that more gathers for the next."""
READ_NS: Final = 4_000_000
"""How long a turn reads one socket: expensive messages of some must not hold up all."""


class Turned(Protocol):
    """What the loop turns: a service."""

    core: StageCore
    vitals: Vitals
    process: Process
    watch: Watch
    log: logging.Logger

    def timeout_ns(self, now_ns: int) -> int:
        """How long the wait may last when nothing arrives."""

    def idle(self) -> None:
        """Work that can be done at any time; called when nothing has arrived."""

    def step(self, now_ns: int) -> None:
        """What it does once a turn, between reading and sending."""

    def flush(self, now_ns: int) -> None:
        """Send everything that the core has put out."""


@dataclass(slots=True)
class Input:
    """A socket, what to do with each of its messages, whether to read it now, how many in a
    turn."""

    port: Port
    handle: Callable[[list[Buffer], int], None]
    wanted: Callable[[], bool]
    most: int


@dataclass(slots=True)
class Output:
    """A socket, and whether it took no more: then a turn also waits until it does."""

    port: Port
    blocked: bool = False


class Loop:
    """Turns one service until `stop`. `wait` is its strategy, as in the settings."""

    def __init__(self, service: Turned, wait: str) -> None:
        self.stopping = False
        """Whether `stop` was called."""
        self.hurried = False
        """Whether it was called again."""
        self.signal = ""
        """The last signal that it was called for."""
        self._service = service
        self._selector = Selector(wait)
        self._rests = wait == "low_cpu"
        self._inputs: list[Input] = []
        self._outputs: list[Output] = []

    def read(
        self,
        port: Port,
        handle: Callable[[list[Buffer], int], None],
        wanted: Callable[[], bool] = lambda: True,
        most: int = 64,
    ) -> None:
        """Read a socket in every turn, at most `most` messages; the first that was added first."""
        self._inputs.append(Input(port, handle, wanted, most))

    def write(self, output: Output) -> None:
        """Wait for this socket, too, whenever it is blocked."""
        self._outputs.append(output)

    def turn(self) -> None:
        """One turn: wait for something, hand it on, let the service work, send what comes out."""
        service = self._service
        process, watch = service.process, service.watch

        ready = self._wait()
        now = service.vitals.turned_ns = time.monotonic_ns()
        if now >= process.parent_due_ns and process.orphaned(now):
            service.log.warning("stopping: the supervisor is gone")
            # Its neighbours stop at this moment, too: there is nothing to wait for.
            self.stop()
            self.stop()

        for item in self._inputs:
            if item.port.socket in ready:
                self._read(item, now)
        if not ready:
            service.idle()
        if now >= watch.metrics_due_ns:
            watch.tell_metrics(now)

        service.step(now)
        service.core.tick(now)
        service.flush(now)

        if now >= watch.handshakes_due_ns:
            watch.look_at_handshakes(now)
        if now >= process.run_folder.due_ns:
            process.run_folder.look(now)
        if self._rests and ready:
            time.sleep(REST_NS / 1e9)

    def stop(self, signal: str = "") -> None:
        """Everything under way is to be done and no more; when called again, the current turn. May
        be called from any thread, and from the handler of the named signal."""
        self.signal = signal or self.signal
        self.hurried = self.stopping
        self.stopping = True
        self.wake()

    def wake(self) -> None:
        """End the current wait. May be called from any thread."""
        self._selector.wake()

    def close(self) -> None:
        """After this it neither turns nor wakes."""
        self._selector.close()

    def _wait(self) -> set[object]:
        """The sockets that can be read or written now, possibly none."""
        watch = self._selector.watch
        for item in self._inputs:
            watch(item.port, item.wanted())
        for output in self._outputs:
            watch(output.port, readable=False, writable=output.blocked)
        service = self._service
        timeout_ns = service.timeout_ns(time.monotonic_ns())
        core = service.core
        if core.status_pending:
            timeout_ns = min(timeout_ns, PACE_NS)
        if core.greeting:
            timeout_ns = min(timeout_ns, HELLO_EVERY_NS)
        return self._selector.wait(timeout_ns)

    def _read(self, item: Input, now_ns: int) -> None:
        until = time.monotonic_ns() + READ_NS
        for _ in range(item.most):
            if not item.wanted():
                return
            frames = item.port.receive()
            if frames is None:
                return
            item.handle(frames, now_ns)
            if time.monotonic_ns() >= until:
                return
