"""The sequencer: a term first, then ids without gaps, each gateway's requests in their order."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.bus.link import STALL_NS, STALL_REPEATS, LinkError
from tallybus.common.bus.messages import (
    TOPIC_EVENT,
    Assigned,
    ClockAnswer,
    ClockQuery,
    Hello,
    Message,
    Refused,
    Request,
    Sequenced,
    StageStatus,
    Welcome,
)
from tallybus.common.record import RECORD_SIZE
from tallybus.common.service.core import HELLO_EVERY_NS, Fenced
from tallybus.services.sequencer.clock import LIMIT_NS, Moment
from tallybus.services.sequencer.core import SequencerCore

ME = 100
TRANSACTOR = 200
GATEWAY = 300
HEARTBEAT = 100_000_000


def at(wall_ns: int, steady_ns: int | None = None) -> Moment:
    return Moment(wall_ns, wall_ns if steady_ns is None else steady_ns)


def make() -> SequencerCore:
    return SequencerCore(ME, 100, HEARTBEAT)


def welcome(
    *, term: int = 5, next_id: int = 8, peer: int = ME, gateways: dict[int, int] | None = None
) -> Welcome:
    return Welcome("transactor", TRANSACTOR, peer, term, next_id, next_id - 1, 9, gateways or {})


def running(*, next_id: int = 8, gateways: dict[int, int] | None = None) -> SequencerCore:
    core = make()
    core.tick(0)
    core.requests.clear()
    core.on_welcome(welcome(next_id=next_id, gateways=gateways), at(0))
    return core


def request(number: int, count: int = 1, *, gateway: int = GATEWAY, **more: int) -> Request:
    message = Request(gateway, number, count, bytes(count * RECORD_SIZE), names=["fee"])
    for name, value in ({"term": 5} | more).items():
        if name in Request.__dataclass_fields__:
            setattr(message, name, value)
    return message


def status(
    next_id: int,
    durable: int,
    *,
    peer: int = ME,
    term: int = 5,
    life: int = TRANSACTOR,
    **more: bool,
) -> StageStatus:
    return StageStatus(
        "transactor",
        term,
        life,
        next_id - 1,
        next_id,
        durable,
        peer=peer,
        **more,  # type: ignore[arg-type]
    )


def taken(core: SequencerCore, now: int = 0) -> list[Message]:
    """What the data socket takes."""
    messages: list[Message] = []
    while (message := core.next_data()) is not None:
        messages.append(message)
        core.data_sent(now)
    return messages


def ids(core: SequencerCore) -> list[tuple[int, int]]:
    return [(m.first, m.count) for m in taken(core) if isinstance(m, Sequenced)]


def announced(core: SequencerCore, now: int = 0) -> list[list[int]]:
    """Rows of the Assigned broadcasts of a turn."""
    core.tick(now)
    rows = [row for _, m in core.broadcasts if isinstance(m, Assigned) for row in m.batches]
    core.broadcasts.clear()
    return rows


def test_it_asks_for_a_term_and_is_silent_until_it_has_one() -> None:
    core = make()
    assert not core.wants_input()
    core.tick(0)
    assert core.requests == [Hello("sequencer", ME, 0)]
    core.tick(HELLO_EVERY_NS - 1)
    assert len(core.requests) == 1
    core.tick(HELLO_EVERY_NS)
    assert len(core.requests) == 2
    core.on_request(request(1), at(0))
    core.tick(10 * HEARTBEAT)
    assert core.broadcasts == []
    assert core.next_data() is None


def test_it_goes_on_where_the_transactor_says() -> None:
    core = running(next_id=8, gateways={GATEWAY: 4})
    assert core.wants_input()
    assert (core.term, core.start, core.index) == (5, 8, 7)
    core.on_request(request(3), at(1))
    core.on_request(request(4, 3), at(2))
    core.on_request(request(1, gateway=77), at(3))
    assert ids(core) == [(8, 3), (11, 1)]
    assert core.status().gateways == {GATEWAY: 5, 77: 2}
    assert (core.status().index, core.status().next, core.status().start) == (11, 12, 8)


def test_a_numbered_batch_carries_what_the_transactor_needs() -> None:
    core = running()
    original = request(1, 2)
    core.on_request(original, at(123))
    assert taken(core) == [
        Sequenced(5, ME, 8, 2, 123, GATEWAY, 1, original.records, original.params, ["fee"])
    ]


def test_time_stamps_go_on_from_the_last_one_in_the_ledger() -> None:
    """The wall clock is an hour behind what the log says: after a restart of everything."""
    core = make()
    hour = 3_600 * 10**9
    core.on_welcome(replace(welcome(), stamp=5 * hour), at(4 * hour, 100))
    for number, steady in enumerate((100, 150, 1_100), start=1):
        core.on_request(request(number), at(4 * hour, steady))
    stamps = [m.timestamp for m in taken(core) if isinstance(m, Sequenced)]
    assert stamps == [5 * hour, 5 * hour + 50, 5 * hour + 1_000]


def test_a_gateway_is_told_the_time_and_tells_that_the_wall_clock_is_right() -> None:
    core = make()
    core.on_clock_query(b"gw", ClockQuery(1, accept=True), at(5))
    assert core.replies == [], "it has no time before it has a term"
    core = running()
    core.on_clock_query(b"gw", ClockQuery(2), at(10))
    assert core.replies.pop() == (b"gw", ClockAnswer(2, time=10, wall=10))
    jumped = 10 + 2 * LIMIT_NS
    core.on_clock_query(b"gw", ClockQuery(3), at(jumped, 10))
    assert core.replies.pop() == (b"gw", ClockAnswer(3, time=10, wall=jumped, held=True))
    core.on_clock_query(b"gw", ClockQuery(4, accept=True), at(jumped, 10))
    assert core.replies.pop() == (b"gw", ClockAnswer(4, time=jumped, wall=jumped))
    core.on_request(request(1), at(jumped + 5, 15))
    assert [m.timestamp for m in taken(core) if isinstance(m, Sequenced)] == [jumped + 5]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6)), max_size=60))
def test_requests_get_ids_once_and_in_their_order_however_they_arrive(
    arrivals: list[tuple[int, int]],
) -> None:
    core = running(next_id=1)
    expected = dict.fromkeys(range(3), 1)
    order = []
    for gateway, number in arrivals:
        core.on_request(request(number, gateway=1000 + gateway), at(0))
        if number == expected[gateway]:
            expected[gateway] += 1
            order.append((1000 + gateway, number))
    messages = [m for m in taken(core) if isinstance(m, Sequenced)]
    assert [(m.gateway, m.request) for m in messages] == order
    assert [m.first for m in messages] == list(range(1, len(order) + 1))


def test_gateways_that_want_to_know_are_told_their_ids() -> None:
    core = running()
    core.on_request(request(1, 3, tell=True), at(0))
    core.on_request(request(1, 1, gateway=7, tell=True), at(0))
    assert announced(core) == [[GATEWAY, 1, 8, 3], [7, 1, 11, 1]]
    assert announced(core) == []
    core.on_request(request(2, 3, tell=True), at(0))
    core.tick(0)
    topic, message = core.broadcasts[0]
    assert topic == TOPIC_EVENT
    assert isinstance(message, Assigned)
    assert message.term == 5


def test_what_a_gateway_no_longer_keeps_is_passed_over() -> None:
    core = running(gateways={GATEWAY: 4})
    core.on_request(request(9, oldest=9), at(0))
    assert ids(core) == [(8, 1)]
    core.on_request(request(7, oldest=5), at(0))
    core.on_request(request(10, oldest=9), at(0))
    assert ids(core) == [(9, 1)]


def test_an_id_that_was_told_is_given_again_or_the_request_is_lost() -> None:
    core = running(next_id=8)
    core.on_request(request(1, 2, told=8), at(0))
    core.on_request(request(2, 2, told=11), at(0))
    core.on_request(request(3, 1, told=2**64 - 1), at(0))
    core.on_request(request(4, 1, told=10), at(0))
    assert ids(core) == [(8, 2), (10, 1)]
    rows = announced(core)
    assert [GATEWAY, 2, 0, 2] in rows
    assert [GATEWAY, 3, 0, 1] in rows
    assert core.status().gateways == {GATEWAY: 5}


def test_what_is_not_durable_is_kept_for_a_new_transactor() -> None:
    core = running(next_id=1)
    for number in range(1, 5):
        core.on_request(request(number), at(0))
    core.on_status(status(1, 0), 0)
    assert ids(core) == [(1, 1), (2, 1), (3, 1), (4, 1)]
    core.on_status(status(5, 2), 0)
    core.tick(0)
    assert core.status().retained == 2
    assert core.status().durable == 2
    # It dies; the next one knows no sequencer until it is told.
    core.requests.clear()
    core.on_status(status(3, 2, peer=0, life=201), 0)
    assert core.next_data() is None
    core.tick(HELLO_EVERY_NS)
    assert core.requests == [Hello("sequencer", ME, 5)]
    core.on_welcome(Welcome("transactor", 201, ME, 5, 3, 2, 9), at(0))
    core.on_status(status(3, 2, life=201), 0)
    assert ids(core) == [(3, 1), (4, 1)]
    assert core.start == 1, "the term goes on"


def test_a_full_pipeline_stops_the_input_until_it_is_durable() -> None:
    core = running(next_id=1)
    core.on_request(request(1, 60), at(0))
    assert core.wants_input()
    core.on_request(request(2, 60), at(0))
    assert not core.wants_input()
    assert core.status().full
    core.on_status(status(121, 59), 0)
    assert not core.wants_input()
    core.on_status(status(121, 60), 0)
    assert core.wants_input()
    assert not core.status().full


def test_a_gap_and_a_stall_send_again() -> None:
    core = running(next_id=1)
    core.on_status(status(1, 0), 0)
    core.on_request(request(1), at(0))
    core.on_request(request(2), at(0))
    assert ids(core) == [(1, 1), (2, 1)]
    core.on_status(status(2, 0), 0)
    core.on_status(status(2, 0, gap=True), 0)
    assert ids(core) == [(2, 1)]
    for _ in range(STALL_REPEATS):
        core.on_status(status(2, 0), 0)
    core.tick(STALL_NS)
    assert ids(core) == [(2, 1)]


def test_a_newer_sequencer_ends_it() -> None:
    for end in (
        lambda core: core.on_status(status(8, 7, peer=101, term=6), 0),
        lambda core: core.on_refused(Refused("transactor", ME, 6, "")),
        lambda core: core.on_welcome(welcome(term=6), at(0)),
    ):
        core = running()
        with pytest.raises(Fenced) as caught:
            end(core)  # type: ignore[no-untyped-call]
        assert (caught.value.stage, caught.value.incarnation) == ("sequencer", ME)


def test_answers_for_others_change_nothing() -> None:
    core = make()
    core.on_welcome(welcome(peer=101), at(0))
    assert not core.running
    core.on_refused(Refused("transactor", 101, 6, ""))
    core = running()
    core.on_welcome(welcome(peer=101, term=9), at(0))
    core.on_status(status(1, 0, peer=0, term=4), 0)
    core.on_status(StageStatus("wal", 9, 1, 99, 100, 99, peer=1), 0)
    assert (core.term, core.index) == (5, 7)


def test_a_transactor_of_another_history_is_refused() -> None:
    core = running()
    with pytest.raises(LinkError):
        core.on_status(status(9, 8), 0)


def test_the_status_is_repeated_as_a_heartbeat() -> None:
    core = running()
    core.tick(0)
    assert [m for _, m in core.broadcasts if isinstance(m, StageStatus)] == [core.status()]
    core.broadcasts.clear()
    core.tick(HEARTBEAT - 1)
    assert core.broadcasts == []
    core.tick(HEARTBEAT)
    assert [m for _, m in core.broadcasts if isinstance(m, StageStatus)] == [core.status()]
