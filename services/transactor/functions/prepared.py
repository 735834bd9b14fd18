"""Modules compiled ahead of their registration, beside everything else.

A large module takes seconds to compile, and nothing else may stand still meanwhile. So a gateway
asks for it before the registration is sequenced. When the registration is executed, the compiled
module is at hand.

Nobody can say beforehand how long a module takes, so the first attempt is a short one. A module
that is not done by then goes to a second lane, with all the time that it may have. Each lane is a
thread with a compiler of its own. It serves its clients in turn, and the smallest module of a
client first. So a small module waits for no large one, and no client waits for the modules of
another one. When the second lane is empty, it helps the first.

Compiled modules can be shared: the same one may be registered under many names.
ADR 0017 says why there are two lanes, and who is next in them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from tallybus.services.transactor.functions.compiler import CompilerStopped, TooSlow
from tallybus.services.transactor.functions.errors import InvalidFunction

KEPT: Final = 64
KEPT_BYTES: Final = 8 << 20
"""Modules that are kept compiled, and how large they may be together (as binaries). Beyond either,
those go that were not asked for the longest; the newest stays, however large."""
SLICE_SECONDS: Final = 0.5
"""Of the first attempt."""
LARGE_BYTES: Final = 512 << 10
"""A module of this size is not done in that time."""
MAX_WAITING: Final = 4_096
MAX_WAITING_BYTES: Final = 256 << 20
"""Of all modules that wait. A module beyond that is refused. So is one that would leave the others
less room than its client has: no client can keep the others from registering."""
IDLE_SECONDS: Final = 20.0
"""After which a compiler's process ends until it is needed again."""
POLL_SECONDS: Final = 0.1
NOBODY: Final = b""

Ticket = TypeVar("Ticket")
Compiled = TypeVar("Compiled")
Made = TypeVar("Made", covariant=True)


class ModuleCompiler(Protocol[Made]):
    """What a lane compiles with."""

    def compile(self, binary: bytes, seconds: float) -> Made:
        """Raises InvalidFunction; TooSlow when it takes longer than this; CompilerStopped."""
        ...

    def rest(self) -> None: ...
    def stop(self) -> None: ...


class QueueLength(NamedTuple):
    """What waits or is being compiled: modules, and bytes of their binaries."""

    modules: int
    bytes: int


_NONE: Final = QueueLength(0, 0)


class _Job(Generic[Ticket, Compiled]):
    """A module to compile, and who waits for it."""

    __slots__ = ("allowance", "binary", "client", "compiled", "done", "error", "tickets", "urgent")

    def __init__(self, binary: bytes, client: bytes, allowance: float) -> None:
        self.binary = binary
        self.client = client
        self.allowance = allowance
        self.tickets: list[Ticket] = []
        self.urgent = False
        self.done = False
        self.compiled: Compiled | None = None
        self.error: InvalidFunction | None = None


class _Queue(Generic[Ticket, Compiled]):
    """Jobs of one lane: urgent ones first, then clients in turn, and of each its smallest."""

    def __init__(self) -> None:
        self._turns: OrderedDict[bytes, list[_Job[Ticket, Compiled]]] = OrderedDict()
        self._urgent: deque[_Job[Ticket, Compiled]] = deque()

    def add(self, job: _Job[Ticket, Compiled]) -> None:
        if job.urgent:
            self._urgent.append(job)
        else:
            self._turns.setdefault(job.client, []).append(job)

    def take(self) -> _Job[Ticket, Compiled] | None:
        if self._urgent:
            return self._urgent.popleft()
        if not self._turns:
            return None
        client, jobs = self._turns.popitem(last=False)
        job = min(jobs, key=lambda each: len(each.binary))
        jobs.remove(job)
        if jobs:
            self._turns[client] = jobs
        return job

    def hurry(self, job: _Job[Ticket, Compiled]) -> None:
        """It is needed now."""
        jobs = self._turns.get(job.client, [])
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._turns[job.client]
            self._urgent.append(job)


