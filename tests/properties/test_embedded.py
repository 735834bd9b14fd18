"""The embedded ledger: the client's API over the services as threads, and the same files."""

import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tallybus import (
    Client,
    ClientClosed,
    Deposit,
    InvalidRequest,
    Ledger,
    Stage,
    Status,
    Timeout,
    Transfer,
    WaitLevel,
    Withdrawal,
    deposits,
    transfers,
)
from tallybus.common.errors import SettingsError
from tallybus.common.files import LockHeld
from tallybus.common.settings.sections import load
from tallybus.common.wal.reader import DamagedLog, ForeignLog
from tallybus.errors import TallybusError
from tests.processes.pipeline import (
    PATIENCE_S,
    blocks,
    environment,
    make_settings,
    pipeline_of,
    replay,
    tidy,
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(tmp_path / "data", max_accounts=1_000) as opened:
        yield opened


def test_it_is_a_client_with_all_its_methods(ledger: Ledger) -> None:
    assert isinstance(ledger, Client)
    assert ledger.submit(Deposit(1, 1_000, user_ref=42)) == 1
    result = ledger.submit_and_wait(Transfer(1, 2, 300), WaitLevel.SNAPSHOT)
    assert (result.tx_id, result.status, result.level, result.duplicate_of) == (
        2,
        Status.NONE,
        WaitLevel.SNAPSHOT,
        None,
    )
    assert ledger.get_balance(2).balance == 300
    again = ledger.submit_and_wait(Deposit(1, 1_000, user_ref=42))
    assert (again.status, again.tx_id, again.duplicate_of) == (Status.DUPLICATE, 1, 1)
    poor = ledger.submit_and_wait(Withdrawal(2, 301), WaitLevel.COMPUTED)
    assert poor.status == Status.INSUFFICIENT_FUNDS
    batch = ledger.submit_batch([Withdrawal(2, 300), Withdrawal(2, 1)], WaitLevel.SNAPSHOT)
    assert [each.tx_id for each in batch] == [5, 6]
    assert (batch.ok_count, batch.failed_count) == (1, 1)
    assert ledger.get_balances([0, 1, 2]).balances.tolist() == [-700, 700, 0]
    rows = ledger.get_statuses([3, 4, 5, 7], min_tx_id=6)
    assert [row.stage for row in rows] == [
        Stage.ERROR,
        Stage.ERROR,
        Stage.ON_SNAPSHOT,
        Stage.UNKNOWN,
    ]
    assert ledger.wait_for(6, WaitLevel.COMMITTED) >= WaitLevel.COMMITTED
    index = ledger.pipeline_index()
    assert (index.sequenced, index.computed, index.committed, index.snapshot) == (6, 6, 6, 6)
    info = ledger.gateway_info()
    assert (info.protocol, info.max_accounts) == (1, 1_000)
    pending = ledger.begin_batch(deposits([3] * 10, 1))
    assert pending.result(timeout=PATIENCE_S).ok_count == 10
    with pytest.raises(InvalidRequest):
        ledger.get_balance(1_000)
    with pytest.raises(Timeout):
        ledger.get_balance(1, min_tx_id=10_000, timeout=0.2)


def test_threads_share_it(ledger: Ledger) -> None:
    errors: list[Exception] = []

    def work(account: int) -> None:
        try:
            for number in range(1, 51):
                result = ledger.submit_and_wait(Deposit(account, 2), WaitLevel.COMPUTED)
                read = ledger.get_balance(account, min_tx_id=result.tx_id)
                assert read.balance == 2 * number
        except (TallybusError, AssertionError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(account,)) for account in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not errors, errors
    assert ledger.pipeline_index().sequenced == 400


def test_everything_is_there_after_closing_and_opening(tmp_path: Path) -> None:
    for number in range(1, 5):
        with Ledger.open(tmp_path / "data", transactions_per_segment=10) as ledger:
            first = ledger.submit_batch(deposits([number] * 8, 5)).first_tx_id
            assert first == (number - 1) * 8 + 1
            balances = ledger.get_balances(range(5), min_tx_id=number * 8).balances.tolist()
            earlier = [40 if account <= number else 0 for account in range(1, 5)]
            assert balances == [-40 * number, *earlier]
            assert ledger.pipeline_index().term == number


def test_closing_is_final_and_may_be_repeated(tmp_path: Path) -> None:
    before = threading.active_count()
    ledger = Ledger.open(tmp_path / "data")
    assert threading.active_count() > before
    pending = ledger.begin_batch(deposits([1], [5]), WaitLevel.SNAPSHOT)
    ledger.close()
    assert pending.result().ok_count == 1, "what was begun is finished first"
    ledger.close()
    assert threading.active_count() == before
    with pytest.raises(ClientClosed):
        ledger.get_balance(1)
    with Ledger.open(tmp_path / "data") as again:
        assert again.get_balance(1).balance == 5


def test_closing_without_waiting_leaves_a_whole_ledger(tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "data")
    ledger.submit_batch(deposits([1] * 100, 1))
    for _ in range(20):
        ledger.begin_batch(deposits([1] * 100, 1))
    ledger.close(wait=False)
    with Ledger.open(tmp_path / "data") as again:
        last = again.pipeline_index().committed
        assert last >= 100
        assert last % 100 == 0
        assert again.get_balances([0, 1], min_tx_id=last).balances.tolist() == [-last, last]


def test_two_ledgers_in_one_process_know_nothing_of_each_other(tmp_path: Path) -> None:
    with (
        Ledger.open(tmp_path / "a") as a,
        Ledger.open(tmp_path / "b") as b,
    ):
        a.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT)
        b.submit_and_wait(Deposit(1, 7), WaitLevel.SNAPSHOT)
        assert (a.get_balance(1).balance, b.get_balance(1).balance) == (5, 7)
        assert a.pipeline_index().sequenced == b.pipeline_index().sequenced == 1


