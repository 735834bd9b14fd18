"""`tallybus load`: how many transactions per second a ledger takes, beside what its disk takes.

It measures the time from the first request to the last answer of `--ops` operations. Before that,
it funds the accounts, sends some requests to warm up, and measures the disk. Afterwards it measures
the disk again, because disks are not the same from one minute to the next. It reports both
measurements of the disk as one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from tallybus.cli import connect
from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.measure import function
from tallybus.cli.measure.disk_speed import DiskLimits, measure_disk
from tallybus.cli.measure.drive import Measured, drive
from tallybus.cli.measure.statistics import milliseconds
from tallybus.cli.measure.workload import FUNDING, Workload, WorkloadKind, first_ref, funding
from tallybus.cli.options import (
    WholeNumber,
    checked_transport,
    json_option,
    ledger_options,
    parse_assignments,
    transport_option,
    wait_option,
)
from tallybus.cli.output import note, print_json, print_values, progress_bar
from tallybus.cli.target import Target, target
from tallybus.common.record import Level

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from tallybus.client import Client

FUNDING_BATCH: Final = 16_384
FUNDING_IN_FLIGHT: Final = 4
WARM_UP_REQUESTS: Final = 20
CONNECT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. `seed` decides the operations, `unique_refs` whether they have a `user_ref`."""

    kind: WorkloadKind
    ops: int
    batch: int
    accounts: int
    clients: int
    connections: int
    in_flight: int
    level: Level
    unique_refs: bool
    seed: int
    timeout_s: float

    @property
    def window(self) -> int:
        """Requests under way at a time."""
        return self.clients * self.in_flight

    @property
    def warm_up_ops(self) -> int:
        """Operations sent before the measurement: no more than are measured."""
        return min(self.ops, max(WARM_UP_REQUESTS, 2 * self.window) * self.batch)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A measurement, and the machine's limits taken in the same run."""

    measured: Measured
    disk: DiskLimits
    log_bytes_per_tx: float | None


