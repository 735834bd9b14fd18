"""The registry of functions against a plain model, and registrations in runs of the log."""

from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tallybus.common.batch import Batch
from tallybus.common.functions.registry import (
    FunctionRegistry,
    FunctionVersion,
    RegistrationError,
    name_words,
    registration_of,
    registrations,
    shown_name,
)
from tallybus.common.record import RECORD_DTYPE, Kind, Status
from tests.support.batches import batch_of
from tests.support.registries import registry_of

NAMES = ("a", "fee", "x" * 32)
CRCS = (11, 22, 33)

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,31}", fullmatch=True)


@dataclass
class Model:
    """What is live after each transaction, kept in full."""

    versions: dict[str, int] = field(default_factory=dict)
    live: dict[str, tuple[int, int]] = field(default_factory=dict)
    history: list[dict[str, tuple[int, int]]] = field(default_factory=lambda: [{}])


@st.composite
def registered(draw: st.DrawFn) -> tuple[list[FunctionVersion], Model]:
    """Versions as a transactor may make them, and the model up to some transactions behind them.

    `history[t]` is what is live when transaction t is executed.
    """
    model = Model()
    found = []
    steps = draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(NAMES)), max_size=25))
    model.history.append({})
    for gap, name in steps:
        model.history += [dict(model.live)] * gap
        transaction_id = len(model.history) - 1
        crc = draw(st.sampled_from(CRCS))
        if name in model.live and draw(st.booleans()):
            crc = 0
        model.versions[name] = version = model.versions.get(name, 0) + 1
        found.append(FunctionVersion(name, version, crc, transaction_id))
        if crc:
            model.live[name] = (version, crc)
        else:
            del model.live[name]
        model.history.append(dict(model.live))
    return found, model


@given(registered())
def test_the_registry_knows_what_was_live_when(made: tuple[list[FunctionVersion], Model]) -> None:
    versions, model = made
    registry = FunctionRegistry()
    for version in versions:
        assert registry.next_version(version.name) == version.version
        registry.apply(version)
    assert registry.versions() == tuple(versions)
    assert len(registry) == len(versions)
    assert registry == registry_of(versions)
    for name in NAMES:
        live = registry.live(name)
        assert (live and (live.version, live.crc32c)) == model.live.get(name)
        assert registry.next_version(name) == model.versions.get(name, 0) + 1
    assert {each.name for each in registry.all_live()} == set(model.live)
    for transaction_id, live_then in enumerate(model.history):
        for version in versions:
            then = live_then.get(version.name) == (version.version, version.crc32c)
            for crc in (0, *CRCS):
                found = registry.resolve(version.transaction_id, crc, transaction_id)
                assert found == (version if then and crc == version.crc32c else None)


def test_the_same_binary_under_two_names_is_told_apart() -> None:
    versions = [FunctionVersion("old", 1, 7, 1), FunctionVersion("new", 1, 7, 5)]
    registry = registry_of(versions)
    assert [registry.resolve(place, 7, 9) for place in (1, 5)] == versions


@pytest.mark.parametrize("registration", [0, 1, 3, 6, 2**64 - 1])
def test_what_registered_nothing_is_not_resolved(registration: int) -> None:
    registry = registry_of([FunctionVersion("f", 1, 7, 2), FunctionVersion("f", 2, 7, 5)])
    assert registry.resolve(registration, 7, 9) is None
    assert FunctionRegistry().resolve(registration, 7, 9) is None


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        (FunctionVersion("f", 2, 5, 10), "after transaction 10"),
        (FunctionVersion("f", 2, 5, 9), "after transaction 10"),
        (FunctionVersion("f", 1, 5, 11), "the next one is 2"),
        (FunctionVersion("f", 3, 5, 11), "the next one is 2"),
        (FunctionVersion("g", 2, 5, 11), "the next one is 1"),
        (FunctionVersion("g", 1, 0, 11), "not registered"),
    ],
)
def test_what_cannot_come_next_is_refused_and_changes_nothing(
    version: FunctionVersion, reason: str
) -> None:
    first = FunctionVersion("f", 1, 4, 10)
    registry = registry_of([first])
    with pytest.raises(RegistrationError, match=reason) as caught:
        registry.apply(version)
    assert caught.value.transaction_id == version.transaction_id
    assert not caught.value.restart
    assert registry == registry_of([first])


def test_a_function_is_not_ended_twice() -> None:
    registry = registry_of([FunctionVersion("f", 1, 4, 1), FunctionVersion("f", 2, 0, 2)])
    with pytest.raises(RegistrationError, match="not registered"):
        registry.apply(FunctionVersion("f", 3, 0, 3))
    registry.apply(FunctionVersion("f", 3, 4, 3))
    assert registry.live("f") == FunctionVersion("f", 3, 4, 3)


