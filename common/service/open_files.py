"""How many descriptors this process may have, and whether there is room for more.

libzmq ends the whole process (SIGABRT) where a context finds no descriptor for its threads. So
whoever is about to make one looks here first.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from typing import Final

UNLIMITED: Final = 2**63 - 1
CONTEXT_FILES: Final = 12
"""What a context of libzmq takes when its first socket is made, with some to spare."""


def allowed() -> int:
    """How many the process may have (its soft limit)."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def allow(wanted: int) -> int:
    """Raise the process's own limit to so many, as far as it may. How many it may have then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        reached = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, reached), hard))
    return allowed()


def room_for(count: int) -> bool:
    """Whether so many more can be had now. Found out by having them for a moment: other ways to
    count them need one themselves."""
    held: list[int] = []
    try:
        while len(held) < count:
            held.extend(os.pipe())
    except OSError:
        return False
    finally:
        for descriptor in held:
            os.close(descriptor)
    return True
