"""What a core has put out is sent in an order, and what a socket does not take stays with it."""

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tallybus.common.bus.messages import (
    TOPIC_EVENT,
    TOPIC_STATUS,
    ClockAnswer,
    ClockQuery,
    Hello,
    Message,
    StageMetrics,
    StageStatus,
    decode,
    encode,
)
from tallybus.common.service.core import Routes, StageCore
from tallybus.common.service.loop import Output
from tallybus.common.service.outbox import Outbox

STATUS = StageStatus(stage="wal", term=1, incarnation=2, index=3, next=4, durable=3)
ANSWER = ClockAnswer(query=7, time=2, wall=1)
HELLO = Hello(stage="wal", incarnation=2)


class Port:
    """A socket that takes `room` messages; all of one stage note in one list."""

    def __init__(self, name: str, sent: list[tuple[str, Any]], room: int = 100) -> None:
        self.name = name
        self.sent = sent
        self.room = room

    def send(self, frames: Sequence[Any]) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append((self.name, list(frames)))
        return True

    def send_to(self, peer: bytes, frames: Sequence[Any]) -> bool | None:
        return self.send([peer, *frames]) or None


class Core(StageCore):
    """Has batches that wait, and counts those that were taken."""

    stage = "sequencer"

    def __init__(self, *batches: Message) -> None:
        super().__init__(incarnation=5, heartbeat_ns=100)
        self.batches = list(batches)
        self.times: list[int] = []

    def routes(self) -> Routes:
        return {}

    def status(self) -> StageStatus:
        return STATUS

    def tick(self, now_ns: int) -> None:
        """Nothing by itself."""

    def next_data(self) -> Message | None:
        return self.batches[0] if self.batches else None

    def data_sent(self, now_ns: int) -> None:
        self.times.append(now_ns)
        del self.batches[0]


def batches(count: int) -> list[Message]:
    """Any messages will do: what is in them is not looked at."""
    return [ClockQuery(query=number) for number in range(1, count + 1)]


@pytest.fixture
def sent() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def outbox(sent: list[tuple[str, Any]]) -> Any:
    made: Any = Outbox(logging.getLogger("test_outbox"))
    made.publisher = Port("index", sent)
    made.successor = Output(Port("data", sent))  # type: ignore[arg-type]
    made.control = Port("control", sent)
    made.questions = Port("questions", sent)
    return made


def test_what_is_told_goes_before_what_reaches_the_log(
    outbox: Any, sent: list[tuple[str, Any]]
) -> None:
    core = Core(*batches(2))
    core.requests.append(HELLO)
    core.replies.append((b"peer", ANSWER))
    core.broadcasts += [(TOPIC_EVENT, ANSWER), (TOPIC_STATUS, STATUS)]
    outbox.send(core)
    assert [name for name, _ in sent] == ["index", "index", "data", "data", "control", "questions"]
    assert sent[0][1][0] == TOPIC_EVENT
    assert decode(sent[1][1][1:]) == STATUS
    assert [decode(frames).query for name, frames in sent if name == "data"] == [1, 2]
    assert sent[4][1] == [b"peer", *encode(ANSWER)]
    assert decode(sent[5][1]) == HELLO
    assert [*core.broadcasts, *core.replies, *core.requests, *core.batches] == []
    sent.clear()
    outbox.send(core)
    assert sent == []


def test_a_batch_that_is_not_taken_stays_with_the_core_and_keeps_its_place(
    outbox: Any, sent: list[tuple[str, Any]]
) -> None:
    core = Core(*batches(3))
    outbox.successor.port.room = 1
    outbox.send(core)
    assert outbox.successor.blocked
    assert (len(core.batches), len(core.times)) == (2, 1)
    outbox.send(core)
    assert outbox.successor.blocked, "it still takes none"
    outbox.successor.port.room = 100
    outbox.send(core)
    assert not outbox.successor.blocked
    assert [decode(frames).query for _, frames in sent] == [1, 2, 3]


def test_each_batch_has_the_time_at_which_it_was_taken(
    outbox: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long turn would look like a stall, if all had the time of its beginning."""
    clock = iter(range(100))
    monkeypatch.setattr(
        "tallybus.common.service.outbox.time", SimpleNamespace(monotonic_ns=lambda: next(clock))
    )
    core = Core(*batches(3))
    outbox.send(core)
    assert core.times == [0, 1, 2]


def test_an_answer_to_a_peer_that_is_gone_and_a_question_that_is_not_taken_are_not_kept(
    outbox: Any, sent: list[tuple[str, Any]]
) -> None:
    core = Core()
    core.replies += [(b"gone", ANSWER), (b"also gone", ANSWER)]
    core.requests += [HELLO]
    outbox.control.room = outbox.questions.room = 0
    outbox.send(core)
    assert (sent, core.replies, core.requests) == ([], [], [])


def test_what_there_is_no_socket_for_stays_with_the_core() -> None:
    """A gateway's questions go elsewhere; a log stage that recovers has no control socket yet."""
    core = Core(*batches(1))
    core.broadcasts.append((TOPIC_STATUS, STATUS))
    core.replies.append((b"peer", ANSWER))
    core.requests.append(HELLO)
    bare = Outbox(logging.getLogger("test_outbox"))
    bare.send(core)
    bare.broadcast(TOPIC_STATUS, STATUS)
    assert (len(core.broadcasts), len(core.replies), len(core.requests)) == (1, 1, 1)
    assert len(core.batches) == 1


def test_a_broadcast_besides_the_cores_goes_out_at_once(
    outbox: Any, sent: list[tuple[str, Any]]
) -> None:
    message = StageMetrics(stage="wal", incarnation=1, time=2)
    outbox.broadcast(b"m", message)
    assert sent == [("index", [b"m", *encode(message)])]


def test_each_rewind_is_told_once(outbox: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Rewound(Core):
        link = SimpleNamespace(rewinds=0, peer="wal", expected=7)

    core = Rewound()
    with caplog.at_level(logging.INFO, "test_outbox"):
        for rewinds in (0, 1, 1, 3):
            core.link.rewinds = rewinds
            outbox.send(core)
    assert [record.message for record in caplog.records] == ["sending again"] * 2
    assert [record.tallybus_fields["rewinds"] for record in caplog.records] == [1, 3]  # type: ignore[attr-defined]
