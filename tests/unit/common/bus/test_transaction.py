"""One transaction as it is told: derived entries, the function that ran, its way in an answer."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.batch import Batch
from tallybus.common.bus.messages import Answer, FrameError, decode, encode
from tallybus.common.bus.transaction import (
    LoggedTransaction,
    Transaction,
    derived_entries,
    fill_answer,
    reply_fields,
    reply_payloads,
    transaction_in,
    transaction_of,
)
from tallybus.common.functions.registry import FunctionVersion, name_words
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status
from tallybus.common.wal.replay import replay_balances
from tests.support.registries import registry_of

NO_PARAMS = np.empty(0, np.int64)
NO_ENTRIES = np.empty(0, ENTRY_DTYPE)
u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)


def record(kind: int, **values: int) -> Any:
    row = np.zeros(1, RECORD_DTYPE)
    row["kind"] = kind
    for name, value in values.items():
        row[name] = value
    return row


@pytest.mark.parametrize("kind", [Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER])
@pytest.mark.parametrize("amount", [1, 300, 2**63 - 1])
def test_derived_entries_are_what_replay_does(kind: int, amount: int) -> None:
    row = record(kind, account=3, counterparty=5, amount=amount, entry_count=2)
    if kind != Kind.TRANSFER:
        row["counterparty"] = 0
    before = np.zeros(10, np.int64)
    before[3] = amount if kind != Kind.DEPOSIT else 0
    after = before.copy()
    replay_balances(Batch(1, row), after, np.zeros(1, np.uint8))
    entries = derived_entries(row[0])
    assert len(entries) == 2
    assert entries["amount"].tolist() == [-amount, amount], "the giver's credit comes first"
    applied = before.copy()
    np.add.at(applied, entries["account"].astype(np.intp), entries["amount"])
    assert applied.tolist() == after.tolist()


@pytest.mark.parametrize(
    "row",
    [
        record(Kind.DEPOSIT, status=Status.DUPLICATE, amount=3),
        record(Kind.TRANSFER, status=Status.INSUFFICIENT_FUNDS, amount=3, account=1),
        record(Kind.TRANSFER, account=1, counterparty=1, amount=9),
        record(Kind.FUNCTION, entry_count=2, amount=3),
        record(Kind.FUNCTION_REGISTERED, account=1),
        record(99, entry_count=2),
    ],
)
def test_what_moved_nothing_has_no_derived_entries(row: Any) -> None:
    assert derived_entries(row[0]).tolist() == []


def logged(row: Any, params: Any = NO_PARAMS, entries: Any = NO_ENTRIES, link: int = 0) -> Any:
    return LoggedTransaction(9, row[0], link, params, entries, 77, 3)


REGISTRY = registry_of([FunctionVersion("fee", 1, 0xABCD, 2), FunctionVersion("fee", 2, 0xBCDE, 8)])


def test_a_function_is_told_with_its_version_params_and_entries() -> None:
    entries = np.array([(1, -5), (2, 5)], ENTRY_DTYPE)
    row = record(Kind.FUNCTION, function=0xBCDE, account=8, amount=2, entry_count=2, user_ref=6)
    found = transaction_of(logged(row, np.array([4, -1]), entries), REGISTRY)
    assert found == Transaction(
        tx_id=9,
        timestamp_ns=77,
        term=3,
        record=row.tobytes(),
        params=(4, -1),
        entries=entries.tobytes(),
        function=("fee", 2),
    )
    failed = record(Kind.FUNCTION, function=0xBCDE, account=8, status=130)
    assert transaction_of(logged(failed), REGISTRY).function == ("fee", 2)


@pytest.mark.parametrize(
    ("crc", "registration"), [(0, 0), (0xABCD, 2), (0xABCD, 8), (5, 8), (0xBCDE, 0), (0xBCDE, 9)]
)
def test_what_was_not_live_is_not_named(crc: int, registration: int) -> None:
    row = record(Kind.FUNCTION, function=crc, account=registration, status=Status.INVALID_OPERATION)
    assert transaction_of(logged(row), REGISTRY).function is None


def test_only_functions_are_resolved() -> None:
    row = record(Kind.FUNCTION_REGISTERED, function=0xBCDE, account=2, amount=1)
    found = transaction_of(logged(row, name_words("fee")), REGISTRY)
    assert (found.function, found.name) == (None, "fee")


def test_a_duplicate_is_told_with_its_first() -> None:
    row = record(Kind.DEPOSIT, status=Status.DUPLICATE, amount=5)
    found = transaction_of(logged(row, link=4), REGISTRY)
    assert (found.duplicate_of, found.entries) == (4, b"")


def through_an_answer(transaction: Transaction | None, tx_id: int) -> Transaction | None:
    answer = Answer(1, 50)
    fill_answer(answer, transaction)
    received = decode(encode(answer))
    assert isinstance(received, Answer)
    return transaction_in(received, tx_id)


@given(
    st.builds(
        Transaction,
        tx_id=u64,
        timestamp_ns=u64,
        term=u64,
        record=st.binary(min_size=40, max_size=40),
        params=st.lists(i64, max_size=9).map(tuple),
        entries=st.integers(0, 255).map(lambda count: bytes(range(16)) * count),
        duplicate_of=u64,
        function=st.none() | st.tuples(st.text(max_size=32), st.integers(1, 2**32 - 1)),
        name=st.text(max_size=300),
    )
)
def test_any_transaction_comes_through_an_answer(transaction: Transaction) -> None:
    assert through_an_answer(transaction, transaction.tx_id) == transaction


def test_what_is_not_found_comes_through_as_nothing() -> None:
    assert through_an_answer(None, 5) is None


@pytest.mark.parametrize(
    ("details", "values"),
    [
        ({}, bytes(39)),
        ({}, bytes(41)),
        ({"params": 1}, bytes(40)),
        ({"params": 2**63}, bytes(48)),
        ({"params": -1}, bytes(40)),
        ({"params": "1"}, bytes(48)),
        ({"params": True}, bytes(48)),
        ({"timestamp": "x"}, bytes(40)),
        ({"term": -1}, bytes(40)),
        ({"duplicate_of": 2**64}, bytes(40)),
        ({"version": 1, "function": 5}, bytes(40)),
        ({"name": 5}, bytes(40)),
    ],
)
def test_a_malformed_answer_is_refused(details: dict[str, int | str], values: bytes) -> None:
    with pytest.raises(FrameError):
        transaction_in(Answer(1, 50, details=details, values=values), 9)


def test_a_client_is_told_everything() -> None:
    transaction = Transaction(9, 77, 3, bytes(40), (1, -2), bytes(32), 4, ("fee", 2))
    assert reply_fields(9, 50, transaction) == {
        "tx_id": 9,
        "timestamp": 77,
        "term": 3,
        "found": True,
        "snapshot": 50,
        "function": {"name": "fee", "version": 2},
        "duplicate_of": 4,
        "params": [1, -2],
        "name": None,
    }
    assert reply_payloads(transaction) == (bytes(40), bytes(32))


def test_a_client_is_told_that_there_is_none() -> None:
    fields = reply_fields(60, 50, None)
    assert (fields["tx_id"], fields["found"], fields["snapshot"]) == (60, False, 50)
    assert fields["function"] is None
    assert reply_payloads(None) == (b"", b"")
