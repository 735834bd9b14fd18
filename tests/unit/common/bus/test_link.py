"""Go-back-N by hand: one property of the sender or the receiver at a time."""

from dataclasses import dataclass

import pytest

from tallybus.common.bus.link import (
    MAX_STALL_NS,
    STALL_NS,
    STALL_REPEATS,
    LinkError,
    LinkReceiver,
    LinkSender,
    Verdict,
)

PEER = 77


@dataclass
class Rig:
    """A sender with items of the given counts, and a clock."""

    link: LinkSender[str]
    now: int = 0

    def offer(self, *counts: int) -> None:
        for count in counts:
            self.link.offer(self.link.end, count, f"{self.link.end}+{count}")

    def send(self, most: int = 1000) -> list[str]:
        """Hand what is due to the socket."""
        messages: list[str] = []
        while len(messages) < most and (message := self.link.peek()) is not None:
            messages.append(message)
            self.link.sent(self.now)
        return messages

    def acknowledge(
        self, expected: int, *, peer: int = PEER, gap: bool = False, full: bool = False
    ) -> None:
        self.link.acknowledge(peer, expected, self.now, gap=gap, full=full)

    def repeat(self, expected: int) -> None:
        """The receiver's heartbeats while nothing comes."""
        for _ in range(STALL_REPEATS):
            self.acknowledge(expected)


def make(*counts: int, first: int = 1, capacity: int = 100, from_disk: bool = False) -> Rig:
    rig = Rig(LinkSender(first, capacity, "the peer", from_disk=from_disk))
    rig.offer(*counts)
    return rig


def met(*counts: int, first: int = 1, capacity: int = 100, from_disk: bool = False) -> Rig:
    """A sender whose receiver is known and expects the first item."""
    rig = make(first=first, capacity=capacity, from_disk=from_disk)
    rig.acknowledge(first)
    rig.offer(*counts)
    return rig


# -- sender ----------------------------------------------------------------------------------------


def test_items_are_sent_once_and_in_order() -> None:
    rig = make(2, 1, 3)
    assert rig.link.peek() == "1+2"
    assert rig.link.peek() == "1+2", "it stays next until it was sent"
    assert rig.send() == ["1+2", "3+1", "4+3"]
    assert rig.send() == []
    assert (rig.link.base, rig.link.cursor, rig.link.end, len(rig.link)) == (1, 7, 7, 3)
    rig.offer(4)
    assert rig.link.cursor == 7
    assert rig.send() == ["7+4"]


def test_an_item_that_does_not_follow_is_refused() -> None:
    rig = make(2)
    for first in (2, 4, 1):
        with pytest.raises(LinkError) as caught:
            rig.link.offer(first, 1, "x")
        assert caught.value.expected == first
    assert rig.link.end == 3
    assert rig.link.weight == 2


def test_a_full_link_is_told_by_weight_and_freed_by_durability_alone() -> None:
    rig = met(capacity=10)
    assert (rig.link.full, rig.link.room) == (False, 10)
    rig.offer(6)
    assert (rig.link.full, rig.link.room) == (False, 4)
    rig.offer(6)
    assert (rig.link.full, rig.link.room, rig.link.weight) == (True, 0, 12)
    rig.send()
    rig.acknowledge(13)
    assert rig.link.full, "taken is not durable"
    rig.link.release(5)
    assert rig.link.weight == 12, "an item is kept whole until its last id is durable"
    rig.link.release(6)
    assert (rig.link.weight, rig.link.full, rig.link.base) == (6, False, 7)
    rig.link.release(12)
    assert (rig.link.weight, len(rig.link), rig.link.base, rig.link.cursor) == (0, 0, 13, 13)


def test_a_weight_of_its_own_counts_instead_of_the_ids() -> None:
    rig = make(capacity=10)
    rig.link.offer(1, 1, "heavy", weight=9)
    assert (rig.link.room, rig.link.end) == (1, 2)
    rig.link.offer(2, 1, "none", weight=0)
    assert rig.link.room == 1
    rig.link.release(2)
    assert rig.link.weight == 0


def test_a_new_receiver_gets_everything_from_what_it_expects() -> None:
    rig = met(2, 2, 2)
    rig.send()
    rig.acknowledge(7)
    assert rig.send() == []
    rig.acknowledge(3, peer=PEER + 1)
    assert rig.link.cursor == 3
    assert rig.send() == ["3+2", "5+2"]
    assert rig.link.rewinds == 1


