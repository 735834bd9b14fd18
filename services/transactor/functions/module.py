"""Reads a WebAssembly binary before it is compiled: what a function may be, and what it can do.

Two things are decided here, from the bytes alone:

- Our rules: which WebAssembly (see `instructions.py`), the three imports of a ledger, one export
  `execute` with eight i64 and one i32, bounds on memory, tables and on every count.
- Whether the code can write state. Only a module that cannot is ever called twice on one instance.

Whether the module is valid is left to the compiler: types and stack heights are never relied on.
Relied on is that the compiler takes the bytes apart in the same way, so whatever is not known here
by heart is refused.

Nothing in a binary is trusted. Time is linear in its size, a tenth of a second for 1 MB; memory is
a few objects per type, function and export. Any bytes end in `ModuleFacts` or `InvalidFunction`. No
I/O. ADR 0011 says why a module is read first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tallybus.common.functions.names import MAX_BINARY_BYTES, WASM_MAGIC
from tallybus.common.record import MAX_PARAMS
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.instructions import scan

PAGE_BYTES: Final = 65_536
"""A page of WebAssembly memory."""

# What compilers make of hand-written functions stays below a tenth of each of these.
MAX_TYPES: Final = 1_000
MAX_PARAMETERS: Final = 32
MAX_RESULTS: Final = 8
MAX_IMPORTS: Final = 100
MAX_FUNCTIONS: Final = 10_000
MAX_TABLES: Final = 4
MAX_MEMORIES: Final = 1
MAX_GLOBALS: Final = 1_000
MAX_EXPORTS: Final = 1_000
MAX_SEGMENTS: Final = 1_000
"""Data segments, and element segments."""
MAX_ELEMENTS: Final = 10_000
"""Entries of all element segments together: a fresh instance writes them into its tables."""
MAX_LOCALS: Final = 1_000
"""Of one function, with its parameters."""
MAX_CUSTOM_SECTIONS: Final = 1_000
MAX_EXPORT_NAME_BYTES: Final = 1_000

# What an instance takes before its code runs, in units of fuel; only where each call gets one.
INSTANCE_FUEL: Final = 100
PAGE_FUEL: Final = 3_600
"""Of a page of memory: the system has to find and clear it, in 16 pieces of two microseconds."""
TABLE_ELEMENT_FUEL: Final = 1
SEGMENT_FUEL: Final = 10
EXPRESSION_FUEL: Final = 8

_VERSION: Final = b"\x01\x00\x00\x00"
_COMPONENT: Final = b"\x0d\x00\x01\x00"

_NAMES: Final = {
    0: "custom",
    1: "type",
    2: "import",
    3: "function",
    4: "table",
    5: "memory",
    6: "global",
    7: "export",
    8: "start",
    9: "element",
    10: "code",
    11: "data",
    12: "data count",
}
_ORDER: Final = {
    number: place for place, number in enumerate((1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 10, 11))
}
_KINDS: Final = ("function", "table", "memory", "global")

_I32: Final = 0x7F
_I64: Final = 0x7E
_REFERENCES: Final = frozenset((0x70, 0x6F))
_VALUES: Final = frozenset((_I32, _I64, 0x7D, 0x7C)) | _REFERENCES

_Signature = tuple[bytes, bytes]
_EXECUTE: Final[_Signature] = (bytes((_I64,)) * MAX_PARAMS, bytes((_I32,)))
_IMPORTS: Final[dict[str, tuple[_Signature, str]]] = {
    "credit": ((bytes((_I64, _I64)), b""), "(i64, i64) -> ()"),
    "debit": ((bytes((_I64, _I64)), b""), "(i64, i64) -> ()"),
    "get_balance": ((bytes((_I64,)), bytes((_I64,))), "(i64) -> i64"),
}


@dataclass(frozen=True, slots=True)
class ModuleLimits:
    """What an instance may hold from its start: bytes of memory, and elements of all tables."""

    memory_bytes: int
    table_elements: int


@dataclass(frozen=True, slots=True)
class ModuleFacts:
    """What a module is and can do.

    `writes_state`: one call may leave something behind that a later one on the same instance would
    see, so that each needs a fresh instance. False only where the code cannot. `imports`: the names
    within `ledger` in the module's order, as often as they are imported. `memory_bytes`,
    `table_elements`: of a fresh instance. `grows`: whether it has memory.grow. `start_fuel`: what
    each call takes before its code runs, beside what wasmtime counts.
    """

    writes_state: bool
    has_start: bool
    imports: tuple[str, ...]
    functions: int
    memory_bytes: int
    table_elements: int
    code_bytes: int
    grows: bool
    start_fuel: int


@dataclass(frozen=True, slots=True)
class Parts:
    """Where things are in a binary. `sections`: number, and where the contents begin and end.
    `bodies`: where each function's body begins, its instructions begin, and both end."""

    facts: ModuleFacts
    types: int
    sections: tuple[tuple[int, int, int], ...]
    bodies: tuple[tuple[int, int, int], ...]


