"""Requests of the client's core that another request completes: one call with one deadline."""

import struct
from typing import Any

from crc32c import crc32c

from tallybus import FunctionVersion, InvalidFunction, OutcomeUnknown, Timeout
from tallybus.client.core import MILLISECOND, SECOND
from tallybus.client.registration import RegisterFunction
from tests.unit.tallybus.client.simulated import PING, Sim, error_of


def registration() -> RegisterFunction:
    return RegisterFunction("fee", b"binary", False, 99)


def registered(sim: Sim, request_id: int, tx_id: int) -> None:
    """Answers the read of a registration that made version 3."""
    record = struct.pack("<BBHIQQQQ", 5, 0, 0, crc32c(b"binary"), 99, 3, 0, 1)
    fields: dict[str, Any] = {
        "tx_id": tx_id,
        "timestamp": 1,
        "term": 1,
        "found": True,
        "snapshot": tx_id,
    }
    fields |= {"duplicate_of": 0, "params": [], "function": None, "name": "fee"}
    sim.reply(request_id, record, b"", **fields)


def test_a_request_that_another_one_completes_is_one_call() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    (message,) = sim.take()
    sim.submitted(message["id"], 77)
    assert not call.done
    (read,) = sim.take()
    assert (read["op"], read["tx_id"], read["min_tx_id"]) == ("transaction", 77, 77)
    assert read["id"] > message["id"]
    sim.refuse(read["id"], "overloaded")
    sim.advance(100 * MILLISECOND)
    (read,) = sim.take()
    registered(sim, read["id"], 77)
    assert call.result() == FunctionVersion("fee", 3, crc32c(b"binary"), 77)
    assert sim.done() == [call]
    assert sim.core.next_wake() is None


def test_what_completes_a_request_is_read_again_when_it_is_lost() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    sim.submitted(sim.take()[0]["id"], 77)
    (read,) = sim.take()
    sim.advance(PING)
    (ping,) = sim.take()
    sim.pong(ping["id"], ping["pending"])
    assert ping["pending"] == [read["id"]]
    (again,) = sim.take()
    registered(sim, again["id"], 77)
    assert call.result().version == 3


def test_the_deadline_is_that_of_both_and_tells_what_is_committed() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    (message,) = sim.take()
    sim.advance(6 * SECOND)
    sim.take()
    sim.submitted(message["id"], 77)
    assert sim.take()[0]["timeout_ms"] == 3_900
    sim.advance(4 * SECOND)
    error = error_of(call, Timeout)
    assert (error.request, error.first_tx_id) == ("transaction", 77)
    assert "transaction 77 is committed" in str(error)


def test_a_lost_registration_that_is_refused_later_has_an_unknown_outcome() -> None:
    sim = Sim()
    call = sim.start(registration(), 10.0)
    (message,) = sim.take()
    sim.refuse(message["id"], "outcome_unknown")
    sim.advance(100 * MILLISECOND)
    (again,) = sim.take()
    assert again["user_ref"] == message["user_ref"] == 99
    sim.refuse(again["id"], "invalid_function", name="fee", reason="too large")
    error = error_of(call, OutcomeUnknown)
    assert isinstance(error.__cause__, InvalidFunction)
    assert not error.retry_safe
