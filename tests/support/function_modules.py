"""Functions for tests, each as a module's text and as what it does in plain Python."""

from __future__ import annotations

from typing import Any, NamedTuple

from tests.support.oracle import WORD, Function, Host, OutOfFuel, Trap

HEAD = """(module
 (import "ledger" "credit" (func $credit (param i64 i64)))
 (import "ledger" "debit" (func $debit (param i64 i64)))
 (import "ledger" "get_balance" (func $balance (param i64) (result i64)))
"""
EXECUTE = (
    '(func (export "execute") (param $a i64) (param $b i64) (param $c i64) (param $d i64) '
    "(param $e i64) (param $f i64) (param $g i64) (param $h i64) (result i32) "
)


class Example(NamedTuple):
    """A module's text, and the same for the oracle."""

    text: str
    function: Function


def module(body: str, declarations: str = "") -> str:
    """A module with the three imports, whose `execute` has this body."""
    return f"{HEAD}{declarations}{EXECUTE}{body}))"


def to_binary(text: str) -> bytes:
    """The binary of a module's text."""
    import wasmtime

    return bytes(wasmtime.wat2wasm(text))


def crc_of(binary: bytes) -> int:
    from crc32c import crc32c

    return int(crc32c(binary))


def signed(value: int, bits: int = 64) -> int:
    """The integer that these bits are."""
    value %= 1 << bits
    return value - (1 << bits) if value >> (bits - 1) else value


EMPTY = Example(module("i32.const 0"), lambda _host, _params: 0)


def _fee_transfer(host: Host, params: tuple[int, ...]) -> int:
    source, target, taker, amount, rate = params[:5]
    fee = (amount * rate % WORD) // 10_000
    if host.get_balance(source) < signed(amount + fee):
        return 1
    host.credit(source, amount + fee)
    host.debit(target, amount)
    host.debit(taker, fee)
    return 0


FEE_TRANSFER = Example(
    module(
        """(local $fee i64)
 (local.set $fee (i64.div_u (i64.mul (local.get $d) (local.get $e)) (i64.const 10000)))
 (if (i64.lt_s (call $balance (local.get $a)) (i64.add (local.get $d) (local.get $fee)))
  (then (return (i32.const 1))))
 (call $credit (local.get $a) (i64.add (local.get $d) (local.get $fee)))
 (call $debit (local.get $b) (local.get $d))
 (call $debit (local.get $c) (local.get $fee))
 (i32.const 0)"""
    ),
    _fee_transfer,
)
"""The guide's: sender, receiver, account of fees, amount, hundredths of a percent."""

_SCRIPT_STEP = """(func $step (param $p i64) (param $sum i64) (result i64)
 (local $account i64) (local $amount i64)
 (local.set $account (i64.and (i64.shr_u (local.get $p) (i64.const 3)) (i64.const 15)))
 (if (i64.eq (local.get $account) (i64.const 15)) (then (local.set $account (i64.const -1))))
 (local.set $amount (i64.shl
   (i64.and (i64.shr_u (local.get $p) (i64.const 8)) (i64.const 0xff))
   (i64.and (i64.shr_u (local.get $p) (i64.const 16)) (i64.const 63))))
 (block $done
 (block $7 (block $6 (block $5 (block $4 (block $3 (block $2 (block $1 (block $0
  (br_table $0 $1 $2 $3 $4 $5 $6 $7 (i32.and (i32.wrap_i64 (local.get $p)) (i32.const 7))))
  (br $done))
  (call $credit (local.get $account) (local.get $amount)) (br $done))
  (call $debit (local.get $account) (local.get $amount)) (br $done))
  (local.set $sum (i64.add (local.get $sum) (call $balance (local.get $account)))) (br $done))
  (call $credit (local.get $account) (local.get $sum)) (br $done))
  (call $debit (local.get $account) (local.get $sum)) (br $done))
  (local.set $sum (i64.div_s (local.get $sum) (local.get $amount))) (br $done))
  (if (i64.eqz (local.get $amount)) (then unreachable))
  (loop $again
   (call $credit (local.get $account) (i64.const 1)) (call $debit (i64.const 0) (i64.const 1))
   (br_if $again (i64.ne (i64.const 0)
    (local.tee $amount (i64.sub (local.get $amount) (i64.const 1)))))))
 (local.get $sum))
"""


def step(kind: int, account: int = 0, factor: int = 0, shift: int = 0) -> int:
    """One parameter of SCRIPT, which runs seven of them. The amount is `factor << shift` (8 and 6
    bits); account 15 stands for the largest u64.

    0 nothing; 1 credit; 2 debit; 3 take the balance to the running sum; 4, 5 credit, debit of the
    running sum; 6 divide that by the amount; 7 so many transfers of 1 from the account to 0.
    """
    return kind | account << 3 | factor << 8 | shift << 16


