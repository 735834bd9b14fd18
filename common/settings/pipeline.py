"""The sections of the pipeline: the ledger, the bus, and the services with the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tallybus.common.functions.names import MAX_BINARY_BYTES
from tallybus.common.settings.endpoints import absolute
from tallybus.common.settings.table import (
    Section,
    check_endpoint,
    check_host,
    check_name,
    check_optional_endpoint,
    check_optional_host,
    check_optional_host_and_port,
    parse_cpus,
    setting,
)

DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5550"

OPERATION_BYTES: Final = 104
"""The most that one operation takes in a request: its record and eight parameters."""
HEADER_BYTES: Final = 65_536
"""Room left in a message for its header."""


@dataclass(frozen=True, slots=True)
class LedgerSettings(Section):
    """What the ledger holds, and where."""

    data: Path = setting(
        Path("data"),
        "Folder of the log and the snapshots. A relative path starts at the working directory.",
        kind="path",
    )
    max_accounts: int = setting(
        10_000_000,
        "Accounts are numbered from 0 up to one less. Memory is taken only by accounts in use.",
        minimum=2,
        maximum=2**32,
    )
    transactions_per_segment: int = setting(
        10_000_000,
        "Transactions in one file of the log, and in one generation of the duplicate window. "
        "Fixed when the data folder is made.",
        minimum=1,
        maximum=2**31,
    )
    snapshot_frequency: int = setting(
        1, "A snapshot is written after every so many segments.", minimum=1, maximum=1_000_000
    )
    snapshots_kept: int = setting(
        3, "Snapshots that are kept; older ones are deleted.", minimum=1, maximum=1_000_000
    )


def _override(stage: str, socket: str) -> str:
    return setting(
        "",
        f"Endpoint of the {stage}'s {socket} socket. Empty: derived from `transport`.",
        check=check_optional_endpoint,
        settle=absolute,
    )


@dataclass(frozen=True, slots=True)
class BusSettings(Section):
    """How the services reach one another, and how much may be on the way."""

    run_folder: Path | None = setting(
        None,
        "Folder of the `ipc` sockets and the locks of running services. Empty: `run` in the data "
        "folder, or a folder under /tmp when socket paths would become too long for the system.",
        kind="path",
    )
    transport: str = setting(
        "ipc",
        "How services talk: `ipc` on one machine, `tcp` across machines, `inproc` in one process.",
        choices=("ipc", "tcp", "inproc"),
    )
    host: str = setting(
        "127.0.0.1",
        "With `tcp`: the host on which services are reached. `{stage}` stands for the name of the "
        "stage, for deployments with one host per service.",
        check=check_host,
    )
    bind_host: str = setting(
        "",
        "With `tcp`: the address on which a service listens, such as `0.0.0.0`. Empty: `host`.",
        check=check_optional_host,
    )
    base_port: int = setting(
        5560,
        "With `tcp`: the first of twelve ports: three sockets (data, index, control) for each of "
        "sequencer, transactor, wal, snapshotter.",
        minimum=1,
        maximum=65_524,
    )
    inproc_name: str = setting(
        "",
        "With `inproc`: what tells the sockets of one embedded ledger from those of another. "
        "Empty: derived from the data folder.",
        check=check_name,
    )
    max_in_flight: int = setting(
        1_048_576,
        "Transactions that a stage may keep until they are durable. When so many wait, it takes "
        "no more, and clients are told `overloaded`.",
        minimum=1,
        maximum=2**31,
    )
    heartbeat_ms: int = setting(
        100,
        "Milliseconds after which a stage repeats its index when nothing happens.",
        minimum=1,
        maximum=60_000,
    )
    high_water_mark: int = setting(
        32, "Messages that a socket between stages may queue.", minimum=1, maximum=1_000_000
    )
    max_message_bytes: int = setting(
        64 * 1024 * 1024,
        "Bytes of the longest frame that a socket takes.",
        minimum=MAX_BINARY_BYTES + HEADER_BYTES,
        maximum=2**31,
    )
    sequencer_data: str = _override("sequencer", "data")
    sequencer_index: str = _override("sequencer", "index")
    sequencer_control: str = _override("sequencer", "control")
    transactor_data: str = _override("transactor", "data")
    transactor_index: str = _override("transactor", "index")
    transactor_control: str = _override("transactor", "control")
    wal_data: str = _override("wal", "data")
    wal_index: str = _override("wal", "index")
    wal_control: str = _override("wal", "control")
    snapshotter_data: str = _override("snapshotter", "data")
    snapshotter_index: str = _override("snapshotter", "index")
    snapshotter_control: str = _override("snapshotter", "control")


def _wait() -> str:
    return setting(
        "balanced",
        "How the service waits for work: `low_latency` polls all the time on a CPU of its own, "
        "`balanced` sleeps until something arrives, `low_cpu` also rests a millisecond after "
        "each turn.",
        choices=("low_latency", "balanced", "low_cpu"),
    )


def _cpu() -> str:
    return setting(
        "", "CPUs on which the service runs, such as `0,2-3`. Empty: any.", check=parse_cpus
    )


@dataclass(frozen=True, slots=True)
class ServiceSettings(Section):
    """What every service has of its own."""

    wait: str = _wait()
    cpu: str = _cpu()

    @property
    def cpus(self) -> tuple[int, ...]:
        """`cpu` as numbers, in order; none when the service may run anywhere."""
        return parse_cpus(self.cpu)


@dataclass(frozen=True, slots=True)
class GatewaySettings(ServiceSettings):
    """What the gateway lets clients do."""

    endpoint: str = setting(
        DEFAULT_ENDPOINT,
        "Where the gateway listens for clients.",
        check=check_endpoint,
        settle=absolute,
    )
    max_batch: int = setting(
        65_536,
        "Operations in one request, and in one batch that the gateway gathers.",
        minimum=1,
        maximum=1_048_576,
    )
    max_request_wait_ms: int = setting(
        60_000,
        "Milliseconds that the gateway holds a request at most, whatever the client asks for.",
        minimum=1,
        maximum=86_400_000,
    )
    max_reads: int = setting(
        65_536, "Accounts or transactions in one read.", minimum=1, maximum=1_048_576
    )
    max_connections: int = setting(
        4_096,
        "Connections of clients over tcp at a time; beyond it those that never sent a request are "
        "closed, and then the newest.",
        minimum=1,
        maximum=1_000_000,
    )
    client_in_flight: int = setting(
        0,
        "Operations and reads of one client that may wait for an answer at a time; beyond it the "
        "client is told `overloaded`. 0: no limit of its own. With keys a client is a key, "
        "without them a connection.",
        maximum=2**31,
    )
    client_rate: int = setting(
        0,
        "Operations and reads that one client may ask for in a second; beyond it the client is "
        "told `overloaded`. 0: no limit.",
        maximum=2**31,
    )
    client_work_ms: int = setting(
        0,
        "Milliseconds of the transactor's time that one client's calls of functions may take in a "
        "second; beyond it the client is told `overloaded`. 0: no limit.",
        maximum=1_000,
    )
    client_message_bytes: int = setting(
        0,
        "Bytes of the longest request that one client may send. 0: as `max_batch` and `max_reads` "
        "say.",
        maximum=2**31,
    )
    page: str = setting(
        "",
        "Where the gateway serves a page that shows the pipeline as it is now, such as "
        "`127.0.0.1:5580`. Empty: there is none. Whoever reaches it may read every balance.",
        check=check_optional_host_and_port,
    )
