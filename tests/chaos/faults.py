"""The plan of a chaos run: what is killed or stopped, when, and in which combination."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tallybus.common.stages import START_ORDER, STOP_ORDER
from tests.chaos.machine import Machine

RESTART_SECONDS: Final = 10.0
LONG_STOP_S: Final = 7.0


@dataclass(slots=True)
class Episode:
    """A fault and what it was aimed at; `single` when one service was killed once and alone."""

    name: str
    services: tuple[str, ...]
    from_ns: int
    to_ns: int = 0
    single: bool = False

    @property
    def label(self) -> str:
        if len(self.services) == len(START_ORDER):
            return f"{self.name}: all"
        return f"{self.name}: {' + '.join(self.services)}"


class Chaos:
    """Draws faults from a seed. One call of `strike` is one episode; nothing is left stopped."""

    def __init__(self, machine: Machine, seed: int, services: tuple[str, ...]) -> None:
        self._machine = machine
        self._random = random.Random(seed)
        self._services = services
        everything = set(services) == set(START_ORDER)
        weighted: list[tuple[Callable[[], tuple[str, ...]], int]] = [
            (self.kill, 40),
            (self.kill_again, 14),
            (self.freeze, 12),
        ]
        if len(services) > 1:
            weighted += [
                (self.kill_some, 10),
                (self.kill_in_turn, 10),
                (self.kill_while_another_is_frozen, 10),
                (self.kill_all, 6),
                (self.freeze_all, 3),
            ]
        if everything:
            weighted += [
                (self.kill_everything, 3),
                (self.kill_supervisor, 2),
                (self.stop_everything, 2),
            ]
        self._kinds = [kind for kind, _ in weighted]
        self._weights = [weight for _, weight in weighted]

    def strike(self) -> Episode:
        """One episode."""
        kind = self._random.choices(self._kinds, self._weights)[0]
        began = time.monotonic_ns()
        services = kind()
        name = kind.__name__.replace("_", " ")
        return Episode(name, services, began, single=kind == self.kill)

    def pause(self, longest: float) -> None:
        """Let it run for a random time."""
        time.sleep(self._random.random() * longest)

    @property
    def impatient(self) -> bool:
        """Whether the next episode may begin before all has recovered."""
        return self._random.random() < 0.15

    # -- episodes --------------------------------------------------------------------------------

    def kill(self) -> tuple[str, ...]:
        service = self._one()
        self._machine.kill(service)
        return (service,)

    def kill_again(self) -> tuple[str, ...]:
        """The same service while it recovers, up to three times."""
        service = self._one()
        self._machine.kill(service)
        for _ in range(self._random.randint(1, 3)):
            if not self._await_start(service):
                break
            self.pause(0.7)
            self._machine.kill(service)
        return (service,)

    def kill_some(self) -> tuple[str, ...]:
        """Two or three at (nearly) the same time."""
        chosen = self._some()
        pair = ["sequencer", "transactor"]
        if set(pair) <= set(self._services) and self._random.random() < 0.4:
            self._random.shuffle(pair)
            chosen = pair
        for service in chosen:
            self._machine.kill(service)
            if self._random.random() < 0.5:
                self.pause(0.05)
        return tuple(chosen)

    def kill_in_turn(self) -> tuple[str, ...]:
        """One, and others while it recovers."""
        chosen = self._some()
        for service in chosen:
            self._machine.kill(service)
            self.pause(0.8)
        return tuple(chosen)

    def kill_all(self) -> tuple[str, ...]:
        order = list(self._services)
        self._random.shuffle(order)
        self._machine.kill_all(order, supervisor=False)
        return tuple(order)

    def freeze(self) -> tuple[str, ...]:
        service = self._one()
        self._machine.freeze(service)
        self._hold()
        self._machine.resume(service)
        return (service,)

    def freeze_all(self) -> tuple[str, ...]:
        order = list(self._services)
        self._random.shuffle(order)
        for service in order:
            self._machine.freeze(service)
        self._hold()
        self._random.shuffle(order)
        for service in order:
            self._machine.resume(service)
            self.pause(0.05)
        return tuple(order)

    def kill_while_another_is_frozen(self) -> tuple[str, ...]:
        """Often one whose successor is frozen, so that it has something that nobody else has."""
        frozen, killed = self._random.sample(self._services, 2)
        pairs = [
            (after, before)
            for before, after in pairwise(STOP_ORDER)
            if {before, after} <= set(self._services)
        ]
        if pairs and self._random.random() < 0.6:
            frozen, killed = self._random.choice(pairs)
        self._machine.freeze(frozen)
        self.pause(0.3)
        self._machine.kill(killed)
        self.pause(2.0)
        if self._random.random() < 0.3:
            self._machine.kill(frozen)
        self._machine.resume(frozen)
        return (frozen, killed)

    def kill_everything(self) -> tuple[str, ...]:
        """The supervisor and all services, and perhaps again while they come back."""
        for _ in range(self._random.choice((1, 1, 2))):
            order = list(START_ORDER)
            self._random.shuffle(order)
            self._machine.kill_all(order, supervisor=True)
            self.pause(0.3)
            self._machine.start()
            self.pause(1.5)
        return tuple(START_ORDER)

    def kill_supervisor(self) -> tuple[str, ...]:
        """The supervisor alone; its successor finds services that are just ending."""
        self._machine.kill_supervisor()
        self.pause(1.0)
        self._machine.start()
        return tuple(START_ORDER)

    def stop_everything(self) -> tuple[str, ...]:
        """A clean stop under load, and a start."""
        self._machine.terminate()
        self.pause(0.5)
        self._machine.start()
        return tuple(START_ORDER)

    # -- choices ---------------------------------------------------------------------------------

    def _one(self) -> str:
        return self._random.choice(self._services)

    def _some(self) -> list[str]:
        most = min(3, len(self._services))
        return self._random.sample(self._services, self._random.randint(2, most))

    def _hold(self) -> None:
        if self._random.random() < 0.1:
            time.sleep(LONG_STOP_S)
        else:
            self.pause(2.5)

    def _await_start(self, service: str) -> bool:
        until = time.monotonic() + RESTART_SECONDS
        while service not in self._machine.services():
            if time.monotonic() > until or not self._machine.supervisor:
                return False
            time.sleep(0.005)
        return True
