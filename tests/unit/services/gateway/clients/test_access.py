"""What one client may ask for: its key's role, and its limits."""

import time
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.record import RECORD_DTYPE, RECORD_SIZE, Kind
from tallybus.common.security.keys import Grant, Role
from tallybus.services.gateway.clients import quotas as module
from tallybus.services.gateway.clients.protocol import ClientRequest, Limits, Refusal, Wait
from tallybus.services.gateway.clients.quotas import SECOND_NS, Quotas, let_go
from tallybus.services.gateway.core import GatewayCore

MS = 1_000_000
WASM = b"\0asm\1\0\0\0"

READS = (
    *("balances", "status", "transaction", "index", "services", "functions", "wait", "ping"),
    "clock",
)
ALL = (*READS, "submit", "register", "unregister", "accept_clock")


def key(number: int) -> bytes:
    return b"%040d" % number


def grant(role: Role = Role.ADMIN, *, number: int = 1, **fields: Any) -> Grant:
    return Grant(f"client-{number}", key(number), role, "2026-01-01T00:00:00Z", **fields)


def message(op: str, request_id: int, count: int = 1) -> list[bytes]:
    header: dict[str, Any] = {"v": 1, "op": op, "id": request_id}
    payloads: list[bytes] = []
    if op == "submit":
        header |= {"count": count, "wait": 2}
        payloads = [bytes([Kind.DEPOSIT, *bytes(RECORD_SIZE - 1)]) * count]
    elif op in ("balances", "status"):
        payloads = [bytes(8) * count]
    elif op == "transaction":
        header |= {"tx_id": 1}
    elif op == "wait":
        header |= {"tx_id": 10**6, "wait": 1}
    elif op in ("register", "unregister"):
        header |= {"name": "fee", "wait": 2}
        payloads = [WASM] if op == "register" else []
    return [msgpack.packb(header), *payloads]


class Door:
    """A gateway without a pipeline: requests are held, and nothing answers them but refusals."""

    def __init__(self, grants: Mapping[bytes, Grant] | None = None, **limits: int) -> None:
        self.core = GatewayCore(
            7, 100_000, 100 * MS, Limits(1_000, 1_000, 1_000), 60_000, Quotas(**limits)
        )
        self.core.access.grants = grants
        self.denied: list[tuple[str, Refusal]] = []
        self.core.denied = lambda _, name, refusal: self.denied.append((name, refusal))
        self.now = 0
        self.next_id = 0

    def ask(
        self, op: str, user: bytes = b"", *, client: bytes = b"c", count: int = 1
    ) -> dict[str, Any]:
        """The error that comes back; empty when the request was taken."""
        self.next_id += 1
        frames = message(op, self.next_id, count)
        self.core.on_client(client, frames, self.now, user)
        answers, self.core.desk.answers = self.core.desk.answers, []
        if not answers:
            return {}
        ((asker, (header, *payloads)),) = answers
        answer: dict[str, Any] = msgpack.unpackb(header)
        assert asker == client
        assert answer["id"] == self.next_id
        assert payloads == []
        return answer if "error" in answer else {}

    def ping(self, user: bytes = b"", *, client: bytes = b"c") -> dict[str, Any]:
        """The whole answer to a ping."""
        self.core.on_client(client, message("ping", 1), self.now, user)
        (_, (header,)) = self.core.desk.answers.pop()
        answer: dict[str, Any] = msgpack.unpackb(header)
        return answer

    def answer_all(self) -> None:
        """Every request that is held gets its answer: its time is over."""
        self.now += 120_000 * MS
        self.core.tick(self.now)
        self.core.desk.answers.clear()


def held_by(door: Door) -> int:
    return len(door.core.desk)


# -- roles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role))
def test_a_ping_tells_the_keys_role_and_limits(role: Role) -> None:
    door = Door({key(1): grant(role, max_rate=5)}, in_flight=7, rate=9)
    answer = door.ping(key(1))
    assert answer["role"] == role.name.lower()
    assert answer["limits"] == {"in_flight": 7, "rate": 5, "message_bytes": 0, "work_ms": 0}


