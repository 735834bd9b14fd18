"""The log service on a disk that fails: fatal, explained, and nothing acknowledged that is lost."""

import errno
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from tallybus import Client
from tallybus.common.errors import EXIT_STORAGE
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import STOP_ORDER
from tests.processes.acknowledged import (
    ACCOUNTS,
    Load,
    assert_all_on_disk,
    blocks_of,
    last_on_disk,
)
from tests.processes.pipeline import (
    PATIENCE_S,
    assert_balances,
    eventually,
    make_settings,
)
from tests.processes.services import Services, Up, log_lines
from tests.support.faulty_storage import Fault

SEGMENT = 150
"""Small, so that segments are changed all the time."""


@dataclass(frozen=True)
class Case:
    """A fault, and the file that the message has to name."""

    fault: Fault
    file: str
    then: Fault | None = None

    def __str__(self) -> str:
        fault = self.then or self.fault
        short = f" after {self.fault.keep} bytes" if self.then else ""
        more = " and on" if fault.forever else ""
        return f"{fault.operation} {fault.nth}{more}: {errno.errorcode[fault.error]}{short}"

    def asked(self, armed: str) -> dict[str, Any]:
        faults = [asdict(fault) for fault in (self.fault, self.then) if fault is not None]
        return {"faults": faults, "armed": armed}

    @property
    def told(self) -> tuple[str, str, str]:
        """File, operation and errno as the message names them."""
        fault = self.then or self.fault
        return self.file, fault.operation, errno.errorcode[fault.error]


WHILE_RUNNING = [
    Case(Fault("write", 2, errno.EIO, forever=True), "wal.bin"),
    Case(Fault("write", 4, keep=50), "wal.bin", Fault("write", 5, errno.ENOSPC)),
    Case(Fault("write", 9, keep=130), "wal.bin", Fault("write", 10, errno.EIO)),
    Case(Fault("fdatasync", 1, errno.EIO), "wal.bin"),
    Case(Fault("fdatasync", 2, errno.EIO, forever=True), "wal.bin"),
    Case(Fault("fdatasync", 7, errno.ENOSPC), "wal.bin"),
    Case(Fault("rename", 1, errno.EIO), "wal.bin"),
    Case(Fault("rename", 2, errno.ENOSPC), "wal.new"),
    Case(Fault("open", 1, errno.ENOSPC), "wal.new"),
    Case(Fault("open", 2, errno.EIO), "data"),
    Case(Fault("fsync", 1, errno.EIO), "wal.new"),
    Case(Fault("fsync_folder", 2, errno.EIO), "data"),
    Case(Fault("fsync_folder", 3, errno.EIO), "data"),
]
"""What fails when the service has recovered and is under load. Names of the operations in
`FaultyStorage`: making wal.new is an open that creates; folders are opened to be synced."""

WHILE_STARTING = [
    Case(Fault("write", 2, errno.ENOSPC), "wal.lock"),
    Case(Fault("open", 3, errno.EIO), "wal_000001.bin"),
    Case(Fault("fsync", 1, errno.EIO), "wal_000001.bin"),
    Case(Fault("fsync_folder", 1, errno.EIO), "data"),
    Case(Fault("fdatasync", 1, errno.EIO), "wal.bin"),
]
"""What fails when the service recovers a log that has closed segments."""


def names(case: Case, text: str) -> bool:
    """Whether the last line of the log tells the file, the operation and the error."""
    line = log_lines(text)[-1]
    file, operation, error = case.told
    operation = "(?:create|open|lock)" if operation == "open" else operation
    found = re.search(rf"{operation} of (\S+) failed: .*\({error}\)", str(line["message"]))
    return line["level"] == "error" and found is not None and Path(found[1]).name == file


