"""Engines driven with the oracle's operations, and their results in the oracle's terms."""

from tallybus.common.batch import Batch
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.outcome import Outcome as EngineOutcome
from tests.support.oracle import Operation, Outcome, to_records


def parts(batch: Batch) -> tuple[bytes, ...]:
    """The bytes of its four arrays, to compare batches by."""
    arrays = (batch.records, batch.links, batch.params, batch.entries)
    return tuple(array.tobytes() for array in arrays)


def run(engine: Engine, *operations: Operation) -> EngineOutcome:
    """Execute operations as the next batch."""
    return engine.execute(to_records(operations), engine.next_id)


def outcomes(executed: EngineOutcome, first_id: int) -> list[Outcome]:
    """What became of every transaction of a batch."""
    found = [Outcome(first_id + i, 0) for i in range(executed.batch.count)]
    for row in executed.failures:
        i = int(row["offset"])
        found[i] = Outcome(
            first_id + i, int(row["status"]), int(row["duplicate_of"]), int(row["original_status"])
        )
    return found


def reference_count(engine: Engine) -> int:
    """User references that the next transaction would find in the window."""
    window = engine.window
    number = (window.next_id - 1) // window.transactions_per_segment
    kept = [each for each in (window.current, window.previous) if number - each.number in (0, 1)]
    return sum(each.count for each in kept)
