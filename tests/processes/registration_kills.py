"""Registrations whose transactor, log service or machine dies at each of their steps.

`python -m tests.processes.registration_kills --seeds 5` goes through all steps, once per seed, on a
ledger each, and prints what it did; the suite goes through a part. After every death:

- the ledger has the whole registration or nothing of it: the list, the record, the file, the
  transaction as it is read and a call say the same;
- a client that waits is told success in the end, and exactly one version was made for it;
- versions have no gap and none is given twice.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from crc32c import crc32c

from tallybus import (
    Client,
    ClientClosed,
    Deposit,
    Function,
    FunctionVersion,
    NotRegistered,
    Status,
    WaitLevel,
)
from tallybus.common.functions.registry import registrations
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import START_ORDER
from tallybus.common.wal.check import check_log
from tallybus.common.wal.reader import read_log
from tests.processes.held_log import VARIABLE
from tests.processes.pipeline import PATIENCE_S, eventually, make_settings
from tests.processes.services import Service, Services
from tests.support.hostile.making import function

ACTIONS: Final = ("register", "replace", "unregister")
VICTIMS: Final = {
    "log": ("wal",),
    "transactor": ("transactor",),
    "both": ("wal", "transactor"),
    "all": START_ORDER,
    "power": START_ORDER,
}
"""Who is killed while the log stands still at a call of its storage."""
PINS: Final = ("asked", "prepared", "sequenced", "executed", "durable")
"""How far a registration has come when others than the log are killed."""
PINNED: Final = (
    ("transactor",),
    ("transactor", "sequencer"),
    ("transactor", "wal"),
    ("gateway",),
    ("gateway", "transactor"),
    START_ORDER,
)
SEGMENT: Final = 25
MOST_CALLS: Final = 60
"""A registration makes far fewer calls of the storage than this."""


def binary_of(number: int) -> bytes:
    """A module of its own for each number: moves its first parameter from account 1 to 2."""
    moves = "(call $credit (i64.const 1) (local.get 0)) (call $debit (i64.const 2) (local.get 0))"
    return function(f"(drop (i32.const {number})) {moves} (i32.const 0)")


class Waiting(threading.Thread):
    """A client that registers or unregisters, and how that ended."""

    def __init__(self, endpoint: str, action: str, name: str, binary: bytes) -> None:
        super().__init__()
        self.client = Client(endpoint, timeout=2 * PATIENCE_S)
        self.action, self.name_, self.binary = action, name, binary
        self.made: FunctionVersion | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            if self.action == "unregister":
                self.made = self.client.unregister_function(self.name_)
            else:
                override = self.action == "replace"
                self.made = self.client.register_function(self.name_, self.binary, override)
        except BaseException as error:  # noqa: BLE001 - whoever waits looks at it
            self.error = error

    def give_up(self) -> None:
        with suppress(ClientClosed):
            self.client.close(wait=False)
        self.join(PATIENCE_S)
        assert not self.is_alive(), "the client hangs"

    def finish(self) -> None:
        self.join(2 * PATIENCE_S)
        assert not self.is_alive(), "the client hangs"
        self.client.close()
        if self.error is not None:
            raise self.error


@dataclass
class Kills:
    """One ledger with its processes. `expected`: what is registered, and all versions made."""

    folder: Path
    seed: int
    settings: Settings = field(init=False)
    done: Counter[str] = field(default_factory=Counter)
    live: dict[str, bytes] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.numbers = iter(range(1, 2**31))
        self.orders = self.folder / "orders"
        self.orders.mkdir(parents=True)
        self.settings = make_settings(
            self.folder / "data",
            ledger__transactions_per_segment=SEGMENT,
            ledger__snapshot_frequency=1,
            ledger__max_accounts=1_000,
        )
        self.services = Services(self.folder)

    def __enter__(self) -> Kills:
        self.services.__enter__()
        self.start(START_ORDER)
        self.client = Client(self.settings.gateway.endpoint, timeout=PATIENCE_S)
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close(wait=False)
        self.services.__exit__(*error)  # type: ignore[arg-type]

    # --- processes ---------------------------------------------------------------------------

    def start(self, stages: tuple[str, ...]) -> None:
        for stage in stages:
            self.kill((stage,))
            if stage != "wal":
                self.services.start(stage, self.settings)
                continue
            variables = {**self.settings.to_environment(), VARIABLE: str(self.orders)}
            number = len(list(self.folder.glob("wal.*.log")))
            self.services.all["wal"] = Service(
                ["tests.processes.held_log"], variables, self.folder / f"wal.{number}.log"
            )

    def kill(self, stages: tuple[str, ...]) -> None:
        for stage in stages:
            if stage in self.services.all:
                self.services[stage].kill()

    def order(self, name: str, text: str) -> None:
        path = self.orders / f"{name}.tmp"
        path.write_text(text)
        path.rename(self.orders / name)

    def forget_orders(self) -> None:
        for path in self.orders.iterdir():
            path.unlink()

    # --- one registration -------------------------------------------------------------------

    def prepare(self, action: str) -> tuple[str, bytes]:
        """A name and a binary; registered before, where the action needs that."""
        number = next(self.numbers)
        name = f"f{number}"
        if action != "register" or self.random.random() < 0.3:
            before = binary_of(next(self.numbers))
            made = self.client.register_function(name, before)
            self.made(made, name, before)
            if action == "register":
                self.made(self.client.unregister_function(name), name, b"")
        return name, b"" if action == "unregister" else binary_of(number)

    def made(self, made: FunctionVersion | None, name: str, binary: bytes) -> None:
        """Take over a version that was made; it must be the next one."""
        assert made is not None
        self.versions[name] += 1
        assert made.version == self.versions[name], (made, self.versions[name])
        assert (made.name, made.crc32c) == (name, crc32c(binary))
        if binary:
            self.live[name] = binary
        else:
            del self.live[name]

    def at_call(
        self,
        nth: int,
        action: str,
        victims: str,
        patient: bool,
        keep: str = "",
        *,
        first: bool = False,
    ) -> bool:
        """Kill when the log is about to make its nth call; False when it makes fewer.

        `keep`: what the disk has of what was not synced when the power fails, "" any. `first`: no
        other registration comes before.
        """
        name, binary = ("first", binary_of(0)) if first else self.prepare(action)
        self.settle()
        self.order("arm", str(nth))
        waiting = Waiting(self.settings.gateway.endpoint, action, name, binary)
        reached = self.orders / "reached"
        eventually(lambda: reached.exists() or not waiting.is_alive(), "the log stands still")
        if not reached.exists():
            # What the log does when it has nothing to do is a step, too.
            limit = time.monotonic() + 0.3
            while not reached.exists() and time.monotonic() < limit:
                time.sleep(0.01)
        if not reached.exists():
            (self.orders / "arm").unlink()
            waiting.finish()
            self.made(waiting.made, name, binary)
            self.forget_orders()
            return False
        told = waiting.made  # before anybody dies
        case = f"{action}, {victims} at {reached.read_text()} ({nth}), patient {patient}"
        dead = VICTIMS[victims]
        if not patient:
            waiting.give_up()
            told = told or waiting.made
        if victims == "power":
            self.kill(tuple(stage for stage in dead if stage != "wal"))
            keep = keep or self.random.choice(("synced", "all", "some", "some"))
            case += f" {keep}"
            self.order("go", f"power {keep} {self.random.randrange(2**31)}")
            self.services["wal"].wait()
        else:
            self.kill(dead)
            (self.orders / "arm").unlink()
            if "wal" not in dead:
                self.order("go", "on")
                eventually(lambda: not (self.orders / "go").exists(), "the log goes on")
        self.finish(case, waiting, told, name, binary, dead, patient)
        return True

    def at_pin(self, pin: str, action: str, dead: tuple[str, ...], patient: bool) -> None:
        """Kill when a registration has come so far and no further."""
        name, binary = self.prepare(action)
        self.settle()
        if action == "unregister" and pin in ("asked", "prepared"):
            action, binary = "replace", binary_of(next(self.numbers))
        before = self.client.pipeline_index().computed
        first = {"asked": "transactor", "prepared": "sequencer", "sequenced": "sequencer"}
        stopped = {first.get(pin, "wal")}
        if pin == "durable":
            stopped = {"snapshotter"}  # without it no client reads which version it was
        for stage in stopped:
            self.services[stage].freeze()
        waiting = Waiting(self.settings.gateway.endpoint, action, name, binary)
        with Client(self.settings.gateway.endpoint, timeout=PATIENCE_S) as watcher:

            def passed(stage: str) -> int:
                index = watcher.pipeline_index()
                return {
                    "sequenced": index.sequenced,
                    "executed": index.computed,
                    "durable": index.committed,
                }[stage]

            if pin == "asked":
                # The client's connection is read in turn with this one.
                for _ in range(3):
                    watcher.pipeline_index()
            else:
                eventually(lambda: self.is_under_way(watcher), "it is on its way to the sequencer")
            if pin == "sequenced":
                self.services["transactor"].freeze()
                stopped.add("transactor")
                self.services["sequencer"].thaw()
                stopped.remove("sequencer")
            if pin in ("sequenced", "executed", "durable"):
                eventually(lambda: passed(pin) > before, f"it is {pin}")
        if not patient:
            waiting.give_up()
        told = waiting.made
        self.kill(dead)
        for stage in stopped.difference(dead):
            self.services[stage].thaw()
        case = f"{action}, {' '.join(dead)} when {pin}, patient {patient}"
        self.finish(case, waiting, told, name, binary, dead, patient)

    def is_under_way(self, watcher: Client) -> bool:
        for row in watcher.services():
            if row.stage == "gateway":
                # Its own request, or what came of it already.
                return row.retained > 0 or row.next > self.gateway_next
        return False

    def settle(self) -> None:
        """Nothing is under way any more, and the log's marker is written."""
        self.client.submit_and_wait(Deposit(1, 1_000), WaitLevel.SNAPSHOT)
        time.sleep(0.08)
        for row in self.client.services():
            if row.stage == "gateway":
                self.gateway_next = row.next

    def finish(
        self,
        case: str,
        waiting: Waiting,
        told: FunctionVersion | None,
        name: str,
        binary: bytes,
        dead: tuple[str, ...],
        patient: bool,
    ) -> None:
        """Start what was killed, and look at what became of the registration."""
        try:
            if dead == START_ORDER:
                known = self.on_disk(name)
                assert known in (self.versions[name], self.versions[name] + 1)
                assert told is None or known == told.version, "it was confirmed and is not there"
            if patient or told is not None:
                self.start(dead)
                self.forget_orders()
                waiting.finish()
                self.made(waiting.made, name, binary)
            else:
                self.start(dead)
                self.forget_orders()
                self.client.submit_and_wait(Deposit(1, 1_000), WaitLevel.SNAPSHOT)
                self.look_whether(name, binary)
            self.look(name)
        except BaseException as error:
            error.add_note(case)
            raise
        self.done[case.partition(" at ")[0].partition(", patient")[0]] += 1

    def look_whether(self, name: str, binary: bytes) -> None:
        """Nobody was told: find out whether it took effect, all of it. If not, it can be made."""
        # A request may still be under way between processes that live; then it is all there soon.
        known = self.on_disk(name)
        if known == self.versions[name]:
            if binary:
                made = self.client.register_function(name, binary, override=True)
            else:
                made = self.client.unregister_function(name)
            if made.version == known + 2:
                self.versions[name] += 1  # the other one came before
                self.done["came late"] += 1
            self.made(made, name, binary)
            return
        last = self.registered(name)[-1]
        self.made(FunctionVersion(*last), name, binary)

    def look(self, name: str) -> None:
        """List, file, record, transaction and a call all say the same of one function."""
        versions = self.registered(name)
        assert [each[1] for each in versions] == list(range(1, self.versions[name] + 1))
        for _, version, crc, tx_id in versions:
            path = self.settings.ledger.data / "functions" / f"{name}_v{version}.wasm"
            assert crc32c(path.read_bytes()) == crc, path
            found = self.client.get_transaction(tx_id, min_tx_id=tx_id)
            assert (found.function_name, found.function_version) == (name, version)
            assert found.function_crc32c == crc
        listed = {row.name: row for row in self.client.list_functions()}
        assert set(listed) == set(self.live)
        result = self.client.submit_and_wait(Function(name, (3,)), WaitLevel.SNAPSHOT)
        called = self.client.get_transaction(result.tx_id)
        if name not in self.live:
            assert result.status == Status.INVALID_OPERATION
            assert called.function_crc32c is None
            return
        row = listed[name]
        crc = crc32c(self.live[name])
        assert (row.version, row.crc32c, row.tx_id) == (*versions[-1][1:3], versions[-1][3])
        assert row.crc32c == crc
        assert result.status == Status.NONE
        assert (called.function_version, called.function_crc32c) == (row.version, crc)
        assert [(e.account, e.amount) for e in called.entries] == [(1, 3), (2, 3)]

    def registered(self, name: str = "") -> list[tuple[str, int, int, int]]:
        """(name, version, CRC-32C, transaction) of all that the log registers, or of one name."""
        return [row for row in self._registered() if name in ("", row[0])]

    def _registered(self) -> Iterator[tuple[str, int, int, int]]:
        ledger = self.settings.ledger
        last = check_log(ledger.data, ledger.transactions_per_segment).chain.next_id - 1
        for run in read_log(ledger.data, 1, last, ledger.transactions_per_segment):
            for each in registrations(run):
                yield each.name, each.version, each.crc32c, each.transaction_id

    def on_disk(self, name: str) -> int:
        """The last version in the log; its file, and that of all before, must be whole."""
        found = self.registered(name)
        for _, version, crc, _ in found:
            path = self.settings.ledger.data / "functions" / f"{name}_v{version}.wasm"
            assert path.exists(), f"{path} is missing and the log names it"
            assert crc32c(path.read_bytes()) == crc, path
        return len(found)

    def look_at_everything(self) -> None:
        """After all processes were killed, and once more after clean stops: the same registry."""
        for clean in (False, True):
            if clean:
                for stage in reversed(START_ORDER):
                    self.services[stage].stop()
            else:
                self.kill(START_ORDER)
            self.start(START_ORDER)
            rows = {row.name: row for row in self.client.list_functions()}
            assert {name: row.crc32c for name, row in rows.items()} == {
                name: crc32c(binary) for name, binary in self.live.items()
            }
            assert all(row.version == self.versions[name] for name, row in rows.items())
        made = Counter(name for name, *_ in self.registered())
        assert made == self.versions
        left = [*(self.settings.ledger.data / "functions").glob("*.tmp")]
        assert not left


