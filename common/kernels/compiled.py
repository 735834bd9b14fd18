"""Compiled kernels: how this product uses numba.

A kernel is a free function over arrays with one fixed signature. It runs without the GIL and must
not allocate. Its machine code is taken from `machinecode.py`, and only when that has none of
exactly this kernel, with everything that it uses, numba is loaded and compiles it. So a module of
kernels imports its types and building blocks from here and nothing from numba.
ADR 0010 says why numba's own cache is not used.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np

from tallybus.common.kernels import machinecode

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Scalar:
    """Type of a number. `uint64[::1]` and `uint64[:, ::1]` are the types of arrays of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, axes: slice | tuple[slice, ...]) -> Array:
        return Array(self, len(axes) if isinstance(axes, tuple) else 1)

    def __call__(self, *parameters: Scalar | Array) -> Signature:
        """The signature of a kernel that returns this."""
        return Signature(self, parameters)

    def __repr__(self) -> str:
        return self.name


class Array(NamedTuple):
    """Type of C-contiguous arrays. `given`: only read, perhaps read-only and at any address, as
    frames of messages are."""

    item: Scalar
    axes: int
    given: bool = False


class Signature(NamedTuple):
    """What a kernel returns, and what it takes."""

    result: Scalar
    parameters: tuple[Scalar | Array, ...]


class types:  # noqa: N801 (spelled as in numba)
    """The types of kernels."""

    int64: Final = Scalar("int64")
    uint64: Final = Scalar("uint64")
    uint8: Final = Scalar("uint8")
    boolean: Final = Scalar("boolean")
    void: Final = Scalar("void")


INPUT_WORDS: Final = Array(types.uint64, 2, given=True)
"""uint64[n, k] that is only read: may be read-only and at any address, as frames of messages
are."""
INPUT_LINE: Final = Array(types.uint64, 1, given=True)
"""The same with one axis."""
INPUT_INTEGERS: Final = Array(types.int64, 2, given=True)
"""The same of int64 with two."""

_OPTIONS: Final[dict[str, Any]] = {"nogil": True, "_nrt": False}
_INLINE: Final[dict[str, Any]] = {"forceinline": True, "_nrt": False}
_ITEMS: Final = {name: np.dtype(name) for name in ("int64", "uint64", "uint8")}
_PASSED: Final[dict[str, Any]] = {
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
    "uint8": ctypes.c_uint8,
    "boolean": ctypes.c_bool,
}
_LLVM: Final = {"int64": "i64", "uint64": "i64", "uint8": "i8", "boolean": "i1"}
_DATA: Final = object.__basicsize__
_DIMENSIONS: Final = _DATA + 16
"""Where in an array object the addresses of its items and of its shape are."""


class Inlined:
    """A helper that becomes part of each kernel that calls it; not to be called from elsewhere."""

    def __init__(self, function: FunctionType) -> None:
        self.function = function

    @cached_property
    def _dispatcher(self) -> Any:
        from numba import njit

        return njit(**_INLINE)(self.function)

    @property
    def _numba_type_(self) -> Any:
        # numba asks a global that it does not know for this.
        import numba

        return cast(Any, numba).typeof(self._dispatcher)


class Intrinsic:
    """An operation made with numba's `intrinsic`: `name` in a module that is only imported where a
    kernel is compiled."""

    def __init__(self, name: str, module: str = "tallybus.common.kernels.intrinsics") -> None:
        self.name = name
        self.module = module

    @cached_property
    def _numba_type_(self) -> Any:
        from numba.core.registry import cpu_target

        made = getattr(importlib.import_module(self.module), self.name)
        context = cpu_target.typing_context
        context.refresh()
        return context.resolve_value_type(made)


def inlined(function: _Function) -> _Function:
    """A helper that becomes part of each kernel of the same file that calls it."""
    return cast(_Function, Inlined(cast(Any, function)))


def kernel(signature: Signature) -> Callable[[_Function], _Function]:
    """Compile a function for one signature; calls with other dtypes are a TypeError.

    Everything that the function uses must be defined before it. Without reference counts (`_nrt`):
    the caller holds the arrays, and counting the arguments of inlined calls cost 60 ns an
    operation. So a kernel cannot make arrays.
    """

    def prepare(function: _Function) -> _Function:
        return cast(_Function, Kernel(cast(Any, function), signature))

    return prepare


