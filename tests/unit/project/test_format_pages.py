"""The tables of `docs/wal-format.md` and `docs/snapshot-format.md` are those of the code."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.bus.transaction import derived_entries
from tallybus.common.files import Storage
from tallybus.common.memory import CHUNK_ACCOUNTS
from tallybus.common.record import RECORD_DTYPE, SYSTEM_ACCOUNT, Kind, Reason, Status
from tallybus.common.snapshot.balances import FrozenBalances, write_frozen
from tallybus.common.snapshot.format import SnapshotFields
from tests.support.folders import DOCS

PAGE = (DOCS / "wal-format.md").read_text("utf-8")
SIZES = {"u8": 1, "u32": 4, "u64": 8}


def section(heading: str) -> str:
    found = re.search(rf"^### {heading}$(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/wal-format.md lacks {heading}"
    return found[1]


def rows(text: str, first: str) -> list[list[str]]:
    """Cells of the table whose first column is called so."""
    table = text[re.search(rf"^\| {first} \|", text, re.MULTILINE).start() :].split("\n\n")[0]  # type: ignore[union-attr]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def test_every_field_of_a_record_has_its_place() -> None:
    told = {
        name.replace(" ", "_"): (int(at), int(size), kind)
        for at, size, kind, name, _ in rows(section("Records"), "offset")
    }
    fields = RECORD_DTYPE.fields
    assert fields is not None
    kinds = {size: kind for kind, size in SIZES.items()}
    assert told == {
        name: (place[1], place[0].itemsize, kinds[place[0].itemsize])
        for name, place in fields.items()
    }


def test_every_kind_is_told() -> None:
    told = {int(number): name for number, name, *_ in rows(section("Records"), "kind")}
    assert told == {kind.value: kind.name for kind in Kind}


@pytest.mark.parametrize("kind", [Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER])
def test_giver_and_taker_are_where_the_page_says(kind: Kind) -> None:
    record = np.zeros(1, RECORD_DTYPE)[0]
    record["kind"], record["entry_count"] = kind, 2
    record["account"], record["counterparty"], record["amount"] = 11, 22, 300
    credit, debit = derived_entries(record)
    (row,) = (row for row in rows(section("Records"), "kind") if row[0] == str(kind.value))
    places = {
        "account 0": SYSTEM_ACCOUNT,
        "the field `account`": 11,
        "the field `counterparty`": 22,
    }
    assert (credit["account"], credit["amount"]) == (places[row[2]], -300)
    assert (debit["account"], debit["amount"]) == (places[row[3]], 300)


def test_every_status_is_told() -> None:
    told = {int(row[0]): row[1] for row in rows(section("Statuses"), "status") if row[0].isdigit()}
    assert told == {status.value: status.name for status in Status}


def test_every_reason_is_told() -> None:
    told = {int(row[0]): row[1] for row in rows(section("Statuses"), "reason")}
    assert told == {reason.value: reason.name for reason in Reason}


def test_the_program_that_reads_a_snapshot_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    balances = np.zeros((2, CHUNK_ACCOUNTS), np.int64)
    balances[0, 0], balances[0, 7], balances[1, 1] = -50, 30, 20
    frozen = FrozenBalances(np.array([0, 2], np.uint64), balances)
    path = write_frozen(Storage(), tmp_path, SnapshotFields(1, 2, 100, 1, 0), frozen)
    page = (DOCS / "snapshot-format.md").read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.setattr(sys, "argv", ["read.py", str(path)])
    exec(compile(program, "docs/snapshot-format.md", "exec"), {})  # noqa: S102
    expected = f"0 -50\n7 30\n{2 * CHUNK_ACCOUNTS + 1} 20\n"
    assert capsys.readouterr().out == expected
