"""A batch of executed transactions: what belongs together, where it is cut, how it travels."""

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.batch import Batch, ExtraCounts, InvalidBatch, segment_of
from tallybus.common.bus.messages import Executed, decode, encode
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status
from tests.support.batches import batch_of
from tests.support.log_samples import plain_batch, same, sample_batch


@given(st.integers(0, 60), st.integers(1, 40))
def test_splitting_keeps_every_part_with_its_transaction(cut: int, first_id: int) -> None:
    batch = sample_batch(first_id, 60)
    left, right = batch.split(cut)
    assert same(left, sample_batch(first_id, cut))
    assert same(right, sample_batch(first_id + cut, 60 - cut))


@given(st.integers(1, 30), st.integers(1, 50), st.integers(1, 13))
def test_batches_are_cut_at_segment_ends(first_id: int, count: int, size: int) -> None:
    parts = list(sample_batch(first_id, count).split_at_segments(size))
    at = first_id
    for part in parts:
        length = part.count
        assert length >= 1
        assert same(part, sample_batch(at, length))
        assert segment_of(at, size) == segment_of(at + length - 1, size)
        at += length
    assert at == first_id + count
    assert all(part.last_id % size == 0 for part in parts[:-1])


def test_slicing_takes_the_middle() -> None:
    assert same(sample_batch(10, 20).clip(13, 20), sample_batch(13, 8))
    assert same(sample_batch(10, 20).clip(1, 99), sample_batch(10, 20))


def test_parts_that_do_not_fit_together_are_refused() -> None:
    good = sample_batch(1, 20)
    with pytest.raises(InvalidBatch, match="links=4"):
        batch_of(1, good.records, good.links[:-1], good.params, good.entries)
    with pytest.raises(InvalidBatch):
        batch_of(1, good.records, good.links, good.params[1:], good.entries)
    with pytest.raises(InvalidBatch):
        batch_of(1, good.records, good.links, good.params)


@pytest.mark.parametrize("amount", [9, 2**32, 2**63, 2**64 - 1])
def test_impossible_parameter_counts_are_refused_and_do_not_wrap(amount: int) -> None:
    records = np.zeros(2, RECORD_DTYPE)
    records["kind"] = Kind.FUNCTION
    records["amount"] = (amount, (2**64 - amount) % 2**64)
    with pytest.raises(InvalidBatch, match="parameter words"):
        batch_of(1, records)


def test_only_successful_functions_own_entries() -> None:
    records = np.zeros(3, RECORD_DTYPE)
    records["kind"] = (Kind.FUNCTION, Kind.FUNCTION, Kind.TRANSFER)
    records["status"] = (Status.NONE, 200, Status.NONE)
    records["entry_count"] = (3, 5, 2)
    batch_of(1, records, entries=np.zeros(3, ENTRY_DTYPE))


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 100), st.integers(0, 100))
def test_clipping_keeps_what_is_in_both_ranges(first: int, count: int, low: int, high: int) -> None:
    kept = sample_batch(first, count).clip(low, high)
    ids = range(max(first, low), min(first + count - 1, high) + 1)
    assert kept.count == len(ids)
    if ids:
        assert same(kept, sample_batch(ids[0], len(ids)))


def test_a_part_tells_whose_it_is_as_the_whole_does() -> None:
    whole = sample_batch(5, 10, term=3, timestamp_ns=77)
    for part in (*whole.split(4), whole.skip(2), *whole.split_at_segments(6), *whole.pieces(100)):
        assert (part.term, part.timestamp_ns) == (3, 77)
        assert (part.gateway, part.request) == (whole.gateway, whole.request)


@pytest.mark.parametrize("max_bytes", [1, 40, 100, 1_000, 10**6])
def test_pieces_are_no_longer_than_asked_for_unless_they_are_one_transaction(
    max_bytes: int,
) -> None:
    pieces = list(sample_batch(1, 37).pieces(max_bytes))
    at = 1
    for piece in pieces:
        assert piece.byte_length <= max_bytes or piece.count == 1
        assert same(piece, sample_batch(at, piece.count))
        at += piece.count
    assert at == 38


@pytest.mark.parametrize("first_id", range(1, 6))
@pytest.mark.parametrize("count", [0, 1, 2, 3, 20])
def test_a_batch_comes_out_of_its_frames_as_it_went_in(first_id: int, count: int) -> None:
    batch = sample_batch(first_id, count, term=4, timestamp_ns=9)
    records, extras = batch.to_frames()
    counts = ExtraCounts(len(batch.links), len(batch.params), len(batch.entries))
    again = Batch.from_frames(
        first_id,
        bytes(records),
        bytes(extras),
        counts,
        term=4,
        timestamp_ns=9,
        gateway=batch.gateway,
        request=batch.request,
    )
    again.check()
    assert same(again, batch)
    assert (again.term, again.timestamp_ns) == (4, 9)
    assert (again.gateway, again.request) == (batch.gateway, batch.request)


def test_what_was_received_is_passed_on_as_the_very_frames() -> None:
    """A view of a frame cannot be passed on by reference: sending it costs a wake-up."""
    header, *payload = encode(Executed.of(sample_batch(1, 500), 7))
    received = decode([header, *(zmq.Frame(bytes(frame)).buffer for frame in payload)])
    assert isinstance(received, Executed)
    on = Executed.of(received.batch().skip(0), 8)
    assert on.records is received.records
    assert on.extras is received.extras
    part = Executed.of(received.batch().skip(1), 8)
    assert part.count == 499
    assert same(part.batch(), sample_batch(2, 499))


def test_batches_without_extras_have_an_empty_second_frame() -> None:
    records, extras = plain_batch(1, 3).to_frames()
    assert (len(records), len(extras)) == (120, 0)
