"""Modules compiled ahead of their registration, in a thread of their own.

A large module takes seconds to compile, in which nothing else may stand still. So a gateway has it
looked at before the registration is sequenced; when that is executed, the module is at hand. A
restart in between loses it, and then it is compiled on the spot. Compiled modules can be shared:
the same one may be registered under many names.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from tallybus.services.transactor.functions.errors import InvalidFunction

KEPT: Final = 64
KEPT_BYTES: Final = 8 << 20
"""Modules that are kept compiled, and how large they may be together (as binaries). Beyond either,
those go that were not asked for the longest; the newest stays, however large."""

Ticket = TypeVar("Ticket")
Compiled = TypeVar("Compiled")


class PreparedModules(Generic[Ticket, Compiled]):
    """Compiles what is asked for, one after the other. `notify` is called in its thread whenever
    something is done, and must return quickly."""

    def __init__(self, compile_module: Callable[[bytes], Compiled]) -> None:
        self._compile = compile_module
        self._asked: deque[tuple[Ticket, bytes]] = deque()
        self._done: deque[tuple[Ticket, str | None]] = deque()
        self._ready: OrderedDict[bytes, Compiled] = OrderedDict()
        self._bytes = 0
        self._changed = threading.Condition()
        self.closing = False
        self._thread: threading.Thread | None = None
        self.notify: Callable[[], None] = _nothing

    def ask(self, ticket: Ticket, binary: bytes) -> None:
        """Compile this module; `done` tells how it went."""
        with self._changed:
            self._asked.append((ticket, binary))
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="compiler", daemon=True)
            self._thread.start()

    def done(self) -> list[tuple[Ticket, str | None]]:
        """What was finished since the last call: the ticket, and why it was refused, if it was."""
        finished = []
        while self._done:
            finished.append(self._done.popleft())
        return finished

    def take(self, binary: bytes) -> Compiled:
        """The compiled module, from before or compiled now. Raises InvalidFunction."""
        with self._changed:
            found = self._ready.get(binary)
            if found is not None:
                self._ready.move_to_end(binary)
        return self._compile(binary) if found is None else found

    def ready(self, binary: bytes) -> Compiled | None:
        """The compiled module if it is at hand."""
        with self._changed:
            return self._ready.get(binary)

    def close(self) -> None:
        """End the thread; what was asked for and not begun is dropped."""
        with self._changed:
            self.closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
        self._ready.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._asked and not self.closing:
                    self._changed.wait()
                if self.closing:
                    return
                ticket, binary = self._asked.popleft()
                known = binary in self._ready
                if known:
                    self._ready.move_to_end(binary)
            refusal = None if known else self._prepare(binary)
            self._done.append((ticket, refusal))
            self.notify()

    def _prepare(self, binary: bytes) -> str | None:
        try:
            compiled = self._compile(binary)
        except InvalidFunction as error:
            return str(error)
        except Exception as error:  # noqa: BLE001
            # Whatever a module does to the compiler, the service lives on.
            return f"it cannot be compiled: {type(error).__name__}: {error}"
        with self._changed:
            self._ready[binary] = compiled
            self._bytes += len(binary)
            while len(self._ready) > KEPT or (self._bytes > KEPT_BYTES and len(self._ready) > 1):
                oldest, _ = self._ready.popitem(last=False)
                self._bytes -= len(oldest)
        return None


def _nothing() -> None:
    pass
