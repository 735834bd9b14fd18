"""Instructions of WebAssembly, as far as they matter before compiling.

That is: how long each is, whether it writes state, and how much fuel it has to take beyond the one
unit that wasmtime counts, so that a unit is never longer than ten nanoseconds. What takes longer
gets constants in front of it that are dropped again: the compiler counts them and makes no code of
them. Fuel is looked at in loops and at the beginning of functions only; so an empty loop is put
wherever much could run without that.

Allowed is what compilers make by default: the first version with sign extension, conversions that
saturate, several results, bulk memory and reference types. All else is refused by its name: SIMD,
threads, exceptions, garbage collection, tail calls and whatever comes next. Types and stack heights
are the compiler's business. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NoReturn

from tallybus.services.transactor.functions.errors import InvalidFunction

MAX_LOOP_DEPTH: Final = 16
"""Loops within loops: values that live through many of them make the compiler explode."""

# What follows the byte of an instruction.
_NOTHING: Final = 0
_NUMBER: Final = 1
_ADDRESS: Final = 2
"""Alignment and offset."""
_BLOCK: Final = 3
_END: Final = 4
_BRANCH: Final = 5
"""A number: how many blocks to leave."""
_CALL: Final = 6
_TABLE_OF_BRANCHES: Final = 7
_CALL_INDIRECT: Final = 8
_MISC: Final = 9
_FOUR_BYTES: Final = 10
_EIGHT_BYTES: Final = 11
_TYPES: Final = 12
_REFUSED: Final = 13

_BLOCK_TYPES: Final = frozenset((0x40, 0x7F, 0x7E, 0x7D, 0x7C, 0x70, 0x6F))
_LOOP: Final = 0x03
_ELSE: Final = 0x05
_FIRST_STORE: Final = 0x36

_WRITES: Final = frozenset((0x24, 0x26, 0x40))
"""global.set, table.set, memory.grow. Stores are found by their range."""
_MISC_ONE_NUMBER: Final = frozenset((9, 11, 13, 15, 16, 17))
"""data.drop, memory.fill, elem.drop, table.grow, table.size, table.fill."""
_MISC_TWO_NUMBERS: Final = frozenset((8, 10, 12, 14))
"""memory.init, memory.copy, table.init, table.copy."""
_TABLE_SIZE: Final = 16

_PROPOSALS: Final[tuple[tuple[frozenset[int], str], ...]] = (
    (frozenset((0xFD,)), "SIMD"),
    (frozenset((0xFE,)), "threads"),
    (frozenset((0x06, 0x07, 0x08, 0x09, 0x0A, 0x18, 0x19, 0x1F)), "exceptions"),
    (frozenset((0x12, 0x13)), "tail calls"),
    (frozenset((0x14, 0x15, 0xD4, 0xD5, 0xD6)), "typed references"),
    (frozenset((0xD3, 0xFB)), "garbage collection"),
    (frozenset(range(0xE0, 0xE7)), "stack switching"),
)

_KIND_OF: Final[tuple[tuple[Iterable[int], int], ...]] = (
    ((0x00, 0x01, 0x05, 0x0F), _NOTHING),  # unreachable, nop, else, return
    ((0x1A, 0x1B, 0xD1), _NOTHING),  # drop, select, ref.is_null
    (range(0x45, 0xC5), _NOTHING),  # comparisons, arithmetic, conversions, sign extension
    (range(0x20, 0x27), _NUMBER),  # local.*, global.*, table.get, table.set
    ((0x3F, 0x40, 0x41, 0x42), _NUMBER),  # memory.size, memory.grow, i32.const, i64.const
    ((0xD0, 0xD2), _NUMBER),  # ref.null, ref.func
    (range(0x28, 0x3F), _ADDRESS),  # loads and stores
    ((0x02, 0x03, 0x04), _BLOCK),
    ((0x0B,), _END),
    ((0x0C, 0x0D), _BRANCH),  # br, br_if
    ((0x0E,), _TABLE_OF_BRANCHES),
    ((0x10,), _CALL),
    ((0x11,), _CALL_INDIRECT),
    ((0x1C,), _TYPES),  # select with a type
    ((0x43,), _FOUR_BYTES),  # f32.const
    ((0x44,), _EIGHT_BYTES),  # f64.const
    ((0xFC,), _MISC),
)

# What an instruction takes beyond one unit, by measurement (`python -m benchmarks.fuel`): the
# slowest use of it that was found, in tens of nanoseconds.
_EXTRA_OF: Final[tuple[tuple[Iterable[int], int], ...]] = (
    ((0x03,), 1),  # loop: when it is entered; wasmtime counts none for it
    ((0x11,), 2),  # call_indirect
    ((0x25, 0x26), 2),  # table.get, table.set
    ((0x40,), 15),  # memory.grow, beside its pages
    (range(0x6D, 0x71), 1),  # i32.div_s to i32.rem_u
    (range(0x7F, 0x83), 1),  # i64.div_s to i64.rem_u
    (range(0x91, 0x96), 5),  # f32.sqrt, add, sub, mul, div: slow with numbers that are very small
    (range(0x9F, 0xA4), 5),  # the same of f64
    ((0xB6, 0xBB), 4),  # f32.demote_f64, f64.promote_f32
    ((0xD2,), 6),  # ref.func
)
HOST_CALL_EXTRA: Final = 9
"""Of a call of `ledger.…`: a balance may be anywhere in memory."""
_OWN_CALL_EXTRA: Final = 1
_BULK_EXTRA: Final = {
    8: 4,  # memory.init
    9: 1,  # data.drop
    10: 4,  # memory.copy
    11: 15,  # memory.fill: as much with a length of 0
    12: 4,  # table.init
    13: 1,  # elem.drop
    14: 4,  # table.copy
    15: 5,  # table.grow
    16: 0,  # table.size
    17: 4,  # table.fill
}
CHECK_EVERY: Final = 500
"""Units after which fuel is looked at, at the latest."""
_AFTER_CALL: Final = CHECK_EVERY - 3
"""Where a function has returned from a call: what it does then would add up with each caller's."""
UNIT: Final = bytes((0x41, 0x00, 0x1A))
"""i32.const 0, drop: one unit, and no code."""
_CHECK: Final = bytes((0x03, 0x40, 0x0B))
"""An empty loop."""


