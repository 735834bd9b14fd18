"""What runs and must end with a status, having moved nothing, by what it attacks.

- `ENDLESS`: the time of everybody else
- `TOO_DEEP`: the stack of the process
- `TRAPS`: the process, by what the machine cannot do
- `WRONG_ABOUT_MONEY`: the balances
- `WRONG_ABOUT_STATUSES`: whoever believes what a function returns

`FAILING` has them all.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tallybus.common.record import Status
from tests.support.hostile.making import DONE, MOVE, PARAMS, function, wat


@dataclass(frozen=True)
class Failing:
    """Every call with `params` ends with `status`, whatever it moved before."""

    binary: Callable[[], bytes]
    status: int
    params: tuple[int, ...] = ()


def _fails(
    body: str,
    status: int = Status.INVALID_OPERATION,
    around: str = "",
    locals_: str = "",
    params: tuple[int, ...] = (),
) -> Failing:
    return Failing(lambda: function(MOVE + body, around, locals_), status, params)


_QUOTA = Status.QUOTA_EXCEEDED
_FOREVER = "(loop $l {} (br $l)) (i32.const 0)"
_SELF = "(call $f)"


def _forever(inside: str, around: str = "") -> Failing:
    return _fails(_FOREVER.format(inside), _QUOTA, around)


ENDLESS: dict[str, Failing] = {
    "an empty loop": _forever(""),
    "a loop that asks for a balance": _forever("(drop (call $get_balance (i64.const 1)))"),
    "a loop of growing memory": _forever("(drop (memory.grow (i32.const 1)))", "(memory 0)"),
    "a loop of growing by much": _forever("(drop (memory.grow (i32.const 60000)))", "(memory 1)"),
    "a loop of growing by nothing": _forever("(drop (memory.grow (i32.const 0)))", "(memory 1)"),
    "a loop that fills 16 MB": _forever(
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 16777216))", "(memory 256)"
    ),
    "a loop that copies 8 MB": _forever(
        "(memory.copy (i32.const 0) (i32.const 8388608) (i32.const 8388608))", "(memory 256)"
    ),
    "a loop that touches every page": _fails(
        "(loop $l (i64.store (local.get $i) (i64.const 1))"
        " (local.set $i (i32.and (i32.add (local.get $i) (i32.const 4096)) (i32.const 0xffffff)))"
        " (br $l)) (i32.const 0)",
        _QUOTA,
        "(memory 256)",
        "(local $i i32)",
    ),
    "a loop of growing a table": _forever(
        "(drop (table.grow $t (ref.null func) (i32.const 1)))", "(table $t 0 funcref)"
    ),
    "a loop that fills a table": _forever(
        "(table.fill $t (i32.const 0) (ref.null func) (i32.const 10000))",
        "(table $t 10000 funcref)",
    ),
    "a loop that copies a table": _forever(
        "(table.copy $t $t (i32.const 0) (i32.const 5000) (i32.const 5000))",
        "(table $t 10000 funcref)",
    ),
    "a loop of square roots": _forever("(drop (f64.sqrt (f64.convert_i64_s (local.get 0))))"),
    "calls that double": _fails(
        "(call $f (i32.const 60)) (i32.const 0)",
        _QUOTA,
        "(func $f (param i32) (if (local.get 0) (then"
        " (call $f (i32.sub (local.get 0) (i32.const 1)))"
        " (call $f (i32.sub (local.get 0) (i32.const 1))))))",
    ),
    "a start function that loops": Failing(
        lambda: function(DONE, "(start $s) (func $s (loop $l (br $l)))"), _QUOTA
    ),
    "a start function that fills memory for ever": Failing(
        lambda: function(
            DONE,
            "(memory 256) (start $s) (func $s (loop $l"
            " (memory.fill (i32.const 0) (i32.const 1) (i32.const 16777216)) (br $l)))",
        ),
        _QUOTA,
    ),
}

TOO_DEEP: dict[str, Failing] = {
    "calls itself": _fails("(call $f) (i32.const 0)", around=f"(func $f {_SELF})"),
    "calls itself with large frames": _fails(
        "(drop (call $f)) (i32.const 0)",
        around="(memory 1) (func $f (result i64) (local "
        + "i64 " * 100
        + ")"
        + "".join(f"(local.set {i} (i64.load (i32.const {8 * i})))" for i in range(100))
        + "(call $f)"
        + "".join(f"(i64.xor (local.get {i}))" for i in range(100))
        + ")",
    ),
    "two that call each other": _fails(
        "(call $f) (i32.const 0)", around="(func $f (call $g)) (func $g (call $f))"
    ),
    "calls itself through a table": _fails(
        "(call $f) (i32.const 0)",
        around="(table 1 funcref) (elem (i32.const 0) $f) (type $n (func))"
        " (func $f (type $n) (call_indirect (type $n) (i32.const 0)))",
    ),
    "execute calls itself": Failing(
        lambda: wat(
            f'(module (func $e (export "execute") {PARAMS} (result i32)'
            + "".join(f"(local.get {i})" for i in range(8))
            + "(call $e)))"
        ),
        Status.INVALID_OPERATION,
    ),
    "a start function that calls itself": Failing(
        lambda: function(DONE, "(start $s) (func $s (call $s))"), Status.INVALID_OPERATION
    ),
}

TRAPS: dict[str, Failing] = {
    "unreachable": _fails("unreachable"),
    "divides by zero": _fails("(i32.wrap_i64 (i64.div_s (i64.const 1) (local.get 0)))"),
    "divides unsigned by zero": _fails("(i32.wrap_i64 (i64.div_u (i64.const 1) (local.get 0)))"),
    "remainder by zero": _fails("(i32.rem_u (i32.const 1) (i32.wrap_i64 (local.get 0)))"),
    "divides the smallest by -1": _fails(
        "(i32.wrap_i64 (i64.div_s (local.get 0) (local.get 1)))", params=(-(2**63), -1)
    ),
    "converts NaN": _fails("(i32.trunc_f64_s (f64.div (f64.const 0) (f64.const 0)))"),
    "converts the infinite": _fails("(i32.trunc_f32_u (f32.const inf))"),
    "converts what is too large": _fails("(i32.wrap_i64 (i64.trunc_f64_s (f64.const 1e19)))"),
    "loads behind the memory": _fails("(i32.load (i32.const 65533))", around="(memory 1)"),
    "loads far behind the memory": _fails(
        "(i32.load offset=4294967295 (i32.const -1))", around="(memory 1)"
    ),
    "loads without memory": _fails("(i32.load (i32.const 0))", around="(memory 0)"),
    "stores behind the memory": _fails(
        "(i64.store (i32.const 65529) (i64.const 1)) (i32.const 0)", around="(memory 1)"
    ),
    "stores far behind the memory": _fails(
        "(i64.store8 offset=4294967295 (i32.const -1) (i64.const 1)) (i32.const 0)",
        around="(memory 1)",
    ),
    "fills behind the memory": _fails(
        "(memory.fill (i32.const 1) (i32.const 1) (i32.const 65536)) (i32.const 0)",
        around="(memory 1)",
    ),
    "copies data that was dropped": _fails(
        "(data.drop $d) (memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)) (i32.const 0)",
        around='(memory 1) (data $d "ab")',
    ),
    "calls nothing through a table": _fails(
        "(call_indirect (result i32) (i32.const 0))", around="(table 1 funcref)"
    ),
    "calls behind a table": _fails(
        "(call_indirect (result i32) (i32.const 7))", around="(table 1 funcref)"
    ),
    "calls another type through a table": _fails(
        "(call_indirect (result i32) (i32.const 0))",
        around="(table 1 funcref) (elem (i32.const 0) $f) (func $f (param i64))",
    ),
    "calls the host with another type": _fails(
        "(call_indirect (result i32) (i32.const 0))",
        around="(table 1 funcref) (elem (i32.const 0) $get_balance)",
    ),
    "a start function that traps": Failing(
        lambda: function(DONE, f"(start $s) (func $s {MOVE} unreachable)"),
        Status.INVALID_OPERATION,
    ),
}

WRONG_ABOUT_MONEY: dict[str, Failing] = {
    "credits only": _fails(
        "(call $credit (i64.const 3) (i64.const 1)) (i32.const 0)", Status.ZERO_SUM_VIOLATION
    ),
    "balanced modulo 2^64": _fails(
        "(call $debit (i64.const 13) (i64.const 0x7fffffffffffffff))"
        "(call $debit (i64.const 14) (i64.const 0x7fffffffffffffff))"
        "(call $debit (i64.const 15) (i64.const 2)) (i32.const 0)",
        Status.ZERO_SUM_VIOLATION,
    ),
    "a start function that credits": Failing(
        lambda: function(DONE, "(start $s) (func $s (call $credit (i64.const 1) (i64.const 5)))"),
        Status.ZERO_SUM_VIOLATION,
    ),
    "credits -1": _fails(
        "(call $credit (i64.const 1) (i64.const -1)) (call $debit (i64.const 2) (i64.const -1))"
        "(i32.const 0)",
        Status.BALANCE_OVERFLOW,
    ),
    "credits 2^63": _fails(
        "(call $debit (i64.const 1) (i64.const 0x8000000000000000))"
        "(call $credit (i64.const 2) (i64.const 0x8000000000000000)) (i32.const 0)",
        Status.BALANCE_OVERFLOW,
    ),
    "more than a balance can hold": _fails(
        "(call $debit (i64.const 2) (i64.const 0x7fffffffffffffff))"
        "(call $credit (i64.const 1) (i64.const 0x7fffffffffffffff)) (i32.const 0)",
        Status.BALANCE_OVERFLOW,
    ),
    "256 entries": _fails(
        "(loop $l (call $credit (i64.const 3) (i64.const 1)) (call $debit (i64.const 4)"
        " (i64.const 1)) (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i)"
        " (i32.const 1))) (i32.const 127)))) (i32.const 0)",
        Status.ENTRY_LIMIT_EXCEEDED,
        locals_="(local $i i32)",
    ),
    "credits for ever": _fails(
        _FOREVER.format("(call $credit (i64.const 3) (i64.const 1))"), Status.ENTRY_LIMIT_EXCEEDED
    ),
    "credits nothing until the fuel is spent": _forever(
        "(call $credit (i64.const 3) (i64.const 0))"
    ),
    "balance of the last account of all": _fails(
        "(drop (call $get_balance (i64.const -1))) (i32.const 0)", Status.ACCOUNT_LIMIT_EXCEEDED
    ),
    "debits an account beyond the limit": _fails(
        "(call $debit (i64.const 0x100000000) (i64.const 1)) (i32.const 0)",
        Status.ACCOUNT_LIMIT_EXCEEDED,
    ),
    "fails in the host, then traps": _fails(
        "(call $debit (i64.const -1) (i64.const 1)) unreachable", Status.ACCOUNT_LIMIT_EXCEEDED
    ),
}

WRONG_ABOUT_STATUSES: dict[str, Failing] = {
    "returns 256": _fails("(i32.const 256)"),
    "returns -1": _fails("(i32.const -1)"),
    "returns the smallest": _fails("(i32.const 0x80000000)"),
    "says that it is a duplicate": _fails(f"(i32.const {int(Status.DUPLICATE)})"),
    "returns a status of its own": _fails("(i32.const 200)", 200),
}

FAILING = {
    **ENDLESS,
    **TOO_DEEP,
    **TRAPS,
    **WRONG_ABOUT_MONEY,
    **WRONG_ABOUT_STATUSES,
}
