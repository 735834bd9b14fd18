"""`tallybus top`: a live view of the pipeline.

A shell around `tallybus.common.view.pipeline`. It asks the ledger and the services' /metrics, hands
the answers to the core, and draws or prints the core's report. It only reads. A look at the ledger
takes three requests, and one scrape of each service where metrics are on.
"""

from __future__ import annotations

import http.client
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click

from tallybus.cli import connect
from tallybus.cli.options import (
    client_options,
    json_option,
    parse_assignments,
    settings_options,
)
from tallybus.cli.output import print_json
from tallybus.common.settings.endpoints import address_of, with_brackets
from tallybus.common.settings.sections import Settings, load, metrics_address
from tallybus.common.stages import PORTS, SERVICES
from tallybus.errors import AccessDenied, TallybusError

if TYPE_CHECKING:
    from tallybus.client import Client
    from tallybus.common.view.pipeline import Look, Report
    from tallybus.common.view.scrape import Scrape

SCRAPE_SECONDS: Final = 1.0
"""Longest time for one service's metrics; all are asked at the same time."""
FUNCTIONS_SECONDS: Final = 1.0
"""Longest time for the functions: the view does not wait for a service that is gone."""
MAX_SCRAPE_BYTES: Final = 4_194_304
METRICS_HINT: Final = (
    "off: set metrics.address where the services run, and give its address here with --metrics"
)
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listened on, and how to reach it
_BASE: Final = re.compile(r"(?:http://)?(?:\[([^\]]+)\]|([^:/\[\]]+))(?::(\d{1,5}))?/?", re.ASCII)

Addresses = dict[str, tuple[str, int]]


@click.command("top")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@click.option("--once", is_flag=True, help="Look for one interval, print one frame, and exit.")
@click.option(
    "--metrics",
    "metrics_base",
    metavar="HOST[:PORT]",
    help="Where the services serve metrics, else as in the settings (metrics.address). PORT is "
    "metrics.base_port, the sequencer's; the others follow it.",
)
@settings_options
@client_options(2.0)
@json_option
def top_command(
    interval: float,
    once: bool,
    metrics_base: str | None,
    config: str | None,
    assignments: tuple[str, ...],
    endpoint: str,
    key: str | None,
    timeout: float,
    as_json: bool,
) -> None:
    """Watch the pipeline live in the terminal. Ctrl-C ends it.

    With --json one object per interval. Without --once the view goes on when the ledger does not
    answer, and says so.
    """
    settings = load(config, overrides=parse_assignments(assignments))
    addresses = _addresses(metrics_base, settings)
    if not (once or as_json or sys.stdout.isatty()):
        raise click.UsageError("the live view needs a terminal; choose --once or --json")
    try:
        with (
            connect.open_client(endpoint, timeout, key) as client,
            Looker(client, timeout, addresses) as looker,
        ):
            if once:
                _show_once(looker, interval, endpoint, as_json)
            elif as_json:
                _print_each(looker, interval)
            else:
                _show_live(looker, interval, endpoint)
    except KeyboardInterrupt:
        return  # the way to end it


def _addresses(base: str | None, settings: Settings) -> Addresses | None:
    """Where each service's metrics are; None when nobody says."""
    if base is None:
        found = {stage: metrics_address(settings, stage) for stage in SERVICES}
    else:
        # An IPv6 address alone needs no brackets, as in the setting metrics.address.
        # An address of IPv6 alone needs no brackets, as in metrics.address.
        match = _BASE.fullmatch(base if address_of(base) is None else with_brackets(base))
        host = match and (match[1] or match[2])
        port = int(match[3]) if match and match[3] else settings.metrics.base_port
        if not host or not 1 <= port <= 65_535 - len(SERVICES) + 1:
            raise click.BadParameter(
                f"{base!r} is not HOST or HOST:PORT, such as 127.0.0.1:9464",
                param_hint="--metrics",
            )
        found = {stage: (host, port + place) for place, stage in enumerate(PORTS)}
    known = {
        stage: (_EVERYWHERE.get(each[0], each[0]), each[1]) for stage, each in found.items() if each
    }
    return known or None