class PreparedModules(Generic[Ticket, Compiled]):
    """Compiles what is asked for, in two lanes. `notify` is called in one of their threads whenever
    something is done, and must return quickly."""

    def __init__(
        self, quick: ModuleCompiler[Compiled], slow: ModuleCompiler[Compiled], seconds: float
    ) -> None:
        """`seconds` of processor time are what a module may take."""
        self._compilers = (quick, slow)
        self._seconds = seconds
        self._queues: tuple[_Queue[Ticket, Compiled], ...] = (_Queue(), _Queue())
        self._jobs: dict[bytes, _Job[Ticket, Compiled]] = {}
        self._waiting_bytes = 0
        self._waiting_of: dict[bytes, QueueLength] = {}
        """Of each client that has any."""
        self._done: deque[tuple[Ticket, str | None]] = deque()
        self._ready: OrderedDict[bytes, Compiled] = OrderedDict()
        self._ready_bytes = 0
        self._changed = threading.Condition()
        self.closing = False
        self._threads: list[threading.Thread] = []
        self.notify: Callable[[], None] = _nothing

    def ask(self, ticket: Ticket, binary: bytes, client: bytes = NOBODY) -> str | None:
        """Compile this module for this client; `done` tells how it went. If there is no room for it
        now, says so, and nothing more is told."""
        with self._changed:
            if binary in self._ready:
                self._ready.move_to_end(binary)
                self._done.append((ticket, None))
            else:
                job = self._jobs.get(binary)
                if job is None and self._full(binary, client):
                    return (
                        f"{len(self._jobs)} modules of {self._waiting_bytes} bytes wait to be "
                        f"compiled, {self._waiting_of.get(client, _NONE).modules} of them this "
                        "client's; try again later"
                    )
                if job is None:
                    job = self._add(binary, client, self._seconds, urgent=False)
                job.tickets.append(ticket)
                return None
        self.notify()
        return None

    def done(self) -> list[tuple[Ticket, str | None]]:
        """What was finished since the last call: the ticket, and why it was refused, if it was."""
        finished = []
        while self._done:
            finished.append(self._done.popleft())
        return finished

    def begin(self, binary: bytes, allowance: float) -> None:
        """Somebody will `take` it soon: it goes before what others have asked for."""
        with self._changed:
            if binary not in self._ready and binary not in self._jobs:
                self._add(binary, NOBODY, allowance, urgent=True)

    def take(
        self,
        binary: bytes,
        waiting: Callable[[], None] = lambda: None,
        allowance: float | None = None,
    ) -> Compiled:
        """The compiled module; if it is not at hand, the lanes make it while this waits and calls
        `waiting` again and again, which may raise to end that. Raises InvalidFunction.
        """
        with self._changed:
            found = self._ready.get(binary)
            if found is not None:
                self._ready.move_to_end(binary)
                return found
            job = self._jobs.get(binary)
            if job is None:
                seconds = self._seconds if allowance is None else allowance
                job = self._add(binary, NOBODY, seconds, urgent=True)
            elif not job.urgent:
                job.urgent = True
                for queue in self._queues:
                    queue.hurry(job)
            while not job.done:
                if self.closing:
                    raise InvalidFunction("it was not compiled: the service ends")
                self._changed.wait(POLL_SECONDS)
                self._changed.release()
                try:
                    waiting()
                finally:
                    self._changed.acquire()
        if job.error is not None:
            raise job.error
        assert job.compiled is not None
        return job.compiled

    def ready(self, binary: bytes) -> Compiled | None:
        """The compiled module if it is at hand."""
        with self._changed:
            return self._ready.get(binary)

    @property
    def waiting(self) -> QueueLength:
        """What is not done yet."""
        with self._changed:
            return QueueLength(len(self._jobs), self._waiting_bytes)

    def close(self) -> None:
        """End the threads; what was asked for and not done is dropped."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
        for compiler in self._compilers:
            compiler.stop()
        for thread in self._threads:
            thread.join()
        self._ready.clear()

    def _full(self, binary: bytes, client: bytes) -> bool:
        own = self._waiting_of.get(client, _NONE)
        return (
            own.modules >= MAX_WAITING - len(self._jobs)
            or own.bytes + len(binary) > MAX_WAITING_BYTES - self._waiting_bytes
        )

    def _count(self, job: _Job[Ticket, Compiled], modules: int) -> None:
        """One more of its client waits, or one less."""
        more = modules * len(job.binary)
        self._waiting_bytes += more
        own = self._waiting_of.pop(job.client, _NONE)
        if own.modules + modules:
            self._waiting_of[job.client] = QueueLength(own.modules + modules, own.bytes + more)

    def _add(
        self, binary: bytes, client: bytes, allowance: float, *, urgent: bool
    ) -> _Job[Ticket, Compiled]:
        job: _Job[Ticket, Compiled] = _Job(binary, client, allowance)
        job.urgent = urgent
        self._jobs[binary] = job
        self._count(job, 1)
        self._queues[len(binary) >= LARGE_BYTES].add(job)
        if not self._threads and not self.closing:
            for lane, name in enumerate(("compiler", "compiler-slow")):
                thread = threading.Thread(target=self._run, args=(lane,), name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._changed.notify_all()
        return job

    def _next(self, lane: int) -> tuple[_Job[Ticket, Compiled], bool] | None:
        """The next job of a lane, and whether it is its first attempt; None when all ends."""
        with self._changed:
            while not self.closing:
                job = self._queues[lane].take()
                if job is not None:
                    return job, lane == 0
                if lane == 1 and (job := self._queues[0].take()) is not None:
                    return job, True
                if not self._changed.wait(IDLE_SECONDS):
                    self._changed.release()
                    try:
                        self._compilers[lane].rest()
                    finally:
                        self._changed.acquire()
            return None

    def _run(self, lane: int) -> None:
        while (found := self._next(lane)) is not None:
            job, short = found
            allowance = min(SLICE_SECONDS, job.allowance) if short else job.allowance
            try:
                job.compiled = self._compilers[lane].compile(job.binary, allowance)
            except TooSlow as error:
                if allowance < job.allowance:
                    with self._changed:
                        self._queues[1].add(job)
                        self._changed.notify_all()
                    continue
                job.error = error
            except InvalidFunction as error:
                job.error = error
            except CompilerStopped:
                return
            except Exception as error:  # noqa: BLE001
                # Whatever a module does to the compiler, the service lives on.
                job.error = InvalidFunction(
                    f"it cannot be compiled: {type(error).__name__}: {error}"
                )
            self._finish(job)

    def _finish(self, job: _Job[Ticket, Compiled]) -> None:
        refusal = None if job.error is None else str(job.error)
        with self._changed:
            del self._jobs[job.binary]
            self._count(job, -1)
            if job.compiled is not None:
                self._ready[job.binary] = job.compiled
                self._ready_bytes += len(job.binary)
                while len(self._ready) > KEPT or (
                    self._ready_bytes > KEPT_BYTES and len(self._ready) > 1
                ):
                    oldest, _ = self._ready.popitem(last=False)
                    self._ready_bytes -= len(oldest)
            job.done = True
            self._done.extend((ticket, refusal) for ticket in job.tickets)
            self._changed.notify_all()
        self.notify()


def _nothing() -> None:
    pass
