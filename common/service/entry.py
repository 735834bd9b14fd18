"""Where the process of a service begins: nothing that it needs was imported before."""

from __future__ import annotations

from tallybus.common.service import startup


def run(stage: str) -> int:
    """What `python -m tallybus.services.STAGE` does; returns the exit code."""
    startup.prepare()
    startup.hold_hangup()
    try:
        from tallybus.common.service.runner import run_stage
    except startup.BROKEN as error:
        return startup.broken(stage, error)
    return run_stage(stage)
