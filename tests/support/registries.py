"""Registries of functions that tests write down."""

from collections.abc import Iterable

from tallybus.common.functions.registry import FunctionRegistry, FunctionVersion


def registry_of(versions: Iterable[FunctionVersion]) -> FunctionRegistry:
    registry = FunctionRegistry()
    for version in versions:
        registry.apply(version)
    return registry
