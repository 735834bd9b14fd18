"""A service from its start to its end: what is put together, in which order, and what is let go."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tallybus.common.bus.messages import TOPIC_EVENT, Presence, StageStatus
from tallybus.common.errors import ServiceError
from tallybus.common.files import LockHeld, Storage
from tallybus.common.metrics.counters import Meter
from tallybus.common.service import shell as module
from tallybus.common.service.core import Routes, StageCore
from tallybus.common.service.run_folder import lock_run_folder
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import Settings, load
from tallybus.common.stages import DEPENDS_ON

STAGE = "sequencer"


class Core(StageCore):
    """Speaks when it is asked to."""

    stage = STAGE

    def routes(self) -> Routes:
        return {}

    def status(self) -> StageStatus:
        return StageStatus(
            stage=STAGE, term=1, incarnation=self.incarnation, index=0, next=1, durable=0
        )

    def tick(self, now_ns: int) -> None:
        self.heartbeat(now_ns)


class Service(Shell):
    """Opens no socket. `script` has what it does in its turns, one after the other; then it stops.
    `held` says whether its place was taken when it was prepared."""

    stage = STAGE
    core: Core

    def __init__(self, settings: Settings, *script: Callable[["Service"], object]) -> None:
        super().__init__(settings, None, Storage())  # type: ignore[arg-type]
        self.script = list(script)
        self.turns = 0
        self.left = 0
        """Turns after the stop until it is finished."""
        self.held = False

    def prepare(self) -> None:
        self.held = is_held(self.settings)
        self.core = Core(self.new_incarnation(), self.heartbeat_ns)

    def timeout_ns(self, now_ns: int) -> int:
        return 0

    def step(self, now_ns: int) -> None:
        self.turns += 1
        if self.stopping:
            self.left -= 1
        elif self.script:
            self.script.pop(0)(self)
        else:
            self.stop()

    def finished(self) -> bool:
        return self.left <= 0 and super().finished()


def is_held(settings: Settings) -> bool:
    try:
        lock = lock_run_folder(settings, Storage(), STAGE)
    except LockHeld:
        return True
    if lock is not None:
        lock.release()
    return False


def hear_all(service: Service) -> None:
    service.vitals.heard = dict.fromkeys(DEPENDS_ON[STAGE], time.monotonic_ns())


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tallybus")


def test_a_service_holds_its_place_from_before_it_is_prepared_to_its_end(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(settings)
    assert not is_held(settings)
    service.run()
    assert service.held
    assert not is_held(settings)
    assert [record.message for record in caplog.records] == ["started"]


def test_it_says_who_it_is_once_it_has_started(settings: Settings) -> None:
    service = Service(settings)
    before = time.time_ns()
    service.run()
    presence = service.core.presence
    assert presence is not None
    assert (presence.stage, presence.incarnation) == (STAGE, service.core.incarnation)
    assert presence.pid == os.getpid()
    assert before <= presence.started <= time.time_ns()
    told = [message for topic, message in service.core.broadcasts if topic == TOPIC_EVENT]
    assert told
    assert all(isinstance(message, Presence) for message in told)


def test_every_start_is_another_one(settings: Settings) -> None:
    service = Service(settings)
    made = {service.new_incarnation() for _ in range(50)}
    service.close()
    assert len(made) == 50
    assert all(0 < each < 2**64 for each in made)


def test_the_log_says_ready_once_however_often_that_changes(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tallybus.common.service.watch.READY_LOOK_NS", 0)

    def forget_all(service: Service) -> None:
        assert service.vitals.ready_since is not None
        service.vitals.heard.clear()

    nothing: Any = lambda _: None  # noqa: E731
    service = Service(settings, nothing, hear_all, forget_all, nothing, hear_all, nothing)
    service.run()
    assert [record.message for record in caplog.records] == ["started", "ready"]


def test_a_signal_is_named_and_the_end_waits_for_what_is_under_way(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(settings, lambda service: service.stop("SIGTERM"))
    service.left = 5
    service.run()
    assert service.turns == 1 + 5
    last = caplog.records[-1]
    assert (last.message, last.tallybus_fields) == ("stopping", {"signal": "SIGTERM"})  # type: ignore[attr-defined]


def test_who_is_told_twice_to_stop_waits_for_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def stop_twice(service: Service) -> None:
        service.stop("SIGTERM")
        service.stop("SIGINT")

    service = Service(settings, stop_twice)
    service.left = 1_000
    service.run()
    assert service.turns == 1
    assert caplog.records[-1].message == "stopped before everything was answered"
    assert not is_held(settings)


def test_a_clean_stop_does_not_wait_for_ever(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "DRAIN_NS", 20_000_000)
    service = Service(settings)
    service.left = 10**9
    service.run()
    assert service.turns > 1
    assert caplog.records[-1].message == "stopped before everything was answered"


def test_another_thread_may_stop_it_whatever_it_waits_for(settings: Settings) -> None:
    class Waiting(Service):
        def timeout_ns(self, now_ns: int) -> int:
            waits.set()
            return 60_000_000_000

    waits = threading.Event()
    service = Waiting(settings, *[lambda _: None] * 10)
    thread = threading.Thread(target=service.run)
    thread.start()
    assert waits.wait(30)
    service.stop()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("where", ["prepare", "step"])
def test_what_fails_ends_it_and_lets_everything_go(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*_: object) -> None:
        raise ServiceError("it cannot be")

    service = Service(settings)
    monkeypatch.setattr(service, where, fail)
    with pytest.raises(ServiceError, match="it cannot be"):
        service.run()
    assert not is_held(settings)
    service.stop()  # by a signal that comes late: nobody is left, and nothing fails
    service.close()


def test_the_second_of_a_stage_ends_before_it_is_prepared(settings: Settings) -> None:
    held = lock_run_folder(settings, Storage(), STAGE)
    assert held is not None
    service = Service(settings)
    with pytest.raises(LockHeld):
        service.run()
    assert not hasattr(service, "core")
    held.release()


@pytest.mark.parametrize(
    ("overrides", "counts"),
    [
        ({}, False),
        ({"gateway.page": "127.0.0.1:5580"}, True),
        ({"gateway.page": "127.0.0.1:5580", "bus.transport": "inproc"}, False),
    ],
)
def test_what_nobody_is_shown_is_not_counted(
    settings: Settings, overrides: dict[str, object], counts: bool
) -> None:
    chosen = {"ledger.data": settings.ledger.data, **overrides}
    service = Service(load(environ={}, overrides=chosen))
    service.run()
    assert isinstance(service.meter, Meter) == counts
