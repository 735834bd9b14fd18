"""WebAssembly modules that mean harm, are wrong, or are at the edge of what is allowed.

`REFUSED` cannot be registered; `FAILING` run and must end with a status; `REMEMBERING` try to carry
something from one call to the next. Modules are WAT, or bytes where no text gives them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from wasmtime import wat2wasm

from tallybus.common.record import Status

PARAMS = "(param i64 i64 i64 i64 i64 i64 i64 i64)"
EXECUTE = f'(func (export "execute") {PARAMS} (result i32)'
CREDIT = '(import "ledger" "credit" (func $credit (param i64 i64)))'
DEBIT = '(import "ledger" "debit" (func $debit (param i64 i64)))'
BALANCE = '(import "ledger" "get_balance" (func $get_balance (param i64) (result i64)))'
HOST = CREDIT + DEBIT + BALANCE
MOVE = "(call $credit (i64.const 1) (i64.const 5)) (call $debit (i64.const 2) (i64.const 5))"
"""Moves 5 from account 1 to 2: what a failure must undo."""
MEGABYTES_4 = 4 << 20

INSTANTIATION = "cannot be instantiated"

I32, I64 = b"\x7f", b"\x7e"


@cache
def wat(text: str) -> bytes:
    """The binary of a text."""
    return bytes(wat2wasm(text))


def function(body: str, around: str = "", locals_: str = "") -> bytes:
    """A module whose `execute` has this body; `around` stands beside it, the host's functions are
    imported."""
    return wat(f"(module {HOST} {around} {EXECUTE} {locals_} {body}))")


# Bytes of a module, where a text would be too long or impossible.


def unsigned(number: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def vector(items: Sequence[bytes]) -> bytes:
    return unsigned(len(items)) + b"".join(items)


def section(number: int, content: bytes) -> bytes:
    return bytes((number,)) + unsigned(len(content)) + content


def name(text: str) -> bytes:
    return unsigned(len(text)) + text.encode("ascii")


def signature(params: bytes, results: bytes) -> bytes:
    return b"\x60" + unsigned(len(params)) + params + unsigned(len(results)) + results


EXECUTE_TYPE = signature(I64 * 8, I32)
NOTHING_TYPE = signature(b"", b"")
MAGIC = b"\x00asm\x01\x00\x00\x00"
RETURN_0 = b"\x41\x00"
EXPORT = section(7, vector([name("execute") + b"\x00\x00"]))


def body(code: bytes, locals_: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """A function's body: (count, type) of its locals, and instructions without the last `end`."""
    content = vector([unsigned(n) + kind for n, kind in locals_]) + code + b"\x0b"
    return unsigned(len(content)) + content


def module(
    bodies: Sequence[bytes],
    *,
    types: Sequence[bytes] = (),
    of_type: Sequence[int] | None = None,
    before_exports: bytes = b"",
    exports: bytes = EXPORT,
    after_exports: bytes = b"",
    after_code: bytes = b"",
) -> bytes:
    """A module whose function 0 is `execute`; `types` follow its own, the number 0."""
    indexes = [0] * len(bodies) if of_type is None else of_type
    return (
        MAGIC
        + section(1, vector([EXECUTE_TYPE, *types]))
        + section(3, vector([unsigned(index) for index in indexes]))
        + before_exports
        + exports
        + after_exports
        + section(10, vector(bodies))
        + after_code
    )


def custom_section(size: int) -> bytes:
    """Of `size` bytes in all."""
    for digits in range(1, 6):
        content = b"\x01x" + bytes(size - 3 - digits)
        if len(unsigned(len(content))) == digits:
            return section(0, content)
    raise AssertionError(size)


def of_size(size: int) -> bytes:
    """A module that does nothing, of exactly so many bytes."""
    small = module([body(RETURN_0)])
    return small + custom_section(size - len(small))


