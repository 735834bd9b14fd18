"""Five processes over tcp with keys: what works without them works with them, and nothing else.

Everything is on loopback; that makes no difference to who is let in.
"""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from tallybus import AccessDenied, Client, Deposit, Transfer, WaitLevel, deposits, transfers
from tallybus.common.bus.messages import Request, StageStatus, decode, encode
from tallybus.common.errors import EXIT_SETTINGS
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.keys import ClientKey, KeyPair, Role, grant_path
from tallybus.common.settings.sections import SOCKETS, Settings, endpoint, metrics_address
from tallybus.common.stages import STAGES, START_ORDER, STOP_ORDER
from tests.processes.acknowledged import ACCOUNTS, Load, assert_all_on_disk
from tests.processes.encrypted import Keys, encrypted_settings, free_ports, stranger
from tests.processes.pipeline import (
    PATIENCE_S,
    Pipeline,
    assert_balances,
    eventually,
    make_settings,
    pipeline_of,
    run_command,
)
from tests.processes.raw_client import mechanism
from tests.processes.scraped import scrape, value
from tests.processes.services import Services, log_lines

LEDGER: dict[str, object] = {
    "ledger__max_accounts": 1_000,
    "ledger__transactions_per_segment": 2_000,
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    made = Keys(tmp_path_factory.mktemp("keys"))
    made.create("alice", Role.ADMIN)
    return made


@pytest.fixture(scope="module")
def running(keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """One pipeline for the tests that only try to get in."""
    folder = tmp_path_factory.mktemp("encrypted")
    settings = encrypted_settings(
        folder / "data",
        keys,
        metrics__address="127.0.0.1",
        metrics__base_port=free_ports(),
        **LEDGER,
    )
    with pipeline_of(settings, folder / "services.log") as pipeline:
        yield pipeline


def open_client(pipeline: Pipeline, key: ClientKey | None) -> Client:
    return Client(pipeline.endpoint, timeout=PATIENCE_S, key=key)


@contextmanager
def watched(pipeline: Pipeline) -> Iterator[None]:
    """The supervisor restarts what dies, as `tallybus up` does."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            pipeline.supervisor.watch()
            pipeline.supervisor.wait(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def refusals(pipeline: Pipeline, stage: str, **facts: object) -> list[dict[str, Any]]:
    """Lines in which a service says that it has refused a connection with these facts."""
    lines = log_lines(pipeline.log_text())
    return [
        line
        for line in lines
        if line["message"] == "refused a connection"
        and line["stage"] == stage
        and line["level"] == "warning"
        and all(line.get(name) == value for name, value in facts.items())
    ]


def counted(pipeline: Pipeline, stage: str, reason: str) -> float:
    samples = scrape(pipeline.settings, stage)
    return value(samples, "tallybus_refused_connections_total", reason=reason)


# What works


def test_every_service_may_be_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.create("alice", Role.SUBMIT)
    settings = encrypted_settings(tmp_path / "data", keys, **LEDGER)
    with pipeline_of(settings, tmp_path / "services.log") as pipeline, watched(pipeline):
        key = keys.client("alice")
        with Load(settings.gateway.endpoint, 1, key=key) as load:
            load.goes_on()
            for name in START_ORDER:
                pipeline.kill([name])
                load.goes_on()
            pipeline.kill()
            load.goes_on()
            load.finish()
        with open_client(pipeline, key) as client:
            last = client.submit_and_wait(Deposit(account=1, amount=1), WaitLevel.SNAPSHOT).tx_id
            log = assert_all_on_disk(settings, load)
            assert_balances(client, log.oracle, ACCOUNTS, last)
            assert client.pipeline_index().committed == last
        assert not [line for line in log_lines(pipeline.log_text()) if line["level"] == "error"]


def test_services_may_be_started_in_any_order(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.create("alice", Role.SUBMIT)
    settings = encrypted_settings(tmp_path / "data", keys, **LEDGER)
    with Services(tmp_path) as services:
        for stage in reversed(START_ORDER):
            services.start(stage, settings)
            eventually(lambda s=stage: services[s].said("started") or s != "wal", f"{stage} runs")
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S, key=keys.client("alice")) as c:
            done = c.submit_and_wait(Deposit(account=1, amount=5), WaitLevel.SNAPSHOT)
            assert c.get_balance(1, min_tx_id=done.tx_id).balance == 5
        services.stop(*STOP_ORDER)


@pytest.mark.parametrize("kind", ["plain", "other"])
def test_a_service_that_gets_its_keys_late_is_joined_without_restarts(
    tmp_path: Path, kind: str
) -> None:
    keys, others = Keys(tmp_path), Keys(tmp_path / "others")
    keys.create("alice", Role.SUBMIT)
    (tmp_path / "others").mkdir()
    others.create("alice", Role.SUBMIT)
    settings = encrypted_settings(tmp_path / "data", keys, **LEDGER)
    folder = None if kind == "plain" else others.folder
    wrong = replace(settings, security=replace(settings.security, keys=folder))
    with Services(tmp_path) as services:
        services.start_all(settings, but=("transactor",))
        late = services.start("transactor", wrong)
        message = "cannot connect to another service"
        eventually(lambda: services["sequencer"].said(message), "it was told here")
        if kind == "other":
            eventually(lambda: late.said(message), "and there")
        assert not services["gateway"].said("ready")
        services.stop("transactor")
        services.start("transactor", settings)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S, key=keys.client("alice")) as c:
            done = c.submit_and_wait(Deposit(account=1, amount=5), WaitLevel.SNAPSHOT)
            assert c.get_balance(1, min_tx_id=done.tx_id).balance == 5
        services.stop(*STOP_ORDER)


# Clients that are not let in


@pytest.mark.parametrize(
    ("key", "reason", "logged"),
    [
        # Whoever looks at the other's greeting first hangs up; the other only sees that.
        (None, "encryption", ["no_encryption", "bad_handshake"]),
        ("unknown", "key", ["unknown_key"]),
        ("server", "encryption", ["bad_handshake"]),
        ("revoked", "key", ["revoked_key"]),
        ("bus", "key", ["unknown_key"]),
    ],
)
def test_clients_without_a_good_key_are_refused_told_logged_and_counted(
    running: Pipeline, keys: Keys, key: str | None, reason: str, logged: list[str]
) -> None:
    def told() -> list[dict[str, Any]]:
        return [line for each in logged for line in refusals(running, "gateway", reason=each)]

    def count() -> float:
        return sum(counted(running, "gateway", each) for each in logged)

    gateway = keys.gateway.public
    pair: KeyPair | None = None
    if key == "revoked":
        keys.create("mallory", Role.ADMIN)
        keys.keyring.revoke("mallory")
        pair = keys.client("mallory").pair
        # The gateway looks once a second.
        eventually(
            lambda: "the grants of clients have changed" in running.log_text(), "it was read"
        )
    elif key == "server":
        pair, gateway = keys.client("alice").pair, new_key_pair().public
    elif key == "bus":
        pair = keys.bus
    elif key is not None:
        pair = new_key_pair()
    lines, before = len(told()), count()
    used = None if pair is None else ClientKey("mallory", pair, gateway)
    with open_client(running, used) as client, pytest.raises(AccessDenied) as caught:
        client.submit_and_wait(Deposit(account=7, amount=1), WaitLevel.COMMITTED)
    assert caught.value.reason == reason
    eventually(lambda: count() > before, "it was counted")
    # A line may be held back where many alike came before.
    eventually(lambda: len(told()) > lines or lines >= 5, "it was logged")
    if key in ("unknown", "revoked", "bus"):
        assert told()[-1]["address"] == "127.0.0.1"
        assert told()[-1].get("key") == ("mallory" if key == "revoked" else None)
    # Others are served as ever.
    with open_client(running, keys.client("alice")) as client:
        done = client.submit_and_wait(Deposit(account=1, amount=1), WaitLevel.SNAPSHOT)
        assert client.get_balance(7, min_tx_id=done.tx_id).balance == 0


def test_the_gateways_own_key_may_read_and_no_more(running: Pipeline, keys: Keys) -> None:
    own = ClientKey("gateway", keys.gateway, keys.gateway.public)
    with open_client(running, own) as client:
        client.pipeline_index()
        client.get_balance(1)
        with pytest.raises(AccessDenied) as caught:
            client.submit(Deposit(account=7, amount=1))
        assert caught.value.reason == "role"


def test_what_is_revoked_is_refused_within_two_seconds_on_every_connection(
    running: Pipeline, keys: Keys
) -> None:
    keys.create("bob", Role.SUBMIT)
    bob = keys.client("bob")

    def denied(client: Client) -> str:
        try:
            client.submit_and_wait(Deposit(account=3, amount=1), WaitLevel.COMMITTED)
        except AccessDenied as error:
            return error.reason
        return ""

    def let_in() -> bool:
        with open_client(running, bob) as client:
            return not denied(client)

    eventually(let_in, "the new grant holds")
    with open_client(running, bob) as client:
        assert not denied(client)
        keys.keyring.revoke("bob")
        began = time.monotonic()
        while not denied(client):
            assert time.monotonic() < began + PATIENCE_S
        took = time.monotonic() - began
        assert denied(client) == "revoked"
    with open_client(running, bob) as client:
        assert denied(client) == "key"
    # Two seconds are promised, on a machine that is not as busy as this one may be.
    assert took < 5.0
    eventually(lambda: refusals(running, "gateway", reason="revoked_key", key="bob"), "logged")


def test_a_damaged_grant_locks_out_one_client_and_stops_no_gateway(
    running: Pipeline, keys: Keys
) -> None:
    keys.create("carol", Role.SUBMIT)
    pid = running.supervisor.pid("gateway")
    with open_client(running, keys.client("carol")) as client:
        eventually(lambda: works(client), "the new grant holds")
        path = grant_path(keys.folder, "carol")
        text = path.read_text()
        path.write_text(text[:-20])
        eventually(lambda: not works(client), "she is locked out")
        with open_client(running, keys.client("alice")) as alice:
            assert works(alice)
        path.write_text(text)
        eventually(lambda: works(client), "she is back")
    assert running.supervisor.pid("gateway") == pid
    told = [line for line in log_lines(running.log_text()) if "locked out" in line["message"]]
    assert {line["level"] for line in told} == {"error"}
    assert "carol.toml" in told[0]["reason"]


def works(client: Client) -> bool:
    try:
        client.submit_and_wait(Deposit(account=2, amount=1), WaitLevel.COMMITTED)
    except AccessDenied:
        return False
    return True


# Strangers at the sockets between services


@pytest.mark.parametrize("who", ["plain", "client", "knows the public key"])
def test_strangers_inject_nothing_and_hear_nothing(running: Pipeline, keys: Keys, who: str) -> None:
    settings = running.settings
    own = None if who == "plain" else keys.client("alice").pair
    server = keys.bus.public if who == "knows the public key" else keys.gateway.public
    with open_client(running, keys.client("alice")) as client:
        before = client.submit_and_wait(Deposit(account=1, amount=1), WaitLevel.SNAPSHOT).tx_id
        services = {each.stage: each.incarnation for each in client.services()}
        batch = deposits([9], [1_000])
        request = Request(
            gateway=services["gateway"], request=1, count=1, records=batch.tobytes(), tell=True
        )
        status = StageStatus(
            stage="transactor", term=99, incarnation=1, index=10**6, next=10**6 + 1, durable=10**6
        )
        with (
            stranger(
                endpoint(settings, "sequencer", "data"), zmq.PUSH, own=own, server=server
            ) as a,
            stranger(endpoint(settings, "wal", "data"), zmq.PUSH, own=own, server=server) as b,
            stranger(endpoint(settings, "wal", "control"), zmq.DEALER, own=own, server=server) as c,
        ):
            for socket_ in (a, b, c):
                with suppress(zmq.Again):
                    socket_.send_multipart(encode(request), zmq.NOBLOCK)
                    socket_.send_multipart([b"s", *encode(status)], zmq.NOBLOCK)
            for stage in STAGES:
                address = endpoint(settings, stage, "index")
                with stranger(address, zmq.SUB, own=own, server=server) as spy:
                    # Each of them broadcasts ten times a second.
                    assert not spy.poll(300), stage
            assert not c.poll(0)
        # Nobody else's transaction came between, and no id was taken.
        after = client.submit_and_wait(Deposit(account=1, amount=1), WaitLevel.SNAPSHOT).tx_id
        assert after == before + 1
        assert client.get_balance(9, min_tx_id=after).balance == 0
        assert {each.stage: each.incarnation for each in client.services()} == services
        reason = "unknown_key" if who == "knows the public key" else None
        for stage in ("sequencer", "wal"):
            eventually(lambda s=stage: refusals(running, s), f"the {stage} has logged it")
            if reason is not None:
                eventually(lambda s=stage: counted(running, s, reason), "and counted it")


def test_the_greeting_tells_that_keys_are_needed(running: Pipeline) -> None:
    assert mechanism(running.endpoint) == b"CURVE"


def test_a_friend_hears_the_broadcasts(running: Pipeline, keys: Keys) -> None:
    # Otherwise the silence above would prove nothing.
    pair = keys.bus
    for stage in STAGES:
        address = endpoint(running.settings, stage, "index")
        with stranger(address, zmq.SUB, own=pair, server=pair.public) as friend:
            assert friend.poll(10_000), stage
            frames = friend.recv_multipart()
            assert decode(frames[1:]) is not None


# Secrets


def test_no_secret_is_told_anywhere(running: Pipeline, keys: Keys) -> None:
    secrets = keys.secrets()
    with open_client(running, keys.client("alice")) as client:
        client.submit_batch(transfers([1], [2], [1]), WaitLevel.SNAPSHOT)
        client.submit(Transfer(source=1, target=2, amount=1))
    shown = {
        f"{name} {file}": Path(f"/proc/{pid}/{file}").read_bytes()
        for name, pid in running.pids().items()
        for file in ("environ", "cmdline")
    }
    assert all(shown.values())
    shown["log"] = running.log_text().encode()
    folder = ["--set", f"security.keys={keys.folder}"]
    for command in (["config", "show", *folder], ["keys", "list", *folder]):
        done = run_command(*command)
        assert done.returncode == 0
        shown[" ".join(command)] = (done.stdout + done.stderr).encode()
    for stage in ("gateway", *STAGES):
        shown[f"metrics of {stage}"] = metrics_text(running.settings, stage)
    for where, text in shown.items():
        assert not any(secret in text for secret in secrets), where
    data = [path for path in running.data.rglob("*") if path.is_file()]
    assert data
    for path in data:
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path


def metrics_text(settings: Settings, stage: str) -> bytes:
    address = metrics_address(settings, stage)
    assert address is not None
    with socket.create_connection(address) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65_536), b""))


# Starts that are refused


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("command", ["serve", "up"])
@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ("gateway.endpoint=tcp://0.0.0.0:{port}", "clients"),
        ("gateway.page=0.0.0.0:{port}", "page"),
        ("metrics.address=0.0.0.0", "metrics"),
    ],
)
def test_what_would_listen_beyond_this_machine_does_not_start(
    tmp_path: Path, start_command: Callable[..., Any], command: str, setting: str, part: str
) -> None:
    port = free_ports()
    quiet = make_settings(tmp_path).gateway.endpoint
    words = ["serve", "gateway"] if command == "serve" else ["up"]
    started = start_command(
        *words,
        *("--data", tmp_path / "data", "--set", f"metrics.base_port={port}"),
        *("--set", f"gateway.endpoint={quiet}", "--set", setting.format(port=port)),
    )
    heard = False
    limit = time.monotonic() + PATIENCE_S
    while started.process.poll() is None and time.monotonic() < limit:
        heard = heard or listening(port)
    assert started.wait() == EXIT_SETTINGS
    (line,) = log_lines(started.stderr + "\n")
    assert line["level"] == "error"
    assert line["error"] == "ExposedAddress"
    assert "0.0.0.0" in line["message"]
    assert f"`{part}` in security.unprotected" in line["message"]
    assert not heard
    assert not (tmp_path / "data").exists()


def test_it_starts_where_it_is_named(tmp_path: Path) -> None:
    port = free_ports()
    settings = make_settings(
        tmp_path / "data",
        gateway__endpoint=f"tcp://*:{port}",
        security__unprotected="clients",
        **LEDGER,
    )
    with (
        pipeline_of(settings, tmp_path / "services.log"),
        Client(f"tcp://127.0.0.1:{port}", timeout=PATIENCE_S) as client,
    ):
        client.pipeline_index()


@pytest.mark.parametrize("damage", ["gone", "writable", "mismatch", "grant"])
def test_a_bad_key_file_is_named_and_nothing_starts(tmp_path: Path, damage: str) -> None:
    keys = Keys(tmp_path)
    keys.create("alice")
    bus = keys.folder / "bus.key"
    if damage == "gone":
        bus.unlink()
    elif damage == "writable":
        bus.chmod(0o620)
    elif damage == "mismatch":
        public = new_key_pair().public.decode()
        bus.write_text(bus.read_text().replace(keys.bus.public.decode(), public))
    else:
        bus = grant_path(keys.folder, "alice")
        bus.write_text("role = ")
    settings = encrypted_settings(tmp_path / "data", keys, **LEDGER)
    with Services(tmp_path) as services:
        for stage in ("gateway",) if damage == "grant" else ("gateway", "wal"):
            service = services.start(stage, settings)
            assert service.wait() == EXIT_SETTINGS
            (line,) = service.lines
            assert (line["level"], line["error"]) == ("error", "KeyFileError")
            assert str(bus) in line["message"]
    assert not (tmp_path / "data").exists()
    ports = range(settings.bus.base_port, settings.bus.base_port + len(STAGES) * len(SOCKETS))
    assert not any(map(listening, ports))


def test_up_says_what_is_wrong_with_the_keys(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.create("alice")
    shutil.rmtree(keys.folder / "clients")
    grant_path(keys.folder, "x").parent.mkdir()
    (keys.folder / "gateway.key").chmod(0o660)
    done = run_command(
        *("up", "--data", tmp_path / "data", "--set", f"security.keys={keys.folder}")
    )
    assert done.returncode == EXIT_SETTINGS
    assert "gateway.key belongs to user" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_one_host_needs_the_bus_key_alone(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    keys.create("alice", Role.SUBMIT)
    other_host = tmp_path / "other-host"
    other_host.mkdir(mode=0o700)
    shutil.copy(keys.folder / "bus.key", other_host)
    settings = encrypted_settings(tmp_path / "data", keys, **LEDGER)
    there = replace(settings, security=replace(settings.security, keys=other_host))
    with Services(tmp_path) as services:
        for stage in START_ORDER:
            services.start(stage, settings if stage == "gateway" else there)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S, key=keys.client("alice")) as c:
            assert c.submit_and_wait(Deposit(account=1, amount=5), WaitLevel.SNAPSHOT).tx_id == 1
        services.stop(*STOP_ORDER)


def test_an_embedded_ledger_needs_no_keys(tmp_path: Path) -> None:
    done = run_embedded(tmp_path)
    assert done == 5


def run_embedded(tmp_path: Path) -> int:
    from tallybus import Ledger
    from tallybus.common.settings.sections import load

    settings = load(
        environ={},
        overrides={
            "security.keys": tmp_path / "nowhere",
            "gateway.page": "0.0.0.0:5580",
            "metrics.address": "0.0.0.0",
        },
    )
    with Ledger.open(tmp_path / "data", settings=settings, max_accounts=100) as ledger:
        done = ledger.submit_and_wait(Deposit(account=1, amount=5), WaitLevel.SNAPSHOT)
        return ledger.get_balance(1, min_tx_id=done.tx_id).balance
