"""Addresses: which of them only this machine reaches, and what is refused without keys."""

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.errors import EXIT_SETTINGS, FINAL_EXIT_CODES
from tallybus.common.security.exposure import (
    ExposedAddress,
    check,
    endpoint_is_loopback,
    listeners,
)
from tallybus.common.settings.endpoints import is_loopback
from tallybus.common.settings.sections import SOCKETS, Settings, load
from tallybus.common.stages import SERVICES, STAGES

LOOPBACK = [
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.255",
    "localhost",
    "LOCALHOST",
    "::1",
    "0:0:0:0:0:0:0:1",
    "0000:0000:0000:0000:0000:0000:0000:0001",
    "::1%lo",
    # Sockets are told the IPv4 address in it, whatever the system makes of such a one.
    "::ffff:127.0.0.1",
    "::FFFF:7f00:1",
]
EXPOSED = [
    "",
    "*",
    "0",
    "0.0.0.0",
    "::",
    "0:0:0:0:0:0:0:0",
    "::0",
    "128.0.0.1",
    "126.255.255.255",
    "10.0.0.1",
    "192.168.1.1",
    "169.254.1.1",
    "::2",
    "fe80::1",
    "fe80::1%lo",
    "fd00::1",
    "2001:db8::1",
    "::ffff:10.0.0.1",
    "::ffff:0.0.0.0",
    "::127.0.0.1",
    # Forms of loopback addresses that others may read otherwise: not surely this machine.
    "127.1",
    "127.0.0.01",
    "0177.0.0.1",
    "2130706433",
    "0x7f000001",
    "127.0.0.1%lo",
    "127.0.0.1/8",
    "127.0.0.1;10.0.0.1",
    "10.0.0.1;127.0.0.1",
    "127.0.0.1 ",
    " 127.0.0.1",
    "１２７.0.0.1",
    # Names.
    "localhost.",
    "localhost.localdomain",
    "localhost.example",
    "my-host",
    "gateway",
    "127.0.0.1.example",
    "eth0",
    "docker0",
    "wg0",
    "lo0",
    "lo:1",
    "loopback",
]


def settings(**overrides: object) -> Settings:
    return load(
        environ={},
        overrides={name.replace("__", "."): value for name, value in overrides.items()},
        overrides_origin="test",
    )


def refused(chosen: Settings, *services: str) -> ExposedAddress:
    with pytest.raises(ExposedAddress) as caught:
        check(chosen, services or SERVICES)
    return caught.value


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_addresses_are_known(host: str) -> None:
    assert is_loopback(host)
    assert endpoint_is_loopback(f"tcp://{host}:5550")
    assert endpoint_is_loopback(f"tcp://[{host}]:5550")


@pytest.mark.parametrize("host", EXPOSED)
def test_every_other_address_counts_as_reachable(host: str) -> None:
    assert not is_loopback(host)
    assert not endpoint_is_loopback(f"tcp://{host}:5550")
    assert not endpoint_is_loopback(f"tcp://[{host}]:5550")


def test_the_loopback_interface_is_one_only_where_interfaces_may_be_named() -> None:
    assert endpoint_is_loopback("tcp://lo:5550")
    # Elsewhere it would be the name of a host.
    assert not is_loopback("lo")


@given(st.ip_addresses(v=4))
def test_of_ipv4_just_127_is_loopback(address: ipaddress.IPv4Address) -> None:
    assert is_loopback(str(address)) == str(address).startswith("127.")


@given(st.ip_addresses(v=6))
def test_of_ipv6_just_one_address_is_loopback(address: ipaddress.IPv6Address) -> None:
    wrapped = int(address) >> 24 == 0xFFFF_7F
    assert is_loopback(str(address)) == (address.compressed == "::1" or wrapped)


def test_defaults_listen_nowhere_else() -> None:
    check(Settings())
    assert [(each.part, each.address) for each in listeners(Settings())] == [
        ("clients", "tcp://127.0.0.1:5550")
    ]


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "10.0.0.1", "eth0", "ledger.example"])
def test_the_gateway_needs_keys_beyond_this_machine(host: str) -> None:
    endpoint = f"tcp://{host}:5550"
    error = refused(settings(gateway__endpoint=endpoint))
    assert (error.service, error.part, error.address) == ("gateway", "clients", endpoint)
    assert error.setting == "gateway.endpoint"
    assert error.exit_code == EXIT_SETTINGS
    assert error.exit_code in FINAL_EXIT_CODES
    assert not error.restart
    for words in (endpoint, "tallybus keys create", "security.keys", "127.0.0.1", "`clients`"):
        assert words in str(error)