# --- refusals -----------------------------------------------------------------------------------


def test_a_folder_that_is_open_is_refused_with_who_holds_it(ledger: Ledger, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(LockHeld) as held:
        Ledger.open(tmp_path / "data", max_accounts=1_000, start_timeout=PATIENCE_S)
    assert held.value.path == tmp_path / "data" / "wal.lock"
    assert str(os.getpid()) in held.value.holder
    assert threading.active_count() == before
    assert ledger.submit_and_wait(Deposit(1, 1)).ok, "the first one works on"


def test_a_folder_that_another_process_has_open_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom tallybus import Ledger\n"
        f"with Ledger.open({str(tmp_path / 'data')!r}):\n print('open', flush=True)\n"
        " sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(LockHeld, match=f"process {other.pid}"):
            Ledger.open(tmp_path / "data", start_timeout=PATIENCE_S)
        other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 0
    Ledger.open(tmp_path / "data").close()


def test_a_wrong_setting_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"ledger\.max_accounts"):
        Ledger.open(tmp_path / "data", max_accounts=1)
    with pytest.raises(SettingsError, match=r"ledger\.no_such_thing"):
        Ledger.open(tmp_path / "data", no_such_thing=1)
    assert not (tmp_path / "data").exists()


def filled(folder: Path) -> None:
    with Ledger.open(folder, transactions_per_segment=20) as ledger:
        for number in range(10):
            ledger.submit_batch(deposits([1 + number] * 5, 3))
        ledger.wait_for(50, WaitLevel.SNAPSHOT)


