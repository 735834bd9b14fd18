"""`tallybus config show`: the effective settings and where each came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.options import json_option
from tallybus.cli.output import print_json, print_table
from tallybus.cli.setting_options import parse_assignments, settings_options
from tallybus.common.settings.sections import Effective, Settings, load


@click.group("config")
def config_command() -> None:
    """Show the settings."""


@config_command.command("show")
@settings_options
@click.option("--toml", "as_toml", is_flag=True, help="Print a settings file with these values.")
@json_option
def show_command(
    config: str | None, assignments: tuple[str, ...], as_toml: bool, as_json: bool
) -> None:
    """Show every setting with its effective value and where it came from.

    Later wins: defaults, the settings file (--config or TALLYBUS_CONFIG), the environment
    (TALLYBUS_<SECTION>_<NAME>), the command line (--set).
    """
    if as_toml and as_json:
        raise click.UsageError("--json and --toml are two ways to print the same; choose one")
    settings = load(config, overrides=parse_assignments(assignments))
    if as_json:
        print_json(
            {
                each.setting.key: {"value": _plain(each.value), "origin": each.origin}
                for each in settings.effective()
            }
        )
    elif as_toml:
        click.echo(_toml(settings), nl=False)
    else:
        print_table(
            ("setting", "value", "origin"),
            [(each.setting.key, _shown(each.value), each.origin) for each in settings.effective()],
        )


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _shown(value: Any) -> str:
    return "" if value is None else str(value)


def _toml(settings: Settings) -> str:
    """A file that gives the same settings; what is derived is left out as a comment."""
    lines: list[str] = []
    section = ""
    for each in settings.effective():
        if each.setting.section != section:
            section = each.setting.section
            lines += [*([""] if lines else []), f"[{section}]"]
        lines.append(_toml_line(each))
    return "\n".join(lines) + "\n"


def _toml_line(each: Effective) -> str:
    value = _plain(each.value)
    if value is None:
        return f"# {each.setting.name} is derived from other settings"
    # A basic string of TOML takes every escape that JSON writes.
    text = str(value) if isinstance(value, int) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise CommandFailed(
            f"{each.setting.key} is {value!a}, whose bytes are no UTF-8: no settings file can "
            f"hold it, so give it by the variable {each.setting.variable}",
            ExitCode.FAILED,
        ) from None
    return f"{each.setting.name} = {text}  # {each.origin}"
