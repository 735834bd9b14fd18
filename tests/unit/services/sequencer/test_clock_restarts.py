"""The ledger's time over restarts of everything, with the real stages in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tallybus import Deposit, Ledger
from tallybus.common.times import steady_ns
from tallybus.services.sequencer import service
from tallybus.services.sequencer.clock import LIMIT_NS, Moment

NOON = 1_700_000_000 * 10**9
HOUR = 3_600 * 10**9


class Clocks:
    """A wall clock that stands `off_ns` from where it should be."""

    def __init__(self) -> None:
        self.off_ns = 0
        self._began_ns = steady_ns()

    def moment(self) -> Moment:
        steady = steady_ns()
        return Moment(NOON + steady - self._began_ns + self.off_ns, steady)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(service, "moment", made.moment)
    return made


def stamp(ledger: Ledger) -> int:
    tx_id = ledger.submit_and_wait(Deposit(1, 5)).tx_id
    return ledger.get_transaction(tx_id, min_tx_id=tx_id).timestamp_ns


def test_time_goes_on_over_a_restart_though_the_clock_was_set_back(
    clocks: Clocks, tmp_path: Path
) -> None:
    with Ledger.open(tmp_path, max_accounts=1_000) as ledger:
        first = stamp(ledger)
    assert NOON <= first < NOON + LIMIT_NS
    clocks.off_ns = -HOUR
    with Ledger.open(tmp_path, max_accounts=1_000) as ledger:
        second = stamp(ledger)
        third = stamp(ledger)
        assert ledger.clock().ahead_ns < -HOUR // 2
    assert first < second < third < NOON + LIMIT_NS
    # And after a long time without a ledger it is what the clock says.
    clocks.off_ns = 1_000 * HOUR
    with Ledger.open(tmp_path, max_accounts=1_000) as ledger:
        assert stamp(ledger) >= NOON + 1_000 * HOUR
        assert not ledger.clock().held


def test_a_jump_of_the_clock_is_not_followed_until_it_is_accepted(
    clocks: Clocks, tmp_path: Path
) -> None:
    with Ledger.open(tmp_path, max_accounts=1_000) as ledger:
        before = stamp(ledger)
        clocks.off_ns = HOUR
        assert before < stamp(ledger) < NOON + LIMIT_NS
        told = ledger.clock()
        assert told.held
        assert abs(told.ahead_ns - HOUR) < LIMIT_NS
        assert not ledger.accept_clock().held
        assert stamp(ledger) >= NOON + HOUR
