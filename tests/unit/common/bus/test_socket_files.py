"""Sockets with files: made again when they are removed, refused where they cannot be, any name."""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from tallybus.common.bus.sockets import (
    Bus,
    BusLimits,
    Context,
    EndpointTaken,
    EndpointUnusable,
    EndpointWrong,
    Port,
    new_context,
)
from tallybus.common.errors import EXIT_BUSY, EXIT_SETTINGS

MakeBus = Callable[[Path], Bus]


@pytest.fixture
def context() -> Iterator[Context]:
    made = new_context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def make_bus(context: Context) -> Iterator[MakeBus]:
    made: list[Bus] = []

    def make(folder: Path) -> Bus:
        made.append(
            Bus(context, lambda stage, name, _: f"ipc://{folder}/{stage}.{name}", BusLimits())
        )
        return made[-1]

    yield make
    for bus in made:
        bus.close()


def arrives(sender: Port, receiver: Port, text: bytes) -> bool:
    limit = time.monotonic() + 20
    while not sender.send([text]):
        assert time.monotonic() < limit
        time.sleep(0.001)
    while (frames := receiver.receive()) is None:
        assert time.monotonic() < limit
        time.sleep(0.001)
    return frames == [text]


def test_files_of_sockets_that_are_removed_are_made_again_and_connections_live_on(
    tmp_path: Path, make_bus: MakeBus
) -> None:
    bus = make_bus(tmp_path)
    receiver, early = bus.pull("wal"), bus.push("wal")
    assert arrives(early, receiver, b"before")
    [path] = bus.socket_files
    assert not bus.lost_files()
    path.unlink()
    assert bus.lost_files()
    assert arrives(early, receiver, b"meanwhile")
    bus.listen_again()
    assert not bus.lost_files()
    assert bus.socket_files == [path]
    assert arrives(bus.push("wal"), receiver, b"after")
    assert arrives(early, receiver, b"as ever")


def test_a_socket_whose_place_another_has_taken_is_not_taken_back(
    tmp_path: Path, make_bus: MakeBus
) -> None:
    one, two = make_bus(tmp_path), make_bus(tmp_path)
    one.pull("wal")
    (tmp_path / "wal.data").unlink()
    (tmp_path / ".wal.data.lock").unlink()
    two.pull("wal")
    with pytest.raises(EndpointTaken) as caught:
        one.listen_again()
    assert caught.value.exit_code == EXIT_BUSY
    assert one.socket_files == [], "the file is not its own any more, and stays"
    assert two.socket_files == [tmp_path / "wal.data"]


def test_a_folder_that_is_gone_can_be_tried_again(tmp_path: Path, make_bus: MakeBus) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    bus = make_bus(folder)
    receiver = bus.pull("wal")
    shutil.rmtree(folder)
    for _ in range(2):
        with pytest.raises(EndpointUnusable):
            bus.listen_again()
    folder.mkdir()
    bus.listen_again()
    assert arrives(bus.push("wal"), receiver, b"again")


@pytest.mark.parametrize("name", [b"d\xff", b"d\xc3\xa9", b"a b%41{stage}"])
def test_a_folder_may_have_any_name(name: bytes, tmp_path: Path, make_bus: MakeBus) -> None:
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    bus = make_bus(folder)
    receiver = bus.pull("wal")
    assert sorted(os.listdir(os.fsencode(folder))) == [b".wal.data.lock", b"wal.data"]
    assert receiver.endpoint == f"ipc://{folder}/wal.data"
    assert arrives(bus.push("wal"), receiver, b"x")


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://192.0.2.1:5550",
        "tcp://no-such-host.invalid:5550",
        "ipc:///no/such/folder/x",
        os.fsdecode(b"ipc:///no/such/\xff/x"),
        "ipc:///dev/null/x",
        "ipc:///proc/x",
    ],
)
def test_where_nothing_can_ever_listen_is_a_wrong_setting(
    endpoint: str, make_bus: MakeBus, tmp_path: Path
) -> None:
    with pytest.raises(EndpointWrong) as caught:
        make_bus(tmp_path).clients(endpoint, 1000)
    assert caught.value.exit_code == EXIT_SETTINGS
    assert not caught.value.restart
    assert endpoint in str(caught.value)
    assert str(caught.value).endswith("correct gateway.endpoint")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EADDRINUSE])
def test_a_port_below_1024_is_a_wrong_setting_and_a_taken_one_may_pass(
    number: int, make_bus: MakeBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise zmq.ZMQError(number)

    monkeypatch.setattr(zmq.Socket, "bind", refuse)
    with pytest.raises(EndpointUnusable) as caught:
        make_bus(tmp_path).clients("tcp://127.0.0.1:80", 1000)
    assert isinstance(caught.value, EndpointWrong) == (number == errno.EACCES)
    assert os.strerror(number) in str(caught.value)
