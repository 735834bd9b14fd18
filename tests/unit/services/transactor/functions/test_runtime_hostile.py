"""Hostile modules in the real engine: none crashes, stalls, bloats, remembers or moves money.

How long a call may take is bounded by its fuel, which is not looked up on a clock here; what is
slow to compile is in `test_compiler.py`.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tallybus.common.record import RECORD_DTYPE, Kind, Status
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tests.support.folders import PROJECT
from tests.support.hostile import making
from tests.support.hostile.expensive import ALLOWED
from tests.support.hostile.failing import FAILING
from tests.support.hostile.refused import REFUSED
from tests.support.hostile.remembering import FORGETTING_TRAPS, REMEMBERING, STATELESS
from tests.unit.services.transactor.functions.bank import ACCOUNTS, LIMITS, Bank


@pytest.fixture
def bank() -> Iterator[Bank]:
    bank = Bank()
    yield bank
    bank.engine.close()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_cannot_be_compiled(bank: Bank, name: str) -> None:
    refused = REFUSED[name]
    with pytest.raises(InvalidFunction) as caught:
        bank.engine.functions.compile(refused.binary())
    assert refused.reason in str(caught.value)
    bank.check_good()


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_at_the_edge_runs(bank: Bank, name: str) -> None:
    bank.register("edge", ALLOWED[name]())
    executed = bank.call("edge", "good", "edge")
    assert executed.batch.records["status"].tolist() == [Status.NONE] * 3
    bank.check_good()


@pytest.mark.parametrize("name", FAILING)
def test_a_call_that_fails_changes_nothing(bank: Bank, name: str) -> None:
    failing = FAILING[name]
    bank.register("bad", failing.binary())
    before = bank.engine.balances.copy()
    for _ in range(3):
        executed = bank.call("bad", params=failing.params)
        assert executed.batch.records["status"].tolist() == [failing.status]
        assert executed.batch.records["entry_count"].tolist() == [0]
        assert len(executed.batch.entries) == 0
        assert np.array_equal(bank.engine.balances, before)
    statistics = {live.name: live for live in bank.engine.functions.statistics()}["bad"]
    assert statistics.calls == 3
    assert dict(statistics.failures) == {failing.status: 3}
    assert statistics.fuel_total <= 3 * LIMITS.fuel
    if failing.status == Status.QUOTA_EXCEEDED:
        assert statistics.fuel_total == 3 * LIMITS.fuel
    bank.check_good()


@pytest.mark.parametrize("name", FAILING)
def test_good_calls_around_one_that_fails_succeed(bank: Bank, name: str) -> None:
    failing = FAILING[name]
    bank.register("bad", failing.binary())
    before = bank.engine.balances.copy()
    executed = bank.call("good", "bad", "good", "bad", "good", params=failing.params)
    bad = failing.status
    assert executed.batch.records["status"].tolist() == [0, bad, 0, bad, 0]
    assert int(bank.engine.balances[1] - before[1]) == -15
    assert int(bank.engine.balances[2] - before[2]) == 15
    assert bank.engine.balances.sum() == before.sum()


STATEFUL: dict[str, Callable[[], bytes]] = {
    **REMEMBERING,
    **{name: binary for name, (binary, _) in FORGETTING_TRAPS.items()},
}


@pytest.mark.parametrize("name", STATEFUL)
def test_no_call_sees_what_an_earlier_one_left(bank: Bank, name: str) -> None:
    bank.register("memory", STATEFUL[name]())
    for _ in range(3):
        executed = bank.call("memory", "good", "memory", "memory")
        assert executed.batch.records["status"].tolist() == [Status.NONE] * 4


@pytest.mark.parametrize("name", REMEMBERING)
def test_no_call_sees_what_was_left_by_one_that_failed(bank: Bank, name: str) -> None:
    # With this much fuel some calls end in the middle, after they wrote.
    binary = REMEMBERING[name]()
    bank.register("memory", binary)
    needed = _fuel_of(bank, "memory")
    for fuel in range(max(needed - 12, 1), needed + 1):
        limits = FunctionLimits(fuel=fuel)
        engine = Engine(ACCOUNTS, 1 << 16, 7, limits)
        try:
            compiled = engine.functions.compile(binary)
            engine.functions.install("memory", 1, compiled.crc32c, compiled)
            records = np.zeros(4, RECORD_DTYPE)
            records["kind"] = Kind.FUNCTION
            executed = engine.execute(records, 1, ["memory"], np.zeros((4, 8), np.int64))
            expected = Status.NONE if fuel == needed else Status.QUOTA_EXCEEDED
            assert executed.batch.records["status"].tolist() == [expected] * 4
        finally:
            engine.close()


def _fuel_of(bank: Bank, name: str) -> int:
    """The least fuel that a call needs."""
    bank.call(name)
    found = {live.name: live for live in bank.engine.functions.statistics()}[name]
    assert found.calls == 1
    return int(found.fuel_total)


@pytest.mark.parametrize("name", STATELESS)
def test_what_cannot_write_needs_no_instance_of_its_own(bank: Bank, name: str) -> None:
    binary = STATELESS[name]()
    assert not bank.engine.functions.compile(binary).fresh_instances
    bank.register("plain", binary)
    if name == "a transfer":
        return
    assert set(bank.call(*["plain"] * 5).batch.records["status"].tolist()) == {Status.NONE}


def test_what_nan_is_made_of_is_the_same_always(bank: Bank) -> None:
    # Each part makes a NaN in another way. Whatever its bits were, they come out as one number.
    single = "(f32.reinterpret_i32 (i32.wrap_i64 (local.get 1)))"
    nans = (
        "(f64.div (f64.const 0) (f64.const 0))",
        "(f64.sub (f64.const inf) (f64.const inf))",
        "(f64.mul (f64.const 0) (f64.const -inf))",
        "(f64.sqrt (f64.const -1))",
        "(f64.add (f64.reinterpret_i64 (local.get 0)) (f64.const 1))",
        f"(f64.promote_f32 (f32.add {single} (f32.const 1)))",
        "(f64.min (f64.reinterpret_i64 (local.get 0)) (f64.const 1))",
    )
    same = "".join(
        f"(if (i64.ne (i64.reinterpret_f64 {nan}) (i64.const 0x7ff8000000000000))"
        f" (then (return (i32.const {128 + i}))))"
        for i, nan in enumerate(nans)
    )
    bank.register("nan", making.function(same + "(i32.const 0)"))
    for payload in (0x7FF8_0000_0000_0001, 0x7FF0_0000_0000_0001, -1, -(2**52) + 5):
        executed = bank.call("nan", params=(payload, 0x7FC0_0123))
        assert executed.batch.records["status"].tolist() == [Status.NONE]


def test_a_function_of_255_entries_is_kept_and_one_more_is_not(bank: Bank) -> None:
    def entries(count: int) -> bytes:
        pairs = count // 2 - 1
        # An odd count: two debits against one credit.
        last = (
            "(call $credit (i64.const 3) (i64.const 2)) (call $debit (i64.const 4) (i64.const 1))"
            "(call $debit (i64.const 5) (i64.const 1))"
            if count % 2
            else "(call $credit (i64.const 3) (i64.const 1)) (call $debit (i64.const 4)"
            " (i64.const 1))"
        )
        loop = (
            "(loop $l (call $credit (i64.const 3) (i64.const 1)) (call $debit (i64.const 4)"
            " (i64.const 1)) (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i)"
            f" (i32.const 1))) (i32.const {pairs}))))"
        )
        return making.function(loop + last + "(i32.const 0)", locals_="(local $i i32)")

    bank.register("most", entries(255))
    bank.register("more", entries(256))
    executed = bank.call("most", "more", "most")
    assert executed.batch.records["status"].tolist() == [0, Status.ENTRY_LIMIT_EXCEEDED, 0]
    assert executed.batch.records["entry_count"].tolist() == [255, 0, 255]
    assert len(executed.batch.entries) == 510


def test_memory_does_not_grow_with_calls() -> None:
    """In a process of its own: what other tests left behind would hide it."""
    script = """
