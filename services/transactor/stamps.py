"""The last time stamp that the transactor was given, for a sequencer that starts. Pure.

ADR 0018 says why.
"""

from __future__ import annotations


class LastStamp:
    """`value` is the stamp of the last transaction, 0 before the first."""

    def __init__(self) -> None:
        self.value = 0
        self._given = False
        self._fresh = False
        self._given_ns = 0
        self._now_ns = 0

    def recovered(self, stamp: int) -> None:
        """The log's last one; nobody knows how long ago that was."""
        self.value = stamp

    def given(self, stamp: int) -> None:
        """A sequencer has given this one, in this turn."""
        self.value = max(self.value, stamp)
        self._given = self._fresh = True

    def tick(self, now_ns: int) -> None:
        """Once a turn, with the time of the monotonic clock."""
        self._now_ns = now_ns
        if self._fresh:
            self._given_ns, self._fresh = now_ns, False

    @property
    def elapsed_ns(self) -> int:
        """How long ago it was given, to about a turn; 0 where nobody knows."""
        if not self._given:
            return 0
        return 1 if self._fresh else max(1, self._now_ns - self._given_ns)
