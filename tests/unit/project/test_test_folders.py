"""The tests are a map of the code: the same folders, the same names, and no test leans on another.

`tests/README.md` is that map in words.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tallybus.common.stages import STAGES
from tests.support.folders import PROJECT

TESTS = PROJECT / "tests"
UNIT = TESTS / "unit"
MIRRORED = ("common", "services", "tallybus")
MOST_LINES = 600
# Test modules of a subject that no one module has: what they are about, beside where they lie.
SUBJECTS = {
    "tallybus/cli/test_commands.py": ("__init__", "config", "operate"),
    "tallybus/client/test_interruptions.py": ("sync", "aio"),
}
# What is imported, with the module that it is from: a test module or something in one.
FROM_A_TEST = re.compile(r"tests(?:\.\w+)*\.test_")
# Orders of their own, which no list in `common/stages.py` has.
ORDERS = {"compose/stack.py"}

SOURCES = sorted(TESTS.rglob("*.py"))
MODULES = [path for path in SOURCES if path.name.startswith("test_")]
MIRRORS = [path for each in MIRRORED for path in sorted((UNIT / each).rglob("test_*.py"))]


def name_of(path: Path) -> str:
    return str(path.relative_to(TESTS))


def code_beside(path: Path) -> Path:
    """The folder of code that a folder below `tests/unit` mirrors."""
    return PROJECT / path.relative_to(UNIT)


def names_in(folder: Path) -> set[str]:
    """The modules and packages of a folder of code."""
    return {
        each.stem
        for each in folder.iterdir()
        if each.suffix == ".py" or (each / "__init__.py").exists()
    }


def imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports, wherever that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports in tests are absolute"
            yield from (f"{node.module}.{each.name}" for each in node.names)


def test_every_folder_of_unit_tests_mirrors_a_package() -> None:
    folders = {path.parent for path in MIRRORS}
    assert len(folders) > 20
    for folder in folders:
        beside = code_beside(folder)
        assert (beside / "__init__.py").exists(), f"{name_of(folder)} mirrors no package"
    assert {each.name for each in UNIT.iterdir() if any(each.glob("**/test_*.py"))} == {
        *MIRRORED,
        "project",
    }


def test_unit_tests_are_named_for_what_lies_at_their_place_in_the_code() -> None:
    """`test_log.py` and `test_log_damage.py` are about `log`, a module or package."""
    for path in MIRRORS:
        there = names_in(code_beside(path.parent))
        subject = path.stem.removeprefix("test_")
        about = [each for each in there if f"{subject}_".startswith(f"{each}_")]
        told = SUBJECTS.get(str(path.relative_to(UNIT)))
        if told is None:
            assert about, f"{name_of(path)}: no module beside it begins its name, of {there}"
        else:
            assert about == [], f"{name_of(path)} is named for {about}: it needs no row in SUBJECTS"
            assert set(told) <= there


def test_subjects_and_orders_that_are_excused_are_there() -> None:
    assert [each for each in SUBJECTS if not (UNIT / each).exists()] == []
    assert [each for each in ORDERS if not (TESTS / each).exists()] == []


def test_nothing_imports_from_a_test_module() -> None:
    """Neither in its own imports nor in programs that it starts: what two need is a helper."""
    for path in SOURCES:
        text = path.read_text("utf-8")
        found = [each for each in imported(ast.parse(text)) if FROM_A_TEST.search(each)]
        found += re.findall(rf"\b(?:from|import) +({FROM_A_TEST.pattern}\w*)", text)
        assert found == [], name_of(path)


def test_no_test_module_is_long() -> None:
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in MODULES}
    long = {name: lines for name, lines in lengths.items() if lines > MOST_LINES}
    assert long == {}, "split them by their sections"


def test_lists_of_services_are_taken_from_the_product() -> None:
    """`common/stages.py` has them, in every order in which anything happens."""
    for path in SOURCES:
        if name_of(path) in ORDERS:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                values = node.elts
            elif isinstance(node, ast.Call):
                values = node.args
            else:
                continue
            names = {each.value for each in values if isinstance(each, ast.Constant)}
            assert not names >= set(STAGES), f"{name_of(path)}:{node.lineno} lists the stages"


def test_the_map_names_every_folder_and_only_what_is_there() -> None:
    text = (TESTS / "README.md").read_text("utf-8")
    named = set(re.findall(r"^\| `(\w+)/` ", text, re.MULTILINE))
    folders = {path.relative_to(TESTS).parts[0] for path in SOURCES if path.parent != TESTS}
    assert named == folders
    for path in re.findall(r"`((?:tests|common|services|tallybus|scripts)/[\w./]+)`", text):
        assert (PROJECT / path).exists(), f"tests/README.md names {path}"
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (TESTS / link).exists(), f"tests/README.md leads to {link}"
    for module in re.findall(r"python -m (tests[.\w]*)", text):
        file = PROJECT / module.replace(".", "/")
        assert (file / "__main__.py").exists() or file.with_suffix(".py").exists(), module
