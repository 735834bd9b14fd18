"""Quoted commands: `tallybus …` as the command line takes it, `python -m …`, and single options.

A quoted command is checked with the product's own tree of commands: that the command is there, that
it has each option, and that a value written out is one that it takes. What stands for a value is
not looked at: `N`, `FILE`, `[PARAM...]`, `<name>`, `$variable`, and whatever has `…` in it.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

import click

from tallybus.cli import main
from tallybus.common.errors import SettingsError
from tallybus.common.settings.sections import SETTINGS
from tests.documents.texts import GAP, PROJECT, Piece

SHELL: Final = {"console", "sh", "bash", "shell"}
OTHER_WORDS: Final = {"and", "again", "is", "tallybus", "with"}
"""They follow the product's name in a sentence, and are no commands of it."""
OTHER_OPTIONS: Final = {
    "--allow": "what ADR 0023 considered, and did not take",
    "--no-log-prefix": "docker compose logs",
    "--optimize": "asc",
    "--preload": "gunicorn",
    "--runtime": "asc",
    "--use": "asc",
}
"""Options of other tools that are quoted alone, without the tool's name before them, and whose."""
_PLACEHOLDER: Final = re.compile(rf"[{GAP}$<{{\[*]|\.\.\.|(?:^|[^a-z0-9])[A-Z][A-Z_]*(?![a-z])")
_NAME: Final = re.compile(r"(?<![\w.:=/-])(?:/[\w./-]*bin/)?tallybus(?=\s)")
_END: Final = re.compile(r"(?<=\s)(?:\||\|\||&&|&|;|>|>>|<|2>|2>&1)(?=\s|$)|;\s|\)(?=\s|$)|$")
_OPTION: Final = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_MODULE: Final = re.compile(r"\bpython3? (?:-[PIu] )*-m ([a-z_][\w.]*)([^\n|;)]*)")


class Complaint(NamedTuple):
    place: str
    what: str

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@cache
def command_at(*path: str) -> click.Command | None:
    """The command of these words, or None."""
    command: click.Command = main
    for word in path:
        if not isinstance(command, click.Group):
            return None
        inner = command.get_command(click.Context(command), word)
        if inner is None:
            return None
        command = inner
    return command


@cache
def all_options() -> frozenset[str]:
    """Every option of every command."""
    found = {"--help"}
    waiting: list[click.Command] = [main]
    while waiting:
        command = waiting.pop()
        found |= {option for parameter in command.params for option in parameter.opts}
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                waiting.append(inner)
    return frozenset(option for option in found if option.startswith("--"))


def stands_for_something(word: str) -> bool:
    """Whether a word of a quoted command is no value but the place of one."""
    return word == "" or _PLACEHOLDER.search(word) is not None


