"""Addresses to listen on: those that can never be had are wrong settings, others are waited for."""

import socket
from collections.abc import Callable

import pytest

from tallybus.common.errors import SettingsError
from tallybus.common.settings import addresses
from tallybus.common.settings.sections import load


def test_addresses_that_can_never_be_listened_on_are_wrong_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One of those that are for documents: no machine has it.
    wrong = load(environ={"TALLYBUS_METRICS_ADDRESS": "192.0.2.1"})
    with pytest.raises(SettingsError, match="Cannot assign requested address") as caught:
        addresses.check(wrong, "wal")
    assert caught.value.setting == "metrics.address"
    page = load(environ={"TALLYBUS_GATEWAY_PAGE": "192.0.2.1:5580"})
    addresses.check(page, "wal")
    with pytest.raises(SettingsError) as caught:
        addresses.check(page, "gateway")
    assert caught.value.setting == "gateway.page"

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SettingsError, match=r"port 80 of 127\.0\.0\.1: Permission denied"):
        addresses.check(load(environ={"TALLYBUS_GATEWAY_PAGE": "127.0.0.1:80"}), "gateway")


def test_an_address_that_is_taken_or_a_name_is_waited_for(free_port: Callable[[], int]) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert addresses.refusal("127.0.0.1", port) == 0
    assert addresses.refusal("127.0.0.1", port) == 0
    assert addresses.refusal("no-such-name.invalid", port) == 0
