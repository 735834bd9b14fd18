"""Engines driven with the oracle's operations, and their results in the oracle's terms."""

from tallybus.services.transactor.engine import Engine, Executed
from tests.support.oracle import Operation, Outcome, to_records


def run(engine: Engine, *operations: Operation) -> Executed:
    """Execute operations as the next batch."""
    return engine.execute(to_records(operations), engine.next_id)


def outcomes(executed: Executed, first_id: int) -> list[Outcome]:
    """What became of every transaction of a batch."""
    found = [Outcome(first_id + i, 0) for i in range(len(executed.records))]
    for row in executed.failures:
        i = int(row["offset"])
        found[i] = Outcome(
            first_id + i, int(row["status"]), int(row["duplicate_of"]), int(row["original_status"])
        )
    return found
