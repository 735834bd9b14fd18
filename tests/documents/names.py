"""Quoted names: settings, variables of the environment, metrics, and names out of the code.

A name is known where the product has it: in its table of settings or of metrics, or as a name or a
short text in its code (not in a comment or a docstring, which are checked themselves).
"""

from __future__ import annotations

import ast
import builtins
import re
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

from tallybus.common.errors import SettingsError
from tallybus.common.metrics.table import METRICS
from tallybus.common.settings.sections import (
    CONFIG_VARIABLE,
    ENDPOINT_VARIABLE,
    KEY_VARIABLE,
    SETTINGS,
)
from tallybus.common.stages import STAGES
from tests.documents.commands import Complaint
from tests.documents.texts import GAP, PROJECT, Piece, code, other_files

SECTIONS: Final = frozenset(setting.section for setting in SETTINGS.values())
VARIABLES: Final = frozenset(setting.variable for setting in SETTINGS.values()) | {
    CONFIG_VARIABLE,
    ENDPOINT_VARIABLE,
    KEY_VARIABLE,
}
KUBERNETES: Final = {
    "TALLYBUS_PORT",
    "TALLYBUS_SERVICE_HOST",
    "TALLYBUS_GATEWAY_PORT",
    "TALLYBUS_GATEWAY_PORT_5550_TCP_ADDR",
}
"""What Kubernetes makes of a service's name: told as what is no setting."""
HOST_FUNCTIONS: Final = {"credit", "debit", "get_balance"}
"""What a function imports from the module `ledger`, which is called as a section is."""
REPORTED: Final = {"failures", "latency", "segment", "unreachable"}
"""Fields of `metrics` in the report of `tallybus top`, which is called as a section is."""
FILES: Final = {
    *("bin", "crc", "html", "key", "lock", "log", "md", "new", "py", "service", "sock", "svg"),
    "toml",
}
"""Ends of files that are called as a section is: `gateway.key`, `wal.bin`."""
SOCKETS: Final = {"control", "data", "index"}
"""Sockets of a stage, which are called as a setting is: `wal.data`."""
LABELS: Final = {"stage", "job", "instance", "ledger"}
"""Of any metric: the product's own, and what Prometheus or its configuration adds."""

_SETTING: Final = re.compile(
    rf"(?<![\w./-])({'|'.join(sorted(SECTIONS))})\.([a-z_][a-z0-9_]*)(?![\w(]|\.\w)"
)
_VARIABLE: Final = re.compile(r"(?<![\w/.])TALLYBUS_([A-Z0-9_]*)(?P<more>[<…*{$]?)")
_METRIC: Final = re.compile(r"(?<![\w./-])tallybus_([a-z0-9_]*)(?P<more>[…*{]?)(?:(?<={)([^}]*)})?")


def setting_complaints(piece: Piece) -> Iterator[Complaint]:
    """`section.name` and whole files of settings: each is in the table, each value allowed."""
    if piece.kind == "fenced" and piece.language == "toml":
        yield from _of_toml(piece)
        return
    for text, offset in quotations(piece):
        for match in _SETTING.finditer(text):
            if match[2] in FILES or (match[1] == "ledger" and match[2] in HOST_FUNCTIONS):
                continue
            if match[1] in STAGES and match[2] in SOCKETS:
                continue
            if match[1] == "metrics" and match[2] in REPORTED:
                continue
            known = match[0] in SETTINGS
            if text[match.end() :].startswith((GAP, "*", "<")):
                known = any(key.startswith(match[0]) for key in SETTINGS)
            if not known and not is_attribute(piece, match[1], match[2]):
                yield Complaint(
                    piece.place(offset + match.start()), f"there is no setting {match[0]}"
                )


def quotations(piece: Piece) -> Iterator[tuple[str, int]]:
    """Where names are looked for: in spans and blocks of a document; in code everywhere."""
    if piece.kind == "prose":
        yield from piece.spans()
    elif piece.kind != "fenced" or piece.language != "python":
        yield piece.text, 0


def is_attribute(piece: Piece, owner: str, name: str) -> bool:
    """Whether in code `functions.install` is what the code around says of its own `functions`."""
    if piece.kind in ("string", "comment"):
        source = (PROJECT / piece.path).read_text("utf-8")
    elif piece.path.endswith(".js"):
        source = piece.text
    else:
        return False
    return re.search(rf"\b{owner}\b *[=:,)]", source) is not None and name in known_names()


def _of_toml(piece: Piece) -> Iterator[Complaint]:
    try:
        tables = tomllib.loads(piece.text)
    except tomllib.TOMLDecodeError as error:
        yield Complaint(piece.place(), f"no TOML: {error}")
        return
    if not tables.keys() & SECTIONS:
        return
    for section, rows in tables.items():
        for name, value in rows.items():
            setting = SETTINGS.get(f"{section}.{name}")
            if setting is None:
                yield Complaint(piece.place(), f"there is no setting {section}.{name}")
                continue
            try:
                setting.parse(value, piece.path)
            except SettingsError as error:
                yield Complaint(piece.place(), str(error))


def variable_complaints(piece: Piece) -> Iterator[Complaint]:
    """`TALLYBUS_…`: a setting's variable or one of the three others."""
    for match in _VARIABLE.finditer(piece.text):
        name = match[0].removesuffix(match["more"])
        if match["more"] or name == "TALLYBUS_":
            beginnings = [known for known in VARIABLES if known.startswith(name)]
            if beginnings:
                continue
        if name not in VARIABLES | KUBERNETES:
            yield Complaint(piece.place(match.start()), f"there is no variable {name}")


