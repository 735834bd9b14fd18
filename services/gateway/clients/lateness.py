"""The answer to a request that ran out of time: it says what has not happened yet.

Pure functions of a request and of how far the pipeline is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tallybus.common.record import Level
from tallybus.services.gateway.clients.protocol import (
    ClientRequest,
    FunctionsRead,
    Read,
    Submit,
    Wait,
)
from tallybus.services.gateway.pipeline.progress import Progress

_NOT_YET: Final = {
    Level.NONE: "is not sequenced yet",
    Level.COMPUTED: "is not executed yet",
    Level.COMMITTED: "is not on disk yet",
    Level.SNAPSHOT: "is not readable yet",
}


def why_late(request: ClientRequest, progress: Progress, silent: Sequence[str]) -> str:
    """The message of a `timeout`; `silent` are the stages that were never heard of."""
    unheard = f"the {', '.join(silent)} was not heard of yet" if silent else ""
    match request:
        case Submit():
            what = _submit(request, progress)
        case Wait():
            what = _not_yet(request.tx_id, request.level, progress)
        case Read() if request.min_tx_id > progress.snapshot:
            what = _not_yet(request.min_tx_id, Level.SNAPSHOT, progress)
        case Read() if not silent:
            what = "the snapshotter has not answered in time"
        case FunctionsRead() if not silent:
            what = "the transactor has not answered in time"
        case _:
            what = "not answered in time"
    return f"{what}; {unheard}" if unheard else what


def _submit(request: Submit, progress: Progress) -> str:
    # Ids that were given may still change as long as nothing was computed.
    if not 0 < request.last <= progress.computed:
        return "what was submitted is not executed yet; it may still be"
    many = request.count > 1
    which = f"transactions {request.first} to {request.last} are" if many else ""
    which = which or f"transaction {request.first} is"
    level = Level.COMMITTED if progress.index(Level.COMMITTED) < request.last else Level.SNAPSHOT
    return f"{which} executed, and {_NOT_YET[level].removeprefix('is ')}"


def _not_yet(tx_id: int, level: Level, progress: Progress) -> str:
    last = progress.index(level) if level else progress.sequenced
    return f"transaction {tx_id} {_NOT_YET[level]}; the last one that is: {last}"
