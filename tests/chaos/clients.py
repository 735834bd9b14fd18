"""The clients of a chaos run. Each is a loop that submits and reads until it is told to stop.

What they are told is only written down here; `judge` judges it.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tallybus import AsyncClient, Client, TallybusError
from tallybus.client.core import Call, Core
from tallybus.client.sync import Pending
from tallybus.common.record import Level
from tests.chaos.history import (
    BalanceRead,
    IndexRead,
    Recorder,
    StatusRead,
    Submission,
    to_operation,
)

TIMEOUT_S: Final = 30.0
LEVELS: Final = (Level.NONE, Level.COMPUTED, Level.COMMITTED, Level.SNAPSHOT)
METER: Final = "meter"


class CountingCore(Core):
    """Counts how often requests were sent again."""

    retries = 0

    def _finish(self, call: Call[Any]) -> None:
        self.retries += max(0, call.attempts - 1)
        super()._finish(call)


C = TypeVar("C", Client, AsyncClient)


def counting(client: C) -> C:
    """`client` with a core that counts."""
    client._core = CountingCore(random.random, client._settings)
    return client


class Clients:
    """All clients of a run: threads of this process."""

    def __init__(self, recorder: Recorder, endpoint: str, seed: int, max_batch: int) -> None:
        self.recorder = recorder
        self.endpoint = endpoint
        self.max_batch = max_batch
        self._shared = counting(Client(endpoint, timeout=TIMEOUT_S))
        roles: list[tuple[str, Callable[[str, Client, np.random.Generator], None], bool]] = [
            ("batches with refs", self._batches_with_refs, False),
            ("batches without refs", self._batches_without_refs, False),
            ("singles with refs", self._singles_with_refs, True),
            ("singles without refs", self._singles_without_refs, False),
            ("many in flight", self._many_in_flight, False),
            ("used references", self._used_references, True),
            ("reader", self._reader, False),
            ("shared reader", self._reader, True),
            (METER, self._meter, False),
        ]
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(name, role, shared, np.random.default_rng([seed, number])),
                name=name,
                daemon=True,
            )
            for number, (name, role, shared) in enumerate(roles)
        ]
        self._threads.append(
            threading.Thread(
                target=self._run_tasks,
                args=(np.random.default_rng([seed, 99]),),
                name="tasks",
                daemon=True,
            )
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self, seconds: float) -> list[str]:
        """Names of the clients that did not end in time."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        hanging = [thread.name for thread in self._threads if thread.is_alive()]
        self._count("shared", self._shared)
        self._shared.close(wait=False)
        return hanging

    # -- threads -----------------------------------------------------------------------------------

    def _run(
        self,
        name: str,
        role: Callable[[str, Client, np.random.Generator], None],
        shared: bool,
        rng: np.random.Generator,
    ) -> None:
        try:
            if shared:
                role(name, self._shared, rng)
                return
            with counting(Client(self.endpoint, timeout=TIMEOUT_S)) as client:
                role(name, client, rng)
                self._count(name, client)
        except Exception:  # noqa: BLE001 (told as a violation, with its stack)
            self.recorder.crashes.append(f"client {name}: {traceback.format_exc()}")

    def _count(self, name: str, client: Client | AsyncClient) -> None:
        core = client._core
        if isinstance(core, CountingCore):
            self.recorder.history.retries[name] = core.retries

    @property
    def _going(self) -> bool:
        return not self.recorder.stopping.is_set()

    def _rest(self, rng: np.random.Generator, longest: float) -> None:
        self.recorder.stopping.wait(rng.random() * longest)

    def _batch(self, rng: np.random.Generator, *, refs: bool) -> NDArray[Any]:
        count = int(rng.integers(1, self.max_batch + 1))
        return self.recorder.operations.make(rng, count, refs=refs)

    def _submit_batch(
        self,
        name: str,
        client: Client,
        records: NDArray[Any],
        level: Level,
        *,
        shared: bool = False,
    ) -> Submission:
        ticket = self.recorder.pace.enter(len(records))
        submission = self.recorder.begin(name, records, level, shared=shared)
        try:
            self.recorder.finish(submission, lambda: client.submit_batch(records, level))
        finally:
            self.recorder.pace.leave(ticket)
        return submission

    def _submit_one(
        self, name: str, client: Client, records: NDArray[Any], level: Level, *, barge: bool = False
    ) -> Submission:
        pace = self.recorder.pace
        ticket = pace.barge(1) if barge else pace.enter(1)
        operation = to_operation(records[0])
        submission = self.recorder.begin(name, records, level)
        try:
            if level is Level.NONE:
                self.recorder.finish(submission, lambda: client.submit(operation))
            else:
                self.recorder.finish(submission, lambda: client.submit_and_wait(operation, level))
        finally:
            pace.leave(ticket)
        return submission

    def _one(self, rng: np.random.Generator, *, refs: bool) -> NDArray[Any]:
        """One operation that can be given to a single submit."""
        return self.recorder.operations.make(rng, 1, refs=refs)

    def _batches_with_refs(self, name: str, client: Client, rng: np.random.Generator) -> None:
        while self._going:
            level = LEVELS[rng.integers(0, 4)]
            self._submit_batch(name, client, self._batch(rng, refs=True), level)
            self._rest(rng, 0.04)

    def _batches_without_refs(self, name: str, client: Client, rng: np.random.Generator) -> None:
        while self._going:
            level = LEVELS[rng.integers(0, 4)]
            records = self._batch(rng, refs=False)
            if rng.random() < 0.3:
                # Some have one, but not all: that is as good as none.
                records["user_ref"][::2] = (records["amount"][::2] & 0xFFF_FFFF) | (1 << 60)
                self.recorder.operations.remember(records)
            self._submit_batch(name, client, records, level)
            self._rest(rng, 0.05)

    def _singles_with_refs(self, name: str, client: Client, rng: np.random.Generator) -> None:
        while self._going:
            self._submit_one(name, client, self._one(rng, refs=True), LEVELS[rng.integers(0, 4)])
            self._rest(rng, 0.02)

    def _singles_without_refs(self, name: str, client: Client, rng: np.random.Generator) -> None:
        while self._going:
            self._submit_one(name, client, self._one(rng, refs=False), LEVELS[rng.integers(0, 4)])
            self._rest(rng, 0.02)

    def _many_in_flight(self, name: str, client: Client, rng: np.random.Generator) -> None:
        flying: deque[tuple[Submission, Pending, int]] = deque()
        recorder = self.recorder

        def land() -> None:
            submission, pending, ticket = flying.popleft()
            recorder.finish(submission, pending.result)
            recorder.pace.leave(ticket)

        try:
            while self._going:
                records = self._batch(rng, refs=bool(rng.random() < 0.8))
                while (ticket := recorder.pace.try_enter(len(records))) is None:
                    if flying:
                        land()
                    else:
                        self._rest(rng, 0.01)
                    if not self._going:
                        return
                level = LEVELS[rng.integers(1, 4)]
                submission = recorder.begin(name, records, level)
                flying.append((submission, client.begin_batch(records, level), ticket))
                while len(flying) > 4:
                    land()
                self._rest(rng, 0.03)
        finally:
            while flying:
                land()

    def _used_references(self, name: str, client: Client, rng: np.random.Generator) -> None:
        operations = self.recorder.operations
        while self._going:
            choice = rng.random()
            count = int(rng.integers(1, 40))
            level = LEVELS[rng.integers(0, 4)]
            records = operations.make(rng, count, refs=True)
            made = operations.made
            recent = made[max(1, len(made) - 4_000) :]["user_ref"]
            used = recent[recent != 0]
            if choice < 0.3 and len(used):
                # Other operations under references of other clients, perhaps still on their way.
                records = operations.again(rng, records, used)
                self._submit_batch(name, client, records, level, shared=True)
            elif choice < 0.6:
                # The same reference more than once in a batch.
                records = operations.again(rng, records, records["user_ref"][:3].copy())
                self._submit_batch(name, client, records, level, shared=True)
            else:
                # The very same batch again, as a caller does that was told nothing.
                for _ in range(2):
                    self._submit_batch(name, client, records.copy(), level, shared=True)
            self._rest(rng, 0.08)

    def _meter(self, name: str, client: Client, rng: np.random.Generator) -> None:
        while self._going:
            records = self._one(rng, refs=True)
            if self._submit_one(name, client, records, Level.COMMITTED, barge=True).error is None:
                self.recorder.history.meter.append(time.monotonic_ns())
            time.sleep(0.002)

    def _reader(self, name: str, client: Client, rng: np.random.Generator) -> None:
        history, operations = self.recorder.history, self.recorder.operations
        everyone = np.arange(operations.accounts, dtype=np.uint64)
        known: deque[int] = deque(maxlen=300)
        while self._going:
            choice = rng.random()
            sent = time.monotonic_ns()
            try:
                if choice < 0.4:
                    level = Level.COMMITTED if rng.random() < 0.5 else Level.SNAPSHOT
                    written = self._submit_one(name, client, self._one(rng, refs=True), level)
                    if written.tx_ids is None:
                        continue
                    mine = int(written.tx_ids[0])
                    known.append(mine)
                    sent = time.monotonic_ns()
                    least = mine if level is Level.COMMITTED else 0
                    self._read_balances(name, client, everyone, least, sent)
                elif choice < 0.6:
                    accounts = rng.choice(everyone, int(rng.integers(1, 20)))
                    self._read_balances(name, client, accounts, 0, sent)
                elif choice < 0.8 and known:
                    ids = np.unique(rng.choice(np.array(known, np.uint64), 20))
                    if rng.random() < 0.5:
                        # Recent ones too, that others have on their way.
                        ids = np.arange(ids[-1], ids[-1] + np.uint64(50), dtype=np.uint64)
                    rows = client.get_statuses(ids)
                    history.statuses.append(
                        StatusRead(
                            name,
                            sent,
                            time.monotonic_ns(),
                            ids,
                            rows.stages.copy(),
                            rows.statuses.copy(),
                            rows.duplicate_of.copy(),
                        )
                    )
                elif choice < 0.9:
                    index = client.pipeline_index()
                    history.indexes.append(
                        IndexRead(
                            name,
                            sent,
                            time.monotonic_ns(),
                            index.committed,
                            index.snapshot,
                        )
                    )
                elif known:
                    level = client.wait_for(known[-1], Level.SNAPSHOT)
                    if level is Level.SNAPSHOT:
                        done = time.monotonic_ns()
                        history.indexes.append(
                            IndexRead(name, sent, done, known[-1], known[-1], exact=False)
                        )
            except TallybusError as error:
                history.read_errors.append((name, sent, time.monotonic_ns(), repr(error)))
            self._rest(rng, 0.02)

    def _read_balances(
        self,
        name: str,
        client: Client,
        accounts: NDArray[np.uint64],
        least: int,
        sent: int,
    ) -> None:
        read = client.get_balances(accounts, min_tx_id=least or None)
        self.recorder.history.balances.append(
            BalanceRead(
                name,
                sent,
                time.monotonic_ns(),
                least,
                read.last_snapshot_tx_id,
                accounts,
                read.balances.copy(),
            )
        )

    # -- tasks -------------------------------------------------------------------------------------

    def _run_tasks(self, rng: np.random.Generator) -> None:
        try:
            asyncio.run(self._tasks(rng))
        except Exception:  # noqa: BLE001 (told as a violation, with its stack)
            self.recorder.crashes.append(f"client tasks: {traceback.format_exc()}")

    async def _tasks(self, rng: np.random.Generator) -> None:
        async with counting(AsyncClient(self.endpoint, timeout=TIMEOUT_S)) as client:
            await asyncio.gather(
                *(self._task(f"task {number}", client, rng, number) for number in range(6))
            )
            self._count("tasks", client)

    async def _task(
        self, name: str, client: AsyncClient, rng: np.random.Generator, number: int
    ) -> None:
        pace = self.recorder.pace
        while self._going:
            level = LEVELS[rng.integers(0, 4)]
            single = number % 2 == 0
            refs = number != 4
            records = self._one(rng, refs=refs) if single else self._batch(rng, refs=refs)
            if (ticket := pace.try_enter(len(records))) is None:
                await asyncio.sleep(0.01)
                continue
            submission = self.recorder.begin(name, records, level)
            operation = to_operation(records[0])
            sending: Awaitable[Any]
            if not single:
                sending = client.submit_batch(records, level)
            elif level is Level.NONE:
                sending = client.submit(operation)
            else:
                sending = client.submit_and_wait(operation, level)
            try:
                submission.answered(await sending)
            except TallybusError as error:
                submission.failed(error)
            finally:
                pace.leave(ticket)
            await asyncio.sleep(rng.random() * 0.05)
