"""Operations for measuring: made beforehand, so that sending them costs next to nothing.

Sans-IO. A workload is a pool of random operations, and is gone through again and again, slice by
slice. A slice is an array. The client gets it as it is, and copies it. Each round writes new values
of `user_ref`, and nothing else, a block of operations at a time.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tallybus.cli.measure import function
from tallybus.common.record import MAX_PARAMS, MAX_U64, RECORD_DTYPE, Kind
from tallybus.functions import OperationBatch
from tallybus.operations import deposits

WorkloadKind = Literal["deposit", "transfer", "mixed", "function"]

POOL_OPERATIONS: Final = 2_097_152
"""80 MiB of operations: more than enough to touch a million accounts in random order."""
BLOCK_OPERATIONS: Final = 4_096
MAX_AMOUNT: Final = 1_000
FUNDING: Final = 100_000
"""What every account gets beforehand, in minor units: a hundred of the largest amounts."""
OVERDRAFT_AMOUNT: Final = 10**15
OVERDRAFT_SHARE: Final = 1 / 64
"""This share of the transfers and withdrawals asks for more than any account has: rejections are
a part of real work."""

# An odd stride visits every 64-bit number once. A large one, because refs that stand side by side
# would be kinder to the ledger's table of refs than random ones are.
_STRIDE: Final = 0xD1342543DE82EF95


class Workload:
    """An endless sequence of operations over accounts 1..`accounts`.

    About `ops` will be taken, at most `batch` at a time. `seed` decides everything but the refs.
    With `first_ref` every operation has a `user_ref` that no other one has; without, none.
    """

    def __init__(
        self,
        kind: WorkloadKind,
        *,
        accounts: int,
        batch: int,
        ops: int,
        seed: int,
        first_ref: int | None = None,
    ) -> None:
        self._batch = batch
        self._block = -(-BLOCK_OPERATIONS // batch) * batch
        blocks = -(-min(ops, POOL_OPERATIONS) // self._block)
        self._pool = _random_operations(
            kind, blocks * self._block, accounts, np.random.default_rng(seed)
        )
        self._params = _as_calls(self._pool) if kind == "function" else None
        self._position = 0
        self._next_ref = first_ref
        steps = np.arange(self._block, dtype=np.uint64)
        self._steps = steps * np.uint64(_STRIDE)
        self._refs: NDArray[np.uint64] = self._pool["user_ref"]

    def take(self, count: int) -> NDArray[np.void] | OperationBatch:
        """The next `count` operations, at most `batch`: RECORD_DTYPE[count], contiguous, and for
        functions their parameters with them.

        It is written again when the pool has come round.
        """
        if self._position == len(self._pool):
            self._position = 0
        start = self._position
        if start % self._block == 0 and self._next_ref is not None:
            np.add(
                self._steps, np.uint64(self._next_ref), out=self._refs[start : start + self._block]
            )
            self._next_ref = (self._next_ref + self._block * _STRIDE) & MAX_U64
        self._position = start + self._batch
        records = self._pool[start : start + count]
        if self._params is None:
            return records
        return OperationBatch(records, (function.NAME,), self._params[start : start + count])


def first_ref(random_bits: int, ops: int) -> int:
    """A start for the refs of `ops` operations, from 64 random bits; none of them is 0."""
    inverse = pow(_STRIDE, -1, 2**64)
    start = random_bits & MAX_U64
    steps_to_zero = (-start * inverse) & MAX_U64
    # Refs are written a block at a time, so a few more than `ops` are used up.
    if steps_to_zero <= ops + POOL_OPERATIONS:
        return (start + (ops + POOL_OPERATIONS + 1) * _STRIDE) & MAX_U64
    return start


def funding(accounts: int, batch: int, position: int) -> NDArray[np.void]:
    """The deposits to the next accounts after `position`, at most `batch`: RECORD_DTYPE[n]."""
    last = min(accounts, position + batch)
    return deposits(np.arange(position + 1, last + 1, dtype=np.uint64), FUNDING)


def _random_operations(
    kind: WorkloadKind, count: int, accounts: int, rng: np.random.Generator
) -> NDArray[np.void]:
    pool = np.zeros(count, RECORD_DTYPE)
    pool["account"] = rng.integers(1, accounts, count, np.uint64, endpoint=True)
    pool["amount"] = rng.integers(1, MAX_AMOUNT, count, np.uint64, endpoint=True)
    if kind == "deposit":
        pool["kind"] = Kind.DEPOSIT
        return pool
    if kind in ("transfer", "function"):
        pool["kind"] = Kind.TRANSFER
    else:
        mixture = np.array([Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER, Kind.TRANSFER], np.uint8)
        pool["kind"] = mixture[rng.integers(0, len(mixture), count, np.uint8)]
    targets = rng.integers(1, accounts, count, np.uint64, endpoint=True)
    pool["counterparty"] = np.where(pool["kind"] == Kind.TRANSFER, targets, np.uint64(0))
    overdraft = rng.random(count) < OVERDRAFT_SHARE
    overdraft &= pool["kind"] != Kind.DEPOSIT
    pool["amount"][overdraft] = OVERDRAFT_AMOUNT
    return pool


def _as_calls(pool: NDArray[np.void]) -> NDArray[np.int64]:
    """Turns transfers into calls of the function that does the same for a fee: int64 (n, 8)."""
    params = np.zeros((len(pool), MAX_PARAMS), "<i8")
    params[:, 0] = pool["account"]
    params[:, 1] = pool["counterparty"]
    params[:, 2] = function.FEE_ACCOUNT
    params[:, 3] = pool["amount"]
    params[:, 4] = function.FEE_BPS
    pool[:] = np.zeros(1, RECORD_DTYPE)
    pool["kind"] = Kind.FUNCTION
    return params
