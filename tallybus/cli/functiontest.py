"""`tallybus function test`: call a function without a ledger, once, by a file of cases, or as the
log recorded a call."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.cli.module import read_module
from tallybus.cli.options import (
    FUNCTION_NAME,
    PARAMETER,
    TX_ID,
    WholeNumber,
    checked_params,
    json_option,
)
from tallybus.cli.output import print_json, print_table, print_values, progress_bar
from tallybus.cli.setting_options import parse_assignments, settings_options
from tallybus.cli.transact import CALL_MEANINGS, status_json, status_text
from tallybus.cli.transaction import crc_text, entries_as_json, print_entries
from tallybus.common.record import MAX_ENTRIES, MAX_PARAMS, Reason, Status
from tallybus.common.settings.sections import SETTINGS, Settings, data_folder, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tallybus.functions import Trial
    from tallybus.recorded import Difference, RecordedCall
    from tallybus.trials import TrialLimits

    F = TypeVar("F", bound=Callable[..., Any])

_LIMITS: Final = (
    ("--fuel", "functions.fuel", "Fuel that a call may use."),
    ("--max-accounts", "ledger.max_accounts", "Accounts of the ledger, from 0 to one less."),
    ("--memory-mib", "functions.memory_mib", "MiB of memory that the module may have."),
    ("--table-elements", "functions.table_elements", "Elements that a table of it may have."),
    ("--stack-kib", "functions.stack_kib", "KiB of stack that a call may use."),
)


class GivenBalance(click.ParamType[tuple[int, int]]):
    """`ACCOUNT=AMOUNT`; the amount may be negative."""

    name = "balance"
    _form: Final = re.compile(r"([0-9]{1,20})=(-?[0-9]{1,20})", re.ASCII)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = self._form.fullmatch(str(value))
        if match is None:
            self.fail(f"{str(value)[:60]!r} is not ACCOUNT=AMOUNT", param, ctx)
        return int(match[1]), PARAMETER.convert(match[2], param, ctx)


def _limit_options(function: F) -> F:
    for option, key, text in reversed(_LIMITS):
        row = SETTINGS[key]
        function = click.option(
            option,
            type=WholeNumber(row.name, row.minimum, row.maximum),
            metavar="N",
            help=f"{text}  [default: the setting {key}]",
        )(function)
    return function


@click.command("test")
@click.argument(
    "file",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="[FILE]",
    required=False,
)
@click.option(
    "--param",
    "params",
    type=PARAMETER,
    multiple=True,
    callback=checked_params,
    metavar="N",
    help=f"A parameter; given up to {MAX_PARAMS} times, in order. Missing ones are 0.",
)
@click.option(
    "--balance",
    "balances",
    type=GivenBalance(),
    multiple=True,
    metavar="ACCOUNT=AMOUNT",
    help="What an account holds before the call; others hold 0. May be given many times.",
)
@click.option(
    "--cases",
    type=click.Path(exists=True, dir_okay=False),
    metavar="CASES",
    help="Run every case of this file (.json or .toml) instead.",
)
@click.option(
    "--tx",
    "tx_id",
    type=TX_ID,
    metavar="TX_ID",
    help="Make the call of this transaction again, on the balances that it found, and compare.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False),
    metavar="DIR",
    help="With --tx: the data folder, which is only read.  [default: the setting ledger.data]",
)
@_limit_options
@click.option(
    "--name", type=FUNCTION_NAME, help="What the function is called, for functions.fuel_by_name."
)
@settings_options
@json_option
def test_command(
    file: str | None,
    params: tuple[int, ...],
    balances: tuple[tuple[int, int], ...],
    cases: str | None,
    tx_id: int | None,
    data: str | None,
    name: str | None,
    config: str | None,
    assignments: tuple[str, ...],
    as_json: bool,
    **limits: int | None,
) -> None:
    """Call the module in FILE once, in a ledger's sandbox, but without a ledger.

    Shows how the call would end, what it would move, and the fuel that it took. With --cases all
    calls of a file are made and compared with what it expects of them. With --tx the call of a
    transaction is made again: with the module that ran then, or with the one in FILE.

    The limits are those of a ledger with the same settings (--config, --set, environment).
    """
    if cases is not None and tx_id is not None:
        raise click.UsageError("--cases and --tx are two ways to say what is called; choose one")
    if (params or balances) and not (cases is None and tx_id is None):
        raise click.UsageError("with --cases and --tx, parameters and balances come from there")
    if data is not None and tx_id is None:
        raise click.UsageError("--data takes effect only with --tx")
    if file is None and tx_id is None:
        raise click.UsageError("say which FILE; only --tx finds the module by itself")
    before = dict(balances)
    if len(before) < len(balances):
        raise click.UsageError("--balance gives the same account twice")
    settings = load(config, overrides=parse_assignments(assignments))
    binary = None if file is None else read_module(file)
    # After the options are checked: from here on the sandbox is loaded.
    from tallybus.trials import TriedModule, trial_limits

    def limits_for(function: str | None) -> TrialLimits:
        return trial_limits(settings, name or function, **limits)

    if tx_id is not None:
        _again(tx_id, _folder(data, settings), binary, limits_for, as_json)
        return
    assert binary is not None
    if cases is not None:
        _run_cases(Path(cases), binary, limits_for(None), as_json)
        return
    with TriedModule(binary, limits_for(None)) as module, _interruptible():
        trial = module.call(params, before)
    _show_trial(trial, as_json)
    if not trial.ok:
        raise CommandFailed(_failure(trial), ExitCode.REJECTED)


def _folder(data: str | None, settings: Settings) -> Path:
    return data_folder(settings) if data is None else Path(data)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Code of a module hears no exception; a quota of fuel may last for minutes."""
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# -- one call ------------------------------------------------------------------------------------