def _by_code(groups: Iterable[tuple[Iterable[int], int]], default: int) -> tuple[int, ...]:
    found = [default] * 256
    for codes, value in groups:
        for code in codes:
            found[code] = value
    return tuple(found)


_KINDS: Final = _by_code(_KIND_OF, _REFUSED)
_EXTRAS: Final = _by_code(_EXTRA_OF, 0)
_COUNTED: Final = _by_code((((0x00, 0x01, 0x02, 0x03, 0x05, 0x0B, 0x0F, 0x1A), 0),), 1)
"""What wasmtime counts: none for what makes no code."""
_ACCESSES: Final = range(0x28, 0x3F)
"""Loads and stores."""
_GROW: Final = 0x40


@dataclass(frozen=True, slots=True)
class Weights:
    """What instructions take in one module. `imports`: how many functions it imports, which come
    first. `access`: units beyond one of a load or a store. `grow`: the function that does what
    memory.grow does."""

    imports: int
    access: int
    grow: int


@dataclass(frozen=True, slots=True)
class Body:
    """What the instructions of a function can do, and what they are with their weights.

    `writes_state`: whether anything is written that outlives the call, as long as the instance
    does. `grows`: whether memory. `weighed`: the instructions to compile; empty if no weights were
    given.
    """

    writes_state: bool
    grows: bool
    weighed: bytes


