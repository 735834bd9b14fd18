"""A clean stop takes everything along that was acknowledged at any level."""

from pathlib import Path

import numpy as np
import pytest

from tallybus import Ledger, WaitLevel, deposits

BATCHES = 12
COUNT = 30_000


@pytest.mark.parametrize("level", [WaitLevel.NONE, WaitLevel.COMPUTED])
def test_what_was_acknowledged_at_any_level_is_there_after_a_clean_stop(
    tmp_path: Path, level: WaitLevel
) -> None:
    accounts = np.arange(1, COUNT + 1, dtype=np.uint64)
    batch = deposits(accounts, np.ones(COUNT, np.uint64))
    with Ledger.open(tmp_path) as ledger:
        pending = [ledger.begin_batch(batch, level) for _ in range(BATCHES)]
        last = max(int(each.result().tx_ids[-1]) for each in pending)
    with Ledger.open(tmp_path) as ledger:
        read = ledger.get_balances(accounts, min_tx_id=last, timeout=20)
        assert read.balances.tolist() == [BATCHES] * COUNT
