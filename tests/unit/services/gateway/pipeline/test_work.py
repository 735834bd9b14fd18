"""Whose calls go to the transactor next: bounds, turns, shares, learning."""

from __future__ import annotations

import numpy as np
import pytest

from tallybus.common.record import FAILURE_DTYPE, RECORD_DTYPE, Kind, Level, Status
from tallybus.services.gateway.clients.protocol import Submit
from tallybus.services.gateway.pipeline.work import (
    ACTIVE_NS,
    AHEAD_NS,
    OUTSTANDING_NS,
    SHARE,
    SURPRISE,
    UNKNOWN_NS,
    WorkQueue,
)

MS = 1_000_000
BUDGET = 100 * MS


class Rig:
    """A queue, and a transactor for which a call of each function takes `cost` nanoseconds."""

    def __init__(self, capacity: int = 100_000) -> None:
        self.queue = WorkQueue(capacity, BUDGET)
        self.now = 10 * ACTIVE_NS
        self.number = 0
        self.worked: dict[bytes, int] = {}
        self.queue.charged = self._charged

    def _charged(self, owner: bytes, ns: int) -> None:
        self.worked[owner] = self.worked.get(owner, 0) + ns

    def submit(self, owner: bytes, calls: int = 1, *names: str, plain: int = 0) -> Submit:
        self.number += 1
        records = np.zeros(calls + plain, RECORD_DTYPE)
        records["kind"] = Kind.DEPOSIT
        records["kind"][:calls] = Kind.FUNCTION
        given = list(names or ("f",)) if calls else []
        if len(given) > 1:
            records["function"][:calls] = np.arange(calls) % len(given)
        made = Submit(
            client=owner,
            id=self.number,
            timeout_ms=None,
            level=Level.COMPUTED,
            count=calls + plain,
            records=records.tobytes(),
            params=bytes(64 * calls),
            names=given,
        )
        made.owner = owner
        self.queue.heard(owner, self.now)
        return made

    def add(self, owner: bytes, calls: int = 1, *names: str, plain: int = 0) -> Submit:
        submit = self.submit(owner, calls, *names, plain=plain)
        assert self.queue.concerns(submit)
        self.queue.add(submit, self.now)
        return submit

    def sent(self, room: int = 10**9) -> list[Submit]:
        return list(self.queue.next(self.now, room))

    def executed(self, submit: Submit, ns: int | None, not_run: int = 0) -> None:
        rows = np.zeros(not_run, FAILURE_DTYPE)
        rows["status"] = Status.NOT_RUN
        submit.failures = rows
        self.queue.executed(submit, ns)

    def teach(self, owner: bytes, ns: int, name: str = "f") -> None:
        """A call of this function took so long."""
        submit = self.add(owner, 1, name)
        while submit not in self.sent():
            self.now += MS
        self.executed(submit, ns)
        self.now += 10 * ACTIVE_NS


def test_submits_without_calls_are_no_concern() -> None:
    rig = Rig()
    assert not rig.queue.concerns(rig.submit(b"a", 0, plain=3))
    rig.add(b"a", 200)
    rig.add(b"a", 200)
    rig.sent()
    assert rig.queue.operations
    assert rig.queue.concerns(rig.submit(b"a", 0, plain=3)), "it must not overtake its own calls"
    assert not rig.queue.concerns(rig.submit(b"b", 0, plain=3))


def test_order_within_a_client_is_kept() -> None:
    rig = Rig()
    submits = [rig.add(b"a", 60), rig.add(b"a", 60), rig.add(b"a", 0, plain=2), rig.add(b"a", 1)]
    told: list[Submit] = []
    while len(told) < 4:
        for submit in rig.sent():
            told.append(submit)
            rig.executed(submit, MS)
        rig.now += MS
    assert told == submits


