"""The index of the documents lists every page, and the README leads to it."""

from pathlib import Path

import pytest

from tests.support.folders import DOCS, PROJECT

PAGES = sorted(path for path in DOCS.glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_index_lists_every_page(page: Path) -> None:
    assert f"]({page.name})" in (DOCS / "README.md").read_text("utf-8")


def test_the_readme_leads_to_the_index() -> None:
    assert "](docs/README.md)" in (PROJECT / "README.md").read_text("utf-8")


def test_the_index_has_the_order_in_which_to_read() -> None:
    lines = (DOCS / "README.md").read_text("utf-8").splitlines()
    titles = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert titles == ["Start", "Concepts", "Guides", "Reference", "Internals"]
