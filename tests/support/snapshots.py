"""Snapshots of balances that a test made up, written as the snapshotter writes its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tallybus.common.files import Storage
from tallybus.common.functions.registry import FunctionVersion
from tallybus.common.snapshot.balances import SnapshotFields, freeze_balances, write_frozen


def write_snapshot(
    storage: Storage,
    folder: Path,
    fields: SnapshotFields,
    balances: NDArray[np.int64],
    touched: NDArray[np.uint8],
    functions: Sequence[FunctionVersion] = (),
) -> Path:
    """Writes the snapshot of `balances` int64[n] with `touched` uint8[chunk_count(n)].

    `functions` are all their versions, in order. Returns the path of the balances.
    """
    return write_frozen(storage, folder, fields, freeze_balances(balances, touched, functions))
