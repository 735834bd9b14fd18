"""A log service whose recovery does not come to its end while a file is there.

`python -m tests.processes.slow_log` runs the real service; SLOW_LOG names the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final
from unittest.mock import patch

from tallybus.common.service.runner import run_service
from tallybus.common.service.watch import Watch
from tallybus.services.wal.service import WalService

VARIABLE: Final = "SLOW_LOG"
POLL_S: Final = 0.02


class SlowLog(WalService):
    """Goes on telling that it has verified half of the log."""

    def prepare(self) -> None:
        with patch.object(self.watch, "report_progress", partial(slowly, self.watch)):
            super().prepare()


def slowly(watch: Watch, what: str) -> Callable[[int, int], None]:
    report = Watch.report_progress(watch, what)

    def told(done: int, total: int) -> None:
        while Path(os.environ[VARIABLE]).exists():
            report(total // 2, total)
            time.sleep(POLL_S)
        report(done, total)

    return told


if __name__ == "__main__":
    raise SystemExit(run_service(SlowLog))
