"""The group of commands, its help, `config show`, and the options of `up` and `serve`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from tallybus import __version__, supervisor
from tallybus.cli import COMMANDS, main
from tallybus.cli.output import print_table
from tallybus.common.settings.sections import SETTINGS, Settings, load
from tests.support.folders import PROJECT


def run(*arguments: object, env: dict[str, str | None] | None = None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env=env)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_begins_as_listed(name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert COMMANDS[name][1] in run("--help").stdout.replace("\n", " ")


def test_help_and_version() -> None:
    done = run("--help")
    assert done.exit_code == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout
    assert run("--version").stdout == f"tallybus {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("--help",), ("balance", "--help"), ("import", "--help"), ("up", "--help")]
)
def test_a_short_command_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\n"
        "from tallybus.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False)\n"
        "heavy = ('rich', 'numba', 'llvmlite', 'wasmtime', 'tallybus.services')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=PROJECT,
    )
    assert (done.stderr, done.returncode) == ("[]\n", 0)


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tallybus", "deposit", "1", "x"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=PROJECT,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: tallybus deposit")


def test_config_show_tells_values_and_origins(tmp_path: Path) -> None:
    path = tmp_path / "ledger.toml"
    path.write_text('[ledger]\nmax_accounts = 77\ndata = "a"\n', "utf-8")
    done = run(
        *("config", "show", "--json", "--config", path, "--set", "bus.heartbeat_ms=50"),
        env={"TALLYBUS_LEDGER_DATA": "b"},
    )
    shown = json.loads(done.stdout)
    assert set(shown) == set(SETTINGS)
    assert shown["ledger.max_accounts"] == {"value": 77, "origin": f"file {path}"}
    assert shown["ledger.data"] == {
        "value": "b",
        "origin": "environment TALLYBUS_LEDGER_DATA",
    }
    assert shown["bus.heartbeat_ms"] == {"value": 50, "origin": "command line"}
    assert shown["bus.transport"]["origin"] == "default"


def test_config_show_as_a_table(tmp_path: Path) -> None:
    lines = run("config", "show", "--set", "ledger.max_accounts=5").stdout.splitlines()
    assert lines[0] == "setting\tvalue\torigin"
    assert "ledger.max_accounts\t5\tcommand line" in lines
    assert len(lines) == 1 + len(SETTINGS)


def test_a_settings_file_is_not_made_of_a_path_that_it_could_not_hold() -> None:
    done = run("config", "show", "--toml", "--set", "ledger.data=d\udcff")
    assert (done.exit_code, done.stdout) == (5, "")
    assert "TALLYBUS_LEDGER_DATA" in done.stderr


def test_config_show_as_toml_is_a_settings_file_with_the_same_values(tmp_path: Path) -> None:
    awkward = tmp_path / 'a "b" \\ c ä'
    done = run("config", "show", "--toml", "--set", f"ledger.data={awkward}")
    assert tomllib.loads(done.stdout)["ledger"]["data"] == str(awkward)
    path = tmp_path / "again.toml"
    path.write_text(done.stdout, "utf-8")
    assert load(path, {}) == load(None, {}, {"ledger.data": str(awkward)})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--set", "ledger.max_acounts=5"), 78, "did you mean ledger.max_accounts?"),
        (("--set", "ledger.max_accounts=x"), 78, "'x' is not a whole number"),
        (("--set", "max_accounts"), 2, "SECTION.KEY=VALUE"),
        (("--config", "/nonexistent/file.toml"), 78, "cannot be read"),
        (("--json", "--toml"), 2, "choose one"),
    ],
)
def test_wrong_settings_are_told_in_a_line(
    arguments: tuple[str, ...], code: int, words: str
) -> None:
    done = run("config", "show", *arguments)
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    print_table(("account", "note"), [(1, "[red]as it is[/]"), (22, "")], ("sum", 23))
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 4
    assert any("│" in line and "[red]as it is[/]" in line for line in lines)
    assert any("sum" in line and "23" in line for line in lines)


class FakeSupervisor:
    seen: Settings | None = None

    def __init__(self, settings: Settings) -> None:
        FakeSupervisor.seen = settings

    def run(self, on_ready: Callable[[], None]) -> int:
        on_ready()
        return 74


def test_up_prints_the_endpoint_and_exits_as_the_supervisor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervisor, "Supervisor", FakeSupervisor)
    endpoint = "tcp://127.0.0.1:7777"
    done = run(
        *("up", "--data", tmp_path, "--endpoint", endpoint, "--set", "ledger.max_accounts=9"),
        env={"TALLYBUS_LEDGER_DATA": "elsewhere"},
    )
    assert (done.exit_code, done.stdout, done.stderr) == (74, f"{endpoint}\n", "")
    seen = FakeSupervisor.seen
    assert seen is not None
    assert seen.ledger.data == tmp_path
    assert seen.gateway.endpoint == endpoint
    assert seen.ledger.max_accounts == 9


def test_serve_runs_one_service(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def serve(stage: str, settings: Settings) -> int:
        seen.append((stage, settings.ledger.max_accounts))
        return 0

    monkeypatch.setattr(supervisor, "serve", serve)
    assert run("serve", "wal", "--set", "ledger.max_accounts=9").exit_code == 0
    assert seen == [("wal", 9)]
    assert run("serve", "bakery").exit_code == 2


def test_every_option_says_what_it_is() -> None:
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        nested = command.commands.values() if isinstance(command, click.Group) else [command]
        for each in nested:
            for parameter in each.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{name} {parameter.opts}"
