"""Terms: what older ones told holds up to where a later one began, and not beyond."""

import pytest

from tallybus.services.gateway.pipeline.terms import TERMS_KEPT, Terms


def row(first: int, count: int) -> list[int]:
    return [77, 5, first, count]


def test_the_first_term_voids_nothing_that_could_be_known() -> None:
    terms = Terms()
    assert terms.begin(4, 101, committed=90) is None
    assert (terms.current, terms.start) == (4, 101)
    assert not terms.voids(4, [row(101, 1_000)])


def test_the_next_term_voids_what_it_gives_again() -> None:
    terms = Terms()
    terms.begin(4, 101, committed=0)
    assert terms.begin(5, 201, committed=150) == 201
    assert not terms.voids(4, [row(101, 100)]), "up to 200"
    assert terms.voids(4, [row(101, 101)])
    assert terms.voids(4, [row(150, 2), row(201, 1)]), "one of them is enough"
    assert not terms.voids(5, [row(201, 50)])
    assert not terms.voids(6, [row(201, 50)]), "of a term that is not heard of yet nothing is void"


def test_of_a_term_before_one_that_was_missed_only_what_was_on_disk_holds() -> None:
    terms = Terms()
    terms.begin(4, 101, committed=0)
    assert terms.begin(6, 201, committed=150) == 151
    assert not terms.voids(4, [row(101, 50)])
    assert terms.voids(4, [row(101, 51)])
    assert terms.begin(8, 301, committed=400) == 301, "never beyond where the new one begins"


def test_what_a_later_term_voided_stays_void_whatever_comes_after_it() -> None:
    terms = Terms()
    terms.begin(1, 1, committed=0)
    terms.begin(2, 50, committed=10)
    terms.begin(3, 90, committed=10)
    assert terms.voids(1, [row(50, 1)])
    assert not terms.voids(1, [row(49, 1)])
    assert terms.voids(2, [row(90, 1)])
    assert not terms.voids(2, [row(89, 1)])


def test_of_terms_before_the_first_that_was_heard_of_nothing_holds() -> None:
    terms = Terms()
    terms.begin(4, 101, committed=0)
    assert terms.voids(3, [row(1, 1)])


@pytest.mark.parametrize(
    ("term", "index", "holds"), [(4, 250, 200), (4, 150, 150), (5, 250, 250), (6, 9, 9)]
)
def test_an_index_of_an_older_term_holds_up_to_the_start(term: int, index: int, holds: int) -> None:
    terms = Terms()
    terms.begin(4, 101, committed=0)
    terms.begin(5, 201, committed=0)
    assert terms.holding(term, index) == holds


def test_terms_that_are_remembered_are_bounded() -> None:
    terms = Terms()
    for term in range(1, 3 * TERMS_KEPT):
        terms.begin(term, term, committed=0)
    assert len(terms._voids) == TERMS_KEPT
    assert terms.voids(1, [row(2 * TERMS_KEPT + 5, 1)])
