"""The five services: their names, their orders, and who depends on whom.

The four behind the gateway are the stages of the pipeline. Each adds one guarantee.
"""

from __future__ import annotations

from typing import Final

STAGES: Final = ("sequencer", "transactor", "wal", "snapshotter")
"""The stages of the pipeline, in the order in which a transaction passes them."""
SERVICES: Final = ("gateway", *STAGES)
"""All services, in the order in which a transaction meets them."""
PORTS: Final = (*STAGES, "gateway")
"""All services, in the order of their ports and of rows that begin with the pipeline."""
START_ORDER: Final = ("wal", "snapshotter", "transactor", "sequencer", "gateway")
"""A service starts after those that it asks first, so that no start waits for a later one."""
STOP_ORDER: Final = SERVICES
"""A sender stops before its receiver, so that what was taken is still finished."""
DEPENDS_ON: Final[dict[str, tuple[str, ...]]] = {
    "sequencer": ("transactor",),
    "transactor": ("wal",),
    "wal": ("snapshotter",),
    "snapshotter": ("wal",),
    "gateway": STAGES,
}
"""The services whose statuses each one listens to. A stage listens to its successor. The
snapshotter has none, and listens to the log. The gateway listens to all stages."""
