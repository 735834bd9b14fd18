"""What the calls of one submit may use of the transactor: its time, and room for entries.

Time belongs to everybody, and the ids of a submit are contiguous: nothing of another client can run
between its transactions. So the bound belongs to the submit. Values alone, for the engine and for
whoever configures it (ADR 0016).
"""

from __future__ import annotations

from typing import Final, NamedTuple


class WorkBudget(NamedTuple):
    """What the calls of one submit may use together: nanoseconds of the transactor's time, and
    entries. The calls behind the one that reaches either end NOT_RUN."""

    ns: int
    entries: int


UNBOUNDED: Final = WorkBudget(2**62, 2**62)
