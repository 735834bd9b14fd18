"""What the tests of real processes rely on themselves."""

import random

import pytest
import zmq

from tests.processes.pipeline import quiet_endpoint


def test_a_quiet_endpoint_is_given_once_and_can_be_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    first = quiet_endpoint()
    port = int(first.rpartition(":")[2])
    other = int(quiet_endpoint().rpartition(":")[2])
    drawn = iter([port, other, port])

    class Drawing:
        def randrange(self, low: int, high: int) -> int:
            return next(drawn, random.randrange(low, high))

    monkeypatch.setattr(random, "SystemRandom", Drawing)
    third = quiet_endpoint()
    assert third not in (first, f"tcp://127.0.0.1:{other}")
    assert list(drawn) == [], "every port that was drawn was found taken"
    with zmq.Context() as context, context.socket(zmq.PULL) as one, context.socket(zmq.PULL) as two:
        one.bind(first)
        with pytest.raises(zmq.ZMQError):
            two.bind(first)