class Kernel:
    """A function that runs as machine code. Called through ctypes, which lets the GIL go."""

    def __init__(self, function: FunctionType, signature: Signature) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        module = Path(function.__code__.co_filename)
        # With the text of this module, so that whoever changes it has no files to clear.
        told = repr((signature, _described(function), _text_of(__name__)))
        key = machinecode.identity(told)
        objects = machinecode.load(module, self.__name__, key)
        if objects is None:
            objects = _compile(function, signature)
            machinecode.store(module, self.__name__, key, objects)
        native = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, *(_passed_as(each) for each in signature.parameters)
        )
        self._native = native(machinecode.link(objects))
        self._count = len(signature.parameters)
        self._arrays = [
            (place, _ITEMS[each.item.name], each.axes, each.given)
            for place, each in enumerate(signature.parameters)
            if isinstance(each, Array)
        ]
        self._returns = signature.result is not types.void

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != self._count:
            raise TypeError(f"{self.__name__} takes {self._count} arguments, not {len(arguments)}")
        for place, item, axes, given in self._arrays:
            array = arguments[place]
            if (
                type(array) is not np.ndarray
                or array.dtype != item
                or array.ndim != axes
                or not (array.flags.c_contiguous if given else array.flags.carray)
            ):
                raise TypeError(
                    f"argument {place} of {self.__name__} must be a contiguous "
                    f"{'' if given else 'writable '}array of {item} with {axes} axes, "
                    f"not {_told(array)}"
                )
        result = ctypes.c_int64()
        if self._native(ctypes.addressof(result), *arguments):
            raise RuntimeError(f"the kernel {self.__name__} raised an exception")
        return result.value if self._returns else None


def c_function(signature: Signature) -> Callable[[Callable[..., Any]], CFunction]:
    """Compile a function of `uint64` for calls by its address, from C or from other kernels."""

    def prepare(function: Callable[..., Any]) -> CFunction:
        return CFunction(cast(Any, function), signature)

    return prepare


class CFunction:
    """A function that C can call at `address`, for the life of the process. What it takes and
    returns is uint64. Its caller holds the GIL or does not."""

    def __init__(self, function: FunctionType, signature: Signature) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        module = Path(function.__code__.co_filename)
        told = repr(("C", signature, _described(function), _text_of(__name__)))
        key = machinecode.identity(told)
        objects = machinecode.load(module, self.__name__, key)
        if objects is None:
            objects = _compile_for_c(function, signature)
            machinecode.store(module, self.__name__, key, objects)
        self.address = machinecode.link(objects)


def _compile_for_c(function: FunctionType, signature: Signature) -> list[bytes]:
    import numba

    count = len(signature.parameters)
    word = numba.types.uint64
    made: Any = cast(Any, numba).cfunc(word(*[word] * count), _nrt=False)(function)
    given = ", ".join(f"i64 %a{place}" for place in range(count))
    taken = ", ".join(["i64"] * count)
    adapter = (
        f'declare i64 @"{made._wrapper_name}"({taken})\n'
        f"define i64 @{machinecode.ENTRY}({given}) {{\n"
        f'%result = musttail call i64 @"{made._wrapper_name}"({given})\nret i64 %result\n}}'
    )
    return [made._library._get_compiled_object(), machinecode.assemble(adapter)]


