"""`tallybus top`: the command around the view."""

from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner, Result

from tallybus.cli import main, top
from tallybus.cli.top import METRICS_HINT
from tallybus.client import Client
from tallybus.common import logs
from tallybus.common.metrics.server import MetricsServer, Response
from tallybus.common.settings.sections import load
from tallybus.common.stages import SERVICES
from tallybus.operations import Deposit
from tallybus.pipeline import ServiceInfo
from tests.support.fake_gateway import FakeGateway, FakeLedger, Message
from tests.support.listening import listens
from tests.support.looks import WAL, service


class Gateway(FakeGateway):
    """Also tells of its services, all well."""

    def reply(self, message: Message) -> list[bytes]:
        if message.op != "services":
            return super().reply(message)
        names = ServiceInfo.__dataclass_fields__
        rows = [{name: getattr(service(stage), name) for name in names} for stage in SERVICES]
        return [self._header(message, {"services": rows})]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["top", *map(str, arguments)])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What to do instead of each pause between two looks; then Ctrl-C."""
    actions: list[Callable[[], None]] = []

    def pause(seconds: float) -> None:
        assert seconds >= 0
        if not actions:
            raise KeyboardInterrupt
        actions.pop(0)()

    monkeypatch.setattr(top, "_pause", pause)
    return actions


def nothing() -> None:
    pass


def deposit(gateway: FakeGateway) -> Callable[[], None]:
    def act() -> None:
        with Client(gateway.endpoint) as client:
            client.submit_batch([Deposit(account=1, amount=5)] * 7)

    return act


def test_once_prints_a_frame_with_the_rates_of_an_interval(
    pauses: list[Callable[[], None]],
) -> None:
    with Gateway() as gateway:
        pauses.append(deposit(gateway))
        done = run("--timeout", 30, "--once", "--endpoint", gateway.endpoint)
    assert (done.exit_code, done.stderr) == (0, "")
    for stage in SERVICES:
        assert stage in done.stdout
    assert METRICS_HINT.split(":")[0] in done.stdout
    assert "none registered" in done.stdout


def test_json_is_an_object_for_each_interval_until_ctrl_c(
    pauses: list[Callable[[], None]],
) -> None:
    with Gateway() as gateway:
        pauses += [deposit(gateway), nothing, deposit(gateway)]
        done = run("--timeout", 30, "--json", "--endpoint", gateway.endpoint)
    assert (done.exit_code, done.stderr) == (0, "")
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert [each["stages"][3]["index"] for each in (first, second, third)] == [7, 7, 14]
    assert first["tx_per_s"] == pytest.approx(7 / first["interval_s"])
    assert second["tx_per_s"] == 0
    assert first["metrics"] is None


def test_once_exits_with_3_when_the_ledger_does_not_answer(
    pauses: list[Callable[[], None]],
) -> None:
    pauses.append(nothing)
    done = run("--once", "--endpoint", "tcp://127.0.0.1:9", "--timeout", 0.05)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.startswith("Error: ")


def test_it_goes_on_over_a_restart_of_the_gateway(pauses: list[Callable[[], None]]) -> None:
    ledger, gateways = FakeLedger(), []

    def restart() -> None:
        gateways.append(Gateway(ledger, endpoint=first.endpoint, incarnation=2))

    with Gateway(ledger) as first:
        # One look while it is away; then as many as it takes until it is found again.
        pauses += [nothing, first.stop, restart, *[nothing] * 100]
        try:
            done = run("--json", "--endpoint", first.endpoint, "--timeout", 1.5)
        finally:
            for each in gateways:
                each.stop()
    assert done.exit_code == 0
    answers = [json.loads(line)["answers"] for line in done.stdout.splitlines()]
    assert answers[:2] == [True, False]
    assert answers[-1]


def test_the_live_view_needs_a_terminal() -> None:
    done = run("--endpoint", "tcp://127.0.0.1:9")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--once or --json" in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_live_view_takes_the_other_screen_and_gives_it_back(
    pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    pauses += [nothing, nothing]
    with Gateway() as gateway:
        arguments = ["top", "--timeout", "30", "--endpoint", gateway.endpoint]
        main.main(arguments, standalone_mode=False)
    text = terminal.getvalue()
    assert text.startswith("\x1b[?1049h")
    assert text.count("snapshotter") >= 3
    assert "\x1b[?1049l" in text[text.rindex("snapshotter") :]


@contextmanager
def serving(text: str) -> Iterator[int]:
    """One service's /metrics on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]

    def respond(path: str, accept: str) -> Response | None:
        return Response(200, text.encode()) if path == "/metrics" else None

    server = MetricsServer(("127.0.0.1", port), respond, logs.get("test"))
    server.start()
    assert listens(server, 10)
    try:
        yield port
    finally:
        server.close()


@pytest.mark.parametrize("by_option", [True, False])
def test_metrics_are_fetched_where_they_are_served(
    by_option: bool, pauses: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top, "SCRAPE_SECONDS", 30.0)
    pauses.append(nothing)
    with Gateway() as gateway, serving(WAL) as port:
        base = port - 2  # the wal's port is the third
        given = (
            ("--metrics", f"127.0.0.1:{base}")
            if by_option
            else ("--set", "metrics.address=127.0.0.1", "--set", f"metrics.base_port={base}")
        )
        done = run("--timeout", 30, "--once", "--json", "--endpoint", gateway.endpoint, *given)
    found = json.loads(done.stdout)["metrics"]
    assert found["segment"]["transactions"] == 250_000
    assert "wal" not in found["unreachable"]
    assert f":{base}: " in found["unreachable"]["sequencer"]


def test_what_is_no_page_of_metrics_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, "SCRAPE_SECONDS", 30.0)
    with serving("") as port:
        assert not isinstance(top._scrape(("127.0.0.1", port)), str)
    told = top._scrape(("127.0.0.1", port))
    assert isinstance(told, str)
    assert told.startswith(f"127.0.0.1:{port}: ")


@pytest.mark.parametrize("base", ["", ":9464", "h:0", "h:65535", "h:x", "::1:x", "a b:1:2", "h/x"])
def test_a_wrong_address_of_metrics_is_refused(base: str) -> None:
    done = run("--once", "--metrics", base)
    assert done.exit_code == 2
    assert "--metrics" in done.stderr


@pytest.mark.parametrize(
    ("base", "host", "port"),
    [
        ("node1", "node1", 9464),
        ("node1:7000", "node1", 7000),
        ("http://node1:7000/", "node1", 7000),
        ("[::1]:7000", "::1", 7000),
        ("::1", "::1", 9464),
        ("0.0.0.0", "127.0.0.1", 9464),
    ],
)
def test_an_address_of_metrics_stands_for_five(base: str, host: str, port: int) -> None:
    found = top._addresses(base, load(None, {}))
    assert found is not None
    assert found["sequencer"] == (host, port)
    assert found["gateway"] == (host, port + 4)
    assert len(found) == 5