def _show_trial(trial: Trial, as_json: bool) -> None:
    if as_json:
        print_json(_as_json(trial))
        return
    print_values(_as_values(trial))
    if trial.entries:
        click.echo()
        print_entries(trial.entries)
    if trial.balances:
        click.echo()
        print_table(("account", "balance"), trial.balances.items())


def _as_values(trial: Trial) -> dict[str, object]:
    values: dict[str, object] = {"status": status_text(trial.status)}
    if trial.reason:
        values["reason"] = trial.reason.name
    values["fuel"] = f"{trial.fuel_used} of {trial.fuel_limit}"
    values["entries"] = f"{len(trial.entries)} of {MAX_ENTRIES}"
    return values


def _as_json(trial: Trial) -> dict[str, Any]:
    return {
        "status": status_json(trial.status),
        "reason": trial.reason.name if trial.reason else None,
        "returned": trial.returned,
        "fuel_used": trial.fuel_used,
        "fuel_limit": trial.fuel_limit,
        "trap": trial.trap or None,
        "entries": entries_as_json(trial.entries),
        "balances": [{"account": a, "balance": b} for a, b in trial.balances.items()],
    }


def _failure(trial: Trial) -> str:
    return f"the call would be rejected: {status_text(trial.status)}: {_meaning(trial)}"


def _meaning(trial: Trial) -> str:
    status = trial.status
    if trial.reason is Reason.BAD_RETURN:
        return (
            f"it returned {trial.returned}; a function may return 0 to 9 without 7, and 128 to 255"
        )
    if status in (Status.INVALID_OPERATION, Status.QUOTA_EXCEEDED):
        if trial.trap:
            return trial.cause
        if trial.fuel_used < trial.fuel_limit:
            return "the function returned it"
    return CALL_MEANINGS.get(status, "the function's own status")


# -- a file of cases -----------------------------------------------------------------------------


def _run_cases(path: Path, binary: bytes, limits: TrialLimits, as_json: bool) -> None:
    from tallybus.function_cases import MAX_FILE_BYTES, InvalidCases, read_cases, run_cases
    from tallybus.trials import TriedModule

    with open(path, "rb") as opened:
        text = opened.read(MAX_FILE_BYTES + 1)
    try:
        found = read_cases(text, toml=path.suffix.lower() == ".toml")
        with TriedModule(binary, limits) as module, _interruptible():
            outcomes = list(run_cases(found, module.call))
    except InvalidCases as error:
        raise CommandFailed(f"{path}: {error}", ExitCode.USAGE) from error
    failed = sum(not outcome.passed for outcome in outcomes)
    if as_json:
        rows = [
            {
                "name": outcome.case.name,
                "passed": outcome.passed,
                "problems": list(outcome.problems),
                **_as_json(outcome.trial),
            }
            for outcome in outcomes
        ]
        print_json({"cases": rows, "passed": len(outcomes) - failed, "failed": failed})
    else:
        print_table(
            ("case", "outcome", "status", "fuel", "otherwise than expected"),
            [
                (
                    outcome.case.name,
                    "passed" if outcome.passed else "failed",
                    status_text(outcome.trial.status),
                    outcome.trial.fuel_used,
                    "; ".join(outcome.problems),
                )
                for outcome in outcomes
            ],
        )
    if failed:
        raise CommandFailed(f"{failed} of {len(outcomes)} cases failed", ExitCode.REJECTED)


