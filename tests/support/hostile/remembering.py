"""What tries to carry something from one call to the next: no call may depend on those before it.

`REMEMBERING` modules keep something, `FORGETTING_TRAPS` throw something away that the next call
needs; each call must find everything new. `STATELESS` ones cannot write, so that all their calls
may share one instance.
"""

from collections.abc import Callable

from tallybus.common.record import Status
from tests.support.hostile.making import DONE, MOVE, RETURN_0, body, function, module


def _remembers(remember: str, recall: str, around: str) -> Callable[[], bytes]:
    """Returns 0 and remembers; 131 when it recalls something from an earlier call."""
    return lambda: function(
        f"(if (i32.eqz {recall}) (then {remember} (return (i32.const 0)))) (i32.const 131)", around
    )


REMEMBERING: dict[str, Callable[[], bytes]] = {
    "in a global": _remembers(
        "(global.set $g (i32.const 1))", "(global.get $g)", "(global $g (mut i32) (i32.const 0))"
    ),
    "in an exported global": _remembers(
        "(global.set $g (i32.const 1))",
        "(global.get $g)",
        '(global $g (export "g") (mut i32) (i32.const 0))',
    ),
    "in a global by a helper": _remembers(
        "(call $h)",
        "(global.get $g)",
        "(global $g (mut i32) (i32.const 0)) (func $h (global.set $g (i32.const 1)))",
    ),
    "in memory": _remembers(
        "(i32.store (i32.const 8) (i32.const 1))", "(i32.load (i32.const 8))", "(memory 1)"
    ),
    "in a byte of memory": _remembers(
        "(i64.store8 (i32.const 9) (i64.const 1))", "(i32.load8_u (i32.const 9))", "(memory 1)"
    ),
    "in a float of memory": _remembers(
        "(f32.store (i32.const 16) (f32.const 1))", "(i32.load (i32.const 16))", "(memory 1)"
    ),
    "by filling memory": _remembers(
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 9))",
        "(i32.load (i32.const 0))",
        "(memory 1)",
    ),
    "by copying memory": _remembers(
        "(memory.copy (i32.const 0) (i32.const 100) (i32.const 4))",
        "(i32.load (i32.const 0))",
        '(memory 1) (data (i32.const 100) "abcd")',
    ),
    "by data into memory": _remembers(
        "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 4))",
        "(i32.load (i32.const 0))",
        '(memory 1) (data $d "abcd")',
    ),
    "over the data of memory": _remembers(
        "(i32.store (i32.const 0) (i32.const 0))",
        "(i32.eqz (i32.load (i32.const 0)))",
        '(memory 1) (data (i32.const 0) "abcd")',
    ),
    "in the size of memory": _remembers(
        "(drop (memory.grow (i32.const 1)))",
        "(i32.ne (memory.size) (i32.const 1))",
        "(memory 1)",
    ),
    "in the size of a table": _remembers(
        "(drop (table.grow $t (ref.null func) (i32.const 1)))",
        "(table.size $t)",
        "(table $t 0 funcref)",
    ),
    "in a table": _remembers(
        "(table.set $t (i32.const 0) (ref.func $credit))",
        "(i32.eqz (ref.is_null (table.get $t (i32.const 0))))",
        "(table $t 1 funcref) (elem declare func $credit)",
    ),
    "by filling a table": _remembers(
        "(table.fill $t (i32.const 0) (ref.func $credit) (i32.const 1))",
        "(i32.eqz (ref.is_null (table.get $t (i32.const 0))))",
        "(table $t 1 funcref) (elem declare func $credit)",
    ),
    "by copying a table": _remembers(
        "(table.copy $t $u (i32.const 0) (i32.const 0) (i32.const 1))",
        "(i32.eqz (ref.is_null (table.get $t (i32.const 0))))",
        "(table $t 1 funcref) (table $u 1 funcref) (elem (table $u) (i32.const 0) func $credit)",
    ),
    "by elements into a table": _remembers(
        "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1))",
        "(i32.eqz (ref.is_null (table.get $t (i32.const 0))))",
        "(table $t 1 funcref) (elem $e func $credit)",
    ),
    "in a start function": _remembers(
        "(nop)",
        "(i32.ne (global.get $g) (i32.const 1))",
        "(global $g (mut i32) (i32.const 0)) (start $s)"
        " (func $s (global.set $g (i32.add (global.get $g) (i32.const 1))))",
    ),
}
"""Each would return 131 at the second call on one instance, if that were not found out."""

FORGETTING_TRAPS: dict[str, tuple[Callable[[], bytes], int]] = {
    "drops its data": (
        lambda: function(
            "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 4)) (data.drop $d)" + DONE,
            '(memory 1) (data $d "abcd")',
        ),
        Status.NONE,
    ),
    "drops its elements": (
        lambda: function(
            "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop $e)" + DONE,
            "(table $t 1 funcref) (elem $e func $credit)",
        ),
        Status.NONE,
    ),
}
"""On one instance the second call would trap: what was dropped is gone. With the status of each."""

STATELESS: dict[str, Callable[[], bytes]] = {
    "nothing at all": lambda: module([body(RETURN_0)]),
    "a transfer": lambda: function(MOVE + DONE),
    "reads its data": lambda: function(
        "(i32.sub (i32.load8_u (i32.const 0)) (i32.const 97))",
        '(memory 1) (data (i32.const 0) "a")',
    ),
    "reads globals and the sizes": lambda: function(
        "(i32.sub (i32.add (global.get $g) (i32.add (memory.size) (table.size $t))) (i32.const 6))",
        "(global $g (mut i32) (i32.const 3)) (memory 1) (table $t 2 funcref)",
    ),
    "calls through a table": lambda: function(
        "(call_indirect (type $z) (i32.const 0))",
        f"(type $z (func (result i32))) (func $f (type $z) {DONE}) (table 1 funcref)"
        " (elem (i32.const 0) $f)",
    ),
    "every way of control": lambda: function(
        "(block $a (loop $b (if (i64.eqz (local.get 0)) (then (br $a)) (else (br $b)))))"
        "(block $a (block $b (br_table $a $b $a (i32.wrap_i64 (local.get 0)))))"
        "(drop (select (result i64) (local.get 0) (local.get 1) (i32.const 1)))"
        "(drop (f32.add (f32.const 1) (f32.const 2))) (drop (f64.const 3))"
        "(drop (i64.trunc_sat_f64_u (f64.const -1))) (drop (i64.extend8_s (local.get 0)))"
        "(drop (ref.is_null (ref.null extern))) (return (i32.const 0))"
    ),
}
"""Cannot write: none needs an instance of its own."""