def words_of(command: str) -> list[str]:
    """The words of a command up to its comment, without the brackets around optional ones."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        words = command.split()
    bare = []
    for word in words:
        if word.startswith("[") and word[1:2] not in ("", ":"):
            word = word[1:]
        if word.endswith("]") and "[" not in word:
            word = word[:-1]
        bare.append(word)
    return bare


def problems(words: Sequence[str], whole: bool) -> Iterator[str]:
    """What is wrong with a command, given without its first word.

    `whole`: it is meant to be run as it stands, so nothing that it needs may be missing.
    """
    command: click.Command = main
    context = click.Context(command, info_name="tallybus")
    rest = list(words)
    while isinstance(command, click.Group):
        if not rest or stands_for_something(rest[0]):
            return
        if rest[0].startswith("-"):
            break
        word, *rest = rest
        names = word.split("|")
        if len(names) > 1 and isinstance(command, click.Group):
            for name in names:
                yield from problems([*_path(context), name, *rest], whole=False)
            return
        inner = command.get_command(context, word)
        if inner is None:
            yield f"`{' '.join(['tallybus', *_path(context), word])}`: there is no such command"
            return
        command = inner
        context = click.Context(command, info_name=word, parent=context)
    yield from _of_arguments(command, context, rest, whole and bool(rest))


def _path(context: click.Context) -> list[str]:
    return context.command_path.split()[1:]


def _of_arguments(
    command: click.Command, context: click.Context, words: list[str], whole: bool
) -> Iterator[str]:
    shown = f"`{context.command_path}`"
    options = {
        name: each
        for each in command.params
        if isinstance(each, click.Option)
        for name in (*each.opts, *each.secondary_opts)
    }
    given: set[str] = set()
    values: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not re.match(r"--?[a-zA-Z]", word):
            values.append(word)
            continue
        name, equals, value = word.partition("=")
        if name in ("--help", "-h"):
            return
        if stands_for_something(name):
            continue
        if name not in options:
            yield f"{shown} has no option {name}"
            return
        option = options[name]
        given.add(option.name or "")
        if option.is_flag:
            continue
        if not equals:
            if not waiting:
                if whole:
                    yield f"{shown}: {name} has no value"
                return
            value = waiting.pop(0)
        yield from _of_value(option, context, value, name)
    yield from _of_values(command, context, values, whole)
    missing = [
        each.opts[0]
        for each in command.params
        if isinstance(each, click.Option) and each.required and each.name not in given
    ]
    if whole and missing:
        yield f"{shown} needs {', '.join(missing)}"


def _of_values(
    command: click.Command, context: click.Context, values: list[str], whole: bool
) -> Iterator[str]:
    shown = f"`{context.command_path}`"
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    left = list(values)
    for argument in arguments:
        if argument.nargs == -1:
            taken, left = left, []
        else:
            taken, left = left[:1], left[1:]
        if not taken and argument.required and whole:
            yield f"{shown} needs {argument.human_readable_name}"
        for value in taken:
            yield from _of_value(argument, context, value, argument.human_readable_name)
    if left:
        yield f"{shown} takes no {left[0]!r}"


def _of_value(
    parameter: click.Parameter, context: click.Context, value: str, name: str
) -> Iterator[str]:
    if name == "--set":
        yield from _of_setting(value)
        return
    if stands_for_something(value) or isinstance(parameter.type, (click.Path, click.File)):
        return
    for each in value.split("|"):
        try:
            parameter.type.convert(each, parameter, context)
        except click.BadParameter as error:
            yield f"`{context.command_path}`: {name} {each}: {error.message}"


def _of_setting(text: str) -> Iterator[str]:
    key, equals, value = text.partition("=")
    if stands_for_something(key):
        return
    if key not in SETTINGS:
        yield f"--set {text}: there is no setting {key}"
    elif not equals:
        yield f"--set {text}: no value is given"
    elif not stands_for_something(value):
        try:
            SETTINGS[key].parse(value, "--set")
        except SettingsError as error:
            yield f"--set {text}: {error}"


def lines_of(piece: Piece) -> Iterator[tuple[str, int]]:
    """The commands of a block: of a console those behind a prompt, else every line.

    A command goes on in the next line behind a backslash or a bar.
    """
    offset = 0
    gathered, start = "", 0
    for line in piece.text.splitlines(keepends=True):
        text = line.strip()
        if not gathered:
            prompt = re.match(r"(?:\w+)?\$ +", text)
            if prompt:
                text = text[prompt.end() :]
            elif piece.language == "console":
                text = ""
            start = offset
        offset += len(line)
        if text.endswith("\\"):
            gathered += text[:-1] + " "
        elif text.endswith("|"):
            gathered += text + " "
        else:
            if gathered + text:
                yield gathered + text, start
            gathered = ""


def quoted(piece: Piece) -> Iterator[tuple[str, bool, int]]:
    """Commands in a piece from behind `tallybus` on, whether each is whole, and its offset."""
    if piece.kind == "fenced" and piece.language in SHELL:
        for line, offset in lines_of(piece):
            for command in _in_line(_without_comment(line)):
                yield command, True, offset
        return
    spans = list(piece.spans())
    for span, offset in spans:
        for command in _in_line(span):
            yield command, True, offset
    plain = piece.text
    for match in re.finditer(r"(`+)(.+?)\1(?!`)", plain, re.DOTALL):
        plain = plain.replace(match[0], " " * len(match[0]), 1)
    end_of_text = "\n" if piece.kind == "file" else "\n\n"
    for match in _NAME.finditer(plain):
        line = plain[match.end() :].split(end_of_text)[0]
        command = _of_sentence(line)
        if command:
            yield command, False, match.start()


def _without_comment(line: str) -> str:
    return re.split(r"\s#", line, maxsplit=1)[0]


def _in_line(line: str) -> Iterator[str]:
    for match in _NAME.finditer(line):
        if re.search(r"(?:^|\s)-[a-z]\s+$", line[: match.start()]):
            continue  # the value of an option of another tool: a user, a tag
        rest = line[match.end() :]
        end = _END.search(rest)
        assert end is not None
        yield rest[: end.start()].strip()


def _of_sentence(line: str) -> str:
    """What of a sentence belongs to a command: its words, and options with their values."""
    taken: list[str] = []
    command: click.Command | None = main
    for word in line.split():
        bare = word.strip(",.;:)\"'")
        if isinstance(command, click.Group) and re.fullmatch(r"[a-z]+(?:\|[a-z]+)*", bare):
            if not taken and bare in OTHER_WORDS:
                break
            taken.append(bare)
            command = command.get_command(click.Context(command), bare.split("|")[0])
        elif taken and (word.startswith("--") or taken[-1].startswith("--")):
            taken.append(bare)
        else:
            break
        if bare != word:
            break
    return " ".join(taken)


def complaints(piece: Piece) -> Iterator[Complaint]:
    """Everything that is wrong with the commands quoted in a piece."""
    for command, whole, offset in quoted(piece):
        for problem in problems(words_of(command), whole):
            yield Complaint(piece.place(offset), problem)


def option_complaints(piece: Piece) -> Iterator[Complaint]:
    """Options that are quoted without a command, and that no command has."""
    for span, offset in piece.spans():
        if span.startswith("--"):
            yield from _unknown_options(piece, span, offset)
    if piece.kind not in ("string", "comment") or _OPTION.fullmatch(piece.text):
        return
    if "`" not in piece.text and not re.search(r"docker|pip |cargo|git |asc ", piece.text):
        yield from _unknown_options(piece, piece.text, 0)


def _unknown_options(piece: Piece, text: str, offset: int) -> Iterator[Complaint]:
    known = all_options() | OTHER_OPTIONS.keys() | options_of_modules_in(piece.path)
    for match in _OPTION.finditer(text):
        if match[0] not in known:
            yield Complaint(piece.place(offset), f"no command has an option {match[0]}")


@cache
def options_of_modules_in(page: str) -> frozenset[str]:
    """A page that says `python -m MODULE` tells of that module's options, in a table perhaps."""
    if not page.endswith(".md"):
        return frozenset()
    found: set[str] = set()
    for match in _MODULE.finditer((PROJECT / page).read_text("utf-8")):
        found |= options_in(source_of(match[1].rstrip(".")))
    return frozenset(found)


