"""A short slice of the simulated pipeline; `python -m tests.simulation` runs as many as wanted."""

import inspect

import pytest

from tests.simulation import mutations
from tests.simulation.pipeline import FLAVOURS, Pipeline, simulate
from tests.simulation.runner import Totals, outcomes
from tests.simulation.world import SimulationFailure

SEEDS = 8
MUTATION_SEEDS = 200


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_pipeline_keeps_its_promises(flavour: str, seed: int) -> None:
    report = simulate(seed, flavour, steps=1200)
    assert report.steps >= 1200


def test_a_seed_replays_the_same_run_in_this_process_and_in_others() -> None:
    seeds = range(8)
    with outcomes(seeds, None, 400, 1) as here, outcomes(seeds, None, 400, 2) as elsewhere:
        first, second = sorted(here), sorted(elsewhere)
    assert first == second
    assert all(outcome.report and outcome.report.faults for outcome in first)


def test_a_failure_names_what_replays_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pipeline: Pipeline) -> None:
        raise SimulationFailure("something was lost")

    monkeypatch.setattr(Pipeline, "run", broken)
    with pytest.raises(SimulationFailure, match="something was lost") as caught:
        simulate(12, "crashes", 600)
    assert "--seed 12 --flavour crashes --steps 600" in str(caught.value)
    with outcomes([12], "crashes", 600, 1) as found:
        assert [outcome.failure for outcome in found] == [str(caught.value)]


def test_the_totals_tell_faults_by_their_kind() -> None:
    totals = Totals()
    for seed in range(12):
        totals.add(simulate(seed, "power", steps=600))
    faults = totals.faults
    for kind in (
        "dropped",
        "power cut",
        "unsynced blocks lost",
        "second log stage refused",
        "paused: ",
        "zombie: ",
    ):
        named = [name for name in faults if name.startswith(kind) and faults[name]]
        assert named, kind
        assert f"  {named[0]}: {faults[named[0]]}" in totals.lines()


# A simulation that never fails proves nothing. The first three are the duties of every link.
@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("accept-gap", 0),
        ("release-early", 61),
        ("ignore-incarnation", 7),
        ("acknowledge-written", 0),
        ("assume-success", 0),
    ],
)
def test_a_broken_duty_is_found_and_the_same_seed_is_clean_without_it(name: str, seed: int) -> None:
    # A change of the product may lead the seed elsewhere: then another one has to find it.
    found = mutations.search(name, seed, 1) or mutations.search(name, 0, MUTATION_SEEDS)
    assert found is not None, f"{name} survived {MUTATION_SEEDS} runs"
    assert simulate(found.seed).steps


@pytest.mark.parametrize("name", mutations.MUTATIONS)
def test_a_mutation_is_called_as_what_it_replaces_is(name: str) -> None:
    """One that cannot be called ends the first run with an error, which looks like a discovery."""
    for owner, method, mutant in mutations.MUTATIONS[name].changes():
        given: list[object] = []
        named: dict[str, object] = {}
        for parameter in inspect.signature(getattr(owner, method)).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = None
            else:
                given.append(None)
        inspect.signature(mutant).bind(*given, **named)
