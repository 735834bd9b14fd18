"""A bank's transactions with the balance after each: the real file, or one made to be like it."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.folders import PROJECT

REAL_FILE: Final = PROJECT / "shared" / "data" / "czech_bank.csv"
"""23,185 transactions of 579 accounts; lies beside the project's folder where there is one."""
COLUMNS: Final = ("date", "kind", "account", "amount", "user_ref", "balance_after")
FIRST_DAY: Final = 19930101


@dataclass(frozen=True)
class BankFile:
    """A file in the bank's format, and what its last column says in the end."""

    path: Path
    rows: int
    balances: dict[int, int]

    @property
    def system_balance(self) -> int:
        """What account 0 must hold: the sum over all accounts is zero."""
        return -sum(self.balances.values())


def read_bank_file(path: Path) -> BankFile:
    """Last `balance_after` of every account."""
    balances: dict[int, int] = {}
    rows = 0
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            balances[int(row["account"])] = int(row["balance_after"])
            rows += 1
    return BankFile(path, rows, balances)


def write_bank_file(path: Path, *, accounts: int = 97, rows: int = 5_000, seed: int = 1) -> None:
    """Deposits and withdrawals of accounts that are never overdrawn, with running balances."""
    random_ = random.Random(seed)
    numbers = random_.sample(range(1, 20 * accounts), accounts)
    refs = random_.sample(range(1, 40 * rows), rows)
    balances: dict[int, int] = {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row, user_ref in enumerate(refs):
            account = random_.choice(numbers)
            held = balances.get(account, 0)
            if held and random_.random() < 0.45:
                # Now and then the whole balance: an account may come to exactly zero.
                amount = held if random_.random() < 0.05 else random_.randint(1, held)
                kind, balances[account] = "withdrawal", held - amount
            else:
                amount = random_.randint(1, 10_000_000)
                kind, balances[account] = "deposit", held + amount
            day = FIRST_DAY + row * 28 // rows
            writer.writerow((day, kind, account, amount, user_ref, balances[account]))


def bank_file(folder: Path) -> BankFile:
    """The real file where it is there, else one like it, made in `folder`."""
    if REAL_FILE.exists():
        return read_bank_file(REAL_FILE)
    path = folder / "bank.csv"
    write_bank_file(path)
    return read_bank_file(path)
