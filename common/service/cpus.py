"""Which CPUs a process may use, and whether those that the settings name are among them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from tallybus.common.errors import SettingsError
from tallybus.common.settings.sections import Settings
from tallybus.common.settings.table import MAX_CPU
from tallybus.common.stages import SERVICES


def usable() -> frozenset[int] | None:
    """The CPUs that this thread can be told to run on: those of the machine, or of its cpuset.

    None where the system does not tell.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        before = os.sched_getaffinity(0)
        try:
            # Those that are inherited may be fewer; the system takes what is allowed of these.
            os.sched_setaffinity(0, range(MAX_CPU + 1))
            return frozenset(os.sched_getaffinity(0))
        finally:
            os.sched_setaffinity(0, before)
    except OSError:
        return None


def check(settings: Settings, services: Collection[str] = SERVICES) -> None:
    """Raise SettingsError when a service is to run on a CPU that is not there."""
    wanted = {name: settings.service(name).cpus for name in services}
    if not any(wanted.values()):
        return
    there = usable()
    for name, cpus in wanted.items():
        if there is not None and not there.issuperset(cpus):
            raise _refused(settings, name, f"{_shown(set(cpus) - there)} cannot be used", there)


def pin(settings: Settings, service: str) -> None:
    """Let this thread, and those that it starts, run on the service's CPUs only.

    Raises SettingsError.
    """
    cpus = settings.service(service).cpus
    if not cpus or not hasattr(os, "sched_setaffinity"):
        return
    check(settings, (service,))
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        reason = f"the system does not let this process choose its CPUs: {error.strerror}"
        raise _refused(settings, service, reason, None) from error


def _refused(
    settings: Settings, service: str, reason: str, there: Iterable[int] | None
) -> SettingsError:
    key = f"{service}.cpu"
    advice = "leave it empty" if there is None else f"usable here: {_shown(there)}"
    return SettingsError(key, settings.origins.get(key, "default"), f"{reason}; {advice}")


def _shown(cpus: Iterable[int]) -> str:
    """`CPU 3`, `CPUs 0-1,4`."""
    ordered = sorted(cpus)
    ranges: list[list[int]] = []
    for cpu in ordered:
        if ranges and cpu == ranges[-1][1] + 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    text = ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)
    return f"CPU{'s' if len(ordered) != 1 else ''} {text or 'none'}"
