"""`import`: what it sends, in which order, what it reports, and what happens when it is cut off."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner, Result
from wasmtime import wat2wasm

from tallybus import Ledger
from tallybus.cli import connect, import_source, imports, main
from tallybus.common.record import Kind, Level, Status
from tallybus.common.settings.sections import load
from tallybus.errors import InvalidRequest, Overloaded, Timeout
from tallybus.operations import BatchResult, Operations, encode_operations
from tallybus.pipeline import GatewayInfo
from tests.support.folders import FUNCTION_EXAMPLES
from tests.unit.tallybus.cli.fake_ledger import FakeLedger

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
    source = (FUNCTION_EXAMPLES / "fee_transfer" / "fee_transfer.wat").read_text("utf-8")
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
    ledger.failures[1] = error
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


# -- duplicates ------------------------------------------------------------------------------------


def test_another_file_under_the_same_references_is_told_apart_from_success(
    ledger: FakeLedger, tmp_path: Path
) -> None:
    first = write(tmp_path, HEADER + "deposit,1,100,,1\ndeposit,1,100,,2\ndeposit,1,100,,3\n")
    other = write(tmp_path, HEADER + "deposit,9,1,,1\ndeposit,9,1,,2\ndeposit,9,1,,3\n", "o.csv")
    assert run(first).exit_code == 0
    done = run(other, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["duplicates"] == 3, "the report comes all the same"
    assert "nothing was applied: all 3 rows were duplicates" in done.stderr
    assert "other transactions have their references" in done.stderr
    assert "--again" in done.stderr
    assert ledger.balances[9] == 0


def test_some_duplicates_are_told_as_well(ledger: FakeLedger, tmp_path: Path) -> None:
    run(write(tmp_path, HEADER + "deposit,1,100,,1\n"))
    done = run(write(tmp_path, HEADER + "deposit,9,1,,1\ndeposit,9,1,,2\n"))
    assert done.exit_code == 1
    assert "1 of 2 rows was a duplicate and was not applied" in done.stderr
    assert ledger.balances[9] == 1


def test_a_second_run_says_so_and_is_a_success_when_it_was_meant(
    ledger: FakeLedger, tmp_path: Path
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n")
    assert run(path).exit_code == 0
    done = run(path)
    assert done.exit_code == 1
    words = "nothing was applied: the one row was a duplicate: this very content was sent"
    assert words in done.stderr
    done = run(path, "--again")
    assert done.exit_code == 0
    assert words in done.stderr
    assert ledger.balances[1] == 100


# -- what the ledger lets a client send ------------------------------------------------------------


class LimitedLedger(FakeLedger):
    """Takes `most` operations in a batch, none too early: each of `waits_ms` refuses one more."""

    def __init__(self, most: int, limit: str = "in_flight", told: int | None = None) -> None:
        super().__init__()
        self.most = most
        self.limit = limit
        self.told = most if told is None else told
        self.refused: list[int] = []
        self.waits_ms: list[int] = []

    def submit_batch(self, operations: Operations, wait: Level = Level.COMMITTED) -> BatchResult:
        count = len(operations)
        if self.waits_ms:
            raise Overloaded(
                "too fast",
                request="submit",
                attempts=1,
                limit="rate",
                allowed=self.told,
                retry_ms=self.waits_ms.pop(0),
            )
        if count > self.most:
            self.refused.append(count)
            raise InvalidRequest("too much", limit=self.limit, allowed=self.told)
        return super().submit_batch(operations, wait)


def use(monkeypatch: pytest.MonkeyPatch, ledger: FakeLedger) -> None:
    monkeypatch.setattr(connect, "open_client", ledger.open)


@pytest.mark.parametrize(
    ("limit", "told"), [("in_flight", 3), ("message_bytes", 3 * 40 + 512), ("new_one", 3)]
)
def test_batches_shrink_to_what_a_refusal_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, told: int
) -> None:
    ledger = LimitedLedger(3, limit, told)
    use(monkeypatch, ledger)
    done = run(write(tmp_path, HEADER + "deposit,1,100,,\n" * 10), "--json")
    assert report(done)["applied"] == 10
    assert max(ledger.sizes) <= 3
    assert ledger.balances[1] == 1_000
    assert done.stderr.count("beyond what this client may send") == 1


def test_an_import_gets_through_a_rate_by_waiting_as_long_as_the_ledger_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = LimitedLedger(100, told=4)
    ledger.waits_ms = [1, 1, 20]
    use(monkeypatch, ledger)
    done = run(write(tmp_path, HEADER + "deposit,1,100,,\n" * 10), "--json")
    assert report(done)["applied"] == 10
    assert ledger.sizes == [4, 4, 2]


def test_the_limits_that_a_ping_tells_are_kept_from_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = LimitedLedger(3)
    info = SimpleNamespace(max_batch=100, limits={"in_flight": 3, "rate": 0, "other": 1})
    monkeypatch.setattr(ledger, "gateway_info", lambda **_: info)
    use(monkeypatch, ledger)
    done = run(write(tmp_path, HEADER + "deposit,1,100,,\n" * 7), "--json")
    assert report(done)["applied"] == 7
    assert (ledger.sizes, ledger.refused) == ([3, 3, 1], [])


def test_a_row_that_is_too_large_alone_ends_the_import(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, LimitedLedger(0))
    done = run(write(tmp_path, HEADER + "deposit,1,100,,\n" * 4))
    assert done.exit_code == 2
    assert "too much; no row is known to be in the ledger" in done.stderr


class BusyLedger(FakeLedger):
    """Runs `most` calls of a submit, and tells NOT_RUN of those behind them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.ran: list[tuple[str, int]] = []

    def gateway_info(self, *, timeout: float | None = None) -> GatewayInfo:
        return SimpleNamespace(max_batch=100, revision=1)  # type: ignore[return-value]

    def submit_batch(self, operations: Operations, wait: Level = Level.COMMITTED) -> BatchResult:
        encoded = encode_operations(operations)
        params = np.frombuffer(encoded.params, "<i8").reshape(-1, 8)
        statuses = np.zeros(len(encoded.records), np.uint8)
        calls = 0
        for row, record in enumerate(encoded.records):
            if record["kind"] != Kind.FUNCTION:
                self.ran.append(("deposit", int(record["account"])))
                continue
            if calls >= self.most:
                statuses[row] = Status.NOT_RUN
            else:
                name = encoded.names[int(record["function"])]
                self.ran.append((name, int(params[calls, 0])))
            calls += 1
        self.sizes.append(len(encoded.records))
        first = len(self.statuses) + 1
        self.statuses.extend(statuses.tolist())
        ids = np.arange(first, first + len(statuses), dtype=np.uint64)
        return BatchResult(first, ids, statuses, wait, np.zeros(len(ids), np.uint64))


