"""wasmtime's engine as functions need it: its configuration, and modules to machine code and back.

Also loaded by the process that compiles, so it needs nothing but wasmtime. Code that one engine has
made can be loaded by another with the same configuration, on the same kind of processor.

Traps are not signals: a signal handler would be the process's, in the way of Python's own and of
`faulthandler`. Measured, explicit checks cost a call nothing and make a trap eight times cheaper.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from typing import Any, Final

from tallybus.common.errors import ServiceError
from tallybus.services.transactor.functions.errors import InvalidFunction

WASMTIME_VERSION: Final = "50.0.1"

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


def bindings() -> Any:
    """The C interface. Raises FunctionsUnavailable."""
    try:
        found = version("wasmtime")
        from wasmtime import _bindings
    except (ImportError, OSError, RuntimeError) as error:
        raise FunctionsUnavailable(f"wasmtime cannot be loaded ({error})") from error
    if found != WASMTIME_VERSION:
        raise FunctionsUnavailable(f"wasmtime {found} is installed")
    return _bindings


def new_engine(c: Any, stack_bytes: int, memory_bytes: int) -> Any:
    """A wasm_engine_t, for its owner to delete. Raises FunctionsUnavailable."""
    config = c.wasm_config_new()
    for name in _OFF:
        getattr(c, f"wasmtime_config_{name}_set")(config, False)
    for name in _ON:
        getattr(c, f"wasmtime_config_{name}_set")(config, True)
    c.wasmtime_config_max_wasm_stack_set(config, stack_bytes)
    # Room for the largest memory and not four GiB of addresses for each.
    c.wasmtime_config_memory_reservation_set(config, memory_bytes)
    c.wasmtime_config_memory_reservation_for_growth_set(config, 0)
    c.wasmtime_config_memory_guard_size_set(config, 0)
    engine = c.wasm_engine_new_with_config(config)
    if not engine:
        raise FunctionsUnavailable("wasmtime does not take its configuration")
    return engine


def description(stack_bytes: int, memory_bytes: int) -> str:
    """All that code depends on beside the module and the processor."""
    return repr((WASMTIME_VERSION, _OFF, _ON, stack_bytes, memory_bytes))


def compile_module(c: Any, engine: Any, binary: bytes) -> Any:
    """A wasmtime_module_t, for its owner to delete. Raises InvalidFunction."""
    if not binary:
        raise InvalidFunction("the binary is empty")
    return _made(c, engine, binary, c.wasmtime_module_new)


def load_module(c: Any, engine: Any, code: bytes) -> Any:
    """The same from what `code_of` made. Raises InvalidFunction when it is of another engine or
    processor; what was forged is not noticed."""
    return _made(c, engine, code, c.wasmtime_module_deserialize)


def _made(c: Any, engine: Any, content: bytes, make: Any) -> Any:
    given = (ctypes.c_uint8 * len(content)).from_buffer_copy(content)
    module = ctypes.POINTER(c.wasmtime_module_t)()
    error = make(engine, given, len(content), ctypes.byref(module))
    if error:
        raise InvalidFunction(message_of(c, error))
    return module


def code_of(c: Any, module: Any) -> bytes:
    """A module's machine code, to be loaded again."""
    content = c.wasm_byte_vec_t()
    error = c.wasmtime_module_serialize(module, ctypes.byref(content))
    if error:
        raise InvalidFunction(message_of(c, error))
    code = ctypes.string_at(content.data, content.size)
    c.wasm_byte_vec_delete(ctypes.byref(content))
    return code


def message_of(c: Any, error: Any) -> str:
    """What an error says; frees it."""
    message = c.wasm_byte_vec_t()
    c.wasmtime_error_message(error, ctypes.byref(message))
    c.wasmtime_error_delete(error)
    return text_of(c, message)


def text_of(c: Any, message: Any) -> str:
    """A text that wasmtime gave; frees it."""
    text = bytes(message.data[: message.size]).decode(errors="replace")
    c.wasm_byte_vec_delete(ctypes.byref(message))
    return text
