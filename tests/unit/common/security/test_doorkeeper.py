"""Who is let in: decisions on every kind of request, and the thread that gives them."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from tallybus.common.logs import JsonFormatter
from tallybus.common.security import doorkeeper as module
from tallybus.common.security.curve import new_key_pair, secure_client, secure_server
from tallybus.common.security.doorkeeper import (
    ALLOWED,
    FAILED,
    REASONS,
    REFUSED,
    Admission,
    Doorkeeper,
    decide,
)
from tallybus.common.security.keys import (
    Grant,
    KeyFileError,
    KeyPair,
    Role,
    grant_path,
    grant_text,
)
from tallybus.common.security.pairs import BUS, CLIENTS, Security
from tests.support.waiting import eventually

GATEWAY = new_key_pair()
SERVICES = new_key_pair()
ALICE = new_key_pair()
BOB = new_key_pair()
STRANGER = new_key_pair()
MADE = "2026-03-01T09:30:00Z"


def grant(pair: KeyPair, name: str, role: Role = Role.SUBMIT, revoked: str = "") -> Grant:
    return Grant(name, pair.public, role, MADE, revoked)


ADMISSION = Admission(
    SERVICES.public,
    {
        ALICE.public: grant(ALICE, "alice"),
        BOB.public: grant(BOB, "bob", revoked=MADE),
        GATEWAY.public: module.gateway_grant(GATEWAY),
    },
)


def request(pair: KeyPair, domain: str = CLIENTS) -> list[bytes]:
    key = z85.decode(pair.public)
    return [b"1.0", b"7", domain.encode(), b"10.0.0.9", b"", b"CURVE", key]


# The decision


@pytest.mark.parametrize(
    ("pair", "domain", "name"),
    [(ALICE, CLIENTS, "alice"), (GATEWAY, CLIENTS, "gateway"), (SERVICES, BUS, "")],
)
def test_good_keys_are_let_in_and_named(pair: KeyPair, domain: str, name: str) -> None:
    decision = decide(request(pair, domain), ADMISSION)
    assert (decision.status, decision.reason, decision.name) == (ALLOWED, "", name)
    assert decision.reply() == [b"1.0", b"7", b"200", b"", pair.public, b""]


@pytest.mark.parametrize(
    ("pair", "domain", "reason", "name"),
    [
        (STRANGER, CLIENTS, "unknown_key", ""),
        (STRANGER, BUS, "unknown_key", ""),
        (BOB, CLIENTS, "revoked_key", "bob"),
        # Good elsewhere, and not here.
        (SERVICES, CLIENTS, "unknown_key", ""),
        (ALICE, BUS, "unknown_key", ""),
        (GATEWAY, BUS, "unknown_key", ""),
        (ALICE, "", "unknown_key", ""),
        (ALICE, "Clients", "unknown_key", ""),
        (SERVICES, "global", "unknown_key", ""),
    ],
)
def test_all_others_are_refused(pair: KeyPair, domain: str, reason: str, name: str) -> None:
    decision = decide(request(pair, domain), ADMISSION)
    assert (decision.status, decision.reason, decision.name) == (REFUSED, reason, name)
    assert (decision.key, decision.domain, decision.address) == (pair.public, domain, "10.0.0.9")
    # No user: nothing that arrives could be taken for theirs.
    assert decision.reply() == [b"1.0", b"7", b"400", reason.encode(), b"", b""]


def test_without_keys_nobody_is_let_in() -> None:
    for domain in (CLIENTS, BUS):
        for pair in (ALICE, SERVICES, GATEWAY):
            assert decide(request(pair, domain), Admission()).status == REFUSED
    # An empty key is no match for a domain that has none.
    empty = [*request(ALICE, BUS)[:6], b""]
    assert decide(empty, Admission()).status == REFUSED


@pytest.mark.parametrize("mechanism", [b"", b"NULL", b"PLAIN", b"GSSAPI", b"curve", b"CURVE "])
def test_other_mechanisms_are_refused(mechanism: bytes) -> None:
    frames = request(ALICE)
    frames[5] = mechanism
    decision = decide(frames, ADMISSION)
    assert (decision.status, decision.reason) == (REFUSED, "mechanism")
    assert decision.reply()[1] == b"7"


@pytest.mark.parametrize(
    "key",
    [
        [],
        [b""],
        [z85.decode(ALICE.public)[:-1]],
        [z85.decode(ALICE.public) + b"\0"],
        [ALICE.public],
        [z85.decode(ALICE.public), b""],
        [z85.decode(ALICE.public), z85.decode(ALICE.public)],
    ],
)
def test_anything_but_one_key_is_refused(key: list[bytes]) -> None:
    decision = decide([*request(ALICE)[:6], *key], ADMISSION)
    assert (decision.status, decision.reason) == (REFUSED, "mechanism")


@pytest.mark.parametrize("frames", [request(ALICE)[:length] for length in range(6)])
def test_a_request_that_is_too_short_is_an_error(frames: list[bytes]) -> None:
    decision = decide(frames, ADMISSION)
    assert (decision.status, decision.reason) == (FAILED, "error")
    assert decision.reply()[1] == (b"7" if len(frames) > 1 else b"")


@pytest.mark.parametrize("version", [b"", b"1", b"1.1", b"2.0", b"1.0\0"])
def test_another_version_of_the_protocol_is_an_error(version: bytes) -> None:
    assert decide([version, *request(ALICE)[1:]], ADMISSION).status == FAILED


@given(st.lists(st.binary(max_size=40), max_size=9))
def test_garbage_gets_an_answer_and_is_never_let_in(frames: list[bytes]) -> None:
    decision = decide(frames, ADMISSION)
    assert decision.status in (REFUSED, FAILED)
    assert decision.reason in REASONS
    assert len(decision.reply()) == 6


@given(st.integers(0, 6), st.binary(max_size=40))
def test_a_damaged_request_lets_nobody_else_in(position: int, frame: bytes) -> None:
    frames = request(STRANGER)
    frames[position] = frame
    assert decide(frames, ADMISSION).status in (REFUSED, FAILED)


def test_an_error_inside_lets_nobody_in() -> None:
    class Broken(dict[bytes, Grant]):
        def get(self, *_: Any) -> Any:
            raise RuntimeError("broken")

    decision = decide(request(ALICE), Admission(SERVICES.public, Broken()))
    assert (decision.status, decision.reason, decision.request) == (FAILED, "error", b"7")
    not_bytes: Any = [b"1.0", b"7", None, b"", b"", b"CURVE", b""]
    assert decide(not_bytes, ADMISSION).status == FAILED


# The thread


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


class Log:
    """What the doorkeeper has told: one dictionary for each line."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.logger = logging.getLogger("test_zap")
        self.logger.propagate = False
        self.logger.setLevel(logging.DEBUG)
        formatter = JsonFormatter("test")
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(  # type: ignore[method-assign]
            json.loads(formatter.format(record))
        )
        self.logger.handlers = [handler]

    def said(self, message: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["message"] == message]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clients").mkdir()
    write(tmp_path, grant(ALICE, "alice"))
    write(tmp_path, grant(BOB, "bob", revoked=MADE))
    return tmp_path


