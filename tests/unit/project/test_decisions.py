"""Code that a decision record explains names it, as `ADR 0007`; what it names is there."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.folders import DOCS, PROJECT

RECORDS = {path.name[:4]: path for path in sorted((DOCS / "adr").glob("*.md"))}
ABOUT_DOCUMENTS = {"0001"}
"""Records that no code follows from."""
NAMED = re.compile(r"\bADRs? (\d+)\b")
LINK = re.compile(r"adr/(\d+)\b")


def sources() -> list[Path]:
    """Everything that a program reads, but for tests of this very rule."""
    found = [
        path
        for folder in ("common", "services", "tallybus", "tests", "benchmarks", "scripts", "deploy")
        for path in sorted((PROJECT / folder).rglob("*"))
        if path.suffix in (".py", ".js", ".toml", ".yml", ".service") or folder == "scripts"
        if path.is_file() and path != Path(__file__)
    ]
    return [*found, PROJECT / "pyproject.toml", *PROJECT.glob("compose*.yaml")]


def named() -> dict[str, set[str]]:
    """The files that name a record, by its number as they write it."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sources():
        text = path.read_text("utf-8", errors="replace")
        for number in (*NAMED.findall(text), *LINK.findall(text)):
            found[number].add(str(path.relative_to(PROJECT)))
    return found


WHERE = named()


def test_records_are_numbered_without_gaps() -> None:
    assert [int(number) for number in RECORDS] == list(range(1, len(RECORDS) + 1))
    for number, path in RECORDS.items():
        text = path.read_text("utf-8")
        assert text.startswith(f"# {int(number)}. "), path.name
        assert re.search(r"^Status: \w+", text, re.MULTILINE), path.name


@pytest.mark.parametrize("number", sorted(set(RECORDS) - ABOUT_DOCUMENTS))
def test_code_names_the_record_that_explains_it(number: str) -> None:
    assert WHERE.get(number), f"no source file names ADR {number}"


def test_what_code_names_is_there() -> None:
    assert {number: sorted(WHERE[number]) for number in set(WHERE) - set(RECORDS)} == {}


def test_the_map_leads_to_code_that_names_the_record() -> None:
    page = (DOCS / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| \[\d+\. .*?\]\(adr/(\d+)[\w-]*\.md\) \| (.*) \|$", page, re.MULTILINE)
    assert {number for number, _ in rows} == set(RECORDS)
    silent = [
        f"{path} does not name ADR {number}"
        for number, cell in rows
        for path in re.findall(r"`([\w/]+\.py)`", cell)
        if path not in WHERE[number]
    ]
    assert silent == []
