"""Requests about the ledger's time."""

from __future__ import annotations

from collections.abc import Sequence

from tallybus.client.codec import Header, Request, bad_field, check_frames, u64_field
from tallybus.pipeline import LedgerTime


class ReadClock(Request[LedgerTime]):
    """Reads the ledger's time."""

    __slots__ = ()
    op = "clock"

    def decode(self, header: Header, payload: Sequence[bytes]) -> LedgerTime:
        check_frames(payload, 0)
        held = header.get("held")
        if not isinstance(held, bool):
            raise bad_field("held", held, "true or false")
        return LedgerTime(u64_field(header, "time"), u64_field(header, "wall"), held)


class AcceptClock(ReadClock):
    """Tells that the wall clock is right, then reads the ledger's time. Telling it twice is telling
    it once."""

    __slots__ = ()
    op = "accept_clock"
