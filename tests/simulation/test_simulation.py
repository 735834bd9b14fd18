"""A short slice of the simulated pipeline; `python -m tests.simulation` runs as many as wanted."""

import pytest

from tallybus.common.frames import Executed, Results
from tallybus.services.gateway.core import GatewayCore
from tallybus.services.wal.core import WalCore
from tests.simulation import nodes
from tests.simulation.pipeline import FLAVOURS, Pipeline, simulate
from tests.simulation.world import SimulationFailure

SEEDS = 11


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_pipeline_keeps_its_promises(flavour: str, seed: int) -> None:
    report = simulate(seed, flavour, steps=1200)
    assert report.steps >= 1200


def test_a_seed_replays_the_same_run() -> None:
    first, second = (simulate(3, "power", steps=600) for _ in range(2))
    assert first == second
    assert first.faults


def test_a_failure_names_what_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pipeline: Pipeline) -> None:
        raise SimulationFailure("something was lost")

    monkeypatch.setattr(Pipeline, "run", broken)
    with pytest.raises(SimulationFailure, match="something was lost") as caught:
        simulate(12, "crashes", 600)
    assert "--seed 12 --flavour crashes --steps 600" in str(caught.value)


def test_the_checks_notice_a_log_that_confirms_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    # A simulation that never fails proves nothing: here the log tells what is not on disk.
    class Hasty(WalCore):
        def written(self, message: Executed) -> None:
            super().written(message)
            self.synced(message.first + message.count - 1)

    monkeypatch.setattr(nodes, "WalCore", Hasty)
    assert any(_fails(seed, "power") for seed in range(10))


def test_the_checks_notice_outcomes_that_are_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hopeful(GatewayCore):
        def on_results(self, message: Results) -> None:
            if 0 < self._results_next < message.first:
                self._results_next = message.first
            super().on_results(message)

    monkeypatch.setattr(nodes, "GatewayCore", Hopeful)
    assert any(_fails(seed, "single") for seed in range(20))


def _fails(seed: int, flavour: str) -> bool:
    try:
        simulate(seed, flavour, steps=600)
    except SimulationFailure:
        return True
    return False
