"""Fields that came later: asked for at the gateway before they are sent."""

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from tallybus import AccessDenied, InvalidRequest, Unreachable, WaitLevel
from tallybus.client.access import Handshake
from tallybus.client.codec import AskGateway, WaitFor
from tallybus.client.core import SECOND
from tests.unit.tallybus.client.simulated import PING, Sim, error_of


class Later(WaitFor):
    """A request with a field that only gateways of a later revision take."""

    __slots__ = ("colour",)
    newer: ClassVar[Mapping[str, int]] = {"shape": 2, "colour": 3}

    def __init__(self, tx_id: int, colour: str | None = None) -> None:
        super().__init__(tx_id, WaitLevel.COMMITTED)
        self.colour = colour

    def fields(self) -> dict[str, Any]:
        return super().fields() | ({} if self.colour is None else {"colour": self.colour})


def test_a_newer_field_is_sent_once_the_gateway_has_told_that_it_takes_it() -> None:
    sim = Sim()
    call = sim.start(Later(5, "red"))
    (ping,) = sim.take()
    assert (ping["op"], ping["pending"]) == ("ping", [])
    assert not sim.core.has_message, "nothing to do until the answer is there"
    sim.pong(ping["id"], [], revision=3)
    (message,) = sim.take()
    assert (message["op"], message["colour"]) == ("wait", "red")
    sim.reply(message["id"], level=2)
    assert call.result() is WaitLevel.COMMITTED
    sim.start(Later(6, "blue"))
    assert [message["op"] for message in sim.take()] == ["wait"], "what was told is remembered"


@pytest.mark.parametrize("told", [{}, {"revision": 1}, {"revision": 2}])
def test_a_newer_field_is_not_sent_to_an_older_gateway(told: dict[str, int]) -> None:
    sim = Sim()
    call, after = sim.start(Later(5, "red")), sim.start(Later(6))
    sim.pong(sim.take()[0]["id"], [], **told)
    error = error_of(call, InvalidRequest)
    assert error.field == "colour"
    assert f"revision {told.get('revision', 0)}" in error.message
    (message,) = sim.take()
    assert message["tx_id"] == 6, "the request without the field is sent, after the other"
    assert not after.done


def test_a_request_without_its_newer_fields_is_sent_without_asking() -> None:
    sim = Sim()
    sim.start(Later(5))
    assert [message["op"] for message in sim.take()] == ["wait"]


def test_what_a_user_asked_about_the_gateway_is_remembered_too() -> None:
    sim = Sim()
    info = sim.start(AskGateway())
    sim.pong(sim.take()[0]["id"], [], revision=3)
    assert info.result().revision == 3
    sim.start(Later(5, "red"))
    assert [message["op"] for message in sim.take()] == ["wait"]


def test_the_revision_is_asked_for_again_after_a_reconnection() -> None:
    sim = Sim()
    sim.start(AskGateway())
    sim.pong(sim.take()[0]["id"], [], revision=3)
    sim.core.handshake(Handshake.READY, sim.now)
    call = sim.start(Later(5, "red"))
    (ping,) = sim.take()
    assert ping["op"] == "ping"
    sim.pong(ping["id"], [], revision=2)
    assert error_of(call, InvalidRequest).field == "colour"


def test_the_question_for_the_revision_is_repeated_and_keeps_the_order_of_requests() -> None:
    sim = Sim()
    sim.start(WaitFor(1, WaitLevel.COMMITTED))
    calls = [sim.start(Later(5, "red")), sim.start(WaitFor(6, WaitLevel.COMMITTED))]
    first, ping = sim.take()
    assert ping["pending"] == [first["id"]]
    sim.advance(2 * PING)
    again = sim.take()
    assert [message["op"] for message in again] == ["ping", "ping"]
    sim.pong(again[-1]["id"], [], revision=3)
    assert [message["tx_id"] for message in sim.take()] == [5, 6]
    assert not any(call.done for call in calls)


def test_a_request_that_waits_for_the_revision_ends_at_its_deadline() -> None:
    sim = Sim()
    call = sim.start(Later(5, "red"), 1.0)
    sim.advance(2 * SECOND)
    assert "has not told its revision" in str(error_of(call, Unreachable))
    assert sim.core.next_wake() is None
    sim.take()
    sim.start(WaitFor(6, WaitLevel.COMMITTED))
    assert [message["op"] for message in sim.take()] == ["wait"]


def test_a_request_that_waits_for_the_revision_is_told_that_its_key_was_revoked() -> None:
    sim = Sim()
    call = sim.start(Later(5, "red"))
    sim.refuse(sim.take()[0]["id"], "forbidden", revoked=True)
    assert error_of(call, AccessDenied).reason == "revoked"
