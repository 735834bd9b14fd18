"""Fuel bounds time: what takes longer than a unit is worth is weighed, and the check comes in time.

Here it is counted, not measured: times are for `python -m benchmarks.fuel`.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallybus.common.record import Status
from tallybus.services.transactor.functions import instructions, module
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.module import ModuleLimits
from tallybus.services.transactor.functions.once import Call
from tallybus.services.transactor.functions.weighing import weigh
from tests.support.function_modules import to_binary
from tests.support.hostile.valid import VALID
from tests.support.trials import try_function

EXECUTE = '(func $x (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)'
BALANCE = '(import "ledger" "get_balance" (func $balance (param i64) (result i64)))'
LIMITS = ModuleLimits(16 << 20, 10_000)
TABLE = "(func $n) (elem declare func $n) (table $t 100 funcref) (elem $e func $n)"
WRITES = "(global $w (mut i32) (i32.const 0))"


def call(
    body: str,
    declarations: str = "",
    fuel: int = 10**9,
    param: int = 0,
    limits: FunctionLimits | None = None,
) -> Call:
    text = f"(module {BALANCE} {declarations} {EXECUTE} {body} (i32.const 0)))"
    given_limits = FunctionLimits(fuel=fuel) if limits is None else limits
    return try_function(to_binary(text), (param,), {}, given_limits, 1_000)


def cost(body: str, declarations: str = "") -> int:
    """Fuel of a body that runs once, without what the call itself takes."""
    used = call(body, declarations)
    assert used.status == Status.NONE, used
    return used.fuel_used - call("", declarations).fuel_used


@pytest.mark.parametrize(
    ("body", "declarations", "units"),
    [
        ("(drop (i64.add (i64.const 1) (i64.const 2)))", "", 3),
        ("(nop) (block) (drop (i32.const 1))", "", 1),
        ("(loop)", "", 1),
        ("(drop (call $balance (i64.const 1)))", "", 11),
        ("(drop (ref.func $n))", TABLE, 7),
        ("(drop (i64.div_s (i64.const 1) (i64.const 2)))", "", 4),
        ("(drop (i32.rem_u (i32.const 1) (i32.const 2)))", "", 4),
        ("(drop (f64.mul (f64.const 1) (f64.const 2)))", "", 8),
        ("(drop (f32.sqrt (f32.const 2)))", "", 7),
        ("(drop (f64.promote_f32 (f32.const 2)))", "", 6),
        ("(drop (table.get $t (i32.const 2)))", TABLE, 4),
        ("(table.fill $t (i32.const 0) (ref.null func) (i32.const 9))", TABLE, 8 + 9),
        ("(memory.fill (i32.const 0) (i32.const 1) (i32.const 0))", "(memory 1)", 19),
        ("(memory.fill (i32.const 0) (i32.const 1) (i32.const 50))", "(memory 1)", 19 + 50),
        ("(memory.copy (i32.const 0) (i32.const 1) (i32.const 0))", "(memory 1)", 8),
        ("(drop (i32.load (i32.const 0)))", "(memory 4)", 2),
        ("(drop (i32.load (i32.const 0)))", "(memory 32)", 4),
        ("(drop (i32.load (i32.const 0)))", "(memory 33)", 11),
        ("(drop (i64.load32_u (i32.const 0)))", "(memory 256)", 11),
    ],
)
def test_units_of_an_instruction(body: str, declarations: str, units: int) -> None:
    # It writes in any case, so that both calls are made in the same way.
    writes = f"{declarations} {WRITES} (func (global.set $w (i32.const 1)))"
    assert cost(body, writes) == units


def test_growing_memory_takes_what_its_pages_do() -> None:
    memory = f"(memory 1) {WRITES} (func (global.set $w (i32.const 1)))"
    one = cost("(drop (memory.grow (i32.const 1)))", memory)
    ten = cost("(drop (memory.grow (i32.const 10)))", memory)
    assert one > module.PAGE_FUEL
    assert module.PAGE_FUEL * 9 <= ten - one <= module.PAGE_FUEL * 9 + 200
    for pages in ("0", "257", "-1"):
        assert cost(f"(drop (memory.grow (i32.const {pages})))", memory) < 60


@pytest.mark.parametrize(
    ("grown", "expected"), [(0, 1), (1, 1), (255, 1), (256, -1), (-1, -1), (2**31 - 1, -1)]
)
def test_growing_memory_does_what_it_did(grown: int, expected: int) -> None:
    after = 1 + grown if expected == 1 else 1
    body = f"""(if (i32.ne (memory.grow (i32.const {grown})) (i32.const {expected}))
        (then (return (i32.const 200))))
        (if (i32.ne (memory.size) (i32.const {after})) (then (return (i32.const 201))))
        (i32.store (i32.const {after * 65536 - 4}) (i32.const 7))
        (if (i32.ne (i32.load (i32.const {after * 65536 - 4})) (i32.const 7))
            (then (return (i32.const 202))))"""
    assert call(body, "(memory 1)").status == Status.NONE


def test_memory_cannot_grow_beyond_what_the_quota_pays() -> None:
    body = "(drop (memory.grow (i32.const 200)))"
    assert call(body, "(memory 1)", fuel=20_000).status == Status.QUOTA_EXCEEDED


@pytest.mark.parametrize(
    ("declarations", "units"),
    [
        ("", module.INSTANCE_FUEL),
        ("(memory 17)", module.INSTANCE_FUEL + 17 * module.PAGE_FUEL),
        ("(table 100 funcref)", module.INSTANCE_FUEL + 100),
        ('(memory 1) (data (i32.const 0) "x") (data "y")',
         module.INSTANCE_FUEL + module.PAGE_FUEL + module.SEGMENT_FUEL),
        ("(elem funcref (ref.func $x) (ref.func $x))",
         module.INSTANCE_FUEL + module.SEGMENT_FUEL + 2 * module.EXPRESSION_FUEL),
    ],
)  # fmt: skip
def test_what_an_instance_takes_is_paid_by_each_call_that_needs_one(
    declarations: str, units: int
) -> None:
    writes = f"{WRITES} (func (global.set $w (i32.const 1)))"
    text = f"(module {declarations} {writes} {EXECUTE} (i32.const 0)))"
    facts = weigh(to_binary(text), LIMITS).facts
    assert facts.start_fuel == units + module.EXPRESSION_FUEL
    used = try_function(to_binary(text), (), {}).fuel_used
    assert facts.start_fuel < used <= facts.start_fuel + 20
    reads = to_binary(f"(module {declarations} {EXECUTE} (i32.const 0)))")
    assert weigh(reads, LIMITS).facts.start_fuel == 0


def test_what_a_call_cannot_pay_is_not_begun() -> None:
    text = f"(module (memory 17) {WRITES} {EXECUTE} (global.set $w (i32.const 1)) unreachable))"
    for fuel in (1, 10_000, 17 * module.PAGE_FUEL):
        found = try_function(to_binary(text), (), {}, FunctionLimits(fuel=fuel))
        assert (found.status, found.fuel_used) == (Status.QUOTA_EXCEEDED, fuel)
        assert not found.trap
    found = try_function(to_binary(text), (), {}, FunctionLimits(fuel=20 * module.PAGE_FUEL))
    assert found.status == Status.INVALID_OPERATION


STRAIGHT = "(drop (call $balance (local.get 0)))" * 3_000
"""33,000 units, and no loop."""
SKIPPING = (
    "(drop (call $balance (local.get 0)))" * 40
    + "(if (i64.eqz (local.get 0)) (then"
    + "(drop (call $balance (local.get 0)))" * 400
    + "))"
)
"""Most checks stand where nobody comes by."""


@pytest.mark.parametrize(
    "body",
    [
        STRAIGHT,
        SKIPPING * 100,
        "(block (br_if 0 (local.get $c)) " + STRAIGHT[:3_600] + ")" + STRAIGHT,
        ("(if (local.get $c) (then " + STRAIGHT[:3_600] + ") (else " + STRAIGHT[:3_600] + "))")
        * 30,
    ],
)
def test_code_that_runs_straight_on_ends_soon_after_its_fuel(body: str) -> None:
    # What comes behind fails in another way, unless the call has ended before.
    end = "(drop (call $balance (i64.const -1)))"
    found = call(f"(local $c i32) (local.set $c (i32.const 1)) {body} {end}", fuel=1_000, param=1)
    assert found.status == Status.QUOTA_EXCEEDED
    assert "fuel" in found.trap


def test_what_callers_do_after_a_call_cannot_add_up() -> None:
    work = "(drop (call $balance (i64.const 1)))" * 30
    deep = f"""(func $n (param i64) (if (i64.gt_s (local.get 0) (i64.const 0)) (then
        (call $n (i64.sub (local.get 0) (i64.const 1))) {work})))"""
    end = "(drop (call $balance (i64.const -1)))"
    # The way down takes about 8 units a level; on the way up nothing may be done for nothing.
    found = call(f"(call $n (i64.const 1000)) {end}", deep, fuel=12_000)
    assert found.status == Status.QUOTA_EXCEEDED
    assert "fuel" in found.trap


def test_checks_stand_at_most_so_far_apart() -> None:
    """Counted in what is compiled: units between two looks at the fuel on the way straight on."""
    text = f"(module {BALANCE} {EXECUTE} {STRAIGHT} (i32.const 0)))"
    weighed = weigh(to_binary(text), LIMITS).binary
    checks = weighed.count(bytes((0x03, 0x40, 0x0B)))
    assert checks >= 3_000 * 11 // (instructions.CHECK_EVERY + 11)


@pytest.mark.parametrize("name", sorted(VALID))
def test_what_is_allowed_is_so_with_its_weights(name: str) -> None:
    binary = VALID[name]()
    if len(binary) < 100_000:
        made = weigh(binary, LIMITS)
        again = weigh(made.binary, LIMITS)
        assert again.facts.imports == made.facts.imports
        assert again.facts.functions == made.facts.functions + made.facts.grows


SMALL = sorted(name for name in VALID if len(VALID[name]()) < 1_000)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SMALL), st.data())
def test_damaged_modules_are_weighed_or_refused(name: str, data: st.DataObject) -> None:
    binary = bytearray(VALID[name]())
    at = data.draw(st.integers(0, len(binary) - 1))
    binary[at] = data.draw(st.integers(0, 255))
    try:
        weigh(bytes(binary), LIMITS)
    except InvalidFunction:
        return
