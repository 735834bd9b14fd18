"""One batch of executed transactions: the only shape that they have between two stages.

The transactor makes it, the log writes it, the snapshotter and every replay take it in, and the
tools read it. Its records say which links, parameters and entries belong to which transaction, so
a batch can be checked and cut anywhere. No I/O, and nothing is copied: arrays are views of the
frame, the file or the memory that they came in, and are read only by convention.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tallybus.common.buffers import Buffer, as_buffer, size
from tallybus.common.record import ENTRY_DTYPE, ENTRY_SIZE, MAX_PARAMS, RECORD_DTYPE, Kind, Status

MAX_COUNT: Final = 2**32 - 1
"""Transactions in one batch: formats count them with 32 bits."""
MAX_NAME_WORDS: Final = 2**16
"""Bound on the parameter words of one registration record; keeps the sums far from overflow."""
WORD_SIZE: Final = 8
"""Bytes of a link and of a word of parameters."""

Array = npt.NDArray[Any]


class InvalidBatch(ValueError):
    """The parts of a batch do not fit together. Field: `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the parts of the batch do not fit together: {reason}")
        self.reason = reason


class ExtraCounts(NamedTuple):
    """How many links, parameter words and entries a run of records owns."""

    links: int
    params: int
    entries: int


NO_LINKS: Final[npt.NDArray[np.uint64]] = np.empty(0, "<u8")
NO_PARAMS: Final[npt.NDArray[np.int64]] = np.empty(0, "<i8")
NO_ENTRIES: Final[Array] = np.empty(0, ENTRY_DTYPE)


@dataclass(slots=True)
class Batch:
    """Executed transactions with contiguous ids, `first_id` to `last_id`.

    `term`, `timestamp_ns`, `gateway` (its incarnation, 0 for none) and `request` (that gateway's
    number of it) are those of the request that the transactions came in; of a batch that was read
    from several blocks, those of the last one.
    """

    first_id: int
    records: Array
    """RECORD_DTYPE[n] as in the log."""
    links: npt.NDArray[np.uint64] = field(default_factory=lambda: NO_LINKS)
    """uint64: for each DUPLICATE record in order the id of the first transaction."""
    params: npt.NDArray[np.int64] = field(default_factory=lambda: NO_PARAMS)
    """int64: for each FUNCTION and FUNCTION_REGISTERED record in order `amount` words."""
    entries: Array = field(default_factory=lambda: NO_ENTRIES)
    """ENTRY_DTYPE: for each successful FUNCTION record in order `entry_count` entries."""
    term: int = 0
    timestamp_ns: int = 0
    gateway: int = 0
    request: int = 0
    sources: npt.NDArray[np.uint64] | None = None
    """uint64[b, 4] where it was read from several blocks: gateway, request, first id and count of
    each."""
    _frames: tuple[Buffer, Buffer] | None = field(default=None, repr=False, compare=False)
    """The frames that it came in. They are passed on as they are: a socket hands on by reference
    what it received, and has to be told when a view of it has gone out."""

    @classmethod
    def from_frames(
        cls,
        first_id: int,
        records: Buffer,
        extras: Buffer,
        counts: ExtraCounts,
        *,
        term: int,
        timestamp_ns: int,
        gateway: int,
        request: int,
    ) -> Batch:
        """Views of the two frames of a message, whose lengths were checked against `counts`.

        extras: the links, then the params, then the entries. Whether the records call for them is
        for `check` to say.
        """
        params_at = counts.links * WORD_SIZE
        entries_at = params_at + counts.params * WORD_SIZE
        if not size(extras):
            links, params, entries = NO_LINKS, NO_PARAMS, NO_ENTRIES
        else:
            links = np.frombuffer(extras, "<u8", counts.links)
            params = np.frombuffer(extras, "<i8", counts.params, params_at)
            entries = np.frombuffer(extras, ENTRY_DTYPE, counts.entries, entries_at)
        return cls(
            first_id,
            np.frombuffer(records, RECORD_DTYPE),
            links,
            params,
            entries,
            term,
            timestamp_ns,
            gateway,
            request,
            None,
            (records, extras),
        )

    def to_frames(self) -> tuple[Buffer, Buffer]:
        """The records, and links, params and entries together, as `from_frames` takes them."""
        if self._frames is None:
            parts = [as_buffer(part) for part in self.parts[1:] if part.size]
            extras = parts[0] if len(parts) == 1 else b"".join(parts)
            self._frames = as_buffer(self.records), extras
        return self._frames

    @property
    def count(self) -> int:
        return len(self.records)

    @property
    def last_id(self) -> int:
        return self.first_id + len(self.records) - 1

    @property
    def parts(self) -> tuple[Array, Array, Array, Array]:
        """Records, links, params and entries: the order in a block of the log."""
        return self.records, self.links, self.params, self.entries

    @property
    def byte_length(self) -> int:
        return self.records.nbytes + self.links.nbytes + self.params.nbytes + self.entries.nbytes

    def buffers(self) -> list[memoryview]:
        """The parts that are not empty as flat bytes, without copying."""
        return [part.view(np.uint8).data for part in self.parts if part.size]

    def check(self) -> None:
        """Raises InvalidBatch when links, params or entries are not exactly those that the records
        call for, or there are too many records."""
        if len(self.records) > MAX_COUNT:
            raise InvalidBatch(f"{len(self.records)} records, a batch holds {MAX_COUNT}")
        wanted = count_extras(self.records)
        given = ExtraCounts(len(self.links), len(self.params), len(self.entries))
        if given != wanted:
            raise InvalidBatch(f"the records call for {wanted}, given were {given}")

    def split(self, count: int) -> tuple[Batch, Batch]:
        """Cut after the first `count` transactions."""
        own = count_extras(self.records[:count])
        head = self._part(
            self.first_id,
            self.records[:count],
            self.links[: own.links],
            self.params[: own.params],
            self.entries[: own.entries],
        )
        rest = self._part(
            self.first_id + count,
            self.records[count:],
            self.links[own.links :],
            self.params[own.params :],
            self.entries[own.entries :],
        )
        return head, rest

    def skip(self, count: int) -> Batch:
        """What is behind the first `count` transactions: all of it for 0."""
        return self.split(count)[1] if count else self

    def clip(self, first_id: int, last_id: int) -> Batch:
        """The transactions from `first_id` to `last_id`, as far as they are in it."""
        part = self
        if part.last_id > last_id:
            part = part.split(max(last_id + 1 - part.first_id, 0))[0]
        return part.skip(max(first_id - part.first_id, 0))

    def split_at_segments(self, transactions_per_segment: int) -> Iterator[Batch]:
        """The batch, cut where its ids pass from one segment to the next, in order. A part whose
        `last_id` is a multiple of `transactions_per_segment` fills its segment."""
        rest = self
        while len(rest.records):
            room = transactions_per_segment - (rest.first_id - 1) % transactions_per_segment
            if len(rest.records) <= room:
                yield rest
                return
            head, rest = rest.split(room)
            yield head

    def pieces(self, max_bytes: int) -> Iterator[Batch]:
        """The batch, halved until no piece of more than one transaction is longer."""
        if self.byte_length <= max_bytes or len(self.records) == 1:
            yield self
            return
        head, rest = self.split(len(self.records) // 2)
        yield from head.pieces(max_bytes)
        yield from rest.pieces(max_bytes)

    def _part(
        self, first_id: int, records: Array, links: Array, params: Array, entries: Array
    ) -> Batch:
        return Batch(
            first_id,
            records,
            links,
            params,
            entries,
            self.term,
            self.timestamp_ns,
            self.gateway,
            self.request,
        )


# Of the columns' own type: a plain number would have the whole column converted first.
_DUPLICATE: Final = np.uint8(Status.DUPLICATE)
_FUNCTION: Final = np.uint8(Kind.FUNCTION)


def count_extras(records: Array) -> ExtraCounts:
    """What belongs to these records. Raises InvalidBatch on an impossible claim."""
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
            (is_function, MAX_PARAMS),
            (kinds == Kind.FUNCTION_REGISTERED, MAX_NAME_WORDS),
        ):
            words = records["amount"][owns]
            if words.size:
                if int(words.max()) > limit:
                    raise InvalidBatch(
                        f"a record claims {int(words.max())} parameter words, the limit is {limit}"
                    )
                params += int(words.sum(dtype=np.uint64))
        succeeded = is_function & (statuses == Status.NONE)
        entries = int(records["entry_count"][succeeded].sum(dtype=np.uint64))
    return ExtraCounts(links, params, entries)


def segment_of(transaction_id: int, transactions_per_segment: int) -> int:
    """Number of the segment (from 1) that holds this id (from 1)."""
    return (transaction_id - 1) // transactions_per_segment + 1


if ENTRY_SIZE != 2 * WORD_SIZE:
    raise AssertionError(f"an entry has {ENTRY_SIZE} bytes, messages count it as two words")
