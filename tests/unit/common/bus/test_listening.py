"""Who listens where: never two at one address, on IPv6 too, and only for speakers of ZMTP 3."""

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from tallybus import Client, Timeout, Unreachable
from tallybus.common.bus import handshakes
from tallybus.common.bus import sockets as bus_module
from tallybus.common.bus.listening import listen
from tallybus.common.bus.socket_files import SocketFiles, SocketInUse, lock_paths
from tallybus.common.bus.sockets import (
    Bus,
    BusLimits,
    ClientPort,
    EndpointTaken,
    EndpointUnusable,
    EndpointWrong,
    Port,
    new_context,
)
from tallybus.common.errors import EXIT_BUSY
from tallybus.common.files import Storage
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.doorkeeper import Doorkeeper
from tallybus.common.security.pairs import Security
from tests.support.networks import has_ipv6, needs_ipv6
from tests.support.waiting import eventually
from tests.unit.common.bus.passing import LOG, passes

MIB = 1 << 20


@contextmanager
def opened(
    endpoint: Callable[[str, str, bool], str] = lambda *_: "", keys: Security | None = None
) -> Iterator[Bus]:
    """A bus of its own context, as a process has it, closed at the end."""
    context = new_context()
    made = Bus(context, endpoint, BusLimits(), keys)
    keeper = None
    if keys is not None:
        keeper = Doorkeeper(context, keys, Path("/nowhere"), LOG, {})
        keeper.start()
    try:
        yield made
    finally:
        made.close()
        if keeper is not None:
            keeper.close()
        made.release_files()
        context.destroy(linger=0)


