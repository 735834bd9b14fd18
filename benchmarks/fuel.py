"""Nanoseconds per unit of fuel, for every kind of code: `python -m benchmarks.fuel`.

A unit may take ten nanoseconds at most, whatever a function does with it: that is what makes fuel a
bound of time. Each case repeats one instruction, with the least that it needs around it, until the
quota of a call is spent (or does once what can be done once), in the transactor's own sandbox. The
least of several runs counts, of the thread's processor time. Ends with 1 if a case takes longer
than the bound allows. Nothing is written to disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table
from wasmtime import wat2wasm

from tallybus.common.memory import lazy_zeros
from tallybus.services.transactor.functions.binding import Sandbox
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.handler import compile_function
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.once import call_once
from tallybus.services.transactor.functions.state import CallState

ACCOUNTS: Final = 10_000_000
BOUND_NS: Final = 10.0
CONSTANT_NS: Final = 50_000
"""What a call may take beside its fuel: readings, an instance, a trap."""
UNROLLED: Final = 64

IMPORTS: Final = (
    '(import "ledger" "credit" (func $credit (param i64 i64)))'
    '(import "ledger" "debit" (func $debit (param i64 i64)))'
    '(import "ledger" "get_balance" (func $balance (param i64) (result i64)))'
)
EXECUTE: Final = (
    '(func $x (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32) '
    "(local $i i32) (local $j i64) (local $f f32) (local $g f64) (local $r funcref)"
)
RANDOM: Final = (
    "(local.set $j (i64.add (i64.mul (local.get $j) (i64.const 6364136223846793005))"
    " (i64.const 1442695040888963407)))"
)
"""One step of a generator whose upper bits are good enough."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One row. `fuel`: what the call used."""

    name: str
    ns_per_unit: float
    fuel: int
    ms: float


def loop(body: str, times: int = UNROLLED, declarations: str = "", before: str = "") -> str:
    """A module that does `body` until its fuel is spent."""
    return (
        f"(module {IMPORTS}{declarations}{EXECUTE}{before}"
        f"(loop $l {body * times} (br $l)) (i32.const 0)))"
    )


def once(body: str, declarations: str = "") -> str:
    """A module that does `body` once."""
    return f"(module {IMPORTS}{declarations}{EXECUTE}{body} (i32.const 0)))"


def numeric() -> Iterator[tuple[str, str]]:
    """Every instruction on numbers, by its name."""
    for size in ("i32", "i64"):
        local = "local.get $i" if size == "i32" else "local.get $j"
        to = "local.set $i" if size == "i32" else "local.set $j"
        for op in (
            "add",
            "sub",
            "mul",
            "and",
            "or",
            "xor",
            "shl",
            "shr_s",
            "shr_u",
            "rotl",
            "rotr",
        ):
            yield f"{size}.{op}", loop(f"({to} ({size}.{op} ({local}) ({local})))")
        for op in ("div_s", "div_u", "rem_s", "rem_u"):
            yield (
                f"{size}.{op}",
                loop(
                    f"({to} ({size}.or ({size}.{op} ({size}.const -3) ({local}))"
                    f" ({size}.const 1)))",
                    before=f"({to} ({size}.const 3))",
                ),
            )
        for op in ("clz", "ctz", "popcnt", "extend8_s", "extend16_s"):
            yield f"{size}.{op}", loop(f"({to} ({size}.{op} ({local})))")
        for op in ("eq", "ne", "lt_s", "lt_u", "gt_s", "gt_u", "le_s", "le_u", "ge_s", "ge_u"):
            yield f"{size}.{op}", loop(f"(local.set $i ({size}.{op} ({local}) ({local})))")
        yield f"{size}.eqz", loop(f"(local.set $i ({size}.eqz ({local})))")
    yield "i64.extend32_s", loop("(local.set $j (i64.extend32_s (local.get $j)))")
    for op in ("extend_i32_s", "extend_i32_u"):
        yield f"i64.{op}", loop(f"(local.set $j (i64.{op} (local.get $i)))")
    yield "i32.wrap_i64", loop("(local.set $i (i32.wrap_i64 (local.get $j)))")


