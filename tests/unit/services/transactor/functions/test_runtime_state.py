"""No call sees what another one left, and nothing is left behind in the process."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tallybus.common.record import Status
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions import selftest, wasm_engine
from tallybus.services.transactor.functions.runtime import FunctionsUnavailable
from tests.support.folders import PROJECT
from tests.support.function_modules import (
    EMPTY,
    FEE_TRANSFER,
    MANY,
    SCRIPT,
    START_MOVES,
    STATES,
    TRAPS,
    install,
    module,
    to_binary,
)
from tests.support.oracle import call
from tests.unit.services.transactor.functions.engines import (
    ACCOUNTS,
    MOVE,
    RETURN,
    repeat,
    run,
    statistics,
    statuses,
)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("name", STATES)
def test_nothing_that_a_call_wrote_is_seen_by_a_later_one(engine: Engine, name: str) -> None:
    install(engine, "state", STATES[name].text)
    install(engine, "move", MOVE)
    operations = [call("state"), call("state"), call("move", 1, 2, 1), call("state")]
    assert statuses(engine, *operations) == [129, 129, 0, 129]
    assert statuses(engine, *operations) == [129, 129, 0, 129]


def test_nothing_of_a_call_that_trapped_is_seen_either(engine: Engine) -> None:
    text = module(
        "(if (global.get $n) (then (return (i32.const 200))))"
        "(global.set $n (i32.const 1)) unreachable",
        "(global $n (mut i32) (i32.const 0))",
    )
    install(engine, "state", text)
    assert statuses(engine, call("state"), call("state")) == [Status.INVALID_OPERATION] * 2


@pytest.mark.parametrize("text", [FEE_TRANSFER.text, EMPTY.text, SCRIPT.text, MANY.text])
def test_a_module_that_cannot_write_state_keeps_its_instance(engine: Engine, text: str) -> None:
    compiled = engine.functions.compile(to_binary(text))
    assert not compiled.fresh_instances


def test_a_start_function_runs_in_each_call_and_only_there(engine: Engine) -> None:
    compiled = engine.functions.compile(to_binary(START_MOVES.text))
    assert compiled.fresh_instances
    assert not engine.balances.any()
    engine.functions.install("start", 1, compiled.crc32c, compiled)
    found = run(engine, call("start", 3), call("start", 4), call("start", 3))
    assert found.batch.records["status"].tolist() == [0, Status.ZERO_SUM_VIOLATION, 0]
    assert found.batch.entries.tolist() == [(1, -3), (2, 3)] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("text", "params", "calls"),
    [
        pytest.param(FEE_TRANSFER.text, (1, 2, 3, 100, 50), 2_000_000, id="one instance"),
        pytest.param(STATES["global"].text, (), 1_000_000, id="fresh instances"),
        pytest.param(STATES["memory with data"].text, (), 60_000, id="fresh memories"),
        pytest.param(STATES["table.grow"].text, (), 200_000, id="fresh tables"),
        pytest.param(TRAPS["unreachable"].text, (), 1_000_000, id="traps"),
        pytest.param(TRAPS["start function that traps"].text, (), 100_000, id="start traps"),
        pytest.param(TRAPS["endless recursion"].text, (), 20_000, id="stack overflows"),
    ],
)
def test_calls_leave_no_memory_behind(
    engine: Engine, text: str, params: tuple[int, ...], calls: int
) -> None:
    install(engine, "f", text)
    engine.balances[:4] = 2**40, 2**50, 0, -(2**50) - 2**40
    repeat(engine, "f", params, 3000)
    before = resident_bytes()
    repeat(engine, "f", params, calls)
    # A store of wasmtime has more than a thousand bytes, a trap more than a hundred.
    assert resident_bytes() - before < 2 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_code_that_was_replaced_is_freed(engine: Engine) -> None:
    def mappings() -> int:
        with open("/proc/self/maps") as file:
            return len(file.readlines())

    def replace(number: int) -> None:
        steps = f"(local.set $a (i64.mul (local.get $a) (i64.const {number + 3})))" * 2000
        install(engine, "f", module(f"{steps}(i32.wrap_i64 (local.get $a))", "(memory 1)"), number)
        assert statuses(engine, call("f", 0)) == [0]

    for number in range(1, 11):
        replace(number)
    resident, mapped = resident_bytes(), mappings()
    for number in range(11, 61):
        replace(number)
    assert mappings() - mapped < 25
    assert resident_bytes() - resident < 4 << 20


def test_modules_are_compiled_while_others_run(engine: Engine) -> None:
    install(engine, "move", MOVE)
    results: list[object] = []

    def compile_some() -> None:
        for number in range(20):
            text = module(f"(i32.const {200 + number})")
            results.append(engine.functions.compile(to_binary(text)))

    threads = [threading.Thread(target=compile_some) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        repeat(engine, "move", (1, 2, 1), 1000)
    for thread in threads:
        thread.join()
    assert len(results) == 60
    assert statistics(engine, "move").failures == {}
    assert engine.balances[1] == -engine.balances[2] != 0


def test_an_engine_without_functions_loads_no_runtime() -> None:
    program = """
import sys
import numpy as np
from tallybus.common.record import RECORD_DTYPE
from tallybus.services.transactor.engine import Engine
engine = Engine(10, 10, 1)
records = np.zeros(2, RECORD_DTYPE)
records["kind"] = 1, 4
records["amount"] = 1
engine.execute(records[:1], 1)
engine.execute(records[1:], 2, ["nobody"], np.zeros((1, 8), np.int64))
assert not engine.has_functions
engine.close()
print("wasmtime" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=120, cwd=PROJECT,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_runtime_takes_no_signals() -> None:
    program = """
import faulthandler
from tests.support.function_modules import TRAPS, install
from tests.support.oracle import call, to_batch
from tallybus.services.transactor.engine import Engine
faulthandler.enable()
def caught():
    with open("/proc/self/status") as file:
        return [line for line in file if line.startswith("SigCgt")]
before = caught()
engine = Engine(10, 1000, 1)
for name, example in TRAPS.items():
    install(engine, "f", example.text)
    batch = to_batch([call("f")])
    done = engine.execute(batch.records, engine.next_id, batch.names, batch.params)
    assert done.batch.records["status"].tolist() == [5], name
assert caught() == before
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=False, capture_output=True, text=True, timeout=120, cwd=PROJECT,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("alive\n", "")


def test_a_runtime_that_behaves_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        wrong = selftest._CALLS[0]._replace(fuel=(19, 22))
        patch.setattr(selftest, "_CALLS", (wrong,))
        with pytest.raises(FunctionsUnavailable, match="self-test"):
            _ = Engine(ACCOUNTS, 10, 1).functions
    with monkeypatch.context() as patch:
        patch.setattr(wasm_engine, "version", lambda _name: "50.0.2")
        with pytest.raises(FunctionsUnavailable, match=r"50\.0\.2 is installed"):
            _ = Engine(ACCOUNTS, 10, 1).functions


def test_a_closed_engine_may_be_closed_again(engine: Engine) -> None:
    install(engine, "return", RETURN)
    install(engine, "state", STATES["global"].text)
    engine.close()
    engine.close()
