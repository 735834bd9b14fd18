"""Compiled kernels: how this product uses numba. Touches nothing but numba's file cache.

A kernel is a free function over arrays with one fixed signature, compiled at import or taken from
the cache, which sits beside the module or, where that folder is not writable, in the user's cache
folder (`NUMBA_CACHE_DIR` sets another one). It runs without the GIL and must not allocate.

The cache of a kernel follows changes of the kernel's own file only, so helpers it calls belong
there. Whoever changes one of the three building blocks below has to clear the cache (`*.nbi`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])

INPUT_WORDS: Final = types.Array(types.uint64, 2, "C", readonly=True, aligned=False)
"""uint64[n, k] that is only read: may be read-only and at any address, as frames of messages
are."""
INPUT_INTEGERS: Final = types.Array(types.int64, 2, "C", readonly=True, aligned=False)
"""The same of int64."""


def kernel(signature: Any) -> Callable[[_Function], _Function]:
    """Compile a function for one signature; calls with other dtypes are a TypeError.

    Without reference counts (`_nrt`): the caller holds the arrays, and counting the arguments of
    inlined calls cost 60 ns an operation. So a kernel cannot make arrays.
    """

    def compile_function(function: _Function) -> _Function:
        options: dict[str, Any] = {"nogil": True, "_nrt": False}
        try:
            compiled = njit(signature, cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            # No folder for the cache is writable: every start compiles, some seconds.
            compiled = njit(signature, **options)(function)
        return cast(_Function, compiled)

    return compile_function


def inlined(function: _Function) -> _Function:
    """A helper that becomes part of each kernel of the same file that calls it."""
    options: dict[str, Any] = {"forceinline": True, "_nrt": False}
    return cast(_Function, njit(**options)(function))


def _line_array(array: Any) -> bool:
    return isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C"


def _address(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """LLVM pointer to the element of the first argument that the second one names."""
    data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
    return builder.gep(data, [arguments[1]])


def _prefetch(_context: Any, array: Any, index: Any) -> tuple[Any, Callable[..., Any]] | None:
    if not _line_array(array) or index != types.uint64:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        address = builder.bitcast(_address(context, builder, signature, arguments), pointer)
        word = ir.IntType(32)
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name)
        if function is None:
            function_type = ir.FunctionType(ir.VoidType(), [pointer, word, word, word])
            function = ir.Function(builder.module, function_type, name)
        read, keep_in_all_caches, data_cache = (ir.Constant(word, value) for value in (0, 3, 1))
        builder.call(function, [address, read, keep_in_all_caches, data_cache])
        return context.get_dummy_value()

    return types.void(array, index), generate


def _matches(
    _context: Any, array: Any, index: Any, value: Any, mask: Any
) -> tuple[Any, Callable[..., Any]] | None:
    if not _line_array(array) or array.dtype != types.uint64:
        return None
    if (index, value, mask) != (types.uint64, types.uint64, types.uint64):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        vector = ir.VectorType(word, 8)
        address = _address(context, builder, signature, arguments)
        line = builder.load(builder.bitcast(address, vector.as_pointer()), align=8)

        def all_lanes(scalar: Any) -> Any:
            first = builder.insert_element(
                ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0)
            )
            return builder.shuffle_vector(
                first, first, ir.Constant(ir.VectorType(ir.IntType(32), 8), [0] * 8)
            )

        different = builder.and_(
            builder.xor(line, all_lanes(arguments[2])), all_lanes(arguments[3])
        )
        equal = builder.icmp_unsigned("==", different, ir.Constant(vector, [0] * 8))
        return builder.zext(builder.bitcast(equal, ir.IntType(8)), word)

    return types.uint64(array, index, value, mask), generate


def _trailing_zeros(_context: Any, value: Any) -> tuple[Any, Callable[..., Any]] | None:
    if value != types.uint64:
        return None

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(0))

    return types.uint64(value), generate


prefetch: Final[Callable[[Any, Any], None]] = cast(Any, intrinsic)(_prefetch)
"""`prefetch(array, index)`: ask the processor to load the cache line of an element (index u64).

Kernels that jump around in arrays larger than the caches announce an element some operations before
they use it, so that many misses are under way at once. Unlike a read, a prefetch never waits and
never faults.
"""

matches: Final[Callable[[Any, Any, Any, Any], Any]] = cast(Any, intrinsic)(_matches)
"""`matches(array, index, value, mask)`: which of the eight u64 from `index` on equal `value` in the
bits of `mask`; bit i of the u64 result stands for element index + i. One vector operation where the
processor has vectors of that size: compilers do not make one of the loop.
"""

trailing_zeros: Final[Callable[[Any], Any]] = cast(Any, intrinsic)(_trailing_zeros)
"""`trailing_zeros(value)`: number of zero bits below the lowest one of a u64; 64 for zero."""