class Looker:
    """Looks at the ledger. Its threads, one for each service, fetch metrics side by side."""

    def __init__(self, client: Client, timeout: float, addresses: Addresses | None) -> None:
        self._client = client
        self._timeout = timeout
        self._addresses = addresses
        self._pool = ThreadPoolExecutor(len(addresses)) if addresses else None
        self.failure: TallybusError | None = None

    def __enter__(self) -> Looker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def look(self) -> Look:
        """One look. `failure` is why the gateway gave nothing, None when it answered.

        Raises AccessDenied: to look again would not help.
        """
        from tallybus.common.view.pipeline import SILENT_MS, Look

        self.failure = None
        facts: dict[str, Any] = {"metrics": self._scrapes()}
        at_s, unix_ns = time.monotonic(), time.time_ns()
        try:
            facts["index"] = self._client.pipeline_index()
            at_s, unix_ns = time.monotonic(), time.time_ns()
            facts["services"] = services = self._client.services()
        except AccessDenied:
            raise
        except TallybusError as error:
            self.failure = error
            at_s, unix_ns = time.monotonic(), time.time_ns()
            return Look(at_s, unix_ns, metrics=facts["metrics"], error=str(error))
        heard = {each.stage: each.heard_ms for each in services}
        if heard.get("transactor", SILENT_MS + 1) > SILENT_MS:
            facts["functions_error"] = "the transactor is down"
        else:
            try:
                seconds = min(self._timeout, FUNCTIONS_SECONDS)
                facts["functions"] = tuple(self._client.list_functions(timeout=seconds))
            except AccessDenied:
                raise
            except TallybusError as error:
                facts["functions_error"] = str(error)
        return Look(at_s, unix_ns, **facts)

    def _scrapes(self) -> dict[str, Scrape | str] | None:
        if self._addresses is None or self._pool is None:
            return None
        return dict(
            zip(self._addresses, self._pool.map(_scrape, self._addresses.values()), strict=True)
        )


def _scrape(address: tuple[str, int]) -> Scrape | str:
    """What a service tells at this address, or why it does not."""
    from tallybus.common.view.scrape import parse

    host, port = address
    try:
        text = _get_text(host, port)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{host}:{port}: {str(error) or type(error).__name__}"
    return parse(text, time.monotonic())


def _get_text(host: str, port: int) -> str:
    """The page /metrics. Raises OSError, HTTPException, and ValueError for another answer."""
    limit = time.monotonic() + SCRAPE_SECONDS
    connection = http.client.HTTPConnection(host, port, timeout=SCRAPE_SECONDS)
    try:
        connection.request("GET", "/metrics", headers={"Connection": "close"})
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"it answers with {response.status}")
        body = b""
        while part := response.read1(65_536):
            body += part
            if len(body) > MAX_SCRAPE_BYTES or time.monotonic() > limit:
                raise ValueError("its answer is too long, or too slow")
        return body.decode("utf-8", "replace")
    finally:
        connection.close()


def _pause(seconds: float) -> None:
    """Waits until the next look. Tests replace it."""
    time.sleep(seconds)


def _reports(looker: Looker, interval: float) -> Iterator[tuple[Report, list[float | None]]]:
    """What is to be shown, at once and then after every interval, with the history of rates."""
    from tallybus.common.view.pipeline import PipelineView

    view = PipelineView(METRICS_HINT)
    due = time.monotonic()
    while True:
        yield view.add(looker.look()), list(view.history)
        # After a look that took longer than an interval the ones that were missed are left out.
        due = max(due + interval, time.monotonic())
        _pause(max(0.0, due - time.monotonic()))


def _show_once(looker: Looker, interval: float, endpoint: str, as_json: bool) -> None:
    """One frame, with the rates of one interval."""
    reports = _reports(looker, interval)
    for _ in range(2):
        report, history = next(reports)
        if looker.failure is not None:
            raise looker.failure
    if as_json:
        print_json(report.as_json())
        return
    from rich.console import Console

    from tallybus.cli.topdraw import frame

    console = Console()
    ascii_only = console.options.ascii_only
    console.print(frame(report, history, endpoint, console.width, ascii_only))


def _print_each(looker: Looker, interval: float) -> None:
    """An object for every interval: the first look only begins one."""
    reports = _reports(looker, interval)
    next(reports)
    for report, _ in reports:
        print_json(report.as_json())


def _show_live(looker: Looker, interval: float, endpoint: str) -> None:
    from rich.console import Console
    from rich.live import Live

    from tallybus.cli.topdraw import frame

    console = Console()
    with (
        _ended_by_signal(),
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        for report, history in _reports(looker, interval):
            ascii_only = console.options.ascii_only
            live.update(frame(report, history, endpoint, console.width, ascii_only), refresh=True)


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM gives the terminal back before it ends the process."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before: Callable[[int, FrameType | None], Any] | int | None
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
