"""An engine with accounts that hold money, for functions that are after it."""

from collections.abc import Sequence

import numpy as np

from tallybus.common.record import RECORD_DTYPE, Kind, Status
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.outcome import Outcome
from tests.support.hostile import making

LIMITS = FunctionLimits(fuel=200_000)


ACCOUNTS = 1_000


OPENING = 1_000


class Bank:
    """An engine with money in all accounts from 1 to 9, and a well-behaved function beside."""

    def __init__(self) -> None:
        self.engine = Engine(ACCOUNTS, 1 << 16, 7, LIMITS)
        self.engine.balances[1:10] = OPENING
        self.versions = 0
        self.register("good", making.function(making.MOVE + "(i32.const 0)"))

    def register(self, name: str, binary: bytes) -> None:
        compiled = self.engine.functions.compile(binary)
        record = np.zeros(1, RECORD_DTYPE)
        record["kind"] = Kind.FUNCTION_REGISTERED
        record["function"] = compiled.crc32c
        self.versions += 1
        executed = self.engine.register(
            record, self.engine.next_id, name, self.versions, Status.NONE, compiled
        )
        assert executed.batch.records["status"][0] == Status.NONE

    def call(self, *names: str, params: Sequence[int] = ()) -> Outcome:
        """Call these in one batch, all with the same parameters."""
        records = np.zeros(len(names), RECORD_DTYPE)
        records["kind"] = Kind.FUNCTION
        known = sorted(set(names))
        records["function"] = [known.index(name) for name in names]
        words = np.zeros((len(names), 8), np.int64)
        words[:, : len(params)] = params
        return self.engine.execute(records, self.engine.next_id, known, words)

    def check_good(self) -> None:
        """The well-behaved function does what it should, and nothing else moved."""
        before = self.engine.balances.copy()
        executed = self.call("good")
        assert executed.batch.records["status"].tolist() == [Status.NONE]
        moved = np.flatnonzero(self.engine.balances - before)
        assert moved.tolist() == [1, 2]
        assert self.engine.balances[1] - before[1] == -5
        assert self.engine.balances[2] - before[2] == 5
