"""Functions over restarts: with damaged or missing files, and with other limits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tallybus import Client, Deposit, Function, InvalidFunction, Status, WaitLevel
from tallybus.common.errors import EXIT_DAMAGED
from tallybus.common.stages import START_ORDER
from tests.processes.pipeline import PATIENCE_S, eventually, make_settings, pipeline_of
from tests.processes.registration_kills import binary_of
from tests.processes.registry import Registry, registry
from tests.processes.services import Services, Up
from tests.support.example_functions import binary_path
from tests.support.hostile import making

pytestmark = pytest.mark.usefixtures("threads_end")


SMALL = {
    "ledger__transactions_per_segment": 10,
    "ledger__snapshot_frequency": 1,
    "ledger__snapshots_kept": 3,
    "ledger__max_accounts": 1_000,
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Registry]:
    """A ledger that was stopped: functions that are live, replaced, unregistered and registered
    again, some of them in the snapshots and some only in the log."""
    folder = tmp_path_factory.mktemp("functions")
    settings = make_settings(folder / "data", **SMALL)
    with (
        pipeline_of(settings, folder / "services.log") as pipeline,
        pipeline.client() as client,
    ):
        client.register_function("a", binary_of(1))
        client.register_function("a", binary_of(2), override=True)
        client.register_function("b", binary_of(1))
        client.unregister_function("b")
        client.register_function("large", making.of_size(50_000))
        for amount in range(1, 31):
            client.submit_and_wait(Function("a", (amount,)), WaitLevel.SNAPSHOT)
        client.register_function("c", binary_of(3))
        client.unregister_function("c")
        client.register_function("c", binary_of(4))
        client.register_function("memory", making.wat(TWO_MEBIBYTES))
        found = registry(client)
    assert [row[:2] for row in found] == [("a", 2), ("c", 3), ("large", 1), ("memory", 1)]
    return settings.ledger.data, found


TWO_MEBIBYTES = f"(module (memory 32) {making.EXECUTE} (i32.const 0)))"


def flip(path: Path, offset: int = -2) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern))


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        path.unlink()


PASSED_OVER: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda _: None, ""),
    "no snapshots": (lambda data: remove(data, "*snapshot_*"), ""),
    "no function snapshots": (
        lambda data: remove(data, "function_snapshot_*"),
        "function_snapshot_",
    ),
    "the newest is damaged": (
        lambda data: flip(newest(data, "function_snapshot_*.bin")),
        "function_snapshot_",
    ),
    "its sidecar is gone": (
        lambda data: newest(data, "function_snapshot_*.crc").unlink(),
        "function_snapshot_",
    ),
    "balances are damaged": (lambda data: flip(newest(data, "snapshot_*.bin"), 80), "snapshot_"),
    "files that nothing names": (
        lambda data: [
            (data / "functions" / name).write_bytes(b"rubbish")
            for name in ("b_v3.wasm", "a_v3.wasm.tmp", "other_v1.wasm")
        ],
        "",
    ),
}


@pytest.mark.parametrize("what", PASSED_OVER)
def test_the_registry_is_the_same_after_a_restart_whatever_snapshots_there_are(
    what: str, stopped: tuple[Path, Registry], tmp_path: Path
) -> None:
    folder, expected = stopped
    spoil, told = PASSED_OVER[what]
    data = tmp_path / "data"
    shutil.copytree(folder, data, ignore=shutil.ignore_patterns("run", "*.lock"))
    spoil(data)
    there = [str(path) for path in data.glob("*.bin")]
    settings = make_settings(data, **SMALL)
    with Services(tmp_path) as services:
        for kill in (False, True):
            if kill:
                for stage in START_ORDER:
                    services[stage].kill()
            # The snapshotter replaces what is damaged: the transactor reads it before.
            services.start("wal", settings)
            transactor = services.start("transactor", settings)
            eventually(partial(transactor.said, "recovered"), "the transactor recovers")
            services.start_all(settings, but=("wal", "transactor"))
            with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
                assert registry(client) == expected
                for name, status in (("a", 0), ("b", 5), ("c", 0), ("other", 5)):
                    result = client.submit_and_wait(Function(name, (1,)), WaitLevel.SNAPSHOT)
                    assert result.status == status
                # An old call still says what ran.
                first = client.get_transaction(6)
                assert (first.function_name, first.function_version) == ("a", 2)
            reasons = [line["reason"] for line in transactor.lines if line["level"] == "warning"]
            assert kill or bool(reasons) == bool(told)
            for reason in reasons:
                # One that was being written when its service was killed may have no sidecar yet.
                unfinished = "its sidecar" in reason and not any(path in reason for path in there)
                assert told in reason or (kill and unfinished)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            assert client.register_function("b", binary_of(7)).version == 3
            assert client.register_function("a", binary_of(8), override=True).version == 3
        assert not list((data / "functions").glob("*.tmp"))


REFUSED_FILES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("a_v2.wasm", Path.unlink),
    "of an old version missing": ("a_v1.wasm", Path.unlink),
    "changed": ("c_v3.wasm", flip),
    "of an old version truncated": (
        "c_v1.wasm",
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
    ),
    "empty": ("large_v1.wasm", lambda path: path.write_bytes(b"")),
    "of an unregistration missing": ("b_v2.wasm", Path.unlink),
    "of an unregistration not empty": ("b_v2.wasm", lambda path: path.write_bytes(b"x")),
    "a folder": ("a_v1.wasm", lambda path: (path.unlink(), path.mkdir())),
}


@pytest.mark.parametrize("what", REFUSED_FILES)
def test_without_the_very_binaries_the_transactor_does_not_start_and_names_the_file(
    what: str, stopped: tuple[Path, Registry], tmp_path: Path
) -> None:
    name, spoil = REFUSED_FILES[what]
    data = tmp_path / "data"
    shutil.copytree(stopped[0], data, ignore=shutil.ignore_patterns("run", "*.lock"))
    before = (data / "functions" / name).read_bytes()
    spoil(data / "functions" / name)
    settings = make_settings(data, **SMALL)
    function, _, version = name.removesuffix(".wasm").partition("_v")
    with Services(tmp_path) as services:
        log, transactor = (services.start(stage, settings) for stage in ("wal", "transactor"))
        assert transactor.wait() == EXIT_DAMAGED
        message = str(transactor.lines[-1]["message"])
        assert f"version {version} of the function {function} " in message
        assert str(data / "functions" / name) in message
        assert "Traceback" not in transactor.text
        assert log.running
        if what not in ("missing", "a folder"):
            return
        # Restored, it goes on.
        path = data / "functions" / name
        if path.is_dir():
            path.rmdir()
        path.write_bytes(before)
        services.start_all(settings, but=("wal",))
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            assert registry(client) == stopped[1]


def test_a_ledger_whose_binary_is_missing_stops_as_a_whole_and_says_why(
    stopped: tuple[Path, Registry], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(stopped[0], data, ignore=shutil.ignore_patterns("run", "*.lock"))
    (data / "functions" / "a_v2.wasm").unlink()
    with Up(make_settings(data, **SMALL), tmp_path) as up:
        assert up.wait() == EXIT_DAMAGED
        assert str(data / "functions" / "a_v2.wasm") in up.text
        assert not up.said("a service died and is started again")
        up.assert_nothing_left()


def test_a_function_that_no_longer_fits_into_the_limits_stops_no_start(
    stopped: tuple[Path, Registry], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(stopped[0], data, ignore=shutil.ignore_patterns("run", "*.lock"))
    lowered = make_settings(
        data,
        **SMALL,
        functions__memory_mib=1,
        functions__max_functions=1,
        functions__binaries_mib=1,
    )
    with Services(tmp_path) as services:
        services.start_all(lowered)
        with Client(lowered.gateway.endpoint, timeout=PATIENCE_S) as client:
            found = {each.name: each.unusable for each in client.list_functions()}
            assert registry(client) == stopped[1]
            unusable = [name for name, why in found.items() if why]
            assert unusable
            assert len(unusable) < len(found)
            for name, why in found.items():
                assert not why or "bytes of memory" in why
                status = client.submit_and_wait(Function(name)).status
                assert (status == Status.SUSPENDED) == bool(why)
    settings = make_settings(data, **SMALL)
    with Services(tmp_path) as services:
        services.start_all(settings)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            assert registry(client) == stopped[1]
            assert not any(each.unusable for each in client.list_functions())


def test_limits_of_the_settings_hold_for_registrations_and_calls(tmp_path: Path) -> None:
    settings = make_settings(
        tmp_path / "data",
        ledger__max_accounts=1_000,
        functions__max_functions=2,
        functions__memory_mib=1,
        functions__fuel=1_000,
        functions__fuel_by_name="patient=1000000",
    )
    loop = making.function(
        "(loop $l (local.set 0 (i64.sub (local.get 0) (i64.const 1))) "
        "(br_if $l (i64.gt_s (local.get 0) (i64.const 0)))) (i32.const 0)"
    )
    with pipeline_of(settings, tmp_path / "log") as pipeline, pipeline.client() as client:
        with pytest.raises(InvalidFunction, match="memory"):
            client.register_function("memory", making.wat(TWO_MEBIBYTES))
        client.register_function("hasty", loop)
        client.register_function("patient", loop)
        with pytest.raises(InvalidFunction, match="max_functions"):
            client.register_function("third", loop)
        client.register_function("hasty", loop, override=True)
        for name, turns, status in (
            ("hasty", 10, Status.NONE),
            ("hasty", 1_000, Status.QUOTA_EXCEEDED),
            ("patient", 1_000, Status.NONE),
            ("patient", 10**9, Status.QUOTA_EXCEEDED),
        ):
            assert client.submit_and_wait(Function(name, (turns,))).status == status
        client.unregister_function("hasty")
        client.register_function("third", loop)


def test_a_fee_transfer_is_made_once_however_often_and_over_whatever_restart_it_is_sent(
    tmp_path: Path,
) -> None:
    settings = make_settings(tmp_path / "data", ledger__max_accounts=100)
    with Services(tmp_path) as services:
        services.start_all(settings)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            client.register_function("fee", binary_path("fee_transfer", "as").read_bytes())
            client.submit_and_wait(Deposit(1, 10_000))
            call = Function("fee", (1, 2, 3, 1_000, 50), user_ref=77)
            first = client.submit_and_wait(call, WaitLevel.COMMITTED)
            refused = Function("fee", (4, 2, 3, 1_000, 50), user_ref=78)
            assert client.submit_and_wait(refused, WaitLevel.COMMITTED).status == 1
            for stages in (("transactor",), ("gateway",), START_ORDER):
                for stage in stages:
                    services[stage].kill()
                for stage in stages:
                    services.start(stage, settings)
                again = client.submit_and_wait(call, WaitLevel.SNAPSHOT)
                assert (again.status, again.duplicate_of) == (Status.DUPLICATE, first.tx_id)
                # Replaced or gone, the reference is used up all the same.
                client.register_function("fee", binary_of(1), override=True)
                again = client.submit_and_wait(refused, WaitLevel.SNAPSHOT)
                assert again.status == Status.DUPLICATE
                client.unregister_function("fee")
                again = client.submit_and_wait(call, WaitLevel.SNAPSHOT)
                assert (again.status, again.duplicate_of) == (Status.DUPLICATE, first.tx_id)
                client.register_function("fee", binary_path("fee_transfer", "wat").read_bytes())
            assert client.get_balances([1, 2, 3]).balances.tolist() == [8_995, 1_000, 5]
