"""Which connections are cut: those whose message has no end, and no others."""

import pytest

from tallybus.services.gateway.connections.table import (
    ENDLESS,
    GREETING_BYTES,
    GROWTH_BYTES,
    LOOK_NS,
    MEMORY,
    OLD_NS,
    RELIEF_NS,
    ROUNDS,
    SLACK_BYTES,
    SOON_NS,
    STEP_BYTES,
    TAKEN_BYTES,
    TOO_MANY,
    UNREAD,
    UNREAD_BYTES,
    Connections,
    Cut,
)

LONGEST = 1_000_000
TOO_LONG = LONGEST + SLACK_BYTES + 1
BASE = 100 << 20
GREETING = 300


def watched(*descriptors: int) -> Connections:
    """Connections that were just accepted, looked at once after their greeting."""
    connections = Connections(10, LONGEST)
    for descriptor in descriptors:
        assert connections.accepted(descriptor, f"10.0.0.1:{descriptor}", 0) is None
    connections.look(0, BASE, dict.fromkeys(descriptors, GREETING))
    return connections


def test_a_message_longer_than_the_longest_request_is_suspected_and_then_cut() -> None:
    connections = watched(5, 6)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG, 6: GREETING})
    assert connections.suspects
    assert connections.to_cut(LOOK_NS + SOON_NS, nothing_left=True) == [
        Cut(5, "10.0.0.1:5", ENDLESS, TOO_LONG)
    ]
    assert not connections.suspects


def test_a_message_of_the_longest_length_is_not_suspected() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG - 1})
    assert not connections.suspects


def test_a_client_that_finishes_messages_may_send_any_number_of_bytes() -> None:
    connections = watched(5)
    for number in range(1, 100):
        connections.heard(5)
        connections.look(number * LOOK_NS, BASE, {5: number * TOO_LONG})
        assert not connections.suspects


def test_unfinished_bytes_add_up_over_many_looks() -> None:
    connections = watched(5)
    looks = 0
    while not connections.suspects:
        looks += 1
        connections.look(looks * LOOK_NS, BASE, {5: looks * 100_000})
    assert looks * 100_000 == pytest.approx(LONGEST + SLACK_BYTES, abs=100_000)


def test_nothing_is_cut_at_once() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG})
    assert connections.to_cut(LOOK_NS + SOON_NS - 1, nothing_left=True) == []
    assert connections.suspects


def test_a_suspect_whose_message_was_still_waiting_is_let_go() -> None:
    connections = watched(5, 6)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG, 6: TOO_LONG})
    connections.heard(5)
    cuts = connections.to_cut(LOOK_NS + SOON_NS, nothing_left=True)
    assert [cut.descriptor for cut in cuts] == [6]
    connections.look(2 * LOOK_NS, BASE, {5: TOO_LONG + 10})
    assert not connections.suspects


def test_while_messages_wait_nobody_is_cut_until_all_had_their_turn() -> None:
    connections = watched(5, 6)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG, 6: GREETING})
    for _ in range(2 * ROUNDS - 1):
        connections.heard(6)
    assert connections.to_cut(LOOK_NS + SOON_NS, nothing_left=False) == []
    connections.heard(6)
    cuts = connections.to_cut(LOOK_NS + SOON_NS, nothing_left=False)
    assert [cut.descriptor for cut in cuts] == [5]


def test_a_connection_that_has_ended_is_neither_suspected_nor_cut() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG})
    assert connections.ended(5) == "10.0.0.1:5"
    assert connections.to_cut(LOOK_NS + SOON_NS, nothing_left=True) == []
    assert connections.ended(5) == ""
    assert len(connections) == 0


def test_a_new_connection_with_a_descriptor_that_was_used_before_starts_anew() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG})
    assert connections.accepted(5, "10.0.0.2:9", LOOK_NS) is None
    assert connections.to_cut(LOOK_NS + SOON_NS, nothing_left=True) == []
    connections.look(2 * LOOK_NS, BASE, {5: GREETING})
    assert not connections.suspects


