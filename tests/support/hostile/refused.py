"""What cannot be registered, by what it attacks.

- `NO_MODULES`: whoever takes any bytes for a module
- `LYING_LENGTHS`: whoever believes a length or a count, and reserves memory for it
- `IMPORTS`, `EXPORTS`: the border between a function and the ledger
- `MEMORIES_AND_TABLES`: the limits on memory, and what is written there before the first call
- `OTHER_WEBASSEMBLY`: that a call ends alike everywhere, by instructions that are not allowed
- `INVALID`: the compiler, by code that is not valid

`REFUSED` has them all.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.support.hostile.making import (
    CREDIT,
    DONE,
    EXECUTE,
    EXECUTE_TYPE,
    EXPORT,
    I64,
    MAGIC,
    MEGABYTES_4,
    PARAMS,
    RETURN_0,
    body,
    function,
    module,
    name,
    of_size,
    section,
    unsigned,
    vector,
    wat,
)

INSTANTIATION = "cannot be instantiated"


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


NO_MODULES: dict[str, Refused] = {
    "nothing": Refused(lambda: b"", "does not begin with"),
    "text": Refused(lambda: b"(module)", "does not begin with"),
    "another version": Refused(lambda: b"\x00asm\x02\x00\x00\x00", "version"),
    "a component": _text("(component)", "component"),
    "an executable": Refused(lambda: b"\x7fELF" + bytes(100), "does not begin with"),
    "4 MB and a byte": Refused(lambda: of_size(MEGABYTES_4 + 1), "at most 4194304"),
}

LYING_LENGTHS: dict[str, Refused] = {
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
}

IMPORTS: dict[str, Refused] = {
    "imports wasi": _text(
        '(module (import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))'
        f" {EXECUTE} {DONE}))",
        "wasi_snapshot_preview1.random_get",
    ),
    "imports env.abort": _text(
        f'(module (import "env" "abort" (func (param i32 i32 i32 i32))) {EXECUTE} {DONE}))',
        "imports env.abort",
    ),
    "imports another of the ledger": _text(
        f'(module (import "ledger" "transfer" (func (param i64 i64))) {EXECUTE} {DONE}))',
        "ledger.transfer",
    ),
    "imports with a capital": _text(
        f'(module (import "Ledger" "credit" (func (param i64 i64))) {EXECUTE} {DONE}))',
        "imports Ledger.credit",
    ),
    "imports a name with control characters": _text(
        f'(module (import "ledger" "a\\0a\\00b" (func)) {EXECUTE} {DONE}))', r"ledger.a\n\x00b"
    ),
    "imports with three parameters": _text(
        f'(module (import "ledger" "credit" (func (param i64 i64 i64))) {EXECUTE} {DONE}))',
        "imports ledger.credit with another type",
    ),
    "imports with i32": _text(
        f'(module (import "ledger" "debit" (func (param i32 i64))) {EXECUTE} {DONE}))',
        "imports ledger.debit with another type",
    ),
    "imports without a result": _text(
        f'(module (import "ledger" "get_balance" (func (param i64))) {EXECUTE} {DONE}))',
        "imports ledger.get_balance with another type",
    ),
    "imports a memory": _text(
        f'(module (import "ledger" "credit" (memory 1)) {EXECUTE} {DONE}))', "as a memory"
    ),
    "imports a global": _text(
        f'(module (import "ledger" "credit" (global i64)) {EXECUTE} {DONE}))', "as a global"
    ),
    "imports a table": _text(
        f'(module (import "ledger" "debit" (table 1 funcref)) {EXECUTE} {DONE}))', "as a table"
    ),
    "a thousand imports": _text(f"(module {CREDIT.replace('$credit', '') * 1000})", "imports"),
}

EXPORTS: dict[str, Refused] = {
    "exports nothing": _text("(module)", "no export named execute"),
    "exports Execute": _text(
        f'(module (func (export "Execute") {PARAMS} (result i32) {DONE}))', "no export named"
    ),
    "exports a memory as execute": _text('(module (memory (export "execute") 1))', "as a memory"),
    "exports a global as execute": _text(
        '(module (global (export "execute") i64 (i64.const 1)))', "as a global"
    ),
    "execute with seven": _text(
        f'(module (func (export "execute") {PARAMS.replace("i64 ", "", 1)} (result i32) {DONE}))',
        "must have the type",
    ),
    "execute with f64": _text(
        f'(module (func (export "execute") {PARAMS.replace("i64", "f64")} (result i32) {DONE}))',
        "must have the type",
    ),
    "execute returns i64": _text(
        f'(module (func (export "execute") {PARAMS} (result i64) (i64.const 0)))',
        "must have the type",
    ),
    "execute returns two": _text(
        f'(module (func (export "execute") {PARAMS} (result i32 i32) {DONE} {DONE}))',
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
        f"(module (start $s) (func $s (param i64)) {EXECUTE} {DONE}))"
    ),
}

MEMORIES_AND_TABLES: dict[str, Refused] = {
    "4 GB of memory": _inside(DONE, "bytes of memory", "(memory 65536)"),
    "a page more than allowed": _inside(DONE, "bytes of memory", "(memory 257)"),
    "a shared memory": _inside(DONE, "shared memory", "(memory 1 1 shared)"),
    "a memory with 64 bits": _inside(DONE, "64-bit", "(memory i64 1)"),
    "two memories": _inside(DONE, "memories", "(memory 1) (memory 1)"),
    "pages of one byte": _inside(DONE, "pages of another size", "(memory 1 (pagesize 1))"),
    "a table of four thousand million": _inside(DONE, "elements", "(table 4294967295 funcref)"),
    "tables larger together": _inside(
        DONE, "elements in tables", "(table 9000 funcref) (table 9000 funcref)"
    ),
    "five tables": _inside(DONE, "tables", "(table 1 funcref)" * 5),
    "a table with 64 bits": _inside(DONE, "64-bit", "(table i64 1 funcref)"),
    "data outside of memory": _inside(
        DONE, INSTANTIATION, '(memory 1) (data (i32.const 65535) "ab")'
    ),
    "elements outside of a table": _inside(
        DONE, INSTANTIATION, "(table 1 funcref) (elem (i32.const 1) $credit)"
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
}

OTHER_WEBASSEMBLY: dict[str, Refused] = {
    "threads": _inside(
        "(drop (i32.atomic.rmw.add (i32.const 0) (i32.const 1)))" + DONE, "threads", "(memory 1)"
    ),
    "a fence": _inside("(atomic.fence)" + DONE, "threads"),
    "SIMD": _inside("(drop (v128.const i64x2 1 2))" + DONE, "SIMD"),
    "a global of SIMD": _inside(DONE, "type of values", "(global v128 (v128.const i64x2 1 2))"),
    "relaxed SIMD": _inside(
        "(drop (i8x16.relaxed_swizzle (v128.const i64x2 1 2) (v128.const i64x2 1 2)))" + DONE,
        "SIMD",
    ),
    "exceptions": _inside("(throw $t)", "exceptions", "(tag $t)"),
    "catching exceptions": _inside(
        "(block $b (try_table (catch_all $b) (nop))) " + DONE, "exceptions"
    ),
    "tail calls": _inside("(return_call $f)", "tail calls", f"(func $f (result i32) {DONE})"),
    "garbage collection": _inside(
        "(drop (struct.new $s (i32.const 1)))" + DONE, "type", "(type $s (struct (field i32)))"
    ),
    "small references": _inside("(drop (ref.i31 (i32.const 1)))" + DONE, "garbage collection"),
    "typed references": _inside(
        "(call_ref $t (ref.func $f))",
        "typed references",
        f"(type $t (func (result i32))) (func $f (type $t) {DONE}) (elem declare func $f)",
    ),
    "wide arithmetic": _inside(
        "(i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)) drop drop" + DONE,
        "0xfc 19",
    ),
    "an unknown instruction": Refused(lambda: module([body(b"\xff\x00")]), "unknown instruction"),
}

INVALID: dict[str, Refused] = {
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

REFUSED = {
    **NO_MODULES,
    **LYING_LENGTHS,
    **IMPORTS,
    **EXPORTS,
    **MEMORIES_AND_TABLES,
    **OTHER_WEBASSEMBLY,
    **INVALID,
}
