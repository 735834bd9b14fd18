"""The key that a client was given: from which file, whether it can be used, and never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zmq

from tallybus import AsyncClient, Client, InvalidRequest
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.keys import ClientKey, KeyPair, client_key_text
from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.client.keyed_clients import blocking, on_a_loop


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
