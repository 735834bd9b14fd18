"""What is watched of a service: judged and told beside the ledger, which goes on whatever fails."""

import http.client
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tallybus.common.bus.handshakes import LOOK_NS, NO_ENCRYPTION, Trouble
from tallybus.common.bus.messages import StageMetrics, StageStatus
from tallybus.common.bus.monitor import Failure
from tallybus.common.metrics.counters import Meter
from tallybus.common.metrics.health import Vitals
from tallybus.common.metrics.packed import unpack
from tallybus.common.service import watch as module
from tallybus.common.service.watch import METRICS_NS, PROGRESS_NS, READY_LOOK_NS, Watch
from tallybus.common.settings.sections import load
from tallybus.common.stages import DEPENDS_ON
from tallybus.common.times import NEVER_NS

START_NS = 10**15
STAGE = "wal"


class Core:
    """What is read of a core."""

    incarnation = 0xABC
    term = 7
    awaits = ""
    outgoing = None

    def status(self) -> StageStatus:
        return StageStatus(stage=STAGE, term=7, incarnation=0xABC, index=3, next=4, durable=3)


class Service:
    """What is read of a service; it is ready at START_NS."""

    stage = STAGE
    heartbeat_ns = 100_000_000
    meter: Meter | None = None
    stopping = False

    def __init__(self) -> None:
        self.core = Core()
        self.log = logging.getLogger("test_watch")
        self.vitals = Vitals(START_NS, prepared=True)
        self.vitals.heard = dict.fromkeys(DEPENDS_ON[STAGE], START_NS)


class Handshakes:
    """Those that each look finds."""

    def __init__(self, *troubles: Trouble) -> None:
        self.troubles = list(troubles)
        self.looks = 0

    def __len__(self) -> int:
        return 1

    def look(self) -> list[Trouble]:
        self.looks += 1
        return self.troubles


