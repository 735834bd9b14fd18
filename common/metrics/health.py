"""Whether a service lives, and whether it has its place in the pipeline: /healthz and /readyz.

The service notes when its loop turned, whom it heard, its long work and its failures (`Vitals`).
`health` and `readiness` judge by these notes, from another thread, and change nothing.

It is alive when the loop turns, or a recovery makes progress. An orchestrator may restart a service
that is not. It is ready when it has recovered, its neighbours have welcomed it, and it heard every
service that it depends on lately.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from logging import Logger
from typing import TYPE_CHECKING, Any, Final, Protocol

from tallybus.common.stages import DEPENDS_ON

if TYPE_CHECKING:
    from tallybus.common.bus.link import LinkSender
    from tallybus.common.bus.messages import StageStatus
    from tallybus.common.metrics.counters import Meter

TURN_NS: Final = 10_000_000_000
"""A loop that has not turned for so long is stuck. One turn may execute many slow functions."""
PROGRESS_NS: Final = 300_000_000_000
"""A recovery may be busy for so long without a sign: reading a snapshot, compiling kernels."""
SILENT_NS: Final = 2_000_000_000
"""A service that was not heard for so long is taken for away. It speaks at least at every
heartbeat."""
SILENT_HEARTBEATS: Final = 10


@dataclass(slots=True)
class Vitals:
    """What a service notes about itself. Times are of the monotonic clock."""

    turned_ns: int
    prepared: bool = False
    work: str = ""
    done: int = 0
    of: int = 0
    heard: dict[str, int] = field(default_factory=dict)
    ready_since: float | None = None
    """When it became ready for the first time, in seconds."""
    restarts: int = 0
    """How often its supervisor has started it before."""
    malformed: int = 0
    """Messages that were dropped because they could not be read."""
    refused: dict[str, int] = field(default_factory=dict)
    """Connections that were not let in, by reason; each reason is counted by one thread."""

    def working(self, now_ns: int, work: str, done: int, of: int) -> None:
        """Long work goes on."""
        self.turned_ns = now_ns
        self.work, self.done, self.of = work, done, of


class WatchedCore(Protocol):
    """What is read of a service's core."""

    incarnation: int
    term: int

    @property
    def awaits(self) -> str:
        """What it lacks to have its place in the pipeline; empty: nothing."""

    @property
    def outgoing(self) -> LinkSender[Any] | None:
        """The sending end of its link."""

    def status(self) -> StageStatus:
        """What it tells about itself now."""


class Watched(Protocol):
    """What is read of a service, by its own thread and by that of the HTTP server."""

    vitals: Vitals
    heartbeat_ns: int
    meter: Meter | None

    @property
    def stage(self) -> str:
        """Its name."""

    @property
    def core(self) -> WatchedCore:
        """Its core."""

    @property
    def log(self) -> Logger:
        """Where it tells what is worth an operator's time."""

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """An answer: yes or no, and the facts for whoever asks."""

    good: bool
    facts: dict[str, Any]


def state(shell: Watched) -> str:
    """What the service is at: `recovering`, `running` or `stopping`."""
    if shell.stopping:
        return "stopping"
    if not shell.vitals.prepared or getattr(shell.core, "recovering", False):
        return "recovering"
    return "running"


def health(shell: Watched, now_ns: int) -> ProbeAnswer:
    """Whether the process does anything at all."""
    vitals = shell.vitals
    current = state(shell)
    idle_ns = max(0, now_ns - vitals.turned_ns)
    limit_ns = TURN_NS + SILENT_HEARTBEATS * shell.heartbeat_ns
    if current != "running":
        limit_ns = max(limit_ns, PROGRESS_NS)
    facts = {
        "alive": idle_ns <= limit_ns,
        "stage": shell.stage,
        "state": current,
        "loop_idle_seconds": round(idle_ns / 1e9, 3),
    }
    return ProbeAnswer(idle_ns <= limit_ns, facts)


def readiness(shell: Watched, now_ns: int) -> ProbeAnswer:
    """Whether the service does its part in the pipeline now."""
    reasons = list(_reasons(shell, now_ns))
    facts: dict[str, Any] = {
        "ready": not reasons,
        "stage": shell.stage,
        "state": state(shell),
        "reasons": reasons,
        "heard_seconds_ago": {
            peer: round(max(0, now_ns - heard) / 1e9, 3)
            for peer, heard in tuple(shell.vitals.heard.items())
            if peer in DEPENDS_ON[shell.stage]
        },
    }
    if shell.vitals.prepared:
        facts["incarnation"] = f"{shell.core.incarnation:016x}"
        facts["term"] = shell.core.term
    return ProbeAnswer(not reasons, facts)


def _reasons(shell: Watched, now_ns: int) -> list[str]:
    vitals = shell.vitals
    current = state(shell)
    if current == "stopping":
        return ["it is stopping"]
    if current == "recovering":
        return [_told(vitals)]
    alive = health(shell, now_ns)
    if not alive.good:
        return [f"its loop has not turned for {alive.facts['loop_idle_seconds']:.0f} s"]
    reasons = []
    if shell.core.awaits:
        reasons.append(shell.core.awaits)
    silent_ns = max(SILENT_NS, SILENT_HEARTBEATS * shell.heartbeat_ns)
    for peer in DEPENDS_ON[shell.stage]:
        heard_ns = vitals.heard.get(peer)
        if heard_ns is None:
            reasons.append(f"the {peer} was not heard of yet")
        elif now_ns - heard_ns > silent_ns:
            reasons.append(f"the {peer} was not heard for {(now_ns - heard_ns) / 1e9:.1f} s")
    return reasons


def _told(vitals: Vitals) -> str:
    if not vitals.of:
        return "it is recovering"
    share = 100 * vitals.done / vitals.of
    return f"it is recovering: {vitals.work}, {share:.1f} % of {vitals.of} bytes"
