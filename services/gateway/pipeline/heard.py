"""What the gateway has heard of each service, for people who look at the pipeline."""

from __future__ import annotations

from typing import Any

from tallybus.common.bus.messages import Presence, StageStatus
from tallybus.common.stages import PORTS


class Services:
    """The latest status and presence of every stage. Plain facts; nothing is decided by them."""

    def __init__(self) -> None:
        self._statuses: dict[str, tuple[StageStatus, int]] = {}
        self._presences: dict[str, Presence] = {}

    def on_status(self, message: StageStatus, now_ns: int) -> None:
        """A stage has said how far it is."""
        self._statuses[message.stage] = (message, now_ns)

    def on_presence(self, message: Presence) -> None:
        """A stage has said which process it is."""
        self._presences[message.stage] = message

    def rows(
        self, own: StageStatus, presence: Presence | None, now_ns: int
    ) -> list[dict[str, Any]]:
        """One map for each service that was heard of, in pipeline order, the gateway's own last."""
        heard = dict(self._statuses)
        heard[own.stage] = (own, now_ns)
        presences = dict(self._presences)
        if presence is not None:
            presences[own.stage] = presence
        return [
            _row(*heard[stage], presences.get(stage), now_ns) for stage in PORTS if stage in heard
        ]


def _row(
    status: StageStatus, heard_ns: int, presence: Presence | None, now_ns: int
) -> dict[str, Any]:
    if presence is not None and presence.incarnation != status.incarnation:
        presence = None  # of the one before it; the new one tells within a second
    return {
        "stage": status.stage,
        "pid": presence.pid if presence else 0,
        "incarnation": status.incarnation,
        "term": status.term,
        "index": status.index,
        "next": status.next,
        "durable": status.durable,
        "retained": status.retained,
        "started_ns": presence.started if presence else 0,
        "heard_ms": max(0, now_ns - heard_ns) // 1_000_000,
        "cpu": presence.cpu if presence else "",
        "wait": presence.wait if presence else "",
    }
