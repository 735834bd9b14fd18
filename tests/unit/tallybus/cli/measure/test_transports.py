"""`--transport`: how the measuring tools reach the ledger that they start."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from benchmarks import transports as comparison
from tallybus.cli import main
from tallybus.cli.measure import transports
from tallybus.cli.measure.transports import TRANSPORTS
from tallybus.cli.options import checked_transport
from tallybus.cli.target import target
from tallybus.common.security.keys import Role, read_client_key, read_grants, read_pair
from tallybus.common.settings import sections as configuration
from tallybus.common.stages import STAGES
from tests.support.fake_door import encrypted_gateway
from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.cli.keyed import key_file, run


def loaded(transport: str, folder: Path) -> tuple[configuration.Settings, Path | None]:
    chosen = transports.make(transport, folder)
    overrides: dict[str, Any] = {**chosen.settings, "ledger.data": folder / "data"}
    return configuration.load(None, {}, overrides), chosen.key


def endpoints(settings: configuration.Settings) -> list[str]:
    return [settings.gateway.endpoint] + [
        configuration.endpoint(settings, stage, name, bind=bind)
        for stage in STAGES
        for name in configuration.SOCKETS
        for bind in (False, True)
    ]


def test_over_ipc_everything_is_in_folders(tmp_path: Path) -> None:
    settings, key = loaded("ipc", tmp_path)
    assert key is None
    assert settings.security.keys is None
    assert all(each.startswith("ipc://") for each in endpoints(settings))


@pytest.mark.parametrize("transport", ["tcp", "curve"])
def test_over_tcp_everything_is_on_free_ports_of_loopback(transport: str, tmp_path: Path) -> None:
    settings, key = loaded(transport, tmp_path)
    used = set(endpoints(settings))
    assert len(used) == 13
    assert all(each.startswith("tcp://127.0.0.1:") for each in used)
    for each in used:
        with socket.create_server(("127.0.0.1", int(each.rpartition(":")[2]))):
            pass
    assert (key is None, settings.security.keys is None) == (transport == "tcp",) * 2


def test_the_keys_of_a_run_are_made_for_it(tmp_path: Path) -> None:
    settings, key = loaded("curve", tmp_path)
    folder = settings.security.keys
    assert folder is not None
    assert key is not None
    client = read_client_key(key)
    assert client.gateway == read_pair(folder / "gateway.key").public
    (grant,) = read_grants(folder).values()
    assert (grant.public, grant.role) == (client.pair.public, Role.ADMIN)
    assert {path.stat().st_mode & 0o777 for path in (key, folder / "bus.key")} == {0o600}
    assert all(path.is_relative_to(tmp_path) for path in (key, folder))


def test_what_the_environment_says_of_keys_is_for_another_ledger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[configuration.Settings] = []

    @contextmanager
    def started(settings: configuration.Settings) -> Iterator[None]:
        seen.append(settings)
        yield

    monkeypatch.setenv("TALLYBUS_SECURITY_KEYS", str(tmp_path / "of another one"))
    monkeypatch.setenv("TALLYBUS_BUS_TRANSPORT", "tcp")
    monkeypatch.setattr("tallybus.supervisor.running_pipeline", started)
    for transport in TRANSPORTS:
        options: dict[str, Any] = {"endpoint": "", "folder": str(tmp_path), "overrides": {}}
        with target(spawn=True, transport=transport, **options) as at:
            assert at.transport == transport
            assert (at.key is None) == (transport != "curve")
    keys = [settings.security.keys for settings in seen]
    assert keys[:2] == [None, None]
    assert keys[2] is not None
    assert [settings.bus.transport for settings in seen] == ["ipc", "tcp", "tcp"]
    assert list(tmp_path.iterdir()) == []


def test_with_a_long_path_clients_come_over_tcp(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    settings, _ = loaded("ipc", deep)
    assert settings.gateway.endpoint.startswith("tcp://127.0.0.1:")
    assert transports.name_of(settings.gateway.endpoint, None) == "tcp"


def test_a_transport_is_for_a_ledger_that_is_started() -> None:
    assert [checked_transport(each, spawn=True) for each in (None, "curve")] == ["ipc", "curve"]
    for name in ("load", "latency"):
        done = run([name, "--transport", "tcp"])
        assert done.exit_code == 2
        assert "--spawn" in done.stderr
        assert run([name, "--spawn", "--transport", "pigeon"]).exit_code == 2


def test_a_run_tells_how_it_reached_the_ledger(
    monkeypatch: pytest.MonkeyPatch, quick_disk: None, tmp_path: Path
) -> None:
    with encrypted_gateway() as (gateway, door):
        at = ["--json", "--endpoint", gateway.endpoint, "--key", key_file(tmp_path, door)]
        done = run(["latency", "--samples", "5", *at])
        assert json.loads(done.stdout)["transport"] == "curve"
        done = run(["load", "--ops", "5", "--batch", "1", "--kind", "deposit", *at])
        assert json.loads(done.stdout)["transport"] == "curve"
    with FakeGateway() as plain:
        done = run(["latency", "--samples", "5", "--json", "--endpoint", plain.endpoint])
        assert json.loads(done.stdout)["transport"] == "tcp"


@pytest.mark.parametrize("command", ["load", "latency"])
def test_an_encrypted_ledger_is_measured_and_removed(
    command: str, tmp_path: Path, quick_disk: None
) -> None:
    sizes = {"load": "--ops 2000 --batch 100 --accounts 50", "latency": "--samples 20 --rate 500"}
    done = run(
        [
            *(command, "--spawn", "--transport", "curve", "--folder", tmp_path, "--json"),
            *sizes[command].split(),
        ]
    )
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["transport"], report["spawned"]) == ("curve", True)
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_asks_for_every_transport_in_turns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def measured(name: str, *arguments: str) -> dict[str, Any]:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        options = command.make_context(name, list(arguments)).params
        assert options["spawn"]
        assert options["as_json"]
        asked.append(options["transport"])
        rate = {"ipc": 4e6, "tcp": 3e6, "curve": 2e6}[options["transport"]]
        numbers = ("batch_p50_ms", "batch_p99_ms", "p50_ms", "p99_ms", "fdatasync_p50_ms")
        facts = {"transport": options["transport"], "tx_per_s": rate, "disk_mb_per_s": 500.0}
        return facts | dict.fromkeys(numbers, 1.0)

    monkeypatch.setattr(comparison, "tallybus", measured)
    monkeypatch.setattr(sys, "argv", ["transports", "--rounds", "2", "--json"])
    assert comparison.main() == 0
    rounds = [*TRANSPORTS, "tcp", "curve", "ipc"]
    assert asked == [transport for transport in rounds for _ in range(3)]
    told = capsys.readouterr()
    assert [run["transport"] for run in json.loads(told.out)["runs"]] == rounds
    assert "round 2 of 2: curve" in told.err
    monkeypatch.setattr(sys, "argv", ["transports", "--rounds", "1"])
    assert comparison.main() == 0
    table = capsys.readouterr().out
    for words in ("curve", "2.00M", "50%", "500", "4.00M", "100%"):
        assert words in table
