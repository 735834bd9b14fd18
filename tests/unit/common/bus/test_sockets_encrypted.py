"""Sockets between services with keys: who gets through, who does not, and what heals by itself."""

import logging
import socket as system_socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from tallybus.common.bus.handshakes import HandshakeReport, Trouble
from tallybus.common.bus.monitor import Failure
from tallybus.common.bus.sockets import Bus, BusLimits, Context, Port, new_context
from tallybus.common.security import doorkeeper as module
from tallybus.common.security.curve import new_key_pair, secure_client
from tallybus.common.security.doorkeeper import Doorkeeper
from tallybus.common.security.keys import KeyPair
from tallybus.common.security.pairs import Security
from tests.support.waiting import eventually
from tests.unit.common.bus.passing import LOG, passes

PAIR = new_key_pair()
GATEWAY = new_key_pair()
OTHER = new_key_pair()
KINDS = ("data", "control", "index")


class Side:
    """One process's sockets."""

    def __init__(
        self,
        endpoint: Callable[[str, str, bool], str],
        security: Security | None,
        *,
        doorkeeper: bool = True,
    ) -> None:
        self.context: Context = new_context()
        self.bus = Bus(self.context, endpoint, BusLimits())
        self.bus.security = security
        self.refused: dict[str, int] = {}
        self.doorkeeper: Doorkeeper | None = None
        if security is not None and doorkeeper:
            self.doorkeeper = Doorkeeper(
                self.context, security, Path("/nowhere"), LOG, self.refused
            )
            self.doorkeeper.start()

    def close(self) -> None:
        self.bus.close()
        if self.doorkeeper is not None:
            self.doorkeeper.close()
        self.context.destroy(linger=0)


class Network:
    """Makes sides that meet on ports of their own; `plain` are sides without keys."""

    def __init__(self, free_port: Callable[[], int]) -> None:
        self.ports = {name: free_port() for name in KINDS}
        self.sides: list[Side] = []
        self.transport: dict[str, str] = {}
        self.host = "127.0.0.1"

    def endpoint(self, stage: str, name: str, bind: bool) -> str:
        host = "127.0.0.1" if bind else self.host
        return self.transport.get(stage, f"tcp://{host}:{self.ports[name]}")

    def side(self, security: Security | None, *, doorkeeper: bool = True) -> Side:
        made = Side(self.endpoint, security, doorkeeper=doorkeeper)
        self.sides.append(made)
        return made

    def service(self, pair: KeyPair | None = PAIR) -> Side:
        return self.side(None if pair is None else Security(bus=pair))

    def close(self) -> None:
        for side in self.sides:
            side.close()


@pytest.fixture
def network(free_port: Callable[[], int]) -> Iterator[Network]:
    made = Network(free_port)
    yield made
    made.close()


def listen(side: Side, kind: str) -> Port:
    bus = side.bus
    return {"data": bus.pull, "control": bus.router, "index": bus.publisher}[kind]("wal")


def connect(side: Side, kind: str) -> Port:
    bus = side.bus
    if kind == "index":
        return bus.subscriber(["wal"], [b""])
    return {"data": bus.push, "control": bus.dealer}[kind]("wal")


@pytest.mark.parametrize("kind", KINDS)
def test_services_with_the_same_pair_reach_one_another(network: Network, kind: str) -> None:
    listening, connecting = network.service(), network.service()
    here, there = listen(listening, kind), connect(connecting, kind)
    eventually(lambda: passes(here, there, kind), "a message")
    assert listening.bus.handshakes.look() == connecting.bus.handshakes.look() == []
    assert not any(listening.refused.values())


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_starts_and_restarts_do_not_matter(network: Network, kind: str) -> None:
    connecting = network.service()
    there = connect(connecting, kind)
    for _ in range(3):
        listening = network.service()
        here = listen(listening, kind)
        eventually(lambda here=here: passes(here, there, kind), "a message")  # type: ignore[misc]
        listening.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", [None, OTHER], ids=["plain", "another"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_who_listens_without_keys_or_with_others_is_left_for_the_right_one(
    network: Network, kind: str, pair: KeyPair | None, host: str
) -> None:
    network.host = host
    connecting = network.service()
    there = connect(connecting, kind)
    wrong = network.service(pair)
    here = listen(wrong, kind)
    troubles: list[Trouble] = []

    def told() -> bool:
        assert not passes(here, there, kind)
        troubles.extend(connecting.bus.handshakes.look())
        return any(each.connects for each in troubles)

    eventually(told, "the trouble was told")
    assert {each.socket for each in troubles} == {f"wal.{kind}"}
    expected = {Failure.MECHANISM, Failure.BROKEN} if pair is None else {Failure.BROKEN}
    assert {each.failure for each in troubles} <= expected
    wrong.close()
    here = listen(network.service(), kind)

    def healed() -> bool:
        connecting.bus.handshakes.look()
        return passes(here, there, kind)

    eventually(healed, "a message")


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_service_is_let_in_once_it_has_keys(network: Network, kind: str) -> None:
    listening = network.service()
    here = listen(listening, kind)
    plain = network.service(None)
    there = connect(plain, kind)
    report = HandshakeReport(LOG, listening.refused)

    def counted() -> bool:
        assert not passes(here, there, kind)
        report.take(listening.bus.handshakes.look(), time.monotonic())
        # The side that connects may be the first to hang up.
        refused = listening.refused
        return refused.get("no_encryption", 0) + refused.get("bad_handshake", 0) > 0

    eventually(counted, "it was counted")
    plain.close()
    there = connect(network.service(), kind)
    eventually(lambda: passes(here, there, kind), "a message")


