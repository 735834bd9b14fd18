"""What the transactor counts beside what every stage does: outcomes, and calls of functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol

from tallybus.common.metrics.counters import Meter, Outcomes, Sample, status_label
from tallybus.common.record import FIRST_USER_STATUS, Reason

if TYPE_CHECKING:
    from tallybus.services.transactor.core import TransactorCore

MAX_FUNCTIONS: Final = 200
"""Functions that are told one by one, those with most calls; names come from customers."""
OTHERS: Final = "(others)"
"""All functions beyond that, together. No function can have this name."""


class Measured(Protocol):
    """What is read of a transactor."""

    core: TransactorCore


class TransactorMeter(Meter):
    """Counters of one transactor."""

    def __init__(self, service: Measured) -> None:
        super().__init__()
        self.outcomes = Outcomes()
        self._service = service

    def samples(self) -> Iterator[Sample]:
        yield from self.outcomes.samples()
        rows = self._functions()
        yield from functions(rows)
        yield from totals(self._service.core.totals_of_functions(), rows)

    def _functions(self) -> list[dict[str, Any]]:
        core = self._service.core
        try:
            return core.live_functions()
        except (KeyError, RuntimeError):
            return core.live_functions()  # one was unregistered while they were read


def totals(found: dict[str, int], rows: list[dict[str, Any]]) -> Iterator[Sample]:
    """Samples of what all functions take together, beside what they may take."""
    if not found:
        return
    for metric, used, limit, unit in (
        ("tallybus_functions_binaries_bytes", "binaries_bytes", "binaries_limit", 1),
        ("tallybus_functions_code_bytes", "code_bytes", "code_limit", 1),
        ("tallybus_functions_compile_seconds", "compile_ms", "compile_limit_ms", 1_000),
    ):
        yield Sample(metric, found[used] / unit, ("used",))
        yield Sample(metric, found[limit] / unit, ("limit",))
    yield Sample("tallybus_functions_waiting", found["waiting"])
    yield Sample("tallybus_functions_unusable", sum(bool(row["unusable"]) for row in rows))


def functions(rows: list[dict[str, Any]]) -> Iterator[Sample]:
    """Samples of the rows that `list_functions` is answered with."""
    rows = sorted(rows, key=lambda row: row["calls"], reverse=True)
    for row in rows[:MAX_FUNCTIONS]:
        yield from _one(row["name"], row)
        yield Sample("tallybus_function_version", row["version"], (row["name"],))
        if row["mean_ns"] is not None:
            yield Sample("tallybus_function_call_seconds", row["mean_ns"] / 1e9, (row["name"],))
        if row["p99_ns"] is not None:
            yield Sample("tallybus_function_call_tail_seconds", row["p99_ns"] / 1e9, (row["name"],))
        yield Sample("tallybus_function_suspended", int(row["suspended"]), (row["name"],))
    rest = rows[MAX_FUNCTIONS:]
    if rest:
        together: dict[str, Any] = {
            key: sum(row[key] for row in rest) for key in ("calls", "fuel", "work_ns")
        }
        for key in ("failures", "reasons"):
            together[key] = sum((Counter(row[key]) for row in rest), Counter())
        yield from _one(OTHERS, together)


def _one(name: str, row: dict[str, Any]) -> Iterator[Sample]:
    yield Sample("tallybus_function_calls_total", row["calls"], (name,))
    yield Sample("tallybus_function_fuel_total", row["fuel"], (name,))
    yield Sample("tallybus_function_work_seconds_total", row["work_ns"] / 1e9, (name,))
    for reason, count in row["reasons"].items():
        label = Reason(reason).name.lower()
        yield Sample("tallybus_function_reasons_total", count, (name, label))
    for status, count in row["failures"].items():
        label = str(status) if status >= FIRST_USER_STATUS else status_label(status)
        yield Sample("tallybus_function_failures_total", count, (name, label))
