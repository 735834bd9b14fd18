"""Registrations before they are sequenced, and questions about functions, both for the transactor.

A module is validated and compiled there first, so that one that is refused leaves no trace and a
registration holds no other transaction up. Questions are repeated until they are answered: sockets
drop what they cannot deliver. ADR 0009 says why.
"""

from __future__ import annotations

from typing import Final

from tallybus.common.buffers import size
from tallybus.common.bus.messages import FunctionsQuery, Message, Prepare, Prepared
from tallybus.services.gateway.clients.protocol import FunctionsRead, Register

MAX_HELD_BYTES: Final = 64 << 20
"""Modules held at a time until they are compiled; beyond it clients are told `overloaded`. A client
leaves others as much room as it has."""
ASK_AGAIN_NS: Final = 1_000_000_000


class Registrations:
    """`questions` is what its owner has to send to the transactor, in order."""

    def __init__(self) -> None:
        self.questions: list[Message] = []
        self.held_bytes = 0
        """Bytes of the modules that wait for the transactor."""
        self._waiting: dict[int, Register] = {}
        self._held_of: dict[bytes, int] = {}
        """The same of each client that has any."""
        self._reads: list[tuple[int, FunctionsRead]] = []
        """Each with the question that was asked when it came. Any later answer serves it too."""
        self._last = 0
        self._asked_ns = 0

    def takes(self, register: Register) -> bool:
        """Whether there is room for one more."""
        own = self._held_of.get(register.owner, 0)
        return own + size(register.binary) <= MAX_HELD_BYTES - self.held_bytes

    def prepare(self, register: Register) -> None:
        """Have the module validated and compiled."""
        self._last += 1
        self._waiting[self._last] = register
        self._hold(register, size(register.binary))
        self.questions.append(_question(self._last, register))

    def prepared(self, message: Prepared) -> Register | None:
        """The registration that an answer is for, if it still waits for it."""
        register = self._let_go(message.query)
        return None if register is None or register.done else register

    def _let_go(self, query: int) -> Register | None:
        register = self._waiting.pop(query, None)
        if register is not None:
            self._hold(register, -size(register.binary))
        return register

    def _hold(self, register: Register, more: int) -> None:
        self.held_bytes += more
        own = self._held_of.pop(register.owner, 0) + more
        if own:
            self._held_of[register.owner] = own

    def read(self, read: FunctionsRead) -> None:
        """Ask which functions there are."""
        self._last += 1
        self._reads.append((self._last, read))
        self.questions.append(FunctionsQuery(self._last))

    def answered(self, query: int) -> list[FunctionsRead]:
        """Those that an answer is for and that still wait for it."""
        served = [read for asked, read in self._reads if asked <= query and not read.done]
        self._reads = [each for each in self._reads if each[0] > query]
        return served

    def ask_again(self) -> None:
        """A new transactor knows none of the questions."""
        self._asked_ns = -ASK_AGAIN_NS

    def tick(self, now_ns: int) -> None:
        """Repeat what was not answered for long."""
        if self.questions:
            self._asked_ns = now_ns
        if not (self._waiting or self._reads) or now_ns - self._asked_ns < ASK_AGAIN_NS:
            return
        self._asked_ns = now_ns
        for query in [query for query, register in self._waiting.items() if register.done]:
            self._let_go(query)
        self._reads = [each for each in self._reads if not each[1].done]
        for query, register in self._waiting.items():
            self.questions.append(_question(query, register))
        if self._reads:
            self.questions.append(FunctionsQuery(self._last))


def _question(query: int, register: Register) -> Prepare:
    # The transactor serves clients in turn, and only tells them apart.
    return Prepare(query, register.names[0], register.binary, register.owner.hex())
