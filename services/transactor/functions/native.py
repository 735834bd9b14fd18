"""Raw memory and C functions by address, for compiled code: the words that numba has none for.

Addresses and values are u64. Nothing is checked: an address that is wrong ends the process, so only
`calling.py`, which gets its addresses from `binding.py` and from arrays that live as long as it,
uses these (and the kernel one of them, for the one address it gets). Imported only where code is
compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD: Final = ir.IntType(64)


def _all_words(arguments: tuple[Any, ...]) -> bool:
    return all(argument == types.uint64 for argument in arguments)


def _load(_context: Any, address: Any) -> tuple[Any, Callable[..., Any]] | None:
    if not _all_words((address,)):
        return None

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.load(pointer, align=8)

    return types.uint64(address), generate


def _load_half(_context: Any, address: Any) -> tuple[Any, Callable[..., Any]] | None:
    if not _all_words((address,)):
        return None

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(32).as_pointer())
        return builder.zext(builder.load(pointer, align=4), _WORD)

    return types.uint64(address), generate


def _store(_context: Any, address: Any, value: Any) -> tuple[Any, Callable[..., Any]] | None:
    if not _all_words((address, value)):
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        builder.store(arguments[1], pointer, align=8)
        return context.get_dummy_value()

    return types.void(address, value), generate


def _prefetch(_context: Any, address: Any) -> tuple[Any, Callable[..., Any]] | None:
    if not _all_words((address,)):
        return None

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(32)
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name)
        if function is None:
            function_type = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
            function = ir.Function(builder.module, function_type, name)
        read, keep_in_all_caches, data_cache = (ir.Constant(word, value) for value in (0, 3, 1))
        builder.call(
            function,
            [builder.inttoptr(arguments[0], pointer), read, keep_in_all_caches, data_cache],
        )
        return context.get_dummy_value()

    return types.void(address), generate


def _generate_call(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
    address, *given = arguments
    function_type = ir.FunctionType(_WORD, [_WORD] * len(given))
    return builder.call(builder.inttoptr(address, function_type.as_pointer()), given)


def _call_1(_context: Any, address: Any, a: Any) -> tuple[Any, Callable[..., Any]] | None:
    given = (address, a)
    return (types.uint64(*given), _generate_call) if _all_words(given) else None


def _call_2(_context: Any, address: Any, a: Any, b: Any) -> tuple[Any, Callable[..., Any]] | None:
    given = (address, a, b)
    return (types.uint64(*given), _generate_call) if _all_words(given) else None


def _call_3(
    _context: Any, address: Any, a: Any, b: Any, c: Any
) -> tuple[Any, Callable[..., Any]] | None:
    given = (address, a, b, c)
    return (types.uint64(*given), _generate_call) if _all_words(given) else None


def _call_4(
    _context: Any, address: Any, a: Any, b: Any, c: Any, d: Any
) -> tuple[Any, Callable[..., Any]] | None:
    given = (address, a, b, c, d)
    return (types.uint64(*given), _generate_call) if _all_words(given) else None


def _call_5(
    _context: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any
) -> tuple[Any, Callable[..., Any]] | None:
    given = (address, a, b, c, d, e)
    return (types.uint64(*given), _generate_call) if _all_words(given) else None


def _call_6(
    _context: Any, address: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any
) -> tuple[Any, Callable[..., Any]] | None:
    given = (address, a, b, c, d, e, f)
    return (types.uint64(*given), _generate_call) if _all_words(given) else None


_intrinsic: Final = cast(Any, intrinsic)

load: Final[Callable[[Any], Any]] = _intrinsic(_load)
"""`load(address)`: the u64 at an address that is a multiple of 8."""
load_half: Final[Callable[[Any], Any]] = _intrinsic(_load_half)
"""`load_half(address)`: the u32 at an address that is a multiple of 4, as u64. What was written as
32 bits must not be read as 64: the processor would wait until it is in the cache."""
store: Final[Callable[[Any, Any], None]] = _intrinsic(_store)
"""`store(address, value)`: write a u64 to an address that is a multiple of 8."""
prefetch_address: Final[Callable[[Any], None]] = _intrinsic(_prefetch)
"""`prefetch_address(address)`: as `common.kernels.compiled.prefetch`."""

call_1: Final[Callable[..., Any]] = _intrinsic(_call_1)
"""`call_n(function, …)`: call a C function of n words. Its result is a word too: of one that
returns void the result is meaningless, of one that returns less than a word the upper bits are."""
call_2: Final[Callable[..., Any]] = _intrinsic(_call_2)
call_3: Final[Callable[..., Any]] = _intrinsic(_call_3)
call_4: Final[Callable[..., Any]] = _intrinsic(_call_4)
call_5: Final[Callable[..., Any]] = _intrinsic(_call_5)
call_6: Final[Callable[..., Any]] = _intrinsic(_call_6)
