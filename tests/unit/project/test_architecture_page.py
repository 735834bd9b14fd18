"""`docs/architecture.md` names files, functions and packages that are there, all of them where it
lists them. Read from the source: nothing is imported."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tallybus.common.settings.sections import SETTINGS
from tests.support.folders import DOCS, PROJECT

PAGE = (DOCS / "architecture.md").read_text("utf-8")
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text("utf-8")
PATH = r"`((?:common|services|tallybus|tests|benchmarks)/[\w/]+\.py)`"
NAMED = re.compile(rf"{PATH}:\s((?:`[\w.]+`(?:,\s(?=`\w+(?:\.\w+)?`))?)+)")
"""A file, and the names that the page says are in it."""
DOTTED = re.compile(r"`([A-Z]\w*[a-z]\w*\.\w+)`")
LEAST_ROWS = 30


def names_in(source: str) -> set[str]:
    """What a module defines: functions, constants, classes, and `Class.member` of these."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        found |= assigned(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{member}" for member in members(node)}
    return found


def assigned(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {each.id for each in targets if isinstance(each, ast.Name)}


def members(node: ast.ClassDef) -> set[str]:
    found = {name for each in node.body for name in assigned(each)}
    for each in ast.walk(node):
        if (
            isinstance(each, ast.Attribute)
            and isinstance(each.ctx, ast.Store)
            and isinstance(each.value, ast.Name)
            and each.value.id == "self"
        ):
            found.add(each.attr)
    return found


def missing_names(page: str) -> list[str]:
    """What a page says is in a file and is not."""
    missing = []
    for path, names in NAMED.findall(page):
        source = (PROJECT / path).read_text("utf-8")
        there = names_in(source)
        missing += [f"{path}: {name}" for name in re.findall(r"[\w.]+", names) if name not in there]
    return missing


@functools.cache
def all_names() -> frozenset[str]:
    """What all modules of ours define."""
    return frozenset(
        name
        for folder in ("common", "services", "tallybus", "tests")
        for path in (PROJECT / folder).rglob("*.py")
        for name in names_in(path.read_text("utf-8"))
    )


def unknown_members(page: str) -> set[str]:
    """Every `Class.member` that is in no file of ours, wherever the page names it."""
    return set(DOTTED.findall(page)) - all_names()


def table_rows(section: str) -> list[list[str]]:
    """The cells of all tables below the heading `section`, without their headers."""
    level = re.search(rf"^(#+) {re.escape(section)}$", PAGE, re.MULTILINE)
    assert level is not None, f"docs/architecture.md lacks {section}"
    text = re.split(rf"^#{{1,{len(level[1])}}} ", PAGE[level.end() :], flags=re.MULTILINE)[0]
    rows: list[list[str]] = []
    for line in text.splitlines():
        if line.startswith("|---"):
            rows.pop()
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("page", [PAGE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_every_name_is_in_the_file_that_it_stands_behind(page: str) -> None:
    assert len(NAMED.findall(page)) > 20
    assert missing_names(page) == []


@pytest.mark.parametrize("page", [PAGE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_every_member_of_a_class_is_there(page: str) -> None:
    assert unknown_members(page) == set()


def test_a_name_that_is_not_there_is_found() -> None:
    page = "`common/stages.py`: `STAGES`, `Gone`; `common/bus/link.py`: `LinkSender.gone`"
    assert missing_names(page) == ["common/stages.py: Gone", "common/bus/link.py: LinkSender.gone"]
    assert unknown_members("`LinkSender.offer` and `Nobody.here`") == {"Nobody.here"}


def test_names_of_all_kinds_are_seen() -> None:
    source = """
A = 1
B: int = 2
def f(): ...
class C:
    d = 3
    e: int
    def g(self):
        self.h = 4
"""
    assert names_in(source) == {"A", "B", "f", "C", "C.d", "C.e", "C.g", "C.h"}


def test_settings_in_the_page_exist() -> None:
    sections = {key.partition(".")[0] for key in SETTINGS}
    named = {
        name
        for name in re.findall(r"`([a-z]+\.[a-z_]+)`", PAGE)
        if name.partition(".")[0] in sections and not name.endswith(".py")
    }
    assert named <= set(SETTINGS)


def test_the_table_of_what_to_open_has_its_rows() -> None:
    rows = table_rows("To change X, open Y")
    assert len(rows) >= LEAST_ROWS
    assert [
        row for row in rows if len(row) != 2 or not re.search(r"`[\w/]+\.(py|js)`", row[1])
    ] == []
    asked = [row[0] for row in rows]
    assert len(set(asked)) == len(asked)


def test_the_page_has_every_package() -> None:
    """Of the code: none comes without its line in the map."""
    packages = {
        f"{path.parent.relative_to(PROJECT)}/"
        for folder in ("common", "services", "tallybus")
        for path in (PROJECT / folder).rglob("__init__.py")
        if not (folder == "tallybus" and path.is_relative_to(PROJECT / "tallybus" / "common"))
        and not (folder == "tallybus" and path.is_relative_to(PROJECT / "tallybus" / "services"))
    }
    assert packages - set(re.findall(r"`((?:common|services|tallybus)/[\w/]*)`", PAGE)) == set()


def floors() -> dict[str, set[str]]:
    """The table that `test_architecture.py` holds the imports to."""
    tree = ast.parse((Path(__file__).parent / "test_architecture.py").read_text("utf-8"))
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and assigned(node) == {"FLOORS"}
    )
    assert isinstance(value, ast.Dict)
    return {
        ast.literal_eval(key): {ast.literal_eval(each) for each in getattr(allowed, "elts", ())}
        for key, allowed in zip(value.keys, value.values, strict=True)
        if key is not None
    }


def test_the_packages_of_common_and_what_they_may_import_are_as_held() -> None:
    told = {
        row[0].strip("`").removeprefix("common/").strip("/"): {
            name for name in row[2].split(", ") if name
        }
        for row in table_rows("The packages of common")
    }
    held = {
        package or "the root": {each or "root" for each in allowed}
        for package, allowed in floors().items()
    }
    assert told == held
    assert list(told) == list(held)


def test_every_decision_is_linked() -> None:
    records = {path.name for path in (DOCS / "adr").glob("*.md")}
    assert set(re.findall(r"\(adr/([\w-]+\.md)\)", PAGE)) == records
