"""Checks of the integers that callers hand in.

Raises InvalidRequest with the field, the value and the index in a batch. No I/O.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tallybus.common.record import MAX_I64, MAX_U64, MIN_I64
from tallybus.errors import InvalidRequest


def check_int(
    value: object, field: str, low: int = 0, high: int = MAX_U64, index: int | None = None
) -> int:
    """`value` as an int if it is an integer (bool is none) in low..high, else raises
    InvalidRequest.
    """
    if type(value) is int:
        number = value
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        number = int(value)
    else:
        raise InvalidRequest(
            f"{place(index)}{field} must be an int, not {type(value).__name__}",
            field=field,
            value=value,
            index=index,
        )
    if not low <= number <= high:
        raise InvalidRequest(
            f"{place(index)}{field} must be in {low}..{high}, not {_digits(number)}",
            field=field,
            value=value,
            index=index,
        )
    return number


def u64_array(values: ArrayLike, field: str) -> NDArray[np.uint64]:
    """`values` as u64 of any shape; raises InvalidRequest for other than integers in 0..2^64-1.

    An array that is u64 already is returned as it is.
    """
    if not isinstance(values, np.ndarray):
        return _u64_from_python(values, field)
    if values.dtype.kind not in "ui":
        raise InvalidRequest(
            f"{field} must be an array of integers, not of {values.dtype}",
            field=field,
            value=values,
        )
    if values.dtype.kind == "i" and values.size and int(values.min()) < 0:
        index = int(np.argmin(values))
        raise InvalidRequest(
            f"{field} must be in 0..{MAX_U64}; the one at index {index} is {values.min()}",
            field=field,
            value=int(values.min()),
            index=index,
        )
    return values.astype("<u8", copy=False)


def _u64_from_python(values: Any, field: str) -> NDArray[np.uint64]:
    if isinstance(values, (int, np.integer)):
        return np.array(check_int(values, field), "<u8")
    if isinstance(values, (str, bytes)):
        raise InvalidRequest(f"{field} must hold integers, not text", field=field, value=values)
    try:
        numbers = list(values)
    except TypeError as error:
        raise InvalidRequest(
            f"{field} must be an int or a sequence of ints, not {type(values).__name__}",
            field=field,
            value=values,
        ) from error
    # One by one: numpy would take True for 1 and 1.5 for 1, and turn large integers into floats.
    return np.array([check_int(v, field, index=i) for i, v in enumerate(numbers)], "<u8")


def i64_rows(values: ArrayLike, field: str) -> NDArray[np.int64]:
    """`values` as i64 of shape (n, k); raises InvalidRequest for other than n rows of k integers.

    An array that is i64 already is returned as it is. `index` of the error is the row.
    """
    array = values if isinstance(values, np.ndarray) else _rows_from_python(values, field)
    if array.ndim != 2 or not len(array):
        raise InvalidRequest(
            f"{field} must have the shape (n, k) with n of at least 1, not {array.shape}",
            field=field,
            value=values,
        )
    if array.dtype.kind not in "ui":
        raise InvalidRequest(
            f"{field} must be an array of integers, not of {array.dtype}",
            field=field,
            value=values,
        )
    if array.dtype.kind == "u" and array.size and int(array.max()) > MAX_I64:
        index = int(array.argmax()) // array.shape[1]
        raise InvalidRequest(
            f"{place(index)}{field} must be in {MIN_I64}..{MAX_I64}, not {array.max()}",
            field=field,
            value=int(array.max()),
            index=index,
        )
    return array.astype("<i8", copy=False)


def _rows_from_python(values: Any, field: str) -> NDArray[np.int64]:
    try:
        rows = [list(row) for row in values]
    except TypeError as error:
        raise InvalidRequest(
            f"{field} must be a sequence of rows of ints", field=field, value=values
        ) from error
    width = len(rows[0]) if rows else 0
    for index, row in enumerate(rows):
        if len(row) != width:
            raise InvalidRequest(
                f"{place(index)}{field} has {len(row)} values, the row before it {width}",
                field=field,
                value=row,
                index=index,
            )
        # One by one, as for u64.
        rows[index] = [check_int(value, field, MIN_I64, MAX_I64, index) for value in row]
    return np.array(rows, "<i8").reshape(len(rows), width)


def place(index: int | None) -> str:
    """Opening words of a message about the operation at `index` of a batch."""
    return "" if index is None else f"operation {index}: "


def _digits(number: int) -> str:
    # Python refuses to print integers of thousands of digits.
    return str(number) if -(2**128) < number < 2**128 else f"a number of {number.bit_length()} bits"