@pytest.mark.parametrize("kind", KINDS)
def test_a_service_that_nobody_answers_for_lets_nobody_in(network: Network, kind: str) -> None:
    # It listens, and its doorkeeper is not there (yet).
    here = listen(network.side(Security(bus=PAIR), doorkeeper=False), kind)
    there = connect(network.service(), kind)
    limit = time.monotonic() + 0.5
    while time.monotonic() < limit:
        assert not passes(here, there, kind)
        time.sleep(0.01)


def stranger(
    side: Side, endpoint: str, kind: int, *, own: KeyPair | None = None, server: bytes = b""
) -> zmq.Socket[bytes]:
    socket = side.context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    if kind == zmq.SUB:
        socket.setsockopt(zmq.SUBSCRIBE, b"")
    if own is not None:
        secure_client(socket, own, server)
    socket.connect(endpoint)
    return socket


@pytest.mark.parametrize(
    ("own", "server"),
    [(None, b""), (OTHER, OTHER.public), (OTHER, PAIR.public)],
    ids=["plain", "another bus", "knows the public key"],
)
def test_strangers_put_nothing_in_and_read_nothing(
    network: Network, own: KeyPair | None, server: bytes
) -> None:
    listening, service, outside = network.service(), network.service(), network.service(None)
    ports = {kind: listen(listening, kind) for kind in KINDS}
    strangers = {
        kind: stranger(outside, network.endpoint("wal", kind, False), each, own=own, server=server)
        for kind, each in zip(KINDS, (zmq.PUSH, zmq.DEALER, zmq.SUB), strict=True)
    }
    for kind in ("data", "control"):
        # Who was refused already has no connection that would take it.
        with suppress(zmq.Again):
            strangers[kind].send(b"injected", zmq.NOBLOCK)
    friends = {kind: connect(service, kind) for kind in KINDS}
    for kind in KINDS:
        eventually(lambda kind=kind: passes(ports[kind], friends[kind], kind), kind)  # type: ignore[misc]
    # What came by now came from the friend alone, and the stranger heard nothing of it.
    for kind in ("data", "control"):
        while (message := ports[kind].receive()) is not None:
            assert message[-1] == b"message"
    assert not strangers["index"].poll(200)
    assert not strangers["control"].poll(0)
    if server == PAIR.public:
        assert listening.refused["unknown_key"] > 0
    else:
        report = HandshakeReport(LOG, listening.refused)
        report.take(listening.bus.handshakes.look(), time.monotonic())
        assert sum(listening.refused.values()) > 0
    for socket in strangers.values():
        socket.close()


def test_a_routing_id_cannot_be_taken_over(network: Network) -> None:
    listening, service, outside = network.service(), network.service(), network.service(None)
    here = listen(listening, "control")
    friend = service.bus.dealer("wal")
    friend.socket.setsockopt(zmq.ROUTING_ID, b"transactor")
    friend.socket.disconnect(network.endpoint("wal", "control", False))
    friend.socket.connect(network.endpoint("wal", "control", False))
    thief = outside.context.socket(zmq.DEALER)
    thief.setsockopt(zmq.ROUTING_ID, b"transactor")
    thief.setsockopt(zmq.LINGER, 0)
    secure_client(thief, OTHER, PAIR.public)
    thief.connect(network.endpoint("wal", "control", False))
    eventually(lambda: listening.refused["unknown_key"], "the thief was refused")
    eventually(lambda: friend.send([b"hello"]), "sent")
    eventually(lambda: here.socket.poll(0), "heard")
    assert here.receive() == [b"transactor", b"hello"]
    assert here.send_to(b"transactor", [b"welcome"])
    eventually(lambda: friend.socket.poll(0), "answered")
    assert friend.receive() == [b"welcome"]
    assert not thief.poll(100)
    thief.close()