def test_what_is_outstanding_is_bounded_in_expected_time() -> None:
    rig = Rig()
    rig.teach(b"a", 10 * MS)
    submits = [rig.add(b"a") for _ in range(20)]
    first = rig.sent()
    assert len(first) == OUTSTANDING_NS // (10 * MS)
    assert rig.sent() == []
    rig.executed(first[0], 10 * MS)
    assert rig.sent() == [submits[5]]


def test_one_is_sent_however_long_it_may_take() -> None:
    rig = Rig()
    submits = [rig.add(b"a", 100_0), rig.add(b"a", 100_0)]
    assert rig.sent() == submits[:1]
    rig.queue.give_up(submits[0])
    rig.now += 2 * ACTIVE_NS
    assert rig.sent() == submits[1:]


def test_gateways_share_the_time() -> None:
    rig = Rig()
    rig.teach(b"a", 10 * MS)
    rig.queue.sharers = 5
    for _ in range(20):
        rig.add(b"a")
    assert len(rig.sent()) == 1


def test_quick_calls_are_not_held_back() -> None:
    rig = Rig()
    rig.teach(b"a", 200)
    submits = [rig.add(b"a", 16_384) for _ in range(12)]
    assert rig.sent() == submits


def test_calls_may_surprise_and_are_weighed_for_it() -> None:
    rig = Rig()
    rig.teach(b"a", 1)
    for _ in range(5_000):
        rig.add(b"a")
    assert len(rig.sent()) == pytest.approx(OUTSTANDING_NS * SURPRISE / UNKNOWN_NS, abs=2)


def test_clients_have_turns_by_what_their_calls_took() -> None:
    rig = Rig()
    rig.teach(b"slow", 9 * MS, "slow")
    rig.teach(b"quick", 10_000, "quick")
    slow = [rig.add(b"slow", 1, "slow") for _ in range(20)]
    quick = [rig.add(b"quick", 1, "quick") for _ in range(20)]
    first = rig.sent()
    assert first[0] is slow[0]
    assert set(quick) <= set(first), "all quick ones go before the second slow one is due"
    assert first.count(slow[1]) == 0


@pytest.mark.parametrize(
    ("ns", "gateways"), [(50_000, 1), (MS, 1), (10 * MS, 1), (90 * MS, 1), (MS, 2), (10 * MS, 3)]
)
def test_a_client_gets_no_more_than_its_share_while_others_submit(ns: int, gateways: int) -> None:
    rig = Rig()
    rig.teach(b"greedy", ns)
    rig.queue.sharers = gateways
    began = rig.now
    worked = 0
    while rig.now - began < 2_000 * MS:
        while rig.queue.operations < 50:
            rig.add(b"greedy")
        rig.queue.heard(b"victim", rig.now)
        for submit in rig.sent():
            worked += ns
            rig.now += ns
            rig.executed(submit, ns)
        rig.now += MS // 2
    assert worked / (rig.now - began) == pytest.approx(SHARE / gateways, rel=0.25)


def test_a_client_alone_gets_all_of_the_time() -> None:
    rig = Rig()
    rig.teach(b"a", MS)
    for _ in range(200):
        rig.add(b"a")
    done = 0
    for _ in range(100):
        for submit in rig.sent():
            done += 1
            rig.executed(submit, MS)
            rig.now += MS
        if done == 200:
            break
    assert done == 200


def test_a_wrong_expectation_is_paid_for_later() -> None:
    rig = Rig()
    rig.teach(b"a", 1_000)
    rig.queue.heard(b"victim", rig.now)
    submit = rig.add(b"a", 100)
    assert rig.sent() == [submit]
    rig.executed(submit, 90 * MS)
    rig.queue.heard(b"victim", rig.now)
    rig.add(b"a")
    assert rig.sent() == []
    rig.now += int(90 * MS / SHARE) - AHEAD_NS - MS
    rig.queue.heard(b"victim", rig.now)
    assert rig.sent() == []
    due = rig.queue.due_ns(rig.now)
    assert due is not None
    rig.now = due
    rig.queue.heard(b"victim", rig.now)
    assert len(rig.sent()) == 1


