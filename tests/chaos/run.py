"""One chaos run: start, load, harm, recover, stop, judge."""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from tallybus import Client, TallybusError, WaitLevel
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import START_ORDER
from tests.chaos.clients import METER, TIMEOUT_S, Clients
from tests.chaos.faults import Chaos, Episode
from tests.chaos.history import Operations, Pace, Recorder, to_operation
from tests.chaos.judge import Findings, Judge
from tests.chaos.machine import Machine
from tests.processes.pipeline import make_settings
from tests.support.unchecked import amounts_unchecked

START_SECONDS: Final = 60.0
ACCOUNTS: Final = 64
MAX_ACCOUNTS: Final = 5_000
MOST_IMPATIENT: Final = 3


@dataclass(slots=True)
class Report:
    """What a run did and found."""

    seed: int
    seconds: float
    settings: dict[str, int]
    kills: dict[str, int] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)
    episodes: dict[str, int] = field(default_factory=dict)
    supervisors: int = 0
    transactions: int = 0
    in_log: int = 0
    segments: int = 0
    requests: int = 0
    reads: int = 0
    retries: int = 0
    unknown: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    applied_after_window: int = 0
    pauses: dict[str, dict[str, float]] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    folder: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """One run. `folder` holds data, logs and, after a violation, histories."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        seconds: float,
        services: tuple[str, ...] = START_ORDER,
        least_kills: int = 0,
    ) -> None:
        """It harms `services` for so many seconds, and on a slow machine for longer, until it has
        killed `least_kills` of them."""
        self.folder = folder
        self.seed = seed
        self.seconds = seconds
        self.services = services
        self.least_kills = least_kills
        draw = random.Random(seed ^ 0x7A11)
        per_segment = draw.choice((4_000, 12_000, 40_000))
        self.chosen = {
            "ledger.transactions_per_segment": per_segment,
            "bus.max_in_flight": draw.choice((2_048, 16_384, 1_048_576)),
            "bus.high_water_mark": draw.choice((2, 8, 32)),
            "gateway.max_batch": 1_024,
            "ledger.max_accounts": MAX_ACCOUNTS,
        }
        overrides = {name.replace(".", "__"): value for name, value in self.chosen.items()}
        self.settings: Settings = make_settings(
            folder / "data", **overrides, bus__run_folder=folder / "run"
        )
        self.machine = Machine(self.settings, folder / "services.log")
        self.recorder = Recorder(Operations(MAX_ACCOUNTS, ACCOUNTS), Pace(per_segment // 4))
        self.clients = Clients(
            self.recorder, self.settings.gateway.endpoint, seed, max_batch=per_segment // 40
        )
        self.episodes: list[Episode] = []
        self.violations: list[str] = []
        self.began_ns = time.monotonic_ns()
        self._rng = np.random.default_rng([seed, 1000])
        self._wall_ns = time.time_ns() - self.began_ns

    def run(self) -> Report:
        """Everything; services are never left behind."""
        last = 0
        balances: list[int] = []
        stuck = False
        try:
            self.machine.start()
            # Some amounts are wrong on purpose.
            with (
                amounts_unchecked(),
                Client(self.settings.gateway.endpoint, timeout=TIMEOUT_S) as probe,
            ):
                stuck = not self._answers(probe)
                if not stuck:
                    self.clients.start()
                    stuck = not self._harm(probe)
                self.machine.resume_all()
                self.recorder.stop()
                for name in self.clients.join(TIMEOUT_S + 10.0):
                    self.violations.append(f"client {name} hangs")
                if not stuck:
                    last, balances = self._settle(probe)
        finally:
            self.machine.end(clean=not stuck)
        self.violations += self.recorder.crashes
        if not stuck:
            self._read_logs()
        self.violations += self.machine.problems
        findings = Findings() if stuck else self._judge(last, balances)
        report = self._report(findings, last)
        if report.violations:
            self.recorder.history.save(self.folder, self.recorder.operations.made, self.began_ns)
            self._save_episodes()
        return report

    # -- phases ------------------------------------------------------------------------------------

    def _harm(self, probe: Client) -> bool:
        """Faults until there were enough. False when the pipeline does not come back."""
        chaos = Chaos(self.machine, self.seed, self.services)
        chaos.pause(1.0)
        until = time.monotonic() + self.seconds
        impatient = 0
        while not self.recorder.crashes and (
            time.monotonic() < until or self.machine.kills.total() < self.least_kills
        ):
            episode = chaos.strike()
            self.episodes.append(episode)
            if not self.machine.check():
                self._read_logs()
                return False
            if impatient < MOST_IMPATIENT and chaos.impatient:
                impatient += 1
                chaos.pause(0.6)
                continue
            impatient = 0
            if not self._answers(probe):
                return False
            self._await_meter()
            now = time.monotonic_ns()
            for each in self.episodes:
                each.to_ns = each.to_ns or now
            chaos.pause(0.8)
        self.machine.resume_all()
        return self._answers(probe)

    def _answers(self, probe: Client) -> bool:
        """Whether a transaction goes all the way; if not, write down why not."""
        recorder = self.recorder
        records = recorder.operations.make(self._rng, 1, refs=True)
        records["kind"], records["counterparty"] = 1, 0
        recorder.operations.remember(records)
        submission = recorder.begin("probe", records, WaitLevel.SNAPSHOT)
        operation = to_operation(records[0])
        if recorder.finish(
            submission, lambda: probe.submit_and_wait(operation, WaitLevel.SNAPSHOT)
        ):
            return True
        self.violations.append(
            f"stuck: {submission.error} after {[e.label for e in self.episodes[-4:]]}; "
            f"statuses: {self.machine.statuses()}"
        )
        self.machine.check()
        self._read_logs()
        self.machine.abort_services()
        return False

    def _read_logs(self) -> None:
        wrong = self.machine.read_logs(self._wall_ns)
        self.violations += [f"service: {text}" for text in wrong]

    def _await_meter(self) -> None:
        """Until the client that is measured was answered again, too."""
        meter = self.recorder.history.meter
        seen = len(meter)
        until = time.monotonic() + TIMEOUT_S
        while len(meter) < seen + 2 and time.monotonic() < until:
            time.sleep(0.005)

    def _settle(self, probe: Client) -> tuple[int, list[int]]:
        """The last id and all balances as the ledger tells them when nothing is under way."""
        try:
            last = probe.pipeline_index().sequenced
            probe.wait_for(last, WaitLevel.SNAPSHOT)
            index = probe.pipeline_index()
            if not index.sequenced == index.computed == index.committed == index.snapshot:
                self.violations.append(f"nothing is under way, but the index is {index}")
            accounts = np.arange(ACCOUNTS + 1)
            read = probe.get_balances(accounts, min_tx_id=index.committed)
        except TallybusError as error:
            self.violations.append(f"at the end: {error!r}; {self.machine.statuses()}")
            return 0, []
        return index.committed, read.balances.tolist()

    def _judge(self, last: int, balances: list[int]) -> Findings:
        judge = Judge(
            self.recorder.history,
            self.recorder.operations.made,
            self.settings,
            self.machine.deaths,
            self.machine.stops,
            self.began_ns,
            self._tell,
        )
        findings = judge.judge(last)
        expected = [judge.oracle.balance(account) for account in range(len(balances))]
        if expected != balances:
            findings.wrong("balance", f"at the end {balances}, the oracle has {expected}")
        if sum(balances) != 0:
            findings.wrong("sum", f"the ledger's balances sum to {sum(balances)}")
        return findings

    def _tell(self, what: str) -> None:
        """On standard error: standard output is the report's."""
        seconds = (time.monotonic_ns() - self.began_ns) / 1e9
        print(f"seed {self.seed}, {seconds:.0f} s: {what}", file=sys.stderr, flush=True)

    # -- the report --------------------------------------------------------------------------------

    def _report(self, findings: Findings, last: int) -> Report:
        history = self.recorder.history
        data = self.settings.ledger.data
        return Report(
            seed=self.seed,
            seconds=round((time.monotonic_ns() - self.began_ns) / 1e9, 1),
            settings=self.chosen,
            kills=dict(self.machine.kills),
            stops=dict(self.machine.stopped),
            episodes=dict(Counter(episode.name for episode in self.episodes)),
            supervisors=self.machine.supervisors,
            transactions=history.transactions,
            in_log=last,
            segments=len(list(data.glob("wal_*.bin"))) + 1,
            requests=len(history.submissions),
            reads=len(history.balances) + len(history.statuses) + len(history.indexes),
            retries=sum(history.retries.values()),
            unknown=findings.unknown,
            lost=dict(findings.lost),
            applied_after_window=findings.applied_after_window,
            pauses=self._pauses(),
            violations=self.violations + findings.violations,
            folder=str(self.folder),
        )

    def _pauses(self) -> dict[str, dict[str, float]]:
        """Longest gap between two answers of the meter, per service killed once and alone."""
        meter = np.array(self.recorder.history.meter, np.int64)
        gaps: dict[str, list[float]] = {}
        previous = 0
        followers = [*self.episodes[1:], None][: len(self.episodes)]
        for episode, following in zip(self.episodes, followers, strict=True):
            overlaps = episode.from_ns < previous or (
                following is not None and following.from_ns < episode.to_ns
            )
            previous = episode.to_ns
            if overlaps or not episode.to_ns or len(meter) < 2:
                continue
            label = episode.services[0] if episode.single else episode.name
            start = max(0, int(np.searchsorted(meter, episode.from_ns)) - 1)
            stop = int(np.searchsorted(meter, episode.to_ns)) + 1
            if stop - start >= 2:
                gaps.setdefault(label, []).append(float(np.diff(meter[start:stop]).max()) / 1e9)
        return {
            label: {
                "count": len(values),
                "median_s": round(statistics.median(values), 3),
                "worst_s": round(max(values), 3),
            }
            for label, values in sorted(gaps.items())
        }

    def _save_episodes(self) -> None:
        with (self.folder / "faults.txt").open("w") as file:
            for episode in self.episodes:
                start = (episode.from_ns - self.began_ns) / 1e9
                file.write(f"{start:.3f} {episode.label}\n")
            for span in sorted(
                [*self.machine.deaths, *self.machine.stops], key=lambda s: s.from_ns
            ):
                start, stop = (
                    (moment - self.began_ns) / 1e9 for moment in (span.from_ns, span.to_ns)
                )
                file.write(f"{start:.3f} to {stop:.3f} {span.service} {span.how}\n")


def run_chaos(
    seed: int, seconds: float, services: tuple[str, ...] = START_ORDER, folder: Path | None = None
) -> Report:
    """One run on a temporary folder, or below `folder`, kept only when there is a violation."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-", dir=folder))
    report = Run(home, seed, seconds, services).run()
    if report.violations:
        print(f"seed {seed}: kept {home}", file=sys.stderr)
    else:
        shutil.rmtree(home, ignore_errors=True)
    return report


__all__ = ["METER", "Report", "Run", "run_chaos"]