def floating() -> Iterator[tuple[str, str]]:
    """Every instruction on floats: with ordinary numbers, and with those that are slow."""
    kinds = {
        "f32": ("$f", {"": "1.7", " small": "0x1.8p-130", " nan": "nan:0x200000"}),
        "f64": ("$g", {"": "1.7", " small": "0x1.8p-1030", " nan": "nan:0x4000000000000"}),
    }
    for size, (name, values) in kinds.items():
        for what, value in values.items():
            start = f"(local.set {name} ({size}.const {value}))"
            for op in ("add", "sub", "mul", "div", "min", "max", "copysign"):
                other = "0x1.8p-1" if op == "mul" else value
                pair = f"(local.get {name}) ({size}.const {other})"
                if op == "div":
                    pair = f"({size}.const {value}) (local.get {name})"
                # A small number is kept small.
                again = start if what == " small" and op == "mul" else ""
                yield (
                    f"{size}.{op}{what}",
                    loop(f"(local.set {name} ({size}.{op} {pair})){again}", before=start),
                )
            for op in ("abs", "neg", "sqrt", "ceil", "floor", "trunc", "nearest"):
                yield (
                    f"{size}.{op}{what}",
                    loop(
                        f"(local.set {name} ({size}.{op} (local.get {name})))",
                        before=f"(local.set {name} ({size}.const {value}))",
                    ),
                )
            for op in ("eq", "lt"):
                yield (
                    f"{size}.{op}{what}",
                    loop(
                        f"(local.set $i ({size}.{op} (local.get {name}) (local.get {name})))",
                        before=f"(local.set {name} ({size}.const {value}))",
                    ),
                )
        for whole, local in (("i32", "$i"), ("i64", "$j")):
            for sign in "su":
                for trunc in ("trunc", "trunc_sat"):
                    yield (
                        f"{whole}.{trunc}_{size}_{sign}",
                        loop(
                            f"(local.set {local}"
                            f" ({whole}.{trunc}_{size}_{sign} (local.get {name})))"
                        ),
                    )
                yield (
                    f"{size}.convert_{whole}_{sign}",
                    loop(f"(local.set {name} ({size}.convert_{whole}_{sign} (local.get {local})))"),
                )
    for what, value in (("", "1.7"), (" small", "0x1.8p-130")):
        yield (
            f"f64.promote_f32{what}",
            loop(
                "(local.set $g (f64.promote_f32 (local.get $f)))",
                before=f"(local.set $f (f32.const {value}))",
            ),
        )
        yield (
            f"f32.demote_f64{what}",
            loop(
                "(local.set $f (f32.demote_f64 (local.get $g)))",
                before=f"(local.set $g (f64.const {value}))",
            ),
        )
    yield (
        "f64.mul small, one after the other",
        loop(
            "(local.set $g (f64.mul (local.get $g) (f64.const 1.5)))"
            "(local.set $g (f64.mul (local.get $g) (f64.const 0.6666)))",
            before="(local.set $g (f64.const 0x1.8p-1040))",
        ),
    )
    yield (
        "f64.mul of two, small result",
        loop(
            "(local.set $g (f64.mul (f64.mul (local.get $g) (f64.const 0x1.3p-40))"
            " (f64.const 0x1p40)))",
            before="(local.set $g (f64.const 0x1.8p-1000))",
        ),
    )
    for a, b in (("i32", "f32"), ("i64", "f64")):
        local, name = ("$i", "$f") if a == "i32" else ("$j", "$g")
        yield (
            f"{a}.reinterpret_{b}",
            loop(f"(local.set {local} ({a}.reinterpret_{b} (local.get {name})))"),
        )
        yield (
            f"{b}.reinterpret_{a}",
            loop(f"(local.set {name} ({b}.reinterpret_{a} (local.get {local})))"),
        )


