"""Gathering: which submissions share a batch, and what the batch looks like."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.buffers import size
from tallybus.common.bus.messages import Request, decode, encode
from tallybus.common.protocol import MAX_HEADER_BYTES
from tallybus.common.record import PARAMS_SIZE, RECORD_DTYPE, RECORD_SIZE, Kind, Level
from tallybus.services.gateway.clients.protocol import Submit
from tallybus.services.gateway.pipeline.batches import JOIN_BYTES, Gatherer, PendingBatch

GATEWAY = 42
MAX_BATCH = 4000
LARGE = -(-JOIN_BYTES // RECORD_SIZE)
"""Fewest operations that travel alone."""

_account = iter(range(1, 2**60))


def submit(count: int, client: bytes = b"c") -> Submit:
    """Deposits to accounts that no other submission has."""
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.DEPOSIT
    records["account"] = [next(_account) for _ in range(count)]
    return Submit(client, next(_account), None, Level.COMPUTED, count, records.tobytes(), b"", [])


def calls(names: Sequence[str], functions: Sequence[int | None]) -> Submit:
    """Calls of the functions at these places of `names`; None is a deposit."""
    records = np.zeros(len(functions), RECORD_DTYPE)
    records["kind"] = [Kind.DEPOSIT if f is None else Kind.FUNCTION for f in functions]
    records["function"] = [0 if f is None else f for f in functions]
    params = b"".join(
        np.full(8, next(_account), "<i8").tobytes() for f in functions if f is not None
    )
    return Submit(
        b"c",
        next(_account),
        None,
        Level.COMPUTED,
        len(functions),
        records.tobytes(),
        params,
        list(names),
    )


def cut(
    submits: Sequence[Submit], max_batch: int = MAX_BATCH, next_request: int = 1
) -> list[tuple[PendingBatch, Request]]:
    gatherer = Gatherer(GATEWAY, max_batch)
    for one in submits:
        gatherer.add(one)
    batches = list(gatherer.cut(next_request))
    assert list(gatherer.cut(next_request)) == [], "everything was taken"
    return batches


def test_small_submissions_share_a_batch_in_their_order() -> None:
    submits = [submit(2, b"a"), submit(1, b"b"), submit(5, b"a")]
    records = [bytes(one.records) for one in submits]
    ((batch, message),) = cut(submits, next_request=7)
    assert [(offset, member) for offset, member in batch.members] == [
        (0, submits[0]),
        (2, submits[1]),
        (3, submits[2]),
    ]
    assert (batch.request, batch.count, batch.first) == (7, 8, 0)
    assert (message.gateway, message.request, message.count) == (GATEWAY, 7, 8)
    assert bytes(message.records) == b"".join(records)


def test_a_lone_submission_is_not_copied() -> None:
    one = submit(3)
    records = one.records
    ((_, message),) = cut([one])
    assert message.records is records


def test_a_large_submission_travels_alone_and_uncopied() -> None:
    submits = [submit(1), submit(LARGE), submit(1), submit(1)]
    large = submits[1].records
    batches = cut(submits)
    assert [[member for _, member in batch.members] for batch, _ in batches] == [
        [submits[0]],
        [submits[1]],
        submits[2:],
    ]
    assert batches[1][1].records is large
    assert [batch.request for batch, _ in batches] == [1, 2, 3]


def test_one_below_the_limit_is_joined() -> None:
    assert size(submit(LARGE - 1).records) < JOIN_BYTES
    assert len(cut([submit(LARGE - 1), submit(1)])) == 1


def test_a_batch_holds_no_more_than_the_cap() -> None:
    assert [batch.count for batch, _ in cut([submit(n) for n in (3, 3, 4, 1, 10, 1)], 10)] == [
        10,
        1,
        10,
        1,
    ]


def test_joint_names_make_no_header_that_nobody_takes() -> None:
    many = [
        calls([f"{each:02}{n:03}".ljust(256, "x") for n in range(250)], [0]) for each in range(40)
    ]
    batches = cut(many)
    assert [member for batch, _ in batches for _, member in batch.members] == many
    assert len(batches) > 1
    for _, message in batches:
        assert decode(encode(message)) == message


def test_nothing_gathered_makes_no_batch() -> None:
    assert cut([]) == []


def test_buffers_are_not_held_by_the_submission_once_they_are_in_a_batch() -> None:
    submits = [submit(1), submit(1), submit(LARGE)]
    cut(submits)
    assert [size(one.records) for one in submits] == [0, 0, 0], (
        "answered submissions stay in heaps until their deadline"
    )


def functions_of(message: Request) -> list[str | None]:
    """For each record its function's name, or None for what is no valid call."""
    records = np.frombuffer(message.records, RECORD_DTYPE)
    return [
        message.names[row["function"]]
        if row["kind"] == Kind.FUNCTION and row["function"] < len(message.names)
        else None
        for row in records
    ]