def test_clients_are_known_by_their_key_with_each_message(
    network: Network, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = new_key_pair(), new_key_pair()
    monkeypatch.setattr(
        module,
        "read_grants",
        lambda _: {each.public: module.gateway_grant(each) for each in (alice, bob)},
    )
    gateway = network.side(Security(clients=GATEWAY))
    outside = network.service(None)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    port = gateway.bus.clients(endpoint, 1_000_000)
    assert port.has_users
    sockets = {
        pair.public: stranger(outside, endpoint, zmq.DEALER, own=pair, server=GATEWAY.public)
        for pair in (alice, bob)
    }
    expected = []
    for turn in range(3):
        for public, socket in sockets.items():
            # Frames of every size: small ones are copied, large ones are not.
            socket.send_multipart([b"head", public, bytes([turn]) * (turn * 100_000)])
            expected.append((public, turn))
    found = []
    while len(found) < len(expected):
        assert port.socket.poll(10_000)
        message = port.receive()
        assert message is not None
        assert port.user == bytes(message[2])
        assert len(message[3]) % 100_000 == 0
        found.append((port.user, len(message[3]) // 100_000))
    assert sorted(found) == sorted(expected)
    for socket in sockets.values():
        socket.close()


def test_without_keys_or_over_ipc_nobody_has_a_key(network: Network, tmp_path: Path) -> None:
    gateway = network.side(Security(clients=GATEWAY))
    outside = network.service(None)
    endpoint = f"ipc://{tmp_path}/clients"
    port = gateway.bus.clients(endpoint, 1_000_000)
    assert not port.has_users
    socket = stranger(outside, endpoint, zmq.DEALER)
    socket.send(b"hello")
    assert port.socket.poll(10_000)
    assert port.receive() is not None
    assert port.user == b""
    socket.close()
    plain = network.service(None)
    assert not plain.bus.clients("tcp://127.0.0.1:*", 1_000_000).has_users


def test_one_subscriber_may_listen_over_ipc_and_over_tcp(network: Network, tmp_path: Path) -> None:
    network.transport["sequencer"] = f"ipc://{tmp_path}/sequencer"
    far, near, gateway = network.service(), network.service(None), network.service()
    ports = [far.bus.publisher("wal"), near.bus.publisher("sequencer")]
    heard: set[bytes] = set()
    # In either order: what is set for the one must not hold for the other.
    for order in (["wal", "sequencer"], ["sequencer", "wal"]):
        subscriber = gateway.bus.subscriber(order, [b""])
        heard.clear()

        def both(subscriber: Port = subscriber) -> bool:
            for port, name in zip(ports, (b"wal", b"sequencer"), strict=True):
                port.send([name])
            while (message := subscriber.receive()) is not None:
                heard.add(bytes(message[0]))
            return len(heard) == 2

        eventually(both, f"both were heard, not only {heard}")


def test_a_socket_without_its_pair_is_not_made_plain(network: Network) -> None:
    side = network.side(Security(clients=GATEWAY))
    for make in (
        side.bus.pull,
        side.bus.push,
        side.bus.publisher,
        side.bus.router,
        side.bus.dealer,
    ):
        with pytest.raises(LookupError):
            make("wal")
    with pytest.raises(LookupError):
        side.bus.subscriber(["wal"], [b""])
    with pytest.raises(LookupError):
        network.service().bus.clients("tcp://127.0.0.1:*", 1_000_000)


def test_garbage_harms_no_socket_that_listens(network: Network) -> None:
    listening, service = network.service(), network.service()
    ports = {kind: listen(listening, kind) for kind in KINDS}
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    for garbage in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        greeting,
        greeting + b"\x04\x05\x04ABCD",
        greeting + b"\x06" + struct.pack(">Q", 2**40) + b"x" * 100,
    ):
        for kind in KINDS:
            with system_socket.create_connection(("127.0.0.1", network.ports[kind])) as raw:
                raw.sendall(garbage)
                if garbage:
                    with suppress(ConnectionError):
                        raw.recv(10)
    for kind in KINDS:
        friend = connect(service, kind)
        eventually(lambda kind=kind, to=friend: passes(ports[kind], to, kind), kind)  # type: ignore[misc]


# The report


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_a_flood_of_troubles_writes_few_lines_and_counts_all() -> None:
    log = logging.getLogger("test_encrypted_bus.flood")
    lines = Lines()
    log.handlers, log.propagate = [lines], False
    refused: dict[str, int] = {}
    report = HandshakeReport(log, refused)
    for second in range(8):
        report.take(
            [
                Trouble("wal.data", "tcp://x:1", False, Failure.MECHANISM, "", 1_000),
                Trouble("wal.data", "tcp://x:1", False, Failure.KEY, "", 500),
                Trouble("transactor.data", "tcp://y:1", True, Failure.MECHANISM, "", 3),
            ],
            float(second),
        )
    assert refused == {"no_encryption": 8_000, "bad_handshake": 4_000}
    assert lines.messages.count("refused a connection") == 2 * 5
    assert lines.messages.count("cannot connect to another service") == 5