def control() -> Iterator[tuple[str, str]]:
    yield "empty loop", loop("", 1)
    yield "nop", loop("(nop)")
    yield "constants", loop("(drop (i32.const 1))")
    yield "block", loop("(block)")
    yield "loops inside", loop("(loop)")
    yield "if", loop("(if (local.get $i) (then (nop)) (else (nop)))")
    yield "br_if", loop("(block (br_if 0 (local.get $i)))")
    yield (
        "br_if at random",
        loop(
            RANDOM + "(block (br_if 0 (i64.lt_s (local.get $j) (i64.const 0)))"
            " (local.set $i (i32.const 1)))"
        ),
    )
    yield "select", loop("(local.set $i (select (local.get $i) (i32.const 5) (local.get $i)))")
    targets = " ".join(str(n % 60) for n in range(1000))
    yield (
        "br_table at random",
        loop(
            RANDOM + "(block " * 60 + f"(br_table {targets} 0 (i32.and (i32.wrap_i64 (i64.shr_u "
            "(local.get $j) (i64.const 40))) (i32.const 1023)))" + ")" * 60,
            4,
        ),
    )
    blocks = "".join(f"(local.set $i (i32.const {n})) (br $l))" for n in range(2000))
    wide = " ".join(str(n) for n in range(2000))
    yield (
        "br_table to many places",
        f"(module {EXECUTE} (loop $l {RANDOM}" + "(block " * 2000 + f"(br_table {wide} (i32.rem_u "
        "(i32.wrap_i64 (i64.shr_u (local.get $j) (i64.const 33))) (i32.const 2000)))"
        f"{blocks} (br $l)) (i32.const 0)))",
    )


def calls() -> Iterator[tuple[str, str]]:
    yield "call of an own function", loop("(call $n)", declarations="(func $n)")
    yield (
        "call with 8 results",
        loop(
            "(call $n)" + "(drop)" * 8,
            declarations="(func $n (result i64 i64 i64 i64 i64 i64 i64 i64)"
            + "(i64.const 1)" * 8
            + ")",
        ),
    )
    yield (
        "call with 32 parameters",
        loop(
            "(call $n " + "(local.get $j)" * 32 + ")",
            declarations="(func $n (param " + "i64 " * 32 + "))",
        ),
    )
    yield (
        "call of a function with 1000 locals",
        loop("(call $n)", declarations="(func $n (local " + "i64 " * 1000 + "))"),
    )
    table = "(type $t (func)) (func $n) (table 4 funcref) (elem (i32.const 0) $n $n $n $n)"
    yield "call_indirect", loop("(call_indirect (type $t) (i32.const 1))", declarations=table)
    many = (
        "(type $t (func (param i64) (result i64)))"
        + "".join(
            f"(func $n{n} (param i64) (result i64) (i64.add (local.get 0) (i64.const {n * 77})))"
            for n in range(3000)
        )
        + "(table 3000 funcref) (elem (i32.const 0) "
        + " ".join(f"$n{n}" for n in range(3000))
        + ")"
    )
    yield (
        "call_indirect at random",
        loop(
            RANDOM + "(drop (call_indirect (type $t) (i64.const 1) (i32.rem_u (i32.wrap_i64"
            " (i64.shr_u (local.get $j) (i64.const 33))) (i32.const 3000))))",
            8,
            declarations=many,
        ),
    )
    yield "recursion until the stack ends", once("(call $n)", declarations="(func $n (call $n))")
    yield "get_balance", loop("(drop (call $balance (i64.const 5)))")
    yield (
        "get_balance at random",
        loop(
            RANDOM + "(drop (call $balance (i64.rem_u (i64.shr_u (local.get $j) (i64.const 20))"
            f" (i64.const {ACCOUNTS}))))"
        ),
    )
    yield (
        "get_balance, one reads the next",
        loop(
            "(local.set $j (i64.and (i64.mul (i64.add (call $balance (local.get $j)) (i64.add "
            "(local.get $j) (i64.const 12345))) (i64.const 0x5851F42D)) (i64.const 0x7fffff)))"
        ),
    )
    yield "get_balance of none", loop("(drop (call $balance (i64.const -5)))")
    yield "credit of nothing", loop("(call $credit (i64.const 5) (i64.const 0))")
    yield "debit beyond the entries", loop("(call $debit (i64.const 5) (i64.const 1))")
    yield "straight on: get_balance", once("(drop (call $balance (i64.const 5)))" * 200_000)
    yield (
        "255 debits at random",
        once(
            (
                RANDOM + "(call $debit (i64.rem_u (i64.shr_u (local.get $j) (i64.const 20))"
                f" (i64.const {ACCOUNTS})) (i64.const 1))"
            )
            * 255
        ),
    )