@pytest.mark.parametrize("endpoint", ["ipc:///tmp/x", "inproc://x", "tcp://127.0.0.1:5550"])
def test_what_only_this_machine_reaches_needs_none(endpoint: str) -> None:
    check(settings(gateway__endpoint=endpoint))


def test_keys_protect_clients_and_services(tmp_path: Path) -> None:
    check(
        settings(
            gateway__endpoint="tcp://0.0.0.0:5550",
            bus__transport="tcp",
            bus__bind_host="0.0.0.0",
            security__keys=tmp_path,
        )
    )


@pytest.mark.parametrize(
    ("overrides", "part", "setting"),
    [
        ({"metrics__address": "0.0.0.0"}, "metrics", "metrics.address"),
        ({"metrics__address": "lo"}, "metrics", "metrics.address"),
        ({"gateway__page": "0.0.0.0:5580"}, "page", "gateway.page"),
        ({"gateway__page": "[::]:5580"}, "page", "gateway.page"),
    ],
)
def test_keys_do_not_protect_what_has_none(
    tmp_path: Path, overrides: dict[str, object], part: str, setting: str
) -> None:
    error = refused(settings(**overrides, security__keys=tmp_path))
    assert (error.part, error.setting) == (part, setting)
    assert "keys create" not in str(error)
    check(settings(**overrides, security__unprotected=part))


@pytest.mark.parametrize(
    "overrides",
    [
        {"metrics__address": "127.0.0.1"},
        {"metrics__address": "::1"},
        {"gateway__page": "127.0.0.1:5580"},
        {"gateway__page": "[::1]:5580"},
        {"gateway__page": "localhost:5580"},
    ],
)
def test_metrics_and_page_may_listen_on_this_machine(overrides: dict[str, object]) -> None:
    check(settings(**overrides))


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        ({"bus__transport": "tcp", "bus__host": "10.0.0.1"}, "bus.host"),
        ({"bus__transport": "tcp", "bus__host": "{stage}"}, "bus.host"),
        ({"bus__transport": "tcp", "bus__bind_host": "0.0.0.0"}, "bus.bind_host"),
    ],
)
def test_services_need_keys_beyond_this_machine(overrides: dict[str, object], setting: str) -> None:
    chosen = settings(**overrides)
    assert refused(chosen).setting == setting
    for stage in STAGES:
        error = refused(chosen, stage)
        assert (error.service, error.part) == (stage, "bus")
    # It only connects to them.
    check(chosen, ["gateway"])
    check(settings(**overrides, security__unprotected="bus"))


def test_where_services_listen_counts_and_not_where_they_are_reached() -> None:
    check(settings(bus__transport="tcp", bus__host="10.0.0.1", bus__bind_host="127.0.0.1"))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("socket", SOCKETS)
def test_every_explicit_endpoint_is_looked_at(stage: str, socket: str) -> None:
    chosen = settings(**{f"bus__{stage}_{socket}": "tcp://0.0.0.0:7000"})
    error = refused(chosen)
    assert (error.service, error.setting) == (stage, f"bus.{stage}_{socket}")
    check(chosen, [name for name in SERVICES if name != stage])


def test_what_is_named_is_let_be_and_nothing_else() -> None:
    everything: dict[str, object] = {
        "gateway__endpoint": "tcp://0.0.0.0:5550",
        "gateway__page": "0.0.0.0:5580",
        "bus__transport": "tcp",
        "bus__bind_host": "0.0.0.0",
        "metrics__address": "0.0.0.0",
    }
    parts = ["clients", "bus", "metrics", "page"]
    check(settings(**everything, security__unprotected=", ".join(parts)))
    for missing in parts:
        named = [part for part in parts if part != missing]
        chosen = settings(**everything, security__unprotected=",".join(named))
        assert refused(chosen).part == missing


def test_an_embedded_ledger_listens_nowhere() -> None:
    chosen = settings(
        bus__transport="inproc",
        gateway__endpoint="inproc://x",
        gateway__page="0.0.0.0:5580",
        metrics__address="0.0.0.0",
    )
    assert list(listeners(chosen)) == []
