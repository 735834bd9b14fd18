"""`tallybus health`: yes, no, and no answer."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import CliRunner, Result

from tallybus.cli import main
from tallybus.common import logs
from tallybus.common.metrics.server import MetricsServer, Response
from tests.support.listening import listens


@contextmanager
def serving(respond: Callable[[str, str], Response | None]) -> Iterator[int]:
    """A service's HTTP server on a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    server = MetricsServer(("127.0.0.1", port), respond, logs.get("test"))
    server.start()
    assert listens(server, 10)
    try:
        yield port
    finally:
        server.close()


def asked(port: int, *arguments: str, address: str = "127.0.0.1") -> Result:
    # The port is the sequencer's: the first.
    return CliRunner().invoke(
        main,
        [
            *("health", "sequencer", *arguments),
            *("--set", f"metrics.address={address}", "--set", f"metrics.base_port={port}"),
        ],
    )


def answering(status: int, **facts: object) -> Callable[[str, str], Response]:
    told = {"stage": "sequencer", **facts}

    def respond(path: str, accept: str) -> Response:
        return Response(status, json.dumps({**told, "path": path}).encode())

    return respond


@pytest.mark.parametrize(
    ("want", "path"), [("alive", "/healthz"), ("recovered", "/healthz"), ("ready", "/readyz")]
)
def test_yes_is_exit_code_0_and_the_answer_is_printed(want: str, path: str) -> None:
    with serving(answering(200, state="running")) as port:
        result = asked(port, "--want", want)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"stage": "sequencer", "state": "running", "path": path}


def test_an_address_for_all_is_asked_on_loopback() -> None:
    with serving(answering(200, state="running")) as port:
        assert asked(port, address="0.0.0.0").exit_code == 0


@pytest.mark.parametrize("want", ["alive", "recovered", "ready"])
def test_no_is_exit_code_3_with_the_reasons(want: str) -> None:
    with serving(answering(503, state="running", reasons=["why"])) as port:
        result = asked(port, "--want", want)
    assert result.exit_code == 3
    assert json.loads(result.stdout)["reasons"] == ["why"]


def test_a_service_that_recovers_is_alive_and_not_recovered() -> None:
    with serving(answering(200, state="recovering")) as port:
        assert asked(port, "--want", "alive").exit_code == 0
        assert asked(port, "--want", "recovered").exit_code == 3


def test_another_service_at_the_port_is_no() -> None:
    with serving(answering(200, stage="wal", state="running")) as port:
        assert asked(port).exit_code == 3


def test_nobody_there_is_exit_code_3_and_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        result = asked(taken.getsockname()[1])
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: no answer of the sequencer")


def test_what_is_no_http_is_exit_code_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = asked(server.getsockname()[1], "--timeout", "0.05")
    assert result.exit_code == 3


def test_without_an_address_it_is_wrong_use() -> None:
    result = CliRunner().invoke(main, ["health", "wal"])
    assert result.exit_code == 2
    assert "metrics.address" in result.stderr
