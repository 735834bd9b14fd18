"""What the protocol and the record fix is written down once, and imported by whoever needs it."""

import ast
from collections.abc import Iterator

from tallybus.common import protocol, record
from tallybus.common.settings.sections import OPERATION_BYTES
from tests.support.sources import TREES

HOMES = ("tallybus.common.protocol", "tallybus.common.record")


def literals(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """Constants of a module whose values are written there, and not taken from elsewhere."""
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if not any(isinstance(each, ast.Name) for each in ast.walk(node.value)):
                for target in targets:
                    if isinstance(target, ast.Name):
                        yield target.id, node.value


def test_their_constants_are_defined_nowhere_else() -> None:
    fixed = {name for home in HOMES for name, _ in literals(TREES[home])}
    assert {"PROTOCOL_VERSION", "MAX_HEADER_BYTES", "MAX_U64", "MAX_PARAMS", "RATE"} <= fixed
    again = [
        f"{module} {name}"
        for module, tree in TREES.items()
        if module not in HOMES
        for name, _ in literals(tree)
        if name.lstrip("_") in fixed
    ]
    assert again == []


def words(name: str) -> set[str]:
    return set(name.strip("_").split("_"))


def test_none_is_defined_again_under_a_longer_name() -> None:
    """As `MAX_FUNCTION_PARAMS` would be beside `MAX_PARAMS`."""
    fixed = {
        name: ast.unparse(value)
        for home in HOMES
        for name, value in literals(TREES[home])
        if "_" in name
    }
    again = [
        f"{module} {name} is {home}"
        for module, tree in TREES.items()
        if module not in HOMES
        for name, value in literals(tree)
        for home, text in fixed.items()
        if words(home) <= words(name) and ast.unparse(value) == text
    ]
    assert again == []


BOUNDS = {"2 ** 64 - 1", "2 ** 63 - 1", "2 ** 63 - 2", "-2 ** 63", "1 << 64", "1 << 63"}
OTHER_BOUNDS = {
    "tallybus.common.security.keys": "MAX_LIMIT",  # of integers in TOML
    "tallybus.common.service.open_files": "UNLIMITED",  # of the system
    "tallybus.common.times": "NEVER_NS",  # of the clock
}
"""Numbers of 64 bits that have nothing to do with records: by module, the name that each has."""


def test_bounds_of_64_bits_are_written_down_once() -> None:
    again = []
    for module, tree in TREES.items():
        named = {id(value): name for name, value in literals(tree)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.BinOp | ast.UnaryOp)
                and ast.unparse(node) in BOUNDS
                and module not in HOMES
                and named.get(id(node)) != OTHER_BOUNDS.get(module, "")
            ):
                again.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    assert again == []


def test_codes_of_errors_are_defined_nowhere_else() -> None:
    again = [
        f"{module} {ast.unparse(node)}"
        for module, tree in TREES.items()
        if module not in HOMES
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Constant)
        and node.value.value in set(protocol.ErrorCode)
    ]
    assert again == []


def test_an_operation_takes_its_record_and_its_parameters() -> None:
    assert OPERATION_BYTES == record.RECORD_SIZE + record.PARAMS_SIZE