def references() -> Iterator[tuple[str, str]]:
    table = "(func $n) (elem declare func $n) (table $a 8000 funcref) (table $b 1000 externref)"
    yield "ref.func", loop("(drop (ref.func $n))", declarations=table)
    yield "ref.null", loop("(drop (ref.null func))", declarations=table)
    yield "ref.is_null", loop("(drop (ref.is_null (local.get $r)))", declarations=table)
    yield "table.get", loop("(drop (table.get $a (i32.const 5)))", declarations=table)
    yield "table.get, extern", loop("(drop (table.get $b (i32.const 5)))", declarations=table)
    yield "table.set", loop("(table.set $a (i32.const 5) (local.get $r))", declarations=table)
    yield (
        "table.set, function",
        loop("(table.set $a (i32.const 5) (ref.func $n))", declarations=table),
    )
    yield (
        "table.set, extern",
        loop("(table.set $b (i32.const 5) (ref.null extern))", declarations=table),
    )
    yield "table.size", loop("(drop (table.size $a))", declarations=table)
    yield (
        "table.grow by 0",
        loop("(drop (table.grow $a (local.get $r) (i32.const 0)))", declarations=table),
    )
    yield (
        "table.grow fails",
        loop("(drop (table.grow $a (local.get $r) (i32.const -1)))", declarations=table),
    )
    yield (
        "table.grow by 1",
        loop("(drop (table.grow $a (local.get $r) (i32.const 1)))", declarations=table),
    )
    yield (
        "table.grow by 1, extern",
        loop("(drop (table.grow $b (ref.null extern) (i32.const 1)))", declarations=table),
    )
    for n in (0, 1, 100, 8000):
        yield (
            f"table.fill of {n}",
            loop(
                f"(table.fill $a (i32.const 0) (local.get $r) (i32.const {n}))", declarations=table
            ),
        )
        yield (
            f"table.copy of {n}",
            loop(
                f"(table.copy $a $a (i32.const 0) (i32.const 0) (i32.const {n}))",
                declarations=table,
            ),
        )
    for n in (0, 1, 100, 1000):
        yield (
            f"table.fill of {n}, extern",
            loop(
                f"(table.fill $b (i32.const 0) (ref.null extern) (i32.const {n}))",
                declarations=table,
            ),
        )
        yield (
            f"table.copy of {n}, extern",
            loop(
                f"(table.copy $b $b (i32.const 0) (i32.const 0) (i32.const {n}))",
                declarations=table,
            ),
        )
        elements = table + "(elem $e func " + "$n " * 1000 + ")"
        yield (
            f"table.init of {n}",
            loop(
                f"(table.init $a $e (i32.const 0) (i32.const 0) (i32.const {n}))",
                declarations=elements,
            ),
        )
        if n:
            declared = table + "(elem $e funcref " + "(ref.func $n) " * 1000 + ")"
            yield (
                f"table.init of {n} expressions",
                loop(
                    f"(table.init $a $e (i32.const 0) (i32.const 0) (i32.const {n}))",
                    declarations=declared,
                ),
            )
    yield "elem.drop", loop("(elem.drop $e)", declarations=table + "(elem $e func $n)")
    yield (
        "table.get of all of a fresh table",
        loop(
            "(drop (table.get $a (i32.and (local.get $i) (i32.const 4095))))"
            "(local.set $i (i32.add (local.get $i) (i32.const 1)))",
            declarations="(func $n) (table $a 8000 funcref) (elem (i32.const 0) "
            + "$n " * 8000
            + ")",
        ),
    )


