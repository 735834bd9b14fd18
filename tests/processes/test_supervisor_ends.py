"""How `tallybus up` ends, and what it does with a service that dies: nothing is lost or left."""

import errno
import os
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tallybus import OutcomeUnknown
from tallybus.common.errors import EXIT_REPLACED, EXIT_STORAGE
from tallybus.common.service.shell import DRAIN_NS
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import STOP_ORDER
from tallybus.supervisor import FIRST_PAUSE, MOST_REPLACED
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


def test_up_started_right_after_the_supervisor_was_killed_under_load_takes_over(
    settings: Settings, up: Up, tmp_path: Path
) -> None:
    with Load(settings.gateway.endpoint, seed=4) as load:
        load.goes_on(10)
        up.services()
        up.process.kill()
        up.wait()
        # The services of the killed one need a moment to notice, and hold their locks so long.
        with Up(settings, tmp_path) as again:
            again.wait_up()
            load.goes_on(10)
            load.break_off()
            assert again.stop() == 0
            again.assert_nothing_left()
    assert not any(map(is_alive, up.seen))
    # Neither pipeline drained what the other had taken in.
    assert all(isinstance(error, OutcomeUnknown) for error in load.errors), load.errors
    assert_all_on_disk(settings, load)


def seconds_between(up: Up, message: str) -> float:
    """From the first line with this message to the last line of all."""
    first = next(line for line in up.lines if line["message"] == message)
    began, ended = (datetime.fromisoformat(str(line["time"])) for line in (first, up.lines[-1]))
    return (ended - began).total_seconds()


def test_after_a_final_failure_nobody_waits_for_what_cannot_be_answered(
    settings: Settings, tmp_path: Path
) -> None:
    """Under load something is always under way, which without a log can never be committed."""
    switch = tmp_path / "full"
    faults = {
        "faults": [{"operation": "write", "nth": 1, "error": errno.ENOSPC, "forever": True}],
        "armed": str(switch),
    }
    with (
        Up(settings, tmp_path, faulty="wal", faults=faults) as up,
        Load(settings.gateway.endpoint, seed=5) as load,
    ):
        up.wait_up()
        load.goes_on()
        switch.touch()
        assert up.wait() == EXIT_STORAGE
        load.break_off()
        taken = seconds_between(up, "a service cannot go on, stopping all")
        assert taken < DRAIN_NS / 1e9, f"it took {taken} s, which is as long as draining"
        stopped = [line["stage"] for line in up.lines if line["message"] == "stopped"]
        assert stopped == [stage for stage in STOP_ORDER if stage != "wal"]
        up.assert_nothing_left()
    assert_all_on_disk(settings, load)


def test_a_second_signal_ends_the_draining(settings: Settings, up: Up) -> None:
    with Load(settings.gateway.endpoint, seed=6) as load:
        load.goes_on()
        # Nothing is committed any more, so draining cannot come to its end.
        os.kill(up.services()["wal"], signal.SIGSTOP)
        up.process.send_signal(signal.SIGTERM)
        eventually(lambda: said(up, "gateway", "stopping"), "it stops")
        up.process.send_signal(signal.SIGINT)
        assert up.wait() == 0
        load.break_off()
        for stage in ("gateway", "transactor"):
            assert said(up, stage, "stopped before everything was answered"), stage
        taken = seconds_between(up, "stopping")
        assert taken < DRAIN_NS / 1e9, f"it took {taken} s, which is as long as draining"
        up.assert_nothing_left()
    assert_all_on_disk(settings, load)


def said(up: Up, stage: str, message: str) -> bool:
    return any((line["stage"], line["message"]) == (stage, message) for line in up.lines)


def test_a_service_that_is_replaced_again_and_again_is_given_up(
    settings: Settings, tmp_path: Path
) -> None:
    """Two pipelines that share a stage would replace each other's services for ever."""
    switch = tmp_path / "replaced"
    faults = {"die_while": str(switch), "code": EXIT_REPLACED}
    with Up(settings, tmp_path, faulty="sequencer", faults=faults) as up:
        up.wait_up()
        switch.touch()
        os.kill(up.services()["sequencer"], signal.SIGKILL)
        assert up.wait() == EXIT_REPLACED
        died = [line for line in up.lines if "a service died" in line["message"]]
        assert [line["code"] for line in died] == [-signal.SIGKILL] + [EXIT_REPLACED] * (
            MOST_REPLACED - 1
        )
        up.assert_nothing_left()


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
            0.0,
            *(FIRST_PAUSE * 2**number for number in range(len(told) - 1)),
        ]
        times = [datetime.fromisoformat(str(line["time"])).timestamp() for line in told]
        for line, at, following in zip(told, times, times[1:], strict=False):
            assert following - at >= float(str(line["pause"]))
        after = up.services()
        assert {name for name in before if before[name] != after[name]} == {"sequencer"}
        assert up.stop() == 0
        up.assert_nothing_left()
    assert_all_on_disk(settings, load)
