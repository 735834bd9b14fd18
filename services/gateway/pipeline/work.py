"""Whose calls of functions go to the transactor next: time belongs to everybody. Pure.

Ids come before execution, and those of a submit are contiguous. So behind the gateway everything is
one queue. This module bounds that queue, in time: the calls that were sent and not executed may be
expected to take 50 ms together, divided among the gateways. Other calls wait here, in a queue for
each client. Clients have their turns by the time that their calls took so far. A submit without
calls never waits, unless it follows a waiting one of the same client.

While others submit too, no client's calls get more than `SHARE` of the time, divided by the number
of gateways, because a client may call at each of them. The times of calls come back with the
outcomes, and this module learns from them, by client and function. When a submit is sent, its
client is charged what is expected. When the true time is known, it is charged the difference.

A client is a key, or without keys a connection (ADR 0016).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from tallybus.common.buffers import size
from tallybus.common.record import PARAMS_SIZE, RECORD_DTYPE, Kind, Status
from tallybus.services.gateway.clients.protocol import Submit

OUTSTANDING_NS: Final = 50_000_000
"""All gateways together may have sent calls worth this time that are not executed yet."""
SHARE: Final = 1 / 3
"""Of the transactor's time, for the calls of one client while others submit as well."""
ACTIVE_NS: Final = 1_000_000_000
"""Who has submitted within this time is active."""
AHEAD_NS: Final = 2_000_000
"""How far a client may be ahead of its share."""
UNKNOWN_NS: Final = 1_000_000
"""The time expected of a call whose function this gateway does not know: that of the default
quota."""
SURPRISE: Final = 32
"""A call may take far longer than those before it. So each weighs at least this fraction of what an
unknown one does."""
CUSTOMERS_KEPT: Final = 4_096
NAMES_KEPT: Final = 4_096
_SKIPPED: Final = np.zeros(256, bool)
"""By status: whether a call that ended so did not run."""
_SKIPPED[[Status.NOT_RUN, Status.SUSPENDED, Status.DUPLICATE]] = True


@dataclass(slots=True, eq=False)
class Customer:
    """A client that calls functions. `turn_ns` is when everything it was charged for would be done
    if it had its share and no more. `expected`: nanoseconds of a call, by function."""

    owner: bytes
    waiting: deque[Submit] = field(default_factory=deque)
    operations: int = 0
    """Of the waiting submits."""
    turn_ns: int = 0
    expected: dict[str, float] = field(default_factory=dict)
    queued: bool = False
    """Whether it stands in the order of turns."""


@dataclass(slots=True, eq=False)
class Charge:
    """What a submit is expected to take.

    It is expected to take `expected_ns`. Its customer was charged `factor` times as much. It counts
    as `weight_ns` of what is outstanding. `calls` has its calls by name, and is empty where the
    submit has none and only stays behind others.
    """

    customer: Customer
    calls: dict[str, int]
    expected_ns: int = 0
    call_ns: float = 0.0
    """Of one of its calls, on average."""
    each_ns: dict[str, float] = field(default_factory=dict)
    """Of one call of each function, when it was sent."""
    weight_ns: int = 0
    factor: float = 1.0
    sent: bool = False


