"""Functions in a simulated run: real binaries for the engine, and what clients intended with them.

The log does not say which name was called or whether a registration might replace. Clients note it
here, by the `user_ref` of the operation, and the oracle follows.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from tallybus.common.record import Kind, Reason, Status
from tests.simulation.world import check
from tests.support import example_functions
from tests.support.oracle import NOT_EXECUTED, Host, Operation, Oracle, Outcome

EXAMPLES = ("fee_transfer", "overdraft")
NAMES = ("pay", "owe", "odd")
KINDS = (Kind.FUNCTION, Kind.FUNCTION_REGISTERED)


@cache
def binary(example: str) -> bytes:
    """The module of an example."""
    return example_functions.binary_path(example, "wat").read_bytes()


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


class FunctionOracle(Oracle):
    """The oracle, for records as the log has them. `intents` is what clients fill in."""

    def __init__(self, max_accounts: int, transactions_per_segment: int) -> None:
        super().__init__(max_accounts, transactions_per_segment)
        self.intents: dict[int, Registration | Call] = {}

    def follow(
        self, row: Any, params: NDArray[np.int64], entries: list[tuple[int, int]]
    ) -> Outcome:
        """Execute what stands in the log next; raises SimulationFailure unless the record of a call
        or a registration, its parameters and its entries are right."""
        if row["kind"] not in KINDS:
            return self.execute(np.array([row]))[0]
        ref = int(row["user_ref"])
        intent = self.intents[ref]
        if isinstance(intent, Registration):
            return self._registered(row, intent, params)
        operation = Operation(Kind.FUNCTION, 0, 0, 0, ref, *intent)
        if row["status"] in NOT_EXECUTED:
            wanted = Reason.WORK if row["status"] == Status.NOT_RUN else Reason.STOPPED
            check(row["reason"] == wanted, f"{row} has a wrong reason")
            outcome = self.skip(operation, int(row["status"]))
        else:
            outcome = self.execute([operation])[0]
        if outcome.status != Status.DUPLICATE:
            kept = self.kept
            told = (int(row["function"]), int(row["account"]), params.tolist(), entries)
            right = (kept.functions[0], kept.registrations[0], kept.params, kept.entries)
            check(told == right, f"{outcome.tx_id} is in the log with {told}, not {right}")
        return outcome

    def _registered(self, row: Any, wanted: Registration, params: NDArray[np.int64]) -> Outcome:
        crc = crc32c(wanted.module) if wanted.module else 0
        function = None if wanted.example is None else _function(wanted.example)
        ref = int(row["user_ref"])
        outcome = self.register(wanted.name, function, crc, wanted.override, ref)
        if outcome.status != Status.DUPLICATE:
            made = not outcome.status
            name = params.tobytes().rstrip(b"\0").decode()
            told = (int(row["function"]), int(row["account"]), name)
            version = self._versions[wanted.name] if made else 0
            right = (crc if made else 0, version, wanted.name)
            check(told == right, f"{outcome.tx_id} is in the log with {told}, not {right}")
        return outcome


def _function(example: str) -> Any:
    def run(host: Host, params: tuple[int, ...]) -> int:
        # The examples' page knows the three calls, whoever answers them.
        return int(example_functions.ORACLES[example](host, *params))

    return run
