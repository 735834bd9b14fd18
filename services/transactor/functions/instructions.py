"""Instructions of WebAssembly, as far as they matter before compiling.

That is: how long each is, what it costs to compile, and whether it writes state.

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
MAX_BLOCK_VALUES: Final = 8
"""What a block with a type of its own is taken to hand over."""

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

# Measured with many of the same in a row, in tenths of a microsecond: what cannot be expressed in a
# few machine instructions or needs a check before it takes a hundred times as long as a sum.
_DEFAULT_WEIGHT: Final = 10
_WEIGHT_OF: Final[tuple[tuple[Iterable[int], int], ...]] = (
    ((0x01,), 0),  # nop
    ((0x05, 0x0B, 0x1A, 0x20, 0x41, 0x42, 0x43, 0x44), 2),
    ((0x00, 0x0F), 300),  # unreachable, return
    ((0x10,), 300),  # call
    ((0x11,), 1000),  # call_indirect
    ((0x21, 0x22), 80),  # local.set, local.tee: joined where control is
    ((0x25, 0x26, 0x40), 1000),  # table.get, table.set, memory.grow
    (range(0x28, 0x3F), 250),  # loads and stores
    ((*range(0x6D, 0x71), *range(0x7F, 0x83)), 420),  # integer division
    ((0x77, 0x78, 0x89, 0x8A), 420),  # rotation
    (range(0x8B, 0xA7), 60),  # floats: each result is made canonical
    ((*range(0xA8, 0xAC), *range(0xAE, 0xB2)), 1000),  # conversions that trap
    (range(0xB2, 0xBC), 60),
    ((0xD2,), 300),  # ref.func
)
_BREAKS_OF: Final[tuple[tuple[Iterable[int], int], ...]] = (
    (range(0x28, 0x3F), 1),
    ((0x10, 0x40, 0xD2), 1),
    ((0x11, 0x25, 0x26), 4),
    ((*range(0x6D, 0x71), *range(0x7F, 0x83)), 2),
    ((*range(0xA8, 0xAC), *range(0xAE, 0xB2)), 4),
)
_SATURATING_WEIGHT: Final = 60
_MEMORY_WEIGHT: Final = 300
_TABLE_WEIGHT: Final = 2000
_TARGET_WEIGHT: Final = 20
_LOOP_WEIGHT: Final = 5


def _by_code(groups: Iterable[tuple[Iterable[int], int]], default: int) -> tuple[int, ...]:
    found = [default] * 256
    for codes, value in groups:
        for code in codes:
            found[code] = value
    return tuple(found)


_KINDS: Final = _by_code(_KIND_OF, _REFUSED)
_WEIGHTS: Final = _by_code(_WEIGHT_OF, _DEFAULT_WEIGHT)
_BREAKS: Final = _by_code(_BREAKS_OF, 0)


@dataclass(frozen=True, slots=True)
class Body:
    """What the instructions of a function come to.

    `weight`: the part of the compiler's work that is linear, in tenths of a microsecond.
    `branches`: edges of the graph of control. `breaks`: places where the compiler stops to keep
    what lives, as at calls and checks that may trap. `writes_state`: whether anything is written
    that outlives the call, as long as the instance does.
    """

    weight: int
    branches: int
    breaks: int
    writes_state: bool


def scan(data: bytes, position: int, end: int) -> Body:
    """Reads the instructions `data[position:end]` of a function.

    Raises InvalidFunction for what is not allowed, and when they do not end where the body does.
    """
    start = position
    kinds, weights, stops = _KINDS, _WEIGHTS, _BREAKS
    weight = branches = breaks = 0
    writes = False
    open_blocks = [-1]
    """Where each open block's first instruction is if that is a loop, else -1."""
    loops = 0
    try:
        while position < end:
            code = data[position]
            position += 1
            weight += weights[code]
            breaks += stops[code]
            kind = kinds[code]
            if kind == _NOTHING:
                pass
            elif kind == _NUMBER:
                while data[position] > 0x7F:
                    position += 1
                position += 1
                if code in _WRITES:
                    writes = True
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
                if began >= 0:
                    loops -= 1
                    weight += (position - began) * _LOOP_WEIGHT
                if not open_blocks:
                    break
            elif kind == _BLOCK:
                branches += 1
                open_blocks.append(position if code == _LOOP else -1)
                if code == _LOOP:
                    loops += 1
                    if loops > MAX_LOOP_DEPTH:
                        _fail(f"loops are nested more than {MAX_LOOP_DEPTH} deep", position - 1)
                if data[position] in _BLOCK_TYPES:
                    position += 1
                elif 0x40 <= data[position] <= 0x7F:
                    _fail(f"unknown type of a block {data[position]:#04x}", position)
                else:
                    position = _after_number(data, position)
                    branches += MAX_BLOCK_VALUES
            elif kind == _BRANCH:
                branches += 1
                position = _after_number(data, position)
            elif kind == _CALL:
                position = _after_number(data, position)
            elif kind == _TABLE_OF_BRANCHES:
                count, position = _number(data, position)
                if count >= end - position:
                    _fail("a table of branches is longer than its function", position)
                branches += min(count + 1, len(open_blocks))
                weight += count * _TARGET_WEIGHT
                breaks += count
                for _ in range(count + 1):
                    while data[position] > 0x7F:
                        position += 1
                    position += 1
            elif kind == _CALL_INDIRECT:
                branches += 1
                position = _after_number(data, _after_number(data, position))
            elif kind == _MISC:
                number, position = _number(data, position)
                if number < 8:
                    weight += _SATURATING_WEIGHT
                else:
                    weight += _MEMORY_WEIGHT if 8 <= number <= 11 else _TABLE_WEIGHT
                    writes |= number != _TABLE_SIZE
                    breaks += 1
                    if number in _MISC_TWO_NUMBERS:
                        position = _after_number(data, position)
                    elif number not in _MISC_ONE_NUMBER:
                        _fail(f"instruction 0xfc {number} is not allowed", position)
                    position = _after_number(data, position)
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
    except IndexError:
        position = end + 1
    if open_blocks or position != end:
        _fail("the instructions of a function do not end where its body does", start)
    return Body(weight, branches, breaks, writes)


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
