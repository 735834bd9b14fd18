"""The ledger's time: what stamps are taken from. Pure; the shell reads the clocks.

It never goes back, not over a restart of everything either, and never stands still. It follows the
wall clock while that is where the steady clock says that it should be. It does not follow a wall
clock that has jumped ahead until an operator accepts it: whatever expires by stamps would expire at
once. ADR 0018 says why.

| the wall clock is             | the ledger's time                                                |
|-------------------------------|------------------------------------------------------------------|
| within `LIMIT_NS` of expected | is the wall clock's; where that would be back, it runs 2 % slower|
| further ahead (`held`)        | advances with the steady clock, until `accept`                   |
| further behind                | advances with the steady clock                                   |

What is expected advances with the steady clock, and is drawn towards the wall clock by at most 2 %
of what has passed: so that a clock that is slewed is followed for ever, and many small jumps are
not followed like one large one that is refused.
"""

from __future__ import annotations

from typing import Final, NamedTuple

LIMIT_NS: Final = 60_000_000_000
"""How far a wall clock may be from where it is expected and still be followed."""
SLEW: Final = 50
"""The expectation gives way by one in so many nanoseconds, and a slowed time loses as much."""


class Moment(NamedTuple):
    """Both clocks, read together. `wall_ns` is Unix time; `steady_ns` only ever advances, also
    while the machine is suspended where it can tell."""

    wall_ns: int
    steady_ns: int


class LedgerClock:
    """`time_ns` is the ledger's time and `ahead_ns` how far the wall clock was ahead of it, both at
    the last look. `held`: the wall clock has jumped ahead and is not followed. `behind`: it is so
    far behind that it is not looked at."""

    def __init__(self) -> None:
        self.time_ns = 0
        self.ahead_ns = 0
        self.held = False
        self.behind = False
        self._expected_ns = 0
        self._steady_ns = 0

    def start(self, last_ns: int, elapsed_ns: int, now: Moment) -> None:
        """Go on behind the ledger's last stamp (0: there is none). `elapsed_ns` says how long ago
        it was given, by a clock that went on since. A wall clock that is far ahead of that has
        jumped. 0: nobody knows, and the ledger may have been down for as long as the wall clock
        says."""
        self.time_ns = last_ns
        self._steady_ns = now.steady_ns
        self._expected_ns = last_ns + elapsed_ns if elapsed_ns else max(last_ns, now.wall_ns)
        if abs(now.wall_ns - self._expected_ns) > LIMIT_NS:
            self.time_ns = last_ns + elapsed_ns
        self.look(now)

    def look(self, now: Moment) -> int:
        """Advance to this moment; returns the ledger's time, never less than before."""
        passed = max(0, now.steady_ns - self._steady_ns)
        self._steady_ns += passed
        self._expected_ns += passed
        off = now.wall_ns - self._expected_ns
        self.held = off > LIMIT_NS
        self.behind = off < -LIMIT_NS
        if self.held or self.behind:
            self.time_ns += passed
        else:
            slew = passed // SLEW
            self._expected_ns += max(-slew, min(off, slew))
            self.time_ns = max(self.time_ns + passed - slew, now.wall_ns)
        self.ahead_ns = now.wall_ns - self.time_ns
        return self.time_ns

    def accept(self, now: Moment) -> None:
        """An operator says that a wall clock that has jumped ahead is right."""
        self.look(now)
        if self.held:
            self._expected_ns = now.wall_ns
            self.look(now)
