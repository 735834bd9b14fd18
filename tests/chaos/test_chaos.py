"""A short chaos run as part of the suite, and that its judge notices what is wrong."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tallybus import LostTransaction, OutcomeUnknown, TallybusError
from tallybus.common.record import Level
from tests.chaos.history import History, Submission
from tests.chaos.judge import Judge
from tests.chaos.run import Run

SEED = 20
SECONDS = 8.0
LEAST_KILLS = 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, int]:
    """A run without a violation, and the last id in its log."""
    run = Run(tmp_path_factory.mktemp("chaos"), SEED, SECONDS, least_kills=LEAST_KILLS)
    report = run.run()
    assert not report.violations, "\n".join(
        [f"seed {SEED}, {report.folder}; `python -m tests.chaos --seed {SEED}`", *report.violations]
    )
    assert sum(report.kills.values()) >= LEAST_KILLS
    assert report.segments >= 2
    assert report.in_log > 2_000
    return run, report.in_log


@pytest.mark.slow
def test_services_die_at_random_and_nothing_is_lost_or_doubled(finished: tuple[Run, int]) -> None:
    run, _ = finished
    assert run.recorder.history.meter, "single operations were committed"


def acknowledged(history: History) -> Submission:
    """A committed submission whose first operation succeeded and was no duplicate, and whose
    references nobody else used."""
    return next(
        each
        for each in history.submissions
        if each.reached is Level.COMMITTED
        and not each.shared
        and each.tx_ids is not None
        and each.statuses is not None
        and each.links is not None
        and each.statuses[0] == 0
        and each.links[0] == 0
    )


def other_status(history: History, _: NDArray[Any]) -> None:
    submission = acknowledged(history)
    assert submission.statuses is not None
    submission.statuses = submission.statuses.copy()
    submission.statuses[0] = 1


def other_id(history: History, _: NDArray[Any]) -> None:
    submission = acknowledged(history)
    assert submission.tx_ids is not None
    submission.tx_ids = submission.tx_ids + np.uint64(1)


def another_amount(history: History, made: NDArray[Any]) -> None:
    serial = int(acknowledged(history).records["amount"][0]) & ((1 << 28) - 1)
    made[serial]["account"] += 1


def stale_read(history: History, _: NDArray[Any]) -> None:
    history.balances.append(
        dataclasses.replace(history.balances[0], sent_ns=2**62, done_ns=2**62 + 1)
    )


def wrong_balance(history: History, _: NDArray[Any]) -> None:
    read = history.balances[len(history.balances) // 2]
    read.values = read.values + 1


def fail(submission: Submission, error: TallybusError) -> None:
    submission.tx_ids = submission.reached = None
    submission.error = error


def unfounded_error(history: History, _: NDArray[Any]) -> None:
    submission = copy.copy(acknowledged(history))
    submission.records = submission.records.copy()
    submission.records["user_ref"] = 0
    fail(submission, OutcomeUnknown("the connection was lost", count=1, retry_safe=False))
    submission.sent_ns, submission.done_ns = 1, 2
    history.submissions.append(submission)


def executed_after_all(history: History, _: NDArray[Any]) -> None:
    fail(acknowledged(history), LostTransaction("lost", request="submit", tx_id=None))


def out_of_order(history: History, _: NDArray[Any]) -> None:
    submission = acknowledged(history)
    submission.sent_ns, submission.done_ns = 2**62, 2**62 + 1


def told_and_missing(history: History, _: NDArray[Any]) -> None:
    submission = copy.copy(acknowledged(history))
    submission.reached = Level.COMPUTED
    submission.records = submission.records.copy()
    submission.records["amount"] = 1 << 28
    submission.sent_ns, submission.done_ns = 2**62, 2**62 + 1
    history.submissions.append(submission)


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (other_status, "acknowledged"),
        (other_id, "acknowledged"),
        (another_amount, "content"),
        (stale_read, "read went back"),
        (wrong_balance, "balance"),
        (unfounded_error, "unknown without cause"),
        (executed_after_all, "reported lost and executed"),
        (out_of_order, "order"),
        (told_and_missing, "lost"),
    ],
)
def test_the_judge_notices(
    spoil: Callable[[History, NDArray[Any]], None], kind: str, finished: tuple[Run, int]
) -> None:
    run, last = finished
    original = run.recorder.history
    history = dataclasses.replace(
        original,
        submissions=[copy.copy(each) for each in original.submissions],
        balances=[copy.copy(each) for each in original.balances],
    )
    made = run.recorder.operations.made.copy()
    spoil(history, made)
    judge = Judge(history, made, run.settings, run.machine.deaths, run.machine.stops, run.began_ns)
    assert judge.judge(last).kinds[kind] >= 1


def test_the_judge_tells_what_it_is_at(finished: tuple[Run, int]) -> None:
    run, last = finished
    told: list[str] = []
    history, made = run.recorder.history, run.recorder.operations.made
    deaths, stops = run.machine.deaths, run.machine.stops
    Judge(history, made, run.settings, deaths, stops, run.began_ns, told.append).judge(last)
    assert told[0] == f"reading {last} transactions from disk"
    assert told[1] == f"executing the log again, 0 of {last} transactions"
    assert len(told) == len(set(told)) >= 5


def test_the_judge_notices_what_is_in_the_log_twice_or_sent_by_nobody(
    finished: tuple[Run, int], tmp_path: Path
) -> None:
    run, last = finished
    made = run.recorder.operations.made
    kinds = Judge(History(), made[:10], run.settings, [], [], 0).judge(last).kinds
    assert kinds["invented"] >= 1
