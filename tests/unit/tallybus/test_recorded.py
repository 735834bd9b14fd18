"""A call of the log, made again: with what the log has, on the balances of then, and only read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tallybus.cli import main
from tallybus.common.batch import Batch
from tallybus.common.functions.binaries import binary_path
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Reason, Status
from tallybus.common.snapshot.balances import AccountLimitTooLow, prune_snapshots, snapshot_path
from tallybus.common.wal.reader import ACTIVE_NAME, DamagedLog, closed_path
from tallybus.recorded import BinaryMissing, NoRecordedCall, differences, recorded_call
from tallybus.services.transactor.outcome import Outcome
from tallybus.trials import TriedModule, trial_limits
from tests.support.example_functions import binary_path as example_path
from tests.support.function_modules import TRAPS, crc_of, module, to_binary
from tests.support.written_ledger import WrittenLedger

FEE = example_path("fee_transfer", "wat").read_bytes()
OVERDRAFT = example_path("overdraft", "wat").read_bytes()
LIMIT = 100


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def ledger(folder: Path) -> Iterator[WrittenLedger]:
    made = WrittenLedger(folder)
    yield made
    made.close()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["function", "test", *map(str, arguments)])


def again(folder: Path, tx_id: int, binary: bytes | None = None) -> list[str]:
    """What a call made again does otherwise."""
    recorded = recorded_call(folder, tx_id, LIMIT)
    given = recorded.binary() if binary is None else binary
    with TriedModule(given, trial_limits(max_accounts=LIMIT)) as tried:
        trial = tried.call_on(recorded.params, recorded.balances)
    return [each.what for each in differences(recorded, trial)]


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_recorded_call_ends_as_it_did(ledger: WrittenLedger, folder: Path) -> None:
    ledger.register("fee", FEE)
    ledger.register("trap", to_binary(TRAPS["division by zero"].text))
    ledger.deposit(1, 1_000)
    calls = [
        ledger.call("fee", (1, 2, 3, 100, 50), (1, 2, 3, 10_000, 50), (1, 2, 3, -5)),
        ledger.call("trap", (7,)),
        ledger.call("fee", (1, 2, 3, 899, 0), (1, 2, 3, 1, 0)),
        ledger.call("fee", (LIMIT, 2, 3, 1)),
    ]
    first, trap, rest, far = calls
    for tx_id in (first, first + 1, first + 2, trap, rest, rest + 1, far):
        assert again(folder, tx_id) == []
    found = recorded_call(folder, first, LIMIT)
    assert found.function is not None
    assert (found.function.name, found.function.version) == ("fee", 1)
    assert (found.crc32c, found.params) == (crc_of(FEE), (1, 2, 3, 100, 50))
    assert found.balances[:4].tolist() == [-1_000, 1_000, 0, 0]
    # Within a batch each call finds what those before it left, and those that failed left nothing.
    assert recorded_call(folder, rest + 1, LIMIT).balances[1] == 1
    assert recorded_call(folder, rest + 1, LIMIT).status == Status.NONE
    assert recorded_call(folder, trap, LIMIT).status == Status.INVALID_OPERATION
    assert recorded_call(folder, far, LIMIT).status == Status.ACCOUNT_LIMIT_EXCEEDED


def test_the_binary_of_then_runs(ledger: WrittenLedger, folder: Path) -> None:
    ledger.register("pay", FEE)
    ledger.deposit(1, 1_000)
    before = ledger.call("pay", (1, 2, 3, 100, 50))
    ledger.register("pay", OVERDRAFT, override=True)
    after = ledger.call("pay", (1, 2, 100, 50))
    ledger.register("pay", b"")
    assert again(folder, before) == []
    assert again(folder, after) == []
    assert recorded_call(folder, before, LIMIT).binary() == FEE
    ran = recorded_call(folder, after, LIMIT).function
    assert ran is not None
    assert (ran.version, ran.crc32c) == (2, crc_of(OVERDRAFT))


@pytest.mark.parametrize("snapshots", [(), (1,), (1, 2), (2,), (1, 2, 3)])
def test_balances_come_from_the_newest_snapshot_before_it(
    tmp_path: Path, snapshots: tuple[int, ...]
) -> None:
    folder = tmp_path / "data"
    ledger = WrittenLedger(folder, per_segment=10)
    ledger.register("fee", FEE)
    calls = []
    for segment in (1, 2, 3):
        ledger.deposit(1, 100)
        calls.append(ledger.call("fee", (1, 2, 3, 50)))
        ledger.fill_segment()
        if segment in snapshots:
            ledger.snapshot()
    calls.append(ledger.call("fee", (1, 2, 3, 10)))
    ledger.close()
    for tx_id, money in zip(calls, (100, 150, 200, 150), strict=True):
        recorded = recorded_call(folder, tx_id, LIMIT)
        assert recorded.balances[1] == money
        assert recorded.function is not None
        assert again(folder, tx_id) == []
    if snapshots:
        # What a snapshot has need not be read again, nor be whole.
        path = closed_path(folder, snapshots[-1])
        path.write_bytes(path.read_bytes()[:-8])
        assert recorded_call(folder, calls[3], LIMIT).balances[1] == 150


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    ledger = WrittenLedger(folder, per_segment=10)
    ledger.register("fee", FEE)
    ledger.deposit(1, 100)
    ledger.fill_segment()
    ledger.snapshot()
    call = ledger.call("fee", (1, 2, 3, 50))
    ledger.close()
    path = snapshot_path(folder, 1)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert again(folder, call) == []


def test_nothing_is_written_and_a_running_ledger_is_not_disturbed(
    ledger: WrittenLedger, folder: Path
) -> None:
    ledger.register("fee", FEE)
    ledger.deposit(1, 1_000)
    call = ledger.call("fee", (1, 2, 3, 100))
    before = everything(folder)  # its log stage holds the folder's lock
    assert run("--tx", call, "--data", folder, "--max-accounts", LIMIT).exit_code == 0
    assert everything(folder) == before
    os.chmod(folder, 0o500)
    try:
        assert run("--tx", call, "--data", folder, "--max-accounts", LIMIT).exit_code == 0
    finally:
        os.chmod(folder, 0o700)
    # It goes on where it was.
    assert again(folder, ledger.call("fee", (1, 2, 3, 5))) == []


def test_a_ledger_that_goes_on_writing_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    ledger = WrittenLedger(folder, per_segment=6)
    ledger.register("fee", FEE)
    ledger.deposit(1, 10**9)
    calls = [ledger.call("fee", (1, 2, 3, 10, 50))]
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            calls.append(ledger.call("fee", (1, 2, 3, 10, 50)))
            ledger.deposit(1, 1)
            if (ledger.engine.next_id - 1) % ledger.per_segment == 0:
                ledger.snapshot()
                prune_snapshots(ledger.storage, folder, 2)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with TriedModule(FEE, trial_limits(max_accounts=LIMIT)) as tried:
            rounds = 0
            while rounds < 20 or ledger.log.segment < 6:
                rounds += 1
                recorded = recorded_call(folder, calls[-1], LIMIT)
                trial = tried.call_on(recorded.params, recorded.balances)
                assert differences(recorded, trial) == []
                with pytest.raises(NoRecordedCall, match="goes up to transaction"):
                    recorded_call(folder, calls[-1] + 10**6, LIMIT)
    finally:
        ended.set()
        writer.join()
        ledger.close()


def test_a_tail_that_is_torn_or_being_written_is_no_error(
    ledger: WrittenLedger, folder: Path
) -> None:
    ledger.register("fee", FEE)
    ledger.deposit(1, 1_000)
    calls = [ledger.call("fee", (1, 2, 3, 10)) for _ in range(3)]
    active = folder / ACTIVE_NAME
    whole = active.read_bytes()
    end = len(whole)
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    last = None
    for length in range(end, end - 400, -24):
        (copy / ACTIVE_NAME).write_bytes(whole[:length] + b"\0" * (end - length))
        assert recorded_call(copy, calls[0], LIMIT).params == (1, 2, 3, 10)
        (copy / ACTIVE_NAME).write_bytes(whole[:length])
        assert recorded_call(copy, calls[0], LIMIT).params == (1, 2, 3, 10)
        with pytest.raises(NoRecordedCall, match=r"goes up to transaction \d+$") as caught:
            recorded_call(copy, calls[-1] + 1, LIMIT)
        last = int(caught.value.reason.split()[-1])
        assert calls[0] <= last <= calls[-1]
    assert last is not None
    assert last < calls[-1]
    assert again(copy, calls[0]) == []


@pytest.mark.parametrize("which", ["before it", "its own"])
def test_damage_is_told_with_its_place(ledger: WrittenLedger, folder: Path, which: str) -> None:
    ledger.register("fee", FEE)
    ledger.deposit(1, 1_000)
    call = ledger.call("fee", (1, 2, 3, 10))
    for _ in range(3):
        ledger.deposit(1, 1)
    path = folder / ACTIVE_NAME
    content = bytearray(path.read_bytes())
    run_of = recorded_call(folder, call, LIMIT)
    wanted = np.array(run_of.params, "<i8").tobytes()
    place = content.index(wanted)
    if which == "before it":
        place = content.index(np.array([1_000], "<u8").tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedLog, match="offset"):
        recorded_call(folder, call, LIMIT)


def test_what_is_no_call_says_what_it_is(ledger: WrittenLedger, folder: Path) -> None:
    registration = ledger.register("fee", FEE)
    deposit = ledger.deposit(1, 1_000)
    first = ledger.call("fee", (1, 2, 3, 10), user_ref=5)
    twice = ledger.call("fee", (1, 2, 3, 10), user_ref=5)
    nothing = ledger.call("nothing", (1, 2))
    for tx_id, words in (
        (registration, "it is FUNCTION_REGISTERED"),
        (deposit, "it is DEPOSIT"),
        (twice, f"duplicate of transaction {first}"),
        (nothing + 1, f"goes up to transaction {nothing}"),
        (10**6, f"goes up to transaction {nothing}"),
        (2**63, f"goes up to transaction {nothing}"),
        (2**64 - 1, f"goes up to transaction {nothing}"),
    ):
        done = run("--tx", tx_id, "--data", folder, "--max-accounts", LIMIT)
        assert (done.exit_code, done.stdout) == (5, "")
        assert words in done.stderr
        assert f"transaction {tx_id} cannot be called again" in done.stderr
    with pytest.raises(NoRecordedCall, match="no function of that name was registered"):
        recorded_call(folder, nothing, LIMIT).binary()
    done = run("--tx", nothing, "--data", folder, "--max-accounts", LIMIT)
    assert (done.exit_code, done.stdout) == (5, "")


def test_a_folder_without_a_log_is_told(tmp_path: Path) -> None:
    done = run("--tx", 1, "--data", tmp_path)
    assert (done.exit_code, done.stdout) == (5, "")
    assert f"there is no log in {tmp_path}" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = run("--tx", 1, "--set", f"ledger.data={tmp_path / 'nowhere'}")
    assert done.exit_code != 0
    assert str(tmp_path / "nowhere") in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["missing", "another"])
def test_a_missing_binary_is_named(ledger: WrittenLedger, folder: Path, how: str) -> None:
    ledger.register("fee", FEE)
    call = ledger.call("fee", (1, 2, 3, 10))
    path = binary_path(folder, "fee", 1)
    path.unlink()
    if how == "another":
        path.write_bytes(OVERDRAFT)
    with pytest.raises(BinaryMissing, match=f"fee version 1, CRC-32C {crc_of(FEE):08x}") as caught:
        recorded_call(folder, call, LIMIT).binary()
    assert (caught.value.path, caught.value.tx_id) == (path, call)
    # Who has it can give it.
    assert again(folder, call, FEE) == []


def test_a_limit_of_accounts_that_is_too_low_is_told(tmp_path: Path) -> None:
    ledger = WrittenLedger(tmp_path / "data", per_segment=10)
    ledger.register("fee", FEE)
    ledger.deposit(60, 100)
    ledger.fill_segment()
    ledger.snapshot()
    call = ledger.call("fee", (60, 2, 3, 50))
    ledger.close()
    with pytest.raises(AccountLimitTooLow):
        recorded_call(tmp_path / "data", call, 50)


def test_another_module_shows_what_it_would_have_done(
    ledger: WrittenLedger, folder: Path, tmp_path: Path
) -> None:
    ledger.register("pay", OVERDRAFT)
    ledger.deposit(1, 1_000)
    call = ledger.call("pay", (1, 2, 100, 50))
    failed = ledger.call("pay", (2, 1, 1_000, 50))
    ledger.call("pay", (1, 2, 900))
    at = ("--data", folder, "--max-accounts", LIMIT)
    same = tmp_path / "same.wat"
    same.write_text(
        module(
            "(call $credit (local.get $a) (local.get $c)) (call $debit (local.get $b) "
            "(local.get $c)) (i32.const 0)"
        ),
        "utf-8",
    )
    done = run(same, "--tx", call, *at)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "called       another module" in done.stdout
    assert "in the log   the same" in done.stdout
    done = run(same, "--tx", failed, *at, "--json")
    assert done.exit_code == 1
    shown = json.loads(done.stdout)
    assert (shown["status"], shown["recorded"]["status"]) == ("NONE", "FUNCTION_130")
    assert (shown["same"], shown["differences"]) == (False, ["status", "entries"])
    assert shown["balances"] == [
        {"account": 1, "balance": 1_900},
        {"account": 2, "balance": -900},
    ]
    assert "status OK, not FUNCTION_130" in done.stderr


def test_the_same_call_in_json(ledger: WrittenLedger, folder: Path) -> None:
    ledger.register("fee", FEE)
    ledger.deposit(1, 1_000)
    call = ledger.call("fee", (1, 2, 3, 100, 100))
    done = run("--tx", call, "--data", folder, "--max-accounts", LIMIT, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    entries = [
        {"account": 1, "direction": "CREDIT", "amount": 101},
        {"account": 2, "direction": "DEBIT", "amount": 100},
        {"account": 3, "direction": "DEBIT", "amount": 1},
    ]
    crc = f"{crc_of(FEE):08x}"
    assert shown.pop("fuel_used") > 10
    assert shown == {
        "tx_id": call,
        "function": "fee",
        "version": 1,
        "crc32c": crc,
        "params": [1, 2, 3, 100, 100],
        "status": "NONE",
        "reason": None,
        "returned": 0,
        "fuel_limit": 1_000_000,
        "trap": None,
        "entries": entries,
        "balances": [
            {"account": 1, "balance": 899},
            {"account": 2, "balance": 100},
            {"account": 3, "balance": 1},
        ],
        "recorded": {"status": "NONE", "reason": None, "crc32c": crc, "entries": entries},
        "same": True,
        "differences": [],
    }


def test_a_rejected_call_that_is_the_same_exits_0(ledger: WrittenLedger, folder: Path) -> None:
    ledger.register("fee", FEE)
    call = ledger.call("fee", (1, 2, 3, 100))
    done = run("--tx", call, "--data", folder, "--max-accounts", LIMIT)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "status       INSUFFICIENT_FUNDS" in done.stdout


def test_a_quota_that_was_another_is_told(ledger: WrittenLedger, folder: Path) -> None:
    ledger.register("fee", FEE)
    call = ledger.call("fee", (1, 2, 3, 100))
    at = ("--tx", call, "--data", folder, "--max-accounts", LIMIT)
    done = run(*at, "--set", "functions.fuel_by_name=fee=2")
    assert done.exit_code == 1
    assert "status QUOTA_EXCEEDED, not INSUFFICIENT_FUNDS" in done.stderr
    assert "--fuel" in done.stderr
    assert run(*at, "--set", "functions.fuel_by_name=other=2").exit_code == 0


def logged(
    ledger: WrittenLedger,
    status: int,
    reason: int = 0,
    params: tuple[int, ...] = (),
    entries: tuple[tuple[int, int], ...] = (),
    *,
    ran: bool = True,
) -> int:
    """A call as it stands in a log that another version wrote."""
    live = ledger.registrar.registry.live("f")
    assert live is not None
    record = np.zeros(1, RECORD_DTYPE)
    record["kind"], record["status"], record["reason"] = Kind.FUNCTION, status, reason
    record["amount"], record["entry_count"] = len(params), len(entries)
    if ran:
        record["function"], record["account"] = live.crc32c, live.transaction_id
    return ledger.write(
        Outcome(
            Batch(
                1,
                record,
                params=np.array(params, np.int64),
                entries=np.array(list(entries), ENTRY_DTYPE),
            ),
            np.empty(0, np.void),
        )
    )


RETURN = module("(i32.wrap_i64 (local.get $a))")


@pytest.mark.parametrize(
    ("returned", "status", "reason", "otherwise"),
    [
        (42, 42, 0, []),  # once it was the function's own
        (42, 43, 0, ["status"]),
        (42, Status.INVALID_OPERATION, 0, []),
        (42, Status.INVALID_OPERATION, Reason.BAD_RETURN, []),
        (42, Status.INVALID_OPERATION, Reason.TRAP, ["reason"]),
        (42, Status.INVALID_OPERATION, 31, ["reason"]),
        (300, Status.INVALID_OPERATION, 0, []),
        (130, 131, 0, ["status"]),
        (0, Status.NOT_RUN, Reason.WORK, ["status"]),
        (11, 11, 0, []),
        (0, Status.SUSPENDED, Reason.INTERRUPTED, ["status"]),
    ],
)
def test_statuses_of_other_versions_are_compared_by_what_they_mean(
    ledger: WrittenLedger,
    folder: Path,
    returned: int,
    status: int,
    reason: int,
    otherwise: list[str],
) -> None:
    ledger.register("f", to_binary(RETURN))
    call = logged(ledger, status, reason, (returned,))
    assert again(folder, call) == otherwise
    done = run("--tx", call, "--data", folder, "--max-accounts", LIMIT)
    assert done.exit_code == bool(otherwise)
    if status == returned and not reason:
        assert f"{returned} was the function's own status then" in done.stdout
    if status in (Status.NOT_RUN, Status.SUSPENDED) and reason:
        assert "the ledger did not run" in done.stderr
        assert Status(status).name in done.stderr


def test_other_entries_are_shown_beside_those_of_the_log(
    ledger: WrittenLedger, folder: Path
) -> None:
    ledger.register("f", to_binary(RETURN))
    call = logged(ledger, 0, 0, (0,), ((5, -7), (6, 7)))
    assert again(folder, call) == ["entries"]
    done = run("--tx", call, "--data", folder, "--max-accounts", LIMIT)
    assert done.exit_code == 1
    assert "entries in the log\naccount\tcredit\tdebit\n5\t7\t\n6\t\t7\n" in done.stdout


def test_a_call_that_was_not_run_and_names_no_binary_needs_a_module(
    ledger: WrittenLedger, folder: Path
) -> None:
    ledger.register("f", to_binary(RETURN))
    call = logged(ledger, Status.NOT_RUN, Reason.WORK, (0,), ran=False)
    with pytest.raises(NoRecordedCall, match="did not run it"):
        recorded_call(folder, call, LIMIT).binary()
    assert again(folder, call, to_binary(RETURN)) == ["status"]


def test_a_call_of_a_registration_that_is_none_is_refused(
    ledger: WrittenLedger, folder: Path
) -> None:
    ledger.register("f", to_binary(RETURN))
    call = logged(ledger, 0)
    ledger.registrar.registry.live("f")
    record = np.zeros(1, RECORD_DTYPE)
    record["kind"], record["function"], record["account"] = Kind.FUNCTION, 5, 1
    wrong = ledger.write(Outcome(Batch(1, record), np.empty(0, np.void)))
    assert again(folder, call) == []
    with pytest.raises(NoRecordedCall, match="00000005"):
        recorded_call(folder, wrong, LIMIT)


def test_the_log_is_told_as_it_is_read(ledger: WrittenLedger, folder: Path) -> None:
    ledger.register("fee", FEE)
    ledger.deposit(1, 10, 500)
    call = ledger.call("fee", (1, 2, 3, 100))
    told: list[tuple[int, int]] = []
    recorded_call(folder, call, LIMIT, lambda done, total: told.append((done, total)))
    assert told
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 500 * 40
