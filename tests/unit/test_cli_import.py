"""`import`: what it sends, in which order, what it reports, and what happens when it is cut off."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from wasmtime import wat2wasm

from tallybus import Ledger
from tallybus.cli import connect, imports, main
from tallybus.common.record import Level
from tallybus.errors import Timeout
from tests.unit.fake_ledger import FakeLedger

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "functions"
HEADER = "kind,account,amount,counterparty,user_ref\n"


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> FakeLedger:
    fake = FakeLedger()
    monkeypatch.setattr(connect, "open_client", fake.open)
    return fake


def run(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(main, ["import", *map(str, arguments)], input=given)


def write(folder: Path, text: str, name: str = "file.csv") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def report(done: Result) -> dict[str, object]:
    assert done.exit_code == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    assert isinstance(found.pop("seconds"), float)
    return found


def test_rows_are_executed_in_file_order(ledger: FakeLedger, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER + "deposit,1,100,,\ntransfer,1,60,2,\nwithdrawal,2,50,,\nwithdrawal,2,50,,\n",
    )
    assert report(run(path, "--json", "--batch", 1)) == {
        "rows": 4,
        "applied": 3,
        "rejected": {"INSUFFICIENT_FUNDS": 1},
        "duplicates": 0,
        "last_tx_id": 4,
    }
    assert ledger.sizes == [1, 1, 1, 1]
    assert set(ledger.levels) == {Level.COMMITTED}
    assert (ledger.balances[1], ledger.balances[2]) == (40, 10)


def test_a_second_import_applies_nothing(ledger: FakeLedger, tmp_path: Path) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\ndeposit,1,100,,\ndeposit,1,100,,77\n")
    assert report(run(path, "--json"))["applied"] == 3
    assert report(run(path, "--json", "--again")) == {
        "rows": 3,
        "applied": 0,
        "rejected": {},
        "duplicates": 3,
        "last_tx_id": 6,
    }
    assert ledger.balances[1] == 300


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "data", max_accounts=1_000) as opened:
        monkeypatch.setattr(connect, "open_client", lambda *_: nullcontext(opened))
        yield opened


@pytest.mark.parametrize("batch", [2, 16_384])
def test_calls_and_built_in_rows_are_executed_once_in_file_order(
    embedded: Ledger, tmp_path: Path, batch: int
) -> None:
    source = (EXAMPLES / "fee_transfer" / "fee_transfer.wat").read_text("utf-8")
    embedded.register_function("fee_transfer", bytes(wat2wasm(source)))
    path = write(
        tmp_path,
        "kind,account,amount,counterparty,user_ref,function,params\n"
        "function,,,,,fee_transfer,1 2 3 1000 50\n"
        "deposit,1,2000,,,,\n"
        "function,,,,77,fee_transfer,1 2 3 1000 50\n"
        "transfer,2,400,1,,,\n"
        "function,,,,,not_there,\n"
        "function,,,,,fee_transfer,1 2 3 -1 50\n",
    )
    first = report(run(path, "--json", "--batch", batch))
    assert (first["rows"], first["applied"], first["duplicates"]) == (6, 3, 0)
    assert first["rejected"] == {"INSUFFICIENT_FUNDS": 1, "INVALID_OPERATION": 1, "FUNCTION_128": 1}
    again = report(run(path, "--json", "--batch", batch, "--again"))
    assert (again["applied"], again["rejected"], again["duplicates"]) == (0, {}, 6)
    last = again["last_tx_id"]
    assert isinstance(last, int)
    balances = embedded.get_balances([0, 1, 2, 3], min_tx_id=last).balances
    assert balances.tolist() == [-2000, 2000 - 1005 + 400, 1000 - 400, 5]


def test_an_interrupted_import_is_finished_by_a_second_one(
    ledger: FakeLedger, tmp_path: Path
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n" * 10)
    ledger.failures[2] = Timeout("no answer", request="submit", level=None, seconds=1)
    done = run(path, "--batch", 2, "--json")
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == (
        "Error: no answer; rows 1 to 4 of 10 (line 5) are in the ledger; to go on: "
        f"tallybus import {path} --from-row 5 --again --batch 2 --json\n"
    )
    told = done.stderr.partition("to go on: tallybus ")[2]
    assert report(CliRunner().invoke(main, shlex.split(told))) | {"last_tx_id": 0} == {
        "rows": 6,
        "applied": 6,
        "rejected": {},
        "duplicates": 0,
        "last_tx_id": 0,
    }
    assert ledger.balances[1] == 1_000
    assert report(run(path, "--json", "--again"))["duplicates"] == 10
    assert ledger.balances[1] == 1_000


def test_going_on_from_a_row_sends_the_rest_with_the_same_refs(
    ledger: FakeLedger, tmp_path: Path
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n" * 10)
    assert report(run(path, "--from-row", 5, "--json"))["rows"] == 6
    assert report(run(path, "--json", "--again"))["duplicates"] == 6
    assert ledger.balances[1] == 1_000
    assert run(path, "--from-row", 11).exit_code == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("broken")])
def test_whatever_stops_an_import_tells_how_far_it_came(
    ledger: FakeLedger, tmp_path: Path, error: BaseException
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n" * 4)
    ledger.failures[1] = error
    done = run(path, "--batch", 2)
    assert done.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 5)
    assert "rows 1 to 2 of 4" in done.stderr
    other = write(tmp_path, HEADER + "deposit,2,100,,\n" * 4, "other.csv")
    ledger.failures[3] = error
    told = run(other, "--batch", 2).stderr
    assert "no row is known to be in the ledger" in told
    assert told.endswith(f"to go on: tallybus import {other} --again --batch 2\n")


def test_a_malformed_file_is_refused_before_anything_is_sent(
    ledger: FakeLedger, tmp_path: Path
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n" * 40_000 + "deposit,1,-1,,\n")
    done = run(path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == 'Error: line 40002, column 3 (amount): "-1" is negative\n'
    assert ledger.opened == []


def test_a_file_without_rows_needs_no_ledger(ledger: FakeLedger, tmp_path: Path) -> None:
    assert report(run(write(tmp_path, HEADER), "--json"))["rows"] == 0
    assert ledger.opened == []


def test_a_file_that_is_not_there_exits_2(ledger: FakeLedger, tmp_path: Path) -> None:
    done = run(tmp_path / "nothing.csv")
    assert done.exit_code == 2
    assert "No such file" in done.stderr
    assert run(tmp_path).exit_code in (2, 5)


def test_the_report_for_people_says_what_was_rejected(ledger: FakeLedger, tmp_path: Path) -> None:
    done = run(write(tmp_path, HEADER + "deposit,1,5,,\nwithdrawal,9,5,,\nwithdrawal,1,6,,\n"))
    assert done.exit_code == 0
    found = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:5])
    assert found == {
        "rows": "3",
        "applied": "1",
        "rejected": "2",
        "INSUFFICIENT_FUNDS": "2",
        "duplicates": "0",
    }
    assert "rejected some" in done.stderr


def test_standard_input_can_be_imported(ledger: FakeLedger) -> None:
    assert report(run("-", "--json", given="kind,account,amount\ndeposit,1,5\n"))["applied"] == 1


def test_batches_are_no_larger_than_the_gateway_takes(ledger: FakeLedger, tmp_path: Path) -> None:
    ledger.max_batch = 3
    run(write(tmp_path, HEADER + "deposit,1,100,,\n" * 7))
    assert ledger.sizes == [3, 3, 1]


def test_a_ledger_that_is_not_there_is_told_at_once(ledger: FakeLedger, tmp_path: Path) -> None:
    ledger.unreachable = Timeout("no answer", request="ping", level=None, seconds=5)
    done = run(write(tmp_path, HEADER + "deposit,1,100,,\n"))
    assert done.exit_code == 3
    assert "no answer" in done.stderr


def test_more_rows_than_the_window_holds_get_a_warning(
    ledger: FakeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "WINDOW_ROWS", 2)
    done = run(write(tmp_path, HEADER + "deposit,1,100,,\n" * 3), "--json")
    assert "--from-row" in done.stderr
    assert report(done)["applied"] == 3