class WorkQueue:
    """Submits with calls, from when they are taken until they are executed.

    `capacity` bounds the operations that wait, `budget_ns` is what a submit's calls may take.
    """

    def __init__(self, capacity: int, budget_ns: int) -> None:
        self._capacity = capacity
        self._budget_ns = budget_ns
        self._customers: dict[bytes, Customer] = {}
        self._known: dict[str, float] = {}
        """Nanoseconds of a call, by function, whoever called it last."""
        self._turns: list[tuple[int, int, Customer]] = []
        self._tie = 0
        self._latest: tuple[bytes, int] = (b"", -ACTIVE_NS)
        self._before: tuple[bytes, int] = (b"", -ACTIVE_NS)
        self.operations = 0
        """How many operations wait here."""
        self.outstanding_ns = 0
        self.charged: Callable[[bytes, int], None] | None = None
        """Called with a client and the nanoseconds that its calls took, where somebody counts."""
        self.sharers = 1
        """Gateways among which the time is divided."""

    # -- taking ----------------------------------------------------------------------------------

    def heard(self, owner: bytes, now_ns: int) -> None:
        """This client submits something."""
        if owner == self._latest[0]:
            self._latest = (owner, now_ns)
        else:
            self._before, self._latest = self._latest, (owner, now_ns)

    def concerns(self, submit: Submit) -> bool:
        """Whether it calls functions, or has to stay behind what does."""
        if size(submit.params):
            return True
        if not self.operations:
            return False
        customer = self._customers.get(submit.owner)
        return customer is not None and bool(customer.waiting)

    def takes(self, submit: Submit) -> bool:
        """Whether there is room for it here. A client leaves others as much room as it takes."""
        customer = self._customers.get(submit.owner)
        if customer is None or not customer.waiting:
            return self.operations < self._capacity
        return customer.operations + submit.count <= (self._capacity - self.operations)

    def add(self, submit: Submit, now_ns: int) -> None:
        """A submit that this concerns."""
        customer = self._customers.get(submit.owner)
        if customer is None:
            if len(self._customers) >= CUSTOMERS_KEPT:
                self._forget(now_ns)
            customer = self._customers[submit.owner] = Customer(submit.owner)
        submit.charge = Charge(customer, _calls(submit) if size(submit.params) else {})
        customer.waiting.append(submit)
        customer.operations += submit.count
        self.operations += submit.count
        self._stand(customer)

    def _stand(self, customer: Customer) -> None:
        if not customer.queued:
            customer.queued = True
            self._tie += 1
            heapq.heappush(self._turns, (customer.turn_ns, self._tie, customer))

    # -- sending ---------------------------------------------------------------------------------

    def next(self, now_ns: int, room: int) -> Iterator[Submit]:
        """Those whose turn it is, in order; `room`: operations that may be sent, at least one
        submit if nothing else is under way."""
        limit = OUTSTANDING_NS / max(1, self.sharers)
        early: list[Customer] = []
        while self._turns:
            customer = self._turns[0][2]
            while customer.waiting and customer.waiting[0].done:
                self._pop(customer)
            if not customer.waiting:
                heapq.heappop(self._turns)
                customer.queued = False
                continue
            submit = customer.waiting[0]
            if submit.count > room:
                break
            charge: Charge = submit.charge
            if not charge.calls:
                self._pop(customer)
                charge.sent = True
                room -= submit.count
                yield submit
                continue
            shared = self._shared(customer.owner, now_ns)
            if shared and customer.turn_ns > now_ns + AHEAD_NS:
                heapq.heappop(self._turns)
                customer.queued = False
                early.append(customer)
                continue
            # The same client may call at the other gateways, too, which know nothing of this one.
            self._weigh(charge, max(1, self.sharers) / SHARE if shared else 1.0)
            if self.outstanding_ns and self.outstanding_ns + charge.weight_ns > limit:
                break
            self._pop(customer)
            room -= submit.count
            charge.sent = True
            self.outstanding_ns += charge.weight_ns
            customer.turn_ns = max(customer.turn_ns, now_ns) + int(
                charge.expected_ns * charge.factor
            )
            heapq.heappop(self._turns)
            customer.queued = False
            self._stand(customer)
            yield submit
        for customer in early:
            self._stand(customer)

    def due_ns(self, now_ns: int) -> int | None:
        """When, at the latest, `next` may have something although nothing happened until then."""
        if not self._turns:
            return None
        due_ns = self._turns[0][0] - AHEAD_NS
        if due_ns > now_ns:
            return due_ns
        return None if self.outstanding_ns else now_ns

    def _pop(self, customer: Customer) -> None:
        submit = customer.waiting.popleft()
        customer.operations -= submit.count
        self.operations -= submit.count

    def _shared(self, owner: bytes, now_ns: int) -> bool:
        """Whether somebody else submits, here or at another gateway."""
        other = self._before if self._latest[0] == owner else self._latest
        return self.sharers > 1 or now_ns - other[1] < ACTIVE_NS

    def _weigh(self, charge: Charge, factor: float) -> None:
        known, own = self._known, charge.customer.expected
        expected = 0.0
        calls = 0
        for name, count in charge.calls.items():
            each_ns = own.get(name, known.get(name, float(UNKNOWN_NS)))
            charge.each_ns[name] = each_ns
            expected += count * each_ns
            calls += count
        least = min(calls * UNKNOWN_NS, self._budget_ns) // SURPRISE
        charge.call_ns = expected / max(1, calls)
        charge.expected_ns = min(int(expected), self._budget_ns)
        charge.weight_ns = max(charge.expected_ns, least, 1)
        charge.factor = factor

    # -- learning --------------------------------------------------------------------------------

    def executed(self, submit: Submit, took_ns: int | None) -> None:
        """Its outcome is known, in `submit.failures`, and how long its calls took, if anybody can
        tell."""
        charge: Charge | None = submit.charge
        if charge is None or not charge.sent:
            return
        self.give_up(submit)
        if took_ns is None:
            return
        customer = charge.customer
        if self.charged is not None:
            self.charged(customer.owner, took_ns)
        customer.turn_ns += int((took_ns - charge.expected_ns) * charge.factor)
        calls = sum(charge.calls.values())
        ran = calls - _not_run(submit.failures)
        if ran > 0 and charge.call_ns > 0:
            self._learn(charge, took_ns / ran / charge.call_ns)

    def give_up(self, submit: Submit) -> None:
        """It is not outstanding any more."""
        charge: Charge | None = submit.charge
        if charge is not None and charge.sent:
            submit.charge = None
            self.outstanding_ns -= charge.weight_ns

    def _learn(self, charge: Charge, factor: float) -> None:
        """Its calls took `factor` times what was expected. What is slower than expected is believed
        at once, what is quicker bit by bit: a client must not hide slow calls among quick ones."""
        own, known = charge.customer.expected, self._known
        for name, sent_ns in charge.each_ns.items():
            before = own.get(name, known.get(name, float(UNKNOWN_NS)))
            # Of what was expected then: others that were under way may have been heard of since.
            heard = min(sent_ns * factor, float(self._budget_ns))
            first = name not in own
            now = heard if first or heard > before else before + (heard - before) / 8
            for memory in (own, known):
                memory.pop(name, None)
                while len(memory) >= NAMES_KEPT:
                    del memory[next(iter(memory))]
                memory[name] = now

    def _forget(self, now_ns: int) -> None:
        """Drop clients about whom there is little to remember."""
        idle = [
            customer
            for customer in self._customers.values()
            if not customer.queued and customer.turn_ns <= now_ns
        ]
        for customer in idle[: max(1, len(idle) // 2)]:
            del self._customers[customer.owner]


def _calls(submit: Submit) -> dict[str, int]:
    """How often a submit calls each function."""
    names = submit.names
    calls = size(submit.params) // PARAMS_SIZE
    if len(names) == 1:
        return {names[0]: calls}
    records = np.frombuffer(submit.records, RECORD_DTYPE)
    called = records["function"][records["kind"] == Kind.FUNCTION]
    counts = np.bincount(called[called < len(names)], minlength=len(names)).tolist()
    return {name: count for name, count in zip(names, counts, strict=True) if count}


def _not_run(failures: Any) -> int:
    """Calls that took no time to speak of."""
    return int(np.count_nonzero(_SKIPPED[failures["status"]])) if len(failures) else 0