class Clock:
    """Stands where the monotonic clock does."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def monotonic_ns(self) -> int:
        return self.now_ns

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def time(self) -> float:
        return 1_700_000_000.0

    def time_ns(self) -> int:
        return 1_700_000_000_000_000_000


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


@pytest.fixture
def told() -> list[StageMetrics]:
    return []


@pytest.fixture
def made(service: Service, told: list[StageMetrics]) -> Iterator[Callable[..., Watch]]:
    """Makes the watch of the service, with settings and handshakes as they are given."""
    watches: list[Watch] = []

    def make(
        handshakes: Any = (),
        tell: Callable[[StageMetrics], None] = told.append,
        **overrides: object,
    ) -> Watch:
        named = {name.replace("__", "."): value for name, value in overrides.items()}
        settings = load(environ={}, overrides=named)
        watches.append(Watch(service, settings, handshakes, tell))
        return watches[-1]

    yield make
    for each in watches:
        each.close()
        each.close()


def page(make: Callable[..., Watch], **given: Any) -> Watch:
    return make(gateway__page="127.0.0.1:5580", **given)


def answer(port: int, path: str) -> bytes:
    """What is served there, from when a thread of its own listens."""
    limit = time.monotonic() + 30
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except ConnectionRefusedError:
            assert time.monotonic() < limit, "nobody listens"
            time.sleep(0.005)
        finally:
            connection.close()


# Metrics


def test_without_a_page_and_an_address_nothing_is_ever_told(made: Callable[..., Watch]) -> None:
    watch = made()
    assert not watch.wanted
    assert watch.metrics_due_ns == NEVER_NS
    watch.serve()
    assert watch._server is None


def test_for_a_page_numbers_are_told_once_a_second(
    service: Service, told: list[StageMetrics], made: Callable[..., Watch]
) -> None:
    watch = page(made)
    assert watch.wanted
    assert watch.metrics_due_ns <= START_NS
    watch.tell_metrics(START_NS)
    assert watch.metrics_due_ns == START_NS + METRICS_NS
    (message,) = told
    assert (message.stage, message.incarnation, message.reasons) == (STAGE, 0xABC, [])
    scrape = unpack(message.samples, 0.0)
    assert (scrape.whole("tallybus_ready"), scrape.whole("tallybus_index")) == (1, 3)


def test_before_it_has_recovered_a_service_tells_how_far_it_is(
    service: Service, told: list[StageMetrics], made: Callable[..., Watch]
) -> None:
    service.vitals.prepared = False
    service.vitals.working(START_NS, "verifying the log", 1, 4)
    page(made).tell_metrics(START_NS)
    (message,) = told
    assert message.incarnation == 0
    assert message.reasons == ["it is recovering: verifying the log, 25.0 % of 4 bytes"]


def test_whatever_fails_while_numbers_are_told_ends_only_the_telling(
    made: Callable[..., Watch], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: StageMetrics) -> None:
        raise ZeroDivisionError("who would have thought")

    watch = page(made, tell=fail)
    watch.tell_metrics(START_NS)
    assert watch.metrics_due_ns == NEVER_NS
    (record,) = caplog.records
    assert record.message == "metrics are not told to the gateway's page any more"
    assert record.exc_info


def test_health_and_readiness_are_served_where_that_is_asked_for(
    made: Callable[..., Watch], free_port: Callable[[], int]
) -> None:
    base = free_port() - 2  # the log stage's is the third
    watch = made(metrics__address="127.0.0.1", metrics__base_port=base)
    assert watch.wanted
    assert watch.metrics_due_ns == NEVER_NS, "there is no page"
    watch.serve()
    for path in ("/healthz", "/readyz"):
        assert json.loads(answer(base + 2, path))["stage"] == STAGE


# Readiness


def test_a_service_becomes_ready_once_and_the_log_says_so_once(
    service: Service,
    made: Callable[..., Watch],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "test_watch")
    watch = made()
    service.core.awaits = "its hello was not answered yet"
    assert not watch.became_ready()
    service.core.awaits = ""
    # It is not looked at in every turn.
    assert not watch.became_ready()
    clock.now_ns += READY_LOOK_NS
    assert watch.became_ready()
    assert service.vitals.ready_since == clock.monotonic()
    assert [record.message for record in caplog.records] == ["ready"]


# Handshakes


def test_handshakes_that_fail_are_told_and_counted_once_a_second(
    service: Service, made: Callable[..., Watch], caplog: pytest.LogCaptureFixture
) -> None:
    service.vitals.refused[NO_ENCRYPTION] = 0
    trouble = Trouble("wal.data", "tcp://127.0.0.1:1", False, Failure.MECHANISM, "", 3)
    handshakes = Handshakes(trouble)
    watch = made(handshakes)
    watch.look_at_handshakes(START_NS)
    assert handshakes.looks == 1
    assert watch.handshakes_due_ns == START_NS + LOOK_NS
    assert service.vitals.refused[NO_ENCRYPTION] == 3


def test_where_no_socket_is_watched_nothing_is_looked_at(made: Callable[..., Watch]) -> None:
    watch = made(())  # none: a look would fail
    watch.look_at_handshakes(START_NS)
    assert watch.handshakes_due_ns == START_NS + LOOK_NS


# Long work


def test_long_work_is_life_and_the_log_says_at_most_once_a_second_how_far_it_is(
    service: Service,
    made: Callable[..., Watch],
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "test_watch")
    report = made().report_progress("verifying the log")
    for done in range(5):
        clock.now_ns += PROGRESS_NS // 2
        report(done, 8)
    vitals = service.vitals
    assert (vitals.turned_ns, vitals.work) == (clock.now_ns, "verifying the log")
    assert (vitals.done, vitals.of) == (4, 8)
    shares = [record.tallybus_fields["percent"] for record in caplog.records]  # type: ignore[attr-defined]
    assert shares == [12.5, 37.5]
    assert {record.message for record in caplog.records} == {"verifying the log"}


def test_work_of_which_nobody_knows_how_much_it_is_can_be_told(
    made: Callable[..., Watch], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "test_watch")
    report = made().report_progress("waiting for a module to be compiled")
    clock.now_ns += PROGRESS_NS
    report(0, 0)
    assert [record.tallybus_fields["percent"] for record in caplog.records] == [100.0]  # type: ignore[attr-defined]


def test_meanwhile_numbers_are_told_and_handshakes_looked_at_as_in_turns(
    told: list[StageMetrics], made: Callable[..., Watch], clock: Clock
) -> None:
    handshakes = Handshakes()
    report = page(made, handshakes=handshakes).report_progress("reading the log")
    for _ in range(4):
        report(1, 2)
        clock.now_ns += max(METRICS_NS, LOOK_NS) // 2
    assert (len(told), handshakes.looks) == (2, 2)
