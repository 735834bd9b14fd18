"""The parts of a batch as a block carries them: records and what belongs to single records.

Which links, parameters and entries belong to which record follows from the records before it alone,
so a payload can be checked and cut anywhere. No I/O, and nothing is copied.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Status

MAX_COUNT: Final = 2**32 - 1
"""Records in one block."""
MAX_FUNCTION_PARAMS: Final = 8
MAX_NAME_WORDS: Final = 2**16
"""Bound on the parameter words of one registration record; keeps the sums far from overflow."""


Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview | Array


class InvalidPayload(ValueError):
    """The parts of a batch do not fit together: the caller's mistake, not the disk's."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"payload cannot be logged: {reason}")
        self.reason = reason


class Payload(NamedTuple):
    """The parts of one batch, in the order of the block. Arrays are read only by convention.

    records RECORD_DTYPE[n]; links u64, one per DUPLICATE record; params i64, `amount` words per
    FUNCTION and FUNCTION_REGISTERED record; entries ENTRY_DTYPE, `entry_count` per FUNCTION record
    with status 0.
    """

    records: Array
    links: Array
    params: Array
    entries: Array

    @property
    def byte_length(self) -> int:
        return self.records.nbytes + self.links.nbytes + self.params.nbytes + self.entries.nbytes

    def buffers(self) -> list[memoryview]:
        """The non-empty parts as flat bytes, without copying."""
        return [part.view(np.uint8).data for part in self if part.size]

    def split(self, count: int) -> tuple[Payload, Payload]:
        """Cut after the first `count` transactions; nothing is copied."""
        extras = count_extras(self.records[:count])
        return (
            Payload(
                self.records[:count],
                self.links[: extras.links],
                self.params[: extras.params],
                self.entries[: extras.entries],
            ),
            Payload(
                self.records[count:],
                self.links[extras.links :],
                self.params[extras.params :],
                self.entries[extras.entries :],
            ),
        )

    def slice(self, start: int, stop: int) -> Payload:
        """The transactions start..stop-1 (counted from 0) with all that belongs to them."""
        part = self
        if stop < len(part.records):
            part = part.split(stop)[0]
        if start > 0:
            part = part.split(start)[1]
        return part


EMPTY_PAYLOAD: Final = Payload(
    np.empty(0, RECORD_DTYPE), np.empty(0, "<u8"), np.empty(0, "<i8"), np.empty(0, ENTRY_DTYPE)
)


class ExtraCounts(NamedTuple):
    """How many links, parameter words and entries a run of records owns."""

    links: int
    params: int
    entries: int


# Of the columns' own type: a plain number would have the whole column converted first.
_DUPLICATE: Final = np.uint8(Status.DUPLICATE)
_FUNCTION: Final = np.uint8(Kind.FUNCTION)


def count_extras(records: Array) -> ExtraCounts:
    """What follows these records in a block. Raises InvalidPayload on an impossible claim."""
    if not len(records):
        return ExtraCounts(0, 0, 0)
    kinds = records["kind"]
    statuses = records["status"]
    links = int(np.count_nonzero(statuses == _DUPLICATE))
    params = 0
    entries = 0
    if (kinds >= _FUNCTION).any():
        is_function = kinds == Kind.FUNCTION
        for owns, limit in (
            (is_function, MAX_FUNCTION_PARAMS),
            (kinds == Kind.FUNCTION_REGISTERED, MAX_NAME_WORDS),
        ):
            words = records["amount"][owns]
            if words.size:
                if int(words.max()) > limit:
                    raise InvalidPayload(
                        f"a record claims {int(words.max())} parameter words, the limit is {limit}"
                    )
                params += int(words.sum(dtype=np.uint64))
        succeeded = is_function & (statuses == Status.NONE)
        entries = int(records["entry_count"][succeeded].sum(dtype=np.uint64))
    return ExtraCounts(links, params, entries)


def _as_array(buffer: Buffer, dtype: npt.DTypeLike, name: str) -> Array:
    wanted = np.dtype(dtype)
    if isinstance(buffer, np.ndarray):
        array: Array = buffer
        if array.dtype != wanted:
            array = np.ascontiguousarray(array).view(np.uint8)
        if array.ndim != 1 or not array.flags.c_contiguous:
            array = np.ascontiguousarray(array).reshape(-1)
        if array.dtype == wanted:
            return array
    else:
        flat = memoryview(buffer)
        if not flat.nbytes:
            return np.empty(0, wanted)
        array = np.frombuffer(flat, np.uint8)
    if array.nbytes % wanted.itemsize:
        raise InvalidPayload(
            f"{name} are {array.nbytes} bytes, which is no multiple of {wanted.itemsize}"
        )
    return array.view(wanted)


def make_payload(
    records: Buffer, links: Buffer = b"", params: Buffer = b"", entries: Buffer = b""
) -> Payload:
    """Views of the given buffers, checked against one another.

    Raises InvalidPayload when a length is no multiple of its item size, or when links, params or
    entries are not exactly those that the records call for.
    """
    payload = Payload(
        _as_array(records, RECORD_DTYPE, "records"),
        _as_array(links, "<u8", "links"),
        _as_array(params, "<i8", "params"),
        _as_array(entries, ENTRY_DTYPE, "entries"),
    )
    if len(payload.records) > MAX_COUNT:
        raise InvalidPayload(f"{len(payload.records)} records, a block holds {MAX_COUNT}")
    wanted = count_extras(payload.records)
    given = ExtraCounts(len(payload.links), len(payload.params), len(payload.entries))
    if given != wanted:
        raise InvalidPayload(f"the records call for {wanted}, given were {given}")
    return payload


def segment_of(transaction_id: int, transactions_per_segment: int) -> int:
    """Number of the segment (from 1) that holds this id (from 1)."""
    return (transaction_id - 1) // transactions_per_segment + 1


class Part(NamedTuple):
    """One block's share of a batch; after it the segment is full, or not."""

    payload: Payload
    fills_segment: bool


def split_at_segments(payload: Payload, first_id: int, transactions_per_segment: int) -> list[Part]:
    """A batch cut where its ids pass from one segment to the next, in order, nothing copied."""
    parts: list[Part] = []
    rest = payload
    next_id = first_id
    while True:
        end = segment_of(next_id, transactions_per_segment) * transactions_per_segment
        room = end - next_id + 1
        if len(rest.records) <= room:
            parts.append(Part(rest, len(rest.records) == room))
            return parts
        head, rest = rest.split(room)
        parts.append(Part(head, True))
        next_id = end + 1
