"""The example functions in plain Python, and how their binaries are tried.

The oracles are written from the examples' pages with integers of any size, and know nothing of
WebAssembly. Each takes a `Book` of balances and eight parameters, and returns its status;
`expected` adds what the ledger does around it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tallybus.common.record import Status
from tallybus.services.transactor.functions import binding as runtime_sandbox
from tallybus.services.transactor.functions.handler import compile_function
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.once import call_once
from tallybus.services.transactor.functions.state import CallState
from tests.support.folders import FUNCTION_EXAMPLES

LANGUAGES = ("wat", "rust", "as")
LARGEST = 2**63 - 1
SMALLEST = -(2**63)
HALF = LARGEST // 2
MAX_ACCOUNTS = 8


class Outcome(NamedTuple):
    """How a call ended: entries are (account, amount), the amount negative for a credit."""

    status: int
    entries: list[tuple[int, int]]
    balances: list[int]


class HostFailure(Exception):
    """A host call that fails the transaction, whatever the function does next."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class Book:
    """Balances of accounts 0..n-1 with the three host calls. Amounts and accounts are u64."""

    def __init__(self, balances: Sequence[int]) -> None:
        self.before = list(balances)
        self.balances = list(balances)
        self.entries: list[tuple[int, int]] = []

    def get_balance(self, account: int) -> int:
        if account >= len(self.balances):
            raise HostFailure(Status.ACCOUNT_LIMIT_EXCEEDED)
        return self.balances[account]

    def credit(self, account: int, amount: int) -> None:
        self._move(account, amount, -1)

    def debit(self, account: int, amount: int) -> None:
        self._move(account, amount, 1)

    def _move(self, account: int, amount: int, sign: int) -> None:
        balance = self.get_balance(account) + sign * amount
        if amount > LARGEST or not SMALLEST <= balance <= LARGEST:
            raise HostFailure(Status.BALANCE_OVERFLOW)
        if amount:
            self.balances[account] = balance
            self.entries.append((account, sign * amount))

    def outcome(self, status: int) -> Outcome:
        if status == Status.NONE:
            assert sum(amount for _, amount in self.entries) == 0
            return Outcome(status, self.entries, self.balances)
        return Outcome(status, [], self.before)


def u64(value: int) -> int:
    return value % 2**64


def fee_transfer(book: Book, *p: int) -> int:
    sender, receiver, fee_account = map(u64, p[:3])
    amount, fee_bps = p[3:5]
    if amount <= 0:
        return 128
    if not 0 <= fee_bps <= 10_000:
        return 129
    fee = amount * fee_bps // 10_000
    if book.get_balance(sender) < amount + fee:
        return Status.INSUFFICIENT_FUNDS
    book.credit(sender, amount + fee)
    book.debit(receiver, amount)
    book.debit(fee_account, fee)
    return 0


def escrow(book: Book, *p: int) -> int:
    operation, amount, cut_bps = p[0], p[3], p[5]
    held, party, platform = u64(p[1]), u64(p[2]), u64(p[4])
    if operation not in (1, 2, 3):
        return 130
    if held in (0, party):
        return 132
    if amount <= 0:
        return 128
    if operation == 1:
        if book.get_balance(party) < amount:
            return Status.INSUFFICIENT_FUNDS
        book.credit(party, amount)
        book.debit(held, amount)
        return 0
    cut = 0
    if operation == 2:
        if held == platform:
            return 132
        if not 0 <= cut_bps <= 10_000:
            return 129
        cut = amount * cut_bps // 10_000
    if book.get_balance(held) < amount:
        return 131
    book.credit(held, amount)
    book.debit(party, amount - cut)
    if cut:
        book.debit(platform, cut)
    return 0


def loyalty(book: Book, *p: int) -> int:
    customer, merchant, points, issuer = map(u64, p[:4])
    amount, points_per_100 = p[4:6]
    if not 1 <= amount <= 10**15:
        return 128
    if not 0 <= points_per_100 <= 1000:
        return 129
    money = {0, customer, merchant}
    if points == issuer or points in money or issuer in money:
        return 130
    if book.get_balance(customer) < amount:
        return Status.INSUFFICIENT_FUNDS
    earned = amount * points_per_100 // 100
    book.credit(customer, amount)
    book.debit(merchant, amount)
    book.credit(issuer, earned)
    book.debit(points, earned)
    return 0


def overdraft(book: Book, *p: int) -> int:
    payer, payee = map(u64, p[:2])
    amount, limit = p[2:4]
    if amount <= 0:
        return 128
    if limit < 0:
        return 129
    if book.get_balance(payer) - amount < -limit:
        return 130
    book.credit(payer, amount)
    book.debit(payee, amount)
    return 0


