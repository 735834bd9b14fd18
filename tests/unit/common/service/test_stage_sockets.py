"""What a stage binds, connects to and closes, and to whom what is read and written goes."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tallybus.common.bus.handshakes import BAD_HANDSHAKE, NO_ENCRYPTION
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
    TOPIC_STATUS,
    ClockQuery,
    StageStatus,
    encode,
)
from tallybus.common.bus.sockets import Context, new_context
from tallybus.common.security.doorkeeper import REASONS
from tallybus.common.security.keys import KeyFileError, Role
from tallybus.common.service import stage_sockets as module
from tallybus.common.service.outbox import Outbox
from tallybus.common.service.stage_sockets import StageSockets
from tallybus.common.settings.sections import Settings, load
from tallybus.keyring import Keyring

LOG = logging.getLogger("test_stage_sockets")
STATUS = StageStatus(stage="wal", term=1, incarnation=2, index=3, next=4, durable=3)
QUERY = ClockQuery(query=7)


class Loop:
    """Notes what it is to read, with which handler, and what it is to wait for."""

    def __init__(self) -> None:
        self.inputs: list[tuple[Any, str, Callable[[], bool], int]] = []
        self.outputs: list[Any] = []
        self.wakes = 0

    def read(
        self,
        port: Any,
        handle: str,
        wanted: Callable[[], bool] = lambda: True,
        most: int = 64,
    ) -> None:
        self.inputs.append((port, handle, wanted, most))

    def write(self, output: Any) -> None:
        self.outputs.append(output)

    def wake(self) -> None:
        self.wakes += 1

    def port(self, handler: str) -> Any:
        """The socket whose messages go to this handler."""
        (found,) = (port for port, handle, _, _ in self.inputs if handle == handler)
        return found


INBOX: Any = SimpleNamespace(data="data", control="control", reply="reply", broadcast="broadcast")


class Stage:
    """Sockets of a stage, with what they are handed to."""

    def __init__(self, settings: Settings, stage: str, context: Any) -> None:
        self.loop = Loop()
        self.outbox = Outbox(LOG)
        self.sockets = StageSockets(
            settings,
            stage,
            context,
            self.loop,  # type: ignore[arg-type]
            INBOX,
            self.outbox,
        )


# What is opened: without a socket


class Bus:
    """Says of each socket what it is for."""

    def __init__(self, *_: object) -> None:
        self.opened: list[str] = []

    def __getattr__(self, kind: str) -> Callable[..., str]:
        def make(where: Any, *_: object) -> str:
            self.opened.append(f"{kind} {where if isinstance(where, str) else ','.join(where)}")
            return self.opened[-1]

        return make


@pytest.fixture
def stage(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "Bus", Bus)
    return Stage(settings, "transactor", None)


def test_a_stage_binds_its_own_and_connects_to_its_successor(stage: Any) -> None:
    stage.sockets.open_stage(successor="wal")
    bus, loop, outbox = stage.sockets.bus, stage.loop, stage.outbox
    assert bus.opened == ["publisher transactor", "router transactor", "push wal", "dealer wal"]
    assert [(port, handle) for port, handle, _, _ in loop.inputs] == [
        ("router transactor", "control"),
        ("dealer wal", "reply"),
    ]
    assert outbox.publisher == "publisher transactor"
    assert outbox.control == "router transactor"
    assert outbox.questions == "dealer wal"
    assert outbox.successor.port == "push wal"
    assert loop.outputs == [outbox.successor]


def test_who_says_no_hello_connects_for_batches_alone(stage: Any) -> None:
    stage.sockets.open_stage(successor="wal", hello=False)
    assert "dealer wal" not in stage.sockets.bus.opened
    assert stage.outbox.questions is None
    assert stage.outbox.successor.port == "push wal"


def test_the_last_stage_connects_to_nobody(stage: Any) -> None:
    stage.sockets.open_stage(successor=None)
    assert stage.sockets.bus.opened == ["publisher transactor", "router transactor"]
    assert stage.outbox.successor is None
    assert stage.loop.outputs == []


def test_a_stage_that_spoke_while_it_recovered_goes_on_speaking_there(stage: Any) -> None:
    stage.sockets.open_publisher()
    stage.sockets.open_stage(successor="wal")
    assert stage.sockets.bus.opened.count("publisher transactor") == 1


def test_batches_are_read_while_they_are_wanted_and_broadcasts_always(stage: Any) -> None:
    room = [False]
    stage.sockets.subscribe(["wal", "snapshotter"], [TOPIC_STATUS])
    stage.sockets.open_data(lambda: room[0], most=8)
    (sub, heard, always, _), (pull, taken, wanted, most) = stage.loop.inputs
    assert (sub, heard, always()) == ("subscriber wal,snapshotter", "broadcast", True)
    assert (pull, taken, wanted(), most) == ("pull transactor", "data", False, 8)
    room[0] = True
    assert wanted()


# What goes through them


@pytest.fixture
def context() -> Iterator[Context]:
    made = new_context()
    yield made
    made.destroy(linger=0)


def received(port: Any) -> list[bytes]:
    limit = time.monotonic() + 30
    while (frames := port.receive()) is None:
        assert time.monotonic() < limit, "nothing came"
        time.sleep(0.001)
    return [bytes(frame) for frame in frames]


def test_neighbours_reach_each_other(tmp_path: Path, context: Context) -> None:
    """Over what the settings say, here inside of a process."""
    chosen = {"ledger.data": tmp_path, "bus.transport": "inproc", "bus.inproc_name": "neighbours"}
    settings = load(environ={}, overrides=chosen)
    wal, transactor = Stage(settings, "wal", context), Stage(settings, "transactor", context)
    wal.sockets.open_stage(successor=None)
    wal.sockets.open_data()
    transactor.sockets.open_stage(successor="wal")
    transactor.sockets.subscribe(["wal"], [TOPIC_ACKNOWLEDGE])

    assert transactor.outbox.successor is not None
    assert transactor.outbox.successor.port.send(encode(QUERY))
    assert received(wal.loop.port("data")) == list(encode(QUERY))

    assert transactor.outbox.questions is not None
    assert transactor.outbox.questions.send(encode(QUERY))
    peer, *question = received(wal.loop.port("control"))
    assert question == list(encode(QUERY))
    assert wal.outbox.control is not None
    assert wal.outbox.control.send_to(peer, encode(STATUS))
    assert received(transactor.loop.port("reply")) == list(encode(STATUS))

    wal.outbox.broadcast(TOPIC_STATUS, STATUS)  # nobody has asked for it
    wal.outbox.broadcast(TOPIC_ACKNOWLEDGE, STATUS)
    assert received(transactor.loop.port("broadcast")) == [TOPIC_ACKNOWLEDGE, *encode(STATUS)]
    for each in (wal, transactor):
        each.sockets.close()
        each.sockets.close()


def test_after_the_end_another_one_may_listen_there(settings: Settings, context: Context) -> None:
    folder = settings.ledger.data / "run"
    folder.mkdir(parents=True, mode=0o700)
    for _ in range(2):
        made = Stage(settings, "wal", context)
        made.sockets.open_stage(successor=None)
        assert sorted(path.name for path in made.sockets.bus.socket_files) == [
            "wal.control",
            "wal.index",
        ]
        made.sockets.close()
        assert list(folder.glob("wal.*")) == []


# Who is let in


def with_keys(folder: Path, **overrides: object) -> Settings:
    keys = folder / "keys"
    Keyring(keys).create("ops", Role.SUBMIT, {}, lambda _: None)
    chosen = {"ledger.data": folder / "data", "security.keys": keys}
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return load(environ={}, overrides={**chosen, **named})


def test_without_keys_nobody_is_asked_who_he_is(settings: Settings, context: Context) -> None:
    made, refused = Stage(settings, "wal", context), dict[str, int]()
    made.sockets.secure(settings, refused, LOG)
    assert (made.sockets.bus.security, made.sockets.doorkeeper, refused) == (None, None, {})


@pytest.mark.parametrize(
    ("stage", "transport", "listens"),
    [("wal", "tcp", True), ("wal", "ipc", False), ("gateway", "ipc", True)],
)
def test_who_listens_over_tcp_judges_keys_and_counts_from_nought(
    tmp_path: Path, context: Context, stage: str, transport: str, listens: bool
) -> None:
    settings = with_keys(tmp_path, bus__transport=transport, gateway__endpoint="tcp://[::1]:5550")
    made, refused = Stage(settings, stage, context), dict[str, int]()
    made.sockets.secure(settings, refused, LOG)
    try:
        assert made.sockets.bus.security is not None
        assert (made.sockets.doorkeeper is not None) == listens
        counted = {NO_ENCRYPTION, BAD_HANDSHAKE, *REASONS} if listens else set()
        assert refused == dict.fromkeys(counted, 0)
    finally:
        made.sockets.close()
    assert made.sockets.doorkeeper is None


def test_keys_that_cannot_be_read_open_nothing(tmp_path: Path, context: Context) -> None:
    settings = with_keys(tmp_path, bus__transport="tcp")
    (tmp_path / "keys" / "bus.key").unlink()
    made = Stage(settings, "wal", context)
    with pytest.raises(KeyFileError):
        made.sockets.secure(settings, {}, LOG)
    assert made.sockets.doorkeeper is None
