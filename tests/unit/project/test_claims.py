"""What a module says of itself in words such as "only" and "nothing but" is so.

Each row quotes the module's docstring, so that neither can change without the other.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.folders import PROJECT

FOLDERS = ("common", "services", "tallybus")


def module_files() -> Iterator[tuple[str, str]]:
    """Every module of the product by its name, with its source."""
    for folder in FOLDERS:
        for path in sorted((PROJECT / folder).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            if parts[:2] in (("tallybus", "common"), ("tallybus", "services")):
                continue
            parts = parts if folder == "tallybus" else ("tallybus", *parts)
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path.read_text()


SOURCES = dict(module_files())


def importers(of: str) -> set[str]:
    """Modules that import it or something in it, wherever in the module that stands."""
    found = set()
    for name, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                targets = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            if any(target == of or target.startswith(f"{of}.") for target in targets):
                found.add(name)
    return found - {of}


def words_of(module: str) -> str:
    return " ".join((ast.get_docstring(ast.parse(SOURCES[module])) or "").split())


IMPORTED_BY = [
    (
        "tallybus.common.bus.sockets",
        "`monitor.py` and `handshakes.py` beside it",
        "zmq",
        {
            "tallybus.common.bus.sockets",
            "tallybus.common.bus.monitor",
            "tallybus.common.bus.handshakes",
            "tallybus.common.security.curve",
            "tallybus.common.security.doorkeeper",
            "tallybus.client.aio",
            "tallybus.client.context",
            "tallybus.client.looks",
            "tallybus.client.sync",
            "tallybus.client.wire",
        },
    ),
    (
        "tallybus.common.wal.scan",
        "Only `common/wal/reader.py` uses it.",
        "tallybus.common.wal.scan",
        {"tallybus.common.wal.reader"},
    ),
    (
        "tallybus.common.metrics.exposition",
        "Only this module loads the Prometheus client library",
        "prometheus_client",
        {"tallybus.common.metrics.exposition"},
    ),
    (
        "tallybus.common.kernels.intrinsics",
        "Only imported where a kernel is compiled.",
        "tallybus.common.kernels.intrinsics",
        set(),  # by its name alone, which `compiled.Intrinsic` has
    ),
    (
        "tallybus.services.transactor.functions.native",
        "Imported only where code is compiled.",
        "tallybus.services.transactor.functions.native",
        set(),
    ),
]


@pytest.mark.parametrize(("module", "claim", "target", "expected"), IMPORTED_BY)
def test_a_module_is_imported_where_it_says(
    module: str, claim: str, target: str, expected: set[str]
) -> None:
    assert claim in words_of(module)
    assert importers(target) == expected


LOADS = [
    ("tallybus.common.settings.sections", "imports anything but the standard library", set()),
    (
        "tallybus.common.metrics.counters",
        "it needs nothing but the standard library and numpy",
        {"numpy"},
    ),
    ("tallybus.cli.setting_options", "it loads only click", {"click"}),
]


@pytest.mark.parametrize(("module", "claim", "expected"), LOADS)
def test_a_module_loads_what_it_says(module: str, claim: str, expected: set[str]) -> None:
    assert claim in words_of(module)
    program = (
        f"import sys; before = set(sys.modules); import {module}; "
        "print(*{name.split('.')[0] for name in set(sys.modules) - before} "
        "- set(sys.stdlib_module_names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) - {"tallybus"} == expected


def test_commands_get_their_clients_from_one_place() -> None:
    assert "The one place where commands get their clients from" in words_of("tallybus.cli.connect")
    makers = {
        name
        for name, source in SOURCES.items()
        if name.startswith("tallybus.cli.")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("Client", "AsyncClient")
    }
    assert makers == {"tallybus.cli.connect"}


def test_options_of_the_clients_sockets_are_set_in_two_places() -> None:
    claim = "The options of its sockets are set here and, for looks, in `looks.py`"
    assert claim in words_of("tallybus.client.wire")
    setters = {
        name
        for name, source in SOURCES.items()
        if name.startswith("tallybus.client.")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("set", "setsockopt")
        and "socket" in ast.unparse(node.func.value)
    }
    assert setters == {"tallybus.client.wire", "tallybus.client.looks"}
