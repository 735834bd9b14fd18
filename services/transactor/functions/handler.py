"""From a module to what the kernel can call: from its bytes, or from code that was made before.

Uses wasmtime through `binding.py` and touches nothing else. May be called from any thread.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.binding import Instance, Module, Sandbox
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.module import ModuleFacts, ModuleLimits
from tallybus.services.transactor.functions.weighing import weigh

_INSTANTIATION_FUEL: Final = 10**12
"""For an instance that is made ahead: no call's fuel, and bounded by the module's limits."""


class CompileCost(NamedTuple):
    """`seconds` of processor time, and `code_bytes` of machine code that came out; 0 where nobody
    measured."""

    seconds: float = 0.0
    code_bytes: int = 0


class CompiledFunction:
    """A module that may be called. Its code is freed with the last reference to it.

    `facts` are those of `module.parts`. `instance` serves every call; it is None for a module
    that can write state or has a start function: of such a one every call gets a fresh instance.
    `cost`: what it took to compile.
    """

    __slots__ = ("cost", "crc32c", "facts", "instance", "module")

    def __init__(
        self,
        module: Module,
        instance: Instance | None,
        facts: ModuleFacts,
        crc: int,
        cost: CompileCost,
    ) -> None:
        self.cost = cost
        self.module = module
        self.instance = instance
        self.facts = facts
        self.crc32c = crc

    @property
    def fresh_instances(self) -> bool:
        """Whether every call needs an instance of its own."""
        return self.instance is None

    def fill(self, slot: NDArray[np.uint64], crc: int, fuel: int, registered: int = 0) -> None:
        """Make u64[SLOT_WORDS] call this function. It must be kept as long as the slot is used."""
        slot[:] = 0
        slot[layout.REGISTERED] = registered
        slot[layout.CRC] = crc
        slot[layout.FUEL] = fuel
        slot[layout.START_FUEL] = self.facts.start_fuel
        if self.instance is None:
            slot[layout.PRE] = self.module.pre
        else:
            slot[layout.CONTEXT] = self.instance.context
            slot[layout.FUNCTION : layout.FUNCTION + 2] = self.instance.function

    def close(self) -> None:
        """Free the code now. Nothing may call it any more."""
        if self.instance is not None:
            self.instance.close()
        self.module.close()


def limits_of(limits: FunctionLimits) -> ModuleLimits:
    """What a module may hold."""
    return ModuleLimits(limits.memory_bytes, limits.table_elements)


def compile_function(sandbox: Sandbox, binary: bytes, limits: FunctionLimits) -> CompiledFunction:
    """Check and compile, here and now: for tests and trials. Raises InvalidFunction."""
    weighed = weigh(binary, limits_of(limits))
    return _ready(sandbox, sandbox.compile(weighed.binary), weighed.facts, binary, CompileCost())


def load_function(
    sandbox: Sandbox, binary: bytes, facts: ModuleFacts, code: bytes, seconds: float
) -> CompiledFunction:
    """The same from machine code that was made of this binary before. Raises InvalidFunction."""
    cost = CompileCost(seconds, len(code))
    return _ready(sandbox, sandbox.load(code), facts, binary, cost)


def _ready(
    sandbox: Sandbox, module: Module, facts: ModuleFacts, binary: bytes, cost: CompileCost
) -> CompiledFunction:
    """A module is also instantiated once, unless it has a start function, whose place is a
    transaction: so what would fail in every call is refused here."""
    crc = crc32c(binary)
    if crc == 0:
        raise InvalidFunction("its CRC-32C is 0, which stands for no function at all")
    if facts.has_start:
        return CompiledFunction(module, None, facts, crc, cost)
    instance = sandbox.instantiate(module, _INSTANTIATION_FUEL)
    if facts.writes_state:
        instance.close()
        return CompiledFunction(module, None, facts, crc, cost)
    return CompiledFunction(module, instance, facts, crc, cost)
