"""A link over a bad channel: every id arrives exactly once, in order, whatever is lost or
restarted.

Data messages are dropped, repeated and reordered at will, also across restarts. Broadcasts are
dropped, repeated and reordered within a receiver's life; those of an earlier life do not come after
a later one's, as they share a connection.
"""

from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tallybus.common.bus.link import (
    MAX_STALL_NS,
    STALL_NS,
    LinkError,
    LinkReceiver,
    LinkSender,
    Verdict,
)

MAX_COUNT = 5
PLACES = st.sampled_from([0, 0, 0, 1, 2, 3, 50])
FATES = st.sampled_from(["arrive", "arrive", "drop", "repeat"])


class Data(NamedTuple):
    """A message on its way: `token` stands for its content."""

    term: int
    incarnation: int
    first: int
    length: int
    token: tuple[int, int]


class Ack(NamedTuple):
    incarnation: int
    next: int
    durable: int
    gap: bool
    full: bool


class LinkMachine(RuleBasedStateMachine):
    @initialize(capacity=st.integers(1, 12), first=st.sampled_from([1, 2, 1000]))
    def start(self, capacity: int, first: int) -> None:
        self.capacity = capacity
        self.first = first
        self.now = 0
        self.term = 1
        self.incarnation = 1
        self.receiver_incarnation = 1
        self.sender: LinkSender[Data] = LinkSender(first, capacity, "the receiver")
        self.sender_first = first
        self.receiver = LinkReceiver(first)
        self.receiver.fence(self.incarnation, self.term)
        self.taken: list[tuple[int, int]] = []
        """For each id from `first` on, the sender's life and id that its content says."""
        self.durable = first - 1
        self.heard_durable = first - 1
        self.data: list[Data] = []
        self.acks: list[Ack] = []
        self.offered: dict[int, tuple[int, int]] = {}

    # -- the two stages --------------------------------------------------------------------------

    @rule(count=st.integers(1, MAX_COUNT))
    def offer(self, count: int) -> None:
        if self.sender.full:
            return
        first = self.sender.end
        message = Data(self.term, self.incarnation, first, count, (self.incarnation, first))
        self.sender.offer(first, count, message)
        for tx_id in range(first, first + count):
            self.offered[tx_id] = (self.incarnation, tx_id)

    @rule(most=st.integers(1, 6))
    def send(self, most: int) -> None:
        for _ in range(most):
            message = self.sender.peek()
            if message is None:
                return
            self.data.append(message)
            self.sender.sent(self.now)

    @rule(full=st.sampled_from([False, False, False, True]))
    def broadcast(self, full: bool) -> None:
        receiver = self.receiver
        self.acks.append(
            Ack(self.receiver_incarnation, receiver.next_id, self.durable, receiver.gap, full)
        )

    @rule(share=st.floats(0, 1))
    def sync(self, share: float) -> None:
        tail = self.receiver.next_id - 1 - self.durable
        self.durable += round(tail * share)

    @rule()
    def tick(self) -> None:
        self.sender.check_stall(self.now)

    @rule(ns=st.sampled_from([1, STALL_NS // 2, STALL_NS, MAX_STALL_NS]))
    def wait(self, ns: int) -> None:
        self.now += ns

    # -- faults ----------------------------------------------------------------------------------

    @precondition(lambda self: self.data)
    @rule(place=PLACES, fate=FATES)
    def receive(self, place: int, fate: str) -> None:
        self._receive(place % len(self.data), fate == "drop", fate == "repeat")

    def _receive(self, place: int, drop: bool, repeat: bool) -> None:
        message = self.data[place] if repeat else self.data.pop(place)
        if drop:
            return
        before = self.receiver.next_id
        verdict, skip = self.receiver.accept(
            message.term, message.incarnation, message.first, message.length
        )
        if verdict is not Verdict.ACCEPT:
            assert self.receiver.next_id == before
            return
        assert message.incarnation == self.incarnation
        assert message.first + skip == before
        assert 0 <= skip < message.length
        assert message.token == (message.incarnation, message.first)
        for tx_id in range(message.first + skip, message.first + message.length):
            self.taken.append((message.incarnation, tx_id))
        assert self.receiver.next_id == self.first + len(self.taken)

    @precondition(lambda self: self.acks)
    @rule(place=PLACES, fate=FATES)
    def hear(self, place: int, fate: str) -> None:
        self._hear(place % len(self.acks), fate == "drop", fate == "repeat")

    def _hear(self, place: int, drop: bool, repeat: bool) -> None:
        ack = self.acks[place] if repeat else self.acks.pop(place)
        if drop:
            return
        # One connection: what an earlier life said does not come after what a later one said.
        self.acks = [other for other in self.acks if other.incarnation >= ack.incarnation]
        if ack.incarnation == self.receiver_incarnation and ack.next < self.sender_first:
            # The sender went on from a tail that the receiver has lost since: it must start again.
            with pytest.raises(LinkError):
                self.sender.acknowledge(ack.incarnation, ack.next, self.now)
            self.restart_sender()
            return
        self.sender.acknowledge(ack.incarnation, ack.next, self.now, gap=ack.gap, full=ack.full)
        self.sender.release(ack.durable)
        self.heard_durable = max(self.heard_durable, ack.durable)

    @rule(clean=st.booleans(), luck=st.integers(0, 4))
    def crash_receiver(self, clean: bool, luck: int) -> None:
        """It keeps what is durable (or all, when only the process died) and loses the rest."""
        if luck < 4:
            return
        if clean:
            self.durable = self.receiver.next_id - 1
        del self.taken[self.durable + 1 - self.first :]
        self.receiver_incarnation += 1
        self.receiver = LinkReceiver(self.durable + 1)
        self.receiver.fence(self.incarnation, self.term)

    @rule(luck=st.integers(0, 4))
    def crash_sender(self, luck: int) -> None:
        if luck == 4:
            self.restart_sender()

    def restart_sender(self) -> None:
        """It asks the receiver where to go on; what the receiver lacks gets other content."""
        self.incarnation += 1
        self.term += 1
        self.receiver.fence(self.incarnation, self.term)
        first = self.sender_first = self.receiver.next_id
        self.sender = LinkSender(first, self.capacity, "the receiver")
        # Broadcasts of a receiver's earlier life are gone with the old sender's connection.
        self.acks = [
            a for a in self.acks if a.incarnation == self.receiver_incarnation and a.next >= first
        ]
        self.heard_durable = first - 1
        self.offered = {tx_id: token for tx_id, token in self.offered.items() if tx_id < first}

    # -- properties ------------------------------------------------------------------------------

    @invariant()
    def every_id_is_taken_once_and_in_order(self) -> None:
        assert [tx_id for _, tx_id in self.taken] == list(
            range(self.first, self.first + len(self.taken))
        )
        lives = [life for life, _ in self.taken]
        assert lives == sorted(lives), "nothing of an earlier life after a later one's"

    @invariant()
    def what_is_taken_is_what_was_offered(self) -> None:
        assert all(self.offered[token[1]] == token for token in self.taken)

    @invariant()
    def nothing_is_released_before_it_is_durable(self) -> None:
        assert self.sender.base <= max(self.heard_durable, self.first - 1) + 1
        assert self.sender.base <= self.sender.cursor <= self.sender.end

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        assert self.sender.weight < self.capacity + MAX_COUNT
        assert self.sender.weight <= self.sender.end - self.sender.base
        assert self.sender.room == max(0, self.capacity - self.sender.weight)

    def teardown(self) -> None:
        """Without further faults everything arrives, becomes durable and is released."""
        if not hasattr(self, "sender"):
            return
        self.acks = [ack for ack in self.acks if ack.incarnation == self.receiver_incarnation]
        for _ in range(60):
            self.broadcast(full=False)
            while self.acks:
                self._hear(0, drop=False, repeat=False)
            self.send(1000)
            while self.data:
                self._receive(0, drop=False, repeat=False)
            self.sync(1.0)
            self.now += STALL_NS
            self.tick()
            if self.sender.weight == 0:
                break
        assert self.receiver.next_id == self.sender.end
        assert self.sender.weight == 0
        assert not self.sender.full
        self.every_id_is_taken_once_and_in_order()
        self.what_is_taken_is_what_was_offered()


TestLinkMachine = LinkMachine.TestCase
TestLinkMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
