"""The product's modules as they are written."""

import ast
from pathlib import Path

from tests.support.folders import PROJECT


def modules() -> dict[str, Path]:
    """Every module of ours by its import name, each file once."""
    found: dict[str, Path] = {}
    for folder, package in (
        ("common", "tallybus.common"),
        ("services", "tallybus.services"),
        ("tallybus", "tallybus"),
    ):
        root = PROJECT / folder
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if folder == "tallybus" and parts[0] in ("common", "services"):
                continue  # the symlinks
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


MODULES = modules()
PACKAGES = {name for name, path in MODULES.items() if path.name == "__init__.py"}
TREES = {name: ast.parse(path.read_bytes(), str(path)) for name, path in MODULES.items()}
