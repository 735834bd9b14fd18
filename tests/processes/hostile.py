"""Hostile functions beside honest clients: `python -m tests.processes.hostile [--seconds 120]`.

Starts a ledger on a temporary folder. Two victims are measured alone, one with single transfers and
one with batches of 1,000, each waiting for COMMITTED. Then attackers of each kind do their worst in
processes of their own, and the victims are measured beside them, one after the other. For each kind
it prints the share of the throughput that the victims kept, their longest wait, the work that the
ledger counted for the attacker's function, and how long it took to suspend it. Exit code 1 if a
share is below a third.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from wasmtime import wat2wasm

from tallybus import (
    Client,
    InvalidFunction,
    Status,
    TallybusError,
    Transfer,
    WaitLevel,
    deposits,
    function_calls,
    transfers,
)
from tests.processes.pipeline import environment, eventually, make_settings, pipeline_of

THIRD: Final = 1 / 3
ACCOUNTS: Final = 1_000
EXECUTE: Final = (
    '(func (export "execute") (param $a i64) (param i64 i64 i64 i64 i64 i64 i64) (result i32)'
)


def wasm(body: str, declarations: str = "") -> bytes:
    return bytes(wat2wasm(f"(module {declarations} {EXECUTE} {body}))"))


MOVES: Final = (
    '(import "ledger" "credit" (func $credit (param i64 i64)))'
    '(import "ledger" "debit" (func $debit (param i64 i64)))'
)


@dataclass
class Attack:
    """How an attacker calls a function: `calls` a request, `under_way` requests at a time."""

    what: str
    binary: bytes
    calls: int
    under_way: int = 1
    params: tuple[int, ...] = ()
    turns: tuple[int, ...] = (0,)
    """First parameters, one a request in turn."""
    compiles: bool = False
    """It registers modules that take long to compile instead of calling any."""


def _attacks() -> list[Attack]:
    endless = wasm("(loop $l (br $l)) (i32.const 0)")
    seldom = wasm(
        "(if (i64.eqz (local.get $a)) (then (return (i32.const 0)))) (loop $l (br $l)) i32.const 0"
    )
    many = wasm(
        "(local $n i32) (local.set $n (i32.const 127)) (loop $l "
        "(call $credit (i64.const 1) (i64.const 1)) (call $debit (i64.const 2) (i64.const 1)) "
        "(br_if $l (local.tee $n (i32.sub (local.get $n) (i32.const 1))))) (i32.const 0)",
        MOVES,
    )
    segments = "".join(f'(data (i32.const {i * 16_384}) "x")' for i in range(1_000))
    return [
        Attack("an endless loop, 64 calls a request", endless, 64, 2),
        Attack("an endless loop, 1,000 calls in four requests", endless, 1_000, 4),
        Attack("an endless loop, one call in 256 requests", endless, 1, 256),
        Attack("quick calls and slow ones among them", seldom, 16, 16, turns=(0,) * 60 + (1,)),
        Attack(
            "ref.func, 65,536 calls a request",
            wasm(
                "(loop $l (drop (ref.func $f)) (drop (ref.func $f)) (br $l)) (i32.const 0)",
                "(func $f) (elem declare func $f)",
            ),
            65_536,
        ),
        Attack(
            "memory.fill of length 0",
            wasm(
                "(loop $l (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)) (br $l))"
                " (i32.const 0)",
                "(memory 1)",
            ),
            64,
            2,
        ),
        Attack(
            "memory.grow that fails",
            wasm(
                "(loop $l (drop (memory.grow (i32.const 65000))) (br $l)) (i32.const 0)",
                "(memory 1)",
            ),
            64,
            2,
        ),
        Attack(
            "touching every page of its memory",
            wasm(
                "(local $p i32) (loop $l (i32.store (local.get $p) (i32.const 1)) "
                "(br_if $l (i32.lt_u (local.tee $p (i32.add (local.get $p) (i32.const 4096))) "
                "(i32.const 16773120)))) (i32.const 0)",
                "(memory 256)",
            ),
            64,
            2,
        ),
        Attack("1,000 data segments", wasm("(i32.const 0)", f"(memory 256) {segments}"), 64, 2),
        Attack("a trap in every call", wasm("unreachable"), 16_384, 2),
        Attack("254 entries in every call, 65,536 calls a request", many, 65_536),
        Attack("modules that take long to compile", b"", 0, compiles=True),
    ]


def large_module(number: int) -> bytes:
    """A module of some megabytes over 900 globals, another one for each number."""
    rng = np.random.default_rng(number)
    picks = rng.integers(0, 900, 120_000)
    body = "".join(
        f"(global.set {a} (i64.mul (global.get {a}) (global.get {b})))"
        for a, b in zip(picks[::2].tolist(), picks[1::2].tolist(), strict=True)
    )
    return wasm(f"{body} (i32.const 0)", "(global (mut i64) (i64.const 3))" * 900)


def attack(endpoint: str, name: str, kind: Attack, stop: Any) -> None:
    """An attacker's process: until `stop` is set."""
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    if kind.compiles:
        with Client(endpoint, timeout=60) as client:
            number = 0
            while not stop.is_set():
                number += 1
                with suppress(TallybusError):
                    client.register_function(f"large_{number % 10}", large_module(number), True)
        return

    def request(client: Client, turn: int) -> None:
        params = np.full((kind.calls, 1), kind.turns[turn % len(kind.turns)], np.int64)
        level = WaitLevel.NONE if kind.calls == 65_536 else WaitLevel.COMPUTED
        with suppress(TallybusError):
            client.submit_batch(function_calls(name, params), level)

    # One connection, as an attacker without a key counts by it.
    with Client(endpoint, timeout=20) as client, ThreadPoolExecutor(kind.under_way) as pool:
        pending: deque[Future[None]] = deque()
        turn = 0
        while not stop.is_set():
            while len(pending) < kind.under_way:
                pending.append(pool.submit(request, client, turn))
                turn += 1
            pending.popleft().result()


