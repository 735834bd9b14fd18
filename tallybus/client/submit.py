"""Submits of one and of many operations: their frames, and what their replies mean.

Pure functions over bytes, a part of the codec. They also read the answer to a submit that had to be
sent again: what the lost sending executed comes back as DUPLICATE, and the caller gets the outcome
of that execution instead. Registrations of functions are answered in the same way, see
`registration`.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tallybus.client.codec import (
    Header,
    Payload,
    Request,
    bad_field,
    check_frames,
    check_size,
    level_field,
    u64_field,
)
from tallybus.common.record import (
    FAILURE_DTYPE,
    FAILURE_SIZE,
    MAX_U64,
    REASON_MASK,
    RECORD_DTYPE,
    Level,
    Status,
    reason_of,
    status_of,
)
from tallybus.errors import ProtocolError
from tallybus.operations import BatchResult, Result

T = TypeVar("T")
_FAILURE: Final = struct.Struct("<IBBBBQ")


class _Submit(Request[T]):
    """What submits of one and of many operations share."""

    __slots__ = ("count", "level", "names", "params")
    op = "submit"
    reads = False
    count: int
    level: Level

    def __init__(self, count: int, level: Level, names: Sequence[str], params: Payload) -> None:
        self.count = count
        self.level = level
        self.names = names
        self.params = params

    def fields(self) -> Header:
        fields: Header = {"wait": int(self.level), "count": self.count}
        if self.names:
            fields["names"] = list(self.names)
        return fields

    def fields_again(self) -> Header:
        # Only an answer with outcomes tells which transactions the lost sending has become.
        return self.fields() | {"wait": int(max(self.level, Level.COMPUTED))}

    @abstractmethod
    def records(self) -> Payload:
        """The payload frame with the records."""

    def payload(self) -> Sequence[Payload]:
        return (self.records(), self.params) if len(self.params) else (self.records(),)


class SubmitOne(_Submit[Result]):
    """Submits one operation: `record` is its 40 bytes."""

    __slots__ = ("record",)

    def __init__(
        self, record: bytes, level: Level, names: Sequence[str] = (), params: bytes = b""
    ) -> None:
        super().__init__(1, level, names, params)
        self.record = record

    def records(self) -> Payload:
        return self.record

    def resendable(self) -> bool:
        return self.record[8:16] != bytes(8)

    def decode(self, header: Header, payload: Sequence[bytes]) -> Result:
        return read_result(header, payload, self.level, again=False)

    def decode_again(self, header: Header, payload: Sequence[bytes]) -> Result:
        return read_result(header, payload, self.level, again=True)


class SubmitBatch(_Submit[BatchResult]):
    """Submits n operations: `frame` has their records, n * 40 bytes, `params` 64 bytes per call."""

    __slots__ = ("frame",)

    def __init__(
        self,
        frame: Payload,
        count: int,
        level: Level,
        names: Sequence[str] = (),
        params: Payload = b"",
    ) -> None:
        super().__init__(count, level, names, params)
        self.frame = frame

    def records(self) -> Payload:
        return self.frame

    def resendable(self) -> bool:
        return bool(self._user_refs().all())

    def _user_refs(self) -> NDArray[np.uint64]:
        refs: NDArray[np.uint64] = np.frombuffer(self.frame, RECORD_DTYPE)["user_ref"]
        return refs

    def decode(self, header: Header, payload: Sequence[bytes]) -> BatchResult:
        return self._result(header, payload, again=False)

    def decode_again(self, header: Header, payload: Sequence[bytes]) -> BatchResult:
        return self._result(header, payload, again=True)

    def _result(self, header: Header, payload: Sequence[bytes], again: bool) -> BatchResult:
        first, level, failures = read_submitted(header, payload, self.count, self.level)
        result = BatchResult(
            first,
            None,
            np.zeros(self.count, np.uint8),
            level,
            np.zeros(self.count, np.uint64),
        )
        if failures:
            self._apply(failures, first, result, again)
        return result

    def _apply(self, failures: bytes, first: int, result: BatchResult, again: bool) -> None:
        rows = np.frombuffer(failures, FAILURE_DTYPE)
        offsets, codes, links = rows["offset"], rows["status"], rows["duplicate_of"]
        duplicates = codes == Status.DUPLICATE
        if not codes.all() or int(offsets[-1]) >= self.count or (offsets[1:] <= offsets[:-1]).any():
            raise ProtocolError("the gateway sent failures that are out of order or out of range")
        if (
            ((links != 0) != duplicates).any()
            or (links >= offsets + np.uint64(first)).any()
            or (rows["original_status"][~duplicates] != 0).any()
            or (rows["original_status"] == Status.DUPLICATE).any()
        ):
            raise ProtocolError("the gateway sent failures with impossible links of duplicates")
        statuses = result.statuses
        statuses[offsets] = codes
        if rows["reason"].any():
            result.reasons[offsets] = rows["reason"] & np.uint8(REASON_MASK)
        offsets, links = offsets[duplicates], links[duplicates]
        result.duplicate_of[offsets] = links
        if len(offsets):
            result.original_statuses[offsets] = rows["original_status"][duplicates]
        if again and len(offsets):
            # Executed by an earlier sending of this very batch: report that execution. An operation
            # that repeats a reference of an earlier one in the batch was a duplicate then as well.
            _, first_uses = np.unique(self._user_refs(), return_index=True)
            is_first = np.zeros(self.count, np.bool_)
            is_first[first_uses] = True
            ours = is_first[offsets]
            statuses[offsets[ours]] = rows["original_status"][duplicates][ours]


def read_submitted(
    header: Header, payload: Sequence[bytes], sent: int, asked: Level
) -> tuple[int, Level, bytes]:
    """First id, level and failures of the reply to `sent` operations that were to reach `asked`."""
    first, count, failures = (
        u64_field(header, "first"),
        u64_field(header, "count"),
        u64_field(header, "failures"),
    )
    level = level_field(header, asked)
    if count != sent:
        raise bad_field("count", count, f"{sent}, the number of operations sent")
    if first < 1 or first + count - 1 > MAX_U64:
        raise bad_field("first", first, "a transaction id")
    if failures > count:
        raise bad_field("failures", failures, f"at most the count {count}")
    check_frames(payload, 1)
    check_size(payload[0], failures, FAILURE_SIZE)
    return first, level, payload[0]


def read_result(header: Header, payload: Sequence[bytes], asked: Level, again: bool) -> Result:
    """The outcome of one operation; `again`: a duplicate stands for what a lost sending did."""
    tx_id, level, failures = read_submitted(header, payload, 1, asked)
    if not failures:
        return Result(tx_id, Status.OK if level >= Level.COMPUTED else None, level)
    offset, status, original, reason, _, duplicate_of = _FAILURE.unpack(failures)
    _check_failure(offset == 0, status, original, duplicate_of, tx_id)
    if status != Status.DUPLICATE:
        return Result(tx_id, status_of(status, reason), level, reason=reason_of(reason))
    # What does not use up a `user_ref` is never the first: below 128 it is a function's own.
    was = status_of(original, 0)
    return Result(
        duplicate_of,
        was if again else Status.DUPLICATE,
        level,
        duplicate_of,
        was,
        reason_of(reason),
    )


def _check_failure(
    in_range: bool, status: int, original: int, duplicate_of: int, tx_id: int
) -> None:
    if not in_range or status == Status.NONE:
        raise ProtocolError("the gateway sent failures that are out of order or out of range")
    if status == Status.DUPLICATE:
        possible = 0 < duplicate_of < tx_id and original != Status.DUPLICATE
    else:
        possible = duplicate_of == 0 and original == 0
    if not possible:
        raise ProtocolError("the gateway sent failures with impossible links of duplicates")