@click.command("load")
@click.option(
    "--kind",
    type=click.Choice(["deposit", "transfer", "mixed", "function"]),
    default="transfer",
    show_default=True,
    help="mixed: a quarter deposits, a quarter withdrawals, half transfers. function: transfers "
    "with a fee, by a function that is registered first.",
)
@click.option(
    "--ops",
    type=WholeNumber("ops", 1),
    default=2_000_000,
    show_default=True,
    help="Operations that are measured.",
)
@click.option(
    "--batch",
    type=WholeNumber("batch", 1, 1_048_576),
    default=16_384,
    show_default=True,
    help="Operations in one request.",
)
@click.option(
    "--accounts",
    type=WholeNumber("accounts", 1, 2**31),
    default=1_000_000,
    show_default=True,
    help="Accounts 1 to this number are used.",
)
@click.option(
    "--clients",
    type=WholeNumber("clients", 1, 10_000),
    default=1,
    show_default=True,
    help="Clients that send at the same time.",
)
@click.option(
    "--connections",
    type=WholeNumber("connections", 1, 10_000),
    help="Connections that the clients share.  [default: one each]",
)
@click.option(
    "--in-flight",
    type=WholeNumber("in_flight", 1, 10_000),
    help="Requests of one client under way at a time.  [default: 4; 1 with --batch 1]",
)
@wait_option()
@click.option("--unique-refs", is_flag=True, help="Give every operation a user_ref of its own.")
@click.option("--seed", type=WholeNumber("seed"), help="Repeat the operations of another run.")
@click.option(
    "--spawn", is_flag=True, help="Start a ledger in a temporary folder, and remove it afterwards."
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True),
    help="Where the temporary folder is made, and the disk measured.",
)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="With --spawn: override one setting of the ledger. May be given many times.",
)
@transport_option
@ledger_options
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.001, max=86_400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for one answer.",
)
@json_option
def load_command(
    kind: WorkloadKind,
    ops: int,
    batch: int,
    accounts: int,
    clients: int,
    connections: int | None,
    in_flight: int | None,
    level: Level,
    unique_refs: bool,
    seed: int | None,
    spawn: bool,
    folder: str | None,
    assignments: tuple[str, ...],
    transport: str | None,
    endpoint: str,
    key: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Measure how many transactions per second a ledger takes, beside what its disk takes.

    Works on the ledger at --endpoint, or with --spawn on one of its own. On a running ledger it
    leaves real transactions behind: every account 1 to --accounts is funded first, and with --kind
    function the function load_fee_transfer is registered.

    One transfer, withdrawal or call in 64 asks for more than any account has and is rejected.
    """
    if assignments and not spawn:
        raise click.UsageError("--set takes effect only on a ledger started with --spawn")
    plan = Plan(
        kind=kind,
        ops=ops,
        batch=batch,
        accounts=accounts,
        clients=clients,
        connections=min(connections or clients, clients),
        in_flight=in_flight or (1 if batch == 1 else 4),
        level=level,
        unique_refs=unique_refs,
        seed=secrets.randbits(63) if seed is None else seed,
        timeout_s=timeout_s,
    )
    overrides: dict[str, object] = {"ledger.max_accounts": max(10_000_000, accounts + 1)}
    overrides |= parse_assignments(assignments)
    with target(
        spawn=spawn,
        endpoint=endpoint,
        folder=folder,
        overrides=overrides,
        key=key,
        transport=checked_transport(transport, spawn=spawn),
    ) as at:
        outcome = run(plan, at)
        report = make_report(plan, at, outcome)
    if as_json:
        print_json(report)
    else:
        _print(report)


def run(plan: Plan, at: Target) -> Outcome:
    """Fund, warm up, measure. Raises what the clients raise, and CommandFailed."""
    before = measure_disk(at.folder)
    with (
        connect.open_clients(at.endpoint, plan.timeout_s, plan.connections, at.key) as clients,
        progress_bar("operations") as progress,
    ):
        clients[0].gateway_info(timeout=min(plan.timeout_s, CONNECT_S))
        if plan.kind != "deposit":
            task = progress.add_task("funding", total=plan.accounts)
            fund_accounts(clients[0], plan.accounts, lambda count: progress.advance(task, count))
            progress.remove_task(task)
        if plan.kind == "function":
            function.register(clients[0])
        source = _workload(plan)
        _drive(clients, source, plan, plan.warm_up_ops)
        log_bytes = at.log_bytes()
        task = progress.add_task("measuring", total=plan.ops)
        measured = _drive(
            clients, source, plan, plan.ops, lambda count: progress.advance(task, count)
        )
        if plan.level < Level.COMMITTED:
            # The log is complete, and the disk idle, when the last transaction is on it.
            clients[0].wait_for(measured.last_tx_id, Level.COMMITTED)
        after_bytes = at.log_bytes()
    bytes_per_tx = None
    if log_bytes is not None and after_bytes is not None:
        bytes_per_tx = (after_bytes - log_bytes) / plan.ops
    return Outcome(measured, before + measure_disk(at.folder), bytes_per_tx)


def fund_accounts(
    client: Client, accounts: int, progress: Callable[[int], None] | None = None
) -> None:
    """Deposit the same amount to every account. Raises CommandFailed when the ledger refuses."""
    funded = drive(
        [client],
        _Funding(accounts),
        ops=accounts,
        batch=FUNDING_BATCH,
        window=FUNDING_IN_FLIGHT,
        level=Level.COMPUTED,
        progress=progress,
    )
    if funded.failed:
        reasons = ", ".join(f"{count} x {name}" for name, count in funded.rejected.items())
        raise CommandFailed(
            f"funding accounts 1 to {accounts} with {FUNDING} each was rejected ({reasons}); "
            "does the ledger's max_accounts allow for so many?",
            ExitCode.REJECTED,
        )


class _Funding:
    """Deposits to one account after the other, as a source of `drive`."""

    def __init__(self, accounts: int) -> None:
        self._accounts = accounts
        self._position = 0

    def take(self, count: int) -> NDArray[np.void]:
        records = funding(self._accounts, count, self._position)
        self._position += count
        return records


def _workload(plan: Plan) -> Workload:
    total = plan.ops + plan.warm_up_ops
    return Workload(
        plan.kind,
        accounts=plan.accounts,
        batch=plan.batch,
        ops=total,
        seed=plan.seed,
        first_ref=first_ref(secrets.randbits(64), total) if plan.unique_refs else None,
    )


def _drive(
    clients: list[Client],
    source: Workload,
    plan: Plan,
    ops: int,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    return drive(
        clients,
        source,
        ops=ops,
        batch=plan.batch,
        window=plan.window,
        level=plan.level,
        progress=progress,
    )


def make_report(plan: Plan, at: Target, outcome: Outcome) -> dict[str, Any]:
    """The report as printed with --json: docs/cli.md explains every entry."""
    measured, disk, log_bytes = outcome.measured, outcome.disk, outcome.log_bytes_per_tx
    share = None
    if log_bytes is not None:
        share = round(measured.ops_per_s * log_bytes / (disk.mb_per_s * 1e6), 4)
    return {
        "tx_per_s": round(measured.ops_per_s, 1),
        "seconds": round(measured.seconds, 6),
        "ops": measured.ops,
        "failed": measured.failed,
        "rejected": measured.rejected,
        "batch_p50_ms": milliseconds(measured.request_ns, 50),
        "batch_p99_ms": milliseconds(measured.request_ns, 99),
        "batch_max_ms": milliseconds(measured.request_ns, 100),
        "disk_mb_per_s": round(disk.mb_per_s, 1),
        "fdatasync_p50_ms": round(disk.fdatasync_p50_ms, 3),
        "log_bytes_per_tx": None if log_bytes is None else round(log_bytes, 3),
        "share_of_disk_limit": share,
        "disk_folder": str(at.folder),
        "disk_folder_is": at.folder_is,
        "kind": plan.kind,
        "batch": plan.batch,
        "accounts": plan.accounts,
        "clients": plan.clients,
        "connections": plan.connections,
        "in_flight": plan.in_flight,
        "wait": plan.level.name.lower(),
        "unique_refs": plan.unique_refs,
        "seed": plan.seed,
        "spawned": at.data is not None,
        "transport": at.transport,
        "warm_up_ops": plan.warm_up_ops,
        "funded_accounts": 0 if plan.kind == "deposit" else plan.accounts,
        "driver_cpu_share": round(measured.cpu_seconds / measured.seconds, 3),
    }


def _print(report: dict[str, Any]) -> None:
    print_values({name: "" if value is None else value for name, value in report.items()})
    note(
        "measured: from the first request to the last answer; funding, warm-up and the disk's "
        "measurement are not in it"
    )
    if report["log_bytes_per_tx"] is None:
        note("the log's files are not seen from here: no share of the disk's limit without --spawn")
