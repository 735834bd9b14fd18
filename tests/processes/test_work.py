"""Functions that would take all of the time, on real processes: nobody can stop the ledger."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from wasmtime import wat2wasm

from tallybus import Client, Deposit, Function, WaitLevel, function_calls
from tallybus.common.record import Reason, Status
from tallybus.common.settings.sections import Settings
from tests.processes import hostile
from tests.processes.pipeline import (
    PATIENCE_S,
    eventually,
    make_settings,
    pipeline_of,
    run_command,
)
from tests.processes.scraped import fetch, free_ports
from tests.processes.services import Services

EXECUTE = '(func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)'
EVIL = bytes(
    wat2wasm(
        f"(module (func $f) (elem declare func $f) {EXECUTE} (loop $l (drop (ref.func $f)) "
        "(drop (ref.func $f)) (br $l)) (i32.const 0)))"
    )
)
ENDLESS = bytes(wat2wasm(f"(module {EXECUTE} (loop $l (br $l)) (i32.const 0)))"))
GOOD = bytes(wat2wasm(f"(module {EXECUTE} (i32.const 0)))"))
EVERYTHING = 65_536


def flood(client: Client, name: str) -> int:
    """One request with as many calls as there may be; its first id."""
    empty = np.zeros((EVERYTHING, 1), np.int64)
    told = client.submit_batch(function_calls(name, empty), WaitLevel.NONE)
    return int(told.tx_ids[0])


def test_one_request_of_endless_calls_does_not_stop_the_ledger(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data")
    with pipeline_of(settings, tmp_path / "log") as pipeline, pipeline.client() as client:
        client.register_function("evil", EVIL)
        first = flood(client, "evil")
        began = time.monotonic()
        client.submit_and_wait(Deposit(1, 5), WaitLevel.COMMITTED)
        assert [each.name for each in client.list_functions()] == ["evil"]
        client.register_function("good", GOOD)
        assert time.monotonic() - began < 30, "it would take half an hour"
        statuses = client.get_statuses(range(first, first + EVERYTHING), first + EVERYTHING)
        found = Counter(statuses.statuses.tolist())
        assert set(found) == {Status.QUOTA_EXCEEDED, Status.NOT_RUN}
        assert found[Status.QUOTA_EXCEEDED] >= 1
        again = client.submit_and_wait(Function("good"), WaitLevel.SNAPSHOT)
        assert again.ok
        client.unregister_function("evil")


def test_a_transactor_that_is_killed_or_ended_in_the_middle_of_it_goes_on_at_once(
    tmp_path: Path,
) -> None:
    settings = make_settings(
        tmp_path / "data",
        functions__submit_ms=60_000,
        metrics__address="127.0.0.1",
        metrics__base_port=free_ports(),
    )
    with Services(tmp_path) as services:
        services.start_all(settings)
        transactor = services["transactor"]
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            client.register_function("endless", ENDLESS)
            first = flood(client, "endless")
            eventually(lambda: client.pipeline_index().computed > first + 3, "some were executed")
            assert _health(settings) == 200
            transactor.kill()
            transactor = services.start("transactor", settings)
            reached = client.pipeline_index().computed
            eventually(lambda: client.pipeline_index().computed > reached, "it goes on")
            assert _health(settings) == 200
            done = run_command(
                "function", "suspend", "endless", "--data", str(settings.ledger.data)
            )
            assert done.returncode == 0
            last = first + EVERYTHING - 1
            client.wait_for(last, WaitLevel.COMMITTED)
            rows = client.get_statuses([last]).statuses.tolist()
            assert rows == [Status.SUSPENDED]
            (info,) = client.list_functions()
            assert info.suspended
            assert info.reasons[Reason.STOPPED] > 0
            began = time.monotonic()
            assert transactor.stop() == 0
            assert time.monotonic() - began < 30


def test_a_suspended_function_stays_so_over_a_restart(tmp_path: Path) -> None:
    settings = make_settings(tmp_path / "data")
    suspend = partial(run_command, "function", "suspend", "--data", str(settings.ledger.data))
    with Services(tmp_path) as services, Client(settings.gateway.endpoint, timeout=60) as client:
        services.start_all(settings)
        client.register_function("good", GOOD)
        assert client.submit_and_wait(Function("good", user_ref=1), WaitLevel.COMMITTED).ok
        assert suspend("good").returncode == 0
        eventually(lambda: client.list_functions()[0].suspended, "it is suspended")
        result = client.submit_and_wait(Function("good", user_ref=2), WaitLevel.COMMITTED)
        assert result.status == Status.SUSPENDED
        services["transactor"].kill()
        services.start("transactor", settings)
        result = client.submit_and_wait(Function("good", user_ref=2), WaitLevel.COMMITTED)
        assert result.status == Status.SUSPENDED
        resume = run_command("function", "resume", "good", "--data", str(settings.ledger.data))
        assert resume.returncode == 0
        eventually(lambda: not client.list_functions()[0].suspended, "it runs again")
        result = client.submit_and_wait(Function("good", user_ref=2), WaitLevel.COMMITTED)
        assert result.ok, "the reference was never used up"


def _health(settings: Settings) -> int:
    return fetch(settings, "transactor", "/healthz")[0]


def test_hostile_functions_and_victims_are_measured_and_the_attack_is_suspended() -> None:
    """A slice of `python -m tests.processes.hostile`; how much is kept is measured there."""
    (outcome,) = hostile.measure(2.0, "64 calls a request")
    assert set(outcome.shares) == set(hostile.VICTIMS)
    assert min(outcome.shares.values()) > 0
    assert "QUOTA_EXCEEDED" in outcome.seen
    assert outcome.suspended_s is not None
