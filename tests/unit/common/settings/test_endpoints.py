"""Endpoints as text: one meaning for all processes, and the addresses that a host stands for."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.settings import endpoints
from tallybus.common.settings.endpoints import (
    MAX_IPC_PATH_BYTES,
    Place,
    absolute,
    fixed,
    host_and_port,
    plain_host,
    reached_at,
    shown,
    socket_path,
    to_connect,
    to_listen,
    with_brackets,
    without_brackets,
)
from tallybus.common.settings.sections import (
    Settings,
    endpoint,
    load,
    metrics_address,
    page_address,
)


@pytest.mark.parametrize(
    ("given_text", "name"),
    [
        ("ipc://gw.sock", "gw.sock"),
        ("ipc://./gw.sock", "gw.sock"),
        ("ipc://././gw.sock", "gw.sock"),
        ("ipc://sub/../gw.sock", "gw.sock"),
        ("ipc://sub//gw.sock", "sub/gw.sock"),
        ("ipc://link/gw.sock", "sub/gw.sock"),
        ("ipc://link/../gw.sock", "gw.sock"),
    ],
)
def test_relative_paths_are_the_same_file_wherever_a_process_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_text: str, name: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub")
    monkeypatch.chdir(tmp_path)
    found = absolute(given_text)
    assert found == f"ipc://{Path(os.path.realpath(tmp_path)) / name}"
    assert absolute(found) == found
    assert fixed(given_text) in (found, given_text)


@pytest.mark.parametrize(
    "text",
    ["ipc:///run/x", "ipc://@abstract", "ipc://*", "ipc://", "tcp://h:1", "inproc://a", "", "ipc:"],
)
def test_what_is_no_relative_path_stays_as_it_is(text: str) -> None:
    assert absolute(text) == fixed(text) == text


def test_a_folder_that_is_gone_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(ValueError, match="the working directory, which is gone"):
        absolute("ipc://gw.sock")
    assert fixed("ipc://gw.sock") == "ipc://gw.sock"


def test_who_connects_takes_a_path_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * MAX_IPC_PATH_BYTES)
    deep.mkdir()
    monkeypatch.chdir(deep)
    assert fixed("ipc://gw.sock") == "ipc://gw.sock"


def test_settings_hold_endpoints_that_do_not_depend_on_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(
        environ={},
        overrides={"gateway.endpoint": "ipc://gw.sock", "bus.wal_data": "ipc://./run/wal"},
    )
    variables = settings.to_environment()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    passed_on = load(environ=variables)
    for each in (settings, passed_on):
        assert each.gateway.endpoint == f"ipc://{os.path.realpath(tmp_path)}/gw.sock"
        assert endpoint(each, "wal", "data") == f"ipc://{os.path.realpath(tmp_path)}/run/wal"
    assert passed_on.ledger.data == tmp_path / "data"


def test_files_of_sockets_are_known() -> None:
    assert socket_path("ipc:///run/x") == Path("/run/x")
    for text in ("ipc://@x", "ipc://*", "ipc://", "tcp://h:1"):
        assert socket_path(text) is None


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("tcp://[::1]:5", "::1"),
        ("tcp://::1:5", "::1"),
        ("tcp://[fe80::1%eth0]:5", "fe80::1%eth0"),
        ("tcp://10.0.0.1:5", "10.0.0.1"),
        ("tcp://a.example:5", "a.example"),
        ("tcp://*:5", "*"),
    ],
)
def test_hosts_come_without_brackets(text: str, host: str) -> None:
    assert host_and_port(text) == (host, "5")


@given(st.ip_addresses().map(str))
def test_brackets_stand_around_ipv6_alone(host: str) -> None:
    assert without_brackets(with_brackets(host)) == host
    assert with_brackets(with_brackets(host)) == with_brackets(host)
    assert with_brackets(host).startswith("[") == (":" in host)
    assert host_and_port(f"tcp://{shown((host, 7))}") == (host, "7")


def test_addresses_that_wrap_one_of_ipv4_are_told_as_that() -> None:
    assert plain_host("::ffff:10.1.2.3") == "10.1.2.3"
    for host in ("::1", "fd00::2", "10.1.2.3", "name", "fe80::1%eth0"):
        assert plain_host(host) == host


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("tcp://127.0.0.1:5", Place("tcp://127.0.0.1:5", ipv6=False)),
        ("tcp://0.0.0.0:5", Place("tcp://0.0.0.0:5", ipv6=False)),
        ("tcp://[::1]:5", Place("tcp://[::1]:5", ipv6=True)),
        ("tcp://::1:5", Place("tcp://[::1]:5", ipv6=True)),
        ("tcp://[::]:5", Place("tcp://[::]:5", ipv6=True)),
        ("tcp://*:5", Place("tcp://*:5", ipv6=True)),
        ("tcp://[fe80::1%eth0]:5", Place("tcp://[fe80::1%eth0]:5", ipv6=True)),
        ("tcp://[::ffff:127.0.0.1]:5", Place("tcp://127.0.0.1:5", ipv6=False)),
        ("ipc:///run/x", Place("ipc:///run/x", ipv6=False)),
        ("inproc://x", Place("inproc://x", ipv6=False)),
    ],
)
def test_an_address_is_one_place(text: str, place: Place) -> None:
    assert to_connect(text) == to_listen(text) == (place,)


@pytest.mark.parametrize("text", ["tcp://localhost:5", "tcp://LOCALHOST:5"])
def test_localhost_is_both_loopback_addresses_whatever_the_table_of_names_says(text: str) -> None:
    both = {Place("tcp://127.0.0.1:5", ipv6=False), Place("tcp://[::1]:5", ipv6=True)}
    assert set(to_connect(text)) == set(to_listen(text)) == both


def test_a_name_is_looked_for_in_both_families_and_listened_on_at_all_its_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert name == "ledger.example"
        hosts = ["10.0.0.1", "fd00::2", "10.0.0.1", "::ffff:10.0.0.1"]
        return [(0, 0, 0, "", (host, 0)) for host in hosts]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    text = "tcp://ledger.example:5"
    assert to_connect(text) == (Place(text, ipv6=False), Place(text, ipv6=True))
    assert to_listen(text) == (
        Place("tcp://[fd00::2]:5", ipv6=True),
        Place("tcp://10.0.0.1:5", ipv6=False),
    )


def test_interfaces_and_unknown_names_are_left_to_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(*_: object, **__: object) -> object:
        raise OSError("no such name")

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    for host in ("lo", "nowhere.invalid"):
        text = f"tcp://{host}:5"
        assert to_listen(text) == (Place(text, ipv6=False),)


@pytest.mark.parametrize("text", ["tcp://", "tcp://:", "tcp://x", "tcp://[::1", "tcp://[]:5", "x"])
def test_no_text_whatever_is_an_error_of_ours(text: str) -> None:
    assert to_connect(text)
    assert endpoints.absolute(text) == text


@pytest.mark.parametrize(
    ("listens", "reached"),
    [
        ("tcp://*:5", "tcp://127.0.0.1:5"),
        ("tcp://0.0.0.0:5", "tcp://127.0.0.1:5"),
        ("tcp://lo:5", "tcp://127.0.0.1:5"),
        ("tcp://[::]:5", "tcp://[::1]:5"),
        ("tcp://:::5", "tcp://[::1]:5"),
        ("tcp://[fd00::2]:5", "tcp://[fd00::2]:5"),
        ("ipc:///run/x", "ipc:///run/x"),
    ],
)
def test_what_listens_everywhere_is_reached_on_loopback(listens: str, reached: str) -> None:
    assert reached_at(listens) == reached


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_hosts_are_taken_with_and_without_brackets(host: str) -> None:
    settings: Settings = load(
        environ={},
        overrides={"bus.transport": "tcp", "bus.host": host, "metrics.address": host},
    )
    assert endpoint(settings, "wal", "data") == "tcp://[::1]:5566"
    assert metrics_address(settings, "wal") == ("::1", 9466)
    page = load(environ={}, overrides={"gateway.page": "[::1]:5580"})
    assert page_address(page) == ("::1", 5580)