def test_names_of_joined_submissions_are_joined() -> None:
    submits = [
        calls(["fee", "tax"], [1, 0, None]),
        submit(1),
        calls(["tax", "bonus"], [0, 1]),
        calls(["fee"], [0]),
    ]
    params = b"".join(one.params for one in submits)
    ((_, message),) = cut(submits)
    assert functions_of(message) == ["tax", "fee", None, None, "tax", "bonus", "fee"]
    assert sorted(message.names) == ["bonus", "fee", "tax"]
    assert message.params == params
    assert size(message.params) == 5 * PARAMS_SIZE


def test_a_call_beyond_its_own_names_does_not_become_a_call_of_anothers() -> None:
    ((_, message),) = cut([calls(["fee"], [0, 1, 2**32 - 1]), calls(["tax", "bonus"], [0, 1])])
    assert functions_of(message) == ["fee", None, None, "tax", "bonus"]
    ((_, message),) = cut([calls([], [0]), calls(["tax"], [0])])
    assert functions_of(message) == [None, "tax"]
    ((_, message),) = cut([calls(["fee"], [1]), submit(1)])
    assert functions_of(message) == [None, None]


def test_names_without_calls_are_left_out_of_a_joined_batch() -> None:
    one = submit(1)
    one.names = ["unused"]
    ((_, message),) = cut([one, submit(1)])
    assert message.names == []


@pytest.mark.parametrize("count", [1, 2, 5])
def test_names_never_make_a_message_that_the_bus_refuses(count: int) -> None:
    # Other stages repeat the names in a header with more fields than the client's.
    names = [f"{number:0256}" for number in range(4000)]
    submits = [calls([f"{place}{name[1:]}" for name in names], [0]) for place in range(count)]
    for _, message in cut(submits):
        assert size(encode(message)[0]) < MAX_HEADER_BYTES - 1024


def test_the_clients_own_records_are_not_changed_by_joining() -> None:
    submits = [calls(["fee", "tax"], [1]), calls(["tax"], [0])]
    records = [one.records for one in submits]
    before = [bytes(r) for r in records]
    cut(submits)
    assert [bytes(r) for r in records] == before


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(12, 40), st.integers(1, 1000))
def test_every_operation_is_in_exactly_one_batch_at_its_offset(
    counts: list[int], max_batch: int, next_request: int
) -> None:
    submits = [submit(count) for count in counts]
    records = {id(one): bytes(one.records) for one in submits}
    members = []
    for place, (batch, message) in enumerate(cut(submits, max_batch, next_request)):
        assert batch.request == message.request == next_request + place
        assert batch.count == message.count <= max_batch
        assert size(message.records) == batch.count * RECORD_SIZE
        for offset, member in batch.members:
            members.append(member)
            own = bytes(message.records)[
                offset * RECORD_SIZE : (offset + member.count) * RECORD_SIZE
            ]
            assert own == records[id(member)]
    assert [id(member) for member in members] == [id(one) for one in submits]