def test_a_ping_without_a_key_tells_the_gateways_limits() -> None:
    # Over ipc, where nobody has a key: as everyone may, within what bounds them all.
    for door in (Door(message_bytes=1_000), Door({key(1): grant()}, message_bytes=1_000)):
        answer = door.ping()
        assert answer["role"] == "admin"
        assert answer["limits"] == {"in_flight": 0, "rate": 0, "message_bytes": 1_000, "work_ms": 0}


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("role", list(Role))
def test_each_role_may_do_what_it_is_for(op: str, role: Role) -> None:
    door = Door({key(1): grant(role)})
    needs = dict.fromkeys(("register", "unregister", "accept_clock"), Role.ADMIN)
    needs["submit"] = Role.SUBMIT
    needed = needs.get(op, Role.READ)
    answer = door.ask(op, key(1))
    if role >= needed:
        assert answer == {}
        assert door.denied == []
        return
    assert answer["error"] == "forbidden"
    held, missing = role.name.lower(), needed.name.lower()
    assert answer["details"] == {"role": held, "needs": missing, "key": "client-1"}
    assert held in answer["message"]
    assert missing in answer["message"]
    assert "client-1" in answer["message"]
    assert held_by(door) == 0
    assert not door.core.submissions.under_way
    assert door.core.registrations.questions == []
    ((name, refusal),) = door.denied
    assert (name, refusal.code) == ("client-1", "forbidden")


@pytest.mark.parametrize("op", ALL)
def test_a_revoked_key_may_do_nothing(op: str) -> None:
    door = Door({key(1): grant(revoked="2026-02-02T00:00:00Z")})
    answer = door.ask(op, key(1))
    assert answer["error"] == "forbidden"
    assert answer["details"] == {"revoked": True, "key": "client-1"}
    assert held_by(door) == 0


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize("user", [key(2), b"?", key(1)[:39], key(1) + b"x"])
def test_an_unknown_key_may_do_nothing(op: str, user: bytes) -> None:
    door = Door({key(1): grant()})
    answer = door.ask(op, user)
    assert answer["error"] == "forbidden"
    assert answer["details"] == {"revoked": True}


@pytest.mark.parametrize("op", ALL)
def test_with_no_grants_at_all_an_unknown_key_may_do_nothing(op: str) -> None:
    assert Door({}).ask(op, key(1))["error"] == "forbidden"


@pytest.mark.parametrize("op", ALL)
@pytest.mark.parametrize(("grants", "user"), [(None, b""), (None, b"?"), ({}, b"")])
def test_without_keys_everyone_may_do_everything(
    op: str, grants: Mapping[bytes, Grant] | None, user: bytes
) -> None:
    assert Door(grants).ask(op, user) == {}


def test_new_grants_hold_from_the_next_request_on() -> None:
    door = Door({key(1): grant(Role.READ)})
    assert door.ask("submit", key(1))["error"] == "forbidden"
    door.core.access.grants = {key(1): grant(Role.SUBMIT)}
    assert door.ask("submit", key(1)) == {}
    door.core.access.grants = {key(1): grant(Role.SUBMIT, revoked="2026-02-02T00:00:00Z")}
    assert door.ask("index", key(1))["error"] == "forbidden"
    door.core.access.grants = {}
    assert door.ask("index", key(1))["error"] == "forbidden"


def test_a_request_that_cannot_be_read_is_told_so_whoever_sends_it() -> None:
    door = Door({key(1): grant(Role.READ)})
    door.core.on_client(b"c", [b"\xc1"], 0, key(1))
    ((_, frames),) = door.core.desk.answers
    assert msgpack.unpackb(bytes(frames[0]))["error"] == "invalid_request"


def test_refused_requests_are_counted_by_type() -> None:
    door = Door({key(1): grant(Role.READ)})
    seen: list[tuple[str, str]] = []

    def count(request: ClientRequest | None, outcome: str) -> None:
        seen.append((type(request).__name__, outcome))

    door.core.desk.answered = count
    door.ask("submit", key(1))
    door.ask("register", key(1))
    assert seen == [("Submit", "forbidden"), ("Register", "forbidden")]


