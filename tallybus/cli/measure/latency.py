"""`tallybus latency`: how long one transaction takes, alone or under a load.

One deposit at a time is timed from the call until its level is reached. The load comes from a
process of its own. The disk is measured before and afterwards, while the ledger is idle.
"""

from __future__ import annotations

import secrets
import time
from array import array
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import click

from tallybus.cli import connect
from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.measure.background import Sent, background
from tallybus.cli.measure.disk_speed import measure_disk
from tallybus.cli.measure.statistics import milliseconds
from tallybus.cli.options import (
    LevelType,
    WholeNumber,
    checked_transport,
    json_option,
    ledger_options,
    transport_option,
)
from tallybus.cli.output import note, print_json, print_values, progress_bar
from tallybus.cli.target import target
from tallybus.cli.transact import status_text
from tallybus.common.record import Level
from tallybus.operations import Deposit

if TYPE_CHECKING:
    from collections.abc import Callable

    from tallybus.client import Client

WARM_UP_SAMPLES: Final = 50
CONNECT_S: Final = 5.0
DISK_BYTES: Final = 32 << 20
MAX_RATE: Final = 100_000_000
PROBED_ACCOUNT: Final = 1


class Rate(click.ParamType[int | None]):
    """Transactions per second, or `max` (None)."""

    name = "rate"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        if value == "max":
            return None
        return WholeNumber("rate", 0, MAX_RATE).convert(value, param, ctx)


@click.command("latency")
@click.option(
    "--level",
    type=LevelType("computed", "committed", "snapshot"),
    default="committed",
    show_default=True,
    help="What each transaction is timed to: the result, the result on disk, or readable.",
)
@click.option(
    "--rate",
    type=Rate(),
    default=0,
    show_default=True,
    metavar="N|max",
    help="Transactions per second in the background; 0: none, max: all that go.",
)
@click.option(
    "--samples",
    type=WholeNumber("samples", 1, 100_000_000),
    default=2_000,
    show_default=True,
    help="Transactions that are timed, one at a time.",
)
@click.option(
    "--accounts",
    type=WholeNumber("accounts", 1, 2**31),
    default=100_000,
    show_default=True,
    help="Accounts that the background load moves money between.",
)
@click.option(
    "--spawn", is_flag=True, help="Start a ledger in a temporary folder, and remove it afterwards."
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True),
    help="Where the temporary folder is made, and the disk measured.",
)
@transport_option
@ledger_options
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.001, max=86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for one answer.",
)
@json_option
def latency_command(
    level: Level,
    rate: int | None,
    samples: int,
    accounts: int,
    spawn: bool,
    folder: str | None,
    transport: str | None,
    endpoint: str,
    key: str | None,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Measure how long one transaction takes, one at a time, idle or under a load.

    Works on the ledger at --endpoint, or with --spawn on one of its own. On a running ledger it
    leaves real transactions behind.
    """
    overrides: dict[str, object] = {"ledger.max_accounts": max(10_000_000, accounts + 1)}
    with target(
        spawn=spawn,
        endpoint=endpoint,
        folder=folder,
        overrides=overrides,
        key=key,
        transport=checked_transport(transport, spawn=spawn),
    ) as at:
        disk = measure_disk(at.folder, sequential_bytes=DISK_BYTES)
        with ExitStack() as stack, progress_bar("samples") as progress:
            client = stack.enter_context(connect.open_client(at.endpoint, timeout_s, at.key))
            # A ledger that is not there is told at once, and before a load is started against it.
            client.gateway_info(timeout=min(timeout_s, CONNECT_S))
            probe(client, level, WARM_UP_SAMPLES)
            load = None
            if rate != 0:
                load = stack.enter_context(
                    background(
                        at.endpoint,
                        rate=rate,
                        accounts=accounts,
                        timeout_s=timeout_s,
                        key=at.key,
                    )
                )
                probe(client, level, WARM_UP_SAMPLES)
            task = progress.add_task("measuring", total=samples)
            times = probe(client, level, samples, lambda: progress.advance(task))
            sent = Sent() if load is None else load.stop()
        disk += measure_disk(at.folder, sequential_bytes=DISK_BYTES)
        p50 = milliseconds(times, 50)
        sync = disk.fdatasync_p50_ms
        report: dict[str, Any] = {
            "p50_ms": p50,
            "p90_ms": milliseconds(times, 90),
            "p99_ms": milliseconds(times, 99),
            "max_ms": milliseconds(times, 100),
            "fdatasync_p50_ms": round(sync, 3),
            "p50_per_fdatasync": round(p50 / sync, 2),
            "samples": samples,
            "level": level.name.lower(),
            "rate": "max" if rate is None else rate,
            "reached_rate": round(sent.ops_per_s, 1),
            "disk_folder": str(at.folder),
            "disk_folder_is": at.folder_is,
            "spawned": spawn,
            "transport": at.transport,
        }
    if as_json:
        print_json(report)
    else:
        print_values(report)
        note("measured: one deposit at a time, from the call to its level; warm-up is not in it")


def probe(
    client: Client, level: Level, samples: int, progress: Callable[[], None] | None = None
) -> array[int]:
    """Time `samples` deposits to `level`, one after the other: nanoseconds each.

    Raises what the client raises, and CommandFailed when the ledger rejects one.
    """
    times = array("q")
    clock = time.perf_counter_ns
    for _ in range(samples):
        operation = Deposit(PROBED_ACCOUNT, 1, secrets.randbits(64) or 1)
        started = clock()
        result = client.submit_and_wait(operation, level)
        times.append(clock() - started)
        if not result.ok:
            raise CommandFailed(
                f"a deposit to account {PROBED_ACCOUNT} was rejected: {status_text(result.status)}",
                ExitCode.REJECTED,
            )
        if progress is not None:
            progress()
    return times
