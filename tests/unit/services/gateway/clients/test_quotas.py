"""How much one client may ask for: at a time, in a second, in one request."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.services.gateway.clients import quotas as module
from tallybus.services.gateway.clients.protocol import Wait
from tallybus.services.gateway.clients.quotas import SECOND_NS, Quotas, let_go
from tests.unit.services.gateway.clients.door import MS, Door, grant, held_by, key

# -- in flight -----------------------------------------------------------------------------------


def test_operations_and_keys_that_wait_for_an_answer_are_limited() -> None:
    door = Door(in_flight=100)
    assert door.ask("submit", count=60) == {}
    assert door.ask("balances", count=40) == {}
    refused = door.ask("submit", count=1)
    assert refused["error"] == "overloaded"
    assert refused["details"] == {"limit": "in_flight", "allowed": 100}
    assert held_by(door) == 2
    door.answer_all()
    assert door.ask("submit", count=100) == {}


def test_requests_without_operations_or_keys_count_as_one() -> None:
    door = Door(in_flight=2)
    assert door.ask("wait") == {}
    assert door.ask("functions") == {}
    assert door.ask("wait")["details"]["limit"] == "in_flight"
    assert door.ask("ping") == {}


def test_what_is_answered_at_once_weighs_on_nobody() -> None:
    door = Door(in_flight=1)
    for _ in range(10):
        assert door.ask("services") == {}
    assert door.ask("wait") == {}


def test_a_request_that_could_never_be_taken_is_refused_for_good() -> None:
    door = Door(in_flight=100)
    refused = door.ask("submit", count=101)
    assert refused["error"] == "invalid_request"
    assert refused["details"] == {"limit": "in_flight", "allowed": 100}
    assert "100" in refused["message"]


def test_without_keys_each_connection_has_its_own_limit() -> None:
    door = Door(in_flight=10)
    assert door.ask("submit", client=b"one", count=10) == {}
    assert door.ask("submit", client=b"one")["error"] == "overloaded"
    assert door.ask("submit", client=b"two", count=10) == {}


def test_with_keys_all_connections_of_a_key_share_its_limit() -> None:
    door = Door({key(1): grant(), key(2): grant(number=2)}, in_flight=10)
    assert door.ask("submit", key(1), client=b"one", count=6) == {}
    assert door.ask("submit", key(1), client=b"two", count=6)["error"] == "overloaded"
    assert door.ask("submit", key(1), client=b"two", count=4) == {}
    assert door.ask("submit", key(2), client=b"three", count=10) == {}
    assert [name for name, _ in door.denied] == ["client-1"]


@pytest.mark.parametrize(("own", "allowed"), [(5, 5), (50, 50), (0, 10)])
def test_a_keys_own_limit_counts_instead_of_the_gateways(own: int, allowed: int) -> None:
    door = Door({key(1): grant(max_in_flight=own)}, in_flight=10)
    assert door.ask("balances", key(1), count=allowed) == {}
    assert door.ask("balances", key(1))["details"]["allowed"] == allowed


def test_a_keys_own_limit_holds_where_the_gateway_has_none() -> None:
    door = Door({key(1): grant(max_in_flight=3), key(2): grant(number=2)})
    assert door.ask("submit", key(1), count=4)["error"] == "invalid_request"
    assert door.ask("submit", key(2), count=1_000) == {}


def test_what_the_pipeline_has_no_room_for_costs_its_client_nothing() -> None:
    door = Door(in_flight=10, rate=5)
    door.core.link.capacity = 0
    assert door.ask("submit", count=3) == {}  # an idle pipeline takes any one request
    refused = door.ask("submit", count=1)
    assert refused["error"] == "overloaded"
    assert refused["details"] == {}
    assert door.denied == []
    door.core.link.capacity = 100
    assert door.ask("submit", count=7) == {}


# -- rate ----------------------------------------------------------------------------------------


def test_a_client_may_use_one_second_of_its_rate_at_once_and_then_waits() -> None:
    door = Door(rate=10)
    for _ in range(10):
        assert door.ask("submit") == {}
    refused = door.ask("submit")
    assert refused["error"] == "overloaded"
    assert refused["details"] == {"limit": "rate", "allowed": 10, "retry_ms": 1}
    door.now += 1 * MS
    assert door.ask("submit") == {}
    refused = door.ask("submit")
    assert refused["details"]["retry_ms"] == 100
    door.now += 100 * MS
    assert door.ask("submit") == {}


def test_a_batch_larger_than_the_rate_passes_and_is_paid_off_afterwards() -> None:
    door = Door(rate=100)
    assert door.ask("submit", count=1_000) == {}
    refused = door.ask("balances")
    assert refused["details"] == {"limit": "rate", "allowed": 100, "retry_ms": 9_001}
    door.now += refused["details"]["retry_ms"] * MS - 2 * MS
    assert door.ask("balances")["error"] == "overloaded"
    door.now += 2 * MS
    assert door.ask("submit", count=1_000) == {}


def test_refused_requests_cost_nothing_of_the_rate() -> None:
    door = Door(rate=10)
    assert door.ask("submit", count=20) == {}
    for _ in range(1_000):
        assert door.ask("submit")["details"]["retry_ms"] == 1_001
    door.now += 1_001 * MS
    assert door.ask("submit") == {}


def test_pings_are_no_part_of_the_rate() -> None:
    door = Door(rate=1)
    for _ in range(100):
        assert door.ask("ping") == {}
    assert door.ask("index") == {}


def test_the_limits_of_clients_are_not_the_pages() -> None:
    door = Door(in_flight=1, rate=1)
    for _ in range(16):
        assert door.ask("balances", client=b"") == {}


@pytest.mark.parametrize("op", ["balances", "status", "index", "services", "functions", "wait"])
def test_reads_are_part_of_the_rate(op: str) -> None:
    door = Door(rate=2)
    assert door.ask(op) == {}
    assert door.ask(op) == {}
    assert door.ask(op)["details"]["limit"] == "rate"


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 400)), max_size=60))
def test_over_any_time_no_client_gets_more_than_its_rate_and_a_burst(
    steps: list[tuple[int, int]],
) -> None:
    quotas = Quotas(rate=20)
    now = taken = largest = 0
    for weight, pause_ms in steps:
        now += pause_ms * MS
        request = Weighed(weight)
        if quotas.refusal(request, [], None, now) is None:
            quotas.take(request, None, now, held=False)
            taken += weight
            largest = max(largest, weight)
    assert taken <= 20 * (1 + now / SECOND_NS) + largest


class Weighed(Wait):
    """A request that weighs what a test wants."""

    def __init__(self, weight: int, client: bytes = b"c") -> None:
        super().__init__(client, 1, None, 1, 1)  # type: ignore[arg-type]
        self.asked = weight


@pytest.fixture(autouse=True)
def _weights(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.weight_of
    monkeypatch.setattr(
        module,
        "weight_of",
        lambda request: request.asked if isinstance(request, Weighed) else real(request),
    )


# -- the size of a request -----------------------------------------------------------------------


def test_a_request_longer_than_its_client_may_send_is_refused() -> None:
    door = Door(message_bytes=200)
    assert door.ask("balances", count=10) == {}
    refused = door.ask("balances", count=30)
    assert refused["error"] == "invalid_request"
    assert refused["details"] == {"limit": "message_bytes", "allowed": 200}
    assert "200" in refused["message"]
    assert held_by(door) == 1


def test_a_keys_own_length_counts_instead_of_the_gateways() -> None:
    door = Door({key(1): grant(max_message_bytes=1_000)}, message_bytes=200)
    assert door.ask("balances", key(1), count=30) == {}
    assert door.ask("balances", key(1), count=125)["details"]["allowed"] == 1_000


# -- memory --------------------------------------------------------------------------------------


def test_clients_that_are_gone_are_forgotten() -> None:
    quotas = Quotas(in_flight=10, rate=10)
    for number in range(100_000):
        request = Weighed(1, b"%d" % number)
        quotas.take(request, None, number * MS, held=True)
        let_go(request)
    assert len(quotas) < 3_000


def test_clients_with_requests_under_way_are_not_forgotten() -> None:
    quotas = Quotas(in_flight=10)
    held = [Weighed(10, b"held %d" % number) for number in range(2_000)]
    for request in held:
        quotas.take(request, None, 0, held=True)
    for number in range(20_000):
        request = Weighed(1, b"%d" % number)
        quotas.take(request, None, 0, held=True)
        let_go(request)
    for request in held:
        assert quotas.refusal(Weighed(1, request.client), [], None, 0) is not None
        let_go(request)
        assert quotas.refusal(Weighed(10, request.client), [], None, 0) is None


def test_clients_that_owe_for_years_are_forgotten_when_they_become_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_IDLE", 1_000)
    quotas = Quotas(rate=1)
    for number in range(20_000):
        quotas.take(Weighed(10**9, b"%d" % number), None, number, held=False)
    assert len(quotas) <= 2_100
    assert quotas.refusal(Weighed(1, b"19999"), [], None, 20_000) is not None


def test_without_limits_nothing_is_kept() -> None:
    door = Door({key(1): grant()})
    for _ in range(10):
        assert door.ask("submit", key(1)) == {}
    assert len(door.core.quotas) == 0
