"""Batches from bytes or arrays, checked."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tallybus.common.batch import Batch, InvalidBatch
from tallybus.common.buffers import EMPTY, Buffer
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE

Array = npt.NDArray[Any]


def batch_of(
    first_id: int,
    records: Buffer | Array,
    links: Buffer | Array = EMPTY,
    params: Buffer | Array = EMPTY,
    entries: Buffer | Array = EMPTY,
    *,
    term: int = 0,
    timestamp_ns: int = 0,
    gateway: int = 0,
    request: int = 0,
) -> Batch:
    """Views of these parts, checked against one another. Raises InvalidBatch."""
    batch = Batch(
        first_id,
        _view(records, RECORD_DTYPE, "records"),
        _view(links, np.dtype("<u8"), "links"),
        _view(params, np.dtype("<i8"), "params"),
        _view(entries, ENTRY_DTYPE, "entries"),
        term,
        timestamp_ns,
        gateway,
        request,
    )
    batch.check()
    return batch


def _view(given: Buffer | Array, dtype: np.dtype[Any], name: str) -> Array:
    if isinstance(given, np.ndarray):
        array: Array = given
        if array.dtype != dtype:
            array = np.ascontiguousarray(array).view(np.uint8)
        if array.ndim != 1 or not array.flags.c_contiguous:
            array = np.ascontiguousarray(array).reshape(-1)
        if array.dtype == dtype:
            return array
    else:
        flat = memoryview(given)
        if not flat.nbytes:
            return np.empty(0, dtype)
        array = np.frombuffer(flat, np.uint8)
    if array.nbytes % dtype.itemsize:
        raise InvalidBatch(
            f"{name} are {array.nbytes} bytes, which is no multiple of {dtype.itemsize}"
        )
    return array.view(dtype)
