"""What one turn does, and in which order: without a socket, for the loop knows no message."""

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tallybus.common.metrics.health import Vitals
from tallybus.common.service import inbox, loop
from tallybus.common.service.core import HELLO_EVERY_NS, PACE_NS
from tallybus.common.service.inbox import Inbox
from tallybus.common.service.loop import REST_NS, Loop, Output
from tallybus.common.times import NEVER_NS

WAIT_NS = 50_000_000
"""How long the service below lets a wait last."""


class Port:
    """Where messages lie ready; each has one frame."""

    def __init__(self, *messages: bytes) -> None:
        self.socket = object()
        self.messages = list(messages)

    def receive(self) -> list[bytes] | None:
        return [self.messages.pop(0)] if self.messages else None


class Selector:
    """Says of each wait for how long and for what it was, and that what has messages is ready."""

    def __init__(self, _strategy: str) -> None:
        self.reads: dict[Any, bool] = {}
        self.writes: dict[Any, bool] = {}
        self.timeouts_ns: list[int] = []
        self.closed = False

    def watch(self, port: Any, readable: bool, writable: bool = False) -> None:
        self.reads[port], self.writes[port] = readable, writable

    def wait(self, timeout_ns: int) -> set[object]:
        self.timeouts_ns.append(timeout_ns)
        return {port.socket for port, wanted in self.reads.items() if wanted and port.messages}

    def wake(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        self.closed = True


class Service:
    """Everything that a loop turns, in one; it notes what is called. Nothing is due at first."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.vitals = Vitals(0)
        self.core = self.process = self.watch = self.run_folder = self.log = self
        self.status_pending = self.greeting = self.parent_gone = False
        self.parent_due_ns = self.metrics_due_ns = self.handshakes_due_ns = self.due_ns = NEVER_NS

    def timeout_ns(self, now_ns: int) -> int:
        return WAIT_NS

    def orphaned(self, now_ns: int) -> bool:
        self.calls.append("orphaned")
        return self.parent_gone

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: self.calls.append(name)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def made(service: Service, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes the loop of the service, with the selector above. A slow machine reads as much."""
    monkeypatch.setattr(loop, "Selector", Selector)
    monkeypatch.setattr(loop, "READ_NS", NEVER_NS)

    def make(wait: str = "balanced") -> Any:
        return Loop(service, wait)  # type: ignore[arg-type]

    return make


def handler(service: Service, name: str) -> Callable[[list[bytes], int], None]:
    return lambda frames, _: service.calls.append(f"{name} {frames[0].decode()}")


def test_a_turn_reads_works_sends_and_looks_around_in_this_order(
    service: Service, made: Callable[..., Any]
) -> None:
    turned = made()
    # The first that was added is read first, whichever is ready.
    turned.read(Port(b"a", b"b"), handler(service, "first"))
    turned.read(Port(b"c"), handler(service, "second"))
    service.parent_due_ns = service.metrics_due_ns = service.handshakes_due_ns = service.due_ns = 0
    turned.turn()
    assert service.calls == [
        *("orphaned", "first a", "first b", "second c", "tell_metrics"),
        *("step", "tick", "flush", "look_at_handshakes", "look"),
    ]


def test_a_turn_in_which_nothing_is_due_looks_at_nothing(
    service: Service, made: Callable[..., Any]
) -> None:
    turned = made()
    turned.turn()
    assert service.calls == ["idle", "step", "tick", "flush"]


def test_a_turn_with_work_has_no_time_for_what_can_be_done_any_time(
    service: Service, made: Callable[..., Any]
) -> None:
    turned = made()
    turned.read(Port(b"a"), handler(service, "data"))
    turned.turn()
    assert "idle" not in service.calls
    turned.turn()
    assert service.calls.count("idle") == 1


def test_every_turn_is_noted(service: Service, made: Callable[..., Any]) -> None:
    before = time.monotonic_ns()
    made().turn()
    assert before <= service.vitals.turned_ns <= time.monotonic_ns()


def test_a_socket_is_read_as_far_as_was_asked_for_and_the_rest_in_the_next_turn(
    service: Service, made: Callable[..., Any]
) -> None:
    turned, port = made(), Port(b"a", b"b", b"c")
    turned.read(port, handler(service, "data"), most=2)
    turned.turn()
    assert port.messages == [b"c"]
    turned.turn()
    assert port.messages == []


def test_what_is_not_wanted_is_neither_waited_for_nor_read(
    service: Service, made: Callable[..., Any]
) -> None:
    turned, port = made(), Port(b"a", b"b", b"c")
    room = [1]

    def take(frames: list[bytes], _: int) -> None:
        room[0] -= 1

    turned.read(port, take, lambda: room[0] > 0)
    turned.turn()
    # It was wanted when the turn began, and not any more after the first.
    assert port.messages == [b"b", b"c"]
    turned.turn()
    assert turned._selector.reads[port] is False
    assert port.messages == [b"b", b"c"]
    room[0] = 2
    turned.turn()
    assert port.messages == []


def test_expensive_messages_of_one_socket_do_not_hold_up_the_others(
    service: Service, made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "READ_NS", 0)
    turned, dear, other = made(), Port(b"a", b"b"), Port(b"c")
    turned.read(dear, handler(service, "dear"))
    turned.read(other, handler(service, "other"))
    turned.turn()
    assert [call for call in service.calls if " " in call] == ["dear a", "other c"]


def test_a_socket_that_took_no_more_is_waited_for(
    service: Service, made: Callable[..., Any]
) -> None:
    turned = made()
    output = Output(Port())  # type: ignore[arg-type]
    turned.write(output)
    for blocked in (False, True, False):
        output.blocked = blocked
        turned.turn()
        selector = turned._selector
        assert (selector.reads[output.port], selector.writes[output.port]) == (False, blocked)


@pytest.mark.parametrize(
    ("noted", "wait_ns"),
    [
        ((), WAIT_NS),
        (("status_pending",), PACE_NS),
        (("greeting",), HELLO_EVERY_NS),
        (("status_pending", "greeting"), min(PACE_NS, HELLO_EVERY_NS)),
    ],
)
def test_a_wait_is_over_when_the_core_has_to_speak_again(
    service: Service, made: Callable[..., Any], noted: tuple[str, ...], wait_ns: int
) -> None:
    turned = made()
    for name in noted:
        setattr(service, name, True)
    turned.turn()
    assert turned._selector.timeouts_ns == [wait_ns]
    service.timeout_ns = lambda _: 0  # type: ignore[method-assign]
    turned.turn()
    assert turned._selector.timeouts_ns[1:] == [0]


def test_a_service_whose_supervisor_is_gone_stops_and_waits_for_nobody(
    service: Service, made: Callable[..., Any]
) -> None:
    turned = made()
    service.parent_due_ns = 0
    turned.turn()
    assert not turned.stopping
    service.parent_gone = True
    turned.turn()
    assert (turned.stopping, turned.hurried, turned.signal) == (True, True, "")
    assert "warning" in service.calls


def test_the_second_stop_is_in_a_hurry_and_the_signal_is_remembered(
    made: Callable[..., Any],
) -> None:
    turned = made()
    turned.stop("SIGTERM")
    assert (turned.stopping, turned.hurried, turned.signal) == (True, False, "SIGTERM")
    turned.stop()
    assert (turned.stopping, turned.hurried, turned.signal) == (True, True, "SIGTERM")


@pytest.mark.parametrize(
    ("wait", "rests"), [("low_cpu", [REST_NS / 1e9]), ("balanced", []), ("low_latency", [])]
)
def test_only_a_service_that_saves_cpu_rests_and_only_after_work(
    service: Service,
    made: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    wait: str,
    rests: list[float],
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    turned = made(wait)
    turned.turn()
    assert slept == []
    turned.read(Port(b"a"), handler(service, "data"))
    turned.turn()
    assert slept == rests


def test_another_thread_ends_a_wait(service: Service) -> None:
    turned = Loop(service, "balanced")  # type: ignore[arg-type]
    service.timeout_ns = lambda _: 60_000_000_000  # type: ignore[method-assign]
    thread = threading.Thread(target=turned.turn)
    began = time.monotonic()
    thread.start()
    turned.wake()
    thread.join()
    assert time.monotonic() - began < 30
    turned.close()
    turned.wake()  # nobody is left to wake, and nothing fails


def test_a_message_costs_one_call_on_its_way_from_the_loop_to_the_service(
    service: Service, made: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside reading it, and asking whether it is wanted."""
    ours = {str(Path(module.__file__).resolve()) for module in (loop, inbox)}
    called: list[str] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and str(Path(frame.f_code.co_filename).resolve()) in ours:
            called.append(frame.f_code.co_name)

    monkeypatch.setattr(inbox, "decode", lambda frames: frames[0])
    service.meter = None
    counts = []
    for messages in (1, 11):
        turned = made()
        turned.read(Port(*[b"x"] * messages), Inbox(service).data)  # type: ignore[arg-type]
        turned._wait()  # what is made once
        called.clear()
        sys.setprofile(profile)
        try:
            turned.turn()
        finally:
            sys.setprofile(None)
        counts.append([name for name in called if name != "<lambda>"])
    one, eleven = counts
    assert len(eleven) - len(one) == 10
    assert eleven.count("data") == 11
    assert service.calls.count("take") == 12
