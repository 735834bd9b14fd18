"""Which CPUs a service may run on, and what it says of those that it may not."""

import os

import pytest

from tallybus.common.errors import SettingsError
from tallybus.common.service import cpus
from tallybus.common.settings.sections import load


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
@pytest.mark.parametrize("text", ["4095", "0-4095", "0,4094"])
def test_a_cpu_that_is_not_there_is_a_wrong_setting(text: str) -> None:
    asked = load(environ={"TALLYBUS_WAL_CPU": text})
    for check in (lambda: cpus.check(asked), lambda: cpus.pin(asked, "wal")):
        with pytest.raises(SettingsError) as caught:
            check()
        assert caught.value.setting == "wal.cpu"
        assert caught.value.origin == "environment TALLYBUS_WAL_CPU"
        assert "cannot be used; usable here: CPU" in caught.value.reason
    cpus.check(asked, ["gateway"])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_a_service_may_run_on_cpus_that_its_parent_did_not_use() -> None:
    there = cpus.usable()
    assert there
    before = os.sched_getaffinity(0)
    first, last = min(there), max(there)
    try:
        os.sched_setaffinity(0, {first})
        assert cpus.usable() == there
        assert os.sched_getaffinity(0) == {first}, "looking changes nothing"
        cpus.pin(load(environ={"TALLYBUS_WAL_CPU": str(last)}), "wal")
        assert os.sched_getaffinity(0) == {last}
    finally:
        os.sched_setaffinity(0, before)


def test_a_smaller_cpuset_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: frozenset({2, 3, 4, 7}))
    cpus.check(load(environ={"TALLYBUS_WAL_CPU": "2-4,7"}))
    with pytest.raises(SettingsError, match=r"CPUs 0-1,5 cannot be used; usable here: CPUs 2-4,7"):
        cpus.check(load(environ={"TALLYBUS_WAL_CPU": "0-5"}))


def test_a_system_that_lets_nobody_choose_cpus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setaffinity", refuse, raising=False)
    with pytest.raises(SettingsError, match="does not let this process choose its CPUs"):
        cpus.pin(load(environ={"TALLYBUS_WAL_CPU": "0"}), "wal")