def calls_file(folder: Path, rows: int) -> Path:
    return write(
        folder,
        "kind,account,amount,function,params\n"
        + "".join(f"function,,,f{row % 3},{row}\n" for row in range(1, rows + 1))
        + "deposit,77,1,,\n",
    )


def test_calls_that_the_ledger_did_not_run_are_sent_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = BusyLedger(4)
    use(monkeypatch, ledger)
    done = run(calls_file(tmp_path, 30), "--json")
    assert report(done) | {"last_tx_id": 0} == {
        "rows": 31,
        "applied": 31,
        "rejected": {},
        "duplicates": 0,
        "last_tx_id": 0,
    }
    calls = [each for each in ledger.ran if each[0] != "deposit"]
    assert calls == [(f"f{row % 3}", row) for row in range(1, 31)]


def test_calls_that_the_ledger_never_runs_are_rejected_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ledger = BusyLedger(0)
    use(monkeypatch, ledger)
    done = run(calls_file(tmp_path, 3), "--json")
    assert report(done)["rejected"] == {"NOT_RUN": 3}
    assert report(done)["applied"] == 1


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("append", "it has grown, from line 20002"),
        ("cut", "it was cut off in line"),
        ("edit", "or one that follows, behind byte 196608, is another one now"),
        ("replace", "the file was replaced by another one while it was read"),
        ("remove", "the file was replaced by another one while it was read"),
    ],
)
def test_a_file_that_changes_while_it_is_read_is_refused_with_where(
    ledger: FakeLedger,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    words: str,
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n" * 20_000)
    parse = imports.parse_csv

    def parse_csv(blocks: Iterator[bytes], *more: object) -> object:
        def changing() -> Iterator[bytes]:
            yield from blocks
            if change == "append":
                path.write_text(path.read_text("utf-8") + "deposit,1,100,,\n", "utf-8")
            elif change == "cut":
                os.truncate(path, 100_000)
            elif change == "edit":
                with path.open("r+b") as file:
                    file.seek(200_000)
                    file.write(b"9")
            elif change == "replace":
                other = write(tmp_path, path.read_text("utf-8"), "other.csv")
                other.replace(path)
            else:
                path.unlink()

        return parse(changing(), *more)  # type: ignore[arg-type]

    monkeypatch.setattr(imports, "parse_csv", parse_csv)
    done = run(path)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "nothing was sent" in done.stderr
    assert ledger.opened == []


def test_a_half_written_row_is_told_as_a_change_not_as_a_mistake(
    ledger: FakeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\ndepo")
    read = import_source.Source.blocks

    def blocks(self: import_source.Source) -> Iterator[bytes]:
        yield from read(self)
        with path.open("a", encoding="utf-8") as file:
            file.write("sit,1,100,,\n")

    monkeypatch.setattr(import_source.Source, "blocks", blocks)
    done = run(path)
    assert done.exit_code == 2
    assert "changed while it was read: it has grown, from line 3 (behind byte" in done.stderr


def test_a_file_that_is_only_touched_is_imported(
    ledger: FakeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n")
    read = import_source.Source.blocks

    def blocks(self: import_source.Source) -> Iterator[bytes]:
        yield from read(self)
        os.utime(path, (1, 1))

    monkeypatch.setattr(import_source.Source, "blocks", blocks)
    assert run(path).exit_code == 0


def test_who_is_interrupted_is_warned_of_a_file_that_has_changed_since(
    ledger: FakeLedger, tmp_path: Path
) -> None:
    path = write(tmp_path, HEADER + "deposit,1,100,,\n" * 4)

    class Changing(Timeout):
        def __init__(self) -> None:
            super().__init__("no answer", request="submit", level=None, seconds=1)

        def __str__(self) -> str:
            path.write_text(HEADER, "utf-8")
            return super().__str__()

    ledger.failures[1] = Changing()
    done = run(path, "--batch", 2)
    assert done.exit_code == 3
    assert "rows 1 to 2 of 4" in done.stderr
    assert "has changed since it was read. Restore it before you go on" in done.stderr
    assert "to go on: tallybus" not in done.stderr


def test_a_pipe_can_be_imported(ledger: FakeLedger, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    text = HEADER + "deposit,1,100,,\n" * 20_000
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    assert report(run(pipe, "--json"))["applied"] == 20_000
    writer.join()


def test_a_delimiter_may_be_given(ledger: FakeLedger, tmp_path: Path) -> None:
    path = write(tmp_path, "kind~account~amount\ndeposit~1~5\n")
    assert run(path).exit_code == 2
    assert report(run(path, "--delimiter", "~", "--json"))["applied"] == 1
    semicolons = write(tmp_path, '"kind";"account";"amount"\n"deposit";"1";"5"\n')
    for given in ([], ["--delimiter", ";"], ["--delimiter", "semicolon", "--again"]):
        assert json.loads(run(semicolons, *given, "--json").stdout)["rows"] == 1
    for wrong in ("comma-separated", "a", '"', ""):
        assert run(path, "--delimiter", wrong).exit_code == 2


def test_a_packed_file_is_told_with_the_files_own_name(ledger: FakeLedger, tmp_path: Path) -> None:
    path = tmp_path / "my file.csv.gz"
    path.write_bytes(gzip.compress(HEADER.encode()))
    done = run(path)
    assert done.exit_code == 2
    assert f"gunzip -c '{path}' | tallybus import -" in done.stderr


def test_an_import_gets_through_the_limits_of_a_real_gateway(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    limits = {"gateway.client_in_flight": 100, "gateway.client_rate": 1_000}
    settings = load(environ={}, overrides=limits)
    with Ledger.open(tmp_path / "data", settings=settings) as opened:
        monkeypatch.setattr(connect, "open_client", lambda *_: nullcontext(opened))
        done = run(write(tmp_path, HEADER + "deposit,1,100,,\n" * 1_500), "--json")
        assert report(done)["applied"] == 1_500


SLOW = """(module (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)
  (local $n i32) (local.set $n (i32.const 50000))
  (loop $l (local.set $n (i32.sub (local.get $n) (i32.const 1))) (br_if $l (local.get $n)))
  (i32.const 0)))"""


def test_calls_beyond_a_real_ledgers_budget_are_all_run_in_the_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load(environ={}, overrides={"functions.submit_ms": 1})
    text = "kind,account,amount,function\n" + "function,,,slow\n" * 200 + "deposit,1,5,\n"
    with Ledger.open(tmp_path / "data", settings=settings) as opened:
        opened.register_function("slow", bytes(wat2wasm(SLOW)))
        info = SimpleNamespace(max_batch=16_384, revision=1)
        monkeypatch.setattr(opened, "gateway_info", lambda **_: info)
        monkeypatch.setattr(connect, "open_client", lambda *_: nullcontext(opened))
        done = run(write(tmp_path, text), "--json")
        found = report(done)
        assert (found["applied"], found["rejected"]) == (201, {})
        assert found["last_tx_id"] != 202, "some were not run at first"
        assert opened.list_functions()[0].calls >= 200
