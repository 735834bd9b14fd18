"""Functions as clients see them: batches of calls as arrays, versions, statistics.

Plain values; nothing here does I/O. A single call is `tallybus.operations.Function`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tallybus.checks import i64_rows, place, u64_array
from tallybus.common.functions.names import MAX_BINARY_BYTES, NAME_RULE, is_function_name
from tallybus.common.record import MAX_PARAMS, RECORD_DTYPE, Kind, Status
from tallybus.common.record import Reason as Reason
from tallybus.errors import InvalidRequest
from tallybus.transactions import Entry


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """What a registration made: version `version` of function `name`.

    `crc32c` is the CRC-32C of its binary, which stands in every transaction that it executes; 0
    where the name was unregistered. `tx_id` is the registration's own transaction.
    """

    name: str
    version: int
    crc32c: int
    tx_id: int


@dataclass(frozen=True, slots=True)
class FunctionInfo:
    """A registered function, and what the ledger counted of it since its transactor started.

    `tx_id` is its registration. `calls` includes those that failed; `failures` has how many ended
    with which status. `fuel_total` is what all calls used together, `fuel_limit` what one call may
    use. `mean_ns` is the mean time of a call in nanoseconds, and `p99_ns` what 99 of 100 calls
    need at most, both of a sample of the calls; None before the first one. `work_ns` is the time of
    the transactor that all calls took together. `reasons` has how many calls ended with which
    `Reason`. While the function is `suspended`, its calls end SUSPENDED. From a gateway that is
    older than they are, what is missing is 0, empty and False.

    `compile_seconds` of the processor went into its `code_bytes` of machine code. `start_fuel` is
    what each call takes before its code runs. `unusable` says why it cannot run, as after a restart
    with other settings: then its calls end SUSPENDED. It is empty as a rule.
    """

    name: str
    version: int
    crc32c: int
    tx_id: int
    calls: int
    failures: Mapping[Status | int, int]
    fuel_total: int
    fuel_limit: int
    mean_ns: float | None
    p99_ns: float | None = None
    work_ns: int = 0
    reasons: Mapping[Reason, int] = field(default_factory=lambda: MappingProxyType({}))
    suspended: bool = False
    compile_seconds: float = 0.0
    code_bytes: int = 0
    start_fuel: int = 0
    unusable: str = ""

    @property
    def fuel_mean(self) -> float | None:
        """Fuel that a call used on average; None before the first call."""
        return self.fuel_total / self.calls if self.calls else None


@dataclass(frozen=True, slots=True)
class FunctionUsage:
    """What all functions of a ledger take together, and may take by its settings.

    `binaries_bytes` on disk, of all versions; `code_bytes` of machine code and `compile_seconds` of
    the processor to make it, of the registered ones; `waiting` modules are not compiled yet.
    """

    binaries_bytes: int
    binaries_limit: int
    code_bytes: int
    code_limit: int
    compile_seconds: float
    compile_limit: float
    waiting: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What one call of a function did that was tried out without a ledger; `try_function` makes it.

    `status`, `reason` and `entries` are those that its transaction would have: `reason` says more
    where the status is that of several failures. `balances` are those after the call, of the
    accounts that were given or moved. `fuel_used` of `fuel_limit` is what it took. `trap` says why
    the call was stopped, and is empty if it returned; `returned` is what it returned (32 bits with
    a sign), None if it was stopped.
    """

    status: Status | int
    reason: Reason
    entries: tuple[Entry, ...]
    balances: Mapping[int, int]
    fuel_used: int
    fuel_limit: int
    trap: str
    returned: int | None

    @property
    def ok(self) -> bool:
        """Whether a ledger would have applied it."""
        return self.status == 0

    @property
    def cause(self) -> str:
        """What stopped the call, in one line and without the place; empty if it returned."""
        # The sandbox tells where first, and what at the end.
        return " ".join(self.trap[max(0, self.trap.find("wasm trap:")) :].split())


