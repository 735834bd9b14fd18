"""Operations: what fits a record is encoded, everything else is refused by name, value and
index."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tallybus
from tallybus import (
    OPERATION_DTYPE,
    BatchResult,
    Deposit,
    Function,
    FunctionStatus,
    InvalidRequest,
    OperationBatch,
    Result,
    Status,
    Transfer,
    WaitLevel,
    Withdrawal,
    deposits,
    function_calls,
    transfers,
    withdrawals,
)
from tallybus.operations import encode_operation, encode_operations, status_of

U64 = st.integers(0, 2**64 - 1)
AMOUNTS = st.integers(1, 2**63 - 1)
I64 = st.integers(-(2**63), 2**63 - 1)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,31}", fullmatch=True)
OPERATIONS = st.one_of(
    st.builds(Deposit, U64, AMOUNTS, U64),
    st.builds(Withdrawal, U64, AMOUNTS, U64),
    st.builds(Transfer, U64, U64, AMOUNTS, U64),
    st.builds(Function, NAMES, st.lists(I64, max_size=8).map(tuple), U64),
)


def test_every_public_name_exists() -> None:
    for name in set(tallybus.__all__) - {"Ledger"}:
        assert hasattr(tallybus, name), name
    assert "Ledger" in dir(tallybus)
    with pytest.raises(AttributeError, match="nothing_like_that"):
        _ = tallybus.nothing_like_that


def test_a_transfer_is_these_bytes() -> None:
    record, names, params = encode_operation(Transfer(source=1, target=2, amount=300, user_ref=42))
    assert record.hex(" ", 8) == (
        "0300000000000000 2a00000000000000 0100000000000000 0200000000000000 2c01000000000000"
    )
    assert (names, params) == ((), b"")


@given(st.lists(OPERATIONS, min_size=1, max_size=20))
def test_a_batch_holds_every_field(operations: list[Any]) -> None:
    encoded = encode_operations(operations)
    assert encoded.records.dtype == OPERATION_DTYPE
    params = np.frombuffer(encoded.params, "<i8").reshape(-1, 8)
    calls = 0
    for operation, row in zip(operations, encoded.records, strict=True):
        assert (row["user_ref"], row["status"], row["entry_count"]) == (operation.user_ref, 0, 0)
        match operation:
            case Deposit(account, amount):
                assert (row["kind"], row["account"], row["amount"]) == (1, account, amount)
            case Withdrawal(account, amount):
                assert (row["kind"], row["account"], row["amount"]) == (2, account, amount)
            case Transfer(source, target, amount):
                assert (row["kind"], row["account"], row["counterparty"]) == (3, source, target)
                assert row["amount"] == amount
            case Function(name, values):
                assert (row["kind"], encoded.names[row["function"]]) == (4, name)
                assert params[calls].tolist() == [*values, *[0] * (8 - len(values))]
                calls += 1
    assert len(params) == calls
    assert len(set(encoded.names)) == len(encoded.names)


@given(OPERATIONS)
def test_one_operation_is_encoded_as_in_a_batch(operation: Any) -> None:
    encoded = encode_operations([operation])
    assert encode_operation(operation) == (
        encoded.records.tobytes(),
        encoded.names,
        encoded.params,
    )


def test_numpy_integers_are_integers() -> None:
    encoded = encode_operations([Deposit(np.uint64(2**64 - 1), np.int8(5))])  # type: ignore[arg-type]
    assert encoded.records["account"].tolist() == [2**64 - 1]
    assert encoded.records["amount"].tolist() == [5]


@pytest.mark.parametrize(
    ("operation", "field", "value"),
    [
        (Deposit(-1, 5), "account", -1),
        (Deposit(2**64, 5), "account", 2**64),
        (Deposit(1, -5), "amount", -5),
        (Deposit(1, 2**64), "amount", 2**64),
        (Deposit(1, 0), "amount", 0),
        (Deposit(1, np.uint64(2**63)), "amount", np.uint64(2**63)),  # type: ignore[arg-type]
        (Deposit(1, 5, -1), "user_ref", -1),
        (Deposit(True, 5), "account", True),
        (Deposit(1, 5.0), "amount", 5.0),  # type: ignore[arg-type]
        (Deposit(1, np.bool_(True)), "amount", np.bool_(True)),  # type: ignore[arg-type]
        (Deposit(1, "5"), "amount", "5"),  # type: ignore[arg-type]
        (Deposit(1, 1 << 20_000), "amount", 1 << 20_000),
        (Withdrawal(None, 5), "account", None),  # type: ignore[arg-type]
        (Transfer(-1, 2, 5), "source", -1),
        (Transfer(1, False, 5), "target", False),
        (Function("1st"), "name", "1st"),
        (Function("a" * 33), "name", "a" * 33),
        (Function("é"), "name", "é"),
        (Function("a\n"), "name", "a\n"),
        (Function(b"fee"), "name", b"fee"),  # type: ignore[arg-type]
        (Function("fee", tuple(range(9))), "params", tuple(range(9))),
        (Function("fee", (2**63,)), "params", 2**63),
        (Function("fee", (True,)), "params", True),
        (Function("fee", "12"), "params", "12"),  # type: ignore[arg-type]
        ("deposit", "operation", "deposit"),
    ],
    ids=lambda value: "case" if isinstance(value, int) else None,
)
def test_what_does_not_fit_is_refused(operation: Any, field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match="operation 1: ") as caught:
        encode_operations([Deposit(1, 1), operation])
    assert (caught.value.field, caught.value.value, caught.value.index) == (field, value, 1)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(InvalidRequest) as caught:
        encode_operation(operation)
    assert caught.value.index is None


@pytest.mark.parametrize("amount", [0, -1, 2**63, 2**64 - 1])
@pytest.mark.parametrize(
    "make",
    [
        lambda amount: Deposit(1, amount),
        lambda amount: Withdrawal(1, amount),
        lambda amount: Transfer(1, 2, amount),
    ],
)
def test_amounts_that_the_ledger_rejects_are_refused(
    make: Callable[[int], Any], amount: int
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_operations([Deposit(1, 1), make(amount)])
    assert (caught.value.field, caught.value.value, caught.value.index) == ("amount", amount, 1)
    with pytest.raises(InvalidRequest):
        encode_operation(make(amount))


@pytest.mark.parametrize("amount", [0, 2**63, 2**64 - 1])
def test_amounts_in_arrays_are_checked_as_well(amount: int) -> None:
    records = deposits([1, 2, 3], 1)
    records["amount"][1] = amount
    with pytest.raises(InvalidRequest) as caught:
        encode_operations(records)
    assert (caught.value.field, caught.value.value, caught.value.index) == ("amount", amount, 1)
    records["amount"][1] = 2**63 - 1
    assert encode_operations(records).records["amount"].tolist() == [1, 2**63 - 1, 1]
    # A call has no amount.
    batch = function_calls("fee", [[1, 2]])
    assert encode_operations(batch).records["amount"].tolist() == [0]
    mixed = OperationBatch(np.concatenate([batch.records, records]), ("fee",), batch.params)
    assert len(encode_operations(mixed).records) == 4
    mixed.records["amount"][3] = amount
    with pytest.raises(InvalidRequest, match="operation 3: amount"):
        encode_operations(mixed)


@pytest.mark.parametrize(
    "operations",
    [
        [],
        (),
        np.zeros(0, OPERATION_DTYPE),
        np.zeros((2, 2), OPERATION_DTYPE),
        np.zeros((), OPERATION_DTYPE),
        np.zeros(3, np.uint64),
        np.zeros(3, OPERATION_DTYPE.newbyteorder(">")),
        Deposit(1, 2),
        {Deposit(1, 2)},
        "deposits",
        None,
    ],
)
def test_what_is_no_batch_is_refused(operations: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        encode_operations(operations)
    assert caught.value.field == "operations"


def test_contiguous_arrays_are_taken_as_they_are_and_others_copied() -> None:
    records = deposits(np.arange(10), 5)
    assert encode_operations(records).records is records
    every_other = encode_operations(records[::2]).records
    assert every_other.flags.c_contiguous
    assert every_other["account"].tolist() == [0, 2, 4, 6, 8]


def test_columns_make_batches() -> None:
    batch = transfers([1, 2], np.array([3, 4], np.int32), 5, user_refs=range(7, 9))
    assert batch.dtype == OPERATION_DTYPE
    assert batch.tolist() == [(3, 0, 0, 0, 0, 7, 1, 3, 5), (3, 0, 0, 0, 0, 8, 2, 4, 5)]
    assert deposits(1, [2**64 - 1]).tolist() == [(1, 0, 0, 0, 0, 0, 1, 0, 2**64 - 1)]
    assert withdrawals(1, 2, 3).tolist() == [(2, 0, 0, 0, 0, 3, 1, 0, 2)]
    assert len(deposits([], [])) == 0


@pytest.mark.parametrize(
    ("accounts", "amounts", "field", "index"),
    [
        ([1, -2], 5, "accounts", 1),
        (np.array([4, -2]), 5, "accounts", 1),
        ([1, True], 5, "accounts", 1),
        ([1], [1.5], "amounts", 0),
        (np.array([1.0]), 5, "accounts", None),
        (np.array([True]), 5, "accounts", None),
        (["1"], 5, "accounts", 0),
        ("1", 5, "accounts", None),
        (None, 5, "accounts", None),
        ([1, 2, 3], [1, 2], None, None),
        (np.ones((2, 2), int), 5, None, None),
    ],
)
def test_columns_that_are_no_integers_or_do_not_fit_are_refused(
    accounts: Any, amounts: Any, field: str | None, index: int | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        deposits(accounts, amounts)
    assert (caught.value.field, caught.value.index) == (field, index)


def test_results_of_a_batch_are_a_sequence() -> None:
    result = BatchResult(
        10,
        None,
        np.array([0, 1, 7, 200], np.uint8),
        WaitLevel.COMMITTED,
        np.array([0, 0, 4, 0], np.uint64),
    )
    assert list(result) == [result[i] for i in range(4)]
    assert list(result) == [
        Result(10, Status.NONE, WaitLevel.COMMITTED),
        Result(11, Status.INSUFFICIENT_FUNDS, WaitLevel.COMMITTED),
        Result(4, Status.DUPLICATE, WaitLevel.COMMITTED, 4, Status.OK),
        Result(13, 200, WaitLevel.COMMITTED),
    ]
    assert result[1:3] == [result[1], result[2]]
    assert result[-1].tx_id == 13
    assert result.tx_ids.dtype == np.uint64
    assert (result.ok_count, result.failed_count, len(result)) == (1, 3, 4)
    assert [r.ok for r in result] == [True, False, False, False]
    assert repr(result) == ("BatchResult(first_tx_id=10, count=4, level=COMMITTED, failed_count=3)")
    with pytest.raises(IndexError):
        _ = result[4]


def test_nothing_is_called_ok_before_it_is_computed() -> None:
    assert not Result(1, Status.NONE, WaitLevel.NONE).ok
    unknown = BatchResult(1, None, np.zeros(2, np.uint8), WaitLevel.NONE, np.zeros(2, np.uint64))
    assert (unknown.ok_count, unknown.failed_count) == (0, 0)


def test_ids_up_to_the_largest_are_exact() -> None:
    last = 2**64 - 1
    result = BatchResult(last - 1, None, np.zeros(2, "u1"), WaitLevel.COMPUTED, np.zeros(2, "u8"))
    assert result.tx_ids.tolist() == [last - 1, last]


def test_statuses_without_a_name_stay_numbers() -> None:
    assert status_of(7) is Status.DUPLICATE
    assert (status_of(128), type(status_of(128))) == (128, FunctionStatus)
    assert type(status_of(12)) is FunctionStatus
