"""Modules that the engine refuses, with the reason."""

from __future__ import annotations

import pytest
from crc32c import crc32c

from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.errors import InvalidFunction
from tests.support.function_modules import EMPTY, module, to_binary


@pytest.mark.parametrize(
    "text",
    [
        "(module)",
        '(module (func (export "other") (result i32) i32.const 0))',
        '(module (func (export "execute") (result i32) i32.const 0))',
        '(module (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64)))',
        f'(module (func (export "execute") (param {"i64 " * 8}) (result i64) i64.const 0))',
        f'(module (func (export "execute") (param {"i64 " * 7} i32) (result i32) i32.const 0))',
        '(module (global (export "execute") i32 (i32.const 0)))',
        module("(i32.const 0)", '(import "ledger" "now" (func (result i64)))'),
        module("(i32.const 0)", '(import "ledger" "credit" (func (param i64)))'),
        module("(i32.const 0)", '(import "env" "memory" (memory 1))'),
        module("(i32.const 0)", "(memory 1 1 shared)"),
        module("(i32.const 0)", '(memory 1) (data (i32.const 65536) "x")'),
    ],
)
def test_other_modules_are_refused(engine: Engine, text: str) -> None:
    with pytest.raises(InvalidFunction):
        engine.functions.compile(to_binary(text))


@pytest.mark.parametrize(
    "binary", [b"", b"\0asm", b"MZ" * 100, b"\0asm\1\0\0\0", b"\0asm\1\0\0\0\1"]
)
def test_what_is_no_module_is_refused(engine: Engine, binary: bytes) -> None:
    with pytest.raises(InvalidFunction):
        engine.functions.compile(binary)


def test_the_compiler_itself_checks_types(engine: Engine) -> None:
    """Calls are not checked, so the checks before them do not rely on one reader of binaries."""
    sandbox = engine.functions._sandbox
    for text in (
        "(module)",
        '(module (func (export "execute") (param i64) (result i32) i32.const 0))',
        '(module (memory (export "execute") 1))',
        module("(i32.const 0)", '(import "ledger" "credit" (func (param i64)))'),
        module("(i32.const 0)", '(import "env" "now" (func))'),
    ):
        with pytest.raises(InvalidFunction):
            sandbox.compile(to_binary(text))


def with_checksum_zero(binary: bytes) -> bytes:
    """The module with a custom section whose four bytes make its CRC-32C 0."""
    head = binary + b"\0\x06\x01x"
    base = crc32c(head + bytes(4))
    rows = [(crc32c(head + (1 << bit).to_bytes(4, "little")) ^ base, 1 << bit) for bit in range(32)]
    wanted, found = base, 0
    for bit in range(32):
        pivot = next(i for i, (value, _) in enumerate(rows) if value >> bit & 1)
        value, choice = rows.pop(pivot)
        rows = [(v ^ value, c ^ choice) if v >> bit & 1 else (v, c) for v, c in rows]
        if wanted >> bit & 1:
            wanted, found = wanted ^ value, found ^ choice
    return head + found.to_bytes(4, "little")


def test_a_module_whose_checksum_would_mean_no_function_is_refused(engine: Engine) -> None:
    binary = with_checksum_zero(to_binary(EMPTY.text))
    assert crc32c(binary) == 0
    with pytest.raises(InvalidFunction, match="CRC-32C"):
        engine.functions.compile(binary)
