"""`tallybus function suspend|resume|suspended`: stop a function at once, whatever the ledger does.

Works on the data folder alone, on the machine that has it: a ledger that is busy with the very
function need not answer anything. The transactor watches the folder.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.options import FUNCTION_NAME, json_option
from tallybus.cli.output import note, print_json, print_table
from tallybus.cli.owner import as_owner
from tallybus.cli.setting_options import parse_assignments, settings_options
from tallybus.common.files import Storage
from tallybus.common.functions.suspended import (
    MAX_REASON_CHARS,
    Suspension,
    resume,
    suspend,
    suspended_names,
    suspensions,
)
from tallybus.common.settings.sections import data_folder, load

_NAMES = click.argument("names", type=FUNCTION_NAME, nargs=-1, required=True, metavar="NAME...")
_DATA = click.option(
    "--data",
    type=click.Path(file_okay=False),
    help="The ledger's data folder.  [default: the setting ledger.data]",
)
STORAGE = Storage()
"""Where everything is written; tests put one there that fails."""


@click.command("suspend")
@_NAMES
@click.option("--reason", default="", help="Why, for those who ask later.")
@_DATA
@settings_options
def suspend_command(
    names: tuple[str, ...],
    reason: str,
    data: str | None,
    config: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Suspend functions: their calls end SUSPENDED, at once and until they are resumed.

    Writes a small file to the data folder, so it is run where that is. A running transactor sees it
    within a fifth of a second and interrupts a call that runs; one that starts later sees it, too.
    Suspended calls use up no user_ref. A name that is not registered can be suspended in advance.
    """
    folder = _folder(data, config, assignments)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    for name in names:
        with as_owner(folder):
            suspend(folder, Suspension(name, since, reason[:MAX_REASON_CHARS]), STORAGE)
        note(f"{name} is suspended")


@click.command("resume")
@_NAMES
@_DATA
@settings_options
def resume_command(
    names: tuple[str, ...], data: str | None, config: str | None, assignments: tuple[str, ...]
) -> None:
    """Let suspended functions run again."""
    folder = _folder(data, config, assignments)
    unknown = sorted(set(names) - suspended_names(folder, STORAGE))
    if unknown:
        raise CommandFailed(
            f"{', '.join(unknown)} is not suspended in {folder}; nothing was changed. "
            "`tallybus function suspended` shows what is",
            ExitCode.USAGE,
        )
    for name in names:
        with as_owner(folder):
            resume(folder, name, STORAGE)
        note(f"{name} runs again")


@click.command("suspended")
@_DATA
@settings_options
@json_option
def suspended_command(
    data: str | None, config: str | None, assignments: tuple[str, ...], as_json: bool
) -> None:
    """Show which functions are suspended, since when and why."""
    found = suspensions(_folder(data, config, assignments), STORAGE)
    if as_json:
        rows = [{"name": each.name, "since": each.since, "reason": each.reason} for each in found]
        print_json({"suspended": rows})
        return
    print_table(("name", "since", "reason"), [(e.name, e.since, e.reason) for e in found])


def _folder(data: str | None, config: str | None, assignments: tuple[str, ...]) -> Path:
    overrides = parse_assignments(assignments)
    if data is not None:
        overrides["ledger.data"] = data
    folder = data_folder(load(config, overrides=overrides))
    if not folder.is_dir():
        # A folder that is made by mistake would suspend nothing.
        raise CommandFailed(
            f"{folder} is no folder; give the ledger's own with --data", ExitCode.USAGE
        )
    return folder
