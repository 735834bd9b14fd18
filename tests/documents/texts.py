"""What the project says, in pieces: its documents, and the strings and comments of its code.

A piece of Markdown is a block between fences or a stretch of text between two of them; a piece of
Python is a string, a docstring or a group of comment lines; any other file is one piece. Checks go
over all pieces and say where what they dislike stands.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Final

PROJECT: Final = Path(__file__).resolve().parents[2]
CODE: Final = ("common", "services", "tallybus")
GAP: Final = "…"
"""Stands for what a string has filled in, and in examples for what differs from run to run."""
FENCE: Final = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")


@dataclass(frozen=True)
class Piece:
    """A text and where it stands. `kind`: prose, fenced, string, comment or file."""

    path: str
    line: int
    kind: str
    text: str
    info: str = ""
    """Of a fenced block, what stands behind its fence: the language first."""

    @property
    def language(self) -> str:
        return self.info.split()[0] if self.info else ""

    def place(self, offset: int = 0) -> str:
        return f"{self.path}:{self.line + self.text.count(chr(10), 0, offset)}"

    def spans(self) -> Iterator[tuple[str, int]]:
        """What stands between backticks, with its offset. Line ends in it count as blanks."""
        if self.kind in ("fenced", "file"):
            return
        for match in re.finditer(r"(`+)(.+?)\1(?!`)", self.text, re.DOTALL):
            if "\n\n" not in match[2]:
                yield re.sub(r"\s*\n\s*(#: ?|# )?", " ", match[2]).strip(), match.start(2)


def of_markdown(text: str, path: str) -> Iterator[Piece]:
    """Prose and fenced blocks in turns."""
    gathered: list[str] = []
    start, info, indent = 1, "", ""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        if fence and (not inside or not fence["info"].strip()):
            kind = "fenced" if inside else "prose"
            if gathered or inside:
                body = "".join(f"{each.removeprefix(indent)}\n" for each in gathered)
                yield Piece(path, start, kind, body, info if inside else "")
            inside = not inside
            info, indent = fence["info"].strip(), fence["indent"] if inside else ""
            gathered, start = [], number + 1
        else:
            gathered.append(line)
    assert not inside, f"{path}: the block at line {start - 1} has no end"
    if gathered:
        yield Piece(path, start, "prose", "".join(f"{line}\n" for line in gathered))


def of_python(source: str, path: str) -> Iterator[Piece]:
    """Strings (those that are filled in have a gap there), docstrings and comments."""
    tree = ast.parse(source)
    inner: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and node not in inner:
            inner.update(ast.walk(node))
            yield Piece(path, node.lineno, "string", "".join(_filled(node)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield Piece(path, node.lineno, "string", node.value)
    gathered: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if gathered and token.start[0] != last + 1:
            yield Piece(path, first, "comment", "\n".join(gathered))
            gathered = []
        if not gathered:
            first = token.start[0]
        last = token.start[0]
        gathered.append(token.string.lstrip("#:").strip())
    if gathered:
        yield Piece(path, first, "comment", "\n".join(gathered))


def _filled(node: ast.JoinedStr) -> Iterator[str]:
    for part in node.values:
        if isinstance(part, ast.Constant):
            yield str(part.value)
        else:
            yield GAP


def documents() -> list[Path]:
    """All pages for people: the changelog is of the past, and quotes what was."""
    found = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md"]
    for folder in ("docs", "examples", "deploy"):
        found += sorted((PROJECT / folder).rglob("*.md"))
    return [path for path in found if path.exists() and "node_modules" not in path.parts]


def code() -> list[Path]:
    """Every module of the product, each once: not by the links in the public package."""
    found: list[Path] = []
    for folder in CODE:
        for path in sorted((PROJECT / folder).rglob("*.py")):
            parts = path.relative_to(PROJECT).parts
            if parts[:2] not in (("tallybus", "common"), ("tallybus", "services")):
                found.append(path)
    return found


def other_files() -> list[Path]:
    """Settings, units, scripts, examples and the page's parts: what is not Python or Markdown."""
    found = [*PROJECT.glob("compose*.yaml"), PROJECT / "Dockerfile", PROJECT / ".ci" / "run"]
    found.append(PROJECT / "pyproject.toml")
    for pattern in (
        "scripts/*",
        "deploy/**/*",
        "examples/**/*",
        "services/gateway/page/static/*",
    ):
        found += PROJECT.glob(pattern)
    skipped = {".md", ".wasm", ".sha256", ".json", ".lock", ".svg"}
    return sorted(
        path
        for path in found
        if path.is_file()
        and path.suffix not in skipped
        and not {"node_modules", "target", "__pycache__"} & set(path.parts)
    )


def relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def without_mistakes(piece: Piece) -> Piece:
    """A session without the commands that it shows to fail: they may name what is not there.

    Whether they fail as shown is found by running them.
    """
    if piece.language != "console":
        return piece
    examples = re.split(r"^(?=\$ )", piece.text, flags=re.MULTILINE)
    kept = [
        "\n" * each.count("\n") if re.search(r"^Error: ", each, re.MULTILINE) else each
        for each in examples
    ]
    return replace(piece, text="".join(kept))


@cache
def of_documents() -> tuple[Piece, ...]:
    return tuple(
        without_mistakes(piece)
        for path in documents()
        for piece in of_markdown(path.read_text("utf-8"), relative(path))
    )


@cache
def of_code() -> tuple[Piece, ...]:
    return tuple(
        piece for path in code() for piece in of_python(path.read_text("utf-8"), relative(path))
    )


@cache
def of_other_files() -> tuple[Piece, ...]:
    return tuple(
        Piece(relative(path), 1, "file", path.read_text("utf-8")) for path in other_files()
    )


def everything() -> tuple[Piece, ...]:
    return of_documents() + of_code() + of_other_files()


def told(complaints: Iterable[str]) -> str:
    """Complaints as the message of a test that fails."""
    return "\n" + "\n".join(complaints)