def memory() -> Iterator[tuple[str, str]]:
    small, large = "(memory 1)", "(memory 256)"
    for size in ("i32", "i64"):
        yield f"{size}.load", loop(f"(drop ({size}.load (i32.const 8)))", declarations=small)
        yield (
            f"{size}.store",
            loop(f"({size}.store (i32.const 8) ({size}.const 8))", declarations=small),
        )
    yield (
        "store, then a load across",
        loop(
            "(i32.store8 offset=3 (i32.const 0) (i32.const 8))"
            "(local.set $i (i32.load (i32.const 0)))",
            declarations=small,
        ),
    )
    yield (
        "load across a line",
        loop("(local.set $i (i32.load offset=61 (local.get $i)))", declarations=small),
    )
    yield (
        "load, one reads the next",
        loop("(local.set $i (i32.load (local.get $i)))", declarations=small),
    )
    yield "global.get", loop("(drop (global.get 0))", declarations="(global i64 (i64.const 5))")
    yield (
        "global.set",
        loop("(global.set 0 (i64.const 5))", declarations="(global (mut i64) (i64.const 5))"),
    )
    yield (
        "global.set of a reference",
        loop(
            "(global.set 0 (ref.null extern))",
            declarations="(global (mut externref) (ref.null extern))",
        ),
    )
    yield "memory.size", loop("(drop (memory.size))", declarations=small)
    yield "memory.grow by 0", loop("(drop (memory.grow (i32.const 0)))", declarations=small)
    yield "memory.grow fails", loop("(drop (memory.grow (i32.const -1)))", declarations=small)
    yield (
        "memory.grow beyond the limit",
        loop("(drop (memory.grow (i32.const 300)))", declarations=small),
    )
    yield "memory.grow by 1", loop("(drop (memory.grow (i32.const 1)))", 1, declarations=small)
    yield "memory.grow by 255", once("(drop (memory.grow (i32.const 255)))", declarations=small)
    yield (
        "memory.grow by 1, 255 times",
        once("(drop (memory.grow (i32.const 1)))" * 255, declarations=small),
    )
    for n in (0, 1, 64, 4096, 1 << 20):
        where = large if n > 4096 else small
        yield (
            f"memory.fill of {n}",
            loop(f"(memory.fill (i32.const 0) (i32.const 1) (i32.const {n}))", declarations=where),
        )
        yield (
            f"memory.copy of {n}",
            loop(f"(memory.copy (i32.const 1) (i32.const 0) (i32.const {n}))", declarations=where),
        )
        if n <= 4096:
            yield (
                f"memory.init of {n}",
                loop(
                    f"(memory.init $d (i32.const 0) (i32.const 0) (i32.const {n}))",
                    declarations=where + f'(data $d "{"x" * 4096}")',
                ),
            )
    yield "data.drop", loop("(data.drop $d)", declarations=small + '(data $d "x")')
    yield (
        "memory.fill out of bounds",
        once("(memory.fill (i32.const -1) (i32.const 1) (i32.const 100))", declarations=small),
    )
    touch = (
        "(i32.store (local.get $i) (i32.const 1))"
        "(local.set $i (i32.add (local.get $i) (i32.const 4096)))"
    )
    for pages in (1, 17, 256):
        yield (
            f"touching {pages * 16} pages",
            (
                f"(module (memory {pages}) {EXECUTE} (loop $l {touch}"
                f"(br_if $l (i32.lt_u (local.get $i) (i32.const {pages * 65536})))) (i32.const 0)))"
            ),
        )
        yield (
            f"touching {pages * 16} pages with fill",
            once(
                f"(memory.fill (i32.const 0) (i32.const 1) (i32.const {pages * 65536}))"
                if pages == 1
                else "".join(
                    f"(memory.fill (i32.const {n * 4096}) (i32.const 1) (i32.const 1))"
                    for n in range(pages * 16)
                ),
                f"(memory {pages})",
            ),
        )
    yield (
        "touching 4096 pages one from the other",
        once(
            "(i32.const 0)"
            + "(i32.load offset=4096)" * 4000
            + "(drop)"
            + "(i32.const 0)"
            + "".join(f"(i32.load offset={n * 4096})" for n in range(4096))
            + "(drop)"
            + "(i32.store (i32.const 0) (i32.const 0))",
            large,
        ),
    )
    yield (
        "touching 4096 pages after growing",
        (
            f"(module (memory 1) {EXECUTE} (drop (memory.grow (i32.const 255))) (loop $l {touch}"
            "(br_if $l (i32.lt_u (local.get $i) (i32.const 16777216)))) (i32.const 0)))"
        ),
    )
    chain = np.random.default_rng(1)
    for kib in (64, 1024, 3584):
        lines = kib * 16
        order = chain.permutation(lines)
        links = np.zeros((lines, 16), "<u4")
        links[order, 0] = np.roll(order, -1) * 64
        data = "".join(f"\\{byte:02x}" for byte in links.tobytes())
        yield (
            f"loads at random in {kib} KiB",
            loop(
                "(i32.load)",
                64,
                f'(memory {kib // 64}) (data (i32.const 0) "{data}")',
                "",
            )
            .replace("(loop $l ", "(loop $l (param i32) (result i32) ")
            .replace(EXECUTE, EXECUTE + "(i32.const 0)")
            .replace("(br $l)) (i32.const 0)", "(br $l))"),
        )
    yield (
        "stores at random in 16 MiB",
        loop(
            RANDOM + "(i64.store (i32.and (i32.wrap_i64 (i64.shr_u (local.get $j) (i64.const 33)))"
            " (i32.const 0xfffff8)) (i64.const 5))",
            declarations=large,
        ),
    )


