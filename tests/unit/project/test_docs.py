"""The reference pages name everything there is, and nothing that is not."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tallybus.cli import main
from tallybus.common.settings.sections import CONFIG_VARIABLE, ENDPOINT_VARIABLE, SETTINGS
from tests.support.folders import DOCS, PROJECT

PAGES = sorted(
    [
        *PROJECT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(PROJECT / "examples").rglob("*.md"),
        *(PROJECT / "deploy").rglob("*.md"),
    ]
)


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


def dead_links(page: Path) -> list[str]:
    """Links to a file that is not there, or to a heading that the page has not."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if link.startswith(("https:", "http:", "mailto:")):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            dead.append(link)
        elif heading and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
            if heading not in {
                re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles
            }:
                dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title, `quoted`\n[a](gone.md) [b](#a-title-quoted) [c](#other) [d](page.md)"
    )
    assert dead_links(page) == ["gone.md", "#other"]


def test_source_paths_in_pages_exist() -> None:
    named = re.compile(r"`((?:common|services|tallybus|tests|scripts|benchmarks|docs)/[\w./-]+)`")
    missing = [
        f"{page.relative_to(PROJECT)}: {path}"
        for page in PAGES
        if page.name != "CHANGELOG.md"  # it tells of files that are gone by now
        for path in named.findall(page.read_text("utf-8"))
        if not (PROJECT / path).exists()
    ]
    assert missing == []
