"""Calls of functions in CSV files, among built-in rows and alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.functions.names import MAX_NAME_BYTES
from tallybus.common.record import Kind
from tallybus.csv.functions import BATCH_NAMES
from tallybus.csv.importing import CHUNK_ROWS, ParsedCsv, derived_refs
from tallybus.operations import (
    Deposit,
    EncodedOperations,
    Function,
    Operation,
    Transfer,
    Withdrawal,
    encode_operations,
)
from tallybus.services.gateway.clients import protocol
from tests.unit.tallybus.csv.files import digest_of, parse, place, refused

CALLS = "kind,account,amount,counterparty,user_ref,function,params\n"


def batches(parsed: ParsedCsv, batch: int, from_row: int = 1) -> list[EncodedOperations]:
    """What the client makes of the batches: all of its checks are passed."""
    return [encode_operations(each) for each in parsed.batches(batch, from_row)]


def operations(parsed: ParsedCsv, batch: int, from_row: int = 1) -> list[Operation]:
    """The rows as operations, from the encoded batches."""
    found: list[Operation] = []
    for encoded in batches(parsed, batch, from_row):
        params = np.frombuffer(encoded.params, "<i8").reshape(-1, 8).tolist()
        assert len(params) == np.count_nonzero(encoded.records["kind"] == Kind.FUNCTION)
        for record in encoded.records.tolist():
            kind, status, entries, reason, function, ref, account, counterparty, amount = record
            assert (status, entries, reason) == (0, 0, 0)
            match Kind(kind):
                case Kind.DEPOSIT:
                    found.append(Deposit(account, amount, ref))
                case Kind.WITHDRAWAL:
                    found.append(Withdrawal(account, amount, ref))
                case Kind.TRANSFER:
                    found.append(Transfer(account, counterparty, amount, ref))
                case Kind.FUNCTION:
                    assert (account, counterparty, amount) == (0, 0, 0)
                    found.append(Function(encoded.names[function], tuple(params.pop(0)), ref))
        assert not params
    return found


def full(params: tuple[int, ...]) -> tuple[int, ...]:
    return params + (0,) * (8 - len(params))


def as_row(operation: Operation) -> str:
    match operation:
        case Deposit(account, amount, ref):
            return f"deposit,{account},{amount},,{ref},,\n"
        case Withdrawal(account, amount, ref):
            return f"withdrawal,{account},{amount},,{ref},,\n"
        case Transfer(source, target, amount, ref):
            return f"transfer,{source},{amount},{target},{ref},,\n"
        case Function(name, params, ref):
            return f"function,,,,{ref},{name},{' '.join(map(str, params))}\n"


@pytest.mark.parametrize("batch", [1, 2, 3, CHUNK_ROWS])
def test_calls_stand_among_built_in_rows_in_file_order(batch: int) -> None:
    text = CALLS + (
        "deposit,1,100,,1,,\n"
        "function,,,,2,fee,1 2 -3\n"
        "transfer,1,5,2,3,,\n"
        "withdrawal,1,5,0,4,,\n"
        f"function,,,,5,Other_1,{2**63 - 1} {-(2**63)} 0 4 5 6 7 8\n"
        "function,,,,6,fee,\n"
        "function,,,,7,fee,  -0  007 \n"
    )
    assert operations(parse(text), batch) == [
        Deposit(1, 100, 1),
        Function("fee", full((1, 2, -3)), 2),
        Transfer(1, 2, 5, 3),
        Withdrawal(1, 5, 4),
        Function("Other_1", (2**63 - 1, -(2**63), 0, 4, 5, 6, 7, 8), 5),
        Function("fee", full(()), 6),
        Function("fee", full((0, 7)), 7),
    ]


def test_a_file_of_calls_alone_needs_no_params_and_no_counterparty() -> None:
    text = "kind,account,amount,function\nfunction,,,f\nfunction,,,g\n"
    parsed = parse(text)
    refs = derived_refs(digest_of(text), np.array([1, 2], np.uint64)).tolist()
    assert operations(parsed, 10) == [
        Function("f", full(()), refs[0]),
        Function("g", full(()), refs[1]),
    ]


def test_call_columns_that_are_empty_change_nothing() -> None:
    (batch,) = parse(CALLS + "deposit,1,2,,9,,\n").batches(10)
    assert isinstance(batch, np.ndarray)
    assert batch.tolist() == [(1, 0, 0, 0, 0, 9, 1, 0, 2)]


def test_leading_zeros_of_calls_do_not_matter() -> None:
    zeros = "0" * 5_000
    text = CALLS + f"function,,,,{zeros}9,f,-{zeros}1 {zeros}2 {zeros}\n"
    assert operations(parse(text), 1) == [Function("f", full((-1, 2)), 9)]


@pytest.mark.parametrize(
    ("row", "column", "name", "words"),
    [
        ("function,1,,,,f,", 2, "account", "a call has no account"),
        ("function,0,,,,f,", 2, "account", "a call has no account"),
        ("function,,1,,,f,", 3, "amount", "a call has no amount"),
        ("function,,,1,,f,", 4, "counterparty", "a call has no counterparty"),
        ("function,,,,-1,f,", 5, "user_ref", "negative"),
        (f"function,,,,{2**64},f,", 5, "user_ref", "more than"),
        ("function,,,,,,1", 6, "function", "needs the name"),
        ("function,,,,,1f,", 6, "function", '"1f" is no name of a function: 1 to 32 ASCII'),
        ("function,,,,,f ,", 6, "function", "is no name"),
        ("function,,,,,fé,", 6, "function", "is no name"),
        (f"function,,,,,{'f' * 33},", 6, "function", "is no name"),
        ("function,,,,,f,1 2 3 4 5 6 7 8 9", 7, "params", "9 parameters; a function takes up to 8"),
        (f"function,,,,,f,1 {2**63}", 7, "params", f'"{2**63}" is not in {-(2**63)}..{2**63 - 1}'),
        (f"function,,,,,f,{-(2**63) - 1}", 7, "params", "is not in"),
        (f"function,,,,,f,-{'9' * 5_000}", 7, "params", "is not in"),
        ("function,,,,,f,1;2", 7, "params", "separated by spaces"),
        ("function,,,,,f,1\t2", 7, "params", "separated by spaces"),
        ("function,,,,,f,-", 7, "params", '"-" is not a whole number'),
        ("function,,,,,f,--1", 7, "params", "not a whole number"),
        ("function,,,,,f,+1", 7, "params", "not a whole number"),
        ("function,,,,,f,1_0", 7, "params", "not a whole number"),
        ("function,,,,,f,1.5", 7, "params", "not a whole number"),
        ("function,,,,,f,٣", 7, "params", "not a whole number"),
        ("function,,,,,f", 7, "params", "ends after 6 of 7 fields"),
        ("function,,,,,f,1,2", 8, None, "8 fields"),
        ("deposit,1,1,,,f,", 6, "function", "a deposit has no function"),
        ("transfer,1,1,2,,,0", 7, "params", "a transfer has no params"),
        ("deposit,,1,,,,", 2, "account", "empty"),
        ("Function,,,,,f,", 1, "kind", "none of"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, CHUNK_ROWS // 2])
@pytest.mark.parametrize("later", ["", "function,,,,,1f,x\n", "deposit,1,0,,,,\n"])
def test_a_wrong_row_is_refused_among_calls(
    before: int, later: str, row: str, column: int, name: str | None, words: str
) -> None:
    good = "function,,,,,f,1\ndeposit,1,1,,,,\n"
    error = refused(CALLS + good * before + row + "\n" + later)
    assert place(error) == (2 * before + 2, column, name)
    assert words in error.reason
    assert "\n" not in str(error)
    assert len(str(error)) < 250


def test_the_same_user_ref_of_a_call_and_a_deposit_is_refused() -> None:
    error = refused(CALLS + "function,,,,5,f,\nfunction,,,,6,f,\ndeposit,1,1,,5,,\n")
    assert (place(error), error.first_line) == ((4, 5, "user_ref"), 2)


def test_batches_of_calls_may_start_later_and_cross_no_chunk() -> None:
    made: list[Operation] = []
    for ref in range(1, CHUNK_ROWS + 2_000):
        params = full((ref, -ref))
        made.append(Function(f"f{ref % 7}", params, ref) if ref % 3 else Deposit(ref, 1, ref))
    parsed = parse(CALLS + "".join(map(as_row, made)))
    for start in (1, 2, 3, 5_001, CHUNK_ROWS, CHUNK_ROWS + 1, len(made)):
        assert operations(parsed, 5_000, start) == made[start - 1 :]


def test_a_batch_names_only_the_functions_that_it_calls() -> None:
    text = CALLS + "".join(f"function,,,,,f{row},\n" for row in range(10)) + "deposit,1,1,,,,\n"
    names = [encoded.names for encoded in batches(parse(text), 4)]
    assert [sorted(each) for each in names] == [
        ["f0", "f1", "f2", "f3"],
        ["f4", "f5", "f6", "f7"],
        ["f8", "f9"],
    ]


def test_a_batch_has_no_more_names_than_a_gateway_takes() -> None:
    assert BATCH_NAMES <= protocol.MAX_NAMES
    assert BATCH_NAMES * MAX_NAME_BYTES <= protocol.MAX_NAMES_BYTES
    made: list[Operation] = [
        Function(f"{row:x>32}", full((row,)), row) for row in range(1, 3 * BATCH_NAMES)
    ]
    parsed = parse(CALLS + "".join(map(as_row, made)))
    assert max(len(encoded.names) for encoded in batches(parsed, CHUNK_ROWS)) <= BATCH_NAMES
    assert operations(parsed, CHUNK_ROWS) == made


def test_batches_stay_as_they_are_when_others_are_made() -> None:
    made: list[Operation] = [Function(f"f{row}", full((row,)), row) for row in range(1, 10)]
    parsed = parse(CALLS + "".join(map(as_row, made)))
    held = list(parsed.batches(9))
    before = [encode_operations(each).records.tobytes() for each in held]
    assert len(list(parsed.batches(2))) == 5
    assert [encode_operations(each).records.tobytes() for each in held] == before


ACCOUNT = st.integers(1, 2**64 - 1)


AMOUNT = st.integers(1, 2**63 - 1)


OPERATION = st.one_of(
    st.builds(Deposit, ACCOUNT, AMOUNT),
    st.builds(Withdrawal, ACCOUNT, AMOUNT),
    st.builds(Transfer, ACCOUNT, ACCOUNT, AMOUNT),
    st.builds(
        Function,
        st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,31}", fullmatch=True),
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=8).map(tuple),
    ),
)


@given(st.lists(OPERATION, max_size=12), st.integers(1, 12), st.integers(1, 12))
def test_written_operations_are_read_again(made: list[Operation], batch: int, start: int) -> None:
    made = [replace(each, user_ref=ref) for ref, each in enumerate(made, 1)]
    parsed = parse(CALLS + "".join(map(as_row, made)))
    assert operations(parsed, batch, start) == made[start - 1 :]
