"""Clients with keys, over real sockets: who is let in, who is refused and told so, and who is not
refused at all but only in front of a gateway that dies.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from tallybus import (
    AccessDenied,
    AsyncClient,
    Client,
    Deposit,
    InvalidRequest,
    OutcomeUnknown,
    Timeout,
    Unreachable,
    WaitLevel,
)
from tallybus.client.access import PAUSE_NS
from tallybus.client.core import MILLISECOND, SECOND, Core, CoreSettings
from tallybus.client.wire import Wire
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.keys import ClientKey, KeyPair, client_key_text
from tests.support.fake_door import FAILED, LET_IN, REFUSED, Door, encrypted_gateway
from tests.support.fake_gateway import FakeGateway, FakeLedger, always

PATIENCE_S = 20.0
"""Long enough for a refusal on a busy machine, and short of a call's own 60 seconds."""


class QuickClient(Client):
    """Notices losses sooner, so that tests are short."""

    _settings = CoreSettings(ping_after=25 * MILLISECOND)


class QuickAsyncClient(AsyncClient):
    """The same."""

    _settings = CoreSettings(ping_after=25 * MILLISECOND)


Call = Callable[..., list[object]]


def blocking(endpoint: str, count: int, **options: Any) -> list[object]:
    """What as many calls of one client end with, result or error, made by threads at once."""
    with QuickClient(endpoint, timeout=60, **options) as client, ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(client.submit, Deposit(n + 1, 5, n + 1)) for n in range(count)]
        return [call.exception() or call.result() for call in calls]


def on_a_loop(endpoint: str, count: int, **options: Any) -> list[object]:
    """The same by tasks of one event loop."""

    async def main() -> list[object]:
        async with QuickAsyncClient(endpoint, timeout=60, **options) as client:
            calls = (client.submit(Deposit(n + 1, 5, n + 1)) for n in range(count))
            return list(await asyncio.gather(*calls, return_exceptions=True))

    return asyncio.run(main())


def denied(outcomes: list[object], reason: str, began: float) -> str:
    """All were refused for this reason, and did not wait for their deadlines; gives the text."""
    assert time.monotonic() - began < PATIENCE_S
    for outcome in outcomes:
        assert isinstance(outcome, AccessDenied), outcome
        assert (outcome.request, outcome.reason) == (None, reason)
    return str(outcomes[0])


def until_tried_again() -> None:
    """Waits until a client that was refused just now makes another attempt."""
    time.sleep(PAUSE_NS / SECOND)


both = pytest.mark.parametrize("call", [blocking, on_a_loop])


@both
def test_who_has_a_key_is_let_in(call: Call, tmp_path: Path) -> None:
    with encrypted_gateway() as (gateway, door):
        assert sorted(call(gateway.endpoint, 3, key=door.key()), key=str) == [1, 2, 3]
        path = tmp_path / "ops.key"
        path.touch(0o600)
        path.write_text(client_key_text(door.key()))
        for given in (path, str(path)):
            assert len(call(gateway.endpoint, 1, key=given)) == 1
        assert door.asked == 3
        assert len(gateway.seen) == 5


@both
def test_without_a_key_a_ledger_that_asks_for_one_refuses(call: Call) -> None:
    with encrypted_gateway() as (gateway, door):
        began = time.monotonic()
        text = denied(call(gateway.endpoint, 3), "encryption", began)
        assert "none was given" in text
        assert "TALLYBUS_KEY" in text
        assert (door.asked, gateway.seen) == (0, [])


@both
def test_with_a_key_nobody_talks_to_a_ledger_that_does_not_encrypt(call: Call) -> None:
    with FakeGateway() as gateway, Door() as door:
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 3, key=door.key())
        assert "does not encrypt" in denied(outcomes, "encryption", began)
        assert gateway.seen == []


@both
@pytest.mark.parametrize(
    ("status", "words"), [(REFUSED, "refuses the key 'ops'"), (FAILED, "could not check")]
)
def test_a_key_that_is_not_good_is_refused(call: Call, status: bytes, words: str) -> None:
    with encrypted_gateway(status) as (gateway, door):
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 3, key=door.key("ops"))
        assert words in denied(outcomes, "key", began)
        assert gateway.seen == []


@both
def test_a_gateway_with_another_key_than_expected_is_not_talked_to(call: Call) -> None:
    with encrypted_gateway() as (gateway, door):
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 3, key=door.key("ops", new_key_pair()))
        assert "another public key" in denied(outcomes, "encryption", began)
        assert (door.asked, gateway.seen) == (0, [])


