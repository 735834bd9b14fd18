"""The blocking client: a shell around `core.Core` that threads may share.

It owns a socket and the clock, and decides nothing. There is no thread in the background: a thread
that waits drives the socket for all. One thread at a time polls, without the lock. The others sleep
until their call is done, or until the one that polls leaves. A thread that sends also receives
everything that has arrived, because sending may use up the socket's wake-up signal.

Handlers of signals may raise anywhere (ADR 0019). Three rules follow:

- The lock is held by `with` alone.
- A step that changes the core or the socket is marked in `_torn` while it runs. A thread that finds
  the mark makes both anew.
- No thread waits for another one for longer than that one may poll.
"""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar

import zmq
from numpy.typing import ArrayLike

from tallybus.client import forks, requests
from tallybus.client.access import Access
from tallybus.client.clock import AcceptClock, ReadClock
from tallybus.client.codec import AskGateway, ReadIndex, ReadServices, Request
from tallybus.client.core import MILLISECOND, SECOND, Call, Core, CoreSettings, new_call
from tallybus.client.keys import Key, usable_key
from tallybus.client.registration import ListFunctions, ReadFunctionUsage
from tallybus.client.wire import FramePool, Wire, places_of
from tallybus.common.record import WaitLevel
from tallybus.errors import ClientClosed, ForkedProcess, Timeout
from tallybus.functions import FunctionInfo, FunctionUsage, FunctionVersion
from tallybus.operations import (
    Balance,
    Balances,
    BatchResult,
    Operation,
    Operations,
    Result,
    TransactionStatus,
    TransactionStatuses,
)
from tallybus.pipeline import GatewayInfo, LedgerTime, PipelineIndex, ServiceInfo
from tallybus.transactions import Transaction

T = TypeVar("T")
DEFAULT_TIMEOUT_SECONDS: Final = 30.0
LEASE: Final = 50 * MILLISECOND
"""A thread that polls for all is back so soon after the time it named, unless it was interrupted in
the very moment in which it would have told the others."""
SHUT_PATIENCE: Final = 500 * MILLISECOND
INTERRUPTED: Final = "an exception from outside, as of a signal, interrupted the client"


class Pending:
    """A batch on its way, from `Client.begin_batch`. Any thread may use it."""

    __slots__ = ("_call", "_client")

    def __init__(self, client: Client, call: Call[BatchResult]) -> None:
        self._client = client
        self._call = call

    def done(self) -> bool:
        """Whether `result` returns or raises at once. Never blocks."""
        return self._client._poll_call(self._call)

    def result(self, *, timeout: float | None = None) -> BatchResult:
        """Waits for the batch's outcome; raises its error, as `Client.submit_batch` does.

        With `timeout` (seconds) it raises Timeout after that time, and the batch stays on its way:
        `result` may be called again. Without, the timeout given to `begin_batch` ends the wait.
        """
        return self._client._wait_call(self._call, timeout)


