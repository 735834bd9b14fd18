"""Alive and ready: judged by what a service's thread has noted."""

from dataclasses import dataclass, field

import pytest

from tallybus.common.metrics.health import (
    PROGRESS_NS,
    SILENT_NS,
    TURN_NS,
    Vitals,
    health,
    readiness,
)
from tallybus.common.stages import DEPENDS_ON, PORTS

HEARTBEAT_NS = 100_000_000
START_NS = 10**15
SECOND_NS = 10**9


@dataclass
class FakeCore:
    """What is looked at of a core."""

    awaits: str = ""
    recovering: bool = False
    incarnation: int = 0xABC
    term: int = 7


@dataclass
class FakeShell:
    """What is looked at of a shell."""

    stage: str = "transactor"
    stopping: bool = False
    heartbeat_ns: int = HEARTBEAT_NS
    core: FakeCore = field(default_factory=FakeCore)
    vitals: Vitals = field(default_factory=lambda: Vitals(START_NS, prepared=True))


def running(stage: str = "transactor") -> FakeShell:
    """A service for which everything is well at START_NS."""
    shell = FakeShell(stage)
    shell.vitals.heard = dict.fromkeys(DEPENDS_ON[stage], START_NS)
    return shell


def reasons(shell: FakeShell, now_ns: int = START_NS) -> list[str]:
    answer = readiness(shell, now_ns)  # type: ignore[arg-type]
    assert answer.good == answer.facts["ready"] == (not answer.facts["reasons"])
    told: list[str] = answer.facts["reasons"]
    return told


def alive(shell: FakeShell, now_ns: int) -> bool:
    answer = health(shell, now_ns)  # type: ignore[arg-type]
    assert answer.facts["alive"] == answer.good
    return answer.good


@pytest.mark.parametrize("stage", PORTS)
def test_ready_when_it_has_its_place_and_all_were_heard(stage: str) -> None:
    assert reasons(running(stage)) == []
    facts = readiness(running(stage), START_NS + SECOND_NS // 4).facts  # type: ignore[arg-type]
    assert facts == {
        "ready": True,
        "stage": stage,
        "state": "running",
        "reasons": [],
        "heard_seconds_ago": dict.fromkeys(DEPENDS_ON[stage], 0.25),
        "incarnation": "0000000000000abc",
        "term": 7,
    }


@pytest.mark.parametrize("stage", PORTS)
def test_not_ready_while_one_that_it_depends_on_is_silent(stage: str) -> None:
    for peer in DEPENDS_ON[stage]:
        shell = running(stage)
        shell.vitals.heard[peer] = START_NS - SILENT_NS
        assert reasons(shell) == []
        shell.vitals.heard[peer] -= SECOND_NS
        assert reasons(shell) == [f"the {peer} was not heard for 3.0 s"]
        del shell.vitals.heard[peer]
        assert reasons(shell) == [f"the {peer} was not heard of yet"]


def test_silence_is_measured_by_the_heartbeat_where_that_is_long() -> None:
    shell = running()
    shell.heartbeat_ns = 5 * SECOND_NS
    shell.vitals.turned_ns = START_NS + 49 * SECOND_NS
    assert reasons(shell, START_NS + 49 * SECOND_NS) == []
    assert reasons(shell, START_NS + 51 * SECOND_NS) == ["the wal was not heard for 51.0 s"]


def test_not_ready_while_something_is_awaited() -> None:
    shell = running()
    shell.core.awaits = "no sequencer has said hello yet"
    assert reasons(shell) == ["no sequencer has said hello yet"]


def test_not_ready_while_it_recovers_and_tells_how_far_it_is() -> None:
    shell = running()
    shell.core.recovering = True
    assert reasons(shell) == ["it is recovering"]
    shell.vitals.working(START_NS, "replaying the log", 3, 8)
    assert reasons(shell) == ["it is recovering: replaying the log, 37.5 % of 8 bytes"]


def test_before_it_is_prepared_there_is_no_core_to_ask() -> None:
    shell = running("wal")
    shell.vitals.prepared = False
    del shell.core
    assert reasons(shell) == ["it is recovering"]
    assert alive(shell, START_NS)
    assert "term" not in readiness(shell, START_NS).facts  # type: ignore[arg-type]


def test_not_ready_while_it_stops() -> None:
    shell = running()
    shell.stopping = True
    assert reasons(shell) == ["it is stopping"]
    assert alive(shell, START_NS)


def test_alive_until_the_loop_has_not_turned_for_long() -> None:
    shell = running()
    limit_ns = TURN_NS + 10 * HEARTBEAT_NS
    assert alive(shell, START_NS + limit_ns)
    assert not alive(shell, START_NS + limit_ns + 1)
    assert "its loop has not turned for 11 s" in reasons(shell, START_NS + limit_ns + 1)


def test_a_recovery_may_take_long_and_must_make_progress() -> None:
    shell = running()
    shell.core.recovering = True
    assert alive(shell, START_NS + PROGRESS_NS)
    assert not alive(shell, START_NS + PROGRESS_NS + 1)
    shell.vitals.working(START_NS + PROGRESS_NS, "replaying the log", 1, 2)
    assert alive(shell, START_NS + 2 * PROGRESS_NS)
