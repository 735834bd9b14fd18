"""The blocking client: a shell around `core.Core` that threads may share.

It owns a socket and the clock and decides nothing. There is no thread in the background: whoever
waits drives the socket for all. One thread at a time polls, without the lock; the others sleep
until their call is done or the one that polls leaves. Whoever sends also receives everything that
has arrived, because sending may use up the socket's wake-up signal.
"""

from __future__ import annotations

import random
import select
import socket
import threading
import time
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar

import zmq
from numpy.typing import ArrayLike

from tallybus.client import requests
from tallybus.client.access import Access
from tallybus.client.clock import AcceptClock, ReadClock
from tallybus.client.codec import AskGateway, ReadIndex, ReadServices, Request
from tallybus.client.core import MILLISECOND, SECOND, Call, Core, CoreSettings
from tallybus.client.keys import Key, usable_key
from tallybus.client.registration import ListFunctions
from tallybus.client.wire import FramePool, Wire
from tallybus.common.record import Level
from tallybus.errors import ClientClosed, Timeout
from tallybus.functions import FunctionInfo, FunctionVersion
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


class Pending:
    """A batch on its way, from `Client.begin_batch`. Any thread may use it."""

    __slots__ = ("_call", "_client")

    def __init__(self, client: Client, call: Call[BatchResult]) -> None:
        self._client = client
        self._call = call

    def done(self) -> bool:
        """Whether `result` returns or raises at once. Never blocks."""
        return self._client._poll_call(self._call)

    def result(self, timeout: float | None = None) -> BatchResult:
        """Waits for the batch's outcome; raises its error, as `Client.submit_batch` does.

        With `timeout` (seconds) it raises Timeout after that time, and the batch stays on its way:
        `result` may be called again. Without, the timeout given to `begin_batch` ends the wait.
        """
        return self._client._wait_call(self._call, timeout)


