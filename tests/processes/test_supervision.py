"""`tallybus up` as its user runs it: it starts, restarts, stops, and leaves nothing behind."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tallybus import Client, Deposit, WaitLevel, transfers
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import STOP_ORDER
from tallybus.errors import TallybusError
from tests.processes.pipeline import (
    PATIENCE_S,
    Command,
    assert_balances,
    children_of,
    eventually,
    is_alive,
    make_settings,
    replay,
    run_command,
    services_under,
    tidy,
)


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """What `tallybus up` gets by `options`."""
    chosen = make_settings(tmp_path / "data")
    yield chosen
    tidy(chosen)


def options(settings: Settings) -> list[str]:
    return ["--data", str(settings.ledger.data), "--endpoint", settings.gateway.endpoint]


def started(start_command: Callable[..., Command], settings: Settings) -> Command:
    up = start_command("up", *options(settings))
    assert up.wait_first_line() == settings.gateway.endpoint
    return up


def log_lines(command: Command) -> list[dict[str, object]]:
    lines: list[dict[str, object]] = [json.loads(line) for line in command.err if line]
    return lines


def test_up_prints_the_endpoint_answers_and_stops_in_order_with_nothing_left(
    settings: Settings, start_command: Callable[..., Command]
) -> None:
    for number in (1, 2):
        # The second time on the folder that the first one left.
        up = started(start_command, settings)
        services = services_under(up.pid)
        assert set(services) == set(STOP_ORDER)
        done = run_command("deposit", "1", "500", "--endpoint", settings.gateway.endpoint)
        assert done.returncode == 0, done.stderr
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            assert client.get_balance(1, min_tx_id=number).balance == 500 * number
        up.signal(signal.SIGTERM)
        assert up.wait() == 0
        assert up.out == [settings.gateway.endpoint], "nothing but the endpoint on standard output"
        stopped = [line["stage"] for line in log_lines(up) if line["message"] == "stopped"]
        assert stopped == list(STOP_ORDER)
        assert not any(line["level"] in ("warning", "error") for line in log_lines(up)), up.stderr
        assert not any(map(is_alive, services.values()))
        assert children_of(up.pid) == []


def test_interrupting_up_stops_it_cleanly_too(
    settings: Settings, start_command: Callable[..., Command]
) -> None:
    up = started(start_command, settings)
    services = services_under(up.pid)
    up.signal(signal.SIGINT)
    assert up.wait() == 0
    assert "Traceback" not in up.stderr
    assert not any(map(is_alive, services.values()))


def test_up_that_is_stopped_while_it_starts_leaves_nothing(
    settings: Settings, start_command: Callable[..., Command]
) -> None:
    up = start_command("up", *options(settings))
    eventually(lambda: len(services_under(up.pid)) == 5, "all services are started")
    services = services_under(up.pid)
    up.signal(signal.SIGTERM)
    assert up.wait() == 0
    assert "Traceback" not in up.stderr
    assert not any(map(is_alive, services.values()))


class SteadyClient:
    """Transfers between two accounts, one batch after the other, while services come and go."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.batches = 0
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "SteadyClient":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * PATIENCE_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        sides = np.array([1, 2] * 50)
        try:
            with Client(self.endpoint, timeout=PATIENCE_S) as client:
                client.submit_and_wait(Deposit(1, 1_000_000, user_ref=1))
                client.submit_and_wait(Deposit(2, 1_000_000, user_ref=2))
                ref = 10
                while not self._stop.is_set():
                    batch = transfers(sides, 3 - sides, 1, np.arange(ref, ref + len(sides)))
                    result = client.submit_batch(batch, WaitLevel.COMMITTED)
                    assert not result.statuses.any(), result.statuses
                    ref += len(sides)
                    self.batches += 1
        except (TallybusError, AssertionError) as error:
            self.errors.append(error)

    def goes_on(self) -> None:
        """Two more batches: one of them was begun after this was called."""
        target = self.batches + 2
        eventually(
            lambda: self.errors or self.batches >= target, "the steady client gets its answers"
        )
        assert not self.errors, self.errors


