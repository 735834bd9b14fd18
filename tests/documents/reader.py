"""A reader who does what a page says: writes its files, types its commands, runs its Python.

What comes is compared with what the page shows. Everything in a block of `sh`, `console` or
`python` is run, except what `NOT_RUN` names and what has a place to fill in (`NAME`, `[PARAM...]`).

What a page shows, and how:

- A file: a block whose paragraph before it ends with its name in backticks, and a colon. A block of
  CSV without a name is the file that the next `tallybus import` reads.
- Output: in a block of `console`, behind each command; of a block of `sh`, in the block without a
  language that is the next one; of Python, in the block of `text` that is the next one. `…` stands
  for anything.
- In comments: what a rejected command says (`# rejected: INSUFFICIENT_FUNDS`), the balances that a
  command shows, and what a `print` prints.

A ledger with keys, which a page starts by `tallybus up --set security.keys=…`, is started here too,
on a folder of its own.

Ids of transactions depend on what the ledger had before: they may differ, but the same number must
mean the same transaction from one end of a page to the other. What else varies is in `VARIES`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import zmq
from click.testing import CliRunner

from tallybus.cli import main
from tallybus.common.record import Status
from tests.documents.commands import Complaint, lines_of, stands_for_something
from tests.documents.texts import GAP, PROJECT, Piece, of_markdown
from tests.processes.pipeline import make_settings, pipeline_of

ENDPOINT: Final = "tcp://127.0.0.1:5550"
"""What pages call the ledger; the reader's own listens somewhere else."""
PATIENCE_S: Final = 60
MOMENT_S: Final = 30

NOT_RUN: Final = {
    r"^source \.venv/bin/activate$": "the reader's shell has it",
    r"^scripts/(?!up .*security\.keys=)": "makes an environment, and starts what runs here already",
    r"^(sudo )?(docker|kubectl|install|systemctl|journalctl|ssh|cargo|npm|npx)\b": "another tool",
    r"^(python3 -m venv|export COMPOSE_FILE|LEDGER_ADDRESS=|pip )": "another tool",
    r"docker compose|wasm-dis": "another tool",
    r"^(first|second)\$": "on two hosts",
    r"/opt/tallybus|/etc/tallybus|/srv/": "an installation on a server",
    r"ledger\.example": "another machine",
    r"\bops\.key\b": "a key that containers have made",
    r"^tallybus (up|serve)\b(?!.*security\.keys=)": "starts services, and some run here already",
    r"^\.venv/bin/": "checks of the code",
    r"sys\.argv": "a program that is given a file; the tests of its page do",
    r"^tallybus (load|latency)\b": "measures; tests of the tools do",
    r"^tallybus clock accept$": "for a clock that has jumped",
    r"^tallybus health\b": "asks on ports that are the same for all ledgers of a machine",
    r"\bbig\.csv\b": "an import that a signal ends at a moment of its own",
    r"^tallybus top\b": "all of it are measured numbers; tests of `top` have its parts",
    r"0-9999999\b": "reads ten million accounts, which takes seconds",
    r"^python -m (tests|benchmarks)\.": "suites and measurements of their own",
    r"^curl ": "of a service that is not well",
}
"""Commands that are shown and not run, and why."""
VARIES: Final = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)": "a time",
    r"^(?:sequenced|computed|committed|snapshot) +\d+$": "how far the ledger is",
    r"\t\d+\t[0-9a-f]{16}\t.*": "a process, and how far it is",
    r"\t\d+ ns\t\d+ ns\t|\t\t\t(?=\d+\.\d{3} s)": "the time of sampled calls",
    r"\d+\.\d{3} s\b": "a measured time",
    r"(?<=in )\d+\.\d(?= of \d+ s)": "a measured time",
    r"\t[!-~]{40}(?=\t)": "a key",
    r"(?<=seconds) +\d+\.\d+": "a duration",
    r"'(?:incarnation|index|next|durable|peer)': \d+": "what a service tells of itself now",
    r"b's[a-z]?'": "for whom it tells it",
    r"(?<=public key )\S+": "a key",
    r"(?<=public=)\S+": "a key",
    r"(?<=ahead, )\d+ ms|\d+\.\d+ s\b": "a duration",
}
"""Parts of outputs that are others at each run, and what they are."""
JUMPED: Final = "the wall clock has jumped"
"""Shown by `tallybus clock` on a machine whose clock has: see the test of that command."""
BLOCKS_NOT_RUN: Final = re.compile(r"systemctl|docker |/opt/tallybus|/var/|pid_of|perf record")
"""A block with one of these is for a server, as a whole."""
NOT_SHOWN: Final[dict[str, Callable[[Path], bytes]]] = {
    "first.csv.gz": lambda folder: gzip.compress((folder / "first.csv").read_bytes()),
    "wrong.csv": lambda _: b"kind,account,amount\ndeposit,21,-5\n",
    "negative.csv": lambda _: b"kind,account,amount\ndeposit,21,5\ndeposit,21,-5\n",
    "twice.csv": lambda _: (
        b"kind,account,amount,counterparty,user_ref\n" + 2 * b"deposit,21,1,,900\n"
    ),
    "poor.csv": lambda _: b"kind,account,amount\ndeposit,21,1\nwithdrawal,23,1\n",
}
"""Files of which a page tells what is in them, and what comes of it, without showing them."""
_ID: Final = re.compile(r"(?<=transaction )( *)(\d+)")
_TOLD: Final = re.compile(r"\b(reject|refuse|DUPLICATE|fails|taken)")
_STATUSES: Final = {status.name for status in Status} - {"OK", "NONE"}