def beginnings() -> Iterator[tuple[str, str]]:
    """What an instance takes before its code runs; each call gets a fresh one."""
    write = "(global $w (mut i32) (i32.const 0))"
    does = "(global.set $w (i32.const 1))"
    yield "an instance", once(does, write)
    yield "an instance with 17 pages", once(does, write + "(memory 17)")
    yield "an instance with 256 pages", once(does, write + "(memory 256)")
    yield (
        "1000 data segments",
        once(
            does,
            write
            + "(memory 256)"
            + "".join(f'(data (i32.const {n * 16384}) "x")' for n in range(1000)),
        ),
    )
    yield "1000 data segments, passive", once(does, write + "(memory 1)" + '(data "x")' * 1000)
    yield (
        "1 MiB of data",
        once(does, write + f'(memory 17) (data (i32.const 0) "{"x" * (1 << 20)}")'),
    )
    yield "999 globals", once(does, write + "(global i64 (i64.const 5))" * 998)
    sum_ = "(i64.const 1)" + "(i64.add (i64.const 1))" * 45
    yield "999 globals with long expressions", once(does, write + f"(global i64 {sum_})" * 998)
    yield "999 globals with ref.func", once(does, write + "(global funcref (ref.func $x))" * 998)
    yield "9000 functions", once(does, write + "(func)" * 9000)
    yield (
        "9000 functions in a table",
        once(
            does,
            write
            + "(func)" * 9000
            + "(table 9000 funcref) (elem (i32.const 0) "
            + " ".join(str(n + 4) for n in range(8999))
            + ")",
        ),
    )
    yield "9000 exports", once(does, write + "".join(f'(func (export "{n}"))' for n in range(990)))
    yield "a table of 10000", once(does, write + "(table 10000 funcref)")
    yield "a table of 10000, extern", once(does, write + "(table 10000 externref)")
    yield "a table of 10000 with a value", once(does, write + "(table 10000 funcref (ref.func $x))")
    yield (
        "10000 elements",
        once(does, write + "(table 10000 funcref) (elem (i32.const 0) " + "$x " * 10000 + ")"),
    )
    yield (
        "10000 elements, expressions",
        once(
            does,
            write
            + "(table 10000 funcref) (elem (i32.const 0) funcref "
            + "(ref.func $x)" * 10000
            + ")",
        ),
    )
    yield (
        "1000 segments of 10 elements",
        once(
            does,
            write + "(table 10000 funcref)" + ("(elem (i32.const 0) " + "$x " * 10 + ")") * 1000,
        ),
    )
    yield (
        "1000 passive segments of 10 expressions",
        once(
            does,
            write + ("(elem funcref " + "(ref.func $x) " * 10 + ")") * 1000,
        ),
    )
    yield (
        "100 imports",
        once(does, '(import "ledger" "credit" (func (param i64 i64)))' * 97 + write),
    )
    yield "a start function", once(does, write + "(func $s (loop $l (br $l))) (start $s)")
    yield "a trap", once("unreachable")
    yield "a trap in a fresh instance", once("unreachable", write)
    yield (
        "a trap deep down",
        once(
            "(call $n (i32.const 2000))",
            "(func $n (param i32) (if (i32.eqz (local.get 0)) (then unreachable))"
            " (call $n (i32.sub (local.get 0) (i32.const 1))))",
        ),
    )
    yield (
        "straight on: ref.func",
        once("(drop (ref.func $n))" * 500_000, "(func $n) (elem declare func $n)"),
    )


