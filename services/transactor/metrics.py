"""What the transactor counts beside what every stage does: outcomes, and calls of functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from tallybus.common.metrics import Meter, Outcomes, Sample, status_label
from tallybus.common.record import FIRST_USER_STATUS

if TYPE_CHECKING:
    from tallybus.services.transactor.service import TransactorService

MAX_FUNCTIONS: Final = 200
"""Functions that are told one by one, those with most calls; names come from customers."""
OTHERS: Final = "(others)"
"""All functions beyond that, together. No function can have this name."""


class TransactorMeter(Meter):
    """Counters of one transactor."""

    def __init__(self, service: TransactorService) -> None:
        super().__init__()
        self.outcomes = Outcomes()
        self._service = service

    def samples(self) -> Iterator[Sample]:
        yield from self.outcomes.samples()
        yield from functions(self._functions())

    def _functions(self) -> list[dict[str, Any]]:
        core = self._service.core
        try:
            return core.live_functions()
        except (KeyError, RuntimeError):
            return core.live_functions()  # one was unregistered while they were read


def functions(rows: list[dict[str, Any]]) -> Iterator[Sample]:
    """Samples of the rows that `list_functions` is answered with."""
    rows = sorted(rows, key=lambda row: row["calls"], reverse=True)
    for row in rows[:MAX_FUNCTIONS]:
        yield from _one(row["name"], row["calls"], row["fuel"], row["failures"])
        yield Sample("tallybus_function_version", row["version"], (row["name"],))
        if row["mean_ns"] is not None:
            yield Sample("tallybus_function_call_seconds", row["mean_ns"] / 1e9, (row["name"],))
    rest = rows[MAX_FUNCTIONS:]
    if rest:
        failures: dict[int, int] = {}
        for row in rest:
            for status, count in row["failures"].items():
                failures[status] = failures.get(status, 0) + count
        calls = sum(row["calls"] for row in rest)
        yield from _one(OTHERS, calls, sum(row["fuel"] for row in rest), failures)


def _one(name: str, calls: int, fuel: int, failures: dict[int, int]) -> Iterator[Sample]:
    yield Sample("tallybus_function_calls_total", calls, (name,))
    yield Sample("tallybus_function_fuel_total", fuel, (name,))
    for status, count in failures.items():
        label = str(status) if status >= FIRST_USER_STATUS else status_label(status)
        yield Sample("tallybus_function_failures_total", count, (name, label))