@pytest.mark.parametrize("name", ["wal.bin", "wal_000001.bin", "wal_000002.bin"])
def test_damage_is_raised_with_file_and_offset_and_nothing_is_changed(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    filled(folder)
    path = folder / name
    data = bytearray(path.read_bytes())
    # In the payload of a block in the middle: others before and behind it are whole.
    offset = [block.offset for block in blocks(path) if not block.is_marker][1]
    data[offset + 150] ^= 1
    path.write_bytes(data)
    before = {each.name: each.read_bytes() for each in folder.glob("wal*.bin")}
    threads = threading.active_count()
    with pytest.raises(DamagedLog) as damage:
        Ledger.open(folder, transactions_per_segment=20, start_timeout=PATIENCE_S)
    assert damage.value.path == path
    assert damage.value.offset == offset
    assert str(path) in str(damage.value)
    assert f"offset {offset}" in str(damage.value)
    assert {each.name: each.read_bytes() for each in folder.glob("wal*.bin")} == before
    assert threading.active_count() == threads
    # Repaired, it opens: the failed start holds no lock.
    data[offset + 150] ^= 1
    path.write_bytes(data)
    with Ledger.open(folder, transactions_per_segment=20) as ledger:
        assert ledger.get_balances([0, 1, 10], min_tx_id=50).balances.tolist() == [-150, 15, 15]


def test_a_missing_segment_is_raised(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    (tmp_path / "data" / "wal_000001.bin").unlink()
    with pytest.raises(DamagedLog, match=r"wal_000001\.bin"):
        Ledger.open(tmp_path / "data", transactions_per_segment=20, start_timeout=PATIENCE_S)


def test_another_segment_size_is_raised(tmp_path: Path) -> None:
    filled(tmp_path / "data")
    with pytest.raises(ForeignLog, match="20"):
        Ledger.open(tmp_path / "data", transactions_per_segment=21, start_timeout=PATIENCE_S)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_snapshots_are_passed_over(seed: int, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    filled(folder)
    snapshots = sorted(folder.glob("snapshot_*.bin"))
    assert snapshots
    random_ = random.Random(seed)
    for path in snapshots:
        data = bytearray(path.read_bytes())
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        path.write_bytes(data)
    with Ledger.open(folder, transactions_per_segment=20) as ledger:
        expected = [-150, *[15] * 10, 0]
        assert ledger.get_balances(range(12), min_tx_id=50).balances.tolist() == expected


# --- the same files -------------------------------------------------------------------------------


def test_embedded_and_processes_take_turns_on_one_folder(tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path / "data", ledger__transactions_per_segment=40, ledger__max_accounts=500
    )
    held = np.zeros(10, np.int64)
    last = 0

    def work(client: Client, seed: int) -> None:
        nonlocal last, held
        expected = client.get_balances(range(10), min_tx_id=last).balances
        assert expected.tolist() == held.tolist()
        random_ = np.random.default_rng(seed)
        refs = 1 + last + np.arange(30)
        client.submit_batch(
            deposits(random_.integers(1, 10, 30), random_.integers(1, 50, 30), refs)
        )
        # The references of those who had the folder before are known too.
        again = client.submit_batch(deposits([1] * 5, 1, refs[:5]))
        assert (again.statuses == Status.DUPLICATE).all()
        sources, targets = random_.integers(1, 10, (2, 15))
        client.submit_batch(transfers(sources, targets, random_.integers(1, 80, 15)))
        last += 50
        held = client.get_balances(range(10), min_tx_id=last).balances
        assert held.sum() == 0

    def embedded(seed: int) -> None:
        with Ledger.open(tmp_path / "data", settings=settings) as ledger:
            work(ledger, seed)

    def processes(seed: int) -> None:
        with pipeline_of(settings, tmp_path / "log") as pipeline, pipeline.client() as client:
            work(client, seed)

    turns: list[Callable[[int], None]] = [embedded, processes, embedded, embedded]
    for seed, turn in enumerate(turns):
        turn(seed)
    oracle = replay(settings, last).oracle
    assert held.tolist() == [oracle.balance(account) for account in range(10)]
    tidy(settings)


def test_a_folder_that_processes_have_open_is_refused(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data")
    with pipeline_of(settings, tmp_path / "log") as pipeline, pipeline.client() as client:
        with pytest.raises(LockHeld, match=f"process {pipeline.pids()['wal']}"):
            Ledger.open(tmp_path / "data", start_timeout=PATIENCE_S)
        assert client.submit_and_wait(Deposit(1, 1)).ok


def test_settings_may_be_given_as_a_whole(tmp_path: Path) -> None:
    settings = load(environ={}, overrides={"gateway.max_batch": 7})
    with Ledger.open(tmp_path / "data", settings=settings, max_accounts=9) as ledger:
        info = ledger.gateway_info()
        assert (info.max_batch, info.max_accounts) == (7, 9)
    assert settings.ledger.max_accounts != 9


@pytest.mark.parametrize("settings", [3, "data", ["ledger.max_accounts"], object()])
def test_settings_of_another_kind_are_refused_by_name(settings: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="settings must be a mapping") as caught:
        Ledger.open(tmp_path / "data", settings=settings)  # type: ignore[arg-type]
    assert caught.value.field == "settings"
    assert not (tmp_path / "data").exists()
