"""`--key`, TALLYBUS_KEY, and the exit code of who is not let in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tallybus.cli import COMMANDS, connect, main
from tallybus.cli.errors import CommandFailed
from tallybus.cli.measure.background import background
from tallybus.common.security.keys import read_client_key
from tallybus.common.settings import sections as configuration
from tallybus.errors import AccessDenied
from tests.support.fake_door import REFUSED, encrypted_gateway
from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.cli.fake_ledger import FakeLedger
from tests.unit.tallybus.cli.keyed import key_file, run

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