GROUPS: Final = {
    "numeric": numeric,
    "floating": floating,
    "control": control,
    "calls": calls,
    "references": references,
    "memory": memory,
    "beginnings": beginnings,
}


def measure(name: str, text: str, limits: FunctionLimits, runs: int) -> Measured:
    """The least that a call took."""
    calls_ = CallState(1)
    sandbox = Sandbox(calls_.words, limits)
    balances = lazy_zeros(ACCOUNTS, np.int64)
    best = 2**62
    try:
        function = compile_function(sandbox, bytes(wat2wasm(text)), limits)
        for _ in range(runs):
            began = time.thread_time_ns()
            call = call_once(sandbox, calls_, function, (), balances, limits.fuel)
            best = min(best, time.thread_time_ns() - began)
        function.close()
    finally:
        sandbox.close()
    return Measured(name, best / max(call.fuel_used, 1), call.fuel_used, best / 1e6)


def main() -> int:
    """Measures all groups or those named; worst first."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuel", description=__doc__)
    parser.add_argument("--group", action="append", choices=sorted(GROUPS), help="only this one")
    parser.add_argument("--fuel", type=int, default=FunctionLimits().fuel, help="of a call")
    parser.add_argument("--runs", type=int, default=3, help="of each case; the least counts")
    parser.add_argument("--top", type=int, default=30, help="rows to show; 0 for all")
    parser.add_argument("--json", action="store_true", help="all cases, for programs")
    given = parser.parse_args()
    limits = FunctionLimits(fuel=given.fuel)
    found = []
    for group in given.group or GROUPS:
        for name, text in GROUPS[group]():
            try:
                found.append(measure(name, text, limits, given.runs))
            except InvalidFunction as error:
                print(f"{name}: {error}", file=sys.stderr)
    found.sort(key=_excess, reverse=True)
    slow = [each for each in found if _excess(each) > BOUND_NS]
    if given.json:
        print(json.dumps([asdict(each) for each in found], indent=1))
        return 1 if slow else 0
    table = Table("case", "ns a unit", "fuel", "ms", title=f"{len(found)} cases, worst first")
    for each in found[: given.top or None]:
        table.add_row(each.name, f"{each.ns_per_unit:.2f}", f"{each.fuel:,}", f"{each.ms:.3f}")
    Console().print(table)
    return 1 if slow else 0


def _excess(measured: Measured) -> float:
    """Nanoseconds a unit, without what any call may take."""
    return max(measured.ms * 1e6 - CONSTANT_NS, 0) / max(measured.fuel, 1)


if __name__ == "__main__":
    sys.exit(main())
