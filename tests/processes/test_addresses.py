"""Ledgers on addresses of every kind: IPv6, names, paths that are relative to a folder."""

import json
import socket
import urllib.request
from pathlib import Path

import pytest

from tallybus import Client, Deposit, WaitLevel
from tallybus.cli.measure.transports import free_ports
from tallybus.common.errors import EXIT_BUSY
from tallybus.common.settings.sections import metrics_address
from tallybus.supervisor import running_pipeline
from tests.processes.encrypted import Keys
from tests.processes.pipeline import (
    PATIENCE_S,
    Pipeline,
    eventually,
    make_settings,
    quiet_endpoint,
    run_command,
)
from tests.processes.services import Services, log_lines
from tests.support.networks import needs_ipv6


def port_of(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


@needs_ipv6
def test_everything_works_over_ipv6(tmp_path: Path) -> None:
    """Clients, services among one another, keys, metrics, health, page, guard."""
    keys = Keys(tmp_path)
    alice = keys.create("alice")
    first = free_ports(12)
    port = port_of(quiet_endpoint())
    settings = make_settings(
        tmp_path / "data",
        gateway__endpoint=f"tcp://[::1]:{port}",
        gateway__page=f"[::1]:{free_ports(1)}",
        gateway__max_connections=2,
        metrics__address="::1",
        metrics__base_port=free_ports(5),
        bus__transport="tcp",
        bus__host="::1",
        bus__base_port=first,
        security__keys=keys.folder,
    )
    with (tmp_path / "log").open("wb") as errors, running_pipeline(settings, stderr=errors):
        for host in ("[::1]", "localhost"):
            with Client(f"tcp://{host}:{port}", key=alice, timeout=PATIENCE_S) as client:
                assert client.submit_and_wait(Deposit(1, 5), WaitLevel.SNAPSHOT).ok
        told = run_command(
            *("index", "--json", "--endpoint", settings.gateway.endpoint, "--key", alice)
        )
        assert json.loads(told.stdout)["snapshot"] == 2
        options = [
            f"--set=metrics.{name}={getattr(settings.metrics, name)}"
            for name in ("address", "base_port")
        ]
        for stage in ("gateway", "wal"):
            healthy = run_command("health", stage, *options)
            assert json.loads(healthy.stdout)["ready"], healthy.stderr
            address = metrics_address(settings, stage)
            assert address is not None
            with urllib.request.urlopen(f"http://[::1]:{address[1]}/metrics") as answer:
                assert b"tallybus_ready" in answer.read()
        with urllib.request.urlopen(f"http://{settings.gateway.page}/") as page:
            assert b"<html" in page.read()
        # The guard knows these connections: the oldest that never asked makes room.
        strangers = [socket.create_connection(("::1", int(port))) for _ in range(4)]
        strangers[0].settimeout(PATIENCE_S)
        while strangers[0].recv(4_096):
            pass
        for each in strangers:
            each.close()

        def cut() -> bool:
            lines = log_lines((tmp_path / "log").read_text())
            told = [line for line in lines if line["message"] == "cut a connection"]
            return bool(told) and all(line["address"].startswith("[::1]:") for line in told)

        eventually(cut, "it is told with its address")


def test_a_second_ledger_at_a_relative_address_in_use_is_refused_and_gets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    mine = make_settings(tmp_path / "mine", gateway__endpoint="ipc://gw.sock")
    with (tmp_path / "log").open("wb") as errors, running_pipeline(mine, stderr=errors) as up:
        with Client("ipc://./gw.sock", timeout=PATIENCE_S) as client, Services(tmp_path) as others:
            assert client.submit_and_wait(Deposit(1, 5)).ok
            for number, spelt in enumerate(("gw.sock", "link/gw.sock", f"{tmp_path}/./gw.sock")):
                foreign = make_settings(
                    tmp_path / f"foreign{number}", gateway__endpoint=f"ipc://{spelt}"
                )
                second = others.start("gateway", foreign, f"second{number}")
                assert second.wait() == EXIT_BUSY, second.text
                assert f"process {up.pid('gateway')} listens there" in second.text
            assert client.submit_and_wait(Deposit(1, 5)).ok
        pipeline = Pipeline(up, mine, tmp_path / "log")
        with Client(pipeline.endpoint, timeout=PATIENCE_S) as client:
            assert client.get_balance(1, min_tx_id=2).balance == 10
    eventually(lambda: not (tmp_path / "gw.sock").exists(), "its file is removed")
