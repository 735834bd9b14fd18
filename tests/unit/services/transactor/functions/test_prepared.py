"""Modules compiled ahead of their registration."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tallybus.services.transactor.functions import prepared as module
from tallybus.services.transactor.functions.compiler import CompilerStopped, TooSlow
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.prepared import PreparedModules
from tests.support.waiting import eventually

TIMEOUT_S = 30
MOST_SECONDS = 10.0


class Compiler:
    """Notes what it compiles. A module that starts with `!` is invalid, one with `?` a defect, and
    one with `~` takes longer than a first attempt."""

    def __init__(self) -> None:
        self.compiled: list[bytes] = []
        self.attempts: list[tuple[bytes, float]] = []
        self.began = threading.Semaphore(0)
        self.rested = threading.Event()
        self.stopped = False
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def compile(self, binary: bytes, seconds: float) -> str:
        self.attempts.append((binary, seconds))
        self.began.release()
        assert self.may_go_on.wait(TIMEOUT_S)
        if self.stopped:
            raise CompilerStopped
        if binary.startswith(b"~") and seconds < MOST_SECONDS:
            raise TooSlow(seconds)
        self.compiled.append(binary)
        if binary.startswith(b"!"):
            raise InvalidFunction("it has no execute")
        if binary.startswith(b"?"):
            raise MemoryError("too much")
        return binary.decode()

    def rest(self) -> None:
        self.rested.set()

    def stop(self) -> None:
        self.stopped = True
        self.may_go_on.set()


class Rig:
    def __init__(self) -> None:
        self.quick = Compiler()
        self.slow = Compiler()
        self.modules: PreparedModules[int, str] = PreparedModules(
            self.quick, self.slow, MOST_SECONDS
        )
        self._told = threading.Semaphore(0)
        self.modules.notify = self._told.release

    @property
    def compiled(self) -> list[bytes]:
        return self.quick.compiled + self.slow.compiled

    def hold(self, lane: Compiler, binary: bytes) -> None:
        """Have a lane busy with this module until it may go on."""
        lane.may_go_on.clear()
        self.modules.ask(-1, binary)
        assert lane.began.acquire(timeout=TIMEOUT_S)

    def done(self, count: int) -> list[tuple[int, str | None]]:
        found: list[tuple[int, str | None]] = []
        while len(found) < count:
            assert self._told.acquire(timeout=TIMEOUT_S)
            found += self.modules.done()
        return found


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.modules.close()


@pytest.fixture
def alone(rig: Rig) -> Rig:
    """The second lane is busy and helps nobody."""
    rig.hold(rig.slow, b"~" * module.LARGE_BYTES)
    return rig


def test_what_was_prepared_is_not_compiled_again(rig: Rig) -> None:
    rig.modules.ask(1, b"pay")
    assert rig.done(1) == [(1, None)]
    assert rig.modules.take(b"pay") == "pay"
    assert rig.compiled == [b"pay"]


def test_what_was_not_prepared_is_compiled_when_it_is_needed(rig: Rig) -> None:
    assert rig.modules.take(b"pay") == "pay"
    with pytest.raises(InvalidFunction, match="no execute"):
        rig.modules.take(b"!pay")


def test_a_refusal_says_why_and_the_next_one_is_compiled(rig: Rig) -> None:
    for ticket, binary in enumerate((b"!pay", b"?pay", b"pay")):
        rig.modules.ask(ticket, binary)
    refused, broken, fine = sorted(rig.done(3))
    assert refused == (0, "it has no execute")
    assert broken[0] == 1
    assert "too much" in str(broken[1])
    assert fine == (2, None)


def test_asking_does_not_wait_for_the_compiler(alone: Rig) -> None:
    alone.quick.may_go_on.clear()
    alone.modules.ask(1, b"slow")
    alone.modules.ask(2, b"slow")
    assert alone.modules.done() == []
    alone.quick.may_go_on.set()
    assert alone.done(2) == [(1, None), (2, None)]
    assert alone.quick.compiled == [b"slow"]


def test_one_module_is_compiled_once_for_many_registrations(rig: Rig) -> None:
    for ticket in (1, 2):
        rig.modules.ask(ticket, b"pay")
    assert rig.done(2) == [(1, None), (2, None)]
    assert [rig.modules.take(b"pay") for _ in range(3)] == ["pay"] * 3
    assert rig.compiled == [b"pay"]


def test_a_first_attempt_is_short_and_the_second_has_all_its_time(rig: Rig) -> None:
    rig.modules.ask(1, b"~slow")
    assert rig.done(1) == [(1, None)]
    attempts = sorted(rig.quick.attempts + rig.slow.attempts, key=lambda each: each[1])
    assert attempts == [(b"~slow", module.SLICE_SECONDS), (b"~slow", MOST_SECONDS)]


def test_a_small_module_waits_for_none_of_many_large_ones(rig: Rig) -> None:
    large = [bytes((65 + n,)) * module.LARGE_BYTES for n in range(10)]
    rig.slow.may_go_on.clear()
    for ticket, binary in enumerate(large):
        rig.modules.ask(ticket, binary)
    assert rig.slow.began.acquire(timeout=TIMEOUT_S)
    rig.modules.ask(100, b"small")
    assert rig.done(1) == [(100, None)]
    assert rig.slow.compiled == []
    assert rig.modules.waiting == (10, 10 * module.LARGE_BYTES)
    rig.slow.may_go_on.set()
    assert sorted(rig.done(10)) == [(ticket, None) for ticket in range(10)]


def test_clients_are_served_in_turn_and_each_one_its_smallest_first(alone: Rig) -> None:
    alone.hold(alone.quick, b"first")
    for ticket, binary in enumerate((b"a333", b"a22", b"a4444", b"a1")):
        alone.modules.ask(ticket, binary, b"many")
    alone.modules.ask(10, b"victim", b"one")
    alone.quick.may_go_on.set()
    alone.done(6)
    assert alone.quick.compiled == [b"first", b"a1", b"victim", b"a22", b"a333", b"a4444"]


def test_what_is_needed_now_goes_first(alone: Rig) -> None:
    alone.hold(alone.quick, b"first")
    for ticket, binary in enumerate((b"a", b"b", b"needed")):
        alone.modules.ask(ticket, binary)
    alone.modules.begin(b"live", 100.0)
    taker = threading.Thread(target=alone.modules.take, args=(b"needed",))
    taker.start()
    eventually(lambda: alone.modules._queues[0]._urgent.__len__() == 2)
    alone.quick.may_go_on.set()
    taker.join(TIMEOUT_S)
    alone.done(4)
    assert alone.quick.compiled[:3] == [b"first", b"live", b"needed"]


def test_waiting_for_a_module_goes_on_telling_and_can_be_ended(alone: Rig) -> None:
    class Ended(Exception):
        pass

    told = []

    def waiting() -> None:
        told.append(1)
        if len(told) == 3:
            raise Ended

    alone.quick.may_go_on.clear()
    with pytest.raises(Ended):
        alone.modules.take(b"slow", waiting)
    alone.quick.may_go_on.set()
    assert alone.modules.take(b"slow", waiting) == "slow"


def test_more_than_may_wait_is_refused_at_once(alone: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    alone.hold(alone.quick, b"first")
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    assert alone.modules.ask(1, b"a", b"client") is None
    assert "try again" in str(alone.modules.ask(2, b"b", b"client"))
    assert alone.modules.ask(3, b"a", b"client") is None
    alone.quick.may_go_on.set()
    assert sorted(ticket for ticket, _ in alone.done(3)) == [-1, 1, 3]
    assert alone.modules.ask(4, b"b", b"client") is None
    alone.done(1)


def test_nobody_takes_all_the_room_for_waiting_modules(
    alone: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.hold(alone.quick, b"first")
    monkeypatch.setattr(module, "MAX_WAITING", 2 + 8)
    for ticket in range(20):
        alone.modules.ask(ticket, b"%d" % ticket, b"greedy")
    assert alone.modules.ask(20, b"small", b"other") is None
    monkeypatch.setattr(module, "MAX_WAITING", 1_000)
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", alone.modules.waiting.bytes + 8_000)
    for ticket in range(20):
        alone.modules.ask(ticket, bytes(1_000 + ticket), b"greedy")
    assert alone.modules.ask(20, bytes(900), b"other") is None
    assert len(alone.modules._jobs) == alone.modules.waiting.modules
    alone.quick.may_go_on.set()
    alone.slow.may_go_on.set()
    eventually(lambda: alone.modules.waiting == (0, 0))
    assert not alone.modules._waiting_of


def test_a_compiler_that_has_nothing_to_do_rests(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
    rig.modules.ask(1, b"a")
    rig.done(1)
    assert rig.quick.rested.wait(TIMEOUT_S)
    assert rig.slow.rested.wait(TIMEOUT_S)
    rig.modules.ask(2, b"b")
    assert rig.done(1) == [(2, None)]


def test_those_that_were_not_asked_for_the_longest_go_first(
    alone: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    for number, binary in enumerate((b"a", b"b")):
        alone.modules.ask(number, binary)
        alone.done(1)
    alone.modules.take(b"a")
    alone.modules.ask(3, b"c")
    alone.done(1)
    for binary in (b"a", b"c", b"b"):
        alone.modules.take(binary)
    assert alone.quick.compiled == [b"a", b"b", b"c", b"b"]


def test_large_ones_are_kept_up_to_a_size(alone: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 5)
    for number, binary in enumerate((b"aaa", b"bbb", b"larger than all")):
        alone.modules.ask(number, binary)
        alone.done(1)
    alone.modules.take(b"larger than all")
    assert len(alone.quick.compiled) == 3
    alone.modules.take(b"bbb")
    assert len(alone.quick.compiled) == 4


def test_closing_ends_what_is_under_way_and_drops_the_rest(rig: Rig) -> None:
    rig.hold(rig.slow, b"~" * module.LARGE_BYTES)
    rig.hold(rig.quick, b"a")
    rig.modules.ask(2, b"b")
    rig.modules.close()
    assert rig.compiled == []
    with pytest.raises(InvalidFunction, match="service ends"):
        rig.modules.take(b"c")
