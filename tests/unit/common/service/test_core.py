"""One door into a core: each kind of message, from each kind of socket, has its method or none."""

from typing import Any

import pytest

from tallybus.common.bus.messages import MESSAGE_TYPES, ClockQuery, Hello, StageStatus
from tallybus.common.service.core import (
    FROM_DATA,
    Channel,
    Routes,
    Source,
    StageCore,
    alone,
    answered,
    timed,
)
from tallybus.services.gateway.core import GatewayCore
from tallybus.services.sequencer.core import SequencerCore
from tallybus.services.snapshotter.core import SnapshotterCore
from tallybus.services.transactor.core import TransactorCore
from tallybus.services.wal.core import WalCore

HELLO = Hello("wal", 5)
QUERY = ClockQuery(7)
NOW = 12_345
CORES: list[type[StageCore]] = [
    SequencerCore,
    TransactorCore,
    WalCore,
    SnapshotterCore,
    GatewayCore,
]


class Core(StageCore):
    """Notes what its methods are given."""

    stage = "sequencer"

    def __init__(self) -> None:
        super().__init__(incarnation=1, heartbeat_ns=1)
        self.taken: list[tuple[Any, ...]] = []

    def routes(self) -> Routes:
        return {
            (Channel.DATA, Hello): alone(lambda *given: self.taken.append(given)),
            (Channel.CONTROL, Hello): answered(lambda *given: self.taken.append(given)),
            (Channel.BROADCAST, ClockQuery): timed(lambda *given: self.taken.append(given)),
        }

    def status(self) -> StageStatus:
        raise NotImplementedError

    def tick(self, now_ns: int) -> None:
        pass


def test_each_method_is_given_what_it_needs() -> None:
    core = Core()
    core.on_message(FROM_DATA, HELLO, NOW)
    core.on_message(Source(Channel.CONTROL, b"peer"), HELLO, NOW)
    core.on_message(Source(Channel.BROADCAST), QUERY, NOW)
    assert core.taken == [(HELLO,), (b"peer", HELLO), (QUERY, NOW)]


@pytest.mark.parametrize("channel", [Channel.ANSWER, Channel.BROADCAST])
def test_what_does_not_belong_on_a_socket_changes_nothing(channel: Channel) -> None:
    core = Core()
    core.on_message(Source(channel), HELLO, NOW)
    assert core.taken == []


def routes_of(kind: type[StageCore]) -> Routes:
    # A table alone: its methods are not called.
    return kind.routes(kind.__new__(kind))


def test_each_message_of_the_bus_has_a_stage_that_takes_it() -> None:
    taken = {message for kind in CORES for _, message in routes_of(kind)}
    assert taken == set(MESSAGE_TYPES.values())


@pytest.mark.parametrize("kind", CORES)
def test_every_stage_is_told_how_others_are(kind: type[StageCore]) -> None:
    assert (Channel.BROADCAST, StageStatus) in routes_of(kind)
