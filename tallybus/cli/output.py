"""What commands print: results on standard output, everything else on standard error.

A table is drawn on a terminal; elsewhere the same rows are tab-separated lines under a header, for
scripts. JSON is one object on one line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object. Integers keep all their digits."""
    click.echo(json.dumps(value))


def note(text: str) -> None:
    """Tell the user something that is not a result."""
    click.echo(text, err=True)


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], footer: Sequence[object] | None = None
) -> None:
    """Print rows under named columns. The footer is a last row, set off on a terminal."""
    if not sys.stdout.isatty():
        lines = [columns, *rows, *([footer] if footer else [])]
        click.echo("\n".join("\t".join(str(cell) for cell in line) for line in lines))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_footer=footer is not None, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(
            column,
            justify="right" if column in _NUMBERS else "left",
            footer=Text(str(footer[index])) if footer else "",
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)


_NUMBERS = frozenset(
    {
        *("account", "balance", "credit", "debit", "transaction", "duplicate of"),
        *("version", "calls", "fuel", "mean fuel", "fuel limit", "mean time"),
    }
)


def print_values(values: Mapping[str, object]) -> None:
    """Print names and values, one pair per line, aligned."""
    width = max(len(name) for name in values)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {value}")


def progress_bar(unit: str) -> Progress:
    """A progress bar on standard error; it shows nothing unless that is a terminal.

    Tasks count in `unit`.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