@pytest.mark.parametrize(
    ("name", "version", "crc", "transaction_id"),
    [
        ("", 1, 1, 1),
        ("1a", 1, 1, 1),
        ("a" * 33, 1, 1, 1),
        ("a\0", 1, 1, 1),
        ("a\n", 1, 1, 1),
        ("../x", 1, 1, 1),
        ("é", 1, 1, 1),
        ("a", 0, 1, 1),
        ("a", 2**32, 1, 1),
        ("a", 1, -1, 1),
        ("a", 1, 2**32, 1),
        ("a", 1, 1, 0),
        ("a", 1, 1, 2**64),
    ],
)
def test_values_that_no_registration_has_are_refused(
    name: str, version: int, crc: int, transaction_id: int
) -> None:
    with pytest.raises(RegistrationError):
        FunctionVersion(name, version, crc, transaction_id)


# -- in the log ------------------------------------------------------------------------------------


def record(words: int, *, version: int = 1, crc: int = 5, status: int = 0) -> NDArray[np.void]:
    row = np.zeros(1, RECORD_DTYPE)
    row["kind"], row["status"], row["function"] = Kind.FUNCTION_REGISTERED, status, crc
    row["account"], row["amount"] = version, words
    return row


@given(names)
def test_names_come_back_from_their_words(name: str) -> None:
    words = name_words(name)
    assert words.dtype == np.int64
    assert len(words) == -(-len(name) // 8)
    assert shown_name(words) == name
    found = registration_of(record(len(words), version=3)[0], words, 77)
    assert found == FunctionVersion(name, 3, 5, 77)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\0" * 8,
        b"fee\0\0\0\0\0" + b"\0" * 8,
        b"fee\0fee\0",
        b"\xff" * 8,
        "gebühr".encode() + b"\0",
        b"a" * 40,
        b"../../ab",
    ],
)
def test_a_damaged_name_is_noticed_and_still_shown(text: bytes) -> None:
    words = np.frombuffer(text, "<i8")
    with pytest.raises(RegistrationError) as caught:
        registration_of(record(len(words))[0], words, 9)
    assert caught.value.transaction_id == 9
    assert isinstance(shown_name(words), str)


def test_of_a_name_of_any_length_only_a_start_is_shown() -> None:
    assert shown_name(np.frombuffer(b"a" * 8 * 65_536, "<i8")) == "a" * 256


@given(st.binary(max_size=80).map(lambda text: text[: len(text) // 8 * 8]))
def test_any_words_give_a_registration_or_its_typed_error(text: bytes) -> None:
    words = np.frombuffer(text, "<i8")
    shown_name(words)
    try:
        found = registration_of(record(len(words))[0], words, 9)
    except RegistrationError:
        return
    assert found is not None
    assert name_words(found.name).tobytes() == text


@pytest.mark.parametrize("status", [Status.INVALID_OPERATION, Status.DUPLICATE, 200])
def test_a_failed_registration_makes_no_version(status: int) -> None:
    words = np.frombuffer(b"\xff" * 8, "<i8")
    assert registration_of(record(1, version=0, status=status)[0], words, 9) is None


class Run:
    """A run with calls of functions between its registrations, all of which have params."""

    def __init__(self, shape: list[tuple[bool, int]], first_id: int) -> None:
        self.first_id = first_id
        rows: list[NDArray[np.void]] = []
        params: list[int] = []
        self.expected: list[FunctionVersion] = []
        for place, (registers, words) in enumerate(shape):
            if registers:
                name = "f" * (words * 3 + 1) + str(place)
                name = name[:32]
                own = name_words(name).tolist()
                failed = words == 2
                rows.append(record(len(own), status=Status.DUPLICATE if failed else 0))
                if not failed:
                    self.expected.append(FunctionVersion(name, 1, 5, first_id + place))
            else:
                own = [-1] * words
                row = record(words)
                row["kind"] = Kind.FUNCTION if words else Kind.DEPOSIT
                row["status"] = 130 if words else 0
                rows.append(row)
            params += own
        self.records: NDArray[Any] = np.concatenate(rows) if rows else np.empty(0, RECORD_DTYPE)
        self.params = np.array(params, np.int64)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), max_size=12), st.integers(1, 2**63))
def test_registrations_are_found_between_everything_else(
    shape: list[tuple[bool, int]], first_id: int
) -> None:
    run = Run(shape, first_id)
    assert registrations(run) == run.expected
    links = np.ones(int(np.count_nonzero(run.records["status"] == Status.DUPLICATE)), "<u8")
    batch_of(run.first_id, run.records, links, run.params)  # it can be logged


def test_a_run_cut_anywhere_has_the_same_registrations() -> None:
    run = Run([(False, 3), (True, 1), (True, 2), (False, 8), (True, 8), (False, 0), (True, 4)], 50)
    ends = [0, *accumulate(int(words) if kind >= 4 else 0 for kind, words in zip(
        run.records["kind"].tolist(), run.records["amount"].tolist(), strict=True
    ))]  # fmt: skip
    for cut in range(len(run.records) + 1):
        head = registrations(Batch(50, run.records[:cut], params=run.params[: ends[cut]]))
        tail = registrations(Batch(50 + cut, run.records[cut:], params=run.params[ends[cut] :]))
        assert head + tail == run.expected
