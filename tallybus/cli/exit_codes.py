"""How commands end.

The codes are part of the interface: scripts branch on them, so they never change meaning.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended.

    INTERRUPTED is 128 + SIGINT, CLOSED_PIPE 128 + SIGPIPE, as shells have it; MISSING is a
    service's EXIT_MISSING.
    """

    OK = 0
    REJECTED = 1
    USAGE = 2
    UNREACHABLE = 3
    OUTCOME_UNKNOWN = 4
    FAILED = 5
    DENIED = 6
    MISSING = 69
    INTERRUPTED = 130
    CLOSED_PIPE = 141