def _told(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    return f"{value.dtype}{list(value.shape)} with strides {list(value.strides)}"


def _passed_as(parameter: Scalar | Array) -> Any:
    return ctypes.py_object if isinstance(parameter, Array) else _PASSED[parameter.name]


def _adapter(symbol: str, signature: Signature) -> str:
    """LLVM code of `entry(result, arguments…)`, which calls a kernel in numba's convention.

    There, an array is its owners (none), size, item size, address, shape and strides; before the
    arguments come addresses for the result and for an exception. An array comes in as the object
    that it is: numpy keeps the places of `data` and `dimensions` for good.
    """
    inputs, lines, passed = ["ptr %result"], ["%exception = alloca ptr"], []
    for place, each in enumerate(signature.parameters):
        name = f"%a{place}"
        if isinstance(each, Scalar):
            kind = _LLVM[each.name]
            inputs.append(f"{kind} {name}")
            passed.append(f"{kind} {name}")
            continue
        width = _ITEMS[each.item.name].itemsize
        inputs.append(f"ptr {name}")
        lines += [
            f"{name}.p = getelementptr i8, ptr {name}, i64 {_DATA}",
            f"{name}.data = load ptr, ptr {name}.p",
            f"{name}.q = getelementptr i8, ptr {name}, i64 {_DIMENSIONS}",
            f"{name}.shape = load ptr, ptr {name}.q",
            f"{name}.rows = load i64, ptr {name}.shape",
        ]
        if each.axes == 1:
            size, shape, strides = f"{name}.rows", [f"{name}.rows"], [str(width)]
        else:
            lines += [
                f"{name}.r = getelementptr i64, ptr {name}.shape, i64 1",
                f"{name}.columns = load i64, ptr {name}.r",
                f"{name}.size = mul i64 {name}.rows, {name}.columns",
                f"{name}.stride = mul i64 {name}.columns, {width}",
            ]
            size = f"{name}.size"
            shape = [f"{name}.rows", f"{name}.columns"]
            strides = [f"{name}.stride", str(width)]
        passed += ["ptr null", "ptr null", f"i64 {size}", f"i64 {width}", f"ptr {name}.data"]
        passed += [f"i64 {word}" for word in (*shape, *strides)]
    types_ = ", ".join(each.split()[0] for each in passed)
    return "\n".join(
        (
            f'declare i32 @"{symbol}"(ptr, ptr, {types_})',
            f"define i32 @{machinecode.ENTRY}({', '.join(inputs)}) {{",
            *lines,
            f'%status = call i32 @"{symbol}"(ptr %result, ptr %exception, {", ".join(passed)})',
            "ret i32 %status",
            "}",
        )
    )


def _described(value: Any) -> Any:
    """A kernel in full, as far as its machine code depends on it: its code, and what it uses."""
    if isinstance(value, Intrinsic):
        return value.name, _text_of(value.module)
    if isinstance(value, Inlined):
        return _described(value.function)
    if isinstance(value, FunctionType):
        if value.__closure__:
            raise TypeError(f"a kernel cannot use local names of others: {value!r}")
        globals_ = value.__globals__
        used = sorted(name for name in _names(value.__code__) if name in globals_)
        return _described(value.__code__), [(name, _described(globals_[name])) for name in used]
    if isinstance(value, CodeType):
        constants = [_described(each) for each in value.co_consts]
        return value.co_code.hex(), constants, value.co_names, value.co_varnames
    if isinstance(value, (ModuleType, type, BuiltinFunctionType)):
        return value.__name__
    if isinstance(value, (Scalar, Array)):
        return repr(value)
    if value is None or isinstance(value, (int, float, str, np.generic, tuple)):
        return type(value).__name__, repr(value)
    raise TypeError(f"a kernel cannot use {value!r}")


@cache
def _text_of(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text("utf-8")


def _names(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _compile(function: FunctionType, signature: Signature) -> list[bytes]:
    """The kernel's object files, by numba, which is loaded for it."""
    import numba

    def in_numba(each: Scalar | Array) -> Any:
        if isinstance(each, Scalar):
            return getattr(numba.types, each.name)
        item = in_numba(each.item)
        return numba.types.Array(item, each.axes, "C", readonly=each.given, aligned=not each.given)

    parameters = tuple(in_numba(each) for each in signature.parameters)
    made = in_numba(signature.result)(*parameters)
    options = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    overload = numba.njit(made, **options)(function).overloads[parameters]
    adapter = _adapter(overload.fndesc.llvm_func_name, signature)
    return [overload.library._get_compiled_object(), machinecode.assemble(adapter)]


prefetch: Final[Callable[[Any, Any], None]] = cast(Any, Intrinsic("prefetch"))
"""`prefetch(array, index)`: ask the processor to load the cache line of an element (index u64).

Kernels that jump around in arrays larger than the caches announce an element some operations before
they use it, so that many misses are under way at once. Unlike a read, a prefetch never waits and
never faults.
"""

matches: Final[Callable[[Any, Any, Any, Any], Any]] = cast(Any, Intrinsic("matches"))
"""`matches(array, index, value, mask)`: which of the eight u64 from `index` on equal `value` in the
bits of `mask`; bit i of the u64 result stands for element index + i. One vector operation where the
processor has vectors of that size: compilers do not make one of the loop.
"""

trailing_zeros: Final[Callable[[Any], Any]] = cast(Any, Intrinsic("trailing_zeros"))
"""`trailing_zeros(value)`: number of zero bits below the lowest one of a u64; 64 for zero."""