# One address, one process


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a link to itself."""
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


SPELLINGS = ["gw.sock", "./gw.sock", "link/gw.sock", "sub/../gw.sock", "{folder}/gw.sock", "alias"]


@pytest.mark.parametrize("second", SPELLINGS)
@pytest.mark.parametrize("first", ["gw.sock", "{folder}/link/gw.sock"])
def test_an_ipc_address_in_use_is_refused_however_it_is_spelt(
    folder: Path, first: str, second: str
) -> None:
    with opened() as one, opened() as other:
        port = one.clients("ipc://" + first.format(folder=folder), MIB)
        (folder / "alias").symlink_to("gw.sock")
        with pytest.raises(EndpointUnusable, match=f"process {os.getpid()} listens") as refused:
            other.clients("ipc://" + second.format(folder=folder), MIB)
        assert refused.value.exit_code == EXIT_BUSY
        assert refused.value.endpoint.startswith("ipc:///")
        # And the first still has it.
        assert asks(port, f"ipc://{folder}/gw.sock")


@pytest.mark.parametrize("kind", ["pull", "publisher", "router"])
def test_addresses_between_services_are_one_process_each(folder: Path, kind: str) -> None:
    def meet(stage: str, name: str, bind: bool) -> str:
        return f"ipc://{stage}.{name}"

    with opened(meet) as one, opened(meet) as other:
        getattr(one, kind)("wal")
        with pytest.raises(EndpointUnusable):
            getattr(other, kind)("wal")


def test_of_many_that_start_at_once_one_gets_the_address(folder: Path) -> None:
    outcomes: list[object] = []
    gate = threading.Barrier(8)

    def claim() -> None:
        files = SocketFiles(Storage())
        gate.wait()
        try:
            files.claim(folder / "gw.sock")
        except SocketInUse:
            outcomes.append(None)
        else:
            outcomes.append(files)

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [each for each in outcomes if isinstance(each, SocketFiles)]
    assert (len(winners), len(outcomes)) == (1, 8)
    winners[0].release([])
    SocketFiles(Storage()).claim(folder / "gw.sock")


def test_who_is_gone_leaves_no_file_and_no_claim(folder: Path) -> None:
    for _ in range(3):
        with opened() as one:
            one.clients("ipc://gw.sock", MIB)
            assert (folder / "gw.sock").is_socket()
        assert not (folder / "gw.sock").exists()


def test_a_socket_file_of_who_was_killed_is_taken_over(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("gw.sock")
    with opened() as one:
        assert asks(one.clients("ipc://gw.sock", MIB), "ipc://gw.sock")


def test_who_listens_without_a_lock_keeps_the_address(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other, opened() as one:
        other.bind("gw.sock")
        other.listen()
        with pytest.raises(EndpointUnusable, match="another process listens there"):
            one.clients("ipc://gw.sock", MIB)


def test_a_file_that_is_no_socket_is_not_overwritten(folder: Path) -> None:
    (folder / "accounts.csv").write_text("precious")
    with opened() as one, pytest.raises(EndpointWrong, match="is no socket"):
        one.clients("ipc://accounts.csv", MIB)
    assert (folder / "accounts.csv").read_text() == "precious"


def test_a_folder_that_is_missing_is_named(folder: Path) -> None:
    with opened() as one, pytest.raises(EndpointWrong, match=f"there is no folder {folder}/none"):
        one.clients("ipc://none/gw.sock", MIB)


@pytest.mark.parametrize("locks", ["kept", "removed"])
def test_an_address_whose_files_were_cleaned_away_is_claimed_again(
    folder: Path, locks: str
) -> None:
    with opened() as one, opened() as other:
        port = one.clients("ipc://gw.sock", MIB)
        (folder / "gw.sock").unlink()
        if locks == "removed":
            (folder / ".gw.sock.lock").unlink()
        assert one.lost_files()
        one.listen_again()
        assert not one.lost_files()
        assert asks(port, "ipc://gw.sock")
        with pytest.raises(EndpointUnusable, match="listens there"):
            other.clients("ipc://gw.sock", MIB)


def test_an_address_that_another_process_took_meanwhile_is_left_to_it(folder: Path) -> None:
    with opened() as one, opened() as other:
        one.clients("ipc://gw.sock", MIB)
        for name in ("gw.sock", ".gw.sock.lock"):
            (folder / name).unlink()
        port = other.clients("ipc://gw.sock", MIB)
        with pytest.raises(EndpointTaken, match="listens there"):
            one.listen_again()
        one.close()
        one.release_files()
        assert asks(port, "ipc://gw.sock"), "its file is not removed by the one that lost it"


def test_a_link_is_claimed_together_with_what_it_leads_to(folder: Path) -> None:
    assert lock_paths(folder / "gw.sock") == [folder / ".gw.sock.lock"]
    (folder / "alias").symlink_to("sub/real")
    assert lock_paths(folder / "alias") == [folder / ".alias.lock", folder / "sub/.real.lock"]


def test_a_client_keeps_its_ledger_when_its_program_changes_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as mine, opened() as others:
        port = mine.clients("ipc://gw.sock", MIB)
        stranger = others.clients("ipc://sub/gw.sock", MIB)
        with Client("ipc://gw.sock", timeout=0.1) as client:
            monkeypatch.chdir(folder / "sub")
            # It connects again, as after a restart of the gateway.
            mine.close()
            mine.release_files()
            time.sleep(0.1)
            with opened() as again:
                port = again.clients(f"ipc://{folder}/gw.sock", MIB)
                eventually(lambda: heard(client, port), "it comes back to the same one")
        assert stranger.receive() is None


# IPv6


def heard(client: Client, port: Port) -> bool:
    """Whether a request of the client arrives."""
    with suppress(Timeout, Unreachable):
        client.pipeline_index()
    return port.receive() is not None


def asks(port: Port, endpoint: str) -> bool:
    """Whether a client that connects to `endpoint` is heard by `port`."""
    with Client(endpoint, timeout=0.1) as client:
        limit = time.monotonic() + 20
        while time.monotonic() < limit:
            if heard(client, port):
                return True
    return False


@needs_ipv6
@pytest.mark.parametrize(
    ("listens", "asked"),
    [
        ("[::1]", "[::1]"),
        ("::1", "::1"),
        ("[::1]", "localhost"),
        ("127.0.0.1", "localhost"),
        ("localhost", "[::1]"),
        ("localhost", "127.0.0.1"),
        ("localhost", "localhost"),
        ("[::]", "[::1]"),
        ("[::]", "127.0.0.1"),
        ("[::]", "localhost"),
        ("*", "[::1]"),
        ("*", "127.0.0.1"),
        ("0.0.0.0", "localhost"),
        ("[::ffff:127.0.0.1]", "127.0.0.1"),
        ("127.0.0.1", "[::ffff:127.0.0.1]"),
        ("lo", "127.0.0.1"),
    ],
)
def test_clients_reach_a_gateway_over_either_family(
    free_port: Callable[[], int], listens: str, asked: str
) -> None:
    number = free_port()
    with opened() as gateway:
        assert asks(gateway.clients(f"tcp://{listens}:{number}", MIB), f"tcp://{asked}:{number}")


@needs_ipv6
def test_a_client_that_was_there_first_finds_the_gateway_where_it_comes_up(
    free_port: Callable[[], int],
) -> None:
    number = free_port()
    with Client(f"tcp://localhost:{number}", timeout=0.2) as client:
        with pytest.raises(Unreachable):
            client.pipeline_index()
        with opened() as gateway:
            port = gateway.clients(f"tcp://[::1]:{number}", MIB)
            eventually(lambda: heard(client, port), "it is found")
            # There it stays: what is on its way to a gateway that is slow is not given up.
            assert all(heard(client, port) for _ in range(3))


@needs_ipv6
@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize("kind", ["data", "index", "control"])
@pytest.mark.parametrize("listens", ["[::1]", "127.0.0.1"])
def test_services_reach_one_another_by_name_over_either_family(
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    listens: str,
    kind: str,
    secret: bool,
) -> None:
    monkeypatch.setattr(handshakes, "ATTEMPT_MS", 500)
    number = free_port()
    keys = Security(bus=new_key_pair()) if secret else None

    def meet(_stage: str, _name: str, bind: bool) -> str:
        return f"tcp://{listens if bind else 'localhost'}:{number}"

    with opened(meet, keys) as one, opened(meet, keys) as other:
        there = {"data": one.pull, "control": one.router, "index": one.publisher}[kind]("wal")
        if kind == "index":
            here = other.subscriber(["wal"], [b""])
        else:
            here = {"data": other.push, "control": other.dealer}[kind]("wal")

        def through() -> bool:
            other.handshakes.look()
            time.sleep(0.02)
            return passes(there, here, kind)

        eventually(through, "a message gets through")
        # And the connection stays: looking on gives nothing up.
        for _ in range(5):
            other.handshakes.look()
        eventually(lambda: passes(there, here, kind), "more messages get through")


@needs_ipv6
@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.1"),
        ("localhost", None),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_pages_are_served_over_either_family(address: str, reached: str | None) -> None:
    with listen((address, 0), 4) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection((reached or listener.getsockname()[0], port), timeout=30):
            listener.accept()[0].close()


def test_localhost_is_never_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("0.0.0.0", 0))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    with pytest.raises(OSError, match="no address"):
        listen(("localhost", 0), 1)


# Only who speaks the protocol

SIGNATURE = b"\xff" + b"\0" * 7 + b"\x01\x7f"
GREETING = SIGNATURE + b"\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" * 32
METADATA = b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
READY = bytes([4, len(METADATA)]) + METADATA
STRANGERS = {
    "nothing": b"",
    "one byte": b"G",
    "a zero": b"\0",
    "many zeros": bytes(200),
    "http": b"GET / HTTP/1.1\r\nHost: ledger\r\n\r\n",
    "http that goes on": b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 5_000,
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "redis": b"*1\r\n$4\r\nPING\r\n",
    "zmtp 1": b"\x01\x00",
    "zmtp 1 with a name": b"\x05\x00abcd",
    "zmtp 1 with a message": b"\x01\x00" + b"\x01\x01" + b"\x06\x00hello",
    "zmtp 2": SIGNATURE + b"\x01\x05\x00\x00",
    "zmtp 2 of old": SIGNATURE + b"\x00\x05\x00\x00",
    "zmtp 2 in part": SIGNATURE + b"\x01",
    "first byte of ours": b"\xff",
    "our signature": SIGNATURE,
    "half of ours": GREETING[:40],
    "our signature, damaged": SIGNATURE[:-1] + b"\x7e",
    "all ones": b"\xff" * 64,
    "a greeting and nothing": GREETING,
    "a greeting and part of a command": GREETING + READY[:9],
    "a greeting and junk": GREETING + b"x" * 100,
    "another mechanism": GREETING.replace(b"NULL\0", b"PLAIN"),
}


def connected(endpoint: str) -> socket.socket:
    if endpoint.startswith("ipc://"):
        made = socket.socket(socket.AF_UNIX)
        made.connect(endpoint.removeprefix("ipc://"))
    else:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        made = socket.create_connection((host.strip("[]"), int(port)))
    made.setblocking(False)
    return made


def closed(connection: socket.socket) -> bool:
    """Whether the other side has closed it; what it says meanwhile is read and thrown away."""
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def test_ten_seconds_are_promised() -> None:
    assert bus_module.HANDSHAKE_MS <= 9_500


@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize("where", ["tcp", "tcp6", "ipc", "bus"])
def test_whoever_does_not_greet_as_zmtp_3_is_cut_off_in_time(
    tmp_path: Path,
    free_port: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    secret: bool,
) -> None:
    if where == "tcp6" and not has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    monkeypatch.setattr(bus_module, "HANDSHAKE_MS", 500)
    endpoint = {
        "tcp": f"tcp://127.0.0.1:{free_port()}",
        "tcp6": f"tcp://[::1]:{free_port()}",
        "ipc": f"ipc://{tmp_path}/gw",
        "bus": f"tcp://127.0.0.1:{free_port()}",
    }[where]
    keys = Security(clients=None, bus=new_key_pair()) if secret else None
    if keys is not None and where != "bus":
        keys = Security(clients=keys.bus, bus=None)
        (tmp_path / "clients").mkdir(mode=0o700)
    context = new_context()
    with ExitStack() as stack:
        stack.callback(context.destroy, 0)
        gateway = Bus(context, lambda *_: endpoint, BusLimits(), keys)
        stack.callback(gateway.release_files)
        if keys is not None:
            keeper = Doorkeeper(context, keys, tmp_path, LOG, {})
            keeper.start()
            stack.callback(keeper.close)
        stack.callback(gateway.close)
        port = gateway.router("wal") if where == "bus" else gateway.clients(endpoint, MIB)
        open_ = {name: stack.enter_context(connected(endpoint)) for name in STRANGERS}
        for name, said in STRANGERS.items():
            with suppress(BrokenPipeError, ConnectionResetError):
                open_[name].sendall(said)
        quiet = stack.enter_context(connected(endpoint))
        plain = not secret or where == "ipc"
        if plain:
            quiet.sendall(GREETING + READY)

        def all_cut() -> bool:
            select.select(list(open_.values()), [], [], 0.05)
            for name in [name for name, each in open_.items() if closed(each)]:
                open_.pop(name).close()
            return not open_

        eventually(all_cut, "all strangers are cut off", 10)
        assert port.receive() is None, "nothing that a stranger says is a message"
        if plain:
            assert not closed(quiet), "who greets well may be quiet"
            if isinstance(port, ClientPort):
                assert asks(port, endpoint)


def test_a_greeting_that_comes_byte_by_byte_has_no_more_time(
    free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus_module, "HANDSHAKE_MS", 400)
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with opened() as gateway:
        gateway.clients(endpoint, MIB)
        with connected(endpoint) as slow:
            started = time.monotonic()
            for byte in GREETING:
                if closed(slow):
                    break
                with suppress(OSError):
                    slow.send(bytes([byte]))
                time.sleep(0.02)
            assert closed(slow)
            assert time.monotonic() - started < len(GREETING) * 0.02 + 1


def test_a_peer_of_an_older_libzmq_is_refused(free_port: Callable[[], int]) -> None:
    """As libzmq 3 greets: it would be let in without having said what it is."""
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with opened() as gateway:
        port = gateway.clients(endpoint, MIB)
        with connected(endpoint) as old:
            old.sendall(SIGNATURE + b"\x01\x05\x00\x00" + b"\x01\x00" + b"\x00\x02hi")
            eventually(lambda: closed(old), "it is cut off")
        assert port.receive() is None
        assert int(port.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN == 0