def scan(data: bytes, position: int, end: int, weights: Weights | None = None) -> Body:
    """Reads the instructions `data[position:end]` of a function.

    Raises InvalidFunction for what is not allowed, and when they do not end where the body does.
    """
    start = position
    kinds, counted, extras = _KINDS, _COUNTED, list(_EXTRAS)
    imports = 0
    if weights is not None:
        imports = weights.imports
        for code in _ACCESSES:
            extras[code] = weights.access
    writes = grows = False
    open_blocks = [0]
    """Of each open block the most units that may have been spent inside it since the last look at
    the fuel, whichever way was taken; of a loop that less one, and negative."""
    loops = 0
    spent = 0
    out: list[bytes] = []
    copied = position
    try:
        while position < end:
            at = position
            code = data[position]
            position += 1
            extra = extras[code]
            kind = kinds[code]
            called = False
            if kind == _NOTHING:
                if code == _ELSE:
                    most = open_blocks[-1]
                    spent = max(spent, most if most >= 0 else -1 - most)
            elif kind == _NUMBER:
                while data[position] > 0x7F:
                    position += 1
                position += 1
                if code in _WRITES:
                    writes = True
                    grows |= code == _GROW
            elif kind == _ADDRESS:
                if code >= _FIRST_STORE:
                    writes = True
                # Its bit 6 would announce the number of a memory; there is one at most.
                alignment, position = _number(data, position)
                if alignment > 0x3F:
                    _fail("the alignment of a memory access is too large", position)
                position = _after_number(data, position)
            elif kind == _END:
                began = open_blocks.pop()
                if began < 0:
                    loops -= 1
                    began = -1 - began
                if not open_blocks:
                    break
                spent = max(spent, began)
                _note(open_blocks, spent)
            elif kind == _BLOCK:
                if code == _LOOP:
                    loops += 1
                    if loops > MAX_LOOP_DEPTH:
                        _fail(f"loops are nested more than {MAX_LOOP_DEPTH} deep", position - 1)
                    # Its head looks at the fuel.
                    open_blocks.append(-1)
                    spent = 0
                else:
                    open_blocks.append(spent)
                if data[position] in _BLOCK_TYPES:
                    position += 1
                elif 0x40 <= data[position] <= 0x7F:
                    _fail(f"unknown type of a block {data[position]:#04x}", position)
                else:
                    position = _after_number(data, position)
            elif kind == _BRANCH:
                position = _after_number(data, position)
            elif kind == _CALL:
                number, position = _number(data, position)
                if number < imports:
                    extra = HOST_CALL_EXTRA
                else:
                    extra = _OWN_CALL_EXTRA
                    called = True
            elif kind == _TABLE_OF_BRANCHES:
                count, position = _number(data, position)
                if count >= end - position:
                    _fail("a table of branches is longer than its function", position)
                for _ in range(count + 1):
                    while data[position] > 0x7F:
                        position += 1
                    position += 1
            elif kind == _CALL_INDIRECT:
                position = _after_number(data, _after_number(data, position))
                called = True
            elif kind == _MISC:
                number, position = _number(data, position)
                if number >= 8:
                    writes |= number != _TABLE_SIZE
                    if number in _MISC_TWO_NUMBERS:
                        position = _after_number(data, position)
                    elif number not in _MISC_ONE_NUMBER:
                        _fail(f"instruction 0xfc {number} is not allowed", position)
                    position = _after_number(data, position)
                    extra = _BULK_EXTRA[number]
                    # It took a unit for each byte, which nobody has looked at yet.
                    called = True
            elif kind == _FOUR_BYTES:
                position += 4
            elif kind == _EIGHT_BYTES:
                position += 8
            elif kind == _TYPES:
                if data[position] != 1 or data[position + 1] not in _BLOCK_TYPES:
                    _fail("select has an unknown type", position)
                position += 2
            else:
                _refuse(code, position - 1)
            if weights is None:
                continue
            if extra:
                out.append(data[copied:at])
                out.append(UNIT * extra)
                copied = at
                if code == _GROW:
                    out.append(b"\x10" + unsigned(weights.grow))
                    copied = position
                    called = True
            spent += counted[code] + extra
            if called:
                spent = max(spent, _AFTER_CALL)
            if spent >= CHECK_EVERY or open_blocks[-1] < spent:
                _note(open_blocks, spent)
            if spent >= CHECK_EVERY:
                out.append(data[copied:position])
                out.append(_CHECK)
                copied = position
                spent = 0
    except IndexError:
        position = end + 1
    if open_blocks or position != end:
        _fail("the instructions of a function do not end where its body does", start)
    if weights is not None:
        out.append(data[copied:end])
    return Body(writes, grows, b"".join(out))


def _note(open_blocks: list[int], spent: int) -> None:
    """Inside the innermost block so much may have been spent."""
    most = open_blocks[-1]
    if most < 0:
        open_blocks[-1] = min(most, -1 - spent)
    else:
        open_blocks[-1] = max(most, spent)


def unsigned(number: int) -> bytes:
    """A number as binaries have it (LEB128)."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _after_number(data: bytes, position: int) -> int:
    while data[position] > 0x7F:
        position += 1
    return position + 1


def _number(data: bytes, position: int) -> tuple[int, int]:
    """An unsigned number of at most 32 bits, and the place after it."""
    result = 0
    for shift in range(0, 35, 7):
        byte = data[position + shift // 7]
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if result >= 2**32:
                break
            return result, position + shift // 7 + 1
    raise InvalidFunction("a number is larger than 32 bits", "code", position)


def _refuse(code: int, offset: int) -> NoReturn:
    for codes, proposal in _PROPOSALS:
        if code in codes:
            _fail(f"instruction {code:#04x} is not allowed ({proposal})", offset)
    _fail(f"unknown instruction {code:#04x}", offset)


def _fail(reason: str, offset: int) -> NoReturn:
    raise InvalidFunction(reason, "code", offset)