def metric_complaints(piece: Piece) -> Iterator[Complaint]:
    """`tallybus_…`, and the labels that are quoted with it."""
    for match in _METRIC.finditer(piece.text):
        name = "tallybus_" + match[1]
        several = match["more"] in ("…", "*") or not match[1]
        if several and any(known.startswith(name) for known in METRICS):
            continue
        labels = re.findall(r"(\w+) *(?:=|!=|=~|!~)", match[3] or "")
        metric = metric_of(name)
        if metric is None and name not in NO_METRICS:
            yield Complaint(piece.place(match.start()), f"there is no metric {name}")
        if metric is None:
            continue
        known_labels = {*METRICS[metric].labels, *LABELS}
        if name.endswith("_bucket"):
            known_labels.add("le")
        for label in labels:
            if label not in known_labels:
                yield Complaint(piece.place(match.start()), f"{name} has no label {label}")


def metric_of(name: str) -> str | None:
    """The metric that a name in a query or in a scrape belongs to."""
    if name in METRICS:
        return name
    for suffix in ("_bucket", "_sum", "_count"):
        whole = name.removesuffix(suffix)
        if whole != name and whole in METRICS and METRICS[whole].type == "histogram":
            return whole
    return None


OUTSIDE: Final = frozenset(
    {
        *dir(builtins),
        # Of Python, the system, WebAssembly and Kubernetes.
        *("PyThreadState_SetAsyncExc", "call_indirect", "publishNotReadyAddresses"),
        *("ExecMainStatus", "NRestarts", "tallybus_data"),
        *("COMPOSE_FILE", "EX_CONFIG", "EX_DATAERR", "IOV_MAX", "LC_ALL", "MADV_POPULATE_WRITE"),
        # Of ZeroMQ, in the languages in which a client may be written.
        *("DEALER", "GSSAPI", "IDENTITY", "PLAIN", "WithAutomaticReconnect", "WithID"),
        *("routingId", "setIdentity", "setImmediate", "setLinger"),
        # Of numbers in those languages.
        *(
            "ByteBuffer",
            "DataView",
            "LITTLE_ENDIAN",
            "compareUnsigned",
            "getBigInt64",
            "packBigInteger",
        ),
        *("parseUnsignedLong", "setBigUint64", "toUnsignedString", "unpackBigInteger"),
    }
)
"""Names that are not ours."""
_OUTSIDE: Final = re.compile(r"(ZMQ|ZMTP|HANDSHAKE|zmq|tcpi|process)_\w+")
NO_METRICS: Final = {"tallybus_data", "tallybus_fields"}
"""Names that begin as metrics do: a volume of Docker, and one of the code."""

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
STANDS_FOR: Final = re.compile(r"_N+$|_n$|_$|^NAME_|^Name(?=[A-Z])|^PREFIX_|^SECTION$|^KEY$")
"""Parts of names that stand for any: `snapshot_N.bin`, `FUNCTION_n`."""
_LOOKS_LIKE_CODE: Final = re.compile(r"_|[a-z][A-Z]|[A-Z]{2}|^[A-Z][a-z]+[A-Z]")


@cache
def known_names() -> frozenset[str]:
    """Every name of the code, and every short text that may be one: a key, a label, a field."""
    found: set[str] = set()
    for path in code():
        found |= names_of(path.read_text("utf-8"))
        found.add(path.stem)
    for path in other_files():
        found |= set(_IDENTIFIER.findall(path.read_text("utf-8")))
    return frozenset(found)


@cache
def names_of_tests() -> frozenset[str]:
    """What the tests and their helpers define and use, for the page on how to write them."""
    return frozenset(
        name
        for path in (PROJECT / "tests").rglob("*.py")
        for name in names_of(path.read_text("utf-8"))
    )


def names_of(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                found.add(name)
            case ast.Attribute(attr=name):
                found.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.alias(name=name, asname=other):
                found |= {*name.split("."), other or name}
            case ast.Constant(value=str(text)) if " " not in text.strip():
                found |= set(_IDENTIFIER.findall(text))
            case ast.Constant(value=bytes(text)) if text.isascii():
                found |= set(_IDENTIFIER.findall(text.decode()))
    return found


def name_complaints(piece: Piece) -> Iterator[Complaint]:
    """A span that is one name (perhaps called, or of something) out of the code."""
    for span, offset in piece.spans():
        for name in names_in(span):
            # Of a name with a number the code has the beginning: `FUNCTION_128`, `wal_000001`.
            numbered = re.sub(r"(?<=_)\d+$", "", name)
            if {name, numbered} & known_names() or is_outside(name):
                continue
            if not (piece.path == "CONTRIBUTING.md" and name in names_of_tests()):
                yield Complaint(piece.place(offset), f"nothing is called {name}: `{span}`")


def is_outside(name: str) -> bool:
    return name in OUTSIDE or _OUTSIDE.fullmatch(name) is not None or name.startswith("TALLYBUS_")


def names_in(span: str) -> Iterable[str]:
    """The names in a span that is nothing but a name, a dotted name or a call."""
    if re.fullmatch(r"[\w-]+\.(?:csv|json|key|toml|wasm|wat)", span):
        return []  # a file that a page's reader makes
    match = re.fullmatch(r"((?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*)(\(.*\))?", span)
    if match is None or GAP in match[1]:
        return []
    parts = match[1].split(".")
    if len(parts) == 1 and not match[2] and not _LOOKS_LIKE_CODE.search(parts[0]):
        return []
    return [
        part
        for part in parts
        if (_LOOKS_LIKE_CODE.search(part) or match[2]) and not STANDS_FOR.search(part)
    ]
