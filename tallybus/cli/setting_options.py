"""The options by which a command takes settings. Apart from the others: it loads only click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def settings_options(function: F) -> F:
    """`--config FILE` and `--set SECTION.KEY=VALUE`, texts for `parse_assignments`."""
    function = click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="Override one setting. May be given many times.",
    )(function)
    return click.option(
        "--config",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Read settings from this TOML file instead of the one named by TALLYBUS_CONFIG.",
    )(function)


def parse_assignments(assignments: tuple[str, ...]) -> dict[str, object]:
    """`SECTION.KEY=VALUE` texts as overrides for `settings.load`; raises click.UsageError."""
    overrides: dict[str, object] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or "." not in key:
            raise click.UsageError(
                f"--set takes SECTION.KEY=VALUE (ledger.max_accounts=1000), not {assignment!r}"
            )
        overrides[key.strip()] = value
    return overrides