def test_when_memory_has_grown_those_that_do_not_finish_are_cut_largest_first() -> None:
    connections = watched(5, 6, 7, 8)
    read = {5: 200_000, 6: 900_000, 7: GREETING, 8: 500_000}
    connections.look(SOON_NS, BASE, read)
    connections.heard(8)
    now = SOON_NS + OLD_NS
    connections.look(now, BASE + GROWTH_BYTES + 1, read)
    cuts = connections.to_cut(now + SOON_NS, nothing_left=True)
    assert [(cut.descriptor, cut.reason) for cut in cuts] == [(6, MEMORY), (5, MEMORY)]


def test_no_more_are_cut_for_the_memory_than_seems_enough() -> None:
    connections = Connections(10, GROWTH_BYTES)
    for descriptor in (5, 6):
        connections.accepted(descriptor, "", 0)
    connections.look(0, BASE, {5: GREETING, 6: GREETING})
    now = OLD_NS
    connections.look(now, BASE + GROWTH_BYTES + 1, {5: GROWTH_BYTES - 1, 6: GREETING + 5_000})
    assert [cut.descriptor for cut in connections.to_cut(now + SOON_NS, True)] == [5]


@pytest.mark.parametrize(
    ("memory", "unfinished", "age"),
    [
        (BASE + GROWTH_BYTES, 900_000, OLD_NS),
        (BASE + GROWTH_BYTES + 1, GREETING_BYTES, OLD_NS),
        (BASE + GROWTH_BYTES + 1, 900_000, OLD_NS - 1),
    ],
    ids=["not grown enough", "only greeted", "just begun"],
)
def test_growth_is_nobodys_fault_who_has_just_begun_a_message(
    memory: int, unfinished: int, age: int
) -> None:
    connections = watched(5)
    connections.look(age, memory, {5: unfinished})
    assert not connections.suspects


def test_growth_while_every_message_is_finished_becomes_the_new_normal() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE + 2 * GROWTH_BYTES, {5: GREETING})
    connections.look(3 * LOOK_NS, BASE + 2 * GROWTH_BYTES, {5: 900_000})
    assert not connections.suspects


def test_growth_counts_from_when_a_message_was_begun() -> None:
    """Also when others begin later: the memory that they find is not the normal one."""
    connections = watched(5, 6)
    half = GROWTH_BYTES // 2 + 1
    connections.look(SOON_NS, BASE + half, {5: 900_000, 6: GREETING})
    connections.look(2 * SOON_NS, BASE + 2 * half, {5: 900_000, 6: 950_000})
    now = 2 * SOON_NS + OLD_NS
    connections.look(now, BASE + 2 * half, {5: 900_000, 6: 950_000})
    cuts = connections.to_cut(now + SOON_NS, nothing_left=True)
    assert {cut.descriptor for cut in cuts} == {5, 6}


def test_after_a_cut_others_are_spared_until_the_memory_can_have_been_given_back() -> None:
    connections = Connections(10, GROWTH_BYTES)
    for descriptor in (5, 6):
        connections.accepted(descriptor, "", 0)
    connections.look(0, BASE, {5: GREETING, 6: GREETING})
    read = {5: GROWTH_BYTES - 1, 6: 5_000}
    now, much = OLD_NS, BASE + GROWTH_BYTES + 1
    connections.look(now, much, read)
    assert [cut.descriptor for cut in connections.to_cut(now + SOON_NS, True)] == [5]
    connections.ended(5)
    connections.look(now + RELIEF_NS - 1, much, read)
    assert not connections.suspects
    connections.look(now + RELIEF_NS - 1, much + STEP_BYTES, read)
    assert connections.suspects, "it still grows"
    connections.look(now + 2 * RELIEF_NS, much, read)
    assert connections.suspects