@both
def test_a_gateway_that_cannot_check_keys_any_more_lets_nobody_in(call: Call) -> None:
    with encrypted_gateway() as (gateway, door):
        door.leave()
        began = time.monotonic()
        outcomes = call(gateway.endpoint, 2, key=door.key())
        assert "cannot check any key" in denied(outcomes, "encryption", began)


def test_a_gateway_that_does_not_answer_about_keys_is_slow() -> None:
    with encrypted_gateway(None) as (gateway, door):
        with (
            QuickClient(gateway.endpoint, key=door.key()) as client,
            pytest.raises(Unreachable, match="never sent"),
        ):
            client.submit(Deposit(1, 5), timeout=1)
        assert door.asked > 0


def test_a_secret_is_in_no_refusal() -> None:
    for status in (REFUSED, FAILED):
        with encrypted_gateway(status) as (gateway, door):
            key = door.key()
            (error,) = blocking(gateway.endpoint, 1, key=key)
            assert key.pair.secret.decode() not in f"{error}{error!r}"


@pytest.mark.parametrize("first", [REFUSED, FAILED])
def test_the_same_client_works_once_its_key_is_granted(first: bytes) -> None:
    with (
        encrypted_gateway(first) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key()) as client,
    ):
        for _ in range(3):
            with pytest.raises(AccessDenied):
                client.submit(Deposit(1, 5))
            until_tried_again()
        door.status = LET_IN
        assert client.submit(Deposit(1, 5)) == 1
        assert client.submit(Deposit(1, 5)) == 2


def test_the_same_async_client_works_once_its_key_is_granted() -> None:
    async def main(gateway: FakeGateway, door: Door) -> None:
        async with QuickAsyncClient(gateway.endpoint, key=door.key()) as client:
            for _ in range(3):
                with pytest.raises(AccessDenied):
                    await client.submit(Deposit(1, 5))
                await asyncio.sleep(PAUSE_NS / SECOND)
            door.status = LET_IN
            assert await client.submit(Deposit(1, 5)) == 1

    with encrypted_gateway(REFUSED) as (gateway, door):
        asyncio.run(main(gateway, door))


def test_calls_in_a_loop_do_not_flood_a_gateway_that_refuses() -> None:
    with (
        encrypted_gateway(REFUSED) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key()) as client,
    ):
        end = time.monotonic() + 3 * PAUSE_NS / SECOND
        calls = 0
        while time.monotonic() < end:
            with pytest.raises(AccessDenied):
                client.submit(Deposit(1, 5))
            calls += 1
        assert calls > 100
        assert 1 < door.asked <= 5


class Replaced:
    """A gateway that holds what it is sent, until `replace` puts another one in its place."""

    def __init__(self, keyed: bool = True) -> None:
        self._stack = ExitStack()
        self._ledger = FakeLedger()
        self._pair = new_key_pair()
        self.key = ClientKey("ops", new_key_pair(), self._pair.public)
        self.gateway = self._start(keyed, LET_IN, script=always("hold"))

    def __enter__(self) -> Replaced:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def replace(self, status: bytes = LET_IN) -> Door:
        """Another one with the same keys; gives its door."""
        self._stack.close()
        self._start(True, status, endpoint=self.gateway.endpoint, incarnation=2)
        return self._door

    def _start(self, keyed: bool, status: bytes, **options: Any) -> FakeGateway:
        if not keyed:
            return self._stack.enter_context(FakeGateway(self._ledger, **options))
        behind = encrypted_gateway(status, self._pair, ledger=self._ledger, **options)
        gateway, self._door = self._stack.enter_context(behind)
        return gateway


