"""The inspector of WebAssembly binaries: what it refuses and finds out; nothing breaks it."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import (
    Config,
    Engine,
    Func,
    FuncType,
    Instance,
    Module,
    Store,
    Trap,
    ValType,
    WasmtimeError,
)

from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.module import (
    MAX_BINARY_BYTES,
    ModuleFacts,
    ModuleLimits,
    parts,
)
from tests.support.hostile import making
from tests.support.hostile.refused import REFUSED
from tests.support.hostile.remembering import FORGETTING_TRAPS, REMEMBERING, STATELESS
from tests.support.hostile.valid import VALID

LIMITS = ModuleLimits(memory_bytes=16 << 20, table_elements=10_000)
SMALL = sorted(name for name in VALID if len(VALID[name]()) < 1_000)


def facts_of(binary: bytes, limits: ModuleLimits) -> ModuleFacts:
    return parts(binary, limits).facts


def inspected(binary: bytes) -> ModuleFacts | None:
    """None if refused; whatever else it raises is a failure of the test."""
    try:
        return facts_of(binary, LIMITS)
    except InvalidFunction as error:
        refusal = error
    assert refusal.reason
    assert refusal.reason in str(refusal)
    assert refusal.offset is None or 0 <= refusal.offset <= len(binary)
    return None


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_with_a_reason_what_is_not_a_function(name: str) -> None:
    refused = REFUSED[name]
    if refused.by_compiler:
        assert inspected(refused.binary()) is not None
        return
    with pytest.raises(InvalidFunction) as caught:
        facts_of(refused.binary(), LIMITS)
    assert refused.reason in str(caught.value)


@pytest.mark.parametrize("name", VALID)
def test_takes_what_is_allowed(name: str) -> None:
    assert facts_of(VALID[name](), LIMITS).functions >= 1


def test_facts_of_a_module() -> None:
    text = f"""(module {making.DEBIT} {making.BALANCE} {making.DEBIT.replace("$debit", "")}
        (memory 2 9) (table 3 funcref) (table 4 externref)
        (func $s) {making.EXECUTE} (i32.const 0)))"""
    facts = facts_of(making.wat(text), LIMITS)
    assert facts.imports == ("debit", "get_balance", "debit")
    assert (facts.functions, facts.memory_bytes, facts.table_elements) == (5, 2 * 65_536, 7)
    assert not facts.has_start
    assert not facts.writes_state
    assert facts.start_fuel == 0
    assert facts_of(making.wat(text.replace("(func $s)", "(func $s) (start $s)")), LIMITS).has_start


def test_an_error_tells_where() -> None:
    binary = REFUSED["SIMD"].binary()
    with pytest.raises(InvalidFunction) as caught:
        facts_of(binary, LIMITS)
    error = caught.value
    assert error.section == "code"
    assert error.offset is not None
    assert binary[error.offset] == 0xFD
    assert f"(at byte {error.offset})" in str(error)


@pytest.mark.parametrize("memory", [0, 1, 4])
def test_limits_of_memory_are_those_given(memory: int) -> None:
    binary = making.function("(i32.const 0)", f"(memory {memory})")
    exactly = ModuleLimits(memory * 65_536, 0)
    assert facts_of(binary, exactly).memory_bytes == memory * 65_536
    if memory:
        with pytest.raises(InvalidFunction, match="bytes of memory"):
            facts_of(binary, ModuleLimits(memory * 65_536 - 1, 0))


def test_the_largest_binary() -> None:
    assert facts_of(making.of_size(MAX_BINARY_BYTES), LIMITS).functions == 1
    with pytest.raises(InvalidFunction, match="4194305 bytes"):
        facts_of(making.of_size(MAX_BINARY_BYTES + 1), LIMITS)


# Every instruction that writes, alone in an otherwise empty function.
WRITING = {
    "global.set": ("(global.set $g (i64.const 1))", "(global $g (mut i64) (i64.const 0))"),
    **{
        store: (f"({store} (i32.const 0) ({store[:3]}.const 1))", "(memory 1)")
        for store in (
            "i32.store",
            "i64.store",
            "f32.store",
            "f64.store",
            "i32.store8",
            "i32.store16",
            "i64.store8",
            "i64.store16",
            "i64.store32",
        )
    },
    "memory.grow": ("(drop (memory.grow (i32.const 0)))", "(memory 1)"),
    "memory.fill": ("(memory.fill (i32.const 0) (i32.const 0) (i32.const 0))", "(memory 1)"),
    "memory.copy": ("(memory.copy (i32.const 0) (i32.const 0) (i32.const 0))", "(memory 1)"),
    "memory.init": (
        "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 0))",
        '(memory 1) (data $d "")',
    ),
    "data.drop": ("(data.drop $d)", '(memory 1) (data $d "")'),
    "table.set": ("(table.set $t (i32.const 0) (ref.null func))", "(table $t 1 funcref)"),
    "table.grow": ("(drop (table.grow $t (ref.null func) (i32.const 0)))", "(table $t 1 funcref)"),
    "table.fill": (
        "(table.fill $t (i32.const 0) (ref.null func) (i32.const 0))",
        "(table $t 1 funcref)",
    ),
    "table.copy": (
        "(table.copy $t $t (i32.const 0) (i32.const 0) (i32.const 0))",
        "(table $t 1 funcref)",
    ),
    "table.init": (
        "(table.init $t $e (i32.const 0) (i32.const 0) (i32.const 0))",
        "(table $t 1 funcref) (elem $e func)",
    ),
    "elem.drop": ("(elem.drop $e)", "(table $t 1 funcref) (elem $e func)"),
}


@pytest.mark.parametrize("instruction", WRITING)
def test_every_instruction_that_writes_is_found(instruction: str) -> None:
    code, around = WRITING[instruction]
    done = "(i32.const 0)"
    for binary in (
        making.function(code + done, around),
        making.function(done, f"{around} (func {code})"),
        making.function("(return (i32.const 0)) " + code + done, around),
    ):
        assert facts_of(binary, LIMITS).writes_state
    assert not facts_of(making.function(done, around), LIMITS).writes_state


@pytest.mark.parametrize("name", STATELESS)
def test_what_cannot_write_is_known(name: str) -> None:
    assert not facts_of(STATELESS[name](), LIMITS).writes_state


def _called_on_one_instance(binary: bytes, times: int) -> list[int | None]:
    """What `execute` returns each time, None where it traps. Host calls do nothing."""
    config = Config()
    config.consume_fuel = True
    store = Store(Engine(config))
    store.set_limits(memory_size=LIMITS.memory_bytes, table_elements=LIMITS.table_elements)
    store.set_fuel(20_000)
    module = Module(store.engine, binary)
    i64 = ValType.i64()

    def nothing(*_: int) -> None:
        return None

    def zero(*_: int) -> int:
        return 0

    host = {
        "credit": Func(store, FuncType([i64, i64], []), nothing),
        "debit": Func(store, FuncType([i64, i64], []), nothing),
        "get_balance": Func(store, FuncType([i64], [i64]), zero),
    }
    found: list[int | None] = []
    try:
        instance = Instance(store, module, [host[i.name or ""] for i in module.imports])
    except Trap:
        return [None] * times
    execute = instance.exports(store)["execute"]
    assert isinstance(execute, Func)
    for _ in range(times):
        store.set_fuel(20_000)
        try:
            found.append(execute(store, *[0] * 8))
        except Trap:
            found.append(None)
    return found


@pytest.mark.parametrize("name", SMALL)
def test_whatever_differs_at_a_second_call_is_known_to_write(name: str) -> None:
    binary = VALID[name]()
    results = _called_on_one_instance(binary, 3)
    if len(set(results)) > 1:
        assert facts_of(binary, LIMITS).writes_state


# A start function remembers only when an instance is started twice, which no caller can do.
@pytest.mark.parametrize(
    "name", [*sorted(REMEMBERING.keys() - {"in a start function"}), *FORGETTING_TRAPS]
)
def test_the_modules_that_remember_do_so_on_one_instance(name: str) -> None:
    # Otherwise the tests that no state survives would show nothing.
    first, second, _ = _called_on_one_instance(VALID[name](), 3)
    assert first == 0
    assert second != 0


@pytest.mark.parametrize("name", SMALL)
def test_a_module_that_is_cut_off_anywhere_is_refused(name: str) -> None:
    binary = VALID[name]()
    for size in range(len(binary)):
        facts = inspected(binary[:size])
        # Whatever comes after the code may be missing.
        assert facts is None or binary[size] in (0, 11)


@pytest.mark.parametrize("name", SMALL)
def test_any_changed_byte_is_survived(name: str) -> None:
    binary = bytearray(VALID[name]())
    for place in range(len(binary)):
        before = binary[place]
        for value in {0, 1, 0x7F, 0x80, 0xFF, before ^ 1, before ^ 0x40, before ^ 0x80}:
            binary[place] = value
            inspected(bytes(binary))
        binary[place] = before


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(content: bytes) -> None:
    inspected(content)
    inspected(making.MAGIC + content)


@pytest.fixture(scope="module")
def as_in_the_sandbox() -> Store:
    config = Config()
    for proposal in (
        "threads",
        "simd",
        "relaxed_simd",
        "tail_call",
        "function_references",
        "gc",
        "exceptions",
        "multi_memory",
        "memory64",
        "wide_arithmetic",
        "custom_page_sizes",
        "stack_switching",
    ):
        setattr(config, f"wasm_{proposal}", False)
    return Store(Engine(config))


_IMMEDIATES = [
    b"".join(parts)
    for count in range(4)
    for parts in itertools.product((b"\x00", b"\x01", b"\x70", b"\x80\x00"), repeat=count)
]
_IMMEDIATES += [bytes(4), bytes(8), bytes(16), b"\x40\x0b", b"\x02\xf8\xff\xff\xff\x0f"]


@pytest.mark.parametrize(
    "first", [*range(0xFC), 0xFD, 0xFE, 0xFF, *((0xFC, sub) for sub in range(40))]
)
def test_instructions_are_as_long_as_the_compiler_takes_them(
    first: int | tuple[int, int], as_in_the_sandbox: Store
) -> None:
    code = bytes((first,)) if isinstance(first, int) else bytes(first)
    for immediate in _IMMEDIATES:
        # Behind `unreachable` any types are on the stack. Whoever takes the instruction for longer
        # or shorter stumbles over a constant of 0x24, which would be a write.
        binary = making.module(
            [
                making.body(
                    b"\x02\x40\x00" + code + immediate + b"\x00\x41\x24\x1a\x0b" + making.RETURN_0,
                    [(2, making.I64)],
                )
            ],
            before_exports=making.section(4, b"\x02\x70\x00\x01\x70\x00\x01")
            + making.section(5, b"\x01\x00\x01")
            + making.section(6, b"\x02" + b"\x7e\x01\x42\x00\x0b" * 2),
            after_exports=making.section(9, b"\x02\x03\x00\x01\x00\x01\x00\x00")
            + making.section(12, b"\x02"),
            after_code=making.section(11, b"\x02" + b"\x01\x00" * 2),
        )
        try:
            Module.validate(as_in_the_sandbox.engine, binary)
        except WasmtimeError:
            inspected(binary)
            continue
        writes = code[0] in (0x24, 0x26, 0x40, *range(0x36, 0x3F)) or (
            code[0] == 0xFC and 8 <= code[1] <= 17 and code[1] != 16
        )
        assert facts_of(binary, LIMITS).writes_state == writes, immediate


@given(
    st.lists(
        st.tuples(
            st.integers(0, 15),
            st.one_of(st.binary(max_size=40), st.integers(0, 2**35).map(making.unsigned)),
        ),
        max_size=12,
    )
)
def test_any_sections_are_survived(sections: list[tuple[int, bytes]]) -> None:
    inspected(making.MAGIC + b"".join(making.section(n, content) for n, content in sections))


@given(st.randoms(use_true_random=False), st.sampled_from(SMALL), st.sampled_from(SMALL))
def test_pieces_of_modules_put_together_are_survived(
    rng: random.Random, one: str, other: str
) -> None:
    a, b = VALID[one](), VALID[other]()
    content = bytearray(a[: rng.randrange(len(a))] + b[rng.randrange(len(b)) :])
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(content) + 1)
        content[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(6))
    inspected(bytes(content))
