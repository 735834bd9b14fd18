"""Every page is wrapped at 100 columns, tables and code aside."""

import re
from pathlib import Path

import pytest

from tests.support.folders import DOCS, PROJECT

WIDTH = 100
PAGES = [
    *sorted(PROJECT.glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((PROJECT / "examples").rglob("*.md")),
    PROJECT / "tests" / "README.md",
]


def long_lines(text: str) -> list[int]:
    """Numbers of lines that are too long and could be broken: not those of one word, as a link."""
    fence = ""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if mark := re.match(r" *(```+)", line):
            if not fence:
                fence = mark[1]
            elif line.strip() == fence:
                fence = ""
            continue
        words = re.sub(r"^\s*([-*]|\d+\.)\s+", "", line).split()
        if len(line) > WIDTH and not fence and not line.startswith(("|", "#")) and len(words) > 1:
            found.append(number)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_lines_are_wrapped(page: Path) -> None:
    assert long_lines(page.read_text("utf-8")) == []


def test_a_long_line_is_found() -> None:
    long = "word " * 30
    assert long_lines(
        f"{long}\n```\n{long}\n```\n| {long} |\n- {long}\n# {long}\n{'x' * 120}\n"
    ) == [
        1,
        6,
    ]