class Reader:
    """One page's reader: a folder to work in, a ledger that runs, and what was found wrong."""

    def __init__(self, folder: Path, endpoint: str, last_id: int) -> None:
        """`last_id`: of the ledger's last transaction; 0 where the page is the first to use it."""
        self.folder = folder
        self.endpoint = endpoint
        self.last_id = last_id
        self.complaints: list[Complaint] = []
        self.ran = 0
        self._ids: dict[str, str] = {}
        self._started = contextlib.ExitStack()
        self._names: dict[str, Any] = {"__name__": "__main__", "print": self._print}
        self._printed: list[tuple[int, str]] = []
        self._block = ""
        self._output_of_block: str | None = None
        self._unnamed: str | None = None

    def read(self, page: Path, top: Path = PROJECT) -> None:
        """Do all that the page says. Run it with `folder` as working directory."""
        with self._started:
            self._read(page, page.relative_to(top).as_posix())

    def _read(self, page: Path, name: str) -> None:
        before = ""
        for piece in of_markdown(page.read_text("utf-8"), name):
            if piece.kind == "prose":
                before = piece.text
                continue
            self._take(piece, before)
            self._block = piece.language
        for value in self._names.values():
            if isinstance(value, zmq.Socket):  # an example that ends with its process
                value.close(linger=0)

    def _take(self, piece: Piece, before: str) -> None:
        output, self._output_of_block = self._output_of_block, None
        name = named_file(before)
        if piece.language in ("sh", "console", "python"):
            if is_run(piece):
                self._run(piece) if piece.language == "python" else self._type(piece)
        elif piece.language in ("", "text"):
            if (piece.language, self._block) not in (("", "sh"), ("text", "python")):
                output = None
            if output is not None and (wrong := self.differs(piece.text, output, whole=False)):
                self._complain(piece, 0, f"the block before prints {output!r}: {wrong}")
        elif name:
            (self.folder / name).write_text(piece.text, "utf-8")
        elif piece.language == "csv":
            self._unnamed = piece.text

    def _complain(self, piece: Piece, offset: int, what: str) -> None:
        self.complaints.append(Complaint(piece.place(offset), what))

    # Commands

    def _type(self, piece: Piece) -> None:
        outputs = []
        for command, shown, comment, offset in typed(piece):
            if not_run(command) or (shown is not None and JUMPED in shown):
                continue
            output, code = self._call(self._with_ids(command))
            wrong = self._wrong(command, shown, comment, output, code)
            # A gateway sees within a second that a key was made or revoked.
            limit = time.monotonic() + MOMENT_S
            while wrong and may_take_a_moment(command, output) and time.monotonic() < limit:
                time.sleep(0.1)
                output, code = self._call(self._with_ids(command))
                wrong = self._wrong(command, shown, comment, output, code)
            self.ran += 1
            self._let_it_take_effect(command)
            outputs.append(output)
            if wrong:
                self._complain(piece, offset, f"{command}: {wrong}")
        if outputs and piece.language == "sh":
            self._output_of_block = "".join(outputs)

    def _let_it_take_effect(self, command: str) -> None:
        """A transactor sees within a fifth of a second what is suspended, and what runs again."""
        match = re.match(r"tallybus function (suspend|resume) (\w+)", command)
        if match is None:
            return
        limit = time.monotonic() + MOMENT_S
        while time.monotonic() < limit:
            functions = json.loads(self._call("tallybus function list --json")[0])["functions"]
            suspended = {each["name"] for each in functions if each["suspended"]}
            if (match[2] in suspended) == (match[1] == "suspend"):
                return
            time.sleep(0.05)

    def _wrong(self, command: str, shown: str | None, comment: str, output: str, code: int) -> str:
        """What is otherwise than the page says; empty if nothing is."""
        if shown is not None and (wrong := self.differs(shown, output)):
            return wrong
        told_to_fail = "Error" in shown if shown is not None else _TOLD.search(comment)
        if bool(code) != bool(told_to_fail):
            return f"ends with {code}: {output}"
        return comment_differs(command, comment, output)

    def _call(self, command: str) -> tuple[str, int]:
        """What a command prints, and how it ends. Ours are called here, which takes no time."""
        words = shlex.split(command, comments=True)
        if words[0] == "scripts/up" or words[:2] == ["tallybus", "up"]:
            return self._start(words), 0
        if words[:2] == ["tallybus", "import"] and not (self.folder / words[2]).exists():
            if words[2] in NOT_SHOWN:
                (self.folder / words[2]).write_bytes(NOT_SHOWN[words[2]](self.folder))
            elif self._unnamed is not None:
                (self.folder / words[2]).write_text(self._unnamed, "utf-8")
                self._unnamed = None
        environment = {"TALLYBUS_ENDPOINT": self.endpoint}
        if words[0] == "tallybus" and not re.search(r"[|;&<>$()]|\\\n", command):
            done = CliRunner().invoke(main, words[1:], env=environment, prog_name="tallybus")
            if done.exception and not isinstance(done.exception, SystemExit):
                raise done.exception
            output, code = done.output, done.exit_code
        else:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
            ended = subprocess.run(
                ["bash", "-c", command],
                env={**os.environ, **environment, "PATH": path, "PYTHONPATH": str(PROJECT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE_S,
                check=False,
            )
            output, code = ended.stdout.decode(), ended.returncode
        return output.replace(self.endpoint, ENDPOINT), code

    def _start(self, words: list[str]) -> str:
        """Start a ledger with the settings of such a command. Returns what `up` prints."""
        settings = dict(word.split("=", 1) for word in words if re.match(r"\w+\.\w+=", word))
        running = pipeline_of(
            make_settings(self.folder / "another", **settings), self.folder / "another.log"
        )
        self.endpoint = self._started.enter_context(running).endpoint
        return words[words.index("--endpoint") + 1] if "--endpoint" in words else ENDPOINT

    def _with_ids(self, command: str) -> str:
        """The command, with the ids that its transactions have here."""

        def here(match: re.Match[str]) -> str:
            return match[1] + self._ids.get(match[2], match[2])

        return re.sub(r"((?:--tx|tallybus tx|tallybus status|--min-tx-id) )(\d+)", here, command)

    # Outputs

    def differs(self, shown: str, output: str, whole: bool = True) -> str:
        """How an output is another than the page shows; empty if it is as shown.

        Unless it is the `whole` output, its lines may stand anywhere in it, one after the other.
        """
        there = [line.rstrip() for line in output.rstrip("\n").split("\n")]
        for line in shown.rstrip("\n").split("\n"):
            if line.strip() == GAP:
                whole = False
                continue
            while there and not self._fits(line, there[0]):
                if whole:
                    return f"{line!r} is shown, and printed is {there[0]!r}"
                there.pop(0)
            if not there:
                return f"{line!r} is shown, and not printed"
            there.pop(0)
        return f"{there[0]!r} is printed, and not shown" if whole and there else ""

    def _fits(self, shown: str, line: str) -> bool:
        pattern = "".join(_patterns(shown.rstrip()))
        match = re.fullmatch(pattern, line)
        if match is None:
            return False
        ids = zip((each[2] for each in _ID.finditer(shown)), match.groups(), strict=True)
        # A new ledger has the very ids that are shown.
        return all(
            self._ids.setdefault(of_page, here if self.last_id else of_page) == here
            for of_page, here in ids
        )

    # Python

    def _print(self, *values: object, **_: Any) -> None:
        self._printed.append((sys._getframe(1).f_lineno, " ".join(map(str, values))))

    def _run(self, piece: Piece) -> None:
        source = piece.text.replace(ENDPOINT, self.endpoint)
        self._printed = []
        known = set(self._names)
        code = compile(source, f"<{piece.place()}>", "exec")
        try:
            exec(code, self._names)  # noqa: S102
            for name in [each for each in self._names if each not in known]:
                if name.startswith("test_"):
                    self._test(self._names.pop(name))
        except Exception as error:  # noqa: BLE001
            self._complain(piece, 0, f"{type(error).__name__}: {error}")
        self.ran += 1
        self._output_of_block = "".join(f"{text}\n" for _, text in self._printed) or None
        comments = dict(comments_of(source))
        for line, text in self._printed:
            comment = comments.get(line)
            if comment is None or re.match(rf"{re.escape(text)}(?![\w.])", comment):
                continue
            place = f"{piece.path}:{piece.line + line - 1}"
            told = f"{comment!r} is shown, and printed is {text!r}"
            self.complaints.append(Complaint(place, told))

    def _test(self, function: Any) -> None:
        takes = function.__code__.co_varnames[: function.__code__.co_argcount]
        function(**({"tmp_path": self.folder / function.__name__} if "tmp_path" in takes else {}))


def is_run(piece: Piece) -> bool:
    """Whether a reader does something with a block."""
    if piece.language == "python":
        return "recipe=" not in piece.info and not not_run(piece.text)
    if piece.language not in ("sh", "console") or BLOCKS_NOT_RUN.search(piece.text):
        return False
    return any(not not_run(command) for command, *_ in typed(piece))


def not_run(text: str) -> str | None:
    """Why this is not run; None if it is."""
    for pattern, reason in NOT_RUN.items():
        if re.search(pattern, text):
            return reason
    if re.match(r"tallybus ", text) and has_places_to_fill_in(text):
        return "its user fills it in"
    return None


def has_places_to_fill_in(command: str) -> bool:
    words = command.split(" #")[0].split()
    return any(stands_for_something(word.replace("*", "")) for word in words if word.strip("'\""))


def may_take_a_moment(command: str, output: str) -> bool:
    return (
        re.match("tallybus (balance|index|status|tx) ", command) is not None
        or "refuses the key" in output
    )


def named_file(prose: str) -> str | None:
    """The file that a paragraph before a block says the block is."""
    paragraph = prose.rstrip().rpartition("\n\n")[2]
    if not paragraph.endswith(":"):
        return None
    found = re.findall(r"`([\w-]+\.(?:csv|wat|toml|json|yaml|py))`", paragraph)
    return found[-1] if found else None


def typed(piece: Piece) -> Iterator[tuple[str, str | None, str, int]]:
    """Commands of a block, what is shown behind each (None: nothing), comment and offset."""
    starts = list(lines_of(piece))
    for number, (line, offset) in enumerate(starts):
        command, comment = split_comment(line)
        if not command:
            continue
        shown: str | None = None
        if piece.language == "console":
            end = starts[number + 1][1] if number + 1 < len(starts) else len(piece.text)
            lines = piece.text[offset:end].split("\n")
            behind = len(lines) and next(
                place for place, each in enumerate(lines) if not each.endswith(("\\", "|"))
            )
            text = "\n".join(lines[behind + 1 :]).rstrip("\n")
            shown = text or None
        yield command, shown, comment, offset


def split_comment(line: str) -> tuple[str, str]:
    command, _, comment = re.sub(r"\s#\s", "\0", line, count=1).partition("\0")
    return command.strip(), comment.strip()


def comment_differs(command: str, comment: str, output: str) -> str:
    """How an output is another than a comment beside the command says; empty if it is not."""
    for name in re.findall(r"\b[A-Z][A-Z_]+\b", comment):
        if name in _STATUSES and name not in output:
            return f"{name} is told, and printed is {output!r}"
    if command.startswith("tallybus balance"):
        printed = re.findall(r"-?\d+", output)
        for number in re.findall(r"(?<![\w.])-?\d+(?![\w.]*\w)", comment):
            if number not in printed:
                return f"{number} is told, and printed is {output!r}"
    return ""


def comments_of(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ").strip()


def _patterns(shown: str) -> Iterator[str]:
    """A pattern for a line, part by part, with a group for each id."""
    varying = dict(enumerate(VARIES))
    parts = [rf"(?P<part{number}>{pattern})" for number, pattern in varying.items()]
    place = 0
    for match in re.finditer("|".join([_ID.pattern, GAP, *parts]), shown):
        yield re.escape(shown[place : match.start()])
        if match[2]:
            yield r" *(\d+)"
        elif match[0] == GAP:
            yield ".*"
        else:
            assert match.lastgroup is not None
            yield f"(?:{varying[int(match.lastgroup.removeprefix('part'))]})"
        place = match.end()
    yield re.escape(shown[place:])


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
