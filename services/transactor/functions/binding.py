"""The one module that knows wasmtime's C interface: configuration, compiling, instances, addresses.

Promises: whoever imports this package without using functions does not load wasmtime; every pointer
taken here is given back by a `close`; errors of wasmtime come out as `InvalidFunction` (of a
module) or `FunctionsUnavailable` (of the installation). It uses `wasmtime._bindings`, which is no
public interface, so the version is pinned: another one is refused, and `selftest.py` calls through
everything that is used here before a function may run.

Traps are not signals: a signal handler would be the process's, in the way of Python's own and of
`faulthandler`. Measured, explicit checks cost a call nothing and make a trap eight times cheaper.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.errors import ServiceError
from tallybus.services.transactor.functions import calling, layout
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits

WASMTIME_VERSION: Final = "50.0.1"
EXPORT: Final = b"execute"
HOST_MODULE: Final = b"ledger"
TABLES: Final = 4
"""Tables that a module may have; compilers make one."""

_I32: Final = 0
_I64: Final = 1
_FUNCTION_KIND: Final = 0
_OFF: Final = (
    # Not deterministic, or not needed by what compilers make of a function: less to go wrong.
    "wasm_threads",
    "shared_memory",
    "wasm_simd",
    "wasm_relaxed_simd",
    "wasm_tail_call",
    "wasm_function_references",
    "wasm_gc",
    "wasm_exceptions",
    "wasm_multi_memory",
    "wasm_memory64",
    "wasm_wide_arithmetic",
    "wasm_custom_page_sizes",
    "wasm_stack_switching",
    "wasm_component_model",
    # A second thread that compiles would take a processor from execution.
    "parallel_compilation",
    "signals_based_traps",
    # A copy-on-write image would spare an instance the fuel for its data, on some systems only.
    "memory_init_cow",
)
_ON: Final = (
    "consume_fuel",
    # So that another thread can end a call.
    "epoch_interruption",
    "cranelift_nan_canonicalization",
    # With these, what compilers make unless told otherwise; `module.py` reads no more.
    "wasm_multi_value",
    "wasm_bulk_memory",
    "wasm_reference_types",
)


class FunctionsUnavailable(ServiceError):
    """The WebAssembly runtime of this installation cannot be used. Field: `reason`."""

    restart = False

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"functions cannot run here: {reason}. Install tallybus with the versions that it "
            f"asks for (wasmtime {WASMTIME_VERSION})"
        )
        self.reason = reason


def _bindings() -> Any:
    try:
        found = version("wasmtime")
        from wasmtime import _bindings
    except (ImportError, OSError, RuntimeError) as error:
        raise FunctionsUnavailable(f"wasmtime cannot be loaded ({error})") from error
    if found != WASMTIME_VERSION:
        raise FunctionsUnavailable(f"wasmtime {found} is installed")
    return _bindings


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
        c = _bindings()
        self._c = c
        self._limits = limits
        self._no_finalizer = ctypes.CFUNCTYPE(None, ctypes.c_void_p)()
        self._export_name = ctypes.create_string_buffer(EXPORT)
        config = c.wasm_config_new()
        for name in _OFF:
            getattr(c, f"wasmtime_config_{name}_set")(config, False)
        for name in _ON:
            getattr(c, f"wasmtime_config_{name}_set")(config, True)
        c.wasmtime_config_max_wasm_stack_set(config, limits.stack_bytes)
        # Room for the largest memory and not four GiB of addresses for each.
        c.wasmtime_config_memory_reservation_set(config, limits.memory_bytes)
        c.wasmtime_config_memory_reservation_for_growth_set(config, 0)
        c.wasmtime_config_memory_guard_size_set(config, 0)
        self._engine = c.wasm_engine_new_with_config(config)
        if not self._engine:
            raise FunctionsUnavailable("wasmtime does not take its configuration")
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
        """Compile and link. Raises InvalidFunction: not valid, imports something else than the
        three host functions, or exports no `execute` of the right type."""
        c = self._c
        if not binary:
            raise InvalidFunction("the binary is empty")
        content = (ctypes.c_uint8 * len(binary)).from_buffer_copy(binary)
        module = ctypes.POINTER(c.wasmtime_module_t)()
        error = c.wasmtime_module_new(self._engine, content, len(binary), ctypes.byref(module))
        if error:
            raise InvalidFunction(self._message(error))
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
                if params != [_I64] * layout.PARAMS_PER_CALL or results != [_I32]:
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
        message = self._c.wasm_byte_vec_t()
        self._c.wasmtime_error_message(error, ctypes.byref(message))
        self._c.wasmtime_error_delete(error)
        return self._text(message)

    def _text(self, message: Any) -> str:
        text = bytes(message.data[: message.size]).decode(errors="replace")
        self._c.wasm_byte_vec_delete(ctypes.byref(message))
        return text

    def close(self) -> None:
        """Free the engine; modules and instances keep what they need of it."""
        if self._engine is not None:
            self._c.wasmtime_linker_delete(self._linker)
            self._c.wasm_engine_delete(self._engine)
            self._engine = self._linker = None

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()