class Client:
    """A blocking client of the gateway at `endpoint` ("tcp://127.0.0.1:5550"); threads may share
    it.

    `key` is the path of this client's key file, for a ledger that lets in only who has a key: the
    connection is then encrypted, and goes to the gateway that the key was made for and no other.
    Over ipc and inproc, which never encrypt, it is not looked at. `timeout` is the default of every
    method's `timeout`, in seconds. `context` is needed for inproc endpoints only. Creating a client
    does not wait for the gateway; it raises InvalidRequest for an endpoint or a key file that
    cannot be used. Close it, or use it in a `with`.

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
        held = usable_key(key, endpoint)
        self._wire: Wire | None = Wire(endpoint, context, held)
        access = Access(endpoint, None if held is None else held.name, time.monotonic_ns())
        self._core = Core(random.random, self._settings, access)
        self._lock = threading.Lock()
        self._closed = False
        self._frames = FramePool(endpoint)
        self._waker, self._wakee = socket.socketpair()
        self._waker.setblocking(False)
        self._wakee.setblocking(False)
        self._wakee_fd = self._wakee.fileno()
        self._poller = select.poll()
        self._poller.register(self._wire.fd, select.POLLIN)
        self._poller.register(self._wakee, select.POLLIN)
        self._monitor_fd = self._wire.monitor_fd
        if self._monitor_fd is not None:
            self._poller.register(self._monitor_fd, select.POLLIN)
        self._driver: Call[Any] | None = None  # whose thread polls, and until when
        self._driver_wake = 0
        self._driver_left = threading.Condition(self._lock)
        self._sleepers: dict[threading.Lock, None] = {}

    def submit(self, operation: Operation, *, timeout: float | None = None) -> int:
        """Submits one operation and returns its transaction id as soon as it has one."""
        return self._call(requests.submit_one(operation, Level.NONE), timeout).tx_id

    def submit_and_wait(
        self,
        operation: Operation,
        level: Level = Level.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> Result:
        """Submits one operation and waits until its transaction has reached `level`."""
        return self._call(requests.submit_one(operation, level), timeout)

    def submit_batch(
        self,
        operations: Operations,
        wait: Level = Level.COMMITTED,
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
        wait: Level = Level.COMMITTED,
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
        timeout: float | None = None,
    ) -> FunctionVersion:
        """Registers a function, and returns its version once it is on disk and live.

        `binary` is a WebAssembly module of up to 4 MiB. With `override` it replaces a function of
        that name as its next version. However often the request has to be sent, it applies once.
        Raises AlreadyExists without `override`, InvalidFunction when the ledger does not take the
        binary, and what a submit raises; after a Timeout or OutcomeUnknown `list_functions` tells.
        """
        return self._call(requests.register_function(name, binary, override), timeout)

    def unregister_function(self, name: str, timeout: float | None = None) -> FunctionVersion:
        """Unregisters a function, and returns its last version, which has no binary and the CRC 0.

        From then on calls of it end with INVALID_OPERATION. Raises NotRegistered when there is no
        such function, and what a submit raises.
        """
        return self._call(requests.unregister_function(name), timeout)

    def list_functions(self, *, timeout: float | None = None) -> list[FunctionInfo]:
        """The registered functions by name, with what was counted since the transactor started."""
        return self._call(ListFunctions(), timeout)

    def pipeline_index(self, *, timeout: float | None = None) -> PipelineIndex:
        """How far each stage has come."""
        return self._call(ReadIndex(), timeout)

    def services(self, *, timeout: float | None = None) -> tuple[ServiceInfo, ...]:
        """Every service that the gateway has heard of: process, incarnation, term, indexes."""
        return self._call(ReadServices(), timeout)

    def wait_for(
        self, tx_id: int, level: Level = Level.COMMITTED, timeout: float | None = None
    ) -> Level:
        """Waits until every transaction up to `tx_id` has reached `level`; returns the level
        reached.
        """
        return self._call(requests.wait_for(tx_id, level), timeout)

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
            if self._closed:
                return
            self._closed = True
            outstanding = self._core.outstanding if wait else ()
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
        with self._lock:
            self._core.close()
            self._settle()
            # Nobody may poll on a descriptor that is closed, and perhaps reused, meanwhile.
            while self._driver is not None:
                self._driver_left.wait()
            if self._wire is not None:
                self._wire.close()
                self._wire = None
            self._waker.close()
            self._wakee.close()

    def _start(self, request: Request[T], timeout: float | None) -> Call[T]:
        with self._lock:
            if self._closed:
                raise ClientClosed("this client is closed")
            now = time.monotonic_ns()
            seconds = self._timeout if timeout is None else timeout
            call = self._core.start(request, now, seconds)
            self._step(now)
        return call

    def _call(self, request: Request[T], timeout: float | None) -> T:
        call = self._start(request, timeout)
        try:
            self._await(call, None)
        except BaseException:
            with self._lock:
                self._core.forget(call)
                self._settle()
            raise
        return call.result()

    def _poll_call(self, call: Call[Any]) -> bool:
        with self._lock:
            if not call.done:
                self._step(time.monotonic_ns())
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
        self._lock.acquire()
        try:
            while not call.done and (until is None or time.monotonic_ns() < until):
                if self._driver is None:
                    self._drive(call, until)
                else:
                    self._sleep(call, until)
        finally:
            if self._driver is None:
                self._driver_left.notify_all()
                if self._sleepers:
                    self._sleepers.popitem()[0].release()
            self._lock.release()

    def _drive(self, call: Call[Any], until: int | None) -> None:
        """Polls for all threads until something happens. Called and left with the lock."""
        wake = self._core.next_wake()
        if until is not None and (wake is None or until < wake):
            wake = until
        # Rounded up: waking a moment early would mean polling again for nothing.
        left = None if wake is None else -((time.monotonic_ns() - wake) // MILLISECOND)
        self._driver = call
        self._driver_wake = wake or 0
        self._lock.release()
        try:
            ready = self._poller.poll(left if left is None else max(0, left))
        finally:
            self._lock.acquire()
            self._driver = None
        if (self._wakee_fd, select.POLLIN) in ready:
            self._wakee.recv(4096)
        self._step(time.monotonic_ns(), told=(self._monitor_fd, select.POLLIN) in ready)

    def _sleep(self, call: Call[Any], until: int | None) -> None:
        """Sleeps while another thread polls. Called and left with the lock."""
        sleeper = threading.Lock()
        sleeper.acquire()
        if call.owner is None:
            call.owner = []
        call.owner.append(sleeper)
        self._sleepers[sleeper] = None
        self._lock.release()
        try:
            if until is None:
                sleeper.acquire()
            else:
                sleeper.acquire(timeout=max(0, until - time.monotonic_ns()) / SECOND)
        finally:
            self._lock.acquire()
            self._sleepers.pop(sleeper, None)
            if call.owner is not None:
                call.owner.remove(sleeper)

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
        for call in self._core.finished:
            self._frames.recycle(call)
            for sleeper in call.owner or ():
                if sleeper in self._sleepers:
                    del self._sleepers[sleeper]
                    sleeper.release()
        self._core.finished.clear()
        if self._driver is not None:
            wake = self._core.next_wake()
            if self._driver.done or (wake is not None and wake < self._driver_wake):
                try:
                    self._waker.send(b"\0")
                except BlockingIOError:
                    return  # its buffer is full of wake-ups already