def parts(binary: bytes, limits: ModuleLimits) -> Parts:
    """A module's facts and where things are in it. Raises InvalidFunction: what is wrong, where."""
    if len(binary) > MAX_BINARY_BYTES:
        raise InvalidFunction(
            f"the binary has {len(binary)} bytes, at most {MAX_BINARY_BYTES} are allowed"
        )
    if binary[:4] != WASM_MAGIC:
        raise InvalidFunction("not a WebAssembly binary: it does not begin with \\0asm", None, 0)
    if binary[4:8] == _COMPONENT:
        raise InvalidFunction("a component, not a core module", None, 4)
    if binary[4:8] != _VERSION:
        raise InvalidFunction("the version of the binary format is not 1", None, 4)
    return _Module(binary, limits).parts()


class _Reader:
    """A place in the binary that moves forward within one section."""

    __slots__ = ("data", "end", "position", "section")

    def __init__(self, data: bytes, position: int, end: int, section: str | None) -> None:
        self.data = data
        self.position = position
        self.end = end
        self.section = section

    def error(self, reason: str, offset: int | None = None) -> InvalidFunction:
        at = self.position if offset is None else offset
        return InvalidFunction(reason, self.section, at)

    def byte(self) -> int:
        if self.position >= self.end:
            raise self.error("ends too early")
        value = self.data[self.position]
        self.position += 1
        return value

    def u32(self) -> int:
        start = self.position
        result = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                if result >= 2**32:
                    break
                return result
        raise self.error("a number is larger than 32 bits", start)

    def count(self, what: str, limit: int) -> int:
        start = self.position
        number = self.u32()
        if number > limit:
            raise self.error(f"{number} {what}, at most {limit} are allowed", start)
        return number

    def skip(self, size: int) -> None:
        if size > self.end - self.position:
            raise self.error("ends too early")
        self.position += size

    def skip_number(self) -> None:
        for _ in range(10):
            if self.byte() < 0x80:
                return
        raise self.error("a number is longer than 10 bytes")

    def text(self, what: str, limit: int) -> str:
        """At most `limit` bytes of UTF-8."""
        size = self.count(f"bytes of {what}", limit)
        start = self.position
        self.skip(size)
        try:
            return self.data[start : self.position].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8", start) from error

    def value_type(self) -> int:
        kind = self.byte()
        if kind not in _VALUES:
            raise self.error(f"unknown type of values {kind:#04x}", self.position - 1)
        return kind

    def reference_type(self) -> int:
        kind = self.byte()
        if kind not in _REFERENCES:
            raise self.error(f"unknown type of references {kind:#04x}", self.position - 1)
        return kind

    def constant(self) -> None:
        """Past a constant expression."""
        # Constant expressions have no branches, and a few operations make any offset.
        for _ in range(100):
            at = self.position
            code = self.byte()
            if code == 0x0B:
                return
            if code in (0x41, 0x42, 0x23, 0xD2):
                self.skip_number()
            elif code == 0xD0:
                self.reference_type()
            elif code == 0x43:
                self.skip(4)
            elif code == 0x44:
                self.skip(8)
            elif code not in (0x6A, 0x6B, 0x6C, 0x7C, 0x7D, 0x7E):
                raise self.error(f"not an instruction of a constant expression: {code:#04x}", at)
        raise self.error("a constant expression has more than 100 instructions")