def test_every_fault_ends_the_log_service_and_the_next_one_goes_on_from_the_disk(
    tmp_path: Path,
) -> None:
    """The other four keep running: what was not durable is sent again to each new log service."""
    settings = make_settings(
        tmp_path / "data",
        ledger__transactions_per_segment=SEGMENT,
        ledger__snapshot_frequency=1_000,
        ledger__max_accounts=1_000,
    )
    with Services(tmp_path) as services, Load(settings.gateway.endpoint, seed=1) as load:
        services.start_all(settings, but=("wal",))
        for case in WHILE_RUNNING:
            before = len(load.acknowledged)
            wal = services.start("wal", settings, faults=case.asked("ready"))
            assert wal.wait() == EXIT_STORAGE, f"{case}:\n{wal.text}"
            assert names(case, wal.text), f"{case}:\n{wal.text}"
            # Nobody writes to the log now, and nobody can have been told more than is on disk.
            told = load.acknowledged[before:]
            last = last_on_disk(settings)
            assert all(each.result.tx_ids.max() <= last for each in told), case
        for case in WHILE_STARTING:
            wal = services.start("wal", settings, faults=case.asked("start"))
            assert wal.wait() == EXIT_STORAGE, f"{case}:\n{wal.text}"
            assert names(case, wal.text), f"{case}:\n{wal.text}"
            assert not wal.said("started")
            assert last_on_disk(settings) == last
        # Writes that are only short are finished, and no error.
        short = Case(Fault("write", 1, keep=77, forever=True), "")
        wal = services.start("wal", settings, faults=short.asked("start"))
        load.goes_on(20)
        assert wal.stop() == 0, wal.text
        assert last_on_disk(settings) > last
        services.start("wal", settings)
        load.goes_on()
        load.finish()
        assert not load.errors, "every client got its answer in the end"
        log = assert_all_on_disk(settings, load)
        assert len(log.records) > 3 * SEGMENT
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            assert_balances(client, log.oracle, ACCOUNTS, len(log.records))
        services.stop(*STOP_ORDER)


# --- all five, as `tallybus up` runs them -----------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "data", ledger__max_accounts=1_000)


def assert_explained(up: Up, file: str, operation: str, error: str, service: str = "wal") -> None:
    """`tallybus up` has ended because of the service's disk, once, and says so."""
    told = [line for line in up.lines if line["level"] == "error"]
    reason, verdict = told
    assert reason["stage"] == service
    assert re.search(rf"{operation} of \S*{file} failed: .*\({error}\)", reason["message"])
    assert verdict["message"] == "a service cannot go on, stopping all"
    assert (verdict["service"], verdict["code"]) == (service, EXIT_STORAGE)
    assert not up.said("a service died and is started again")
    assert "Traceback" not in up.text
    up.assert_nothing_left()


def assert_goes_on(settings: Settings, folder: Path, *loads: Load) -> None:
    """A start on a disk without faults has everything that was acknowledged, and takes more."""
    with Up(settings, folder) as up, Load(settings.gateway.endpoint, seed=9) as more:
        up.wait_up()
        more.goes_on()
        more.finish()
        log = assert_all_on_disk(settings, *loads, more)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            assert_balances(client, log.oracle, ACCOUNTS, len(log.records))
        assert up.stop() == 0
        assert not any(
            line["level"] in ("warning", "error") for line in up.lines if line["message"] != TORN
        )


TORN = "cut off a torn tail"


def test_up_stops_as_a_whole_when_the_disk_fails_and_starts_again_without_loss(
    settings: Settings, tmp_path: Path
) -> None:
    case = Case(Fault("write", 30, keep=200), "wal.bin", Fault("write", 31, errno.EIO))
    with Up(settings, tmp_path, faults=case.asked("ready")) as up:
        up.wait_up()
        with Load(settings.gateway.endpoint, seed=2, timeout=1) as load:
            assert up.wait() == EXIT_STORAGE
        assert_explained(up, *case.told)
    assert load.acknowledged
    last = last_on_disk(settings)
    assert_all_on_disk(settings, load)
    assert_goes_on(settings, tmp_path, load)
    assert last_on_disk(settings) > last


