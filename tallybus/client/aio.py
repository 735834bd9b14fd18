"""The asyncio client: a shell around `core.Core` on one event loop.

It owns a socket and the clock and decides nothing. The socket is read when the event loop sees its
descriptor readable, and one timer of the loop serves every deadline, retry and ping, so a request
costs one future and no task. Needs an event loop with `add_reader`, as asyncio's is on POSIX and
uvloop's.
"""

# ruff: noqa: ASYNC109
# A deadline belongs to the request, which the gateway hears of, not to the task that waits for it.

from __future__ import annotations

import asyncio
import random
import time
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
from tallybus.client.sync import DEFAULT_TIMEOUT_SECONDS, INTERRUPTED
from tallybus.client.wire import FramePool, Wire, places_of
from tallybus.common.record import WaitLevel
from tallybus.errors import ClientClosed, ForkedProcess, WrongEventLoop
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
LATE: Final = 100 * MILLISECOND


class AsyncClient:
    """A client of the gateway at `endpoint` for one event loop; any number of tasks may share it.

    Parameters, methods and errors are those of `Client`. A cancelled request is given up: what a
    submit that had been sent did is then not known.
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
        self._closed = False
        self._torn = False
        """Somebody is inside a step, or was thrown out of one: then `_mend` comes first."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._core = Core(random.random, self._settings, self._new_access())
        self._frames = FramePool(endpoint)
        self._wire: Wire | None = Wire(endpoint, context, self._key)
        forks.watch(self)

    async def submit(self, operation: Operation, *, timeout: float | None = None) -> int:
        """Submits one operation and returns its transaction id as soon as it has one."""
        return (await self._call(requests.submit_one(operation, WaitLevel.NONE), timeout)).tx_id

    async def submit_and_wait(
        self,
        operation: Operation,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> Result:
        """Submits one operation and waits until its transaction has reached `wait`."""
        return await self._call(requests.submit_one(operation, wait), timeout)

    async def submit_batch(
        self,
        operations: Operations,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> BatchResult:
        """Submits a batch and waits until all its transactions are at `wait`; see `Client`."""
        return await self._call(
            requests.submit_batch(operations, wait, self._frames.freeze), timeout
        )

    def begin_batch(
        self,
        operations: Operations,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> asyncio.Future[BatchResult]:
        """Sends a batch now and returns the future of its outcome; order as for
        `Client.begin_batch`.

        An array may be changed as soon as this returns.
        """
        return self._start(requests.submit_batch(operations, wait, self._frames.freeze), timeout)

    async def get_balance(
        self,
        account: int,
        min_tx_id: int | None = None,
        *,
        timeout: float | None = None,
    ) -> Balance:
        """Balance of one account; with `min_tx_id` not before the snapshot has that transaction."""
        return await self._call(requests.read_balance(account, min_tx_id), timeout)

    async def get_balances(
        self,
        accounts: ArrayLike,
        min_tx_id: int | None = None,
        *,
        timeout: float | None = None,
    ) -> Balances:
        """Balances of `accounts`, integers of shape (n,), all as of the same transaction."""
        return await self._call(requests.read_balances(accounts, min_tx_id), timeout)

    async def get_status(
        self,
        tx_id: int,
        min_tx_id: int | None = None,
        *,
        timeout: float | None = None,
    ) -> TransactionStatus:
        """How far a transaction has come and how it ended."""
        return await self._call(requests.read_status(tx_id, min_tx_id), timeout)

    async def get_statuses(
        self,
        tx_ids: ArrayLike,
        min_tx_id: int | None = None,
        *,
        timeout: float | None = None,
    ) -> TransactionStatuses:
        """Statuses of the transactions `tx_ids`, integers of shape (n,)."""
        return await self._call(requests.read_statuses(tx_ids, min_tx_id), timeout)

    async def get_transaction(
        self, tx_id: int, min_tx_id: int | None = None, *, timeout: float | None = None
    ) -> Transaction:
        """One transaction with its entries; with `min_tx_id` not before the snapshot has that one.

        Raises TransactionNotFound when the read side does not have it.
        """
        return await self._call(requests.read_transaction(tx_id, min_tx_id), timeout)

    async def register_function(
        self,
        name: str,
        binary: bytes | bytearray | memoryview,
        override: bool = False,
        *,
        timeout: float | None = None,
    ) -> FunctionVersion:
        """Registers a function; returns its version once it is on disk and live, see `Client`."""
        return await self._call(requests.register_function(name, binary, override), timeout)

    async def unregister_function(
        self, name: str, *, timeout: float | None = None
    ) -> FunctionVersion:
        """Unregisters a function, and returns its last version; see `Client`."""
        return await self._call(requests.unregister_function(name), timeout)

    async def list_functions(self, *, timeout: float | None = None) -> list[FunctionInfo]:
        """The registered functions by name, with what was counted since the transactor started."""
        return await self._call(ListFunctions(), timeout)

    async def function_usage(self, *, timeout: float | None = None) -> FunctionUsage:
        """What all functions of the ledger take together, and may take."""
        return await self._call(ReadFunctionUsage(), timeout)

    async def pipeline_index(self, *, timeout: float | None = None) -> PipelineIndex:
        """How far each stage has come."""
        return await self._call(ReadIndex(), timeout)

    async def services(self, *, timeout: float | None = None) -> tuple[ServiceInfo, ...]:
        """Every service that the gateway has heard of: process, incarnation, term, indexes."""
        return await self._call(ReadServices(), timeout)

    async def wait_for(
        self,
        tx_id: int,
        wait: WaitLevel = WaitLevel.COMMITTED,
        *,
        timeout: float | None = None,
    ) -> WaitLevel:
        """Waits until every transaction up to `tx_id` has reached `wait`; returns the level
        reached.
        """
        return await self._call(requests.wait_for(tx_id, wait), timeout)

    async def clock(self, *, timeout: float | None = None) -> LedgerTime:
        """The ledger's time, and whether it follows the wall clock."""
        return await self._call(ReadClock(), timeout)

    async def accept_clock(self, *, timeout: float | None = None) -> LedgerTime:
        """Tells that a wall clock which has jumped ahead is right: the ledger's time follows it.

        Where it has not jumped nothing changes. With keys it takes the role admin.
        """
        return await self._call(AcceptClock(), timeout)

    async def gateway_info(self, *, timeout: float | None = None) -> GatewayInfo:
        """Who answers, and its limits."""
        return await self._call(AskGateway(), timeout)

    async def close(self, wait: bool = True) -> None:
        """Closes the client; may be called again. `wait` as for `Client.close`."""
        outstanding = () if self._closed or not wait else self._core.outstanding
        self._closed = True
        try:
            futures = [call.owner for call in outstanding if call.owner is not None]
            if futures:
                await asyncio.wait(futures)
        finally:
            self._shut()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(wait=exc_type is None)

    def _shut(self) -> None:
        self._core.close()
        self._settle()
        self._drop_timer()
        wire, self._wire = self._wire, None
        if wire is not None:
            self._unwatch(wire)
            wire.close()

    def _new_access(self) -> Access:
        name = None if self._key is None else self._key.name
        return Access(self._endpoint, name, time.monotonic_ns(), places_of(self._endpoint))

    def _watch(self, wire: Wire) -> None:
        if self._loop is not None:
            self._loop.add_reader(wire.fd, self._step)
            if wire.monitor_fd is not None:
                self._loop.add_reader(wire.monitor_fd, self._step, True)

    def _unwatch(self, wire: Wire) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(wire.fd)
            if wire.monitor_fd is not None:
                self._loop.remove_reader(wire.monitor_fd)

    def _drop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _forked(self) -> None:
        """Now in a child: connection, loop and calls are the parent's, and are not touched."""
        forks.abandon((self._wire, self._core, self._context, self._loop, self._timer))
        self._wire = None
        self._context = None
        self._loop = None
        self._timer = None
        self._torn = False
        self._core = Core(random.random, self._settings, self._new_access())
        self._frames = FramePool(self._endpoint)

    def _mend(self) -> None:
        """Makes whole what is not, as `Client` does: after an exception from outside left a step in
        the middle, and in a child that was forked.
        """
        if self._wire is None and not self._torn:
            if self._endpoint.startswith("inproc:"):
                raise ForkedProcess(
                    f"{self._endpoint} is inside the process that made this client, and this one "
                    "was forked from it; make a client after the fork"
                )
            wire = Wire(self._endpoint, self._context, self._key)
            self._watch(wire)
            self._wire = wire
            return
        old, self._wire = self._wire, None
        if old is not None:
            self._unwatch(old)
            old.close()
        core = self._core.resumed(self._new_access(), INTERRUPTED, time.monotonic_ns())
        self._core = core
        self._frames = FramePool(self._endpoint)
        wire = Wire(self._endpoint, self._context, self._key)
        self._watch(wire)
        self._wire = wire
        self._settle()
        self._torn = False

    def _move(self, loop: asyncio.AbstractEventLoop) -> None:
        """To the event loop that uses it now. Calls of one that is closed ended with it."""
        if self._loop is not None and not self._loop.is_closed():
            raise WrongEventLoop(
                "an AsyncClient belongs to the event loop that used it first, which is still open; "
                "make one for each loop"
            )
        if self._loop is not None:
            self._timer = None
            self._core.close()
            self._core.finished.clear()
        self._loop = loop
        if self._wire is not None:
            self._watch(self._wire)

    def _start(self, request: Request[T], timeout: float | None) -> asyncio.Future[T]:
        if self._closed:
            raise ClientClosed("this client is closed")
        loop = asyncio.get_running_loop()
        now = time.monotonic_ns()
        call = new_call(request, now, self._timeout if timeout is None else timeout)
        if self._loop is not loop:
            self._move(loop)
        if self._torn or self._wire is None:
            self._mend()
        future: asyncio.Future[T] = loop.create_future()
        call.owner = future
        try:
            self._torn = True
            self._core.begin(call, now)
            self._advance(now)
            self._torn = False
            if not future.done():
                future.add_done_callback(
                    lambda done: self._forget(call) if done.cancelled() else None
                )
        except BaseException:
            call.abandoned = True
            raise
        return future

    async def _call(self, request: Request[T], timeout: float | None) -> T:
        return await self._start(request, timeout)

    def _forget(self, call: Call[Any]) -> None:
        call.abandoned = True
        if self._torn or self._wire is None:
            return  # what mends it forgets the call
        self._torn = True
        self._core.forget(call)
        self._settle()
        self._torn = False

    def _step(self, told: bool = False) -> None:
        """Does everything that can be done without waiting."""
        if self._wire is None:
            return
        try:
            if self._torn:
                self._mend()
            self._torn = True
            self._advance(time.monotonic_ns(), told)
            self._torn = False
        except BaseException:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_later(0.01, self._step)
            raise

    def _advance(self, now: int, told: bool = False) -> None:
        core, wire = self._core, self._wire
        if wire is None:
            return
        core.tick(now)
        wire.pump(core, now, told)
        self._settle()

    def _settle(self) -> None:
        """Hands finished calls to their futures and keeps the timer at the next time to act."""
        for call in self._core.finished:
            self._frames.recycle(call)
            future: asyncio.Future[Any] | None = call.owner
            if future is None or future.done():
                continue
            if call.error is None:
                future.set_result(call.value)
            else:
                future.set_exception(call.error)
        self._core.finished.clear()
        wake = self._core.next_wake()
        if self._loop is None or wake is None:
            return
        now = time.monotonic_ns()
        # A timer that is late has been lost: an exception came while the loop took it up.
        if self._timer is None or wake < self._timer_at or self._timer_at < now - LATE:
            self._drop_timer()
            self._timer_at = wake
            self._timer = self._loop.call_later(max(0, wake - now) / SECOND, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._step()