def is_replaced(up: Command, name: str, before: dict[str, int]) -> bool:
    return services_under(up.pid).get(name, before[name]) != before[name]


def test_a_killed_service_is_restarted_and_the_pipeline_goes_on(
    settings: Settings, start_command: Callable[..., Command]
) -> None:
    up = started(start_command, settings)
    with SteadyClient(settings.gateway.endpoint) as steady:
        for name in STOP_ORDER:
            steady.goes_on()
            before = services_under(up.pid)
            os.kill(before[name], signal.SIGKILL)
            eventually(partial(is_replaced, up, name, before), f"the {name} is started again")
            steady.goes_on()
            after = services_under(up.pid)
            others = [other for other in STOP_ORDER if other != name]
            assert [after[o] for o in others] == [before[o] for o in others], "only that one"
            died = re.findall(r"a service died.*?\"service\":\"(\w+)\"", up.stderr)
            assert died.count(name) == 1
    assert not steady.errors, steady.errors
    with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
        last = client.pipeline_index().committed
        assert last >= 2 + 100 * steady.batches
        log = replay(settings, last)
        applied = int((log.records["status"] == 0).sum())
        assert applied == 2 + 100 * steady.batches
        assert_balances(client, log.oracle, 10, last)
    up.signal(signal.SIGTERM)
    assert up.wait() == 0


@pytest.mark.parametrize("load", ["idle", "under load"])
def test_killing_the_supervisor_ends_the_services_too_and_up_starts_again(
    load: str, settings: Settings, start_command: Callable[..., Command]
) -> None:
    up = started(start_command, settings)
    services = services_under(up.pid)
    with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
        client.submit_and_wait(Deposit(1, 10))
        stop = threading.Event()

        def keep_busy() -> None:
            with Client(settings.gateway.endpoint, timeout=1) as busy:
                while not stop.is_set():
                    pings = [busy.begin_batch(transfers([1], [2], [1])) for _ in range(64)]
                    assert pings

        threads = [threading.Thread(target=keep_busy) for _ in range(2 * (load != "idle"))]
        for thread in threads:
            thread.start()
        try:
            os.kill(up.pid, signal.SIGKILL)
            assert up.wait() == -signal.SIGKILL
            eventually(lambda: not any(map(is_alive, services.values())), "the services end too")
        finally:
            stop.set()
            for thread in threads:
                thread.join(PATIENCE_S)
            for pid in filter(is_alive, services.values()):
                os.kill(pid, signal.SIGKILL)
    again = started(start_command, settings)
    with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
        last = client.pipeline_index().committed
        assert_balances(client, replay(settings, last).oracle, 10, last)
    again.signal(signal.SIGTERM)
    assert again.wait() == 0


def test_up_started_right_after_the_supervisor_was_killed_takes_over(
    settings: Settings, start_command: Callable[..., Command]
) -> None:
    up = started(start_command, settings)
    with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
        client.submit_and_wait(Deposit(1, 10))
    os.kill(up.pid, signal.SIGKILL)
    up.wait()
    # The services of the killed one need a moment to notice, and hold their locks so long.
    started(start_command, settings)
    with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
        assert client.get_balance(1, min_tx_id=1).balance == 10


def test_a_wrong_setting_is_told_and_nothing_is_started(
    settings: Settings, start_command: Callable[..., Command]
) -> None:
    up = start_command("up", *options(settings), "--set", "ledger.max_accounts=1")
    assert up.wait() not in (0, -signal.SIGKILL)
    assert "ledger.max_accounts" in up.stderr
    assert "Traceback" not in up.stderr
    assert not settings.ledger.data.exists()


def test_an_endpoint_that_is_taken_is_told_and_everything_stops(
    settings: Settings, start_command: Callable[..., Command]
) -> None:
    import socket

    port = int(settings.gateway.endpoint.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        up = start_command("up", *options(settings))
        assert up.wait(PATIENCE_S / 2) not in (0, -signal.SIGKILL)
        assert settings.gateway.endpoint in up.stderr
        assert "Traceback" not in up.stderr
        assert children_of(up.pid) == []