def crowd(kills: Kills, rounds: int, clients: int = 6) -> int:
    """Many clients replace and unregister the same few functions while services are killed.

    Every call succeeds in the end, and each made one version of its own. Returns how many.
    """
    stopping = threading.Event()
    made: list[FunctionVersion] = []
    errors: list[BaseException] = []
    names = ("one", "two", "three")

    def work(number: int) -> None:
        rng = random.Random(1_000 * kills.seed + number)
        try:
            with Client(kills.settings.gateway.endpoint, timeout=2 * PATIENCE_S) as client:
                while not stopping.is_set():
                    name = rng.choice(names)
                    if rng.random() < 0.2:
                        with suppress(NotRegistered):
                            made.append(client.unregister_function(name))
                        continue
                    binary = binary_of(1_000_000 + rng.randrange(30))
                    made.append(client.register_function(name, binary, override=True))
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(rounds):
            target = len(made) + 2 * clients
            eventually(lambda: errors or len(made) >= target, "the crowd goes on")  # noqa: B023
            dead = tuple(kills.random.sample(START_ORDER, kills.random.choice((1, 1, 2, 3, 5))))
            kills.kill(dead)
            kills.start(dead)
            kills.done[f"crowd, {len(dead)} killed"] += 1
    finally:
        stopping.set()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
    if errors:
        raise errors[0]
    rows = [row for row in kills.registered() if row[0] in names]
    assert sorted((e.name, e.version, e.crc32c, e.tx_id) for e in made) == sorted(rows)
    for name in names:
        own = [row for row in rows if row[0] == name]
        assert [row[1] for row in own] == list(range(1, len(own) + 1))
        kills.versions[name] = len(own)
        if own and own[-1][2]:
            path = kills.settings.ledger.data / "functions" / f"{name}_v{len(own)}.wasm"
            kills.live[name] = path.read_bytes()
        kills.on_disk(name)
    return len(made)


