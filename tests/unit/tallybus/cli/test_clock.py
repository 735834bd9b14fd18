"""`clock`: what it shows, and what it accepts."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from tallybus.cli import connect, main
from tallybus.pipeline import LedgerTime
from tests.support.folders import DOCS
from tests.unit.tallybus.cli.fake_ledger import FakeLedger

NOON = 1_700_000_000 * 10**9
HOUR = 3_600 * 10**9


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> FakeLedger:
    fake = FakeLedger()
    monkeypatch.setattr(connect, "open_client", fake.open)
    return fake


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(main, ["clock", *arguments])
    assert done.exit_code == 0, done.output
    return done


def test_a_clock_that_is_followed(ledger: FakeLedger) -> None:
    assert run().stdout == (
        "ledger time  2023-11-14T22:13:20.000000000Z\n"
        "wall clock   2023-11-14T22:13:20.000000000Z\n"
        "difference   none\n"
    )
    assert json.loads(run("show", "--json").stdout) == {
        "time_ns": NOON,
        "wall_ns": NOON,
        "ahead_seconds": 0.0,
        "held": False,
    }


def test_a_jump_is_shown_with_what_to_do_and_accepted_on_demand_only(ledger: FakeLedger) -> None:
    ledger.time = LedgerTime(NOON, NOON + HOUR, held=True)
    shown = run().stdout
    assert "3600.000 s ahead" in shown
    assert "tallybus clock accept" in shown
    documented = (DOCS / "concepts.md").read_text("utf-8").replace("18000.000 s", "3600.000 s")
    assert shown.splitlines()[2] in documented.splitlines()
    assert ledger.time.held
    done = run("accept")
    assert "difference   none" in done.stdout
    assert "3600.000 s behind" in done.stderr
    assert not ledger.time.held


def test_accepting_what_has_not_jumped_changes_nothing_and_says_so(ledger: FakeLedger) -> None:
    ledger.time = LedgerTime(NOON + HOUR, NOON, held=False)
    done = run("accept")
    assert "nothing to accept" in done.stderr
    assert "3600.000 s behind" in done.stdout
    assert json.loads(run("accept", "--json").stdout)["accepted"] is False
