"""Registrations whose services die on the way: each is made wholly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes.registration_kills import ACTIONS, PINNED, PINS, VICTIMS, Kills, crowd

pytestmark = pytest.mark.usefixtures("threads_end")


CALLS_OF_THE_LOG = 13
"""Calls of the storage that a registration takes, at least. The long run goes through all."""


def test_a_registration_is_made_wholly_or_not_at_all_wherever_the_log_and_others_die(
    tmp_path: Path,
) -> None:
    with Kills(tmp_path / "ledger", seed=4) as kills:
        steps = [(nth, action) for nth in range(1, CALLS_OF_THE_LOG) for action in ACTIONS]
        victims = [victim for victim in VICTIMS for _ in range(3)]
        for (nth, action), victim in zip(
            kills.random.sample(steps, len(victims)), victims, strict=True
        ):
            assert kills.at_call(nth, action, victim, kills.random.random() < 0.6)
        kills.look_at_everything()
        assert sum(kills.done.values()) - kills.done["came late"] == len(victims)


@pytest.mark.parametrize("nth", [3, 9, 16])
def test_the_first_registration_of_a_ledger_survives_a_power_cut_with_its_folder(
    nth: int, tmp_path: Path
) -> None:
    with Kills(tmp_path / "ledger", seed=nth) as kills:
        assert kills.at_call(nth, "replace", "power", True, "synced", first=True)
        kills.look_at_everything()


def test_a_registration_is_made_wholly_or_not_at_all_when_others_die_on_its_way(
    tmp_path: Path,
) -> None:
    with Kills(tmp_path / "ledger", seed=5) as kills:
        for pin in PINS:
            for dead in kills.random.sample(PINNED, 2):
                action = kills.random.choice(ACTIONS)
                kills.at_pin(pin, action, dead, kills.random.random() < 0.7)
        kills.look_at_everything()


def test_a_crowd_that_replaces_functions_gets_one_version_a_call_whoever_is_killed(
    tmp_path: Path,
) -> None:
    with Kills(tmp_path / "ledger", seed=6) as kills:
        assert crowd(kills, rounds=6) > 50
        kills.look_at_everything()
