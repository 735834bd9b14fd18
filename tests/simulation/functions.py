"""Functions in a simulated run: real binaries for the engine, and an oracle that knows the calls.

The log does not say which name was called or whether a registration might replace: that is what
clients intended, and they note it here, by the `user_ref` of the operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from tallybus.common.record import Kind, Status
from tests.example_functions import binary_path, expected
from tests.oracle import Operation, Oracle, Outcome
from tests.simulation.world import check

EXAMPLES = ("fee_transfer", "overdraft")
NAMES = ("pay", "owe", "odd")
PARAMS = 8


@cache
def binary(example: str) -> bytes:
    """The module of an example."""
    return binary_path(example, "wat").read_bytes()


class Registration(NamedTuple):
    """What a client wants a name to be; no example: nothing any more."""

    name: str
    example: str | None
    override: bool

    @property
    def module(self) -> bytes:
        return b"" if self.example is None else binary(self.example)


class Call(NamedTuple):
    """Of which function, with eight parameters."""

    name: str
    params: tuple[int, ...]


class Live(NamedTuple):
    """What a name stands for: registered by `tx_id`."""

    example: str
    tx_id: int


class Registry:
    """The functions of a ledger, in plain Python, and what clients intended."""

    def __init__(self) -> None:
        self.intents: dict[int, Registration | Call] = {}
        self.live: dict[str, Live] = {}
        self.versions: dict[str, int] = {}

    def register(self, wanted: Registration, tx_id: int) -> Status:
        live = self.live.get(wanted.name)
        if wanted.example is None:
            if live is None:
                return Status.INVALID_OPERATION
            del self.live[wanted.name]
        else:
            if live is not None and not wanted.override:
                return Status.INVALID_OPERATION
            self.live[wanted.name] = Live(wanted.example, tx_id)
        self.versions[wanted.name] = self.versions.get(wanted.name, 0) + 1
        return Status.NONE


class FunctionOracle(Oracle):
    """The oracle of the built-in operations, with functions."""

    def __init__(self, max_accounts: int, transactions_per_segment: int) -> None:
        super().__init__(max_accounts, transactions_per_segment)
        self.registry = Registry()

    def _execute_one(self, operation: Operation) -> Outcome:
        if operation.kind in (Kind.FUNCTION, Kind.FUNCTION_REGISTERED):
            # What else the record says is no movement.
            operation = operation._replace(account=0, counterparty=0)
        return super()._execute_one(operation)

    def _judge(self, operation: Operation) -> Status:
        intent = self.registry.intents.get(operation.user_ref)
        # Only what is no duplicate comes here; its id was taken already.
        if isinstance(intent, Registration) and operation.kind == Kind.FUNCTION_REGISTERED:
            status = self.registry.register(intent, self.next_id - 1)
        elif isinstance(intent, Call) and operation.kind == Kind.FUNCTION:
            status = self._call(intent)
        else:
            return super()._judge(operation)
        return status

    def _call(self, call: Call) -> Status:
        live = self.registry.live.get(call.name)
        if live is None:
            return Status.INVALID_OPERATION
        before = [self.balance(account) for account in range(self.max_accounts)]
        outcome = expected(live.example, call.params, before)
        for account, amount in outcome.entries:
            self._move(account, amount)
        return outcome.status  # type: ignore[return-value]

    def check_row(
        self, tx_id: int, row: Any, live: dict[str, Live], params: NDArray[np.int64]
    ) -> None:
        """The record of a call or a registration, apart from its status. `live`: before it."""
        registry = self.registry
        intent = registry.intents[int(row["user_ref"])]
        status = int(row["status"])
        if isinstance(intent, Registration):
            crc = 0 if status or not intent.module else crc32c(intent.module)
            version = 0 if status else registry.versions[intent.name]
            told = int(row["function"]), int(row["account"])
            check(told == (crc, version), f"{tx_id}: registered {told}, not {(crc, version)}")
            text = params.tobytes().rstrip(b"\0").decode()
            check(text == intent.name, f"{tx_id}: registered as {text}, not {intent.name}")
            return
        ran = live.get(intent.name)
        crc, by = (0, 0) if ran is None else (crc32c(binary(ran.example)), ran.tx_id)
        told = int(row["function"]), int(row["account"])
        check(told == (crc, by), f"{tx_id}: {intent.name} ran {told}, not {(crc, by)}")
        check(
            params.tolist() == trimmed(intent.params),
            f"{tx_id}: called with {params.tolist()}, not {intent.params}",
        )


def trimmed(params: Sequence[int]) -> list[int]:
    """Without the last zeros."""
    kept = list(params)
    while kept and not kept[-1]:
        kept.pop()
    return kept
