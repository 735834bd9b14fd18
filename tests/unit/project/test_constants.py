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