def test_the_first_look_of_all_blames_nobody_for_what_was_there_before() -> None:
    connections = Connections(10, LONGEST)
    connections.accepted(5, "", 0)
    connections.look(OLD_NS, 10 * GROWTH_BYTES, {5: 900_000})
    assert not connections.suspects


def test_connections_beyond_the_most_are_cut_and_not_counted() -> None:
    connections = Connections(2, LONGEST)
    for descriptor in (5, 6):
        assert connections.accepted(descriptor, f"a:{descriptor}", 0) is None
        connections.heard(descriptor)
    assert connections.accepted(7, "a:7", 0) == Cut(7, "a:7", TOO_MANY, 0)
    assert len(connections) == 2
    connections.look(LOOK_NS, BASE, {5: 1_000, 6: 1_000})
    assert connections.accepted(7, "a:7", LOOK_NS) == Cut(7, "a:7", TOO_MANY, 0)
    connections.ended(5)
    assert connections.accepted(8, "a:8", LOOK_NS) is None


def test_who_only_connects_makes_room_for_others() -> None:
    connections = Connections(3, LONGEST)
    for descriptor in (5, 6, 7):
        assert connections.accepted(descriptor, f"a:{descriptor}", 0) is None
    connections.heard(5)
    connections.look(LOOK_NS, BASE, {5: 1_000, 6: GREETING, 7: 0})
    assert connections.accepted(8, "a:8", LOOK_NS) == Cut(6, "a:6", TOO_MANY, GREETING)
    assert connections.accepted(9, "a:9", LOOK_NS) == Cut(7, "a:7", TOO_MANY, 0)
    assert set(connections.peers()) == {5, 8, 9}


def test_nothing_is_due_without_connections() -> None:
    connections = Connections(2, LONGEST)
    assert connections.next_look_ns() is None
    assert not connections.due(10 * LOOK_NS, BASE)


def test_looks_come_with_time_or_with_memory() -> None:
    connections = watched(5)
    assert not connections.due(SOON_NS, BASE + STEP_BYTES - 1)
    assert connections.next_look_ns() == 2 * SOON_NS
    assert connections.due(SOON_NS, BASE + STEP_BYTES)
    assert connections.due(LOOK_NS, BASE)
    assert not connections.due(LOOK_NS - 1, BASE - STEP_BYTES)
    assert connections.due(LOOK_NS - 1, BASE), "it had been less meanwhile"


def test_suspects_are_not_looked_at_anew_before_their_proof_could_come() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE, {5: TOO_LONG})
    assert not connections.due(LOOK_NS + SOON_NS, BASE + 10 * STEP_BYTES)
    assert connections.due(2 * LOOK_NS, BASE)


def test_a_connection_of_which_the_system_tells_nothing_is_left_alone() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE, {})
    assert not connections.suspects


# -- answers that are not read -------------------------------------------------------------------

READ = {5: GREETING, 6: GREETING}