def test_a_key_that_is_good_no_more_at_a_reconnect_ends_what_waits() -> None:
    with (
        Replaced() as old,
        QuickClient(old.gateway.endpoint, key=old.key, timeout=60) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        read = pool.submit(client.pipeline_index)
        old.gateway.wait_seen(1)
        safe = pool.submit(client.submit, Deposit(1, 5, 77))
        old.gateway.wait_seen(2)
        unsafe = pool.submit(client.submit, Deposit(1, 5))
        old.gateway.wait_seen(3)
        door = old.replace(REFUSED)
        with pytest.raises(AccessDenied):
            read.result(PATIENCE_S)
        for call, retry_safe in ((safe, True), (unsafe, False)):
            error = call.exception(PATIENCE_S)
            assert isinstance(error, OutcomeUnknown)
            assert error.retry_safe == retry_safe
            assert isinstance(error.__cause__, AccessDenied)
        door.status = LET_IN
        until_tried_again()
        assert client.pipeline_index().term == 1


def test_a_ledger_that_asks_for_keys_from_now_on_ends_what_waits() -> None:
    async def main(old: Replaced) -> None:
        async with QuickAsyncClient(old.gateway.endpoint, timeout=60) as client:
            waiting = asyncio.create_task(client.wait_for(1))
            await asyncio.to_thread(old.gateway.wait_seen, 1)
            await asyncio.to_thread(old.replace)
            with pytest.raises(AccessDenied) as caught:
                await asyncio.wait_for(waiting, PATIENCE_S)
            assert caught.value.reason == "encryption"

    with Replaced(keyed=False) as old:
        asyncio.run(main(old))


def test_a_gateway_with_the_same_key_may_be_started_anew_under_requests() -> None:
    with (
        Replaced() as old,
        QuickClient(old.gateway.endpoint, key=old.key, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        safe = pool.submit(client.submit_and_wait, Deposit(1, 5, 77))
        old.gateway.wait_seen(1)
        old.replace()
        assert safe.result(PATIENCE_S).ok
        assert client.get_balance(1).balance == 5


class WaitingClient(Client):
    """Asks the gateway for nothing that was sent."""

    _settings = CoreSettings(ping_after=1_000 * SECOND)


class WaitingAsyncClient(AsyncClient):
    """The same."""

    _settings = CoreSettings(ping_after=1_000 * SECOND)


def test_who_only_waits_is_told_at_once() -> None:
    """There is nothing to send, so that nothing but the refusal can wake the client."""
    with (
        Replaced() as old,
        WaitingClient(old.gateway.endpoint, key=old.key, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        read = pool.submit(client.pipeline_index)
        old.gateway.wait_seen(1)
        old.replace(REFUSED)
        assert isinstance(read.exception(PATIENCE_S), AccessDenied)


def test_which_task_only_waits_is_told_at_once() -> None:
    async def main(old: Replaced) -> None:
        async with WaitingAsyncClient(old.gateway.endpoint, key=old.key, timeout=60) as client:
            read = asyncio.create_task(client.pipeline_index())
            await asyncio.to_thread(old.gateway.wait_seen, 1)
            await asyncio.to_thread(old.replace, REFUSED)
            with pytest.raises(AccessDenied):
                await asyncio.wait_for(read, PATIENCE_S)

    with Replaced() as old:
        asyncio.run(main(old))


def pumps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each time that a client does something."""
    counted: list[int] = []
    pump = Wire.pump

    def counting(wire: Wire, core: Core, now: int, told: bool = False) -> None:
        counted.append(now)
        pump(wire, core, now, told)

    monkeypatch.setattr(Wire, "pump", counting)
    return counted


@pytest.mark.parametrize("kind", [WaitingClient, WaitingAsyncClient])
def test_who_waits_does_nothing(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = pumps(monkeypatch)

    async def main(endpoint: str, key: ClientKey) -> None:
        async with WaitingAsyncClient(endpoint, key=key) as client:
            with pytest.raises(Timeout):
                await client.wait_for(1, timeout=0.5)

    with encrypted_gateway(script=always("hold")) as (gateway, door):
        if kind is WaitingAsyncClient:
            asyncio.run(main(gateway.endpoint, door.key()))
        else:
            with kind(gateway.endpoint, key=door.key()) as client, pytest.raises(Timeout):
                client.wait_for(1, timeout=0.5)
    assert len(counted) < 20


@pytest.mark.parametrize("keyed", [True, False])
def test_who_waits_for_a_gateway_that_is_not_there_does_little(
    keyed: bool, monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int]
) -> None:
    counted = pumps(monkeypatch)
    with Door() as door:
        key = door.key() if keyed else None
        with (
            QuickClient(f"tcp://127.0.0.1:{free_port()}", key=key) as client,
            pytest.raises(Unreachable),
        ):
            client.submit(Deposit(1, 5), timeout=1.5)
    assert len(counted) < 300


class Listener:
    """Accepts connections on a free port and does the same with each, in a thread of its own."""

    def __init__(self, greet: Callable[[socket.socket], None]) -> None:
        self._greet = greet
        self.accepted = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            with connection:
                connection.settimeout(1)
                try:
                    self._greet(connection)
                except OSError:
                    continue


def nothing(connection: socket.socket) -> None:
    """As a proxy in front of a gateway that is down."""


def after_reading(connection: socket.socket) -> None:
    """As another kind of proxy."""
    connection.recv(64)


def after_greeting(connection: socket.socket) -> None:
    """As a gateway that takes no more connections, or is killed while it greets."""
    connection.sendall(b"\xff" + bytes(7) + b"\x01\x7f")


def soon_after_greeting(connection: socket.socket) -> None:
    """The same, a little slower."""
    after_greeting(connection)
    time.sleep(0.05)


def as_a_web_server(connection: socket.socket) -> None:
    connection.recv(64)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def as_one_with_another_key(connection: socket.socket) -> None:
    """Keeps who says nothing."""
    after_greeting(connection)
    connection.recv(64)


def test_a_client_that_was_refused_leaves_the_gateway_alone() -> None:
    with (
        Listener(as_one_with_another_key) as listener,
        Door() as door,
        QuickClient(listener.endpoint, key=door.key(), timeout=60) as client,
    ):
        with pytest.raises(AccessDenied, match="another public key"):
            client.submit(Deposit(1, 5))
        end = time.monotonic() + PATIENCE_S
        before, quiet_since = 0, time.monotonic()
        # Every 20 to 100 ms it would be tried again otherwise.
        while time.monotonic() < quiet_since + 0.5:
            assert time.monotonic() < end
            if listener.accepted != before:
                before, quiet_since = listener.accepted, time.monotonic()
            time.sleep(0.01)


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize(
    "greet", [nothing, after_reading, after_greeting, soon_after_greeting, as_a_web_server]
)
def test_who_only_hangs_up_has_refused_nobody(
    greet: Callable[[socket.socket], None], keyed: bool
) -> None:
    with Listener(greet) as listener, Door() as door:
        key = door.key() if keyed else None
        # Without a key libzmq takes a greeting for a connection, and the request with it.
        expected = (Unreachable, Timeout) if key is None else Unreachable
        with QuickClient(listener.endpoint, key=key) as client, pytest.raises(expected):
            client.submit(Deposit(1, 5), timeout=1.2)
        assert listener.accepted > 1


def test_a_gateway_that_comes_after_something_else_is_found() -> None:
    with Door() as door:
        with Listener(as_a_web_server) as listener:
            client = QuickClient(listener.endpoint, key=door.key(), timeout=60)
            pending = client.begin_batch([Deposit(1, 5)])
            while listener.accepted < 2:
                assert not pending.done()
                time.sleep(0.01)
        with (
            client,
            FakeGateway(context=door.context, secure=door.secure, endpoint=listener.endpoint),
        ):
            assert pending.result(timeout=PATIENCE_S).first_tx_id == 1


def test_a_gateway_that_dies_again_and_again_is_not_taken_for_a_refusal(
    free_port: Callable[[], int],
) -> None:
    """In the middle of handshakes, too: every request has its result in the end."""
    ledger, pair, stop = FakeLedger(), new_key_pair(), threading.Event()
    endpoint = f"tcp://127.0.0.1:{free_port()}"

    def submit(first: int) -> int:
        done = 0
        while not stop.is_set():
            key = ClientKey("ops", new_key_pair(), pair.public)
            with QuickClient(endpoint, key=key, timeout=60) as client:
                for _ in range(3):
                    done += 1
                    assert client.submit_and_wait(Deposit(1, 5, first + done)).ok
        return done

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(submit, number << 32) for number in range(4)]
        for turn in range(80):
            options = {"ledger": ledger, "endpoint": endpoint, "incarnation": turn + 1}
            with encrypted_gateway(LET_IN, pair, **options):
                stop.wait(0.003 * (turn % 8))
        stop.set()
        with encrypted_gateway(LET_IN, pair, ledger=ledger, endpoint=endpoint, incarnation=100):
            done = [each.result(PATIENCE_S) for each in working]
    assert min(done) > 0
    assert ledger.balances[1] == 5 * sum(done)


def test_over_ipc_and_inproc_a_key_is_not_looked_at(tmp_path: Path) -> None:
    with FakeGateway(endpoint=f"ipc://{tmp_path}/clients") as gateway:
        assert blocking(gateway.endpoint, 1, key=tmp_path / "missing.key") == [1]
    with (
        zmq.Context() as context,
        FakeGateway(endpoint="inproc://ledger", context=context) as gateway,
    ):
        assert on_a_loop(gateway.endpoint, 1, key="missing.key", context=context) == [1]


def client_of(key: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        Client("tcp://127.0.0.1:9", key=key)
    with pytest.raises(InvalidRequest):
        AsyncClient("tcp://127.0.0.1:9", key=key)
    assert caught.value.field == "key"
    return caught.value


def key_text() -> tuple[str, ClientKey]:
    gateway = new_key_pair()
    key = ClientKey("ops", new_key_pair(), gateway.public)
    return client_key_text(key), key


def test_a_key_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    text, key = key_text()
    path = tmp_path / "ops.key"
    error = client_of(path)
    assert str(path) in str(error)
    assert (error.value, "cannot be read" in str(error)) == (str(path), True)
    path.touch()
    path.chmod(0o666)
    path.write_text(text)
    assert "others may change it" in str(client_of(path))
    path.chmod(0o600)
    path.write_text(text.replace("gateway", "gatehouse"))
    assert "'gateway'" in str(client_of(str(path)))
    path.write_text(f'secret = "{key.pair.secret.decode()}"\nand more')
    error = client_of(path)
    assert key.pair.secret.decode() not in f"{error}{error!r}{error.__cause__!r}"
    assert "not a text" not in str(error)


def test_a_pair_that_is_none_is_refused() -> None:
    _, key = key_text()
    wrong = ClientKey("ops", KeyPair(new_key_pair().public, key.pair.secret), key.gateway)
    error = client_of(wrong)
    assert "does not belong" in str(error)
    assert key.pair.secret.decode() not in f"{error}{error!r}"


def test_a_key_in_place_of_its_file_is_not_shown() -> None:
    text, key = key_text()
    secret = key.pair.secret.decode()
    for given in (secret, text, key.pair.secret, b"ops.key", 5, key.pair, "ops\0.key"):
        error = client_of(given)
        assert "path" in str(error)
        assert secret not in f"{error}{error!r}{error.value}{error.__cause__!r}"


def test_nothing_is_left_behind() -> None:
    import gc
    import warnings

    async def main(endpoint: str, key: ClientKey) -> None:
        async with AsyncClient(endpoint, key=key) as client:
            with pytest.raises(AccessDenied):
                await client.submit(Deposit(1, 5))

    before = threading.active_count()
    with warnings.catch_warnings(), encrypted_gateway(REFUSED) as (gateway, door):
        warnings.simplefilter("error")
        for _ in range(5):
            with (
                Client(gateway.endpoint, key=door.key()) as client,
                pytest.raises(AccessDenied),
            ):
                client.submit(Deposit(1, 5))
            asyncio.run(main(gateway.endpoint, door.key()))
        # While a look is under way.
        with (
            Client(gateway.endpoint, key=door.key("x", new_key_pair())) as client,
            pytest.raises(Unreachable),
        ):
            client.submit(Deposit(1, 5), timeout=0.6)
        gc.collect()
    assert threading.active_count() == before


def test_many_clients_may_share_a_context() -> None:
    with encrypted_gateway() as (gateway, door), zmq.Context() as context:
        clients = [
            QuickClient(gateway.endpoint, key=door.key(), context=context) for _ in range(50)
        ]
        assert [client.submit(Deposit(1, 1)) for client in clients] == list(range(1, 51))
        for client in clients:
            client.close()


def test_a_terminated_context_ends_a_client_that_looks() -> None:
    with encrypted_gateway() as (gateway, door), ThreadPoolExecutor(2) as pool:
        context: zmq.Context[Any] = zmq.Context()
        key = door.key("x", new_key_pair())
        client = QuickClient(gateway.endpoint, key=key, context=context, timeout=60)
        call = pool.submit(client.submit, Deposit(1, 5))
        terminating = pool.submit(context.term)
        assert call.exception(PATIENCE_S) is not None
        client.close()
        terminating.result(PATIENCE_S)


def test_whoever_only_asks_whether_it_is_done_is_told() -> None:
    with (
        encrypted_gateway(REFUSED) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key(), timeout=60) as client,
    ):
        pending = client.begin_batch([Deposit(1, 5)])
        # Without anybody who polls: asking alone has to find it out.
        end = time.monotonic() + PATIENCE_S
        while not pending.done():
            assert time.monotonic() < end
            time.sleep(0.001)
        with pytest.raises(AccessDenied):
            pending.result()
        with pytest.raises(AccessDenied):
            client.begin_batch([Deposit(1, 5)]).result()


def test_a_wait_level_is_no_reason_to_wait() -> None:
    with (
        encrypted_gateway(REFUSED) as (gateway, door),
        QuickClient(gateway.endpoint, key=door.key()) as client,
        pytest.raises(AccessDenied),
    ):
        client.wait_for(1, WaitLevel.SNAPSHOT, timeout=60)
