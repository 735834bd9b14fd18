"""A file of test cases for a function: parameters, balances, and the outcome that is expected.

The file is JSON or TOML of the same shape. It has a list `cases`. Each case has a `name`, perhaps
`params` and `balances`, and `expect` with the outcome: a `status` (success where none is given), a
`reason`, the `entries` in their order, `balances` after the call, and `max_fuel`. Unknown fields
are refused, so that a mistake in a name never makes a test that cannot fail. No I/O: the text comes
from the caller.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tallybus.common.record import MAX_AMOUNT, MAX_I64, MAX_PARAMS, MAX_U64, MIN_I64, Reason, Status
from tallybus.errors import InvalidRequest
from tallybus.functions import Trial
from tallybus.transactions import Direction, Entry

MAX_FILE_BYTES: Final = 16 << 20
MAX_NAME_CHARS: Final = 200
_ACCOUNT: Final = re.compile(r"0|[1-9][0-9]{0,19}", re.ASCII)
_OWN_STATUS: Final = re.compile(r"FUNCTION_([0-9]{1,3})", re.ASCII)

Called = Callable[[Sequence[int], Mapping[int, int]], Trial]


class InvalidCases(ValueError):
    """The file is no file of cases. `place` says where (`case 3, balances`), or is empty."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}" if place else reason)
        self.place = place
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Expected:
    """What is to come of a call. What is None is not looked at; of `balances` those named are."""

    status: int = Status.NONE
    reason: Reason | None = None
    entries: tuple[Entry, ...] | None = None
    balances: Mapping[int, int] | None = None
    max_fuel: int | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One call, and what is expected of it."""

    name: str
    params: tuple[int, ...]
    balances: Mapping[int, int]
    expected: Expected


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """The outcome of a case. `problems` says what is not as expected; a case without any passed."""

    case: Case
    trial: Trial
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all is as expected."""
        return not self.problems


def read_cases(text: bytes, *, toml: bool) -> list[Case]:
    """The cases of a file in TOML or JSON. Raises InvalidCases."""
    if len(text) > MAX_FILE_BYTES:
        raise InvalidCases("", f"it has more than {MAX_FILE_BYTES} bytes")
    kind = "TOML" if toml else "JSON"
    try:
        decoded = text.decode("utf-8-sig")
        tree = tomllib.loads(decoded) if toml else json.loads(decoded, object_pairs_hook=_object)
    except InvalidCases:
        raise
    except RecursionError as error:
        raise InvalidCases("", f"it is not valid {kind}: too deeply nested") from error
    except ValueError as error:
        raise InvalidCases("", f"it is not valid {kind}: {error}") from error
    table = _table(tree, "", {"cases"})
    rows = table.get("cases")
    if not isinstance(rows, list) or not rows:
        raise InvalidCases("", "it needs `cases`, a list with at least one case")
    cases: list[Case] = []
    names: dict[str, int] = {}
    for number, row in enumerate(rows, start=1):
        case = _case(row, f"case {number}")
        first = names.setdefault(case.name, number)
        if first != number:
            raise InvalidCases(f"case {number}, name", f"case {first} has the same")
        cases.append(case)
    return cases


def run_cases(cases: Sequence[Case], call: Called) -> Iterator[CaseOutcome]:
    """Each case in order, as `call` with its parameters and balances ends it.

    Raises what `call` raises, and InvalidCases for what that takes for an invalid request.
    """
    for number, case in enumerate(cases, start=1):
        try:
            trial = call(case.params, case.balances)
        except InvalidRequest as error:
            raise InvalidCases(f"case {number}", str(error)) from error
        yield CaseOutcome(case, trial, tuple(_problems(case.expected, trial)))


def status_name(status: int) -> str:
    """A status as it stands in a file of cases, and is shown."""
    return Status(status).name if status in set(Status) else f"FUNCTION_{status}"


def _problems(expected: Expected, trial: Trial) -> Iterator[str]:
    if trial.status != expected.status:
        wanted, got = status_name(expected.status), status_name(trial.status)
        yield f"status is {got}{_because(trial)}, not {wanted}"
    elif expected.reason is not None and trial.reason != expected.reason:
        yield f"reason is {trial.reason.name}, not {expected.reason.name}"
    if expected.entries is not None and trial.entries != expected.entries:
        yield f"entries are {_entries(trial.entries)}, not {_entries(expected.entries)}"
    for account, balance in (expected.balances or {}).items():
        got_balance = trial.balances.get(account, 0)
        if got_balance != balance:
            yield f"account {account} has {got_balance}, not {balance}"
    if expected.max_fuel is not None and trial.fuel_used > expected.max_fuel:
        yield f"it used {trial.fuel_used} fuel, more than {expected.max_fuel}"


def _because(trial: Trial) -> str:
    if trial.trap:
        return f" ({trial.cause})"
    return f" ({trial.reason.name})" if trial.reason else ""


def _entries(entries: Sequence[Entry]) -> str:
    return ", ".join(f"{e.direction.value.lower()} {e.account} {e.amount}" for e in entries) or (
        "none"
    )


