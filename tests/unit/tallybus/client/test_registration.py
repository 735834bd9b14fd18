"""Functions and single transactions through both clients, against a gateway that fails on cue."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c

from tallybus import (
    AlreadyExists,
    AsyncClient,
    Client,
    Deposit,
    Direction,
    Entry,
    Function,
    FunctionVersion,
    InvalidFunction,
    InvalidRequest,
    Kind,
    NotRegistered,
    OperationBatch,
    OutcomeUnknown,
    ProtocolError,
    Status,
    Timeout,
    TransactionNotFound,
    Transfer,
    WaitLevel,
    Withdrawal,
    function_calls,
)
from tallybus.client.core import MILLISECOND, CoreSettings
from tallybus.client.transaction import ReadTransaction
from tallybus.common.record import RECORD_DTYPE
from tests.support.fake_gateway import (
    REJECTED,
    TIMESTAMP,
    FakeGateway,
    FakeLedger,
    Message,
    always,
    first_time,
    restarting,
)

ONE = b"\0asm one"
TWO = b"\0asm two"
QUICK = CoreSettings(ping_after=25 * MILLISECOND)


class QuickClient(Client):
    """Notices losses sooner, so that tests are short."""

    _settings = QUICK


class QuickAsyncClient(AsyncClient):
    """The same for asyncio."""

    _settings = QUICK


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with QuickClient(gateway.endpoint) as connected:
        connected.gateway_info()
        yield connected


def test_a_registration_returns_its_version_and_checksum(
    client: Client, gateway: FakeGateway
) -> None:
    assert client.register_function("fee", ONE) == FunctionVersion("fee", 1, crc32c(ONE), 1)
    assert client.register_function("fee", TWO, override=True) == FunctionVersion(
        "fee", 2, crc32c(TWO), 2
    )
    assert client.unregister_function("fee") == FunctionVersion("fee", 3, 0, 3)
    assert client.register_function("fee", bytearray(ONE)).version == 4
    register, read, *_ = gateway.seen
    assert (register.op, register.header["name"], register.header["override"]) == (
        *("register", "fee"),
        False,
    )
    assert register.header["wait"] == WaitLevel.COMMITTED
    assert register.payload == [ONE]
    assert (read.op, read.header["tx_id"], read.header["min_tx_id"]) == ("transaction", 1, 1)
    unregister = next(message for message in gateway.seen if message.op == "unregister")
    assert (unregister.payload, unregister.header["name"]) == ([], "fee")
    refs = [m.header["user_ref"] for m in gateway.seen if "user_ref" in m.header]
    assert len(set(refs)) == 4
    assert all(0 < ref < 2**64 for ref in refs)


def test_a_taken_name_needs_override(client: Client, gateway: FakeGateway) -> None:
    client.register_function("fee", ONE)
    with pytest.raises(AlreadyExists, match="override") as caught:
        client.register_function("fee", TWO)
    assert (caught.value.name, caught.value.tx_id) == ("fee", 2)
    assert gateway.ledger.functions["fee"].crc == crc32c(ONE)


def test_what_is_not_there_cannot_be_unregistered(client: Client) -> None:
    with pytest.raises(NotRegistered) as caught:
        client.unregister_function("fee")
    assert (caught.value.name, caught.value.tx_id) == ("fee", 1)


def test_a_binary_that_the_ledger_refuses_is_told_with_the_reason() -> None:
    with (
        FakeGateway(script=always("invalid_function")) as gateway,
        QuickClient(gateway.endpoint) as client,
    ):
        gateway.details = {"name": "fee", "reason": "no export execute"}
        with pytest.raises(InvalidFunction, match="no export execute") as caught:
            client.register_function("fee", ONE)
        assert (caught.value.name, caught.value.reason) == ("fee", "no export execute")
        assert isinstance(caught.value, ValueError)
        assert len(gateway.seen) == 1


@pytest.mark.parametrize("verdict", ["ignore", "mute", "outcome_unknown", "lost", "overloaded"])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_registration_that_is_sent_again_applies_once(verdict: str, asynchronous: bool) -> None:
    with FakeGateway(script=first_time(verdict)) as gateway:
        if asynchronous:

            async def register() -> FunctionVersion:
                async with QuickAsyncClient(gateway.endpoint) as client:
                    return await client.register_function("fee", ONE)

            made = asyncio.run(register())
        else:
            with QuickClient(gateway.endpoint) as client:
                made = client.register_function("fee", ONE)
        assert made == FunctionVersion("fee", 1, crc32c(ONE), 1)
        assert gateway.ledger.effects == {(5, 0, crc32c(ONE), 1): 1}
        sent = [m.header["user_ref"] for m in gateway.seen if m.op == "register"]
        assert sent == [sent[0]] * 2


def test_the_outcome_of_a_lost_sending_counts_also_when_it_was_a_rejection() -> None:
    with FakeGateway() as gateway, QuickClient(gateway.endpoint) as client:
        client.register_function("fee", ONE)
        gateway.script = lambda message: "mute" if message.number == 2 else "answer"
        with pytest.raises(AlreadyExists) as caught:
            client.register_function("fee", TWO)
        # Transaction 2 is the first sending, 3 its duplicate.
        assert caught.value.tx_id == 2
        assert gateway.ledger.next_id == 4


def test_a_duplicate_that_the_gateway_made_counts_as_its_original() -> None:
    # The gateway sends to a new sequencer what the old one may have sequenced: the client sent
    # once and is answered with a duplicate all the same.
    class Doubling(FakeLedger):
        def register(
            self, name: str, binary: bytes, override: bool, user_ref: int
        ) -> tuple[int, list[bytes]]:
            super().register(name, binary, override, user_ref)
            return super().register(name, binary, override, user_ref)

    with FakeGateway(Doubling()) as gateway, QuickClient(gateway.endpoint) as client:
        assert client.register_function("fee", ONE).tx_id == 1
        assert len(gateway.seen) == 2


@pytest.mark.parametrize("verdict", ["hold", "ignore", "mute"])
def test_a_gateway_may_be_restarted_under_a_registration(verdict: str) -> None:
    ledger = FakeLedger()
    with (
        restarting(ledger, always(verdict)) as (gateway, restart),
        QuickClient(gateway.endpoint) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        made = pool.submit(client.register_function, "fee", ONE)
        gateway.wait_seen(1)
        restart()
        assert made.result(20) == FunctionVersion("fee", 1, crc32c(ONE), 1)
        assert ledger.versions["fee"] == 1


def test_a_lost_read_of_the_version_is_read_again() -> None:
    def script(message: Message) -> str:
        return "ignore" if message.number == 1 else "answer"

    with FakeGateway(script=script) as gateway, QuickClient(gateway.endpoint) as client:
        assert client.register_function("fee", ONE).version == 1
        assert [message.op for message in gateway.seen] == [
            *("register", "transaction", "transaction")
        ]


def test_a_deadline_after_the_commit_names_the_transaction() -> None:
    with (
        FakeGateway(script=lambda m: "answer" if m.op == "register" else "hold") as gateway,
        QuickClient(gateway.endpoint) as client,
    ):
        with pytest.raises(Timeout, match="transaction 1 is committed") as caught:
            client.register_function("fee", ONE, timeout=0.3)
        assert caught.value.first_tx_id == 1


def test_a_client_that_is_closed_does_not_know_whether_it_registered() -> None:
    with FakeGateway(script=always("hold")) as gateway, ThreadPoolExecutor(1) as pool:
        client = QuickClient(gateway.endpoint)
        made = pool.submit(client.register_function, "fee", ONE)
        gateway.wait_seen(1)
        client.close(wait=False)
        with pytest.raises(OutcomeUnknown, match="function fee was registered") as caught:
            made.result(20)
        assert not caught.value.retry_safe


def test_another_transaction_than_the_registration_is_a_protocol_error() -> None:
    class Liar(FakeLedger):
        def register(self, *arguments: Any) -> tuple[int, list[bytes]]:
            outcome = super().register(*arguments)
            self.kept[outcome[0]].name = "other"
            return outcome

    with (
        FakeGateway(Liar()) as gateway,
        QuickClient(gateway.endpoint) as client,
        pytest.raises(ProtocolError, match="another one than the registration"),
    ):
        client.register_function("fee", ONE)


def test_what_no_function_can_be_is_not_sent(client: Client, gateway: FakeGateway) -> None:
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("name", lambda: client.register_function("1st", ONE)),
        ("name", lambda: client.register_function("a" * 33, ONE)),
        ("name", lambda: client.register_function("", ONE)),
        ("name", lambda: client.register_function("a-b", ONE)),
        ("name", lambda: client.unregister_function(5)),  # type: ignore[arg-type]
        ("binary", lambda: client.register_function("fee", b"")),
        ("binary", lambda: client.register_function("fee", bytes(4 * 1024 * 1024 + 1))),
        ("binary", lambda: client.register_function("fee", "(module)")),  # type: ignore[arg-type]
        ("override", lambda: client.register_function("fee", ONE, 1)),  # type: ignore[arg-type]
        ("tx_id", lambda: client.get_transaction(0)),
        ("tx_id", lambda: client.get_transaction(2**64)),
        ("min_tx_id", lambda: client.get_transaction(1, -1)),
    ]
    for field, call in calls:
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert caught.value.field == field
    assert gateway.seen == []
    assert client.register_function("a" * 32, bytes(4 * 1024 * 1024)).version == 1


def test_functions_are_listed_with_what_they_did(client: Client) -> None:
    assert client.list_functions() == []
    client.register_function("second", TWO)
    client.register_function("fee", ONE)
    client.submit_batch(
        [Function("fee", (1, 5)), Function("fee", (1, 5, 1)), Function("fee", (1, 5, 200))]
    )
    fee, second = client.list_functions()
    assert (fee.name, fee.version, fee.crc32c, fee.tx_id) == ("fee", 1, crc32c(ONE), 2)
    assert (fee.calls, dict(fee.failures)) == (3, {Status.INSUFFICIENT_FUNDS: 1, 200: 1})
    assert (fee.fuel_total, fee.fuel_mean, fee.fuel_limit, fee.mean_ns) == (
        *(30, 10.0),
        *(1_000_000, 81.5),
    )
    assert (second.name, second.calls, second.fuel_mean, second.mean_ns) == (
        "second",
        0,
        None,
        None,
    )


def test_every_kind_of_transaction_is_read_back(client: Client) -> None:
    client.register_function("fee", ONE)
    client.submit_batch(
        [
            Deposit(1, 100, 7),
            Withdrawal(1, 30),
            Transfer(1, 2, 20),
            Transfer(1, 2, REJECTED),
            Deposit(1, 100, 7),
            Function("fee", (9, 4, 0, -5), 8),
            Function("fee", (9, 4, 130)),
            Function("nothing"),
        ]
    )
    client.unregister_function("fee")
    found = {tx_id: client.get_transaction(tx_id) for tx_id in range(1, 11)}
    for tx_id, each in found.items():
        assert (each.tx_id, each.timestamp_ns, each.term) == (tx_id, TIMESTAMP, 1)
        assert each.last_snapshot_tx_id == 10
        assert (
            sum(e.amount if e.direction is Direction.DEBIT else -e.amount for e in each.entries)
            == 0
        )
    made = found[1]
    assert (made.kind, made.function_name, made.function_version, made.function_crc32c) == (
        *(Kind.FUNCTION_REGISTERED, "fee"),
        *(1, crc32c(ONE)),
    )
    deposit = found[2]
    assert (deposit.kind, deposit.account, deposit.amount) == (Kind.DEPOSIT, 1, 100)
    assert (deposit.source, deposit.target, deposit.user_ref) == (None, None, 7)
    assert deposit.entries == (
        Entry(0, Direction.CREDIT, 100),
        Entry(1, Direction.DEBIT, 100),
    )
    assert (found[3].kind, found[3].account) == (Kind.WITHDRAWAL, 1)
    transfer = found[4]
    assert (transfer.source, transfer.target, transfer.account) == (1, 2, None)
    assert (found[5].status, found[5].entries) == (Status.INVALID_OPERATION, ())
    assert (found[6].status, found[6].duplicate_of) == (Status.DUPLICATE, 2)
    call = found[7]
    assert (call.kind, call.params, call.amount, call.user_ref) == (
        *(Kind.FUNCTION, (9, 4, 0, -5)),
        *(None, 8),
    )
    assert (call.function_name, call.function_version, call.function_crc32c) == (
        *("fee", 1),
        crc32c(ONE),
    )
    assert call.entries == (Entry(0, Direction.CREDIT, 4), Entry(9, Direction.DEBIT, 4))
    assert (found[8].status, found[8].function_name, found[8].entries) == (130, "fee", ())
    missing = found[9]
    assert (missing.status, missing.function_name, missing.function_crc32c) == (
        *(Status.INVALID_OPERATION, None),
        None,
    )
    ended = found[10]
    assert (ended.function_version, ended.function_crc32c) == (2, 0)


def test_a_transaction_that_is_not_there_is_told(client: Client, gateway: FakeGateway) -> None:
    client.submit(Deposit(1, 5))
    with pytest.raises(TransactionNotFound) as caught:
        client.get_transaction(2, min_tx_id=1)
    assert (caught.value.tx_id, caught.value.last_snapshot_tx_id) == (2, 1)
    assert isinstance(caught.value, LookupError)
    assert gateway.seen[-1].header["min_tx_id"] == 1
    client.get_transaction(1)
    assert "min_tx_id" not in gateway.seen[-1].header


def test_the_asyncio_client_has_the_same() -> None:
    async def test(client: AsyncClient) -> None:
        assert await client.register_function("fee", ONE) == FunctionVersion(
            "fee", 1, crc32c(ONE), 1
        )
        with pytest.raises(AlreadyExists):
            await client.register_function("fee", TWO)
        assert (await client.register_function("fee", TWO, override=True)).version == 2
        assert (await client.submit_batch(function_calls("fee", [[1, 5]]))).ok_count == 1
        assert (await client.get_transaction(4)).params == (1, 5)
        assert [info.calls for info in await client.list_functions()] == [1]
        assert (await client.unregister_function("fee")).crc32c == 0
        with pytest.raises(NotRegistered):
            await client.unregister_function("fee")
        with pytest.raises(TransactionNotFound):
            await client.get_transaction(99)
        with pytest.raises(InvalidRequest):
            await client.register_function("1st", ONE)

    run(test)


def run(test: Callable[[AsyncClient], Awaitable[None]]) -> None:
    async def main(endpoint: str) -> None:
        async with QuickAsyncClient(endpoint) as client:
            await test(client)

    with FakeGateway() as running:
        asyncio.run(main(running.endpoint))


def test_arrays_of_calls_are_executed_like_single_ones(
    client: Client, gateway: FakeGateway
) -> None:
    client.register_function("fee", ONE)
    client.register_function("other", TWO)
    calls = function_calls(
        ["fee", "other", "fee", "none"],
        [[1, 5, 0], [2, 6, 0], [3, 7, 140], [4, 8, 0]],
        [11, 12, 0, 0],
    )
    result = client.submit_batch(calls)
    assert result.statuses.tolist() == [0, 0, 140, Status.INVALID_OPERATION]
    message = gateway.seen[-1]
    assert message.header["names"] == ["fee", "other", "none"]
    one_by_one = client.submit_batch(
        [
            Function("fee", (1, 5), 21),
            Function("other", (2, 6), 22),
            Function("fee", (3, 7, 140)),
            Function("none", (4, 8)),
        ]
    )
    assert one_by_one.statuses.tolist() == result.statuses.tolist()
    again = gateway.seen[-1]
    assert (again.header["names"], again.payload[1]) == (
        message.header["names"],
        message.payload[1],
    )
    assert client.get_balances([0, 1, 2, 3]).balances.tolist() == [-22, 10, 12, 0]
    assert gateway.ledger.functions["fee"].calls == 4


def test_arrays_may_mix_calls_with_other_operations(client: Client, gateway: FakeGateway) -> None:
    client.register_function("fee", ONE)
    calls = function_calls("fee", np.array([[5, 70], [6, 80]], np.int32))
    records = np.zeros(4, calls.records.dtype)
    records[[0, 3]] = calls.records
    records["kind"][1:3] = Kind.DEPOSIT
    records["account"][1:3], records["amount"][1:3] = 7, 90
    assert client.submit_batch(OperationBatch(records, ["fee"], calls.params)).ok_count == 4
    assert client.get_balances([5, 6, 7]).balances.tolist() == [70, 80, 180]
    builtin = OperationBatch(records[1:3], [], np.zeros((0, 8), np.int64))
    assert client.submit_batch(builtin).ok_count == 2
    assert len(gateway.seen[-1].payload) == 1


def test_arrays_of_calls_may_be_changed_once_the_call_returns(
    client: Client, gateway: FakeGateway
) -> None:
    gateway.script = lambda message: "hold" if message.number % 2 else "answer"
    calls = function_calls("none", np.zeros((2000, 8), np.int64))
    expected = []
    pendings = []
    for number in range(6):
        calls.params[:, 0] = number
        calls.records["user_ref"] = number
        expected.append([calls.records.tobytes(), calls.params.tobytes()])
        pendings.append(client.begin_batch(calls))
        if number % 2 == 0:
            pendings[-1].result()
    calls.params[:] = 9
    gateway.wait_seen(6)
    gateway.release()
    assert [pending.result().failed_count for pending in pendings] == [2000] * 6
    assert [message.payload for message in gateway.seen] == expected


def test_a_kind_that_does_not_exist_is_read_as_its_number() -> None:
    record = np.zeros(1, RECORD_DTYPE)
    record["kind"] = 136
    record["status"] = Status.INVALID_OPERATION
    header = {"tx_id": 3, "timestamp": 1, "term": 1, "found": True, "snapshot": 3, "params": []}
    header |= {"duplicate_of": 0, "function": None, "name": None}
    found = ReadTransaction(3, 0).decode(header, [record.tobytes(), b""])
    assert found.kind == 136
    assert found.status is Status.INVALID_OPERATION
    assert found.amount is None
