"""What is measured: the table of all metrics.

`METRICS` is the one place for names, types, labels and help; `docs/metrics.md` repeats it, and a
test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from tallybus.common.stages import PORTS, STAGES

Type = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table. `labels` come behind `stage`, which every metric has."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()
    stages: tuple[str, ...] = PORTS


_SENDERS: Final = ("sequencer", "transactor", "wal", "gateway")
_SEQUENCER: Final = ("sequencer",)
_TRANSACTOR: Final = ("transactor",)
_WAL: Final = ("wal",)
_SNAPSHOTTER: Final = ("snapshotter",)
_GATEWAY: Final = ("gateway",)

_TABLE: Final = (
    Metric("tallybus_build_info", "gauge", "Always 1; says what runs.", ("version", "python")),
    Metric("tallybus_start_time_seconds", "gauge", "When the process was started, Unix time."),
    Metric("tallybus_restarts_total", "counter", "Starts by `tallybus up` after the first one."),
    Metric("tallybus_ready", "gauge", "1 when /readyz says yes, else 0."),
    Metric(
        "tallybus_loop_idle_seconds",
        "gauge",
        "Time since the service's loop began its last turn; more than 0.1 means that it is busy.",
    ),
    Metric(
        "tallybus_heard_seconds",
        "gauge",
        "Time since the last status of another service that this one depends on.",
        ("peer",),
    ),
    Metric(
        "tallybus_malformed_messages_total", "counter", "Messages on the bus that were dropped."
    ),
    Metric(
        "tallybus_refused_connections_total",
        "counter",
        "Connections over tcp that were not let in, by reason.",
        ("reason",),
    ),
    Metric("tallybus_term", "gauge", "Number of the sequencer's term that this service follows."),
    Metric(
        "tallybus_index",
        "gauge",
        "Last transaction that has this stage's guarantee: sequenced, computed, committed, "
        "readable. Of the gateway: the last that it knows to be sequenced.",
    ),
    Metric("tallybus_next_expected", "gauge", "Number that the stage takes next.", (), STAGES),
    Metric(
        "tallybus_durable_index", "gauge", "Last transaction that this stage knows to be on disk."
    ),
    Metric(
        "tallybus_batch_transactions",
        "histogram",
        "Transactions in a batch. Of the gateway: in a batch that it gathered.",
    ),
    Metric(
        "tallybus_batch_seconds",
        "histogram",
        "Time to handle a batch: number it, execute it, write it, apply it.",
        (),
        STAGES,
    ),
    Metric(
        "tallybus_retained_transactions",
        "gauge",
        "Weight of what the stage keeps until it is durable. At `max_in_flight` it takes no more. "
        "A transaction weighs 1, one with a large payload more.",
        (),
        _SENDERS,
    ),
    Metric(
        "tallybus_max_in_flight_transactions",
        "gauge",
        "The setting `bus.max_in_flight`.",
        (),
        _SENDERS,
    ),
    Metric(
        "tallybus_input_paused",
        "gauge",
        "1 while the stage takes no input, mostly because what it keeps is full (back-pressure); "
        "else 0.",
        (),
        ("sequencer", "transactor", "wal"),
    ),
    Metric(
        "tallybus_link_unsent",
        "gauge",
        "Transactions (of the gateway: batches) that wait to be sent to the next stage.",
        (),
        _SENDERS,
    ),
    Metric(
        "tallybus_link_in_flight",
        "gauge",
        "Transactions (of the gateway: batches) sent to the next stage that it has not taken yet.",
        (),
        _SENDERS,
    ),
    Metric(
        "tallybus_successor_lag_transactions",
        "gauge",
        "Transactions that the next stage is behind this one, as its last status tells.",
        (),
        ("sequencer", "transactor", "wal"),
    ),
    Metric(
        "tallybus_link_rewinds_total",
        "counter",
        "How often the stage began to send again, because the next one was restarted or lost some.",
        (),
        _SENDERS,
    ),
    Metric(
        "tallybus_link_resent_total",
        "counter",
        "Transactions (of the gateway: batches) that were sent again.",
        (),
        _SENDERS,
    ),
    Metric(
        "tallybus_link_gaps_total",
        "counter",
        "How often transactions were missing in what arrived, and were asked for again.",
        (),
        ("transactor", "wal", "snapshotter"),
    ),
    Metric(
        "tallybus_link_dropped_total",
        "counter",
        "Transactions that arrived and were not taken: known already, behind a gap, or from a "
        "service that was replaced.",
        (),
        ("transactor", "wal", "snapshotter"),
    ),
    # -- sequencer ---------------------------------------------------------------------------------
    Metric(
        "tallybus_ledger_time_seconds",
        "gauge",
        "The ledger's time, of which stamps are taken, as Unix time.",
        (),
        _SEQUENCER,
    ),
    Metric(
        "tallybus_clock_ahead_seconds",
        "gauge",
        "How far the wall clock is ahead of the ledger's time; negative where it is behind.",
        (),
        _SEQUENCER,
    ),
    Metric(
        "tallybus_clock_held",
        "gauge",
        "1 while the wall clock has jumped ahead and is not followed until `tallybus clock "
        "accept`, else 0.",
        (),
        _SEQUENCER,
    ),
    # -- transactor --------------------------------------------------------------------------------
    Metric(
        "tallybus_transactions_total",
        "counter",
        "Transactions executed since the start, by kind and status. `ok` is success, `function` "
        "any status of a function's own.",
        ("kind", "status"),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_calls_total",
        "counter",
        "Calls of a function since the start, or since it was replaced.",
        ("function",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_failures_total",
        "counter",
        "Calls of a function that failed, by status: a name, or the number 128 to 255 that the "
        "function returned.",
        ("function", "status"),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_fuel_total",
        "counter",
        "Fuel that the calls of a function have used.",
        ("function",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_version",
        "gauge",
        "Number of the live version of a function.",
        ("function",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_call_seconds",
        "gauge",
        "Mean time of a call of a function, from samples.",
        ("function",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_call_tail_seconds",
        "gauge",
        "What 99 of 100 calls of a function take at most, from samples.",
        ("function",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_work_seconds_total",
        "counter",
        "Time of the transactor that the calls of a function have taken.",
        ("function",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_reasons_total",
        "counter",
        "Calls of a function that failed for a reason beside their status.",
        ("function", "reason"),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_function_suspended",
        "gauge",
        "1 while an operator has suspended the function, else 0.",
        ("function",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_functions_binaries_bytes",
        "gauge",
        "Bytes of the binaries of all functions and versions on disk, and how many there may be: "
        "`used` and `limit`.",
        ("what",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_functions_code_bytes",
        "gauge",
        "Bytes of machine code of all registered functions, and how many there may be: `used` and "
        "`limit`.",
        ("what",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_functions_compile_seconds",
        "gauge",
        "Seconds of the processor that compiling all registered functions took, and how many it "
        "may take: `used` and `limit`.",
        ("what",),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_functions_waiting",
        "gauge",
        "Modules that wait to be compiled, or are being compiled.",
        (),
        _TRANSACTOR,
    ),
    Metric(
        "tallybus_functions_unusable",
        "gauge",
        "Registered functions that cannot run here: their calls end SUSPENDED.",
        (),
        _TRANSACTOR,
    ),
    # -- wal ---------------------------------------------------------------------------------------
    Metric(
        "tallybus_log_written_bytes_total",
        "counter",
        "Bytes written to the log since the start.",
        (),
        _WAL,
    ),
    Metric(
        "tallybus_log_sync_seconds",
        "histogram",
        "Time of an fdatasync of the log by the committer.",
        (),
        _WAL,
    ),
    Metric(
        "tallybus_log_unsynced_transactions",
        "gauge",
        "Transactions that are written and not yet durable.",
        (),
        _WAL,
    ),
    Metric("tallybus_log_segment", "gauge", "Number of the active segment.", (), _WAL),
    Metric(
        "tallybus_log_segment_transactions",
        "gauge",
        "Transactions in the active segment.",
        (),
        _WAL,
    ),
    Metric(
        "tallybus_log_segment_capacity_transactions",
        "gauge",
        "Transactions in a full segment: `ledger.transactions_per_segment`.",
        (),
        _WAL,
    ),
    # -- snapshotter -------------------------------------------------------------------------------
    Metric(
        "tallybus_snapshot_segment",
        "gauge",
        "Segment at whose end the last snapshot was taken, 0 before the first.",
        (),
        _SNAPSHOTTER,
    ),
    Metric(
        "tallybus_snapshot_behind_segments",
        "gauge",
        "Segments of the log, with the one that is being filled, that a start would have to read.",
        (),
        _SNAPSHOTTER,
    ),
    Metric(
        "tallybus_snapshot_time_seconds",
        "gauge",
        "When the last snapshot since the start was on disk, Unix time; 0 before the first.",
        (),
        _SNAPSHOTTER,
    ),
    Metric(
        "tallybus_snapshot_duration_seconds",
        "gauge",
        "How long the last snapshot took to be written.",
        (),
        _SNAPSHOTTER,
    ),
    Metric(
        "tallybus_snapshot_bytes", "gauge", "Size of the last snapshot's file.", (), _SNAPSHOTTER
    ),
    Metric(
        "tallybus_snapshots_total",
        "counter",
        "Snapshots since the start, by what became of them: `written` or `skipped`, because the "
        "last one was still being written.",
        ("result",),
        _SNAPSHOTTER,
    ),
    Metric(
        "tallybus_snapshot_writing",
        "gauge",
        "1 while a snapshot is being written, else 0.",
        (),
        _SNAPSHOTTER,
    ),
    Metric(
        "tallybus_snapshot_lag_transactions",
        "gauge",
        "Transactions that are durable and not yet readable.",
        (),
        _SNAPSHOTTER,
    ),
    Metric(
        "tallybus_queries_waiting",
        "gauge",
        "Queries that wait for transactions which are not readable yet.",
        (),
        _SNAPSHOTTER,
    ),
    # -- gateway -----------------------------------------------------------------------------------
    Metric(
        "tallybus_pipeline_index",
        "gauge",
        "The four indexes as the gateway tells them to clients, all of one moment: `sequenced`, "
        "`computed`, `committed`, `snapshot`.",
        ("level",),
        _GATEWAY,
    ),
    Metric(
        "tallybus_requests_total",
        "counter",
        "Clients' requests that were answered, by type and outcome: `ok` or the error's code. "
        "Type `malformed`: could not be read.",
        ("type", "outcome"),
        _GATEWAY,
    ),
    Metric(
        "tallybus_request_seconds",
        "histogram",
        "Time from a request's arrival to its answer, by what was waited for: `none`, `computed`, "
        "`committed`, `snapshot` (submissions and waits), `read`. Refused requests are not in it.",
        ("level",),
        _GATEWAY,
    ),
    Metric(
        "tallybus_submitted_operations_total",
        "counter",
        "Operations in submissions that were answered with success.",
        (),
        _GATEWAY,
    ),
    Metric("tallybus_requests_held", "gauge", "Requests that wait for an answer.", (), _GATEWAY),
    Metric(
        "tallybus_clients",
        "gauge",
        "Clients that were answered within the last one to two minutes.",
        (),
        _GATEWAY,
    ),
    Metric("tallybus_connections", "gauge", "Connections of clients over tcp.", (), _GATEWAY),
    Metric(
        "tallybus_cut_connections_total",
        "counter",
        "Connections over tcp that were cut, by reason: `endless_message`, `memory` (it had grown "
        "much, and a message was unfinished for long), `too_many`, `long_routing_id` (over 255 "
        "bytes), `unread_answers` (the memory had grown much).",
        ("reason",),
        _GATEWAY,
    ),
    Metric(
        "tallybus_limited_requests_total",
        "counter",
        "Requests beyond what their client may ask for, by limit: `in_flight`, `rate`, "
        "`message_bytes`. Nothing was done about them.",
        ("limit",),
        _GATEWAY,
    ),
    Metric(
        "tallybus_client_work_seconds_total",
        "counter",
        "Time for which the calls of a client kept the ledger, by the name of its key: of the "
        "transactor, and 100 ns for each entry and 500 ns for each call that was not run.",
        ("client",),
        _GATEWAY,
    ),
    Metric(
        "tallybus_operations_waiting",
        "gauge",
        "Operations that wait in the gateway for the turn of their client's calls of functions.",
        (),
        _GATEWAY,
    ),
    Metric(
        "tallybus_work_outstanding_seconds",
        "gauge",
        "How long the calls of functions that were sent and not executed are expected to take.",
        (),
        _GATEWAY,
    ),
    Metric(
        "tallybus_answers_dropped_total",
        "counter",
        "Answers that a client did not take.",
        (),
        _GATEWAY,
    ),
)

METRICS: Final[Mapping[str, Metric]] = MappingProxyType({row.name: row for row in _TABLE})
"""Every metric of ours by its name. `process_*` come from the Prometheus client library."""


def metrics_of(stage: str) -> Iterator[Metric]:
    """The metrics that a service serves, in the order of the table."""
    return (metric for metric in METRICS.values() if stage in metric.stages)