def test_an_expectation_inside_an_item_sends_the_whole_item() -> None:
    rig = met(2, 5, 2)
    rig.send()
    for expected in (4, 7):
        rig.acknowledge(expected, peer=PEER + expected)
        assert rig.send() == ["3+5", "8+2"]
    rig.acknowledge(8, peer=1)
    assert rig.send() == ["8+2"]


def test_the_first_word_of_a_receiver_that_has_nothing_sends_again() -> None:
    rig = make(1, 1)
    rig.send()
    rig.acknowledge(1)
    assert rig.send() == ["1+1", "2+1"]


def test_one_gap_brings_one_rewind() -> None:
    rig = met(1, 1, 1)
    rig.send()
    rig.acknowledge(2, gap=True)
    assert rig.send() == [], "it moved: what is on its way may fill the gap"
    rig.acknowledge(2, gap=True)
    assert rig.send() == ["2+1", "3+1"]
    for _ in range(5):
        rig.acknowledge(2, gap=True)
        assert rig.send() == [], "what is on its way is reported as the same gap"
    rig.acknowledge(3, gap=True)
    rig.acknowledge(3, gap=True)
    assert rig.send() == ["3+1"], "a later gap is another one"


def test_a_receiver_ahead_of_the_cursor_is_not_sent_what_it_has() -> None:
    rig = met(1, 1, 1)
    rig.acknowledge(3)
    assert rig.send() == ["3+1"]


def test_a_stall_is_ended_by_sending_again_with_growing_pauses() -> None:
    rig = met(1, 1)
    rig.now = 10 * STALL_NS
    rig.send()
    assert not rig.link.check_stall(rig.now)
    pause = STALL_NS
    for _ in range(8):
        rig.repeat(1)
        rig.now += pause - 1
        assert not rig.link.check_stall(rig.now)
        rig.now += 1
        assert rig.link.check_stall(rig.now)
        assert rig.send() == ["1+1", "2+1"]
        pause = min(pause * 2, MAX_STALL_NS)
    rig.acknowledge(2)
    assert rig.send() == []
    rig.now += STALL_NS
    rig.repeat(2)
    assert rig.link.check_stall(rig.now), "progress brings the short pause back"
    assert rig.send() == ["2+1"]


def test_a_silent_receiver_is_not_sent_everything_again() -> None:
    rig = met(1, 1)
    rig.send()
    for _ in range(STALL_REPEATS - 1):
        rig.now += MAX_STALL_NS
        rig.acknowledge(1)
        assert not rig.link.check_stall(rig.now)
    rig.acknowledge(1)
    assert rig.link.check_stall(rig.now)


def test_a_full_receiver_is_not_sent_everything_again() -> None:
    rig = met(1, 1)
    rig.send()
    for _ in range(10):
        rig.now += MAX_STALL_NS
        rig.acknowledge(1, full=True)
        assert not rig.link.check_stall(rig.now)
    rig.repeat(1)
    rig.now += STALL_NS
    assert rig.link.check_stall(rig.now), "it takes input again, and does not have it"


def test_an_idle_link_never_stalls() -> None:
    rig = met()
    for _ in range(5):
        rig.now += 100 * MAX_STALL_NS
        assert not rig.link.check_stall(rig.now)
    rig.offer(1)
    assert not rig.link.check_stall(rig.now), "nothing is on its way"
    rig.send()
    assert not rig.link.check_stall(rig.now), "the pause begins when it was sent"
    rig.acknowledge(2)
    rig.now += 100 * MAX_STALL_NS
    assert not rig.link.check_stall(rig.now), "everything has arrived"


def test_after_a_stall_the_same_gap_may_be_reported_again() -> None:
    rig = met(1, 1)
    rig.send()
    rig.acknowledge(1, gap=True)
    assert rig.send() == ["1+1", "2+1"]
    rig.now += STALL_NS
    rig.repeat(1)
    assert rig.link.check_stall(rig.now)
    rig.send()
    rig.acknowledge(1, gap=True)
    assert rig.send() == ["1+1", "2+1"]


def test_what_is_durable_before_it_was_sent_again_is_not_sent() -> None:
    rig = met(1, 1, 1)
    rig.send()
    rig.acknowledge(1, peer=5)
    rig.link.release(2)
    assert rig.send() == ["3+1"]


def test_a_release_beyond_the_end_keeps_ids_going() -> None:
    rig = met(2)
    rig.link.release(2**60)
    assert (rig.link.base, rig.link.end, rig.link.cursor) == (3, 3, 3)
    rig.offer(1)
    assert rig.send() == ["3+1"]


