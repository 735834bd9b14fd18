"""What arrives is read, noted and handed on; what cannot be read is counted and dropped."""

import logging
from typing import Any

import pytest

from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
    TOPIC_EVENT,
    TOPIC_METRICS,
    TOPIC_STATUS,
    ClockQuery,
    Message,
    Presence,
    StageMetrics,
    StageStatus,
    encode,
)
from tallybus.common.metrics.counters import Meter
from tallybus.common.metrics.health import Vitals
from tallybus.common.service.core import Channel, Source
from tallybus.common.service.inbox import Inbox

NOW = 12_345
STATUS = StageStatus(stage="wal", term=1, incarnation=2, index=3, next=4, durable=3)
QUERY = ClockQuery(query=7)


class Service:
    """Notes what it is handed."""

    def __init__(self) -> None:
        self.vitals = Vitals(0)
        self.meter: Meter | None = None
        self.log = logging.getLogger("test_inbox")
        self.handed: list[tuple[Any, ...]] = []

    def take(self, source: Source, message: Message, now_ns: int) -> None:
        self.handed.append((source, message, now_ns))


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def inbox(service: Service) -> Inbox:
    return Inbox(service)


def test_each_kind_of_socket_has_its_handler(service: Service, inbox: Inbox) -> None:
    inbox.data(encode(QUERY), NOW)
    inbox.control([b"peer", *encode(QUERY)], NOW)
    inbox.reply(encode(QUERY), NOW)
    inbox.broadcast([TOPIC_EVENT, *encode(QUERY)], NOW)
    assert service.handed == [
        (Source(Channel.DATA), QUERY, NOW),
        (Source(Channel.CONTROL, b"peer"), QUERY, NOW),
        (Source(Channel.ANSWER), QUERY, NOW),
        (Source(Channel.BROADCAST), QUERY, NOW),
    ]


def test_a_peer_is_kept_beyond_the_message_that_it_came_with(
    service: Service, inbox: Inbox
) -> None:
    frame = bytearray(b"peer")
    inbox.control([memoryview(frame), *encode(QUERY)], NOW)
    frame[:] = b"next"
    assert service.handed[0][0].peer == b"peer"


@pytest.mark.parametrize("frames", [[], [b""], [b"nonsense"], [*encode(QUERY), b"one more"]])
def test_what_cannot_be_read_is_counted_and_handed_to_nobody(
    service: Service, inbox: Inbox, frames: list[bytes]
) -> None:
    inbox.data(list(frames), NOW)
    inbox.control([b"peer", *frames], NOW)
    inbox.reply(list(frames), NOW)
    inbox.broadcast([TOPIC_STATUS, *frames], NOW)
    assert service.vitals.malformed == 4
    assert service.handed == []
    assert service.vitals.heard == {}


def test_what_is_dropped_is_told_ever_more_seldom(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "test_inbox"):
        for _ in range(100):
            inbox.data([b"nonsense"], NOW)
    told = [record.tallybus_fields["dropped"] for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [1, 2, 4, 8, 16, 32, 64]
    assert {record.message for record in caplog.records} == {"dropped a malformed message"}


def test_a_status_says_that_its_stage_was_heard_and_nothing_else_does(
    service: Service, inbox: Inbox
) -> None:
    presence = Presence(stage="transactor", incarnation=1, pid=2, started=3, cpu="", wait="low_cpu")
    metrics = StageMetrics(stage="snapshotter", incarnation=1, time=2)
    inbox.broadcast([TOPIC_EVENT, *encode(presence)], NOW)
    inbox.broadcast([TOPIC_METRICS, *encode(metrics)], NOW)
    assert service.vitals.heard == {}
    inbox.broadcast([TOPIC_STATUS, *encode(STATUS)], NOW)
    inbox.broadcast([TOPIC_ACKNOWLEDGE, *encode(STATUS)], NOW + 1)
    assert service.vitals.heard == {"wal": NOW + 1}
    assert [each[0].channel for each in service.handed] == [Channel.BROADCAST] * 4


def test_a_broadcast_about_something_else_is_not_looked_into(
    service: Service, inbox: Inbox
) -> None:
    """Subscriptions are prefixes: a topic that another release adds may come along."""
    inbox.broadcast([TOPIC_STATUS + b"x", *encode(STATUS)], NOW)
    inbox.broadcast([b"", b"nonsense"], NOW)
    assert (service.handed, service.vitals.malformed, service.vitals.heard) == ([], 0, {})


def test_batches_alone_are_measured_where_somebody_is_shown_it(
    service: Service, inbox: Inbox
) -> None:
    service.meter = meter = Meter()
    inbox.data(encode(QUERY), NOW)
    inbox.data([b"nonsense"], NOW)
    inbox.reply(encode(QUERY), NOW)
    assert sum(meter.batch_transactions.counts) == sum(meter.batch_seconds.counts) == 1
