"""A short slice of the simulated pipeline; `python -m tests.simulation` runs as much as is wanted."""

import pytest

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
    from tallybus.services.wal.core import WalCore

    def early(core: WalCore) -> int:
        return core.receiver.next_id - 1

    monkeypatch.setattr(WalCore, "durable", property(early, lambda core, value: None), raising=False)
    with pytest.raises(SimulationFailure, match="durable"):
        for seed in range(5):
            simulate(seed, "power", steps=600)
