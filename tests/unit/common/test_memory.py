"""Arrays for limits that are far above what is used: what they take, and where they cannot be."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.errors import EXIT_SETTINGS
from tallybus.common.memory import DENSE_BYTES, NoRoom, account_array, lazy_zeros
from tallybus.common.settings.sections import SETTINGS
from tests.support.folders import PROJECT

MIB = 1 << 20
MOST_ACCOUNTS = SETTINGS["ledger.max_accounts"].maximum
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at the Linux kernel's files")


def flags_of(array: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> set[str]:
    """What the kernel knows of the memory of an array."""
    address = array.ctypes.data
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and ":" not in head:
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= address < high
        elif inside and head == "VmFlags:":
            return set(line.split()[1:])
    raise AssertionError("the array is nowhere")


def test_items_are_zeros_that_can_be_written() -> None:
    array = lazy_zeros(1_000_000, np.int64)
    assert array.shape == (1_000_000,)
    assert not array.any()
    array[999_999] = -7
    assert array.sum() == -7
    assert array.ctypes.data % resource.getpagesize() == 0
    assert lazy_zeros(0, np.uint8).size == 0


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="there are no huge pages here"
)
def test_huge_pages_are_for_what_is_dense() -> None:
    assert "hg" in flags_of(lazy_zeros(MIB, np.int64, huge=True))
    # Not only not asked for: some systems give them unasked.
    assert "nh" in flags_of(lazy_zeros(MIB, np.int64))
    assert "hg" in flags_of(account_array(DENSE_BYTES // 8, fast=True))
    assert "nh" in flags_of(account_array(DENSE_BYTES // 8 + 1, fast=True))
    assert "nh" in flags_of(account_array(1_000_000))


SPARSE = """
import json, sys
from pathlib import Path
import numpy as np
from tallybus.common.record import RECORD_DTYPE, Kind
from tallybus.common.snapshot.balances import SnapshotFields, load_latest_snapshot
from tallybus.common.files import Storage
from tallybus.services.snapshotter.read_state import ReadState
from tallybus.services.transactor.engine import Engine
from tests.support.snapshots import write_snapshot

def resident():
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024

def of(array):
    address, inside, total = array.ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and ":" not in head:
            low, high = (int(part, 16) for part in head.split("-"))
            inside = low <= address < high
        elif inside and head == "Rss:":
            total += int(line.split()[1]) * 1024
    return total

limit = int(sys.argv[1])
folder = Path(sys.argv[2])
accounts = np.random.default_rng(1).integers(1, limit, 1_000).astype(np.uint64)
accounts[0] = limit - 1
records = np.zeros(1_000, RECORD_DTYPE)
records["kind"], records["amount"], records["account"] = Kind.DEPOSIT, 5, accounts
engine = Engine(limit, 1_000, 1)
executed = engine.execute(records, 1)
state = ReadState(limit, 1_000)
state.apply(executed.batch)
told = {"failed": len(executed.failures), "engine": of(engine.balances)}
told["state"] = of(state.balances)
told["balance"] = int(state.get_balances(np.array([limit - 1], np.uint64))[0])
frozen = state.freeze()
fields = SnapshotFields(1, 1, 1_000, 1_000, 1)
write_snapshot(Storage(), folder, fields, state.balances, state.touched)
snapshot, _ = load_latest_snapshot(folder, cluster_id=1, transactions_per_segment=1_000,
    max_accounts=limit, durable_index=1_000, fast=True)
told["snapshot"] = of(snapshot.balances)
print(json.dumps(told))
"""


def test_a_thousand_accounts_take_no_more_for_the_largest_limit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SPARSE, str(MOST_ACCOUNTS), str(tmp_path)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["failed"] == 0
    assert told["balance"] >= 5
    # A page each and a little, where huge pages would be 2 GB.
    assert told["engine"] < 8 * MIB
    assert told["state"] < 8 * MIB
    # A snapshot has chunks of 32 KiB.
    assert told["snapshot"] < 40 * MIB


LIMITED = """
import resource, sys
import tallybus.services.transactor.engine as module
from tallybus.common.memory import NoRoom
from tallybus.services.snapshotter.read_state import ReadState
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
for make in (
    lambda: module.Engine(2**32, 1_000, 1),
    lambda: ReadState(2**32, 1_000),
    lambda: module.Engine(1_000, 2**31, 1),
):
    try:
        make()
    except NoRoom as error:
        print(error.setting, error.exit_code, error.restart, error)
"""


def test_where_even_the_addresses_are_missing_the_setting_is_named_for_good() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    named = [line.split()[:3] for line in lines]
    accounts = ["ledger.max_accounts", str(EXIT_SETTINGS), "False"]
    assert named == [accounts, accounts, ["ledger.transactions_per_segment", *accounts[1:]]]
    assert "needs 34.4 GB of address space" in lines[0]
    assert "the process may have 8.6 GB, ulimit -v" in lines[0]


def test_what_no_system_can_give_is_an_error_of_ours() -> None:
    with pytest.raises(NoRoom, match=r"ledger\.max_accounts"):
        account_array(2**48)
