"""The transactor's engine: all state that execution needs, and the batches through the kernels.

State is the balances, the window of user references and the live functions, nothing else; all
follow from the log. An engine is used by one thread at a time and touches no socket, file or clock
(but for the times that a function's statistics show). A new one is brought to the log's end with
`restore_balances` (from a snapshot), `functions.install` and `apply` (from the log), then goes on
with `execute` and `register`. Replay applies the entries of functions and never runs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.errors import ServiceError
from tallybus.common.functions.registry import name_words
from tallybus.common.memory import CHUNK_ACCOUNTS, account_array
from tallybus.common.record import FAILURE_DTYPE, MAX_PARAMS, RECORD_DTYPE, Kind, Status
from tallybus.common.wal.replay import ReplayError, record_words, replay_balances
from tallybus.services.transactor import kernel
from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.budget import UNBOUNDED, WorkBudget
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.outcome import Outcome
from tallybus.services.transactor.window import DuplicateWindow, window_start

if TYPE_CHECKING:
    from tallybus.services.transactor.functions.handler import CompiledFunction
    from tallybus.services.transactor.functions.runtime import FunctionRuntime
    from tallybus.services.transactor.functions.state import CallState

__all__ = ["Engine", "EngineOrderError", "Outcome", "window_start"]

MAX_BATCH: Final = 2**32 - 1
"""Records of one batch; failures name them with 32 bits."""
_FIRST_CAPACITY: Final = 16_384
_NO_CALLS: Final = np.zeros(layout.STATE_WORDS, np.uint64)
"""What the kernel gets for a batch without parameters: functions there are not registered. It only
counts in it."""
_FUNCTION: Final = np.uint8(Kind.FUNCTION)
_NOT_RUN: Final = np.uint8(Status.NOT_RUN)


class EngineOrderError(ServiceError):
    """A batch, a run of the log or a snapshot was given out of turn; nothing was changed.

    Fields: `what` was given, `got` its first id, `expected` the id that is next.
    """

    def __init__(self, what: str, got: int, expected: int) -> None:
        super().__init__(
            f"{what} begins with transaction {got}, but {expected} is next for it; "
            "the transactor must start again and replay its log"
        )
        self.what = what
        self.got = got
        self.expected = expected


class BatchUnderWay:
    """A batch that `Engine.begin` has taken in: `at` of its records are executed."""

    __slots__ = ("at", "calls", "times", "words")

    def __init__(self, words: NDArray[np.uint64], calls: CallState | None) -> None:
        self.words = words
        self.calls = calls
        self.at = 0
        self.times: list[int] = []
        """Once it is done and has calls: the nanoseconds that those of each submit took."""

    @property
    def done(self) -> bool:
        return self.at == len(self.words)


class Engine:
    """Balances, window and functions of one ledger.

    `balances` is int64[max_accounts] and `touched` uint8[one per CHUNK_ACCOUNTS accounts], which
    only recovery writes. Memory is taken when it is first used.
    """

    def __init__(
        self,
        max_accounts: int,
        transactions_per_segment: int,
        seed: int,
        limits: FunctionLimits | None = None,
    ) -> None:
        """`seed`: 64 bits that clients do not know; no result depends on it. `limits`: of
        functions. ValueError if out of range."""
        if not 1 <= max_accounts <= 2**48:
            raise ValueError(f"max_accounts is {max_accounts}, not 1..2**48")
        self.balances: NDArray[np.int64] = account_array(max_accounts, fast=True)
        self.touched: NDArray[np.uint8] = np.zeros(-(-max_accounts // CHUNK_ACCOUNTS), np.uint8)
        self.window = DuplicateWindow(transactions_per_segment, seed)
        self.next_id = 1
        """Id of the first transaction that the balances do not have yet."""
        self._failures = np.empty((_FIRST_CAPACITY, 2), np.uint64)
        self._links = np.empty(_FIRST_CAPACITY, np.uint64)
        self._limits = FunctionLimits() if limits is None else limits
        self._slots = self._limits.max_functions
        self._calls: CallState | None = None
        self._functions: FunctionRuntime | None = None
        self.window.control[kernel.REGISTRATION] = Status.INVALID_OPERATION

    @property
    def functions(self) -> FunctionRuntime:
        """The live functions. Only an engine that is asked for them loads the WebAssembly runtime.

        Raises FunctionsUnavailable when that cannot be used.
        """
        if self._functions is None:
            from tallybus.services.transactor.functions.runtime import FunctionRuntime

            self._functions = FunctionRuntime(self._limits, self._call_state())
        return self._functions

    @property
    def has_functions(self) -> bool:
        """Whether any function is live; never loads the runtime."""
        return self._functions is not None and len(self._functions) > 0

    def close(self) -> None:
        """Free the functions' code; the engine executes no more."""
        if self._functions is not None:
            self._functions.close()

    @property
    def transactions_per_segment(self) -> int:
        return self.window.transactions_per_segment

    def execute(
        self,
        records: NDArray[np.void],
        first_id: int,
        names: Sequence[str] = (),
        params: NDArray[np.int64] | None = None,
    ) -> Outcome:
        """Execute RECORD_DTYPE[n] as transactions `first_id` up, without any budget.

        Arguments and errors are those of `begin`.
        """
        batch = self.begin(records, first_id, names, params)
        return self.go_on(batch)

    def begin(
        self,
        records: NDArray[np.void],
        first_id: int,
        names: Sequence[str] = (),
        params: NDArray[np.int64] | None = None,
        counts: Sequence[int] = (),
        budget: WorkBudget = UNBOUNDED,
    ) -> BatchUnderWay:
        """Take in RECORD_DTYPE[n], to be executed as transactions `first_id` up by `go_on`. Nothing
        else may be executed before it is done.

        names: what the `function` of FUNCTION records counts in, each live or not; params:
        int64[k, 8], a row for each of the k FUNCTION records in order. Without `params` such
        records fail and keep none. The input is only read; it may be read-only and unaligned.
        counts: how many of the records belong to each submit in the batch, of which each has the
        `budget`; empty: the batch is one submit.

        Raises EngineOrderError unless `first_id` is next for balances and window (and the window
        was replayed from early enough), TypeError for another dtype or a batch that is not
        contiguous, ValueError for params of another shape; in all cases nothing happened.
        """
        words = record_words(records)
        count = len(words)
        if count > MAX_BATCH:
            raise ValueError(f"a batch of {count} records; at most {MAX_BATCH} are possible")
        if first_id != self.next_id:
            raise EngineOrderError("the batch", first_id, self.next_id)
        if first_id != self.window.next_id:
            raise EngineOrderError("the window of user references", self.window.next_id, first_id)
        needed = window_start(first_id, self.transactions_per_segment)
        if self.window.first_id > needed:
            raise EngineOrderError("the window of user references", self.window.first_id, needed)
        calls = None
        if params is not None and len(params):
            calls = self._begin_calls(records, names, params, counts, budget)
        return BatchUnderWay(words, calls)

    def go_on(self, batch: BatchUnderWay, slice_ns: int = UNBOUNDED.ns) -> Outcome:
        """Execute more of a batch: all of it, or as much as calls of functions leave time for.

        What comes back begins where the batch was; `batch.done` and `batch.at` tell how far it is.
        """
        calls = batch.calls
        words = batch.words[batch.at :] if batch.at else batch.words
        count = len(words)
        out = np.empty(count, RECORD_DTYPE)
        out_words = record_words(out)
        if count > len(self._links):
            self._failures = np.empty((count, 2), np.uint64)
            self._links = np.empty(count, np.uint64)
        window = self.window
        control = window.control
        control[kernel.FAILURES] = 0
        control[kernel.LINKS] = 0
        functions = _NO_CALLS if calls is None else calls.words
        if calls is not None:
            self._renew_deadlines()
            calls.begin_slice(slice_ns)
        start = 0
        while start < count:
            stop = min(start + window.room(), count)
            current, previous = window.current, window.previous
            reached = kernel.execute(
                words, start, stop, out_words, self._failures, self._links, control, self.balances,
                current.table, current.refs, current.statuses,
                previous.table, previous.refs, previous.statuses, functions,
            )  # fmt: skip
            window.advance(reached - start)
            start = reached
            if reached < stop:
                assert calls is not None, "only calls of functions end a run early"
                why = calls.words[layout.STOP]
                if why == layout.INTERRUPTED:
                    calls.words[layout.STOP] = 0
                    self._renew_deadlines()
                elif why == layout.SLICE_OVER or (slice_ns < UNBOUNDED.ns and calls.full):
                    break
                else:
                    calls.grow()
        first_id = self.next_id
        self.next_id += start
        batch.at += start
        failed, linked = int(control[kernel.FAILURES]), int(control[kernel.LINKS])
        failures = self._failures[:failed].copy().reshape(-1).view(FAILURE_DTYPE)
        links = self._links[:linked].copy()
        if start < count:
            out = out[:start].copy()
        if calls is None:
            return Outcome(Batch(first_id, out, links), failures)
        if failed:
            calls.not_run(int(np.count_nonzero(failures["status"] == _NOT_RUN)))
        kept, entries = calls.end_slice()
        if batch.done:
            batch.times = calls.finish()
        return Outcome(Batch(first_id, out, links, kept, entries), failures)

    def _renew_deadlines(self) -> None:
        if self._functions is not None:
            self._functions.renew_deadlines()

    def register(
        self,
        record: NDArray[np.void],
        first_id: int,
        name: str,
        version: int,
        failure: int = Status.NONE,
        compiled: CompiledFunction | None = None,
    ) -> Outcome:
        """Execute a registration (RECORD_DTYPE[1] of kind FUNCTION_REGISTERED) as `first_id`.

        `failure` is the status with which the registry refuses it. With NONE it makes `version`. A
        duplicate does neither, and changes nothing. When it succeeds, `compiled` is live for all
        later transactions, or the function is gone where the record's `function` is 0. The record
        comes back with the version as its account (0 if it failed) and the name in `params`.

        Raises what `execute` does, TooManyFunctions (ask `functions.takes` first), and ValueError
        for a record of another kind or when a function to be live is missing; then nothing
        happened.
        """
        if len(record) != 1 or record["kind"][0] != Kind.FUNCTION_REGISTERED:
            raise ValueError("a registration is a batch of one record of its kind")
        crc = int(record["function"][0])
        if failure == Status.NONE:
            if (compiled is None) != (crc == 0):
                raise ValueError("a registration needs the compiled function, its end has none")
            if compiled is None and name not in self.functions:
                raise ValueError(f"there is no function {name} to unregister")
            if compiled is not None and not self.functions.takes(name):
                self.functions.install(name, version, crc, compiled)  # says why not
        control = self.window.control
        control[kernel.REGISTRATION] = failure
        try:
            outcome = self.execute(record, first_id)
        finally:
            control[kernel.REGISTRATION] = Status.INVALID_OPERATION
        made = outcome.batch
        row = made.records
        row["account"] = 0
        if row["status"][0] == Status.DUPLICATE:
            return outcome
        kept = name_words(name)
        row["amount"] = len(kept)
        if failure == Status.NONE:
            row["account"] = version
            row["function"] = crc
            if compiled is None:
                self.functions.remove(name)
            else:
                self.functions.install(name, version, crc, compiled, first_id)
        made.params = kept
        return outcome

    def _begin_calls(
        self,
        records: NDArray[np.void],
        names: Sequence[str],
        params: NDArray[np.int64],
        counts: Sequence[int],
        budget: WorkBudget,
    ) -> CallState:
        expected = int(np.count_nonzero(records["kind"] == _FUNCTION))
        if params.dtype != np.int64 or params.shape != (expected, MAX_PARAMS):
            raise ValueError(
                f"params are {params.dtype}{list(params.shape)}, the batch's {expected} function "
                f"calls need int64[{expected}, {MAX_PARAMS}]"
            )
        # Compiled code reads them by their address.
        if not (params.flags.c_contiguous and params.flags.aligned):
            params = np.array(params, np.int64, order="C")
        if self._functions is None:
            places = np.full(len(names), layout.NO_SLOT, np.uint64)
        else:
            places = self._functions.places(names)
        ends = None
        if len(counts) > 1:
            calls_before = np.concatenate(([0], np.cumsum(records["kind"] == _FUNCTION)))
            ends = calls_before[np.cumsum(counts)].astype(np.uint64)
        calls = self._call_state()
        calls.begin(self.balances, places, params, ends, budget)
        return calls

    def make_room(self, functions: int) -> None:
        """So many functions are to be installed, more than the limits allow now as it may be. Only
        before the first one."""
        self._slots = max(self._slots, functions)

    def _call_state(self) -> CallState:
        if self._calls is None:
            from tallybus.services.transactor.functions.state import CallState

            self._calls = CallState(self._slots)
        return self._calls

    def restore_balances(
        self, balances: NDArray[np.int64], touched: NDArray[np.uint8], last_id: int
    ) -> None:
        """Take over a snapshot's state after transaction `last_id`; the arrays are the engine's
        from now.

        balances: int64[max_accounts], touched: uint8[one per chunk]; both writable. Raises
        ValueError for other shapes and EngineOrderError when balances were replayed already.
        """
        if self.next_id != 1:
            raise EngineOrderError("a snapshot", 1, self.next_id)
        for name, given, own in (
            ("balances", balances, self.balances),
            ("touched", touched, self.touched),
        ):
            if given.dtype != own.dtype or given.shape != own.shape or not given.flags.carray:
                raise ValueError(
                    f"restored {name} are {given.dtype}{list(given.shape)}, expected writable "
                    f"{own.dtype}{list(own.shape)}; max_accounts may differ from the snapshot's"
                )
        if last_id < 0:
            raise ValueError(f"a snapshot after transaction {last_id}")
        self.balances = balances
        self.touched = touched
        self.next_id = last_id + 1

    def apply(
        self,
        batch: Batch,
        *,
        balances: bool = True,
        window: bool = True,
    ) -> None:
        """Replay transactions from the log.

        With `balances` off only references are taken in, with `window` off only balances are moved:
        after a snapshot the window needs older records (from `window_start` of the log's next id
        on). Each of the two must go on exactly where it was; the window may begin at any segment's
        first transaction. Raises EngineOrderError (nothing changed) or ReplayError (the engine is
        unusable then).
        """
        words = record_words(batch.records)
        first_id = batch.first_id
        if balances and first_id != self.next_id:
            raise EngineOrderError("a replayed run of balances", first_id, self.next_id)
        starts = window and self.window.next_id == 1 and first_id != 1
        if starts and (first_id - 1) % self.transactions_per_segment:
            raise EngineOrderError("a replayed run of user references", first_id, 1)
        if window and not starts and first_id != self.window.next_id:
            raise EngineOrderError(
                "a replayed run of user references", first_id, self.window.next_id
            )
        if balances:
            replay_balances(batch, self.balances, self.touched)
            self.next_id += len(words)
        if window:
            if starts:
                self.window.start_at(first_id)
            self._insert_refs(words)

    def _insert_refs(self, words: NDArray[np.uint64]) -> None:
        window = self.window
        start = 0
        while start < len(words):
            stop = min(start + window.room(), len(words))
            current = window.current
            offending = kernel.insert_refs(
                words, start, stop, window.control, current.table, current.refs, current.statuses
            )
            if offending >= 0:
                raise ReplayError(
                    window.next_id + int(offending) - start,
                    f"user_ref {int(words[offending, 1])} was used before in the same segment, "
                    "yet the record is no duplicate",
                )
            window.advance(stop - start)
            start = stop
