"""`--key`, TALLYBUS_KEY, the exit code of who is not let in, and `--transport`."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from benchmarks import transports as comparison
from tallybus.cli import COMMANDS, connect, main
from tallybus.cli.errors import CommandFailed
from tallybus.cli.measure import latency, load, transports
from tallybus.cli.measure.background import background
from tallybus.cli.measure.disk_speed import DiskLimits
from tallybus.cli.measure.transports import TRANSPORTS
from tallybus.cli.options import checked_transport
from tallybus.cli.target import target
from tallybus.common.security.keys import (
    Role,
    client_key_text,
    read_client_key,
    read_grants,
    read_pair,
)
from tallybus.common.settings import sections as configuration
from tallybus.common.stages import STAGES
from tallybus.errors import AccessDenied
from tests.support.fake_door import REFUSED, Door, encrypted_gateway
from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.cli.fake_ledger import FakeLedger

CALLS = {
    "deposit": ["1", "5"],
    "withdraw": ["1", "5"],
    "transfer": ["1", "2", "5"],
    "call": ["fee", "1"],
    "balance": ["1"],
    "index": [],
    "status": ["1"],
    "tx": ["1"],
    "clock": [],
    "top": ["--once"],
    "function list": [],
    "function unregister": ["fee"],
    "function register": ["fee", "MODULE"],
    "import": ["FILE"],
    "load": ["--ops", "10"],
    "latency": ["--samples", "10"],
}
"""Every command that talks to a ledger, with what it needs."""


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            for inner, each in command.commands.items():
                yield f"{name} {inner}", each
        else:
            yield name, command


def run(arguments: Sequence[object], **env: str | None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env=env)


@pytest.fixture
def words(tmp_path: Path) -> dict[str, list[str]]:
    """The words of each of the CALLS, with files that are there."""
    module, rows = tmp_path / "fee.wasm", tmp_path / "rows.csv"
    module.write_bytes(b"\0asm\1\0\0\0")
    rows.write_text("kind,account,amount\ndeposit,1,5\n")
    files = {"MODULE": str(module), "FILE": str(rows)}
    return {
        name: [*name.split(), *(files.get(each, each) for each in given)]
        for name, given in CALLS.items()
    }


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (load, latency):
        monkeypatch.setattr(
            module, "measure_disk", lambda *_, **__: DiskLimits(100_000_000, 0.5, (1_000_000,))
        )


def key_file(folder: Path, door: Door, name: str = "ops") -> Path:
    path = folder / f"{name}.key"
    path.touch(0o600)
    path.write_text(client_key_text(door.key(name)))
    return path


def test_whoever_takes_an_endpoint_of_a_ledger_takes_a_key() -> None:
    taking = {
        name
        for name, command in commands()
        if any("--endpoint" in option.opts for option in command.params)
    }
    assert taking - {"up", "serve"} == set(CALLS)
    for name, command in commands():
        options = {option.opts[0]: option for option in command.params}
        assert ("--key" in options) == (name in CALLS), name
        if name in CALLS:
            assert options["--key"].envvar == configuration.KEY_VARIABLE


@pytest.mark.parametrize("name", CALLS)
def test_who_is_not_let_in_ends_with_6_and_one_line(
    name: str, words: dict[str, list[str]], quick_disk: None, tmp_path: Path
) -> None:
    with encrypted_gateway(REFUSED) as (gateway, door):
        key = key_file(tmp_path, door)
        done = run([*words[name], "--endpoint", gateway.endpoint, "--key", key])
        assert done.exit_code == 6, done.output
        assert "refuses the key 'ops'" in done.stderr
        assert done.stderr.startswith("Error: ")
        assert "Traceback" not in done.output
        assert read_client_key(key).pair.secret.decode() not in done.output
        assert door.asked > 0


def test_without_a_key_the_message_says_what_to_do() -> None:
    with encrypted_gateway() as (gateway, _):
        done = run(["index", "--endpoint", gateway.endpoint])
        assert done.exit_code == 6
        for way in ("--key", "TALLYBUS_KEY", "tallybus keys create"):
            assert way in done.stderr


def test_the_variable_names_the_file_and_the_option_goes_before_it(tmp_path: Path) -> None:
    with encrypted_gateway() as (gateway, door):
        good, at = str(key_file(tmp_path, door)), ["--endpoint", gateway.endpoint]
        assert run(["index", *at], TALLYBUS_KEY=good).exit_code == 0
        assert run(["index", *at, "--key", good], TALLYBUS_KEY="nowhere.key").exit_code == 0
        assert run(["index", *at], TALLYBUS_KEY="").exit_code == 6


def test_over_ipc_the_variable_does_no_harm(tmp_path: Path) -> None:
    with FakeGateway(endpoint=f"ipc://{tmp_path}/clients") as gateway:
        done = run(["index", "--endpoint", gateway.endpoint], TALLYBUS_KEY="/nowhere/ops.key")
        assert done.exit_code == 0, done.stderr


def test_a_key_file_that_cannot_be_used_is_wrong_use(tmp_path: Path) -> None:
    done = run(["index", "--endpoint", "tcp://127.0.0.1:9", "--key", tmp_path / "missing.key"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "missing.key cannot be read" in done.stderr


def test_a_view_that_goes_on_ends_when_access_is_refused(tmp_path: Path) -> None:
    with encrypted_gateway() as (gateway, door):
        key = key_file(tmp_path, door)
        gateway.script = lambda message: "forbidden" if message.number > 8 else "answer"
        gateway.details = {"revoked": True, "key": "ops"}
        done = run(
            ["top", "--json", "--interval", "0.1", "--endpoint", gateway.endpoint, "--key", key]
        )
        assert done.exit_code == 6


def test_a_role_that_is_too_low_is_refused_access() -> None:
    with FakeGateway(script=lambda _: "forbidden") as gateway:
        gateway.details = {"role": "read", "needs": "submit", "key": "ops"}
        done = run(["deposit", "1", "5", "--endpoint", gateway.endpoint])
        assert done.exit_code == 6
        assert len(gateway.seen) == 1


def test_an_import_that_is_refused_tells_where_to_go_on(
    words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = FakeLedger()
    ledger.failures[0] = AccessDenied("no", request="submit", reason="revoked")
    monkeypatch.setattr(connect, "open_client", ledger.open)
    done = run([*words["import"], "--key", "ops.key"])
    assert done.exit_code == 6
    assert "no row is known to be in the ledger" in done.stderr
    assert ledger.keys == ["ops.key"]


def test_the_background_load_is_given_the_path_of_the_key(tmp_path: Path, quick_disk: None) -> None:
    with encrypted_gateway(REFUSED) as (gateway, door):
        key = str(key_file(tmp_path, door))
        with (
            pytest.raises(CommandFailed, match="refuses the key 'ops'"),
            background(gateway.endpoint, rate=1, accounts=1, timeout_s=20, key=key),
        ):
            pass


def test_many_connections_share_a_context() -> None:
    with (
        FakeGateway() as gateway,
        connect.open_clients(gateway.endpoint, 30, 300) as clients,
    ):
        assert len({id(client) for client in clients}) == 300
        assert clients[-1].gateway_info().protocol == 1


# -- transports ---------------------------------------------------------------------------------


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
