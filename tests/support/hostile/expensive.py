"""What would keep the compiler busy, and what is just allowed.

`EXPENSIVE` modules are valid, and compiling one takes up to hours, and gigabytes. `SLOW` are those
of them that take longer than a second, or more memory than a test allows. `ALLOWED` ones are at the
edge of what is refused before it is compiled.
"""

from collections.abc import Callable

from tests.support.hostile.making import (
    CREDIT,
    DONE,
    EXECUTE,
    I64,
    MEGABYTES_4,
    NOTHING_TYPE,
    RETURN_0,
    body,
    function,
    module,
    nested,
    of_size,
    repeat,
    section,
    signature,
    unsigned,
    wat,
)


def _one_type(params: int, results: int) -> bytes:
    kind = signature(I64 * params, I64 * results)
    return module([body(RETURN_0), body(b"\x00")], types=[kind], of_type=[0, 1])


_LOOP = b"\x03\x40\x20\x00\xa7\x0d\x00\x0b"
"""A loop as long as the first parameter is not 0."""

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
    "nested loops": lambda: nested(b"\x03\x40", _MANY // 3),
    "nested blocks": lambda: nested(b"\x02\x40", _MANY // 3),
    "nested ifs": lambda: nested(b"\x20\x00\xa7\x04\x40", _MANY // 6),
    "loops in a row": lambda: module([body(repeat(_LOOP, _MANY) + RETURN_0)]),
    "locals through nested loops": lambda: module(
        [
            body(
                (b"\x03\x40" * 16 + _LOCAL_SETS + b"\x20\x08\xa7\x0d\x00\x0b" * 16) * 6 + RETURN_0,
                [(900, I64)],
            )
        ]
    ),
    "locals through loops in a row": lambda: module(
        [body(_LOCAL_SETS + repeat(_LOOP, _MANY) + _LOCAL_SETS + RETURN_0, [(900, I64)])]
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
        [body(repeat(b"\x20\x00\xa7\x11\x01\x00", _MANY) + RETURN_0)],
        types=[NOTHING_TYPE],
        before_exports=section(4, b"\x01\x70\x00\x01"),
    ),
    "growth of a table": lambda: module(
        [body(repeat(b"\xd0\x70\x41\x01\xfc\x0f\x00\x1a", _MANY) + RETURN_0)],
        before_exports=section(4, b"\x01\x70\x00\x01"),
    ),
    "conversions that trap": lambda: module(
        [body(b"\x20\x00" + repeat(b"\xb9\xb0", _MANY) + b"\x1a" + RETURN_0)]
    ),
    "divisions": lambda: module(
        [body(b"\x20\x00" + repeat(b"\x20\x01\x7f", _MANY) + b"\x1a" + RETURN_0)]
    ),
    "4 MB of divisions in small functions": lambda: module(
        [body(RETURN_0), *[body(b"\x20\x00" + b"\x20\x01\x7f" * 1000 + b"\x1a" + RETURN_0)] * 1_300]
    ),
    "4 MB of sums": lambda: module(
        [body(b"\x20\x00" + repeat(b"\x20\x01\x7c", 4_000_000) + b"\x1a" + RETURN_0)]
    ),
    "blocks of eight values": lambda: module(
        [
            body(
                b"\x20\x00" * 8
                + repeat(b"\x03\x01\x20\x00\xa7\x0d\x00\x0b", _MANY)
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
    "loops 17 deep": lambda: nested(b"\x03\x40", 17),
}
"""Some are refused before they are compiled, the others take what they may and no more."""

SLOW: dict[str, Callable[[], bytes]] = {
    name: EXPENSIVE[name]
    for name in (
        "nested ifs",
        "locals through nested loops",
        "calls through a table",
        "conversions that trap",
    )
}

ALLOWED: dict[str, Callable[[], bytes]] = {
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
    "two thousand blocks deep": lambda: nested(b"\x02\x40", 2_000),
    "loops 16 deep": lambda: nested(b"\x03\x40", 16),
    "a table of 10,000 with as many elements": lambda: module(
        [body(RETURN_0)],
        before_exports=section(4, b"\x01\x70\x00" + unsigned(10_000)),
        after_exports=section(9, b"\x01\x00\x41\x00\x0b" + unsigned(10_000) + bytes(10_000)),
    ),
    "a passive segment": lambda: function(DONE, '(memory 1) (data $d "abc")'),
    "a name in Chinese": lambda: function(DONE, '(func (export "\u529f\u80fd"))'),
    "imports three times": lambda: wat(
        f"(module {CREDIT.replace('$credit', '') * 3} {EXECUTE} {DONE}))"
    ),
}
"""At the edge: each compiles, and returns 0."""