def test_who_takes_none_of_its_answers_is_cut_when_the_memory_has_grown() -> None:
    connections = watched(5, 6)
    connections.look(LOOK_NS, BASE, READ, {5: 1_000, 6: 1_000})
    much = {6: 1_000 + TAKEN_BYTES}
    connections.look(2 * LOOK_NS, BASE + GROWTH_BYTES // 2, READ, {5: 1_000, **much})
    much = {6: 1_000 + 2 * TAKEN_BYTES}
    # A trickle is not reading.
    connections.look(3 * LOOK_NS, BASE + GROWTH_BYTES + 1, READ, {5: 2_000, **much})
    # It goes on asking; that is no excuse.
    connections.heard(5)
    assert connections.to_cut(3 * LOOK_NS + SOON_NS, nothing_left=True) == [
        Cut(5, "10.0.0.1:5", UNREAD, 0)
    ]


def test_who_takes_none_of_its_answers_stays_while_there_is_memory() -> None:
    connections = watched(5)
    for number in range(1, 100):
        connections.look(number * LOOK_NS, BASE + GROWTH_BYTES, {5: GREETING}, {5: 1_000})
        assert not connections.suspects


def test_who_reads_slowly_stays() -> None:
    connections = watched(5)
    for number in range(1, 100):
        taken = number * TAKEN_BYTES
        connections.look(number * LOOK_NS, BASE + number * GROWTH_BYTES, {5: 300}, {5: taken})
        assert not connections.suspects


def test_who_has_read_everything_is_not_to_blame_for_what_came_before() -> None:
    connections = watched(5)
    connections.look(LOOK_NS, BASE, {5: GREETING}, {5: 1_000})
    connections.look(2 * LOOK_NS, BASE + 10 * GROWTH_BYTES, {5: GREETING})
    connections.look(3 * LOOK_NS, BASE + 10 * GROWTH_BYTES, {5: GREETING}, {5: 1_000})
    connections.look(4 * LOOK_NS, BASE + 10 * GROWTH_BYTES, {5: GREETING}, {5: 1_000})
    assert not connections.suspects


def test_of_many_that_do_not_read_as_many_are_cut_as_the_growth_asks_for() -> None:
    connections = Connections(1_000, LONGEST)
    everyone = range(5, 505)
    for descriptor in everyone:
        assert connections.accepted(descriptor, f"10.0.0.1:{descriptor}", 0) is None
    read, taken = dict.fromkeys(everyone, GREETING), dict.fromkeys(everyone, 7)
    grown = 100 * UNREAD_BYTES
    for number, memory in enumerate((BASE, BASE, BASE + grown)):
        connections.look(number * LOOK_NS, memory, read, taken)
    cuts = connections.to_cut(2 * LOOK_NS + SOON_NS, nothing_left=True)
    assert 90 <= len(cuts) <= 110


# -- keys ----------------------------------------------------------------------------------------


def test_a_key_has_no_more_connections_than_it_leaves_to_others() -> None:
    connections = Connections(16, LONGEST)
    stays = 0
    for descriptor in range(5, 21):
        assert connections.accepted(descriptor, f"a:{descriptor}", 0) is None
        connections.heard(descriptor)
        cut = connections.spoke(descriptor, b"one")
        if cut is None:
            assert connections.spoke(descriptor, b"one") is None, "it counts once"
            stays += 1
        else:
            assert cut == Cut(descriptor, f"a:{descriptor}", TOO_MANY, 0)
            connections.ended(descriptor)
    assert stays == 8
    assert connections.accepted(30, "a:30", 0) is None
    assert connections.spoke(30, b"two") is None
    # What has ended leaves its place.
    connections.ended(5)
    assert connections.accepted(31, "a:31", 0) is None
    assert connections.spoke(31, b"one") is None


def test_strangers_who_only_connect_take_no_places_of_keys() -> None:
    connections = Connections(16, LONGEST)
    for descriptor in range(100, 112):
        assert connections.accepted(descriptor, "stranger:1", 0) is None
    for descriptor in range(5, 13):
        connections.accepted(descriptor, f"a:{descriptor}", 0)
        connections.heard(descriptor)
        assert connections.spoke(descriptor, b"one") is None


def test_connections_of_a_key_that_was_revoked_make_room_when_it_is_needed() -> None:
    connections = Connections(2, LONGEST)
    for descriptor in (5, 6):
        assert connections.accepted(descriptor, f"a:{descriptor}", 0) is None
        connections.heard(descriptor)
    connections.revoked(6)
    connections.revoked(99)
    connections.look(LOOK_NS, BASE, READ)
    assert connections.to_cut(LOOK_NS + SOON_NS, nothing_left=True) == []
    assert connections.accepted(7, "a:7", LOOK_NS) == Cut(6, "a:6", TOO_MANY, 0)
    connections.heard(7)
    assert connections.accepted(8, "a:8", LOOK_NS) == Cut(8, "a:8", TOO_MANY, 0)