ORACLES: dict[str, Callable[..., int]] = {
    "fee_transfer": fee_transfer,
    "escrow": escrow,
    "loyalty": loyalty,
    "overdraft": overdraft,
}
# What each parameter is, by which its values are drawn.
PARAMETERS = {
    "fee_transfer": ("account", "account", "account", "amount", "bps"),
    "escrow": ("operation", "account", "account", "amount", "account", "bps"),
    "loyalty": ("account", "account", "account", "account", "amount", "per_100"),
    "overdraft": ("account", "account", "amount", "limit"),
}


def binary_path(name: str, language: str) -> Path:
    return FUNCTION_EXAMPLES / name / "built" / f"{name}.{language}.wasm"


def expected(name: str, params: Sequence[int], balances: Sequence[int]) -> Outcome:
    book = Book(balances)
    try:
        status = ORACLES[name](book, *params)
    except HostFailure as failure:
        status = failure.status
    return book.outcome(status)


EDGES = (SMALLEST, SMALLEST + 1, -1, 0, 1, 2, LARGEST - 1, LARGEST)
OUTSIDE = (MAX_ACCOUNTS, MAX_ACCOUNTS + 1, LARGEST, SMALLEST, -1)
# Where a parameter's rule has its limits, and both sides of them.
LIMITS = {
    "amount": (*EDGES, 9_999, 10_000, 10_001, 10**15 - 1, 10**15, 10**15 + 1, LARGEST // 10_000),
    "bps": (*EDGES, 49, 50, 9_999, 10_000, 10_001),
    "per_100": (*EDGES, 99, 100, 999, 1_000, 1_001),
    "limit": EDGES,
    "operation": (*EDGES, 3, 4),
}
USUAL = {
    "amount": (1, 50_000),
    "bps": (0, 10_000),
    "per_100": (0, 1_000),
    "limit": (0, 50_000),
    "operation": (1, 3),
}


def drawn(rng: random.Random, what: str) -> int:
    if what == "account":
        return rng.choice(OUTSIDE) if rng.random() < 0.03 else rng.randrange(MAX_ACCOUNTS)
    if what == "any":
        return rng.choice((*EDGES, rng.randint(SMALLEST, LARGEST)))
    kind = rng.random()
    if kind < 0.7:
        return rng.randint(*USUAL[what])
    if kind < 0.9:
        return rng.choice(LIMITS[what])
    return rng.randint(SMALLEST, LARGEST) >> rng.randrange(64)


def drawn_balances(rng: random.Random) -> list[int]:
    """Mostly ordinary ones; now and then so large that another cent leaves int64."""
    if rng.random() < 0.8:
        return [rng.randint(-20_000, 100_000) for _ in range(MAX_ACCOUNTS)]
    return [
        rng.choice((rng.choice(EDGES), rng.randint(SMALLEST, LARGEST), 10**17))
        for _ in range(MAX_ACCOUNTS)
    ]


def drawn_call(rng: random.Random, name: str) -> tuple[list[int], list[int]]:
    """Parameters and balances. Parameters that the example does not have are anything."""
    params = [drawn(rng, what) for what in PARAMETERS[name]]
    spare = 8 - len(params)
    params += [0] * spare if rng.random() < 0.5 else [drawn(rng, "any") for _ in range(spare)]
    balances = drawn_balances(rng)
    if rng.random() < 0.2:
        # One of the numbers is exactly what an account has, or has together with another number,
        # or one beside it.
        numbers = [i for i, what in enumerate(PARAMETERS[name]) if what in ("amount", "limit")]
        edge = rng.choice(balances) + rng.choice((0, *params)) + rng.choice((-1, 0, 1))
        params[rng.choice(numbers)] = max(SMALLEST, min(LARGEST, edge))
    return params, balances


class Sandbox:
    """One binary in the transactor's sandbox, called on balances of its own."""

    def __init__(self, binary: bytes) -> None:
        limits = FunctionLimits()
        self._fuel = limits.fuel
        self._calls = CallState(1)
        self._sandbox = runtime_sandbox.Sandbox(self._calls.words, limits)
        self._function = compile_function(self._sandbox, binary, limits)

    def run(self, params: Sequence[int], balances: Sequence[int]) -> Outcome:
        held = np.array(balances, np.int64)
        call = call_once(self._sandbox, self._calls, self._function, params, held, self._fuel)
        assert not call.trap
        return Outcome(call.status, call.entries, held.tolist())

    def close(self) -> None:
        self._function.close()
        self._sandbox.close()
