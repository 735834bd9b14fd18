"""How `tallybus up` ends, and what it does with a service that dies: nothing is lost or left."""

import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tallybus import OutcomeUnknown
from tallybus.common.settings import Settings
from tallybus.supervisor import FIRST_PAUSE, STOP_ORDER
from tests.processes.acknowledged import Load, assert_all_on_disk
from tests.processes.pipeline import eventually, is_alive, make_settings
from tests.processes.services import Up, left_over, processes_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "data", ledger__max_accounts=1_000)


@pytest.fixture
def up(settings: Settings, tmp_path: Path) -> Iterator[Up]:
    with Up(settings, tmp_path) as started:
        started.wait_up()
        yield started


def test_a_stop_under_load_drains_the_stages_in_their_order(settings: Settings, up: Up) -> None:
    with Load(settings.gateway.endpoint, seed=1) as load:
        load.goes_on(10)
        assert up.stop() == 0
        load.break_off()
        # What was sent while nobody listened any more may not have been answered.
        assert all(isinstance(error, OutcomeUnknown) for error in load.errors), load.errors
    stopped = [line["stage"] for line in up.lines if line["message"] == "stopped"]
    assert [stage for stage in stopped if stage in STOP_ORDER] == list(STOP_ORDER)
    assert not any(line["level"] in ("warning", "error") for line in up.lines)
    up.assert_nothing_left()
    assert_all_on_disk(settings, load)


def test_a_stop_leaves_nothing_of_services_that_were_killed_or_stand_still(
    settings: Settings, up: Up
) -> None:
    services = up.services()
    os.kill(services["snapshotter"], signal.SIGSTOP)
    os.kill(services["transactor"], signal.SIGKILL)
    assert up.stop() == 0
    up.services()
    up.assert_nothing_left()


def test_killing_the_supervisor_under_load_leaves_nothing(settings: Settings, up: Up) -> None:
    with Load(settings.gateway.endpoint, seed=2) as load:
        load.goes_on(10)
        up.services()
        up.process.kill()
        assert up.wait() == -signal.SIGKILL
        eventually(lambda: not any(map(is_alive, up.seen)), "the services end, too")
        load.break_off()
    assert processes_of(settings) == []
    assert left_over(settings) == []
    assert_all_on_disk(settings, load)


def test_a_service_that_dies_at_every_start_is_given_longer_and_longer_pauses(
    settings: Settings, tmp_path: Path
) -> None:
    switch = tmp_path / "die"
    faults = {"die_while": str(switch), "code": 3}
    with (
        Up(settings, tmp_path, faulty="sequencer", faults=faults) as up,
        Load(settings.gateway.endpoint, seed=3) as load,
    ):
        up.wait_up()
        load.goes_on()
        before = up.services()
        switch.touch()
        os.kill(before["sequencer"], signal.SIGKILL)

        def reports() -> list[dict[str, object]]:
            return [line for line in up.lines if "a service died" in line["message"]]

        eventually(lambda: len(reports()) >= 5, "it is started again and again")
        switch.unlink()
        load.goes_on()
        load.finish()
        assert not load.errors
        told = reports()
        assert {line["service"] for line in told} == {"sequencer"}
        assert [line["code"] for line in told] == [-signal.SIGKILL, *[3] * (len(told) - 1)]
        assert [line["pause"] for line in told] == [
            FIRST_PAUSE * 2**number for number in range(len(told))
        ]
        times = [datetime.fromisoformat(str(line["time"])).timestamp() for line in told]
        for line, at, following in zip(told, times, times[1:], strict=False):
            assert following - at >= float(str(line["pause"]))
        after = up.services()
        assert {name for name in before if before[name] != after[name]} == {"sequencer"}
        assert up.stop() == 0
        up.assert_nothing_left()
    assert_all_on_disk(settings, load)
