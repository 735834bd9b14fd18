"""A steady load from a process of its own, while another one measures single transactions.

It is a process, because a thread would share the interpreter with the one that measures, and add
its own pauses. `python -m tallybus.cli.measure.background` funds its accounts, starts to send, and
says `ready` on standard output. It goes on until its standard input is closed. Then it prints as
JSON what it sent since `ready`: that may be less than what was asked for.
"""

from __future__ import annotations

import json
import secrets
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallybus.cli import connect
from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.measure.drive import Source
from tallybus.cli.measure.workload import Workload, first_ref
from tallybus.common.record import Level
from tallybus.common.service import startup

if TYPE_CHECKING:
    from tallybus.client import Client, Pending

REQUESTS_PER_S: Final = 500
"""A paced load sends so many requests per second, one every 2 ms."""
PACED_WINDOW: Final = 32
FULL_BATCH: Final = 16_384
FULL_WINDOW: Final = 4
WARM_UP_S: Final = 0.5
STOP_S: Final = 60.0
READY: Final = "ready"


@dataclass(slots=True)
class Sent:
    """What the load sent between its start and its stop."""

    ops: int = 0
    seconds: float = 0.0

    @property
    def ops_per_s(self) -> float:
        return self.ops / self.seconds if self.seconds > 0 else 0.0


def send_steadily(
    client: Client,
    source: Source,
    *,
    rate: int | None,
    running: Callable[[], bool],
) -> Sent:
    """Send `rate` operations per second (None: as many as go) while `running()`, then finish.

    Requests are due at fixed times. When the ledger is slower than that, no more than a fixed
    number of requests is under way, and fewer operations are sent than asked for.
    """
    batch = batch_of(rate)
    window = FULL_WINDOW if rate is None else PACED_WINDOW
    interval = 0.0 if rate is None else batch / rate
    under_way: deque[Pending] = deque()
    sent = Sent()
    started = due = time.perf_counter()
    while running():
        wait = due - time.perf_counter()
        if wait > 0:
            time.sleep(wait)
        elif wait < -1:
            # Far behind: catching up would be a burst that nobody asked for.
            due = time.perf_counter()
        due += interval
        under_way.append(client.begin_batch(source.take(batch), wait=Level.COMMITTED))
        sent.ops += batch
        while len(under_way) >= window:
            under_way.popleft().result()
    for pending in under_way:
        pending.result()
    sent.seconds = time.perf_counter() - started
    return sent


def batch_of(rate: int | None) -> int:
    """Operations in one request of a load of `rate` operations per second (None: all that go)."""
    return FULL_BATCH if rate is None else max(1, rate // REQUESTS_PER_S)


class Background:
    """A running background load; `stop` ends it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def stop(self) -> Sent:
        """End the load; what it sent since it was ready. Raises CommandFailed if it failed."""
        try:
            output, errors = self._process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed("the background load did not stop", ExitCode.FAILED) from error
        if self._process.returncode != 0:
            raise _failed(errors)
        report = json.loads(output.splitlines()[-1])
        return Sent(int(report["ops"]), float(report["seconds"]))


def _failed(errors: str) -> CommandFailed:
    lines = errors.strip().splitlines()
    return CommandFailed(
        f"the background load ended early: {lines[-1] if lines else 'it said nothing'}",
        ExitCode.FAILED,
    )


@contextmanager
def background(
    endpoint: str,
    *,
    rate: int | None,
    accounts: int,
    timeout_s: float,
    key: str | None = None,
) -> Iterator[Background]:
    """Start a load and wait until it runs. It is ended in any case when the block is left.

    `key` is the path of a client's key file.
    """
    asked = {
        "endpoint": endpoint,
        "rate": rate,
        "accounts": accounts,
        "timeout_s": timeout_s,
        "key": key,
    }
    process = subprocess.Popen(
        startup.command("tallybus.cli.measure.background", [json.dumps(asked)]),
        env=startup.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if line.strip() != READY:
                _, errors = process.communicate(timeout=STOP_S)
                raise _failed(errors)
            yield Background(process)
        finally:
            if process.poll() is None:
                process.kill()


def _input_open() -> bool:
    """Whether standard input is still open; nothing is ever written to it."""
    return not select.select([sys.stdin], [], [], 0)[0]


def _main(arguments: dict[str, Any]) -> None:
    from tallybus.cli.measure.load import fund_accounts

    rate, accounts = arguments["rate"], arguments["accounts"]
    timeout_s = float(arguments["timeout_s"])
    with connect.open_client(arguments["endpoint"], timeout_s, arguments["key"]) as client:
        fund_accounts(client, accounts)
        batch = batch_of(rate)
        source = Workload(
            "transfer",
            accounts=accounts,
            batch=batch,
            ops=2**40,
            seed=secrets.randbits(63),
            first_ref=first_ref(secrets.randbits(64), 2**40),
        )
        warm = time.perf_counter() + WARM_UP_S
        send_steadily(
            client,
            source,
            rate=rate,
            running=lambda: time.perf_counter() < warm and _input_open(),
        )
        sys.stdout.write(f"{READY}\n")
        sys.stdout.flush()
        sent = send_steadily(client, source, rate=rate, running=_input_open)
    sys.stdout.write(json.dumps({"ops": sent.ops, "seconds": sent.seconds}) + "\n")


if __name__ == "__main__":
    from tallybus.cli.errors import as_click_exception

    try:
        _main(json.loads(sys.argv[1]))
    except Exception as raised:
        told = as_click_exception(raised)
        if told is None:
            raise
        sys.stderr.write(f"{told.format_message()}\n")
        sys.exit(told.exit_code)