def _script(host: Host, params: tuple[int, ...]) -> int:
    total = 0
    for param in params[:7]:
        kind, account = param & 7, param >> 3 & 15
        account = WORD - 1 if account == 15 else account
        amount = (param >> 8 & 255) << (param >> 16 & 63) & WORD - 1
        if kind == 1:
            host.credit(account, amount)
        elif kind == 2:
            host.debit(account, amount)
        elif kind == 3:
            total = signed(total + host.get_balance(account))
        elif kind == 4:
            host.credit(account, total)
        elif kind == 5:
            host.debit(account, total)
        elif kind == 6:
            divisor = signed(amount)
            if divisor == 0 or (total == -(2**63) and divisor == -1):
                raise Trap
            quotient = abs(total) // abs(divisor)
            total = quotient if (total < 0) == (divisor < 0) else -quotient
        elif kind == 7:
            if amount == 0:
                raise Trap
            # After 128 of them the call has failed, even where the module goes on to run out of
            # fuel.
            for _ in range(min(amount, 128)):
                host.credit(account, 1)
                host.debit(0, 1)
    return signed(params[7], 32)


SCRIPT = Example(
    module(
        "(local $sum i64)"
        + "".join(
            f"(local.set $sum (call $step (local.get ${name}) (local.get $sum)))"
            for name in "abcdefg"
        )
        + "(i32.wrap_i64 (local.get $h))",
        _SCRIPT_STEP,
    ),
    _script,
)
"""Does what its first seven parameters say (`step`) and returns the low half of the eighth."""


def _many(host: Host, params: tuple[int, ...]) -> int:
    for _ in range(params[0]):
        host.credit(params[1], params[3])
        host.debit(params[2], params[3])
    if params[4]:
        host.debit(params[2], params[4])
        host.credit(params[1], params[4])
    return 0


MANY = Example(
    module(
        """(if (i64.gt_s (local.get $a) (i64.const 0)) (then (loop $again
  (call $credit (local.get $b) (local.get $d)) (call $debit (local.get $c) (local.get $d))
  (br_if $again (i64.ne (i64.const 0)
   (local.tee $a (i64.sub (local.get $a) (i64.const 1))))))))
 (if (i64.ne (local.get $e) (i64.const 0)) (then
  (call $debit (local.get $c) (local.get $e)) (call $credit (local.get $b) (local.get $e))))
 (i32.const 0)"""
    ),
    _many,
)
"""So many (parameter 0) transfers from 1 to 2 of amount 3, then one of amount 4."""


def _endless(_host: Host, _params: tuple[int, ...]) -> int:
    raise OutOfFuel


ENDLESS = Example(module("(loop $again (br $again)) (i32.const 0)"), _endless)


def _trap(_host: Host, _params: tuple[int, ...]) -> int:
    raise Trap


def _trapping(body: str, declarations: str = "") -> Example:
    return Example(
        module(
            "(call $credit (i64.const 1) (i64.const 5)) (call $debit (i64.const 2) (i64.const 5))"
            f"{body} (i32.const 0)",
            declarations,
        ),
        _trap,
    )


TRAPS = {
    "unreachable": _trapping("unreachable"),
    "division by zero": _trapping("(drop (i64.div_u (local.get $a) (i64.const 0)))"),
    "overflow of a division": _trapping(
        "(drop (i64.div_s (i64.const -9223372036854775808) (i64.const -1)))"
    ),
    "conversion of a NaN": _trapping("(drop (i64.trunc_f64_s (f64.const nan)))"),
    "out of memory bounds": _trapping("(drop (i64.load (i32.const 65529)))", "(memory 1)"),
    "far out of memory bounds": _trapping(
        "(drop (i64.load offset=4294967295 (i32.const -1)))", "(memory 1)"
    ),
    "write out of memory bounds": _trapping(
        "(i64.store (i32.const -8) (i64.const 1))", "(memory 1)"
    ),
    "out of table bounds": _trapping("(drop (table.get 0 (i32.const 3)))", "(table 3 funcref)"),
    "call of nothing": _trapping(
        "(call_indirect (param) (result) (i32.const 0))", "(table 3 funcref)"
    ),
    "call of the wrong type": _trapping(
        "(call_indirect (param) (result i64) (i32.const 0)) drop",
        "(table 1 funcref) (elem (i32.const 0) $nop) (func $nop)",
    ),
    "endless recursion": _trapping(
        "(drop (call $deeper (i64.const 0)))",
        "(func $deeper (param i64) (result i64) (i64.add (i64.const 1) "
        "(call $deeper (i64.add (local.get 0) (i64.const 1)))))",
    ),
    "start function that traps": _trapping("", "(func $start unreachable) (start $start)"),
}


def _returns_one(_host: Host, _params: tuple[int, ...]) -> int:
    return 129