@contextmanager
def injected(pid: int, call: str, error: str, when: int, report: Path) -> Iterator[None]:
    """Failures of real system calls of a running process. Skips where strace may not do that."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace; the same faults were injected in the storage layer")
    command = [strace, "-f", "-p", str(pid), "-o", str(report), "-e", f"trace={call}"]
    with subprocess.Popen(
        [*command, "-e", f"inject={call}:error={error}:when={when}+"],
        stderr=subprocess.PIPE,
        text=True,
    ) as tracer:
        try:
            assert tracer.stderr is not None
            line = tracer.stderr.readline()
            if "attached" not in line:
                pytest.skip(
                    f"strace cannot attach ({line.strip()}); "
                    "the same faults were injected in the storage layer"
                )
            yield
        finally:
            tracer.terminate()


def test_system_calls_that_fail_are_the_same_to_it(
    settings: Settings, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    report = tmp_path / "strace"
    with (
        Up(settings, tmp_path) as up,
        Load(settings.gateway.endpoint, seed=3, timeout=1) as load,
    ):
        up.wait_up()
        with injected(up.services()["wal"], "fdatasync", "EIO", 20, report):
            record_property("injected by", "strace")
            assert up.wait() == EXIT_STORAGE
        load.break_off()
        assert_explained(up, "wal.bin", "fdatasync", "EIO")
        assert re.search(r"fdatasync\(.* EIO .*\(INJECTED\)", report.read_text())
    assert load.acknowledged
    assert_all_on_disk(settings, load)


def test_a_disk_that_fails_at_the_very_end_is_told_too(settings: Settings, tmp_path: Path) -> None:
    """The last sync of a clean stop fails: nobody may take that stop for clean."""
    switch = tmp_path / "disk fails"
    case = Case(Fault("fdatasync", 1, errno.EIO, forever=True), "wal.bin")
    with (
        Up(settings, tmp_path, faults=case.asked(str(switch))) as up,
        Load(settings.gateway.endpoint, seed=5) as load,
    ):
        up.wait_up()
        load.goes_on()
        load.finish()
        wal = settings.ledger.data / "wal.bin"
        eventually(
            lambda: blocks_of(settings)[-1].is_marker and not load.errors, "the log is at rest"
        )
        size = wal.stat().st_size
        switch.touch()
        assert up.stop() == EXIT_STORAGE
        assert wal.stat().st_size <= size
        assert_explained(up, *case.told)
    assert_all_on_disk(settings, load)


def test_a_snapshot_that_cannot_be_written_stops_the_ledger_and_takes_nothing_with_it(
    tmp_path: Path,
) -> None:
    settings = make_settings(
        tmp_path / "data", ledger__max_accounts=1_000, ledger__transactions_per_segment=200
    )
    case = Case(Fault("fsync", 1, errno.ENOSPC), "snapshot_000001.bin.tmp")
    with Up(settings, tmp_path, faulty="snapshotter", faults=case.asked("ready")) as up:
        up.wait_up()
        with Load(settings.gateway.endpoint, seed=6, timeout=1) as load:
            assert up.wait() == EXIT_STORAGE
        assert_explained(up, *case.told, service="snapshotter")
    assert_all_on_disk(settings, load)
    assert not list(settings.ledger.data.glob("snapshot_*"))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own with 8 MiB. Skips where none can be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(
            f"cannot mount a small disk ({done.stderr.strip()}); "
            "a full one was injected in the storage layer"
        )
    try:
        yield folder
    finally:
        # Whatever still has a file open there lets go of it when it ends.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_stops_the_ledger_until_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        data = disk / "data"
        filler = disk / "filler"
        settings = make_settings(data, ledger__max_accounts=1_000, bus__run_folder=tmp_path / "run")
        filler.write_bytes(bytes(7 << 20))
        with Up(settings, tmp_path) as up, Load(settings.gateway.endpoint, 4, timeout=1) as load:
            up.wait_up()
            load.goes_on()
            with filler.open("ab", buffering=0) as file, suppress(OSError):
                while file.write(bytes(4096)):
                    # Until nothing is left but what the log's last page has room for.
                    continue
            assert up.wait() == EXIT_STORAGE
            load.break_off()
            assert_explained(up, "wal.bin", "write", "ENOSPC")
        assert load.acknowledged
        log = assert_all_on_disk(settings, load)
        # Still no room: it does not go on for long, and says so again instead of trying in a loop.
        with Up(settings, tmp_path) as up, Load(settings.gateway.endpoint, 7, timeout=1) as again:
            assert up.wait() == EXIT_STORAGE
            again.break_off()
            assert re.search(rf"{disk}\S* failed: .*\(ENOSPC\)", up.text)
            assert not up.said("a service died and is started again")
            up.assert_nothing_left()
        assert len(assert_all_on_disk(settings, load, again).records) >= len(log.records)
        filler.unlink()
        assert_goes_on(settings, tmp_path, load, again)