class Client:
    """A blocking client of the gateway at `endpoint` ("tcp://127.0.0.1:5550"); threads may share
    it.

    `key` is the path of this client's key file, for a ledger that lets in only clients with a key.
    The connection is then encrypted, and goes only to the gateway that the key was made for.
    Over ipc and inproc, which never encrypt, it is not looked at. `timeout` is the default of every
    method's `timeout`, in seconds. `context` is needed for inproc endpoints only. Creating a client
    does not wait for the gateway; it raises InvalidRequest for an endpoint or a key file that
    cannot be used, and TooManyOpenFiles. Close it, or use it in a `with`.

    Every method may raise: InvalidRequest (nothing was sent, or the gateway refused it),
    AccessDenied (this client is not let in, or may not do this; told at once, and no later than
    about a second after the gateway could be reached), Timeout, Overloaded and Unavailable (nothing
    was sequenced until the deadline), ProtocolError, ServerError, ClientClosed. Methods that submit
    may also raise OutcomeUnknown (the connection was lost after sending, and some operation had no
    `user_ref`) and LostTransaction. A rejected transaction is a result with a status. What was
    refused or lost is sent again until the deadline wherever that cannot apply anything twice.
    """

    _settings: ClassVar[CoreSettings] = CoreSettings()

    def __init__(
        self,
        endpoint: str,
        *,
        key: Key | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        context: zmq.Context[Any] | None = None,
    ) -> None:
        self._timeout = timeout
        self._endpoint = endpoint
        self._key = usable_key(key, endpoint)
        self._context = context
        self._lock = threading.Lock()
        self._closed = False
        self._torn = False
        """Somebody is inside a step, or was thrown out of one: then `_mend` comes first."""
        self._waker: socket.socket | None = None
        self._wakee: socket.socket | None = None
        self._driver: Call[Any] | None = None  # whose thread polls, and until when
        self._driver_wake = 0
        self._sleepers: dict[threading.Lock, None] = {}
        self._wire: Wire | None = None
        self._core = Core(random.random, self._settings, self._new_access())
        self._frames = FramePool(endpoint)
        self._connect()
        forks.watch(self)

    def submit(self, operation: Operation, *, timeout: float | None = None) -> int:
        """Submits one operation and returns its transaction id as soon as it has one."""
        return self._call(requests.submit_one(operation, WaitLevel.NONE), timeout).tx_id

    def submit_and_wait(
        self,
        operation: Operation,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> Result:
        """Submits one operation and waits until its transaction has reached `wait`."""
        return self._call(requests.submit_one(operation, wait), timeout)

    def submit_batch(
        self,
        operations: Operations,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> BatchResult:
        """Submits a batch and waits until all its transactions have reached `wait`.

        `operations` is a sequence of operations, an array of shape (n,) and dtype
        `OPERATION_DTYPE`, or an OperationBatch, which has function calls as arrays; arrays may be
        changed after the call. Ids are contiguous, in the order given. Each operation is atomic,
        the batch is not. The gateway refuses more than its `max_batch` operations (`gateway_info`).
        """
        return self._call(requests.submit_batch(operations, wait, self._frames.freeze), timeout)

    def begin_batch(
        self,
        operations: Operations,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> Pending:
        """Submits a batch as `submit_batch` does, and returns without waiting for the answer.

        So several batches are in flight over one connection. They are sequenced in the order of
        these calls as long as none is refused or lost: a batch that the gateway refused as
        overloaded is sent again later, and then comes after batches that were begun after it. Where
        order matters, wait for one batch before beginning the next. An array may be changed as soon
        as this returns.

        Sending, receiving and retrying go on while any thread calls a method of this client or of
        its pendings; there is no thread in the background.
        """
        return Pending(
            self, self._start(requests.submit_batch(operations, wait, self._frames.freeze), timeout)
        )

    def get_balance(
        self, account: int, min_tx_id: int | None = None, *, timeout: float | None = None
    ) -> Balance:
        """Balance of one account; with `min_tx_id` not before the snapshot has that transaction."""
        return self._call(requests.read_balance(account, min_tx_id), timeout)

    def get_balances(
        self, accounts: ArrayLike, min_tx_id: int | None = None, *, timeout: float | None = None
    ) -> Balances:
        """Balances of `accounts`, integers of shape (n,), all as of the same transaction."""
        return self._call(requests.read_balances(accounts, min_tx_id), timeout)

    def get_status(
        self, tx_id: int, min_tx_id: int | None = None, *, timeout: float | None = None
    ) -> TransactionStatus:
        """How far a transaction has come and how it ended."""
        return self._call(requests.read_status(tx_id, min_tx_id), timeout)

    def get_statuses(
        self, tx_ids: ArrayLike, min_tx_id: int | None = None, *, timeout: float | None = None
    ) -> TransactionStatuses:
        """Statuses of the transactions `tx_ids`, integers of shape (n,)."""
        return self._call(requests.read_statuses(tx_ids, min_tx_id), timeout)

    def get_transaction(
        self, tx_id: int, min_tx_id: int | None = None, *, timeout: float | None = None
    ) -> Transaction:
        """One transaction with its entries; with `min_tx_id` not before the snapshot has that one.

        Raises TransactionNotFound when the read side does not have it.
        """
        return self._call(requests.read_transaction(tx_id, min_tx_id), timeout)

    def register_function(
        self,
        name: str,
        binary: bytes | bytearray | memoryview,
        override: bool = False,
        *,
        timeout: float | None = None,
    ) -> FunctionVersion:
        """Registers a function, and returns its version once it is on disk and live.

        `binary` is a WebAssembly module of up to 4 MiB. With `override` it replaces a function of
        that name as its next version. However often the request has to be sent, it applies once.
        Raises AlreadyExists without `override`, InvalidFunction when the ledger does not take the
        binary, and what a submit raises; after a Timeout or OutcomeUnknown `list_functions` tells.
        """
        return self._call(requests.register_function(name, binary, override), timeout)

    def unregister_function(self, name: str, *, timeout: float | None = None) -> FunctionVersion:
        """Unregisters a function, and returns its last version, which has no binary and the CRC 0.

        From then on calls of it end with INVALID_OPERATION. Raises NotRegistered when there is no
        such function, and what a submit raises.
        """
        return self._call(requests.unregister_function(name), timeout)

    def list_functions(self, *, timeout: float | None = None) -> list[FunctionInfo]:
        """The registered functions by name, with what was counted since the transactor started."""
        return self._call(ListFunctions(), timeout)

    def function_usage(self, *, timeout: float | None = None) -> FunctionUsage:
        """What all functions of the ledger take together, and may take."""
        return self._call(ReadFunctionUsage(), timeout)

    def pipeline_index(self, *, timeout: float | None = None) -> PipelineIndex:
        """How far each stage has come."""
        return self._call(ReadIndex(), timeout)

    def services(self, *, timeout: float | None = None) -> tuple[ServiceInfo, ...]:
        """Every service that the gateway has heard of: process, incarnation, term, indexes."""
        return self._call(ReadServices(), timeout)

    def wait_for(
        self,
        tx_id: int,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> WaitLevel:
        """Waits until every transaction up to `tx_id` has reached `wait`; returns the level
        reached.
        """
        return self._call(requests.wait_for(tx_id, wait), timeout)

    def clock(self, *, timeout: float | None = None) -> LedgerTime:
        """The ledger's time, and whether it follows the wall clock."""
        return self._call(ReadClock(), timeout)

    def accept_clock(self, *, timeout: float | None = None) -> LedgerTime:
        """Tells that a wall clock which has jumped ahead is right: the ledger's time follows it.

        Where it has not jumped nothing changes. With keys it takes the role admin.
        """
        return self._call(AcceptClock(), timeout)

    def gateway_info(self, *, timeout: float | None = None) -> GatewayInfo:
        """Who answers, and its limits."""
        return self._call(AskGateway(), timeout)

    def close(self, wait: bool = True) -> None:
        """Closes the client; may be called again.

        Waits for what is outstanding, each until its own deadline. With `wait` False that fails at
        once: OutcomeUnknown for batches that were sent, ClientClosed for the rest.
        """
        with self._lock:
            outstanding = () if self._closed or not wait else self._core.outstanding
            self._closed = True
        try:
            for call in outstanding:
                self._await(call, None)
        finally:
            self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(wait=exc_type is None)

    def _shut(self) -> None:
        patience = time.monotonic_ns() + SHUT_PATIENCE
        while True:
            with self._lock:
                if not self._torn and self._wire is not None:
                    self._torn = True
                    self._core.close()
                    self._settle()
                    self._torn = False
                # Nobody should poll on a descriptor that is closed, and perhaps reused, meanwhile.
                if self._driver is None or time.monotonic_ns() > patience:
                    break
                self._nudge()
            time.sleep(0.001)
        with self._lock:
            wire, self._wire = self._wire, None
            if self._torn:
                self._core.close()
                self._wake_all()
                self._torn = False
            if wire is not None:
                wire.close()
            self._close_wakers()

    def _close_wakers(self) -> None:
        for end in (self._waker, self._wakee):
            if end is not None:
                end.close()
        self._waker = self._wakee = None

    def _new_access(self) -> Access:
        name = None if self._key is None else self._key.name
        return Access(self._endpoint, name, time.monotonic_ns(), places_of(self._endpoint))

    def _connect(self) -> None:
        """Makes a connection that nothing was sent over yet, and what polls on it."""
        wire = Wire(self._endpoint, self._context, self._key)
        if self._waker is None:
            try:
                self._waker, self._wakee = _socket_pair()
            except BaseException:
                wire.close()
                raise
            self._wakee_fd = self._wakee.fileno()
        poller = select.poll()
        poller.register(wire.fd, select.POLLIN)
        poller.register(self._wakee_fd, select.POLLIN)
        if wire.monitor_fd is not None:
            poller.register(wire.monitor_fd, select.POLLIN)
        self._poller = poller
        self._monitor_fd = wire.monitor_fd
        self._wire = wire

    def _forked(self) -> None:
        """Now in a child: the connection is the parent's, and so are the calls under way."""
        forks.abandon((self._wire, self._core, self._context))
        for call in self._core.outstanding:
            call.error = ForkedProcess(
                "another process began this request, and this one was forked from it; "
                "the other one gets the outcome"
            )
            call.done = True
        self._lock = threading.Lock()
        self._torn = False
        self._driver = None
        self._sleepers = {}
        self._wire = None
        self._context = None
        self._core = Core(random.random, self._settings, self._new_access())
        self._frames = FramePool(self._endpoint)
        self._close_wakers()

    def _mend(self) -> None:
        """Makes the connection anew where a step was left in the middle. Called with the lock.

        An exception from outside does that (Ctrl-C, a handler of a signal), and so does a fork, in
        the child. Nobody can say then which part of a message the socket has sent or received. So
        the connection is given up. What was under way goes on over a new one, as after any lost
        connection.
        """
        if self._wire is None and not self._torn:
            if self._closed:
                return
            self._reconnect_in_child()
            return
        self._torn = True
        old, self._wire = self._wire, None
        if old is not None:
            old.close()
        if self._closed:
            self._core.close()
        else:
            core = self._core.resumed(self._new_access(), INTERRUPTED, time.monotonic_ns())
            self._core = core
            self._connect()
            self._frames = FramePool(self._endpoint)
            self._settle()
        self._wake_all()
        self._torn = False

    def _reconnect_in_child(self) -> None:
        if self._endpoint.startswith("inproc:"):
            raise ForkedProcess(
                f"{self._endpoint} is inside the process that made this client, and this one was "
                "forked from it; make a client, or open a ledger, after the fork"
            )
        self._connect()

    def _wake_all(self) -> None:
        while self._sleepers:
            self._sleepers.popitem()[0].release()
        if self._driver is not None:
            self._nudge()

    def _begin(self, call: Call[Any], now: int) -> None:
        with self._lock:
            if self._closed:
                raise ClientClosed("this client is closed")
            if self._torn or self._wire is None:
                self._mend()
            self._torn = True
            self._core.begin(call, now)
            self._step(now)
            self._torn = False

    def _start(self, request: Request[T], timeout: float | None) -> Call[T]:
        now = time.monotonic_ns()
        call = new_call(request, now, self._timeout if timeout is None else timeout)
        try:
            self._begin(call, now)
        except BaseException:
            self._give_up(call)
            raise
        return call

    def _call(self, request: Request[T], timeout: float | None) -> T:
        now = time.monotonic_ns()
        call = new_call(request, now, self._timeout if timeout is None else timeout)
        try:
            self._begin(call, now)
            if not call.done:
                self._await(call, None)
        except BaseException:
            self._give_up(call)
            raise
        return call.result()

    def _give_up(self, call: Call[Any]) -> None:
        """Its caller was interrupted: it is not sent any more, and its answer is ignored."""
        call.abandoned = True
        with self._lock:
            if self._torn or self._wire is None:
                return  # what mends it forgets the call
            self._torn = True
            self._core.forget(call)
            self._settle()
            self._torn = False

    def _poll_call(self, call: Call[Any]) -> bool:
        with self._lock:
            if not call.done:
                if self._torn or self._wire is None:
                    self._mend()
                self._torn = True
                self._step(time.monotonic_ns())
                self._torn = False
            return call.done

    def _wait_call(self, call: Call[T], timeout: float | None) -> T:
        until = None if timeout is None else time.monotonic_ns() + int(timeout * SECOND)
        self._await(call, until)
        if not call.done:
            raise Timeout(
                f"the batch has no outcome after {timeout:g} s and is still on its way",
                request="submit",
                level=None if call.request is None else call.request.level,
                seconds=timeout or 0.0,
            )
        return call.result()

    def _await(self, call: Call[Any], until: int | None) -> None:
        """Returns when the call is done or the time `until` has come."""
        drives = False
        sleeper: threading.Lock | None = None
        ready: list[tuple[int, int]] = []
        try:
            while True:
                with self._lock:
                    if self._torn or self._wire is None:
                        self._mend()
                    now = time.monotonic_ns()
                    if drives:
                        drives = False
                        if self._driver is call:
                            self._driver = None
                        self._torn = True
                        self._take(ready, now)
                        self._torn = False
                    elif sleeper is not None:
                        self._forget_sleeper(call, sleeper)
                        sleeper = None
                    if call.done or (until is not None and now >= until):
                        if self._driver is None:
                            self._pass_on()
                        return
                    if self._driver is None or now > self._driver_wake + LEASE:
                        # A driver that is late was interrupted where it could not say so.
                        wake = self._wake_of(call, until)
                        self._driver_wake = wake
                        self._driver = call
                        drives = True
                        poller = self._poller
                    else:
                        wake = self._driver_wake + LEASE
                        if until is not None and until < wake:
                            wake = until
                        sleeper = self._new_sleeper(call)
                if drives:
                    # Rounded up: waking a moment early would mean polling again for nothing.
                    ready = poller.poll(max(0, -((time.monotonic_ns() - wake) // MILLISECOND)))
                elif sleeper is not None:
                    sleeper.acquire(timeout=max(0, wake - time.monotonic_ns()) / SECOND)
        except BaseException:
            self._leave(call, drives, sleeper)
            raise

    def _wake_of(self, call: Call[Any], until: int | None) -> int:
        """How long to poll."""
        wake = self._core.next_wake()
        if wake is None or call.deadline < wake:
            wake = call.deadline
        return wake if until is None or wake < until else until

    def _take(self, ready: list[tuple[int, int]], now: int) -> None:
        """Takes what polling has shown. Called with the lock, inside of a step."""
        told = False
        for fd, _ in ready:
            if fd == self._wakee_fd and self._wakee is not None:
                with suppress(BlockingIOError):
                    self._wakee.recv(4096)
            elif fd == self._monitor_fd:
                told = True
        self._step(now, told)

    def _new_sleeper(self, call: Call[Any]) -> threading.Lock:
        """A lock that is released when the call is done, or nobody drives. Called with the lock."""
        sleeper = threading.Lock()
        sleeper.acquire()
        if call.owner is None:
            call.owner = []
        call.owner.append(sleeper)
        self._sleepers[sleeper] = None
        return sleeper

    def _forget_sleeper(self, call: Call[Any], sleeper: threading.Lock) -> None:
        self._sleepers.pop(sleeper, None)
        if call.owner is not None and sleeper in call.owner:
            call.owner.remove(sleeper)

    def _pass_on(self) -> None:
        """Nobody drives any more: wakes one of those who sleep. Called with the lock."""
        if self._sleepers:
            self._sleepers.popitem()[0].release()

    def _leave(self, call: Call[Any], drives: bool, sleeper: threading.Lock | None) -> None:
        """This thread was interrupted while it waited."""
        with self._lock:
            if drives and self._driver is call:
                self._driver = None
            if sleeper is not None:
                self._forget_sleeper(call, sleeper)
            if self._driver is None:
                self._pass_on()

    def _step(self, now: int, told: bool = False) -> None:
        """Does everything that can be done without waiting. Called with the lock."""
        core, wire = self._core, self._wire
        if wire is None:
            return
        core.tick(now)
        wire.pump(core, now, told)
        self._settle()

    def _settle(self) -> None:
        """Wakes those whose calls are done, and whoever polls for longer than is right now."""
        core = self._core
        if core.finished:
            for call in core.finished:
                self._frames.recycle(call)
                for sleeper in call.owner or ():
                    if sleeper in self._sleepers:
                        del self._sleepers[sleeper]
                        sleeper.release()
            core.finished.clear()
        if self._driver is not None:
            wake = core.next_wake()
            if self._driver.done or (wake is not None and wake < self._driver_wake):
                self._nudge()

    def _nudge(self) -> None:
        """Wakes whoever polls."""
        if self._waker is not None:
            with suppress(BlockingIOError):  # its buffer is full of wake-ups already
                self._waker.send(b"\0")


def _socket_pair() -> tuple[socket.socket, socket.socket]:
    waker, wakee = socket.socketpair()
    waker.setblocking(False)
    wakee.setblocking(False)
    return waker, wakee
