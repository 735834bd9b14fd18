"""Quoted places: files and modules of the project, links of pages, headings, decisions.

A path is quoted where a text names something in one of the project's folders. With `*` or a part
that stands for any (`STAGE`, `{name}`, `…`) one file at least must fit.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from tallybus.common.settings.sections import SETTINGS
from tests.documents.commands import Complaint
from tests.documents.names import FILES, REPORTED, SOCKETS, is_attribute, names_of
from tests.documents.texts import CODE, PROJECT, Piece, code, of_markdown

FOLDERS: Final = (*CODE, "benchmarks", "deploy", "docs", "examples", "scripts", "tests")
MADE: Final = ("data", "run", "target", "node_modules", ".venv", "scripts/.venv")
"""Folders that are made by what runs, and in no checkout."""
OTHER_FILES: Final = {"numpy.py"}
"""Files that a page tells of and that are nobody's."""
ORDINARY: Final = {"csv", "data", "log", "memory", "table"}
"""Modules whose names other things have too: instructions of WebAssembly, modules of Python."""
_PATH: Final = re.compile(
    rf"(?<![\w./~:-])(?:\.\./)*((?:{'|'.join(FOLDERS)})/[\w./*{{}},<>…-]*)(?:#([\w-]+))?"
)
_MODULE: Final = re.compile(rf"(?:tallybus|{'|'.join(FOLDERS)})(?:\.[a-z_]\w*)+(?:\.[A-Z]\w*)*")
_LINK: Final = re.compile(r"(?<!\\)\[(?:[^\]\[]|\[[^\]]*\])*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_SOURCE: Final = re.compile(r"""\b(?:src|href)=["']([^"']+)["']""")
_UNIT: Final = re.compile(
    r"(?<![\w./@-])((?:tallybus)(?:-[\w{},*<>]+)?\.(?:service|target|socket|timer|slice|sysusers))\b(?!\.)"
)
_ADR: Final = re.compile(r"\bADRs? +(?:\[)?0*(\d+)\b|\badr/(\d{4})\b")
_HEADING: Final = re.compile(r"^ {0,3}(#{1,6}) +(.*?)(?: +#+)? *$", re.MULTILINE)


@cache
def files() -> tuple[str, ...]:
    """Every file and folder of the project by its path, also as the public package has it."""
    found: list[str] = []
    for top in (*FOLDERS, ".ci"):
        for path in (PROJECT / top).rglob("*"):
            if "__pycache__" not in path.parts:
                found.append(path.relative_to(PROJECT).as_posix())
    return tuple(found)


def path_complaints(piece: Piece) -> Iterator[Complaint]:
    """Paths into the project's folders: there is such a file, and in it such a heading."""
    for match in _PATH.finditer(piece.text):
        path, anchor = match[1].rstrip(".,-"), match[2]
        if re.search(r"https?://\S*$", piece.text[: match.start()]):
            continue
        if re.fullmatch(r"docs/adr/\d{4}", path):
            continue  # the number alone: see decision_complaints
        if not exists(path):
            yield Complaint(piece.place(match.start()), f"there is no {path}")
        elif anchor and not re.search(r"[*{<…]", path) and anchor not in anchors(PROJECT / path):
            yield Complaint(piece.place(match.start()), f"{path} has no heading #{anchor}")


def exists(path: str) -> bool:
    """Whether there is such a file or folder; parts that stand for any may be anything."""
    if any(part in MADE for part in path.split("/")):
        return True
    pattern = re.sub(r"\{[^}]*\}|<[^>]*>|…|(?<![A-Za-z])[A-Z][A-Z_]+(?![a-z.\w])", "*", path)
    if not re.search(r"[*?]", pattern):
        return (PROJECT / path).exists()
    pattern = pattern.rstrip("/").replace("**", "*")
    return any(fnmatch.fnmatchcase(each, pattern) for each in files())


def module_complaints(piece: Piece) -> Iterator[Complaint]:
    """Spans that are dotted names of modules, with or without the package's name before them."""
    for span, offset in piece.spans():
        match = _MODULE.fullmatch(span.split("(")[0])
        if match and span.endswith(".toml"):
            continue  # a file of settings
        if match and not is_module(span.split("(")[0]):
            yield Complaint(piece.place(offset), f"there is no module {span}")


def member_complaints(piece: Piece) -> Iterator[Complaint]:
    """Spans such as `link.py`, `files.replace`, `engine.Executed`: the module has that name."""
    for span, offset in piece.spans():
        if re.fullmatch(r"(?:\w+/)*\w+\.py", span):
            there = any(each == span or each.endswith(f"/{span}") for each in files())
            if not there and span not in OTHER_FILES:
                yield Complaint(piece.place(offset), f"there is no file {span}")
            continue
        match = re.fullmatch(r"([a-z_]+)\.([A-Za-z_]\w*)(?:\(.*\))?", span)
        if match is None or match[1] not in modules() or match[1] in ORDINARY:
            continue
        if (
            match[2] in FILES | SOCKETS | REPORTED
            or match[0] in SETTINGS
            or is_attribute(piece, match[1], match[2])
        ):
            continue
        if not has_member(match[1], match[2]):
            yield Complaint(piece.place(offset), f"no module {match[1]} has a {match[2]}")


@cache
def modules() -> dict[str, list[Path]]:
    """Modules of the product by the last part of their names; of packages the folder."""
    found: dict[str, list[Path]] = {}
    for path in code():
        if path.name == "__init__.py":
            found.setdefault(path.parent.name, []).append(path.parent)
        else:
            found.setdefault(path.stem, []).append(path)
    return found


def has_member(module: str, name: str) -> bool:
    for path in modules()[module]:
        if path.is_dir():
            if (path / f"{name}.py").exists() or (path / name).is_dir():
                return True
            path = path / "__init__.py"
        if name in names_in_file(path):
            return True
    return False


@cache
def names_in_file(path: Path) -> frozenset[str]:
    return frozenset(names_of(path.read_text("utf-8")))


def is_module(name: str) -> bool:
    """Whether it is a module, or something that a module defines."""
    parts = name.split(".")
    if parts[0] == "tallybus" and parts[1:2] and parts[1] in CODE:
        parts = parts[1:]
    place = PROJECT
    for number, part in enumerate(parts):
        if (place / part).is_dir():
            place = place / part
            continue
        module = place / f"{part}.py"
        rest = parts[number + 1 :]
        if not module.exists():
            module, rest = place / "__init__.py", parts[number:]
        if not module.exists():
            return False
        return names_in_file(module).issuperset(rest)
    return True


def link_complaints(path: Path, top: Path = PROJECT) -> Iterator[Complaint]:
    """Links of a page, of its pictures too: what they lead to is there, and so is the heading."""
    relative = path.relative_to(top).as_posix()
    for piece in of_markdown(path.read_text("utf-8"), relative):
        if piece.kind != "prose":
            continue
        text = re.sub(r"(`+)(.+?)\1(?!`)", lambda m: " " * len(m[0]), piece.text)
        for match in [*_LINK.finditer(text), *_SOURCE.finditer(text)]:
            # A picture that is a link has its own within the brackets.
            for target in {match[1], *re.findall(r"\]\(([^)\s]+)", match[0][:-1])}:
                yield from _of_link(path, piece.place(match.start()), target)


def _of_link(path: Path, place: str, target: str) -> Iterator[Complaint]:
    if re.match(r"[a-z]+:", target):
        return
    file, _, anchor = target.partition("#")
    linked = (path.parent / file).resolve() if file else path
    if not linked.exists():
        yield Complaint(place, f"the link {target} leads nowhere")
    elif anchor and anchor not in anchors(linked):
        yield Complaint(place, f"the link {target}: the page has no such heading")


@cache
def anchors(path: Path) -> frozenset[str]:
    """Headings of a page as its links call them."""
    if path.suffix != ".md":
        return frozenset()
    return frozenset(anchors_of(path.read_text("utf-8")))


def anchors_of(text: str) -> Iterator[str]:
    seen: dict[str, int] = {}
    for piece in of_markdown(text, ""):
        if piece.kind != "prose":
            continue
        for match in _HEADING.finditer(piece.text):
            shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", match[2])
            name = re.sub(r"[^\w\- ]", "", shown.replace("`", "").lower()).replace(" ", "-")
            number = seen.get(name, 0)
            seen[name] = number + 1
            yield f"{name}-{number}" if number else name
        yield from re.findall(r"""<a (?:id|name)=["']([^"']+)["']""", piece.text)


@cache
def decisions() -> frozenset[int]:
    """Numbers of the decisions that are recorded."""
    return frozenset(int(path.name[:4]) for path in (PROJECT / "docs" / "adr").glob("[0-9]*.md"))


def unit_complaints(piece: Piece) -> Iterator[Complaint]:
    """`tallybus-wal.service`: there is such a unit."""
    for match in _UNIT.finditer(piece.text):
        if not exists(f"deploy/systemd/{match[1]}"):
            yield Complaint(piece.place(match.start()), f"there is no unit {match[1]}")


def decision_complaints(piece: Piece) -> Iterator[Complaint]:
    for match in _ADR.finditer(piece.text):
        number = int(match[1] or match[2])
        if number not in decisions():
            yield Complaint(piece.place(match.start()), f"there is no ADR {number}")