def test_slow_calls_are_learned_at_once_and_quick_ones_slowly() -> None:
    rig = Rig()
    rig.teach(b"a", 1_000)
    rig.teach(b"a", 10 * MS)
    rig.teach(b"a", 1_000)
    for _ in range(20):
        rig.add(b"a")
    assert len(rig.sent()) <= 7


def test_one_pause_is_not_taken_for_more_by_each_of_those_that_were_under_way() -> None:
    rig = Rig()
    rig.teach(b"a", 1_000)
    under_way = [rig.add(b"a", 100) for _ in range(10)]
    assert rig.sent() == under_way
    for submit in under_way:
        rig.executed(submit, 100 * 20_000)
    rig.add(b"a", 100)
    (last,) = rig.sent()
    assert last.charge.expected_ns == pytest.approx(100 * 20_000, rel=0.01)


def test_what_was_not_run_teaches_nothing() -> None:
    rig = Rig()
    rig.teach(b"a", 10 * MS)
    for _ in range(40):
        submit = rig.add(b"a", 100)
        while submit not in rig.sent():
            rig.now += MS
        rig.executed(submit, 100 * MS, not_run=90)
        rig.now += ACTIVE_NS
    for _ in range(20):
        rig.add(b"a")
    assert len(rig.sent()) == 5


def test_functions_are_told_apart() -> None:
    rig = Rig()
    rig.teach(b"a", 10 * MS, "slow")
    rig.teach(b"a", 1_000, "quick")
    quick = [rig.add(b"a", 1, "quick") for _ in range(10)]
    slow = [rig.add(b"a", 2, "slow", "quick") for _ in range(10)]
    sent = rig.sent()
    assert sent[:10] == quick
    assert 10 + 3 <= len(sent) <= 10 + 5
    assert sent[10:] == slow[: len(sent) - 10]


def test_what_timed_out_is_not_sent() -> None:
    rig = Rig()
    late, other = rig.add(b"a"), rig.add(b"a")
    late.done = True
    assert rig.sent() == [other]
    assert rig.queue.operations == 0


def test_a_client_leaves_room_for_others() -> None:
    rig = Rig(capacity=1_000)
    taken = 0
    while rig.queue.takes(submit := rig.submit(b"a", 10)):
        rig.queue.add(submit, rig.now)
        taken += 10
    assert taken == 500
    assert rig.queue.takes(rig.submit(b"b", 10))


def test_room_of_the_link_is_respected() -> None:
    rig = Rig()
    rig.teach(b"a", 1)
    submits = [rig.add(b"a", 10) for _ in range(5)]
    assert rig.sent(room=25) == submits[:2]
    assert rig.sent(room=9) == []
    assert rig.sent(room=30) == submits[2:]


def test_what_is_given_up_is_not_outstanding() -> None:
    rig = Rig()
    for _ in range(500):
        submit = rig.add(b"a", 90)
        while submit not in rig.sent():
            rig.now += 10 * MS
        rig.queue.give_up(submit)
        rig.queue.give_up(submit)
    assert rig.queue.outstanding_ns == 0


def test_time_is_told_to_whom_it_belongs() -> None:
    rig = Rig()
    rig.teach(b"a", 5)
    rig.teach(b"b", 7)
    rig.teach(b"a", 6)
    assert rig.worked == {b"a": 11, b"b": 7}


def test_nothing_is_due_while_only_outcomes_are_awaited() -> None:
    rig = Rig()
    assert rig.queue.due_ns(rig.now) is None
    rig.add(b"a", 100)
    rig.add(b"a", 100)
    assert rig.queue.due_ns(rig.now) == rig.now
    rig.sent()
    rig.now += ACTIVE_NS
    assert rig.queue.due_ns(rig.now) is None
