"""`tallybus up` with one service replaced: `python -m tests.processes.faulty_up STAGE OPTIONS…`.

The service STAGE is started as `faulty_service` instead; everything else is the product's own.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tallybus.cli import main


class ReplacingPopen(subprocess.Popen[bytes]):
    """Starts `faulty_service STAGE` where `tallybus.services.STAGE` was to be started."""

    stage = ""

    def __init__(self, words: list[str], **options: Any) -> None:
        module = f"tallybus.services.{self.stage}"
        if module in words:
            at = words.index(module)
            words = [*words[:at], "tests.processes.faulty_service", self.stage, *words[at + 1 :]]
        super().__init__(words, **options)


if __name__ == "__main__":
    ReplacingPopen.stage = sys.argv[1]
    subprocess.Popen = ReplacingPopen  # type: ignore[misc, assignment]
    sys.argv[1] = "up"
    main()
