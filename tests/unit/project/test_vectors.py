"""The test vectors in `docs/vectors` are what the client library and the gateway make of messages.

When this fails after a change of the protocol that was meant: `python -m tests.vectors`.
"""

from typing import Any

import msgpack
import pytest

from tallybus import Status, WaitLevel
from tallybus.client.codec import ErrorReply, read_answer, read_error, read_header, read_pong
from tallybus.client.submit import SubmitBatch
from tallybus.common.bus import messages as bus
from tallybus.common.protocol import REVISION, ErrorCode
from tallybus.errors import NotRegistered, TransactionNotFound
from tallybus.services.gateway.clients import protocol
from tests import vectors
from tests.vectors import FOLDER, Exchange, Vector, read

LIMITS = protocol.Limits(max_batch=1_000, max_reads=1_000, max_accounts=1_000)


def stored(name: str) -> list[Vector]:
    return read((FOLDER / name).read_text())


@pytest.fixture(scope="module")
def exchanges() -> list[Exchange]:
    return vectors.exchanges()


def test_the_files_are_what_the_code_makes_today() -> None:
    made = vectors.files()
    assert sorted(made) == sorted(path.name for path in FOLDER.iterdir())
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, f"{name}: python -m tests.vectors"


def test_the_files_have_every_message() -> None:
    operations = {each.header["op"] for each in stored("requests.hex") if each.to == "gateway"}
    assert operations == set(protocol._OPERATIONS)
    assert {each.header["error"] for each in stored("errors.hex")} == set(ErrorCode)
    assert {each.header["t"] for each in stored("bus.hex")} == set(bus.MESSAGE_TYPES)
    for name in ("requests.hex", "errors.hex", "bus.hex"):
        names = [each.name for each in stored(name)]
        assert len(set(names)) == len(names)


def test_the_gateway_takes_the_stored_requests(exchanges: list[Exchange]) -> None:
    asked = [each for each in stored("requests.hex") if each.to == "gateway"]
    assert len(asked) == len(exchanges)
    for each, exchange in zip(asked, exchanges, strict=True):
        request = protocol.decode_request(b"c", each.frames, LIMITS)
        assert request.id == each.header["id"]
        assert request.timeout_ms == each.header.get("timeout_ms")
        sent = exchange.request
        if isinstance(request, protocol.Submit):
            assert (request.level, request.count) == (each.header["wait"], sent.count)
        if isinstance(sent, SubmitBatch):
            assert isinstance(request, protocol.Submit)
            assert (bytes(request.records), bytes(request.params)) == (sent.frame, sent.params)
            assert tuple(request.names) == tuple(sent.names)
        if isinstance(request, protocol.Read):
            assert request.what == each.header["op"]
            assert len(request.keys) == sent.count
            assert request.min_tx_id == each.header.get("min_tx_id", 0)


def test_the_client_reads_the_stored_replies(exchanges: list[Exchange]) -> None:
    replies = [each for each in stored("requests.hex") if each.to == "client"]
    read_as: dict[str, Any] = {}
    for each, exchange in zip(replies, exchanges, strict=True):
        header = read_header(each.frames)
        value: Any
        try:
            if exchange.op == "ping for requests":
                _, value = read_pong(header, each.frames[1:])
            else:
                value = read_answer(exchange.request, header, each.frames[1:], False)
        except (NotRegistered, TransactionNotFound) as error:
            value = error
        assert not isinstance(value, ErrorReply)
        read_as[exchange.op] = value
        assert bytes(msgpack.packb(header)) == each.frames[0], "there is one way to write it"
    one = read_as["submit a transfer"]
    assert (one.first_tx_id, one.statuses.tolist(), one.level) == (1001, [0], WaitLevel.COMMITTED)
    none = read_as["submit without waiting"]
    assert (none.first_tx_id, none.level) == (2**63, WaitLevel.NONE)
    many = read_as["submit operations of each kind"]
    assert many.statuses.tolist() == [0, 1, 0, 130, Status.DUPLICATE, 5]
    assert many.duplicate_of.tolist() == [0, 0, 0, 0, 2000, 0]
    assert isinstance(read_as["unregister"], NotRegistered)
    (function,) = read_as["functions"]
    assert (function.name, function.calls, function.failures) == ("fee", 2**40, {1: 5, 130: 7})
    transfer = read_as["transaction: a transfer"]
    assert (transfer.source, transfer.target, transfer.amount) == (1, 2, 300)
    assert len(transfer.entries) == 2
    trapped = read_as["transaction: a call that trapped"]
    assert (trapped.function_name, trapped.params, trapped.entries) == ("fee", (1, 2, -5), ())
    assert isinstance(read_as["transaction: not there"], TransactionNotFound)
    assert read_as["balances"].balances.tolist() == [-300, 300, 0]
    assert read_as["status"].stages.tolist() == [4, 5, 1, 0]
    assert read_as["wait"] is WaitLevel.SNAPSHOT
    assert read_as["index"].sequenced == 1006
    assert [each.stage for each in read_as["services"]][-1] == "gateway"
    info = read_as["ping"]
    assert (info.role, info.limits["rate"], info.revision) == ("submit", 5_000, REVISION)
    assert read_as["ping for requests"] == [3, 2**64 - 1]


def test_the_client_reads_the_stored_errors() -> None:
    for each in stored("errors.hex"):
        (frame,) = each.frames
        header = read_header([frame])
        error = read_error(header)
        assert each.name.startswith(f"{error.code}: ")
        assert error.details == each.header["details"]
        made = protocol.error_reply(header["id"], error.code, error.message, error.details)
        assert made == [frame]


def test_stages_read_and_write_the_stored_messages() -> None:
    for each in stored("bus.hex"):
        message = bus.decode(each.frames)
        assert message.kind == each.header["t"]
        assert [bytes(frame) for frame in bus.encode(message)] == list(each.frames)


def test_a_file_that_is_cut_or_spoilt_is_noticed() -> None:
    lines = (FOLDER / "requests.hex").read_text().splitlines(keepends=True)
    first_hex = next(number for number, line in enumerate(lines) if line.startswith("frame")) + 1
    with pytest.raises(AssertionError):
        read("".join(lines[:first_hex] + lines[first_hex + 1 :]))
