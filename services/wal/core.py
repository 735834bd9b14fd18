"""The log stage's decisions, without I/O.

The shell appends what is `due` and reports with `written`; the committer thread syncs it and the
shell reports with `on_durable`. Only then does the durable index move, and only then is a
batch offered to the snapshotter. A snapshotter that is away, or does not keep up, never holds
commits back: it can read the files.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from tallybus.common.batch import Batch
from tallybus.common.buffers import Buffer, size
from tallybus.common.bus.link import LinkReceiver, LinkSender, Verdict, weigh
from tallybus.common.bus.messages import Executed, Hello, Message, Refused, StageStatus, Welcome
from tallybus.common.record import Kind
from tallybus.common.service.core import Channel, Routes, StageCore, alone, answered, timed

FOLLOWER_GRACE_NS: Final = 1_000_000_000
"""A snapshotter that takes nothing for this long is left to read the files."""
FOLLOWER_HEARTBEATS: Final = 3
"""So is, at once, one that has been silent for the time of so many heartbeats: it is dead."""


class Due(NamedTuple):
    """A batch that is to be appended to the log."""

    batch: Batch
    binary: Buffer | None
    """The module of the function that it registers, if it does: it has to be on disk first."""


class WalCore(StageCore):
    """State machine of the log stage. It starts when its shell has recovered the folder."""

    stage = "wal"

    def __init__(
        self,
        incarnation: int,
        max_in_flight: int,
        heartbeat_ns: int,
        *,
        next_id: int,
        term: int,
        cluster: int,
        gateways: dict[int, int],
    ) -> None:
        super().__init__(incarnation, heartbeat_ns)
        self.term = term
        self.cluster = cluster
        self.durable_index = next_id - 1
        self.receiver = LinkReceiver(next_id, term)
        self.link: LinkSender[Executed] = LinkSender(
            next_id, max_in_flight, "the snapshotter", from_disk=True
        )
        self.due: deque[Due] = deque()
        self.term_due: list[tuple[bytes, Hello]] = []
        self._greeted = False
        self._retired: set[int] = set()
        self._gateways = dict(gateways)
        self._undurable: deque[Executed] = deque()
        self._undurable_weight = 0
        self._max_in_flight = max_in_flight
        self._follower_heard_ns = 0
        self._follower_moved_ns = 0
        self._follower_next = 0

    def routes(self) -> Routes:
        return {
            (Channel.DATA, Executed): alone(self.on_executed),
            (Channel.CONTROL, Hello): answered(self.on_hello),
            (Channel.BROADCAST, StageStatus): timed(self.on_status),
        }

    @property
    def awaits(self) -> str:
        return "" if self._greeted else "no transactor has said hello yet"

    def wants_input(self) -> bool:
        """Whether the transactor's batches may be read; otherwise back-pressure holds them."""
        return self._greeted and self._undurable_weight < self._max_in_flight and not self.link.full

    def on_hello(self, peer: bytes, message: Hello) -> None:
        """A transactor starts: from now on older ones are refused. A snapshotter only asks."""
        if message.stage == "snapshotter":
            self._welcome(peer, message)
        if message.stage != "transactor":
            return
        if message.incarnation in self._retired or self._was_replaced(message):
            self._refuse(peer, message)
            return
        if self.receiver.peer not in (0, message.incarnation):
            self._retired.add(self.receiver.peer)
        self._greeted = True
        self.receiver.fence(message.incarnation, self.term)
        if message.term > self.term:
            self.term_due.append((peer, message))
        else:
            self._welcome(peer, message)

    def term_kept(self) -> None:
        """Everything in `term_due` is on disk: the transactor may grant it (ADR 0003)."""
        for peer, message in self.term_due:
            self.term = max(self.term, message.term)
            self.receiver.term = self.term
            if message.incarnation in self._retired:
                self._refuse(peer, message)
            else:
                self._welcome(peer, message)
        self.term_due = []

    def _was_replaced(self, message: Hello) -> bool:
        """Whether a term was granted since this transactor was followed: then by another one.

        This log stage may have started since and know nothing of either. Nor does it know whether
        the last one kept a term for this one, and ended before it said so: it takes that for
        another's, too.
        """
        if message.incarnation == self.receiver.peer:
            return False
        known = message.term - 1 if message.asks else message.term
        return message.term > 0 and known < self.term

    def _refuse(self, peer: bytes, message: Hello) -> None:
        refused = Refused(self.stage, message.incarnation, self.term, "a newer transactor")
        self.replies.append((peer, refused))

    def _welcome(self, peer: bytes, message: Hello) -> None:
        self.replies.append(
            (
                peer,
                Welcome(
                    stage=self.stage,
                    incarnation=self.incarnation,
                    peer=message.incarnation,
                    term=self.term,
                    next=self.receiver.next_id,
                    durable=self.durable_index,
                    cluster=self.cluster,
                    gateways={gateway: last + 1 for gateway, last in self._gateways.items()},
                ),
            )
        )

    def on_executed(self, message: Executed) -> None:
        """The transactor's next batch: what of it is new is to be appended, in `due`."""
        if not self._greeted:
            return
        verdict, skip = self.receiver.accept(
            message.term, message.incarnation, message.first, message.count
        )
        if verdict is not Verdict.ACCEPT:
            return
        self.term = self.receiver.term
        batch = message.batch().skip(skip)
        registers = batch.count == 1 and batch.records["kind"][0] == Kind.FUNCTION_REGISTERED
        self.due.append(Due(batch, message.binary if registers else None))

    def written(self) -> None:
        """The first batch of `due` was appended to the log: the next sync makes it durable."""
        batch = self.due.popleft().batch
        self._gateways[batch.gateway] = batch.request
        # The snapshotter takes from this log, not from the transactor that filled it.
        message = Executed.of(batch, self.incarnation)
        self._undurable.append(message)
        self._undurable_weight += _weight(message)

    def on_durable(self, durable_index: int) -> None:
        """Everything up to this id is on disk and was confirmed."""
        self.durable_index = max(self.durable_index, durable_index)
        while self._undurable:
            message = self._undurable[0]
            if message.first + message.count - 1 > self.durable_index:
                break
            self._undurable.popleft()
            self._undurable_weight -= _weight(message)
            self.link.offer(message.first, message.count, message, _weight(message))

    def on_status(self, message: StageStatus, now_ns: int) -> None:
        """The snapshotter's broadcast."""
        if message.stage != "snapshotter":
            return
        self._follower_heard_ns = now_ns
        if message.next > self._follower_next or message.incarnation != self.link.peer_incarnation:
            self._follower_next = message.next
            self._follower_moved_ns = now_ns
        if message.next > self.link.end:
            # It has read the files ahead of the stream.
            return
        self.link.acknowledge(
            message.incarnation, message.next, now_ns, gap=message.gap, full=message.full
        )
        self.link.release(message.next - 1)

    def tick(self, now_ns: int) -> None:
        """Once a turn: let a lagging snapshotter go, stall check, broadcast."""
        if self.link.full:
            reads_files = self._follower_next < self.link.base
            silent_ns = now_ns - self._follower_heard_ns
            if (
                reads_files
                or silent_ns > FOLLOWER_HEARTBEATS * self._heartbeat_ns
                or now_ns - self._follower_moved_ns > FOLLOWER_GRACE_NS
            ):
                self.link.release(self.durable_index)
        self.link.check_stall(now_ns)
        self.heartbeat(now_ns)

    def urgent(self, status: StageStatus, last: StageStatus) -> bool:
        # Clients wait for the durable index.
        return status.durable != last.durable

    def next_data(self) -> Message | None:
        return self.link.peek()

    def data_sent(self, now_ns: int) -> None:
        self.link.sent(now_ns)

    def status(self) -> StageStatus:
        return StageStatus(
            stage=self.stage,
            term=self.term,
            incarnation=self.incarnation,
            index=self.durable_index,
            next=self.receiver.next_id,
            durable=self.durable_index,
            gap=self.receiver.gap,
            full=not self.wants_input(),
            peer=self.receiver.peer,
            retained=self._undurable_weight + self.link.weight,
        )


def _weight(message: Executed) -> int:
    return weigh(message.count, size(message.extras))
