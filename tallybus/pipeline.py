"""What a client is told about the pipeline itself: its indexes, its gateway, its services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PipelineIndex:
    """Last transaction id that each stage has passed (0 = none yet), and the current term."""

    sequenced: int
    computed: int
    committed: int
    snapshot: int
    term: int


@dataclass(frozen=True, slots=True)
class LedgerTime:
    """The ledger's time and the wall clock of the sequencer's machine, as Unix time in nanoseconds.

    `held`: the wall clock is so far ahead that it must have jumped; it is not followed until an
    operator accepts it.
    """

    time_ns: int
    wall_ns: int
    held: bool

    @property
    def ahead_ns(self) -> int:
        """How far the wall clock is ahead of the ledger's time; negative where it is behind."""
        return self.wall_ns - self.time_ns


@dataclass(frozen=True, slots=True)
class GatewayInfo:
    """Who answers: the gateway's incarnation, its protocol, and what this client may ask it for.

    One request may have up to `max_batch` operations or `max_reads` keys of a read, name the
    accounts 0 to `max_accounts` - 1, and wait for `max_request_wait_ms`, whatever its timeout.
    `role` is "read", "submit" or "admin". `limits` are this client's own, by name: "in_flight"
    (operations, keys of reads and other requests under way at a time), "rate" (the same a second),
    "message_bytes" (of one request), "work_ms" (of the transactor's time, in a second, for calls of
    functions), and what later releases bound; 0 is no limit.

    `revision` counts what was added to the protocol. A gateway of revision 0 tells none of the
    fields that have a default here.
    """

    incarnation: int
    protocol: int
    max_batch: int
    max_accounts: int
    revision: int = 0
    max_reads: int = 0
    max_request_wait_ms: int = 0
    role: str = ""
    limits: Mapping[str, int] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """One service as the gateway last heard of it.

    `index`, `next`, `durable` and `retained` (transactions kept until durable) as the stage's own
    broadcast says; a gateway's `index` is the last id it knows to be sequenced, its `next` the
    number of its next request. `started_ns` is Unix time in nanoseconds, `heard_ms` the age of what
    is told, `cpu` and `wait` the settings that are in force.
    """

    stage: str
    pid: int
    incarnation: int
    term: int
    index: int
    next: int
    durable: int
    retained: int
    started_ns: int
    heard_ms: int
    cpu: str
    wait: str