# -- a call of the log ---------------------------------------------------------------------------


def _again(
    tx_id: int,
    folder: Path,
    binary: bytes | None,
    limits_for: Callable[[str | None], TrialLimits],
    as_json: bool,
) -> None:
    from tallybus.recorded import differences, recorded_call
    from tallybus.trials import TriedModule

    with progress_bar("MiB") as progress:
        task = progress.add_task("reading the log", total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done >> 20, total=total >> 20)

        recorded = recorded_call(folder, tx_id, limits_for(None).max_accounts, report)
    ran = recorded.function
    limits = limits_for(None if ran is None else ran.name)
    module_bytes = recorded.binary() if binary is None else binary
    with TriedModule(module_bytes, limits) as module, _interruptible():
        crc = module.crc32c
        trial = module.call_on(recorded.params, recorded.balances)
    found = differences(recorded, trial)
    if as_json:
        print_json(_again_as_json(recorded, trial, found, crc))
    else:
        _show_again(recorded, trial, found, crc)
    if found:
        raise CommandFailed(_otherwise(recorded, found), ExitCode.REJECTED)


def _show_again(recorded: RecordedCall, trial: Trial, found: list[Difference], crc: int) -> None:
    values: dict[str, object] = {"transaction": recorded.tx_id, "function": _ran_text(recorded)}
    if crc != recorded.crc32c:
        values["called"] = f"another module, crc32c {crc_text(crc)}"
    values["params"] = " ".join(map(str, recorded.params)) or "none"
    print_values(values | _as_values(trial) | {"in the log": _compared(recorded, trial, found)})
    if trial.entries:
        click.echo()
        print_entries(trial.entries)
    if any(each.what == "entries" for each in found) and recorded.entries:
        click.echo("\nentries in the log")
        print_entries(recorded.entries)


def _ran_text(recorded: RecordedCall) -> str:
    ran = recorded.function
    if ran is None:
        return "none ran"
    return f"{ran.name} version {ran.version}, crc32c {crc_text(ran.crc32c)}"


def _compared(recorded: RecordedCall, trial: Trial, found: list[Difference]) -> str:
    if found:
        return f"otherwise: {', '.join(_shown(each.recorded) for each in found)}"
    if trial.status != recorded.status:
        return f"the same: {trial.returned} was the function's own status then"
    return "the same"


def _shown(value: object) -> str:
    if isinstance(value, Reason):
        return value.name
    if isinstance(value, tuple):
        return "other entries" if value else "no entries"
    assert isinstance(value, int)
    return status_text(value)


def _otherwise(recorded: RecordedCall, found: list[Difference]) -> str:
    if recorded.executed:
        text = f"the call ends otherwise than transaction {recorded.tx_id}: {_changes(found)}"
        statuses = {value for each in found for value in (each.recorded, each.now)}
        if Status.QUOTA_EXCEEDED in statuses:
            text += "; functions.fuel may have had another value then (--fuel)"
        if Status.ACCOUNT_LIMIT_EXCEEDED in statuses:
            text += "; ledger.max_accounts may have had another value then (--max-accounts)"
        return text
    what = status_text(recorded.status)
    return f"the ledger did not run transaction {recorded.tx_id} to its end: its status is {what}"


def _changes(found: list[Difference]) -> str:
    return ", ".join(
        "other entries"
        if each.what == "entries"
        else f"{each.what} {_shown(each.now)}, not {_shown(each.recorded)}"
        for each in found
    )


def _again_as_json(
    recorded: RecordedCall, trial: Trial, found: list[Difference], crc: int
) -> Mapping[str, Any]:
    ran = recorded.function
    reason = recorded.reason
    return {
        "tx_id": recorded.tx_id,
        "function": None if ran is None else ran.name,
        "version": None if ran is None else ran.version,
        "crc32c": crc_text(crc),
        "params": list(recorded.params),
        **_as_json(trial),
        "recorded": {
            "status": status_json(recorded.status),
            "reason": (reason.name if isinstance(reason, Reason) else reason) if reason else None,
            "crc32c": crc_text(recorded.crc32c) if recorded.crc32c else None,
            "entries": entries_as_json(recorded.entries),
        },
        "same": not found,
        "differences": [each.what for each in found],
    }
