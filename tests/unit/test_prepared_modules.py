"""Modules compiled ahead of their registration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from tallybus.services.transactor.functions import prepared as module
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.prepared import PreparedModules

TIMEOUT_S = 30


class Compiler:
    """Counts what it compiles; a module that starts with `!` is invalid, one with `?` a defect."""

    def __init__(self) -> None:
        self.compiled: list[bytes] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, binary: bytes) -> str:
        assert self.may_go_on.wait(TIMEOUT_S)
        self.compiled.append(binary)
        if binary.startswith(b"!"):
            raise InvalidFunction("it has no execute")
        if binary.startswith(b"?"):
            raise MemoryError("too much")
        return binary.decode()


class Rig:
    def __init__(self) -> None:
        self.compiler = Compiler()
        self.modules: PreparedModules[int, str] = PreparedModules(self.compiler)
        self._told = threading.Semaphore(0)
        self.modules.notify = self._told.release

    def done(self, count: int) -> list[tuple[int, str | None]]:
        for _ in range(count):
            assert self._told.acquire(timeout=TIMEOUT_S)
        return self.modules.done()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.compiler.may_go_on.set()
    made.modules.close()


def test_what_was_prepared_is_not_compiled_again(rig: Rig) -> None:
    rig.modules.ask(1, b"pay")
    assert rig.done(1) == [(1, None)]
    assert rig.modules.take(b"pay") == "pay"
    assert rig.compiler.compiled == [b"pay"]


def test_what_was_not_prepared_is_compiled_when_it_is_needed(rig: Rig) -> None:
    assert rig.modules.take(b"pay") == "pay"
    with pytest.raises(InvalidFunction, match="no execute"):
        rig.modules.take(b"!pay")


def test_a_refusal_says_why_and_the_next_one_is_compiled(rig: Rig) -> None:
    for ticket, binary in enumerate((b"!pay", b"?pay", b"pay")):
        rig.modules.ask(ticket, binary)
    refused, broken, fine = rig.done(3)
    assert refused == (0, "it has no execute")
    assert broken[0] == 1
    assert "too much" in str(broken[1])
    assert fine == (2, None)


def test_asking_does_not_wait_for_the_compiler(rig: Rig) -> None:
    rig.compiler.may_go_on.clear()
    rig.modules.ask(1, b"slow")
    rig.modules.ask(2, b"slow")
    assert rig.modules.done() == []
    rig.compiler.may_go_on.set()
    assert rig.done(2) == [(1, None), (2, None)]
    assert rig.compiler.compiled == [b"slow"]


def test_one_module_is_compiled_once_for_many_registrations(rig: Rig) -> None:
    for ticket in (1, 2):
        rig.modules.ask(ticket, b"pay")
    assert rig.done(2) == [(1, None), (2, None)]
    assert [rig.modules.take(b"pay") for _ in range(3)] == ["pay"] * 3
    assert rig.compiler.compiled == [b"pay"]


def test_those_that_were_not_asked_for_the_longest_go_first(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    for number, binary in enumerate((b"a", b"b")):
        rig.modules.ask(number, binary)
    rig.done(2)
    rig.modules.take(b"a")
    rig.modules.ask(3, b"c")
    rig.done(1)
    for binary in (b"a", b"c", b"b"):
        rig.modules.take(binary)
    assert rig.compiler.compiled == [b"a", b"b", b"c", b"b"]


def test_large_ones_are_kept_up_to_a_size(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 5)
    for number, binary in enumerate((b"aaa", b"bbb", b"larger than all")):
        rig.modules.ask(number, binary)
    rig.done(3)
    rig.modules.take(b"larger than all")
    assert len(rig.compiler.compiled) == 3
    rig.modules.take(b"bbb")
    assert len(rig.compiler.compiled) == 4


def test_closing_drops_what_was_not_begun() -> None:
    rig = Rig()
    rig.compiler.may_go_on.clear()
    rig.modules.ask(1, b"a")
    rig.modules.ask(2, b"b")
    closing = threading.Thread(target=rig.modules.close)
    closing.start()
    limit = time.monotonic() + TIMEOUT_S
    while not rig.modules.closing and time.monotonic() < limit:
        time.sleep(0.001)
    rig.compiler.may_go_on.set()
    closing.join(TIMEOUT_S)
    assert not closing.is_alive()
    assert b"b" not in rig.compiler.compiled
