"""How modules are made for tests: from text, or byte by byte where no text gives them."""

from collections.abc import Sequence
from functools import cache

from wasmtime import wat2wasm

PARAMS = "(param i64 i64 i64 i64 i64 i64 i64 i64)"
EXECUTE = f'(func (export "execute") {PARAMS} (result i32)'
CREDIT = '(import "ledger" "credit" (func $credit (param i64 i64)))'
DEBIT = '(import "ledger" "debit" (func $debit (param i64 i64)))'
BALANCE = '(import "ledger" "get_balance" (func $get_balance (param i64) (result i64)))'
HOST = CREDIT + DEBIT + BALANCE
MOVE = "(call $credit (i64.const 1) (i64.const 5)) (call $debit (i64.const 2) (i64.const 5))"
"""Moves 5 from account 1 to 2: what a failure must undo."""
MEGABYTES_4 = 4 << 20
DONE = "(i32.const 0)"
"""Returns 0."""

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


def repeat(unit: bytes, size: int) -> bytes:
    """Instructions, again and again, in about so many bytes."""
    return unit * (size // len(unit))


def nested(opening: bytes, count: int, closing: bytes = b"\x0b") -> bytes:
    """Control instructions inside one another."""
    return module([body(opening * count + closing * count + RETURN_0)])