def _repeat(unit: bytes, size: int) -> bytes:
    return unit * (size // len(unit))


def _nested(opening: bytes, count: int, closing: bytes = b"\x0b") -> bytes:
    return module([body(opening * count + closing * count + RETURN_0)])


def _one_type(params: int, results: int) -> bytes:
    kind = signature(I64 * params, I64 * results)
    return module([body(RETURN_0), body(b"\x00")], types=[kind], of_type=[0, 1])


_LOOP = b"\x03\x40\x20\x00\xa7\x0d\x00\x0b"
"""A loop as long as the first parameter is not 0."""


@dataclass(frozen=True)
class Refused:
    """`binary()` is refused for a `reason` (part of the message), by the compiler when that is
    empty."""

    binary: Callable[[], bytes]
    reason: str = ""

    @property
    def by_compiler(self) -> bool:
        """Whether the inspector passes it."""
        return self.reason in ("", INSTANTIATION)


def _text(text: str, reason: str = "") -> Refused:
    return Refused(lambda: wat(text), reason)


def _inside(text: str, reason: str = "", around: str = "") -> Refused:
    return Refused(lambda: function(text, around), reason)


_DONE = "(i32.const 0)"

REFUSED: dict[str, Refused] = {
    # Not a module.
    "nothing": Refused(lambda: b"", "does not begin with"),
    "text": Refused(lambda: b"(module)", "does not begin with"),
    "another version": Refused(lambda: b"\x00asm\x02\x00\x00\x00", "version"),
    "a component": _text("(component)", "component"),
    "an executable": Refused(lambda: b"\x7fELF" + bytes(100), "does not begin with"),
    "4 MB and a byte": Refused(lambda: of_size(MEGABYTES_4 + 1), "at most 4194304"),
    # Lengths and counts that lie.
    "section beyond the end": Refused(lambda: MAGIC + b"\x01\xff\xff\xff\xff\x0f\x00", "1 follow"),
    "overlong number": Refused(lambda: MAGIC + b"\x01\x80\x80\x80\x80\x80\x00", "32 bits"),
    "four thousand million types": Refused(
        lambda: MAGIC + section(1, b"\xff\xff\xff\xff\x0f"), "types"
    ),
    "four thousand million functions": Refused(
        lambda: MAGIC + section(3, b"\xff\xff\xff\xff\x0f"), "functions"
    ),
    "four thousand million locals": Refused(
        lambda: module([body(RETURN_0, [(2**32 - 1, I64)])]), "locals"
    ),
    "locals beyond 32 bits together": Refused(
        lambda: module([body(RETURN_0, [(900, I64)] * 10)]), "locals"
    ),
    "empty groups of locals": Refused(
        lambda: module([body(RETURN_0, [(0, I64)] * 100_000)]), "groups of locals"
    ),
    "sections out of order": Refused(
        lambda: MAGIC + section(3, b"\x00") + section(1, b"\x00"), "out of order"
    ),
    "a section twice": Refused(
        lambda: MAGIC + section(1, b"\x00") + section(1, b"\x00"), "out of order"
    ),
    "an unknown section": Refused(lambda: MAGIC + section(14, b""), "unknown section"),
    "functions without code": Refused(
        lambda: MAGIC + section(1, vector([EXECUTE_TYPE])) + section(3, b"\x01\x00") + EXPORT,
        "0 have code",
    ),
    "code without functions": Refused(
        lambda: MAGIC + section(10, vector([body(RETURN_0)])), "function bodies"
    ),
    "a million custom sections": Refused(lambda: MAGIC + b"\x00\x01\x00" * 1_000_000, "sections"),
    "a million data segments": Refused(
        lambda: module([body(RETURN_0)], after_code=section(11, unsigned(1_000_000))),
        "data segments",
    ),
    "code after its end": Refused(lambda: module([body(RETURN_0 + b"\x0b\x01")]), "do not end"),
    "code without its end": Refused(lambda: module([b"\x03\x00\x41\x00"]), "do not end"),
    # Imports.
    "imports wasi": _text(
        '(module (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))'
        f" {EXECUTE} {_DONE}))",
        "wasi_snapshot_preview1.random_get",
    ),
    "imports env.abort": _text(
        f'(module (import "env" "abort" (func (param i32 i32 i32 i32))) {EXECUTE} {_DONE}))',
        "imports env.abort",
    ),
    "imports another of the ledger": _text(
        f'(module (import "ledger" "transfer" (func (param i64 i64))) {EXECUTE} {_DONE}))',
        "ledger.transfer",
    ),
    "imports with a capital": _text(
        f'(module (import "Ledger" "credit" (func (param i64 i64))) {EXECUTE} {_DONE}))',
        "imports Ledger.credit",
    ),
    "imports a name with control characters": _text(
        f'(module (import "ledger" "a\\0a\\00b" (func)) {EXECUTE} {_DONE}))', r"ledger.a\n\x00b"
    ),
    "imports with three parameters": _text(
        f'(module (import "ledger" "credit" (func (param i64 i64 i64))) {EXECUTE} {_DONE}))',
        "imports ledger.credit with another type",
    ),
    "imports with i32": _text(
        f'(module (import "ledger" "debit" (func (param i32 i64))) {EXECUTE} {_DONE}))',
        "imports ledger.debit with another type",
    ),
    "imports without a result": _text(
        f'(module (import "ledger" "get_balance" (func (param i64))) {EXECUTE} {_DONE}))',
        "imports ledger.get_balance with another type",
    ),
    "imports a memory": _text(
        f'(module (import "ledger" "credit" (memory 1)) {EXECUTE} {_DONE}))', "as a memory"
    ),
    "imports a global": _text(
        f'(module (import "ledger" "credit" (global i64)) {EXECUTE} {_DONE}))', "as a global"
    ),
    "imports a table": _text(
        f'(module (import "ledger" "debit" (table 1 funcref)) {EXECUTE} {_DONE}))', "as a table"
    ),
    "a thousand imports": _text(f"(module {CREDIT.replace('$credit', '') * 1000})", "imports"),
    # Exports.
    "exports nothing": _text("(module)", "no export named execute"),
    "exports Execute": _text(
        f'(module (func (export "Execute") {PARAMS} (result i32) {_DONE}))', "no export named"
    ),
    "exports a memory as execute": _text('(module (memory (export "execute") 1))', "as a memory"),
    "exports a global as execute": _text(
        '(module (global (export "execute") i64 (i64.const 1)))', "as a global"
    ),
    "execute with seven": _text(
        f'(module (func (export "execute") {PARAMS.replace("i64 ", "", 1)} (result i32) {_DONE}))',
        "must have the type",
    ),
    "execute with f64": _text(
        f'(module (func (export "execute") {PARAMS.replace("i64", "f64")} (result i32) {_DONE}))',
        "must have the type",
    ),
    "execute returns i64": _text(
        f'(module (func (export "execute") {PARAMS} (result i64) (i64.const 0)))',
        "must have the type",
    ),
    "execute returns two": _text(
        f'(module (func (export "execute") {PARAMS} (result i32 i32) {_DONE} {_DONE}))',
        "must have the type",
    ),
    "execute is an import": _text(
        f'(module {CREDIT} (export "execute" (func $credit)))', "must have the type"
    ),
    "exports a function that is not there": Refused(
        lambda: module(
            [body(RETURN_0)], exports=section(7, vector([name("execute") + b"\x00\x05"]))
        ),
        "no function 5",
    ),
    "starts a function that is not there": Refused(
        lambda: module([body(RETURN_0)], after_exports=section(8, b"\x07")), "no function 7"
    ),
    "starts a function with parameters": _text(
        f"(module (start $s) (func $s (param i64)) {EXECUTE} {_DONE}))"
    ),
    # Memory and tables.
    "4 GB of memory": _inside(_DONE, "bytes of memory", "(memory 65536)"),
    "a page more than allowed": _inside(_DONE, "bytes of memory", "(memory 257)"),
    "a shared memory": _inside(_DONE, "shared memory", "(memory 1 1 shared)"),
    "a memory with 64 bits": _inside(_DONE, "64-bit", "(memory i64 1)"),
    "two memories": _inside(_DONE, "memories", "(memory 1) (memory 1)"),
    "pages of one byte": _inside(_DONE, "pages of another size", "(memory 1 (pagesize 1))"),
    "a table of four thousand million": _inside(_DONE, "elements", "(table 4294967295 funcref)"),
    "tables larger together": _inside(
        _DONE, "elements in tables", "(table 9000 funcref) (table 9000 funcref)"
    ),
    "five tables": _inside(_DONE, "tables", "(table 1 funcref)" * 5),
    "a table with 64 bits": _inside(_DONE, "64-bit", "(table i64 1 funcref)"),
    "data outside of memory": _inside(
        _DONE, INSTANTIATION, '(memory 1) (data (i32.const 65535) "ab")'
    ),
    "elements outside of a table": _inside(
        _DONE, INSTANTIATION, "(table 1 funcref) (elem (i32.const 1) $credit)"
    ),
    "data without a memory": Refused(
        lambda: module([body(RETURN_0)], after_code=section(11, b"\x01\x00\x41\x00\x0b\x01a"))
    ),
    "a hundred thousand elements": Refused(
        lambda: module(
            [body(RETURN_0)],
            before_exports=section(4, b"\x01\x70\x00\xff\x4d"),
            after_exports=section(9, b"\x01\x00\x41\x00\x0b" + unsigned(100_000) + bytes(100_000)),
        ),
        "elements",
    ),
    # What is not of this WebAssembly.
    "threads": _inside(
        "(drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1)))" + _DONE, "threads", "(memory 1)"
    ),
    "a fence": _inside("(atomic.fence)" + _DONE, "threads"),
    "SIMD": _inside("(drop (v128.const i64x2 1 2))" + _DONE, "SIMD"),
    "a global of SIMD": _inside(_DONE, "type of values", "(global v128 (v128.const i64x2 1 2))"),
    "relaxed SIMD": _inside(
        "(drop (i8x16.relaxed_swizzle (v128.const i64x2 1 2) (v128.const i64x2 1 2)))" + _DONE,
        "SIMD",
    ),
    "exceptions": _inside("(throw $t)", "exceptions", "(tag $t)"),
    "catching exceptions": _inside(
        "(block $b (try_table (catch_all $b) (nop))) " + _DONE, "exceptions"
    ),
    "tail calls": _inside("(return_call $f)", "tail calls", f"(func $f (result i32) {_DONE})"),
    "garbage collection": _inside(
        "(drop (struct.new $s (i32.const 1)))" + _DONE, "type", "(type $s (struct (field i32)))"
    ),
    "small references": _inside("(drop (ref.i31 (i32.const 1)))" + _DONE, "garbage collection"),
    "typed references": _inside(
        "(call_ref $t (ref.func $f))",
        "typed references",
        f"(type $t (func (result i32))) (func $f (type $t) {_DONE}) (elem declare func $f)",
    ),
    "wide arithmetic": _inside(
        "(i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)) drop drop" + _DONE,
        "0xfc 19",
    ),
    "an unknown instruction": Refused(lambda: module([body(b"\xff\x00")]), "unknown instruction"),
    # Not valid: the compiler's business.
    "adds i32 to i64": Refused(lambda: module([body(b"\x20\x00\x41\x00\x7c\xa7")])),
    "an empty stack": Refused(lambda: module([body(b"\x1a")])),
    "a local that is not there": Refused(lambda: module([body(b"\x20\x08\xa7")])),
    "calls what is not there": Refused(lambda: module([body(b"\x10\x09" + RETURN_0)])),
    "branches out of everything": Refused(lambda: module([body(b"\x0c\x09")])),
    "sets a constant": Refused(
        lambda: module(
            [body(b"\x42\x00\x24\x00" + RETURN_0)],
            before_exports=section(6, b"\x01\x7e\x00\x42\x00\x0b"),
        )
    ),
}

_MANY = 100_000
_LOCAL_SETS = b"".join(
    b"\x20"
    + unsigned(8 + i)
    + b"\x20"
    + unsigned(8 + (i * 7 + 1) % 900)
    + b"\x7c\x21"
    + unsigned(8 + i)
    for i in range(900)
)

EXPENSIVE: dict[str, Callable[[], bytes]] = {
    # Compiling these takes from seconds to hours, and gigabytes.
    "nested loops": lambda: _nested(b"\x03\x40", _MANY // 3),
    "nested blocks": lambda: _nested(b"\x02\x40", _MANY // 3),
    "nested ifs": lambda: _nested(b"\x20\x00\xa7\x04\x40", _MANY // 6),
    "loops in a row": lambda: module([body(_repeat(_LOOP, _MANY) + RETURN_0)]),
    "locals through nested loops": lambda: module(
        [
            body(
                (b"\x03\x40" * 16 + _LOCAL_SETS + b"\x20\x08\xa7\x0d\x00\x0b" * 16) * 6 + RETURN_0,
                [(900, I64)],
            )
        ]
    ),
    "locals through loops in a row": lambda: module(
        [body(_LOCAL_SETS + _repeat(_LOOP, _MANY) + _LOCAL_SETS + RETURN_0, [(900, I64)])]
    ),
    "a table of 65,000 branches": lambda: module(
        [body(b"\x02\x40\x20\x00\xa7\x0e" + unsigned(65_000) + bytes(65_001) + b"\x0b" + RETURN_0)]
    ),
    "tables of branches with locals": lambda: module(
        [
            body(
                b"\x02\x40" * 100
                + (
                    _LOCAL_SETS
                    + b"\x02\x40\x20\x00\xa7\x0e"
                    + unsigned(1000)
                    + bytes(i % 100 for i in range(1001))
                    + b"\x0b"
                )
                * 30
                + b"\x0b" * 100
                + RETURN_0,
                [(900, I64)],
            )
        ]
    ),
    "calls through a table": lambda: module(
        [body(_repeat(b"\x20\x00\xa7\x11\x01\x00", _MANY) + RETURN_0)],
        types=[NOTHING_TYPE],
        before_exports=section(4, b"\x01\x70\x00\x01"),
    ),
    "growth of a table": lambda: module(
        [body(_repeat(b"\xd0\x70\x41\x01\xfc\x0f\x00\x1a", _MANY) + RETURN_0)],
        before_exports=section(4, b"\x01\x70\x00\x01"),
    ),
    "conversions that trap": lambda: module(
        [body(b"\x20\x00" + _repeat(b"\xb9\xb0", _MANY) + b"\x1a" + RETURN_0)]
    ),
    "divisions": lambda: module(
        [body(b"\x20\x00" + _repeat(b"\x20\x01\x7f", _MANY) + b"\x1a" + RETURN_0)]
    ),
    "4 MB of divisions in small functions": lambda: module(
        [body(RETURN_0), *[body(b"\x20\x00" + b"\x20\x01\x7f" * 1000 + b"\x1a" + RETURN_0)] * 1_300]
    ),
    "4 MB of sums": lambda: module(
        [body(b"\x20\x00" + _repeat(b"\x20\x01\x7c", 4_000_000) + b"\x1a" + RETURN_0)]
    ),
    "blocks of eight values": lambda: module(
        [
            body(
                b"\x20\x00" * 8
                + _repeat(b"\x03\x01\x20\x00\xa7\x0d\x00\x0b", _MANY)
                + b"\x1a" * 8
                + RETURN_0
            )
        ],
        types=[signature(I64 * 8, I64 * 8)],
    ),
    "a thousand parameters": lambda: _one_type(1000, 0),
    "a thousand results": lambda: _one_type(0, 1000),
    "fifty thousand locals": lambda: module([body(RETURN_0, [(50_000, I64)])]),
    "800,000 functions": lambda: module([body(RETURN_0)] * 800_000),
    "loops 17 deep": lambda: _nested(b"\x03\x40", 17),
}
"""Refused by the inspector before the compiler sees them."""

ALLOWED: dict[str, Callable[[], bytes]] = {
    # At the edge: each compiles, and returns 0.
    "4 MB": lambda: of_size(MEGABYTES_4),
    "4 MB of data": lambda: module(
        [body(RETURN_0)],
        before_exports=section(5, b"\x01\x00\x40"),
        after_code=section(11, b"\x01\x00\x41\x00\x0b" + unsigned(4_190_000) + b"\x01" * 4_190_000),
    ),
    "4 MB of nothing": lambda: module([body(b"\x01" * 4_190_000 + RETURN_0)]),
    "ten thousand functions": lambda: module(
        [body(RETURN_0), *[body(b"")] * 9_999],
        types=[NOTHING_TYPE],
        of_type=[0, *[1] * 9_999],
    ),
    "a thousand locals": lambda: module([body(RETURN_0, [(992, I64)])]),
    "two thousand blocks deep": lambda: _nested(b"\x02\x40", 2_000),
    "loops 16 deep": lambda: _nested(b"\x03\x40", 16),
    "a table of 10,000 with as many elements": lambda: module(
        [body(RETURN_0)],
        before_exports=section(4, b"\x01\x70\x00" + unsigned(10_000)),
        after_exports=section(9, b"\x01\x00\x41\x00\x0b" + unsigned(10_000) + bytes(10_000)),
    ),
    "a passive segment": lambda: function(_DONE, '(memory 1) (data $d "abc")'),
    "a name in Chinese": lambda: function(_DONE, '(func (export "\u529f\u80fd"))'),
    "imports three times": lambda: wat(
        f"(module {CREDIT.replace('$credit', '') * 3} {EXECUTE} {_DONE}))"
    ),
}


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


FAILING: dict[str, Failing] = {
    # Does not end.
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
        lambda: function(_DONE, "(start $s) (func $s (loop $l (br $l)))"), _QUOTA
    ),
    "a start function that fills memory for ever": Failing(
        lambda: function(
            _DONE,
            "(memory 256) (start $s) (func $s (loop $l"
            " (memory.fill (i32.const 0) (i32.const 1) (i32.const 16777216)) (br $l)))",
        ),
        _QUOTA,
    ),
    # Too deep.
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
        lambda: function(_DONE, "(start $s) (func $s (call $s))"), Status.INVALID_OPERATION
    ),
    # Traps.
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
        lambda: function(_DONE, f"(start $s) (func $s {MOVE} unreachable)"),
        Status.INVALID_OPERATION,
    ),
    # Wrong about money.
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
        lambda: function(_DONE, "(start $s) (func $s (call $credit (i64.const 1) (i64.const 5)))"),
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
    # Wrong about statuses.
    "returns 256": _fails("(i32.const 256)"),
    "returns -1": _fails("(i32.const -1)"),
    "returns the smallest": _fails("(i32.const 0x80000000)"),
    "says that it is a duplicate": _fails(f"(i32.const {int(Status.DUPLICATE)})"),
    "returns a status of its own": _fails("(i32.const 200)", 200),
}


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
    # On one instance the second call would trap: what was dropped is gone.
    "drops its data": (
        lambda: function(
            "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 4)) (data.drop $d)" + _DONE,
            '(memory 1) (data $d "abcd")',
        ),
        Status.NONE,
    ),
    "drops its elements": (
        lambda: function(
            "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 1)) (elem.drop $e)" + _DONE,
            "(table $t 1 funcref) (elem $e func $credit)",
        ),
        Status.NONE,
    ),
}

STATELESS: dict[str, Callable[[], bytes]] = {
    # Cannot write: none needs an instance of its own.
    "nothing at all": lambda: module([body(RETURN_0)]),
    "a transfer": lambda: function(MOVE + _DONE),
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
        f"(type $z (func (result i32))) (func $f (type $z) {_DONE}) (table 1 funcref)"
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
