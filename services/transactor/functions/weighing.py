"""A module as it is compiled: its own code, with fuel for what takes longer than a unit is worth.

wasmtime counts one unit for each instruction, whatever it takes. Here the others are made dearer
(see `instructions.py`), and growing memory takes what its pages do, through a function that is
added at the end, where it moves nobody's number. What a module computes is not changed, nor is the
binary that is registered: its checksum and its file are those of the customer's own bytes.

Custom sections are left out: some speak of places in the code. No I/O. ADR 0017 says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tallybus.services.transactor.functions.instructions import UNIT, Weights, scan, unsigned
from tallybus.services.transactor.functions.module import (
    PAGE_BYTES,
    PAGE_FUEL,
    ModuleFacts,
    ModuleLimits,
    Parts,
    parts,
)

_ACCESS_EXTRA: Final = ((4, 0), (32, 2))
"""Units beyond one for a load or a store, in memories of up to so many pages. The processor has a
memory at hand that fits into its caches. Any other access may take a hundred nanoseconds."""
_FAR_ACCESS_EXTRA: Final = 9

_TYPE: Final = 1
_FUNCTION: Final = 3
_CODE: Final = 10
_GROW_TYPE: Final = bytes((0x60, 1, 0x7F, 1, 0x7F))


@dataclass(frozen=True, slots=True)
class Weighed:
    """What is compiled, and what the module is that it was made from."""

    binary: bytes
    facts: ModuleFacts


def weigh(binary: bytes, limits: ModuleLimits) -> Weighed:
    """Raises InvalidFunction for what may not be registered."""
    found = parts(binary, limits)
    facts = found.facts
    weights = Weights(len(facts.imports), _access_extra(facts, limits), facts.functions)
    out = [binary[:8]]
    for number, start, end in found.sections:
        content = binary[start:end]
        if number == _CODE:
            content = _code(binary, found, weights, limits)
        elif facts.grows and number == _TYPE:
            content = _one_more(content, found.types, _GROW_TYPE)
        elif facts.grows and number == _FUNCTION:
            content = _one_more(content, len(found.bodies), unsigned(found.types))
        out += (bytes((number,)), unsigned(len(content)), content)
    return Weighed(b"".join(out), facts)


def _access_extra(facts: ModuleFacts, limits: ModuleLimits) -> int:
    reach = limits.memory_bytes if facts.grows else facts.memory_bytes
    for pages, extra in _ACCESS_EXTRA:
        if reach <= pages * PAGE_BYTES:
            return extra
    return _FAR_ACCESS_EXTRA


def _one_more(content: bytes, count: int, item: bytes) -> bytes:
    """A section's contents with one more item at the end."""
    place = 0
    while content[place] > 0x7F:
        place += 1
    return unsigned(count + 1) + content[place + 1 :] + item


def _code(binary: bytes, found: Parts, weights: Weights, limits: ModuleLimits) -> bytes:
    count = len(found.bodies) + found.facts.grows
    out = [unsigned(count)]
    for start, instructions, end in found.bodies:
        weighed = scan(binary, instructions, end, weights).weighed
        out += (unsigned(instructions - start + len(weighed)), binary[start:instructions], weighed)
    if found.facts.grows:
        body = _grow(limits.memory_bytes // PAGE_BYTES)
        out += (unsigned(len(body)), body)
    return b"".join(out)


def _grow(most: int) -> bytes:
    """Body of a function (i32) -> i32: memory.grow, which takes fuel for each page first."""
    return b"".join(
        (
            bytes((1, 1, 0x7F)),  # one local: pages that are still to be paid
            # More than there may be at all: it fails.
            bytes((0x20, 0, 0x41)) + _signed(most) + bytes((0x4B, 0x04, 0x40)),
            bytes((0x41, 0x7F, 0x0F, 0x0B)),
            bytes((0x20, 0, 0x21, 1)),
            # While there are any left, each takes its fuel; the loop's head looks at it.
            bytes((0x02, 0x40, 0x03, 0x40, 0x20, 1, 0x45, 0x0D, 1)),
            UNIT * PAGE_FUEL,
            bytes((0x20, 1, 0x41, 1, 0x6B, 0x21, 1, 0x0C, 0, 0x0B, 0x0B)),
            bytes((0x20, 0, 0x40, 0, 0x0B)),
        )
    )


def _signed(number: int) -> bytes:
    """A number that is not negative as a constant has it (signed LEB128)."""
    out = bytearray()
    while number > 0x3F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