# Each counts its calls in another place and returns 128 + the count: always 129.
STATES = {
    "global": Example(
        module(
            "(global.set $n (i32.add (global.get $n) (i32.const 1)))"
            "(i32.add (i32.const 128) (global.get $n))",
            "(global $n (mut i32) (i32.const 0))",
        ),
        _returns_one,
    ),
    "exported global": Example(
        module(
            "(global.set $n (i32.add (global.get $n) (i32.const 1)))"
            "(i32.add (i32.const 128) (global.get $n))",
            '(global $n (export "n") (mut i32) (i32.const 0))',
        ),
        _returns_one,
    ),
    "memory": Example(
        module(
            "(i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1)))"
            "(i32.add (i32.const 128) (i32.load (i32.const 8)))",
            "(memory 1)",
        ),
        _returns_one,
    ),
    "memory with data": Example(
        module(
            "(i32.store8 (i32.const 9) (i32.add (i32.load8_u (i32.const 9)) (i32.const 1)))"
            "(i32.load8_u (i32.const 9))",
            '(memory 17) (data (i32.const 8) "\\80\\80\\80")',
        ),
        _returns_one,
    ),
    "memory.fill": Example(
        module(
            "(memory.fill (i32.const 0) "
            "(i32.add (i32.load8_u (i32.const 0)) (i32.const 129)) (i32.const 1))"
            "(i32.load8_u (i32.const 0))",
            "(memory 1)",
        ),
        _returns_one,
    ),
    "memory.copy": Example(
        module(
            "(memory.copy (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1))"
            "(i32.const 1)) (i32.add (i32.const 128) (i32.load8_u (i32.const 0)))",
            '(memory 1) (data (i32.const 0) "\\00\\01\\02\\03\\04\\05\\06")',
        ),
        _returns_one,
    ),
    "memory.init and data.drop": Example(
        module(
            "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 1)) (data.drop $d)"
            "(i32.load8_u (i32.const 0))",
            '(memory 1) (data $d "\\81")',
        ),
        _returns_one,
    ),
    "memory.grow": Example(
        module(
            "(drop (memory.grow (i32.const 1))) (i32.add (i32.const 128) (memory.size))",
            "(memory 0)",
        ),
        _returns_one,
    ),
    "table.set": Example(
        module(
            "(if (ref.is_null (table.get 0 (i32.const 0))) (then "
            "(table.set 0 (i32.const 0) (ref.func $nop)) (return (i32.const 129))))"
            "(i32.const 130)",
            "(table 1 funcref) (elem declare func $nop) (func $nop)",
        ),
        _returns_one,
    ),
    "table.grow": Example(
        module(
            "(drop (table.grow 0 (ref.null func) (i32.const 1)))"
            "(i32.add (i32.const 128) (table.size 0))",
            "(table 0 funcref)",
        ),
        _returns_one,
    ),
    "table.fill": Example(
        module(
            "(if (ref.is_null (table.get 0 (i32.const 0))) (then "
            "(table.fill 0 (i32.const 0) (ref.func $nop) (i32.const 1)) (return (i32.const 129))))"
            "(i32.const 130)",
            "(table 1 funcref) (elem declare func $nop) (func $nop)",
        ),
        _returns_one,
    ),
    "table.init and elem.drop": Example(
        module(
            "(table.init $e (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop $e)"
            "(i32.const 129)",
            "(table 1 funcref) (elem $e func $nop) (func $nop)",
        ),
        _returns_one,
    ),
    "table.copy": Example(
        module(
            "(if (ref.is_null (table.get 0 (i32.const 1))) (then "
            "(table.copy (i32.const 1) (i32.const 0) (i32.const 1)) (return (i32.const 129))))"
            "(i32.const 130)",
            "(table 2 funcref) (elem (i32.const 0) $nop) (func $nop)",
        ),
        _returns_one,
    ),
    "start function": Example(
        module(
            "(i32.add (i32.const 128) (global.get $n))",
            "(global $n (mut i32) (i32.const 0))"
            "(func $s (global.set $n (i32.add (global.get $n) (i32.const 1)))) (start $s)",
        ),
        _returns_one,
    ),
}


def _start_moves(host: Host, params: tuple[int, ...]) -> int:
    host.credit(1, 3)
    host.debit(2, params[0])
    return 0


START_MOVES = Example(
    module(
        "(call $debit (i64.const 2) (local.get $a)) (i32.const 0)",
        "(func $s (call $credit (i64.const 1) (i64.const 3))) (start $s)",
    ),
    _start_moves,
)
"""Its start function credits 3, which the call's own debit has to match."""


def install(engine: Any, name: str, text: str, version: int = 1) -> int:
    """Compile and install beside the log, as recovery does. Returns the checksum."""
    compiled = engine.functions.compile(to_binary(text))
    engine.functions.install(name, version, compiled.crc32c, compiled)
    return int(compiled.crc32c)