class _Module:
    """One pass over the sections of a binary."""

    def __init__(self, binary: bytes, limits: ModuleLimits) -> None:
        self._binary = binary
        self._limits = limits
        self._types: list[_Signature] = []
        self._functions: list[int] = []
        """Type of each function, imported ones first."""
        self._imports: list[str] = []
        self._tables = 0
        self._table_elements = 0
        self._memories = 0
        self._memory_bytes = 0
        self._globals = 0
        self._execute: int | None = None
        self._exports: set[str] = set()
        self._has_start = False
        self._writes_state = False
        self._grows = False
        self._code_bytes = 0
        self._begin_fuel = INSTANCE_FUEL
        self._found: list[tuple[int, int, int]] = []
        self._bodies: list[tuple[int, int, int]] = []

    def parts(self) -> Parts:
        self._sections()
        return Parts(self._facts(), len(self._types), tuple(self._found), tuple(self._bodies))

    def _facts(self) -> ModuleFacts:
        own = len(self._functions) - len(self._imports)
        if len(self._bodies) != own:
            raise InvalidFunction(
                f"{own} functions are declared, {len(self._bodies)} have code", "code"
            )
        self._check_execute()
        return ModuleFacts(
            writes_state=self._writes_state,
            has_start=self._has_start,
            imports=tuple(self._imports),
            functions=len(self._functions),
            memory_bytes=self._memory_bytes,
            table_elements=self._table_elements,
            code_bytes=self._code_bytes,
            grows=self._grows,
            start_fuel=self._start_fuel() if self._writes_state else 0,
        )

    def _start_fuel(self) -> int:
        pages = self._memory_bytes // PAGE_BYTES
        return self._begin_fuel + pages * PAGE_FUEL + self._table_elements * TABLE_ELEMENT_FUEL

    def _sections(self) -> None:
        handlers = {
            1: self._type_section,
            2: self._import_section,
            3: self._function_section,
            4: self._table_section,
            5: self._memory_section,
            6: self._global_section,
            7: self._export_section,
            8: self._start_section,
            9: self._element_section,
            10: self._code_section,
            11: self._data_section,
            12: self._data_count_section,
        }
        outer = _Reader(self._binary, 8, len(self._binary), None)
        last = -1
        custom = 0
        while outer.position < outer.end:
            at = outer.position
            number = outer.byte()
            if number not in _NAMES:
                known = "tags (exceptions) are not allowed" if number == 13 else "unknown section"
                raise outer.error(f"{known}, number {number}", at)
            name = _NAMES[number]
            size = outer.u32()
            if size > outer.end - outer.position:
                raise outer.error(
                    f"the {name} section is said to have {size} bytes, "
                    f"{outer.end - outer.position} follow",
                    at,
                )
            reader = _Reader(self._binary, outer.position, outer.position + size, name)
            outer.skip(size)
            if number == 0:
                custom += 1
                if custom > MAX_CUSTOM_SECTIONS:
                    raise reader.error(f"more than {MAX_CUSTOM_SECTIONS} sections", at)
                continue
            if _ORDER[number] <= last:
                raise reader.error("out of order, or there twice", at)
            last = _ORDER[number]
            self._found.append((number, reader.position, reader.end))
            handlers[number](reader)
            if reader.position != reader.end:
                raise reader.error(f"{reader.end - reader.position} bytes too many at its end")

    def _type_section(self, reader: _Reader) -> None:
        for _ in range(reader.count("types", MAX_TYPES)):
            at = reader.position
            if reader.byte() != 0x60:
                raise reader.error("only types of functions are allowed", at)
            lists = []
            for what, limit in (("parameters", MAX_PARAMETERS), ("results", MAX_RESULTS)):
                count = reader.count(what, limit)
                lists.append(bytes(reader.value_type() for _ in range(count)))
            self._types.append((lists[0], lists[1]))

    def _import_section(self, reader: _Reader) -> None:
        for _ in range(reader.count("imports", MAX_IMPORTS)):
            at = reader.position
            module = reader.text("a module's name", MAX_EXPORT_NAME_BYTES)
            name = reader.text("an import's name", MAX_EXPORT_NAME_BYTES)
            kind = reader.byte()
            shown = f"{_shown(module)}.{_shown(name)}"
            if module != "ledger" or name not in _IMPORTS:
                raise reader.error(
                    f"imports {shown}; a function can import only ledger.credit, ledger.debit and "
                    "ledger.get_balance",
                    at,
                )
            if kind != 0:
                what = _KINDS[kind] if kind < len(_KINDS) else "thing of an unknown kind"
                raise reader.error(f"imports {shown} as a {what}; it is a function", at)
            index = self._type_index(reader)
            signature, text = _IMPORTS[name]
            if self._types[index] != signature:
                raise reader.error(f"imports {shown} with another type; it is {text}", at)
            self._imports.append(name)
            self._functions.append(index)

    def _function_section(self, reader: _Reader) -> None:
        for _ in range(reader.count("functions", MAX_FUNCTIONS)):
            self._functions.append(self._type_index(reader))

    def _type_index(self, reader: _Reader) -> int:
        at = reader.position
        index = reader.u32()
        if index >= len(self._types):
            raise reader.error(f"there is no type {index}", at)
        return index

    def _table_section(self, reader: _Reader) -> None:
        for _ in range(reader.count("tables", MAX_TABLES)):
            at = reader.position
            reader.reference_type()
            flags = reader.byte()
            if flags > 1:
                raise reader.error("a table is shared or has 64-bit indexes", at)
            self._table_elements += reader.u32()
            if flags:
                reader.u32()
            self._tables += 1
            if self._table_elements > self._limits.table_elements:
                raise reader.error(
                    f"{self._table_elements} elements in tables, at most "
                    f"{self._limits.table_elements} are allowed",
                    at,
                )

    def _memory_section(self, reader: _Reader) -> None:
        for _ in range(reader.count("memories", MAX_MEMORIES)):
            at = reader.position
            flags = reader.byte()
            if flags & 2:
                raise reader.error("a shared memory", at)
            if flags & 4:
                raise reader.error("a memory with 64-bit addresses", at)
            if flags > 1:
                raise reader.error("a memory with pages of another size", at)
            self._memory_bytes = reader.u32() * PAGE_BYTES
            if flags:
                reader.u32()
            self._memories += 1
            if self._memory_bytes > self._limits.memory_bytes:
                raise reader.error(
                    f"{self._memory_bytes} bytes of memory from the start, at most "
                    f"{self._limits.memory_bytes} are allowed",
                    at,
                )

    def _global_section(self, reader: _Reader) -> None:
        for _ in range(reader.count("globals", MAX_GLOBALS)):
            reader.value_type()
            at = reader.position
            if reader.byte() > 1:
                raise reader.error("a global is neither constant nor mutable", at)
            reader.constant()
            self._globals += 1
            self._begin_fuel += EXPRESSION_FUEL

    def _export_section(self, reader: _Reader) -> None:
        sizes = (len(self._functions), self._tables, self._memories, self._globals)
        for _ in range(reader.count("exports", MAX_EXPORTS)):
            at = reader.position
            name = reader.text("an export's name", MAX_EXPORT_NAME_BYTES)
            kind = reader.byte()
            if kind >= len(_KINDS):
                raise reader.error(
                    f"exports {_shown(name)} as a thing of an unknown kind {kind}", at
                )
            index = reader.u32()
            if index >= sizes[kind]:
                raise reader.error(
                    f"exports {_shown(name)}, but there is no {_KINDS[kind]} {index}", at
                )
            if name in self._exports:
                raise reader.error(f"exports {_shown(name)} twice", at)
            self._exports.add(name)
            if name == "execute":
                if kind != 0:
                    raise reader.error(
                        f"exports execute as a {_KINDS[kind]}; it must be a function", at
                    )
                self._execute = index

    def _check_execute(self) -> None:
        if self._execute is None:
            raise InvalidFunction("no export named execute", "export")
        if self._types[self._functions[self._execute]] != _EXECUTE:
            raise InvalidFunction(
                "execute must have the type (i64, i64, i64, i64, i64, i64, i64, i64) -> i32",
                "export",
            )

    def _start_section(self, reader: _Reader) -> None:
        at = reader.position
        index = reader.u32()
        if index >= len(self._functions):
            raise reader.error(f"there is no function {index}", at)
        self._has_start = True
        # It runs as part of each call, so each call needs an instance that has not run it yet.
        self._writes_state = True

    def _element_section(self, reader: _Reader) -> None:
        total = 0
        for _ in range(reader.count("element segments", MAX_SEGMENTS)):
            at = reader.position
            flags = reader.u32()
            if flags > 7:
                raise reader.error(f"unknown kind of element segment {flags}", at)
            active = not flags & 1
            if active and flags & 2:
                reader.u32()
            if active:
                reader.constant()
            self._begin_fuel += SEGMENT_FUEL
            if flags & 3:
                kind = reader.byte()
                if kind not in _REFERENCES if flags & 4 else kind != 0:
                    raise reader.error(f"unknown type of elements {kind:#04x}", at)
            count = reader.count("elements", MAX_ELEMENTS - total)
            total += count
            for _ in range(count):
                if flags & 4:
                    reader.constant()
                    self._begin_fuel += EXPRESSION_FUEL
                else:
                    reader.u32()

    def _data_count_section(self, reader: _Reader) -> None:
        reader.count("data segments", MAX_SEGMENTS)

    def _data_section(self, reader: _Reader) -> None:
        for _ in range(reader.count("data segments", MAX_SEGMENTS)):
            at = reader.position
            flags = reader.u32()
            if flags > 2:
                raise reader.error(f"unknown kind of data segment {flags}", at)
            if flags == 2:
                reader.u32()
            if flags != 1:
                reader.constant()
                self._begin_fuel += SEGMENT_FUEL
            reader.skip(reader.u32())

    def _code_section(self, reader: _Reader) -> None:
        self._code_bytes = reader.end - reader.position
        own = len(self._functions) - len(self._imports)
        count = reader.count("function bodies", own)
        for index in range(count):
            at = reader.position
            size = reader.u32()
            if size > reader.end - reader.position:
                raise reader.error("a function's body is longer than the section", at)
            start = reader.position
            end = start + size
            parameters = len(self._types[self._functions[len(self._imports) + index]][0])
            body = _Reader(self._binary, start, end, "code")
            _locals(body, MAX_LOCALS - parameters)
            found = scan(self._binary, body.position, end)
            self._writes_state |= found.writes_state
            self._grows |= found.grows
            self._bodies.append((start, body.position, end))
            reader.skip(size)


def _locals(body: _Reader, limit: int) -> None:
    total = 0
    # Groups may be empty, so they are counted too.
    for _ in range(body.count("groups of locals", MAX_LOCALS)):
        total += body.count("locals", limit - total)
        body.value_type()


def _shown(text: str) -> str:
    """A name from a binary, fit for a message."""
    return ascii(text[:40]).strip("'")
