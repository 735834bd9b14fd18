"""The five services: their names, the order of what flows, and who waits for whom."""

from __future__ import annotations

from typing import Final

STAGES: Final = ("sequencer", "transactor", "wal", "snapshotter")
"""The stages of the pipeline, in the order in which a transaction passes them."""
SERVICES: Final = ("gateway", *STAGES)
"""All services, in the order in which a transaction meets them."""
PORTS: Final = (*STAGES, "gateway")
"""All services, in the order of their ports and of their rows where the pipeline comes first."""
START_ORDER: Final = ("wal", "snapshotter", "transactor", "sequencer", "gateway")
"""Who others read from comes first: a start does not wait for what is not there yet."""
STOP_ORDER: Final = SERVICES
"""Who sends comes before who receives: what was taken is finished."""
DEPENDS_ON: Final[dict[str, tuple[str, ...]]] = {
    "sequencer": ("transactor",),
    "transactor": ("wal",),
    "wal": ("snapshotter",),
    "snapshotter": ("wal",),
    "gateway": STAGES,
}
"""Whose statuses each service listens to: its successor's, the snapshotter the log's, the
gateway all."""