@dataclass
class Kept:
    """What a victim did in a while: transactions a second, and its longest wait."""

    rate: float
    worst_s: float


def single(client: Client, seconds: float) -> Kept:
    return _measure(
        seconds, 1, lambda: client.submit_and_wait(Transfer(1, 2, 1), WaitLevel.COMMITTED)
    )


def batches(client: Client, seconds: float) -> Kept:
    numbers = np.arange(1_000, dtype=np.uint64) % (ACCOUNTS - 1) + 1
    batch = transfers(numbers, np.roll(numbers, 1), 1)
    return _measure(seconds, 1_000, lambda: client.submit_batch(batch, WaitLevel.COMMITTED))


def _measure(seconds: float, count: int, once: Callable[[], object]) -> Kept:
    waits = []
    began = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        once()
        waits.append(time.monotonic() - now)
    return Kept(count * len(waits) / (time.monotonic() - began), max(waits))


VICTIMS: Final = {"single": single, "batches": batches}


@dataclass
class Outcome:
    """What one kind of attack did."""

    what: str
    shares: dict[str, float] = field(default_factory=dict)
    worst_s: dict[str, float] = field(default_factory=dict)
    seen: str = ""
    suspended_s: float | None = None


def measure(seconds: float, only: str = "") -> list[Outcome]:
    """Everything, in about so many seconds."""
    kinds = [kind for kind in _attacks() if only in kind.what]
    each = max(0.3, seconds / (3 * len(kinds) + 4))
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(Path(folder) / "data")
        with pipeline_of(settings, Path(folder) / "log") as pipeline, pipeline.client() as client:
            client.submit_batch(deposits(range(1, ACCOUNTS), 1_000_000), WaitLevel.SNAPSHOT)
            for kind in kinds:
                # Alone just before: the machine is not the same all the time.
                alone = {name: victim(client, each / 2) for name, victim in VICTIMS.items()}
                outcomes.append(
                    _beside(
                        client, settings.gateway.endpoint, settings.ledger.data, kind, alone, each
                    )
                )
                _tell(outcomes[-1])
    return outcomes


def _beside(
    client: Client, endpoint: str, data: Path, kind: Attack, alone: dict[str, Kept], each: float
) -> Outcome:
    name = f"attack_{abs(hash(kind.what)) % 10**9}"
    outcome = Outcome(kind.what)
    if not kind.compiles:
        try:
            client.register_function(name, kind.binary)
        except InvalidFunction as error:
            outcome.seen = f"refused: {error.reason}"
            return outcome
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    attacker = spawn.Process(target=attack, args=(endpoint, name, kind, stop), daemon=True)
    attacker.start()
    try:
        if not kind.compiles:
            eventually(lambda: _begun(client, name), "the attack is under way")
        for victim, run in VICTIMS.items():
            kept = run(client, each)
            outcome.shares[victim] = kept.rate / alone[victim].rate
            outcome.worst_s[victim] = kept.worst_s
        if not kind.compiles:
            outcome.seen = _seen(client, name)
            outcome.suspended_s = _suspend(client, data, name)
    finally:
        stop.set()
        attacker.join(30)
        if attacker.is_alive():
            attacker.terminate()
            attacker.join()
    return outcome


def _begun(client: Client, name: str) -> bool:
    (info,) = [each for each in client.list_functions() if each.name == name]
    return info.calls > 0


def _seen(client: Client, name: str) -> str:
    """What an operator sees of the attacker's function."""
    (info,) = [each for each in client.list_functions() if each.name == name]
    failures = ", ".join(
        f"{count:,} {status.name if isinstance(status, Status) else status}"
        for status, count in info.failures.items()
    )
    mean = "" if info.mean_ns is None else f", {info.mean_ns / 1e6:.3f} ms a call"
    return f"{info.calls:,} calls, {info.work_ns / 1e9:.2f} s of work{mean}; {failures}"


def _suspend(client: Client, data: Path, name: str) -> float:
    """Seconds from the command until the function does not run any more."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tallybus", "function", "suspend", name, "--data", str(data)],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    began = time.monotonic()
    assert process.wait(60) == 0
    while not [each for each in client.list_functions() if each.name == name and each.suspended]:
        time.sleep(0.01)
    return time.monotonic() - began


def _tell(outcome: Outcome) -> None:
    shares = "  ".join(
        f"{name} kept {share:4.0%}, longest wait {outcome.worst_s[name] * 1000:5.0f} ms"
        for name, share in outcome.shares.items()
    )
    suspended = "" if outcome.suspended_s is None else f"  suspended in {outcome.suspended_s:.2f} s"
    print(f"{outcome.what}\n    {shares}{suspended}\n    {outcome.seen}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.processes.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="about how long it runs")
    parser.add_argument("--only", default="", help="attacks with these words in their names")
    parser.add_argument("--json", action="store_true", help="print one object at the end, too")
    options = parser.parse_args()
    outcomes = measure(options.seconds, options.only)
    if options.json:
        print(json.dumps([each.__dict__ for each in outcomes]))
    shares = [share for each in outcomes for share in each.shares.values()]
    print(f"median share kept {statistics.median(shares):.0%}, least {min(shares):.0%}")
    return 0 if min(shares) >= THIRD else 1


if __name__ == "__main__":
    sys.exit(main())
