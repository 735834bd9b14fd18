"""Function calls as arrays: what fits is encoded, everything else is refused by field and index."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus import (
    OPERATION_DTYPE,
    Function,
    InvalidRequest,
    OperationBatch,
    deposits,
    function_calls,
)
from tallybus.operations import encode_operations

I64 = st.integers(-(2**63), 2**63 - 1)
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,31}", fullmatch=True)


def as_bytes(batch: OperationBatch | list[Any]) -> tuple[bytes, tuple[str, ...], bytes]:
    encoded = encode_operations(batch)
    params = encoded.params
    return (
        encoded.records.tobytes(),
        encoded.names,
        params if isinstance(params, bytes) else params.tobytes(),
    )


@given(st.integers(1, 8), st.data())
def test_an_array_of_calls_is_encoded_like_the_calls_one_by_one(
    width: int, data: st.DataObject
) -> None:
    known = data.draw(st.lists(NAMES, min_size=1, max_size=3))
    calls = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(known),
                st.lists(I64, min_size=width, max_size=width),
                st.integers(0, 2**64 - 1),
            ),
            min_size=1,
            max_size=8,
        )
    )
    names, params, refs = (list(column) for column in zip(*calls, strict=True))
    expected = as_bytes([Function(name, tuple(row), ref) for name, row, ref in calls])
    assert as_bytes(function_calls(names, params, refs)) == expected
    array = np.array(params, np.int64)
    assert as_bytes(function_calls(names, array, np.array(refs, np.uint64))) == expected


def test_one_name_and_one_reference_serve_all_calls() -> None:
    calls = function_calls("fee", [[1, 2], [3, 4]], 7)
    assert (len(calls), calls.names) == (2, ("fee",))
    assert calls.records["user_ref"].tolist() == [7, 7]
    assert calls.params.tolist() == [[1, 2, *[0] * 6], [3, 4, *[0] * 6]]
    assert function_calls("fee", [[]]).params.tolist() == [[0] * 8]


def test_parameters_are_copied() -> None:
    params = np.zeros((2, 8), np.int64)
    calls = function_calls("fee", params)
    params[:] = 5
    assert not calls.params.any()


def test_narrow_rows_and_other_integers_are_taken() -> None:
    calls = function_calls("fee", [[1, 2]])
    for dtype in (np.int8, np.uint16, np.uint64, ">i8"):
        batch = OperationBatch(calls.records, ["fee"], np.array([[1, 2]], dtype))
        assert as_bytes(batch) == as_bytes(calls)
    turned = np.zeros((8, 1), np.int64)
    turned[:2, 0] = 1, 2
    assert as_bytes(OperationBatch(calls.records, ["fee"], turned.T)) == as_bytes(calls)
    every_second = np.repeat(calls.records, 2)[::2]
    assert as_bytes(OperationBatch(every_second, ["fee"], calls.params)) == as_bytes(calls)


@pytest.mark.parametrize(
    ("call", "field", "index"),
    [
        (lambda: function_calls("1st", [[1]]), "name", None),
        (lambda: function_calls(["fee", "é"], [[1], [2]]), "name", 1),
        (lambda: function_calls(["fee", ["x"]], [[1], [2]]), "name", 1),  # type: ignore[list-item]
        (lambda: function_calls(["fee"], [[1], [2]]), "names", None),
        (lambda: function_calls(5, [[1]]), "names", None),  # type: ignore[arg-type]
        (lambda: function_calls("fee", [[0] * 9]), "params", None),
        (lambda: function_calls("fee", np.zeros((2, 9), np.int64)), "params", None),
        (lambda: function_calls("fee", []), "params", None),
        (lambda: function_calls("fee", [1, 2]), "params", None),
        (lambda: function_calls("fee", 5), "params", None),
        (lambda: function_calls("fee", np.zeros(2, np.int64)), "params", None),
        (lambda: function_calls("fee", np.zeros((1, 2))), "params", None),
        (lambda: function_calls("fee", [[1], [2, 3]]), "params", 1),
        (lambda: function_calls("fee", [[1], [True]]), "params", 1),
        (lambda: function_calls("fee", [[1], [1.0]]), "params", 1),
        (lambda: function_calls("fee", [[1], [2**63]]), "params", 1),
        (lambda: function_calls("fee", np.array([[1], [2**63]], np.uint64)), "params", 1),
        (lambda: function_calls("fee", [[1], [2]], [1, 2, 3]), "user_refs", None),
        (lambda: function_calls("fee", [[1], [2]], [1]), "user_refs", None),
        (lambda: function_calls("fee", [[1], [2]], [1, -1]), "user_refs", 1),
    ],
)
def test_what_is_no_call_is_refused(call: Callable[[], Any], field: str, index: int | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call()
    assert (caught.value.field, caught.value.index) == (field, index)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"names": ()}, "function"),
        ({"names": "fee"}, "names"),
        ({"names": ["fee", "a b"]}, "name"),
        ({"params": np.zeros((1, 8), np.int64)}, "params"),
        ({"params": np.zeros((3, 8), np.int64)}, "params"),
        ({"params": np.zeros((0, 8), np.int64)}, "params"),
        ({"params": np.zeros((2, 9), np.int64)}, "params"),
        ({"params": np.zeros((2, 8))}, "params"),
        ({"records": deposits([1, 2], 5)}, "params"),
        ({"records": np.zeros(0, OPERATION_DTYPE)}, "operations"),
        ({"records": np.zeros(2)}, "operations"),
        ({"records": [Function("fee")]}, "operations"),
    ],
)
def test_a_batch_whose_parts_do_not_fit_is_refused(change: dict[str, Any], field: str) -> None:
    good = function_calls("fee", [[1], [2]])
    parts = {"records": good.records, "names": good.names, "params": good.params}
    with pytest.raises(InvalidRequest) as caught:
        encode_operations(OperationBatch(**parts | change))
    assert caught.value.field == field


def test_a_call_of_a_name_that_is_not_there_is_refused_among_others() -> None:
    good = function_calls(["fee", "other"], [[1], [2]])
    records = np.concatenate([deposits([1, 2], 5), good.records])
    assert len(encode_operations(OperationBatch(records, good.names, good.params)).records) == 4
    records["function"][3] = 2
    with pytest.raises(InvalidRequest) as caught:
        encode_operations(OperationBatch(records, good.names, good.params))
    assert (caught.value.field, caught.value.value, caught.value.index) == ("function", 2, 3)