def _case(row: object, place: str) -> Case:
    table = _table(row, place, {"name", "params", "balances", "expect"})
    name = table.get("name")
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARS:
        raise InvalidCases(
            f"{place}, name", f"every case needs a name of 1 to {MAX_NAME_CHARS} characters"
        )
    if not name.isprintable():
        raise InvalidCases(f"{place}, name", "it has characters that cannot be shown")
    params = table.get("params", [])
    if not isinstance(params, list) or len(params) > MAX_PARAMS:
        raise InvalidCases(
            f"{place}, params", f"it must be a list of up to {MAX_PARAMS} whole numbers"
        )
    return Case(
        name=name,
        params=tuple(
            _number(each, f"{place}, params {at}", MIN_I64, MAX_I64)
            for at, each in enumerate(params, start=1)
        ),
        balances=_balances(table.get("balances", {}), f"{place}, balances"),
        expected=_expected(table.get("expect", {}), f"{place}, expect"),
    )


def _expected(row: object, place: str) -> Expected:
    table = _table(row, place, {"status", "reason", "entries", "balances", "max_fuel"})
    reason = entries = balances = max_fuel = None
    if "reason" in table:
        reason = _reason(table["reason"], f"{place}.reason")
    if "entries" in table:
        entries = _expected_entries(table["entries"], f"{place}.entries")
    if "balances" in table:
        balances = _balances(table["balances"], f"{place}.balances")
    if "max_fuel" in table:
        max_fuel = _number(table["max_fuel"], f"{place}.max_fuel", 0, MAX_U64)
    status = _status(table.get("status", int(Status.NONE)), f"{place}.status")
    if status and entries:
        raise InvalidCases(f"{place}.entries", "a call that fails has no entries")
    return Expected(status, reason, entries, balances, max_fuel)


def _status(value: object, place: str) -> int:
    if isinstance(value, str):
        if value in Status.__members__:
            return Status.__members__[value].value
        match = _OWN_STATUS.fullmatch(value)
        if match is not None:
            value = int(match[1])
    if type(value) is int and (value in set(Status) or 128 <= value <= 255):
        return value
    raise InvalidCases(
        place,
        f"{_shown(value)} is no status of a call; take a name ({Status(1).name}, FUNCTION_130) or "
        "its number",
    )


def _reason(value: object, place: str) -> Reason:
    if isinstance(value, str) and value in Reason.__members__:
        return Reason[value]
    raise InvalidCases(
        place, f"{_shown(value)} is no reason; there are {', '.join(Reason.__members__)}"
    )


def _expected_entries(value: object, place: str) -> tuple[Entry, ...]:
    if not isinstance(value, list):
        raise InvalidCases(place, "it must be a list")
    return tuple(_entry(each, f"{place} {at}") for at, each in enumerate(value, start=1))


def _entry(row: object, place: str) -> Entry:
    table = _table(row, place, {"account", "credit", "debit", "direction", "amount"})
    for fields, direction in (
        ({"account", "credit"}, Direction.CREDIT),
        ({"account", "debit"}, Direction.DEBIT),
    ):
        if set(table) == fields:
            amount = _number(table[direction.value.lower()], place, 1, MAX_AMOUNT)
            return Entry(_number(table["account"], place, 0, MAX_U64), direction, amount)
    if set(table) == {"account", "direction", "amount"} and table["direction"] in set(Direction):
        amount = _number(table["amount"], place, 1, MAX_AMOUNT)
        return Entry(
            _number(table["account"], place, 0, MAX_U64), Direction(table["direction"]), amount
        )
    raise InvalidCases(
        place,
        "an entry has an account and either a credit or a debit (or direction and amount, as "
        "`--json` shows it)",
    )


def _balances(value: object, place: str) -> dict[int, int]:
    if not isinstance(value, dict):
        raise InvalidCases(place, "it must be a table of accounts with their balances")
    found: dict[int, int] = {}
    for key, amount in value.items():
        if _ACCOUNT.fullmatch(key) is None or int(key) > MAX_U64:
            raise InvalidCases(place, f"{_shown(key)} is no account")
        found[int(key)] = _number(amount, f"{place} {key}", MIN_I64, MAX_I64)
    return found


def _number(value: object, place: str, least: int, most: int) -> int:
    if type(value) is not int:
        raise InvalidCases(place, f"{_shown(value)} is no whole number")
    if not least <= value <= most:
        raise InvalidCases(place, f"{_shown(value)} is not in {least}..{most}")
    return value


def _table(value: object, place: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidCases(place, "it must be a table" if place else "it must be one table")
    unknown = sorted(set(value) - known)
    if unknown:
        raise InvalidCases(
            place, f"unknown field {_shown(unknown[0])}; there are {', '.join(sorted(known))}"
        )
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise InvalidCases("", f"an object has the field {_shown(name)} twice")
        table[name] = value
    return table


def _shown(value: object) -> str:
    if isinstance(value, (str, int, float)):
        try:
            text = repr(value)
        except ValueError:  # more digits than Python writes
            return "a number of that length"
        return text if len(text) <= 60 else f"{text[:57]}..."
    return f"a {type(value).__name__}"
