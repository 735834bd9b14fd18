"""`tallybus up` with one service replaced: `python -m tests.processes.faulty_up STAGE OPTIONS…`.

The service STAGE is started as `faulty_service` instead; everything else is the product's own.
"""

from __future__ import annotations

import sys

from tallybus import supervisor
from tallybus.cli import main

STAGE = sys.argv[1]


class FaultySupervisor(supervisor.Supervisor):
    """Starts `faulty_service STAGE` in place of the one service."""

    def command(self, service: str) -> list[str]:
        words = super().command(service)
        if service != STAGE:
            return words
        at = words.index(f"tallybus.services.{service}")
        return [*words[:at], "tests.processes.faulty_service", service, *words[at + 1 :]]


if __name__ == "__main__":
    supervisor.Supervisor = FaultySupervisor  # type: ignore[misc]
    sys.argv[1] = "up"
    main()
