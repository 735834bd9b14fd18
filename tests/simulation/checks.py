"""What must hold at every step: the log against the oracle, answers against the log."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import FAILURE_DTYPE, Level, Stage, Status
from tests.simulation.disk import Disk
from tests.simulation.functions import KINDS, FunctionOracle
from tests.simulation.times import Times
from tests.simulation.world import check


def identity(row: Any) -> int:
    """By what an operation is recognised in the log, which has other things in the amounts of calls
    and registrations."""
    return int(row["user_ref"] if row["kind"] in KINDS else row["amount"])


class Judge:
    """Follows the durable log with the oracle and compares everything that is told with it."""

    def __init__(self, disk: Disk, max_accounts: int, times: Times, *, strict: bool) -> None:
        self.disk = disk
        self.times = times
        self.strict = strict
        self.max_accounts = max_accounts
        self.oracle = FunctionOracle(max_accounts, disk.segment_size)
        self.balances: list[NDArray[np.int64]] = [np.zeros(max_accounts, np.int64)]
        """After each durable transaction; the first is before all."""
        self.statuses: list[int] = [0]
        self.amounts: list[int] = [0]
        self.refs: list[int] = [0]
        self.links: list[int] = [0]
        self.places: dict[int, list[int]] = {}
        """Each amount is given to one operation only: the ids under which it is in the log. Calls
        and registrations have a `user_ref` of their own instead, see `identity`."""
        self.told: list[tuple[int, list[int], list[int] | None, Level]] = []
        self.changed = 0
        """Outcomes told as COMPUTED that were others when they were executed again."""
        self.resubmitted: set[int] = set()
        self.lost = 0

    @property
    def durable(self) -> int:
        return len(self.statuses) - 1

    def follow(self) -> None:
        """Take what has become durable."""
        durable = self.disk.durable
        check(durable >= self.durable, f"durable went back from {self.durable} to {durable}")
        if durable == self.durable:
            return
        for block in self.disk.read(self.durable + 1, durable):
            check(
                block.first_id == self.durable + 1, f"id {self.durable + 1} is missing in the log"
            )
            self.times.in_log(block.timestamp_ns)
            links = iter(block.links.tolist())
            rest = block
            while len(rest.records):
                own, rest = rest.split(1)
                row = own.records[0]
                tx_id = self.durable + 1
                outcome = self.oracle.follow(row, own.params, own.entries.tolist())
                link = next(links) if row["status"] == Status.DUPLICATE else 0
                check(
                    (int(row["status"]), link) == (outcome.status, outcome.duplicate_of),
                    f"{tx_id} is in the log with {int(row['status'])} ({link}), "
                    f"the oracle says {outcome}",
                )
                self.statuses.append(outcome.status)
                self.amounts.append(identity(row))
                self.refs.append(int(row["user_ref"]))
                self.links.append(link)
                self.places.setdefault(identity(row), []).append(tx_id)
                after = self.balances[-1]
                if row["entry_count"]:
                    after = np.array(
                        [self.oracle.balance(account) for account in range(self.max_accounts)],
                        np.int64,
                    )
                self.balances.append(after)
            check(self.oracle.sum_of_balances() == 0, "the balances do not sum to zero")
            check(int(self.balances[-1].sum()) == 0, "the balances do not sum to zero")

    def readable(self, index: int, balances: NDArray[np.int64]) -> None:
        """The read side's balances after transaction `index`."""
        check(index <= self.durable, f"readable {index} is beyond durable {self.durable}")
        check(
            np.array_equal(balances, self.balances[index]),
            f"balances after {index} differ from the oracle's",
        )

    # -- answers ---------------------------------------------------------------------------------

    def submitted(
        self, level: Level, first: int, records: NDArray[Any], failures: NDArray[Any]
    ) -> list[int] | None:
        """An answer to a submit. Returns the statuses; None when the level does not tell."""
        count = len(records)
        check(first >= 1, f"the first id is {first}")
        check(failures.dtype == FAILURE_DTYPE, "failures")
        offsets = failures["offset"].tolist()
        check(
            offsets == sorted(set(offsets)) and all(o < count for o in offsets),
            f"offsets {offsets}",
        )
        amounts = [identity(row) for row in records]
        if level is Level.NONE:
            check(not len(failures), "level NONE tells failures")
            self.told.append((first, amounts, None, level))
            return None
        statuses = [0] * count
        for row in failures:
            check(row["status"] != 0, "a failure without status")
            statuses[int(row["offset"])] = int(row["status"])
        self.told.append((first, amounts, statuses, level))
        if level >= Level.COMMITTED:
            last = first + count - 1
            check(
                last <= self.durable,
                f"{first} to {last} told {level.name}, durable is {self.durable}",
            )
            for place in range(count):
                tx_id = first + place
                check(
                    (self.amounts[tx_id], self.statuses[tx_id])
                    == (amounts[place], statuses[place]),
                    f"{tx_id} told {level.name} with amount {amounts[place]}, "
                    f"status {statuses[place]}; "
                    f"the log has amount {self.amounts[tx_id]}, status {self.statuses[tx_id]}",
                )
                check(
                    self.refs[tx_id] == int(records["user_ref"][place]),
                    f"user_ref of {tx_id} differs",
                )
            for row in failures:
                self._failure(first + int(row["offset"]), row)
        return statuses

    def _failure(self, tx_id: int, row: Any) -> None:
        linked = int(row["duplicate_of"])
        check(
            linked == self.links[tx_id],
            f"{tx_id} told duplicate of {linked}, it is of {self.links[tx_id]}",
        )
        original = self.statuses[linked] if linked else 0
        check(
            int(row["original_status"]) == original,
            f"{tx_id}: first {linked} told with status {int(row['original_status'])}, "
            f"it has {original}",
        )

    def read_balances(
        self, accounts: NDArray[np.uint64], values: NDArray[np.int64], index: int, least: int
    ) -> None:
        check(index >= least, f"read at {index}, {least} was readable or asked for before")
        check(index <= self.durable, f"read at {index}, durable is {self.durable}")
        check(
            np.array_equal(values, self.balances[index][accounts.astype(np.intp)]),
            f"balances read at {index} differ from the oracle's",
        )

    def read_statuses(self, ids: NDArray[np.uint64], rows: NDArray[Any], readable: int) -> None:
        """`readable`: what this client knew to be on the read side when it asked."""
        for tx_id, row in zip(ids.tolist(), rows, strict=True):
            stage, status = int(row["stage"]), int(row["status"])
            check(
                (stage == Stage.ERROR) == (status != 0),
                f"{tx_id}: stage {stage} with status {status}",
            )
            if stage in (Stage.COMMITTED, Stage.ON_SNAPSHOT):
                check(
                    tx_id <= self.durable, f"{tx_id} told stage {stage}, durable is {self.durable}"
                )
                check(
                    self.statuses[tx_id] == 0,
                    f"{tx_id} told as success, it has {self.statuses[tx_id]}",
                )
            if 0 < tx_id <= readable:
                check(
                    stage in (Stage.ON_SNAPSHOT, Stage.COMMITTED, Stage.ERROR),
                    f"{tx_id} was readable and is told as stage {stage}",
                )
            if stage == Stage.ERROR and tx_id <= readable:
                check(
                    status == self.statuses[tx_id],
                    f"{tx_id} told with {status}, not {self.statuses[tx_id]}",
                )
                check(int(row["duplicate_of"]) == self.links[tx_id], f"{tx_id}: wrong link")

    # -- the end ---------------------------------------------------------------------------------

    def finish(self) -> None:
        """Everything is durable now: what was told is there, or was lost and is nowhere."""
        for first, amounts, statuses, level in self.told:
            for place, amount in enumerate(amounts):
                tx_id = first + place
                if tx_id <= self.durable and self.amounts[tx_id] == amount:
                    if statuses is not None and statuses[place] != self.statuses[tx_id]:
                        # Which calls run depends on the time that others took: a crash may undo
                        # what was computed, and the next transactor does otherwise.
                        self.changed += 1
                        check(
                            level is Level.COMPUTED and bool(self.oracle.intents),
                            f"{tx_id} was told with {statuses[place]} as {level.name}, "
                            f"it has {self.statuses[tx_id]}",
                        )
                    continue
                self.lost += 1
                check(
                    not self.strict, f"{tx_id} was told for amount {amount} and is not in the log"
                )
                elsewhere = self.places.get(amount, [])
                if amount not in self.resubmitted:
                    check(
                        not elsewhere, f"amount {amount} was told as {tx_id} and became {elsewhere}"
                    )
        for amount, ids in self.places.items():
            idle = (Status.DUPLICATE, Status.NOT_RUN, Status.SUSPENDED)
            done = [tx_id for tx_id in ids if self.statuses[tx_id] not in idle]
            if len(done) > 1:
                apart = min(b - a for a, b in pairwise(done))
                check(
                    self.refs[done[0]] != 0 and apart >= self.disk.segment_size,
                    f"amount {amount} was executed as {done}, user_ref {self.refs[done[0]]}",
                )
