"""The reference pages name everything there is, and nothing that is not."""

import re
from collections.abc import Iterator

import click
import pytest

from tallybus.cli import main
from tallybus.common.settings.sections import CONFIG_VARIABLE, ENDPOINT_VARIABLE, SETTINGS
from tests.support.folders import DOCS


def documented_settings() -> dict[str, tuple[str, str, str]]:
    """Rows of the tables in the page on configuration: default, limits and meaning by key.

    A heading names the sections that the rows below it belong to: `## [wal], [sequencer]`.
    """
    rows: dict[str, tuple[str, str, str]] = {}
    sections: list[str] = []
    for line in (DOCS / "configuration.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            sections = re.findall(r"\[(\w+)\]", line)
        match = re.fullmatch(r"\| `(\w+)` \| (.*?) \| (.*?) \| (.*) \|", line)
        if match and sections:
            for section in sections:
                key = f"{section}.{match[1]}"
                assert key not in rows, f"{key} is documented twice"
                rows[key] = (match[2].strip("`"), match[3], match[4])
    return rows


def commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Every command that a user may type, with its words."""
    context = click.Context(command, info_name=path[-1] if path else "tallybus")
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            if not inner.hidden:
                yield from commands(inner, (*path, name))
    else:
        yield " ".join(("tallybus", *path)), command


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_documented(key: str) -> None:
    rows = documented_settings()
    assert key in rows, f"docs/configuration.md lacks {key}"
    setting = SETTINGS[key]
    default, limits, meaning = rows[key]
    assert default == ("" if setting.default is None else str(setting.default))
    if setting.kind == "integer" or setting.choices:
        assert limits.replace("`", "") == setting.limits
    assert meaning == setting.help


def test_no_setting_is_documented_that_is_not_there() -> None:
    assert set(documented_settings()) == set(SETTINGS)


def test_special_variables_are_documented() -> None:
    text = (DOCS / "configuration.md").read_text("utf-8")
    assert CONFIG_VARIABLE in text
    assert ENDPOINT_VARIABLE in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str) -> None:
    text = (DOCS / "cli.md").read_text("utf-8")
    assert re.search(rf"{re.escape(name)}\b", text), f"docs/cli.md lacks `{name}`"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    text = (DOCS / "cli.md").read_text("utf-8")
    options = [
        option
        for parameter in COMMANDS[name].params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for option in parameter.opts
        if option.startswith("--")
    ]
    missing = [option for option in options if not re.search(rf"{option}\b(?!-)", text)]
    assert missing == [], f"docs/cli.md lacks options of `{name}`"
