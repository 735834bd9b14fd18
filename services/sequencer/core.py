"""The sequencer's decisions, without I/O.

It starts by asking the transactor for a term and the next id, then numbers what the gateways send.
Each gateway's requests are taken exactly in the order of their request numbers. What was numbered
is kept until it is durable, so that a new transactor can be fed what the log does not have yet.
"""

from __future__ import annotations

from tallybus.common.buffers import size
from tallybus.common.bus.link import LinkReceiver, LinkSender, Verdict, weigh
from tallybus.common.bus.messages import (
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
from tallybus.common.service.core import Channel, Fenced, Routes, StageCore, alone, answered, timed
from tallybus.services.sequencer.clock import LedgerClock, Moment


class SequencerCore(StageCore):
    """State machine of the sequencer: `hello` until the transactor has granted a term, then
    `running`."""

    stage = "sequencer"

    def __init__(self, incarnation: int, max_in_flight: int, heartbeat_ns: int) -> None:
        super().__init__(incarnation, heartbeat_ns)
        self.start = 0
        self.link: LinkSender[Sequenced] | None = None
        self._max_in_flight = max_in_flight
        self.moment = Moment(0, 0)
        """What both clocks show. The shell sets it before it hands over a message."""
        self.accepted_ahead_ns: list[int] = []
        """How far ahead the wall clock was whenever an operator has accepted it, for the log."""
        self._gateways: dict[int, LinkReceiver] = {}
        self._assigned: list[list[int]] = []
        self.clock = LedgerClock()
        self._accepted_by_transactor = False
        self._durable_index = 0

    def routes(self) -> Routes:
        return {
            (Channel.DATA, Request): alone(lambda message: self.on_request(message, self.moment)),
            (Channel.CONTROL, ClockQuery): answered(
                lambda peer, message: self.on_clock_query(peer, message, self.moment)
            ),
            (Channel.ANSWER, Welcome): alone(lambda message: self.on_welcome(message, self.moment)),
            (Channel.ANSWER, Refused): alone(self.on_refused),
            (Channel.BROADCAST, StageStatus): timed(self.on_status),
        }

    @property
    def running(self) -> bool:
        """Whether a term was granted and ids can be given."""
        return self.link is not None

    @property
    def index(self) -> int:
        """Last id that was given, 0 before the first."""
        return 0 if self.link is None else self.link.end - 1

    @property
    def greeting(self) -> bool:
        return not self._accepted_by_transactor

    def wants_input(self) -> bool:
        """Whether gateways' requests may be read; otherwise back-pressure holds them."""
        return self.link is not None and not self.link.full

    def on_welcome(self, message: Welcome, now: Moment) -> None:
        """The transactor's answer to a hello."""
        if message.peer != self.incarnation:
            return
        if self.link is not None:
            if message.term > self.term:
                raise Fenced(self.stage, self.incarnation, f"a sequencer of term {message.term}")
            self._accepted_by_transactor = True
            return
        self._accepted_by_transactor = True
        self.term = message.term
        self.start = message.next
        self._durable_index = message.durable
        self.link = LinkSender(message.next, self._max_in_flight, "the transactor")
        self.clock.start(message.stamp, message.elapsed, now)
        for gateway, expected in message.gateways.items():
            self._gateways[gateway] = LinkReceiver(expected, peer=gateway)

    def on_refused(self, message: Refused) -> None:
        """The transactor follows a newer sequencer."""
        if message.peer == self.incarnation:
            raise Fenced(self.stage, self.incarnation, f"a sequencer of term {message.term}")

    def on_request(self, message: Request, now: Moment) -> None:
        """Number one gateway's request and give it the ledger's time."""
        if self.link is None or message.term != self.term:
            # A gateway that has not heard of this term may still tell clients what the last one
            # announced. It sends again when it has.
            return
        receiver = self._gateways.get(message.gateway)
        if receiver is None:
            receiver = self._gateways[message.gateway] = LinkReceiver(1, peer=message.gateway)
        # What the gateway has forgotten was computed; a restarted pipeline may have lost it since.
        receiver.next_id = max(receiver.next_id, message.oldest)
        verdict, _ = receiver.accept(0, message.gateway, message.request, 1)
        if verdict is not Verdict.ACCEPT:
            return
        first = self.link.end
        if message.told and message.told != first:
            self._assigned.append([message.gateway, message.request, 0, message.count])
            return
        self.link.offer(
            first,
            message.count,
            Sequenced(
                term=self.term,
                incarnation=self.incarnation,
                first=first,
                count=message.count,
                timestamp=self.clock.look(now),
                gateway=message.gateway,
                request=message.request,
                names=message.names,
                records=message.records,
                params=message.params,
                registers=message.registers,
                binary=message.binary,
                counts=message.counts,
            ),
            weigh(message.count, size(message.binary)),
        )
        if message.tell:
            self._assigned.append([message.gateway, message.request, first, message.count])

    def on_clock_query(self, peer: bytes, message: ClockQuery, now: Moment) -> None:
        """A gateway asks for the ledger's time, or an operator accepts the wall clock."""
        if self.link is None:
            return  # it has no time yet, and is asked again
        if message.accept:
            if self.clock.held:
                self.accepted_ahead_ns.append(self.clock.ahead_ns)
            self.clock.accept(now)
        else:
            self.clock.look(now)
        clock = self.clock
        self.replies.append(
            (peer, ClockAnswer(message.query, clock.time_ns, now.wall_ns, clock.held))
        )

    def on_status(self, message: StageStatus, now_ns: int) -> None:
        """The transactor's broadcast."""
        if message.stage != "transactor" or self.link is None:
            return
        if message.peer != self.incarnation:
            # A transactor that started anew knows no sequencer yet; one that follows another is
            # final.
            if message.term > self.term:
                raise Fenced(self.stage, self.incarnation, f"a sequencer of term {message.term}")
            self._accepted_by_transactor = False
            return
        self._accepted_by_transactor = True
        self._durable_index = max(self._durable_index, message.durable)
        self.link.acknowledge(
            message.incarnation, message.next, now_ns, gap=message.gap, full=message.full
        )
        self.link.release(message.durable)

    def tick(self, now_ns: int) -> None:
        """Once a turn: hello, stall check, broadcasts."""
        if not self._accepted_by_transactor and self.hello_due(now_ns):
            self.requests.append(Hello(self.stage, self.incarnation, self.term))
        if self.link is None:
            # Silence until a term is held: a status is a promise about an index.
            return
        self.link.check_stall(now_ns)
        if self._assigned:
            self.announce(Assigned(self.term, self._assigned))
            self._assigned = []
        self.heartbeat(now_ns)

    def next_data(self) -> Message | None:
        return self.link.peek() if self.link is not None and self._accepted_by_transactor else None

    def data_sent(self, now_ns: int) -> None:
        assert self.link is not None
        self.link.sent(now_ns)

    def status(self) -> StageStatus:
        return StageStatus(
            stage=self.stage,
            term=self.term,
            incarnation=self.incarnation,
            index=self.index,
            next=self.index + 1,
            durable=self._durable_index,
            start=self.start,
            full=not self.wants_input(),
            retained=0 if self.link is None else self.link.weight,
            gateways={gateway: link.next_id for gateway, link in self._gateways.items()},
        )
