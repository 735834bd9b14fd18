"""From the bytes of a module to what the kernel can call: every check, then machine code.

Uses the compiler through `binding.py` and touches nothing else. May be called from any thread.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from tallybus.services.transactor.functions import layout
from tallybus.services.transactor.functions.binding import Instance, Module, Sandbox
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.module import ModuleFacts, ModuleLimits, inspect

_INSTANTIATION_FUEL: Final = 10**12
"""For an instance that is made ahead: no call's fuel, and bounded by the module's limits."""


class CompiledFunction:
    """A module that may be called. Its code is freed with the last reference to it.

    `facts` are those of `module.inspect`. `instance` serves every call; it is None for a module
    that can write state or has a start function: of such a one every call gets a fresh instance.
    """

    __slots__ = ("crc32c", "facts", "instance", "module")

    def __init__(
        self, module: Module, instance: Instance | None, facts: ModuleFacts, crc: int
    ) -> None:
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


def compile_function(sandbox: Sandbox, binary: bytes, limits: FunctionLimits) -> CompiledFunction:
    """Check and compile. Raises InvalidFunction with what is wrong.

    A module is also instantiated once, unless it has a start function, whose place is a
    transaction: so what would fail in every call is refused here.
    """
    facts = inspect(binary, ModuleLimits(limits.memory_bytes, limits.table_elements))
    crc = crc32c(binary)
    if crc == 0:
        raise InvalidFunction("its CRC-32C is 0, which stands for no function at all")
    module = sandbox.compile(binary)
    if facts.has_start:
        return CompiledFunction(module, None, facts, crc)
    instance = sandbox.instantiate(module, _INSTANTIATION_FUEL)
    if facts.writes_state:
        instance.close()
        return CompiledFunction(module, None, facts, crc)
    return CompiledFunction(module, instance, facts, crc)
