"""Knows wasmtime's C interface, beside `wasm_engine.py`: linking, instances, addresses.

It promises that importing this package without using functions does not load wasmtime. A `close`
gives back every pointer that is taken here. Errors of wasmtime come out as `InvalidFunction` (of a
module) or `FunctionsUnavailable` (of the installation).

It uses `wasmtime._bindings`, which is no public interface. So the version is pinned, and another
one is refused. `selftest.py` calls everything that is used here before a function may run. ADR 0011
has the sandbox as a whole.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.record import MAX_PARAMS
from tallybus.services.transactor.functions import calling, layout, wasm_engine
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.wasm_engine import FunctionsUnavailable

EXPORT: Final = b"execute"
HOST_MODULE: Final = b"ledger"
TABLES: Final = 4
"""Tables that a module may have; compilers make one."""

_I32: Final = 0
_I64: Final = 1
_FUNCTION_KIND: Final = 0


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


class Module:
    """A compiled module, ready to be instantiated. `pre` is the address of its
    wasmtime_instance_pre_t."""

    __slots__ = ("_c", "_module", "_pre", "pre")

    def __init__(self, c: Any, module: Any, pre: Any) -> None:
        self._c = c
        self._module = module
        self._pre = pre
        self.pre = _address(pre)

    def close(self) -> None:
        """Free the code, unless instances still use it; they keep it."""
        if self._module is not None:
            self._c.wasmtime_instance_pre_delete(self._pre)
            self._c.wasmtime_module_delete(self._module)
            self._module = self._pre = None

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


class Instance:
    """One instance in a store of its own. `context` and the two words of `function` are what calls
    need."""

    __slots__ = ("_c", "_store", "context", "function")

    def __init__(self, c: Any, store: Any, context: int, function: tuple[int, int]) -> None:
        self._c = c
        self._store = store
        self.context = context
        self.function = function

    def renew_deadline(self) -> None:
        """Only a later interruption ends its calls."""
        context = ctypes.cast(self.context, ctypes.POINTER(self._c.wasmtime_context_t))
        self._c.wasmtime_context_set_epoch_deadline(context, 1)

    def close(self) -> None:
        """Free the instance. Nothing may call it any more."""
        if self._store is not None:
            self._c.wasmtime_store_delete(self._store)
            self._store = None

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


class Sandbox:
    """An engine of wasmtime with the three host functions bound to one state.

    `compile` may be called from any thread, `instantiate` too as long as the module has no start
    function (which would move balances). The state must outlive the sandbox and all it made.
    """

    def __init__(self, state: NDArray[np.uint64], limits: FunctionLimits) -> None:
        """Raises FunctionsUnavailable."""
        self._engine = None
        c = wasm_engine.bindings()
        self._c = c
        self._limits = limits
        self._no_finalizer = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()
        self._export_name = ctypes.create_string_buffer(EXPORT)
        self._engine = wasm_engine.new_engine(c, limits.stack_bytes, limits.memory_bytes)
        self._linker = c.wasmtime_linker_new(self._engine)
        environment = ctypes.c_void_p(state.ctypes.data)
        for function, params, results in (
            (calling.credit, 2, 0),
            (calling.debit, 2, 0),
            (calling.get_balance, 1, 1),
        ):
            self._define(function, params, results, environment)
        self._tell(state)

    def _define(self, function: Any, params: int, results: int, environment: Any) -> None:
        c = self._c
        name = function.__name__.encode()
        kinds = c.wasm_valtype_vec_t(), c.wasm_valtype_vec_t()
        for vector, count in zip(kinds, (params, results), strict=True):
            values = (ctypes.POINTER(c.wasm_valtype_t) * max(count, 1))()
            for i in range(count):
                values[i] = c.wasm_valtype_new(_I64)
            c.wasm_valtype_vec_new(ctypes.byref(vector), count, values)
        signature = c.wasm_functype_new(ctypes.byref(kinds[0]), ctypes.byref(kinds[1]))
        error = c.wasmtime_linker_define_func_unchecked(
            self._linker,
            ctypes.create_string_buffer(HOST_MODULE),
            len(HOST_MODULE),
            ctypes.create_string_buffer(name),
            len(name),
            signature,
            c.wasmtime_func_unchecked_callback_t(function.address),
            environment,
            self._no_finalizer,
        )
        c.wasm_functype_delete(signature)
        if error:
            raise FunctionsUnavailable(self._message(error))

    def _tell(self, state: NDArray[np.uint64]) -> None:
        """Give the compiled code what it calls and what it passes on."""
        c = self._c
        for word, function in (
            (layout.CALL, c._wasmtime_func_call_unchecked),
            (layout.SET_FUEL, c._wasmtime_context_set_fuel),
            (layout.GET_FUEL, c._wasmtime_context_get_fuel),
            (layout.TRAP_CODE, c._wasmtime_trap_code),
            (layout.TRAP_DELETE, c._wasm_trap_delete),
            (layout.ERROR_DELETE, c._wasmtime_error_delete),
            (layout.STORE_NEW, c._wasmtime_store_new),
            (layout.STORE_CONTEXT, c._wasmtime_store_context),
            (layout.STORE_LIMITER, c._wasmtime_store_limiter),
            (layout.STORE_DELETE, c._wasmtime_store_delete),
            (layout.INSTANTIATE, c._wasmtime_instance_pre_instantiate),
            (layout.EXPORT_GET, c._wasmtime_instance_export_get),
            (layout.SET_DEADLINE, c._wasmtime_context_set_epoch_deadline),
            (layout.ENGINE, self._engine),
            (layout.EXPORT_NAME, self._export_name),
        ):
            state[word] = _address(function)
        state[layout.CLOCK] = (
            0 if self._limits.virtual_time else _address(ctypes.CDLL(None).clock_gettime)
        )
        state[layout.EXPORT_NAME_BYTES] = len(EXPORT)
        state[layout.MEMORY_BYTES] = self._limits.memory_bytes
        state[layout.TABLE_ELEMENTS] = self._limits.table_elements
        state[layout.TABLES] = TABLES

    def compile(self, binary: bytes) -> Module:
        """Compile and link, here and now. Raises InvalidFunction: not valid, imports something else
        than the three host functions, or exports no `execute` of the right type."""
        return self._linked(wasm_engine.compile_module(self._c, self._engine, binary))

    def load(self, code: bytes) -> Module:
        """Link what another engine of this kind has compiled. Raises InvalidFunction.

        Only for code from a trusted place: what was forged is executed.
        """
        return self._linked(wasm_engine.load_module(self._c, self._engine, code))

    def _linked(self, module: Any) -> Module:
        c = self._c
        pre = ctypes.POINTER(c.wasmtime_instance_pre_t)()
        try:
            self._check_export(module)
            error = c.wasmtime_linker_instantiate_pre(self._linker, module, ctypes.byref(pre))
            if error:
                raise InvalidFunction(self._message(error))
        except InvalidFunction:
            c.wasmtime_module_delete(module)
            raise
        return Module(c, module, pre)

    def _check_export(self, module: Any) -> None:
        """The call is not checked by wasmtime, so the type must be right."""
        c = self._c
        exports = c.wasm_exporttype_vec_t()
        c.wasmtime_module_exports(module, ctypes.byref(exports))
        try:
            for i in range(exports.size):
                name = c.wasm_exporttype_name(exports.data[i]).contents
                if bytes(name.data[: name.size]) != EXPORT:
                    continue
                kind = c.wasm_exporttype_type(exports.data[i])
                if c.wasm_externtype_kind(kind) != _FUNCTION_KIND:
                    raise InvalidFunction("its export `execute` is no function")
                signature = c.wasm_externtype_as_functype_const(kind)
                params = self._kinds(c.wasm_functype_params(signature))
                results = self._kinds(c.wasm_functype_results(signature))
                if params != [_I64] * MAX_PARAMS or results != [_I32]:
                    raise InvalidFunction(
                        "its function `execute` does not take eight i64 and return one i32"
                    )
                return
        finally:
            c.wasm_exporttype_vec_delete(ctypes.byref(exports))
        raise InvalidFunction("it exports no function `execute`")

    def _kinds(self, types: Any) -> list[int]:
        vector = types.contents
        return [int(self._c.wasm_valtype_kind(vector.data[i])) for i in range(vector.size)]

    def instantiate(self, module: Module, fuel: int) -> Instance:
        """An instance with the sandbox's limits. Raises InvalidFunction when it cannot be made."""
        c = self._c
        store = c.wasmtime_store_new(self._engine, None, self._no_finalizer)
        limits = self._limits
        c.wasmtime_store_limiter(store, limits.memory_bytes, limits.table_elements, 1, TABLES, 1)
        context = c.wasmtime_store_context(store)
        c.wasmtime_context_set_fuel(context, fuel)
        c.wasmtime_context_set_epoch_deadline(context, 1)
        instance = c.wasmtime_instance_t()
        trap = ctypes.POINTER(c.wasm_trap_t)()
        error = c.wasmtime_instance_pre_instantiate(
            module._pre, context, ctypes.byref(instance), ctypes.byref(trap)
        )
        found = c.wasmtime_extern_t()
        if not error and not trap:
            there = c.wasmtime_instance_export_get(
                context, ctypes.byref(instance), self._export_name, len(EXPORT), ctypes.byref(found)
            )
            assert there, "an export that the compiled module has"
            words = (ctypes.c_uint64 * 2).from_buffer_copy(found.of)
            return Instance(c, store, _address(context), (words[0], words[1]))
        reason = self._message(error) if error else self.trap_text(_address(trap))
        c.wasmtime_store_delete(store)
        raise InvalidFunction(f"it cannot be instantiated: {reason}")

    def interrupt(self) -> None:
        """End the call that runs. From any thread; every instance needs a new deadline then."""
        self._c.wasmtime_engine_increment_epoch(self._engine)

    def trap_text(self, trap: int) -> str:
        """The first line of what a trap says; frees it."""
        c = self._c
        pointer = ctypes.cast(ctypes.c_void_p(trap), ctypes.POINTER(c.wasm_trap_t))
        message = c.wasm_byte_vec_t()
        c.wasm_trap_message(pointer, ctypes.byref(message))
        text = self._text(message)
        c.wasm_trap_delete(pointer)
        return text.strip("\0")

    def error_text(self, error: int) -> str:
        """What an error says; frees it."""
        kind = ctypes.POINTER(self._c.wasmtime_error_t)
        return self._message(ctypes.cast(ctypes.c_void_p(error), kind))

    def _message(self, error: Any) -> str:
        return wasm_engine.message_of(self._c, error)

    def _text(self, message: Any) -> str:
        return wasm_engine.text_of(self._c, message)

    def close(self) -> None:
        """Free the engine; modules and instances keep what they need of it."""
        if self._engine is not None:
            self._c.wasmtime_linker_delete(self._linker)
            self._c.wasm_engine_delete(self._engine)
            self._engine = self._linker = None

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()
