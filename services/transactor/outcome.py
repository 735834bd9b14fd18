"""What comes of a batch: the transactions as they are recorded, and which of them failed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tallybus.common.batch import Batch


class Outcome(NamedTuple):
    """What came of a batch, or of a slice of it; the arrays are new and belong to the receiver."""

    batch: Batch
    """As it goes to the log, but for the time, the term and whose request it was."""
    failures: NDArray[np.void]
    """FAILURE_DTYPE[k], ascending, offsets from the batch's first record."""
