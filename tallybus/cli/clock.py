"""`tallybus clock`: the ledger's time beside the wall clock, and an operator's word for a jump."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from tallybus.cli import connect
from tallybus.cli.options import client_options, json_option
from tallybus.cli.output import note, print_json, print_values
from tallybus.common.times import utc_text

if TYPE_CHECKING:
    from tallybus.pipeline import LedgerTime

ACTIONS: Final = ("show", "accept")
TELLING_NS: Final = 1_000_000
"""Less than that is what reading two clocks takes."""


@click.command("clock")
@click.argument("action", type=click.Choice(ACTIONS), default="show")
@client_options()
@json_option
def clock_command(
    action: str, endpoint: str, key: str | None, timeout: float, as_json: bool
) -> None:
    """Show the ledger's time, of which transactions get their stamps, and the wall clock.

    The ledger's time follows the wall clock of the sequencer's machine, but not when that jumps
    ahead by more than a minute: whatever expires by stamps would expire at once. After `accept` it
    does, so look first whether the wall clock is right. Where it has not jumped, `accept` changes
    nothing. With keys, `accept` takes the role admin.
    """
    with connect.open_client(endpoint, timeout, key) as client:
        before = client.clock()
        accepted = action == "accept" and before.held
        shown = client.accept_clock() if accepted else before
    if as_json:
        values = {
            "time_ns": shown.time_ns,
            "wall_ns": shown.wall_ns,
            "ahead_seconds": shown.ahead_ns / 1e9,
            "held": shown.held,
        }
        print_json(values | ({"accepted": accepted} if action == "accept" else {}))
        return
    print_values(
        {
            "ledger time": utc_text(shown.time_ns),
            "wall clock": utc_text(shown.wall_ns),
            "difference": _difference(shown),
        }
    )
    if accepted:
        note(f"accepted: the ledger's time was {before.ahead_ns / 1e9:.3f} s behind")
    elif action == "accept":
        note("the wall clock has not jumped ahead, so there was nothing to accept")


def _difference(shown: LedgerTime) -> str:
    if abs(shown.ahead_ns) < TELLING_NS:
        return "none"
    seconds = f"{abs(shown.ahead_ns) / 1e9:.3f} s"
    if shown.held:
        return (
            f"the wall clock has jumped {seconds} ahead, and the ledger does not follow it; "
            "if the wall clock is right: tallybus clock accept"
        )
    if shown.ahead_ns < 0:
        return (
            f"the wall clock is {seconds} behind; the ledger's time never goes back, and goes on "
            "by itself"
        )
    return f"the wall clock is {seconds} ahead"