@dataclass(frozen=True, slots=True, eq=False)
class OperationBatch:
    """A batch with function calls as arrays, for `submit_batch`. `function_calls` makes one.

    `records` (n,) of `OPERATION_DTYPE`, in any order built-in operations and calls; the `function`
    of a call is an index into `names`, its account, counterparty and amount are 0. `params` int64
    (c, up to 8) has one row for each of the c calls among the records, in their order; missing
    columns are 0. All are checked when the batch is submitted, and may be changed afterwards.
    """

    records: NDArray[Any]
    names: Sequence[str]
    params: NDArray[Any]

    def __len__(self) -> int:
        return len(self.records)


def function_calls(
    names: str | Sequence[str], params: ArrayLike, user_refs: ArrayLike | None = None
) -> OperationBatch:
    """A batch of n function calls.

    `params` are integers of shape (n, k) with k up to 8, one row per call; `names` is one name for
    all calls or a sequence of n; `user_refs` one integer or n of them (None: no references). Raises
    InvalidRequest for anything else, and for names that no function can have.
    """
    rows = padded_params(i64_rows(params, "params"))
    if isinstance(params, np.ndarray) and np.may_share_memory(rows, params):
        rows = rows.copy()
    records = np.zeros(len(rows), RECORD_DTYPE)
    records["kind"] = Kind.FUNCTION
    refs = u64_array(0 if user_refs is None else user_refs, "user_refs")
    if refs.shape not in ((), (len(rows),)):
        raise InvalidRequest(
            f"user_refs must be one or {len(rows)}, as there are rows of params, "
            f"not of shape {refs.shape}",
            field="user_refs",
            value=user_refs,
        )
    records["user_ref"] = refs
    if isinstance(names, str):
        return OperationBatch(records, (checked_name(names),), rows)
    if not isinstance(names, Sequence) or len(names) != len(rows):
        raise InvalidRequest(
            f"names must be one text or {len(rows)} of them, as there are rows of params",
            field="names",
            value=names,
        )
    known: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or name not in known:
            known[checked_name(name, index)] = len(known)
    records["function"] = [known[name] for name in names]
    return OperationBatch(records, tuple(known), rows)


def checked_params(batch: OperationBatch, calls: int) -> NDArray[np.int64]:
    """The batch's parameters as int64 (c, 8), contiguous; they and the names fit the records.

    `batch.records` have been checked, `calls` of them are calls. Raises InvalidRequest.
    """
    if isinstance(batch.names, str):
        raise InvalidRequest(
            "names must be a sequence of texts, not one text", field="names", value=batch.names
        )
    for name in batch.names:
        checked_name(name)
    if not calls and not len(batch.params):
        return np.zeros((0, MAX_PARAMS), "<i8")
    params = i64_rows(batch.params, "params")
    if len(params) != calls:
        raise InvalidRequest(
            f"params has {len(params)} rows for {calls} function calls; each call takes one",
            field="params",
            value=batch.params,
        )
    return padded_params(params)


def padded_params(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of up to 8 parameters as rows of 8, filled up with zeros; raises InvalidRequest."""
    width = rows.shape[1]
    if width == MAX_PARAMS:
        return np.ascontiguousarray(rows)
    if width > MAX_PARAMS:
        raise InvalidRequest(
            f"params has rows of {width} values, a function takes up to {MAX_PARAMS}",
            field="params",
            value=rows,
        )
    padded = np.zeros((len(rows), MAX_PARAMS), "<i8")
    padded[:, :width] = rows
    return padded


def checked_name(name: object, index: int | None = None) -> str:
    """`name` if a function can have it, else raises InvalidRequest."""
    if isinstance(name, str) and is_function_name(name):
        return name
    raise InvalidRequest(
        f"{place(index)}name must be {NAME_RULE}",
        field="name",
        value=name,
        index=index,
    )


def checked_binary(binary: object) -> bytes:
    """`binary` as bytes of a size that a function may have, else raises InvalidRequest."""
    if not isinstance(binary, (bytes, bytearray, memoryview)):
        raise InvalidRequest(
            f"binary must be bytes, not {type(binary).__name__}; "
            "text format (WAT) is turned into a binary by wasmtime.wat2wasm",
            field="binary",
            value=binary,
        )
    data = bytes(binary)
    if not 1 <= len(data) <= MAX_BINARY_BYTES:
        raise InvalidRequest(
            f"binary must have 1 to {MAX_BINARY_BYTES} bytes, not {len(data)}",
            field="binary",
            value=len(data),
        )
    return data