# -- functions -----------------------------------------------------------------------------------


def submit(*operations: str | Kind, names: list[str] | None = None) -> list[bytes]:
    """Operations in one request: a kind, or the name of a function to call."""
    records = np.zeros(len(operations), RECORD_DTYPE)
    listed = list(dict.fromkeys(each for each in operations if isinstance(each, str)))
    for record, each in zip(records, operations, strict=True):
        if isinstance(each, str):
            record["kind"], record["function"] = Kind.FUNCTION, listed.index(each)
        else:
            record["kind"], record["amount"] = each, 1
    calls = sum(isinstance(each, str) for each in operations)
    header = {"v": 1, "op": "submit", "id": 0, "count": len(operations), "wait": 2}
    header["names"] = listed if names is None else names
    return [msgpack.packb(header), records.tobytes(), *([bytes(64 * calls)] if calls else [])]


def asked(door: Door, frames: list[bytes], user: bytes = key(1)) -> dict[str, Any]:
    """As `Door.ask`, of a request that is made already."""
    door.next_id += 1
    header = msgpack.unpackb(frames[0]) | {"id": door.next_id}
    before = held_by(door)
    door.core.on_client(b"c", [msgpack.packb(header), *frames[1:]], door.now, user)
    answers, door.core.desk.answers = door.core.desk.answers, []
    assert held_by(door) - before == (0 if answers else 1)
    return msgpack.unpackb(answers[0][1][0]) if answers else {}


@pytest.mark.parametrize(
    ("functions", "called", "refused"),
    [
        (None, ["anything", "else"], None),
        (("*",), ["anything", "else"], None),
        (("pay",), ["pay"], None),
        (("pay", "fee"), ["fee", "pay"], None),
        (("pay",), ["fee"], "fee"),
        (("pay",), ["pay", "fee"], "fee"),
        (("pay",), ["fee", "pay", "other"], "fee"),
        (("pay",), ["Pay"], "Pay"),
        (("pay",), ["pay2"], "pay2"),
        (("pay",), ["pa"], "pa"),
        (("pay_*",), ["pay_", "pay_rent", "pay_1"], None),
        (("pay_*",), ["pay"], "pay"),
        (("pay_*",), ["repay_rent"], "repay_rent"),
        (("*_v1", "fee"), ["pay_v1", "fee"], None),
        (("*_v1",), ["pay_v12"], "pay_v12"),
        (("p?y",), ["pay", "p_y"], None),
        (("p?y",), ["py"], "py"),
        (("p?y",), ["paay"], "paay"),
        ((), ["pay"], "pay"),
    ],
)
def test_a_key_calls_the_functions_that_it_is_for(
    functions: tuple[str, ...] | None, called: list[str], refused: str | None
) -> None:
    door = Door({key(1): grant(Role.SUBMIT, functions=functions)})
    answer = asked(door, submit(Kind.DEPOSIT, *called, Kind.TRANSFER))
    if refused is None:
        assert answer == {}
        return
    assert answer["error"] == "forbidden"
    assert answer["details"] == {"function": refused, "key": "client-1"}
    assert f"the key client-1 may not call the function {refused}" in answer["message"]
    # Nothing of it goes on, what could be done of it neither.
    assert not door.core.submissions.under_way
    assert [name for name, _ in door.denied] == ["client-1"]
    assert asked(door, submit(Kind.DEPOSIT, Kind.TRANSFER)) == {}


def test_every_name_of_a_request_counts_whether_it_is_called_or_not() -> None:
    door = Door({key(1): grant(Role.SUBMIT, functions=("pay",))})
    answer = asked(door, submit("pay", names=["pay", "fee"]))
    assert answer["details"] == {"function": "fee", "key": "client-1"}
    assert asked(door, submit(Kind.DEPOSIT, names=["fee"]))["error"] == "forbidden"


@pytest.mark.parametrize("functions", [("*",), ("pay", "?*"), ()])
@pytest.mark.parametrize("name", ["", "a b", "pay\n", "1st", "x" * 33, "é", "*", "a" * 256])
def test_what_no_function_can_be_called_is_never_granted(
    functions: tuple[str, ...], name: str
) -> None:
    door = Door({key(1): grant(functions=functions)})
    answer = asked(door, submit("pay", names=[name]))
    assert answer["error"] in ("forbidden", "invalid_request")
    assert len(answer["message"]) < 200
    assert not door.core.submissions.under_way