def module_complaints(piece: Piece) -> Iterator[Complaint]:
    """`python -m MODULE --option`: the module is there, and its source names the option."""
    for match in _MODULE.finditer(re.sub(r"\\\n", " ", piece.text)):
        name, rest = match[1].rstrip("."), re.split(r"[`#]", match[2])[0]
        if name.split(".")[0] not in ("tallybus", "tests", "benchmarks", "common", "services"):
            continue
        if stands_for_something(name):
            continue
        files = source_of(name)
        if not files:
            yield Complaint(
                piece.place(match.start()), f"python -m {name}: there is no such module"
            )
            continue
        if name == "tallybus":
            continue
        known = options_in(files)
        for option in _OPTION.findall(rest):
            if option not in known:
                yield Complaint(
                    piece.place(match.start()), f"python -m {name} has no option {option}"
                )


def source_of(name: str) -> list[Path]:
    """The file of a module that can be run, and what else lies in its package."""
    path = PROJECT.joinpath(*name.split("."))
    if (path / "__main__.py").exists():
        return sorted(path.glob("*.py"))
    return [path.with_suffix(".py")] if path.with_suffix(".py").exists() else []


def options_in(files: Sequence[Path]) -> set[str]:
    return {
        str(node.value)
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and str(node.value).startswith("--")
    }
