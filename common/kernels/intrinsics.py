"""Operations for kernels that numba has no words for. Only imported where a kernel is compiled.

`compiled.py` offers them to kernels and tells what they do. Touches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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


prefetch: Final = cast(Any, intrinsic)(_prefetch)
matches: Final = cast(Any, intrinsic)(_matches)
trailing_zeros: Final = cast(Any, intrinsic)(_trailing_zeros)