def test_a_receiver_from_another_history_is_refused() -> None:
    rig = met(2, 2)
    rig.send()
    for peer in (PEER, PEER + 1):
        with pytest.raises(LinkError) as caught:
            rig.acknowledge(6, peer=peer)
        assert (caught.value.expected, caught.value.base, caught.value.end) == (6, 1, 5)
    rig.acknowledge(5)
    rig.link.release(2)
    with pytest.raises(LinkError) as caught:
        rig.acknowledge(2, peer=PEER + 1)
    assert caught.value.base == 3
    assert "the peer" in str(caught.value)


def test_an_older_word_of_the_same_receiver_changes_nothing() -> None:
    rig = met(1, 1, 1, 1)
    rig.send()
    rig.acknowledge(4)
    rig.link.release(2)
    rig.acknowledge(3)
    rig.acknowledge(3, gap=True)
    assert rig.send() == []
    rig.acknowledge(1)
    rig.acknowledge(1, gap=True)
    assert (rig.link.expected, rig.send()) == (4, [])


def test_a_receiver_that_can_read_files_may_expect_less_than_is_kept() -> None:
    rig = met(2, 2, from_disk=True)
    rig.send()
    rig.acknowledge(5)
    rig.link.release(2)
    rig.acknowledge(1, peer=PEER + 1)
    assert rig.link.cursor == 3, "it is sent what there is"
    assert rig.send() == ["3+2"]
    with pytest.raises(LinkError):
        rig.acknowledge(6, peer=PEER + 1)


# -- receiver --------------------------------------------------------------------------------------


def test_the_next_item_is_taken_whole() -> None:
    receiver = LinkReceiver(5)
    assert receiver.accept(0, PEER, 5, 3) == (Verdict.ACCEPT, 0)
    assert receiver.accept(0, PEER, 8, 1) == (Verdict.ACCEPT, 0)
    assert receiver.next_id == 9


def test_of_a_partly_known_item_the_rest_is_taken() -> None:
    receiver = LinkReceiver(5)
    assert receiver.accept(0, PEER, 1, 5) == (Verdict.ACCEPT, 4)
    assert receiver.next_id == 6
    assert receiver.accept(0, PEER, 4, 4) == (Verdict.ACCEPT, 2)
    assert receiver.next_id == 8


@pytest.mark.parametrize(("first", "count"), [(1, 1), (1, 4), (4, 1), (2, 3)])
def test_what_is_known_is_dropped(first: int, count: int) -> None:
    receiver = LinkReceiver(5)
    assert receiver.accept(0, PEER, first, count) == (Verdict.REPEATED, 0)
    assert (receiver.next_id, receiver.gap, receiver.dropped) == (5, False, count)


def test_a_gap_is_told_until_the_missing_item_comes() -> None:
    receiver = LinkReceiver(5)
    assert receiver.accept(0, PEER, 6, 1) == (Verdict.GAP, 0)
    assert receiver.gap
    assert receiver.accept(0, PEER, 4, 1) == (Verdict.REPEATED, 0)
    assert receiver.gap
    assert receiver.accept(0, PEER, 5, 1) == (Verdict.ACCEPT, 0)
    assert not receiver.gap
    assert receiver.next_id == 6


def test_a_fenced_receiver_takes_from_its_peer_alone() -> None:
    receiver = LinkReceiver(1)
    receiver.fence(PEER, 3)
    assert receiver.accept(3, PEER + 1, 1, 1)[0] is Verdict.STALE
    assert receiver.accept(9, PEER + 1, 1, 1)[0] is Verdict.STALE
    assert receiver.accept(2, PEER, 1, 1)[0] is Verdict.STALE
    assert not receiver.gap
    assert receiver.accept(3, PEER, 1, 1)[0] is Verdict.ACCEPT
    receiver.fence(PEER + 1)
    assert receiver.accept(3, PEER, 2, 1)[0] is Verdict.STALE
    assert receiver.accept(3, PEER + 1, 2, 1)[0] is Verdict.ACCEPT


def test_a_term_never_goes_back() -> None:
    receiver = LinkReceiver(1, term=2)
    assert receiver.accept(1, PEER, 1, 1)[0] is Verdict.STALE
    assert receiver.accept(4, PEER, 1, 1)[0] is Verdict.ACCEPT
    assert receiver.accept(3, PEER, 2, 1)[0] is Verdict.STALE
    assert receiver.term == 4


def test_a_dropped_message_of_a_higher_term_does_not_raise_the_term() -> None:
    receiver = LinkReceiver(3, term=2)
    assert receiver.accept(9, PEER, 5, 1)[0] is Verdict.GAP
    assert receiver.accept(9, PEER, 1, 1)[0] is Verdict.REPEATED
    assert receiver.accept(2, PEER, 3, 1)[0] is Verdict.ACCEPT
