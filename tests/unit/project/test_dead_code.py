"""What the product defines is used by the product, not by its tests alone.

By name: what is called as something that is used counts as used.
"""

import ast
from collections.abc import Iterator

import tallybus
from tallybus import AsyncClient, BatchResult
from tests.support.sources import TREES

OUTSIDE = {
    # called or read by a class of a library that ours are made from
    *("address_family", "block_on_close", "daemon", "daemon_threads"),
    *("close_connection", "log_message", "protocol_version", "raw_requestline", "send_error"),
    *("server_version", "sys_version", "wfile"),
    *("collect", "describe"),
    *("format_commands", "get_command", "list_commands", "show"),
    *("_numba_type_", "argtypes", "max_sockets"),
    # kept so that it lives as long as its owner
    *("_array", "_ends", "_folder_lock"),
    # found by the name of a stage
    *("GatewayService", "SequencerService", "SnapshotterService", "TransactorService"),
    *("WalService", "sequencer"),
    # the text of a binary that stands beside it
    "SOURCE",
}
"""Used, but not by a line of the product that names it."""

PUBLIC = {*tallybus.__all__, *dir(AsyncClient), *dir(BatchResult)}


def used(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield node.attr


def defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Functions, classes, constants of the module, fields and attributes, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not any(takes(decorator) for decorator in node.decorator_list):
                yield node.name, node.lineno
            if isinstance(node, ast.ClassDef):
                yield from assigned(node.body)
    yield from assigned(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def takes(decorator: ast.expr) -> bool:
    """Whether it keeps what it decorates, as a group of commands does."""
    return isinstance(decorator, ast.Call) and "dataclass" not in ast.unparse(decorator.func)


def assigned(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                yield target.id, node.lineno


def dead(trees: dict[str, ast.Module], besides: set[str]) -> list[str]:
    alive = {name for tree in trees.values() for name in used(tree)} | besides
    return [
        f"{module}:{line} {name}"
        for module, tree in trees.items()
        for name, line in defined(tree)
        if name not in alive and not name.startswith("__")
    ]


def test_nothing_lives_for_its_tests_alone() -> None:
    settings = {
        name
        for module, tree in TREES.items()
        if module.startswith("tallybus.common.settings.")
        for name, _ in defined(tree)
    }
    assert dead(TREES, OUTSIDE | PUBLIC | settings) == []


def test_nothing_is_excused_that_is_used_or_gone() -> None:
    names = {name for tree in TREES.values() for name, _ in defined(tree)}
    loaded = {name for tree in TREES.values() for name in used(tree)}
    assert OUTSIDE - names == set()
    assert OUTSIDE & loaded == set()


def test_what_nobody_uses_is_found() -> None:
    source = """
LIMIT = 5
@dataclass(slots=True)
class Log:
    size: int = 0
    def __init__(self):
        self.stale = 0
    def read_segment(self):
        self.stale += 1
@group.command("x")
def run():
    kept(1)
def kept(number):
    return number
"""
    found = {each.split()[1] for each in dead({"m": ast.parse(source)}, set())}
    assert found == {"LIMIT", "Log", "size", "stale", "read_segment"}
