"""How far the pipeline has come, and who waits for it."""

import pytest

from tallybus.common.record import Level
from tallybus.services.gateway.clients.protocol import IndexRead
from tallybus.services.gateway.pipeline.progress import Progress

LEVELS = [level for level in Level if level]


def waiting(progress: Progress, level: Level, *ids: int) -> list[IndexRead]:
    """One that waits for each of these ids."""
    requests = [IndexRead(b"c", number, None) for number in range(len(ids))]
    for request, tx_id in zip(requests, ids, strict=True):
        progress.wait(level, tx_id, request)
    return requests


@pytest.mark.parametrize("level", LEVELS)
def test_those_who_waited_come_out_once_in_the_order_of_their_ids(level: Level) -> None:
    progress = Progress()
    five, nine, two = waiting(progress, level, 5, 9, 2)
    assert list(progress.advance(level, 5)) == [two, five]
    assert list(progress.advance(level, 5)) == list(progress.advance(level, 4)) == []
    assert list(progress.advance(level, 10)) == [nine]
    assert progress.index(level) == 10


@pytest.mark.parametrize("level", LEVELS)
def test_levels_are_waited_for_one_by_one(level: Level) -> None:
    progress = Progress()
    waiting(progress, level, 3)
    for other in LEVELS:
        if other is not level:
            assert list(progress.advance(other, 7)) == []
    assert progress.index(level) == 0


def test_what_is_computed_was_sequenced() -> None:
    progress = Progress()
    progress.advance(Level.COMPUTED, 4)
    assert progress.sequenced == 4
    progress.given(9)
    progress.given(6)
    assert (progress.sequenced, progress.computed) == (9, 4)


def test_a_term_voids_what_was_not_durable_and_takes_nothing_back_that_was() -> None:
    progress = Progress()
    for level in LEVELS:
        progress.advance(level, 10 if level is Level.COMPUTED else 6)
    (beyond,) = waiting(progress, Level.COMPUTED, 11)
    progress.begin_term(start=8, void=8)
    assert (progress.sequenced, progress.computed) == (7, 7)
    assert (progress.committed, progress.snapshot) == (6, 6)
    assert list(progress.advance(Level.COMPUTED, 10)) == []
    assert list(progress.advance(Level.COMPUTED, 11)) == [beyond]