def test_a_key_for_no_function_makes_no_calls_however_they_are_written() -> None:
    door = Door({key(1): grant(Role.SUBMIT, functions=())})
    answer = asked(door, submit(Kind.DEPOSIT, "pay", names=[]))
    assert answer["error"] in ("forbidden", "invalid_request")
    assert not door.core.submissions.under_way
    assert asked(door, submit(Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER)) == {}


@pytest.mark.parametrize("kind", [Kind.DEPOSIT, Kind.WITHDRAWAL, Kind.TRANSFER])
def test_a_key_without_builtins_only_calls_functions(kind: Kind) -> None:
    door = Door({key(1): grant(Role.SUBMIT, functions=("pay",), builtins=False)})
    assert asked(door, submit("pay", "pay")) == {}
    for operations, index in (((kind,), 0), (("pay", "pay", kind, Kind.DEPOSIT), 2)):
        answer = asked(door, submit(*operations))
        assert answer["error"] == "forbidden"
        assert answer["details"] == {"kind": int(kind), "index": index, "key": "client-1"}
        assert f"operation {index} of the request is {kind.name}" in answer["message"]
    assert len(door.denied) == 2


def test_an_operation_of_no_kind_is_no_call() -> None:
    door = Door({key(1): grant(Role.SUBMIT, builtins=False)})
    header = {"v": 1, "op": "submit", "id": 0, "count": 1, "wait": 2}
    for kind in (0, Kind.FUNCTION_REGISTERED, 77, 255):
        answer = asked(door, [msgpack.packb(header), bytes([kind, *bytes(RECORD_SIZE - 1)])])
        assert answer["error"] in ("forbidden", "invalid_request")


def test_functions_of_a_grant_are_for_calls_and_hold_nothing_else_up() -> None:
    restricted = grant(Role.ADMIN, functions=("pay",), builtins=False)
    door = Door({key(1): restricted})
    for op in (*READS, "register", "unregister"):
        assert door.ask(op, key(1)) == {}
    assert door.denied == []


def test_a_role_that_may_not_submit_gets_no_calls_by_its_functions() -> None:
    door = Door({key(1): grant(Role.READ, functions=("pay",))})
    assert asked(door, submit("pay"))["details"]["needs"] == "submit"


def test_each_key_has_its_own_functions_and_new_ones_hold_from_the_next_request_on() -> None:
    door = Door(
        {
            key(1): grant(Role.SUBMIT, functions=("pay",)),
            key(2): grant(Role.SUBMIT, number=2, functions=("fee",)),
        }
    )
    assert asked(door, submit("pay"), key(1)) == {}
    assert asked(door, submit("pay"), key(2))["error"] == "forbidden"
    assert asked(door, submit("fee"), key(2)) == {}
    door.core.access.grants = {key(1): grant(Role.SUBMIT, functions=("fee",))}
    assert asked(door, submit("pay"), key(1))["error"] == "forbidden"
    assert asked(door, submit("fee"), key(1)) == {}


@pytest.mark.parametrize(("grants", "user"), [(None, b""), (None, key(1)), ({}, b"")])
def test_without_keys_everyone_calls_everything(
    grants: Mapping[bytes, Grant] | None, user: bytes
) -> None:
    assert asked(Door(grants), submit("pay", Kind.DEPOSIT), user) == {}


def test_no_pattern_makes_a_request_take_long() -> None:
    patterns = tuple(f"{'*a' * 15}{suffix}" for suffix in ("b", "c", *"defghijklm"))
    door = Door({key(1): grant(functions=("a" * 32, *patterns))})
    names = [f"{'a' * 27}{number:05}" for number in range(1_500)]
    began = time.process_time()
    for name in names:
        assert asked(door, submit("x", names=["a" * 32, name]))["details"]["function"] == name
    assert time.process_time() - began < 5


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