def write(folder: Path, made: Grant) -> None:
    path = grant_path(folder, made.name)
    path.with_name(".new").write_text(grant_text(made))
    os.replace(path.with_name(".new"), path)


class House:
    """A context with a doorkeeper and a socket of each domain; `ask` tells who is let in."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path, log: Log) -> None:
        self.outside: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.clients: list[zmq.Socket[bytes]] = []
        self.refused: dict[str, int] = {}
        self.changes = 0
        self.log = log
        self.doorkeeper = Doorkeeper(
            context,
            Security(GATEWAY, SERVICES),
            folder,
            log.logger,
            self.refused,
            changed=self._changed,
        )
        self.doorkeeper.start()
        self.sockets: dict[str, zmq.Socket[bytes]] = {}
        self.endpoints: dict[str, str] = {}
        for domain, pair in ((CLIENTS, GATEWAY), (BUS, SERVICES)):
            socket = context.socket(zmq.ROUTER)
            secure_server(socket, pair, domain)
            socket.bind("tcp://127.0.0.1:*")
            self.sockets[domain] = socket
            endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
            assert isinstance(endpoint, bytes)
            self.endpoints[domain] = endpoint.rstrip(b"\0").decode()

    def _changed(self) -> None:
        self.changes += 1

    def connect(self, pair: KeyPair, domain: str = CLIENTS) -> zmq.Socket[bytes]:
        socket = self.outside.socket(zmq.DEALER)
        self.clients.append(socket)
        server = GATEWAY if domain == CLIENTS else SERVICES
        secure_client(socket, pair, server.public)
        socket.connect(self.endpoints[domain])
        # Who was refused already has no connection that would take it.
        with suppress(zmq.Again):
            socket.send(b"hello", zmq.NOBLOCK)
        return socket

    def let_in(self, pair: KeyPair, domain: str = CLIENTS) -> str:
        """The user of the message that arrived; a refusal is an error here."""
        self.connect(pair, domain)
        assert self.sockets[domain].poll(10_000), f"not let in: {self.refused}"
        self.sockets[domain].recv()
        frame = self.sockets[domain].recv(copy=False)
        assert frame.bytes == b"hello"
        return str(frame.get("User-Id"))

    def turned_away(self, pair: KeyPair, domain: str = CLIENTS) -> str:
        """The reason that was counted."""
        before = dict(self.refused)
        self.connect(pair, domain)
        eventually(lambda: self.refused != before, "a refusal was counted")
        assert not self.sockets[domain].poll(50)
        changed = [reason for reason in REASONS if self.refused[reason] != before[reason]]
        assert len(changed) == 1
        return changed[0]

    def close(self) -> None:
        for socket in (*self.clients, *self.sockets.values()):
            socket.close(linger=0)
        self.outside.term()
        self.doorkeeper.close()


@pytest.fixture
def house(
    context: zmq.Context[zmq.Socket[bytes]],
    folder: Path,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[House]:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    made = House(context, folder, log)
    yield made
    made.close()


def test_messages_tell_whose_they_are(house: House) -> None:
    assert house.let_in(ALICE) == ALICE.public.decode()
    assert house.let_in(GATEWAY) == GATEWAY.public.decode()
    assert house.let_in(SERVICES, BUS) == SERVICES.public.decode()
    assert house.refused == dict.fromkeys(REASONS, 0)


def test_refusals_are_counted_and_told_with_address_and_name(house: House) -> None:
    assert house.turned_away(STRANGER) == "unknown_key"
    assert house.turned_away(BOB) == "revoked_key"
    assert house.turned_away(ALICE, BUS) == "unknown_key"
    told = house.log.said("refused a connection")
    assert [(line["level"], line["reason"], line["socket"]) for line in told] == [
        ("warning", "unknown_key", "clients"),
        ("warning", "revoked_key", "clients"),
        ("warning", "unknown_key", "bus"),
    ]
    assert {line["address"] for line in told} == {"127.0.0.1"}
    assert told[0]["public"] == STRANGER.public.decode()
    assert "key" not in told[0]
    assert told[1]["key"] == "bob"
    text = json.dumps(house.log.lines)
    for pair in (GATEWAY, SERVICES, ALICE, BOB, STRANGER):
        assert pair.secret.decode() not in text


def test_a_flood_of_refusals_writes_few_lines(house: House) -> None:
    for _ in range(30):
        house.connect(STRANGER)
    eventually(lambda: house.refused["unknown_key"] == 30, "all were refused")
    assert len(house.log.said("refused a connection")) == 5
    # Those of another reason are told all the same.
    assert house.turned_away(BOB) == "revoked_key"
    assert len(house.log.said("refused a connection")) == 6


def test_a_new_grant_holds_without_a_restart(house: House, folder: Path) -> None:
    assert house.turned_away(STRANGER) == "unknown_key"
    write(folder, grant(STRANGER, "carol", Role.ADMIN))
    eventually(lambda: STRANGER.public in house.doorkeeper.grants, "the grant was read")
    assert house.let_in(STRANGER) == STRANGER.public.decode()
    assert house.doorkeeper.grants[STRANGER.public].role is Role.ADMIN
    eventually(lambda: house.changes == 1, "it was told once")


def test_what_was_revoked_or_removed_is_refused_without_a_restart(
    house: House, folder: Path
) -> None:
    house.let_in(ALICE)
    before = house.doorkeeper.grants
    write(folder, grant(ALICE, "alice", revoked=MADE))
    eventually(lambda: house.doorkeeper.grants[ALICE.public].revoked, "it was revoked")
    # Who has the mapping in his hands sees it whole.
    assert before[ALICE.public].revoked == ""
    assert house.turned_away(ALICE) == "revoked_key"
    grant_path(folder, "bob").unlink()
    eventually(lambda: BOB.public not in house.doorkeeper.grants, "it was removed")
    assert house.turned_away(BOB) == "unknown_key"
    assert len(house.log.said("the grants of clients have changed")) == 2


def test_a_change_in_place_is_seen(house: House, folder: Path) -> None:
    path = grant_path(folder, "alice")
    path.write_text(grant_text(grant(ALICE, "alice", Role.READ)))
    eventually(lambda: house.doorkeeper.grants[ALICE.public].role is Role.READ, "it was read")


def test_two_changes_within_a_tick_of_the_clock_are_both_seen(
    house: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the file's times and size did not tell the second change from the first.
    frozen = object()
    monkeypatch.setattr(module, "_look", lambda _: frozen)
    house.doorkeeper._settled = False
    read: list[float] = []
    really = module.good_grants

    def reading(of: Path) -> Any:
        if not read:
            found = really(of)
            write(folder, grant(ALICE, "alice", revoked=MADE))
        else:
            found = really(of)
        read.append(time.monotonic())
        return found

    monkeypatch.setattr(module, "good_grants", reading)
    eventually(lambda: house.doorkeeper.grants[ALICE.public].revoked, "the second was seen")


def test_damage_of_one_grant_locks_out_its_client_alone(house: House, folder: Path) -> None:
    grant_path(folder, "alice").write_text("role = ")
    eventually(lambda: ALICE.public not in house.doorkeeper.grants, "it is not used")
    assert house.turned_away(ALICE) == "unknown_key"
    write(folder, grant(STRANGER, "carol"))
    eventually(lambda: STRANGER.public in house.doorkeeper.grants, "others are still read")
    house.let_in(STRANGER)
    assert house.turned_away(BOB) == "revoked_key"
    told = house.log.said("a grant cannot be used, its client is locked out")
    # Once, not at every look.
    assert len(told) == 1
    assert told[0]["level"] == "error"
    assert "alice.toml is not valid TOML" in told[0]["reason"]
    write(folder, grant(ALICE, "alice"))
    eventually(lambda: ALICE.public in house.doorkeeper.grants, "it is good again")
    house.let_in(ALICE)


def test_a_key_in_two_grants_counts_in_neither(house: House, folder: Path) -> None:
    # One of them may be revoked later, and must not live on in the other.
    write(folder, grant(ALICE, "alice-too"))
    eventually(lambda: ALICE.public not in house.doorkeeper.grants, "it is not used")
    assert house.turned_away(ALICE) == "unknown_key"


def test_a_link_that_leads_nowhere_hides_no_change(house: House, folder: Path) -> None:
    grant_path(folder, "dangling").symlink_to(folder / "nowhere")
    eventually(lambda: house.log.said("a grant cannot be used, its client is locked out"), "told")
    write(folder, grant(ALICE, "alice", revoked=MADE))
    eventually(lambda: house.doorkeeper.grants[ALICE.public].revoked, "it was revoked")


def test_without_the_folder_only_the_gateways_own_key_is_good(house: House, folder: Path) -> None:
    (folder / "clients").rename(folder / "away")
    eventually(lambda: set(house.doorkeeper.grants) == {GATEWAY.public}, "nobody else is")
    assert house.turned_away(ALICE) == "unknown_key"
    house.let_in(GATEWAY)
    house.let_in(SERVICES, BUS)
    (folder / "away").rename(folder / "clients")
    eventually(lambda: ALICE.public in house.doorkeeper.grants, "they are back")


@pytest.mark.parametrize("function", ["good_grants", "_look"])
def test_a_folder_that_cannot_be_read_lets_nobody_in(
    house: House, folder: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def fails(_: Path) -> Any:
        raise PermissionError("no")

    with monkeypatch.context() as patch:
        patch.setattr(module, function, fails)
        write(folder, grant(ALICE, "alice", Role.ADMIN))
        eventually(lambda: set(house.doorkeeper.grants) == {GATEWAY.public}, "nobody is")
        assert house.turned_away(ALICE) == "unknown_key"
        house.let_in(GATEWAY)
    message = "the grants cannot be read, all clients are locked out"
    assert 1 <= len(house.log.said(message)) <= 6
    eventually(lambda: ALICE.public in house.doorkeeper.grants, "they are read again")
    house.let_in(ALICE)


def test_an_error_in_a_decision_is_answered_and_the_next_is_given(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: bytes) -> Any:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(z85, "encode", fails)
        assert house.turned_away(ALICE) == "error"
    house.let_in(ALICE)


def test_an_error_in_the_thread_ends_it_not(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Doorkeeper, __: list[bytes]) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patch:
        patch.setattr(Doorkeeper, "_answer", fails)
        house.connect(ALICE)
        message = "a handshake could not be judged, and was refused"
        eventually(lambda: house.log.said(message), "it was told")
        assert not house.sockets[CLIENTS].poll(50)
    assert "RuntimeError: broken" in house.log.said(message)[0]["exception"]
    house.let_in(ALICE)


def test_grants_that_cannot_be_looked_at_count_no_more_after_a_while(
    house: House, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(_: Path) -> object:
        hangs.set()
        goes_on.wait(60)
        return None

    assert house.doorkeeper.trusted(time.monotonic()) == house.doorkeeper.grants
    monkeypatch.setattr(module, "_look", hang)
    assert hangs.wait(30)
    try:
        now = time.monotonic()
        house.doorkeeper.trusted(now)
        # A pause of the whole process is no reason: the thread stood still, too.
        now += 3_600
        assert ALICE.public in house.doorkeeper.trusted(now)
        for _ in range(int(module.TRUST_SECONDS)):
            now += 1
            grants = house.doorkeeper.trusted(now)
        assert grants == {}
    finally:
        goes_on.set()
    eventually(lambda: house.doorkeeper.trusted(now), "they are looked at again")


def test_nobody_is_let_in_without_the_thread(house: House) -> None:
    house.let_in(ALICE)
    house.doorkeeper.close()
    house.doorkeeper.close()
    house.connect(ALICE)
    house.connect(SERVICES, BUS)
    assert not house.sockets[CLIENTS].poll(200)
    assert not house.sockets[BUS].poll(0)
    assert "zap" not in {thread.name for thread in threading.enumerate()}


def test_a_damaged_grant_stops_the_start(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path, log: Log
) -> None:
    grant_path(folder, "alice").write_text("role = ")
    doorkeeper = Doorkeeper(context, Security(GATEWAY), folder, log.logger, {})
    with pytest.raises(KeyFileError, match=r"alice\.toml is not valid TOML"):
        doorkeeper.start()
    doorkeeper.close()


def test_a_service_that_is_not_the_gateway_reads_no_grants(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, log: Log
) -> None:
    doorkeeper = Doorkeeper(context, Security(bus=SERVICES), tmp_path / "nowhere", log.logger, {})
    doorkeeper.start()
    assert doorkeeper.grants == {}
    doorkeeper.close()


def test_a_grant_for_the_gateways_own_key_changes_nothing(
    context: zmq.Context[zmq.Socket[bytes]], folder: Path, log: Log
) -> None:
    write(folder, replace(grant(GATEWAY, "mallory"), role=Role.ADMIN))
    doorkeeper = Doorkeeper(context, Security(GATEWAY), folder, log.logger, {})
    doorkeeper.start()
    assert doorkeeper.grants[GATEWAY.public] == module.gateway_grant(GATEWAY)
    assert doorkeeper.grants[GATEWAY.public].role is Role.READ
    doorkeeper.close()