import resource, sys
import numpy as np
from tests.support.hostile.failing import FAILING
from tests.unit.services.transactor.functions.bank import Bank

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

names = sorted(FAILING)
bank = Bank()
for name in names:
    bank.register(f"f{names.index(name)}", FAILING[name].binary())
def round_():
    for i, name in enumerate(names):
        bank.call(*[f"f{i}"] * 5, params=FAILING[name].params)
round_()
before = resident()
for _ in range(5):
    round_()
grown = resident() - before
bank.engine.close()
assert grown < 16 << 20, f"{grown} bytes more after {len(names) * 25} calls"
"""
    _run(script)


def test_memory_does_not_grow_with_registrations() -> None:
    script = """
import resource
from tests.support.hostile import making
from tests.support.hostile.refused import REFUSED
from tests.support.hostile.remembering import REMEMBERING
from tests.unit.services.transactor.functions.bank import Bank
from tallybus.services.transactor.functions.errors import InvalidFunction

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

bank = Bank()
stateful = REMEMBERING["in memory"]()
wrong = [REFUSED[name].binary() for name in ("adds i32 to i64", "data outside of memory")]
many = making.module([making.body(making.RETURN_0)] * 300)
def round_():
    for i in range(25):
        bank.register("f", stateful)
        bank.call("f")
        bank.register("g", many)
        bank.call("g")
        for binary in wrong:
            try:
                bank.engine.functions.compile(binary)
            except InvalidFunction:
                pass
round_()
before = resident()
for _ in range(3):
    round_()
grown = resident() - before
bank.engine.close()
assert grown < 24 << 20, f"{grown} bytes more"
"""
    _run(script)


def _run(script: str) -> None:
    done: Any = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
