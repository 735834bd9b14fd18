"""How large a batch may be: what a ping, refusals and unfinished batches say about it."""

from __future__ import annotations

import pytest

from tallybus.batch_size import BatchSize, TryAgain
from tallybus.errors import InvalidRequest, Overloaded


def too_large(limit: str | None, allowed: int | None) -> InvalidRequest:
    return InvalidRequest("", limit=limit, allowed=allowed)


def too_early(limit: str | None, allowed: int | None, retry_ms: int | None) -> Overloaded:
    return Overloaded(
        "", request="submit", attempts=1, limit=limit, allowed=allowed, retry_ms=retry_ms
    )


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        ({}, 1_000),
        ({"in_flight": 0, "rate": 0, "message_bytes": 0}, 1_000),
        ({"in_flight": 50, "rate": 70}, 50),
        ({"rate": 7}, 7),
        ({"message_bytes": 512 + 400}, 10),
        ({"message_bytes": 3}, 1),
        ({"work_ms": 5}, 1_000),
    ],
)
def test_it_begins_within_what_a_ping_tells(limits: dict[str, int], rows: int) -> None:
    assert BatchSize(1_000, limits).rows == rows


def test_a_batch_that_is_too_large_is_cut_to_what_is_allowed_and_at_least_halved() -> None:
    size = BatchSize(1_000)
    assert size.refused(too_large("in_flight", 300), 1_000) == TryAgain(0.0)
    assert size.rows == 300
    # It should have fitted: others of the same key are under way.
    assert size.refused(too_early("in_flight", 300, None), 300) == TryAgain(0.0)
    assert size.rows == 150
    assert size.refused(too_large("something_new", 5), 150) == TryAgain(0.0)
    assert size.rows == 75


def test_one_that_comes_too_early_waits_as_long_as_it_is_told() -> None:
    size = BatchSize(1_000)
    assert size.refused(too_early("rate", 200, 2_500), 1_000) == TryAgain(2.5)
    assert size.rows == 200
    assert size.refused(too_early("rate", 200, 10), 200) == TryAgain(0.01)
    assert size.rows == 200


def test_what_no_smaller_batch_can_help_is_not_tried_again() -> None:
    size = BatchSize(1_000)
    assert size.refused(too_large(None, None), 1_000) is None
    assert size.refused(too_early(None, None, None), 1_000) is None
    assert size.rows == 1_000
    size = BatchSize(1)
    assert size.refused(too_large("in_flight", 0), 1) is None


def test_batches_grow_again_after_calls_that_were_not_run_but_not_beyond_a_limit() -> None:
    size = BatchSize(1_000, {"in_flight": 100})
    size.ran(3)
    assert size.rows == 3
    for rows in (6, 12, 24, 48, 96, 100, 100):
        size.ran()
        assert size.rows == rows
    size.refused(too_large("in_flight", 40), 100)
    size.ran()
    assert size.rows == 40
