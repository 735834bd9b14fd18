"""What one client may ask for: its key's role, and the functions that it is for."""

import time
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
import pytest

from tallybus.common.record import RECORD_DTYPE, RECORD_SIZE, Kind
from tallybus.common.security.keys import Grant, Role
from tallybus.services.gateway.clients.protocol import ClientRequest
from tests.unit.services.gateway.clients.door import Door, grant, held_by, key

READS = (
    *("balances", "status", "transaction", "index", "services", "functions", "wait", "ping"),
    "clock",
)


ALL = (*READS, "submit", "register", "unregister", "accept_clock")


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