def all_calls(kills: Kills, victims: list[str], actions: tuple[str, ...] = ACTIONS) -> int:
    """Every call of the storage of every action; returns how many cases."""
    cases = 0
    for action in actions:
        for nth in range(1, MOST_CALLS):
            reached = [
                kills.at_call(nth, action, victim, kills.random.random() < 0.6)
                for victim in victims
            ]
            cases += sum(reached)
            if not any(reached):
                break
        else:
            raise AssertionError(f"a {action} makes more calls than {MOST_CALLS}")
    return cases


def all_calls_of_the_first(folder: Path, seed: int) -> int:
    """The very first registration makes the folder: a ledger for each of its calls."""
    for nth in range(1, MOST_CALLS):
        with Kills(folder / f"first {nth}", seed) as kills:
            if not kills.at_call(nth, "replace", "power", True, "synced", first=True):
                return nth - 1
            kills.look_at_everything()
    raise AssertionError(f"the first registration makes more calls than {MOST_CALLS}")


def all_pins(kills: Kills) -> int:
    cases = 0
    for pin in PINS:
        for dead in PINNED:
            action = kills.random.choice(ACTIONS)
            kills.at_pin(pin, action, dead, kills.random.random() < 0.7)
            cases += 1
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many ledgers")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--victims", nargs="*", default=list(VICTIMS), choices=list(VICTIMS))
    arguments = parser.parse_args()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        started = time.monotonic()
        with (
            tempfile.TemporaryDirectory(prefix="tallybus-kills-") as folder,
            Kills(Path(folder) / "ledger", seed) as kills,
        ):
            cases = all_calls(kills, arguments.victims) + all_pins(kills)
            cases += all_calls_of_the_first(Path(folder), seed)
            versions = crowd(kills, 15)
            kills.look_at_everything()
            seconds = time.monotonic() - started
            print(
                f"seed {seed}: {cases} deaths, and {versions} versions that a crowd made, "
                f"in {seconds:.0f} s: none did harm",
                flush=True,
            )
            for case, count in sorted(kills.done.items()):
                print(f"  {count:4} {case}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
