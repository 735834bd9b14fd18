"""The blocking client against a gateway that fails on cue, over real sockets."""

import gc
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import pytest
import zmq

from tallybus import (
    Client,
    ClientClosed,
    Deposit,
    Function,
    InvalidRequest,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    Result,
    Status,
    Timeout,
    Transfer,
    Unavailable,
    Unreachable,
    WaitLevel,
    deposits,
)
from tallybus.client.codec import WaitFor
from tallybus.client.core import MILLISECOND, SECOND, CoreSettings
from tests.support.fake_gateway import (
    REJECTED,
    CuttingProxy,
    FakeGateway,
    FakeLedger,
    Message,
    always,
    first_time,
    restarting,
)

EFFECT = (1, 77, 1, 5)
"""What a FakeLedger counts for Deposit(1, 5, user_ref=77)."""


class QuickClient(Client):
    """Notices losses sooner, so that tests are short."""

    _settings = CoreSettings(ping_after=25 * MILLISECOND)


class ImpatientClient(Client):
    """Would pause for longer than any deadline, and so gives up at the first refusal."""

    _settings = CoreSettings(first_backoff=1000 * SECOND, max_backoff=1000 * SECOND)


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as running:
        yield running


@pytest.fixture
def client(gateway: FakeGateway) -> Iterator[Client]:
    with QuickClient(gateway.endpoint) as connected:
        connected.gateway_info()
        yield connected


def test_every_method_gets_its_answer(client: Client) -> None:
    assert client.submit(Deposit(1, 100, 5)) == 1
    assert client.submit_and_wait(Deposit(1, 100, 5)) == Result(
        1, Status.DUPLICATE, WaitLevel.COMMITTED, 1, Status.OK
    )
    assert client.submit_and_wait(Transfer(1, 2, REJECTED), WaitLevel.SNAPSHOT) == Result(
        3, Status.INVALID_OPERATION, WaitLevel.SNAPSHOT
    )
    batch = client.submit_batch([Transfer(1, 2, 30), Deposit(3, REJECTED), Deposit(3, 7)])
    assert batch.tx_ids.tolist() == [4, 5, 6]
    assert batch.statuses.tolist() == [0, Status.INVALID_OPERATION, 0]
    assert client.submit_batch(deposits([1, 2], 1), WaitLevel.NONE).first_tx_id == 7
    balance = client.get_balance(2, min_tx_id=3)
    assert (balance.account, balance.balance, balance.last_snapshot_tx_id) == (2, 31, 8)
    assert client.get_balances([1, 2, 9]).balances.tolist() == [71, 31, 0]
    assert client.get_balances(np.array([3], np.int32)).accounts.tolist() == [3]
    assert client.get_status(8).stage == 4
    assert client.get_statuses([8, 9]).stages.tolist() == [4, 0]
    index = client.pipeline_index()
    assert (index.sequenced, index.snapshot, index.term) == (8, 8, 1)
    assert client.wait_for(8, WaitLevel.SNAPSHOT, timeout=5) is WaitLevel.SNAPSHOT
    info = client.gateway_info()
    assert (info.max_batch, info.max_reads, info.role) == (16_384, 65_536, "admin")


def test_functions_travel_with_their_names_and_parameters(
    client: Client, gateway: FakeGateway
) -> None:
    client.submit_batch([Function("fee", (1, -2)), Deposit(1, 2), Function("fee", user_ref=3)])
    (message,) = gateway.seen
    assert message.header["names"] == ["fee"]
    assert [len(frame) for frame in message.payload] == [120, 128]
    assert np.frombuffer(message.payload[1], "<i8").tolist() == [1, -2, *[0] * 14]


class Later(WaitFor):
    """A request with a field that came later."""

    newer: ClassVar[Mapping[str, int]] = {"colour": 2}

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"colour": "red"}


def test_a_newer_field_goes_to_a_gateway_that_has_it_and_to_no_other(
    client: Client, gateway: FakeGateway
) -> None:
    client.submit_and_wait(Deposit(1, 1))
    with pytest.raises(InvalidRequest) as caught:
        client._call(Later(1, WaitLevel.COMMITTED), 10)
    assert caught.value.field == "colour"
    gateway.revision = 2
    client.gateway_info()
    assert client._call(Later(1, WaitLevel.COMMITTED), 10) is WaitLevel.COMMITTED
    assert [message.op for message in gateway.seen] == ["submit", "wait"]
    assert gateway.seen[-1].header["colour"] == "red"


def test_what_is_invalid_is_not_sent(client: Client, gateway: FakeGateway) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: client.submit_batch([]),
        lambda: client.submit(Deposit(-1, 5)),
        lambda: client.submit_and_wait(Deposit(1, 5), 4),  # type: ignore[arg-type]
        lambda: client.submit_batch([Deposit(1, 5)], "COMMITTED"),  # type: ignore[arg-type]
        lambda: client.submit(Deposit(1, 5), timeout=0),
        lambda: client.get_balance(-1),
        lambda: client.get_balance(1, min_tx_id=-1),
        lambda: client.get_balances([]),
        lambda: client.get_balances(np.zeros((2, 2), np.uint64)),
        lambda: client.get_statuses(5),
        lambda: client.wait_for(True),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest):
            call()
    assert gateway.seen == []


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://nowhere", "", 5550])
def test_an_impossible_endpoint_is_refused(endpoint: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Client(endpoint)
    assert caught.value.field == "endpoint"


def test_an_array_may_be_changed_once_the_call_returns(
    client: Client, gateway: FakeGateway
) -> None:
    gateway.script = lambda message: "hold" if message.number % 2 else "answer"
    records = deposits(np.arange(4000), 1, np.arange(1, 4001))
    expected = []
    pendings = []
    for number in range(6):
        records["amount"] = number + 1
        records["user_ref"] += 4000
        expected.append(records.tobytes())
        pendings.append(client.begin_batch(records))
        if number % 2 == 0:
            pendings[-1].result()
    records["amount"] = 0
    gateway.wait_seen(6)
    gateway.release()
    assert [pending.result().failed_count for pending in pendings] == [0] * 6
    assert [message.payload[0] for message in gateway.seen] == expected


def test_what_is_sent_again_is_what_was_sent_before() -> None:
    with FakeGateway(script=first_time("ignore")) as gateway, QuickClient(gateway.endpoint) as c:
        records = deposits(np.arange(3000), 1, np.arange(1, 3001))
        expected = records.tobytes()
        pending = c.begin_batch(records)
        records["amount"] = 9
        assert pending.result().ok_count == 3000
        assert [message.payload[0] for message in gateway.seen] == [expected, expected]


def test_batches_in_flight_are_handled_in_any_order(client: Client, gateway: FakeGateway) -> None:
    gateway.script = always("hold")
    pendings = [client.begin_batch([Deposit(n, 5)]) for n in range(1, 6)]
    gateway.wait_seen(5)
    assert not any(pending.done() for pending in pendings)
    gateway.release()
    assert [pending.result().first_tx_id for pending in reversed(pendings)] == [5, 4, 3, 2, 1]
    assert all(pending.done() for pending in pendings)
    assert pendings[2].result().first_tx_id == 3


def test_a_pending_may_be_waited_for_in_steps(client: Client, gateway: FakeGateway) -> None:
    gateway.script = always("hold")
    pending = client.begin_batch([Deposit(1, 5)])
    with pytest.raises(Timeout, match="still on its way"):
        pending.result(timeout=0.05)
    gateway.release()
    assert pending.result().first_tx_id == 1


def test_done_alone_drives_the_connection(client: Client) -> None:
    pending = client.begin_batch([Deposit(1, 5)])
    end = time.monotonic() + 10
    while not pending.done():
        assert time.monotonic() < end
        time.sleep(0.001)
    assert pending.result().first_tx_id == 1


def test_threads_share_a_client(client: Client, gateway: FakeGateway) -> None:
    def work(account: int) -> list[int]:
        ids = []
        for n in range(40):
            ids.append(client.submit(Deposit(account, 1, account * 1000 + n)))
            assert client.get_balance(account).balance == n + 1
        return ids

    with ThreadPoolExecutor(16) as pool:
        ids = [tx_id for part in pool.map(work, range(1, 17)) for tx_id in part]
    assert sorted(ids) == list(range(1, 641))
    assert len(gateway.seen) == 1280


def test_a_waiting_thread_does_not_hinder_others(client: Client, gateway: FakeGateway) -> None:
    gateway.script = lambda message: "hold" if message.op == "wait" else "answer"
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(client.wait_for, n) for n in range(4)]
        gateway.wait_seen(4)
        for n in range(50):
            assert client.submit(Deposit(1, 1)) == n + 1
        assert not any(future.done() for future in waiting)
        gateway.release()
        assert [future.result(10) for future in waiting] == [WaitLevel.COMMITTED] * 4


def test_an_earlier_deadline_of_another_thread_is_kept(
    client: Client, gateway: FakeGateway
) -> None:
    gateway.script = always("hold")
    with ThreadPoolExecutor(2) as pool:
        patient = pool.submit(client.wait_for, 1, timeout=20)
        gateway.wait_seen(1)
        begun = time.monotonic()
        with pytest.raises(Timeout):
            client.wait_for(2, timeout=0.05)
        assert time.monotonic() - begun < 5
        gateway.release()
        assert patient.result(10) is WaitLevel.COMMITTED


def test_a_gateway_that_is_not_there_is_told_from_one_that_is_slow(
    free_port: Callable[[], int],
) -> None:
    with Client(f"tcp://127.0.0.1:{free_port()}", timeout=0.05) as client:
        with pytest.raises(Unreachable, match="never sent") as caught:
            client.submit(Deposit(1, 5))
        assert (caught.value.request, caught.value.seconds) == ("submit", 0.05)
        assert caught.value.endpoint in str(caught.value)
        assert not isinstance(caught.value, TimeoutError)
        assert isinstance(caught.value, ConnectionError)


def test_a_silent_gateway_is_a_timeout() -> None:
    with (
        FakeGateway(script=always("ignore"), silent=True) as gateway,
        QuickClient(gateway.endpoint) as client,
        pytest.raises(Timeout, match="may still be executed"),
    ):
        client.submit_and_wait(Deposit(1, 5, 77), timeout=0.2)


def test_a_client_may_come_before_its_gateway(free_port: Callable[[], int]) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with QuickClient(endpoint) as client:
        pending = client.begin_batch([Deposit(1, 5)])
        assert not pending.done()
        with FakeGateway(endpoint=endpoint) as gateway:
            assert pending.result().first_tx_id == 1
            assert len(gateway.seen) == 1


@pytest.mark.parametrize(
    ("code", "kind"), [("overloaded", Overloaded), ("unavailable", Unavailable)]
)
def test_a_gateway_that_refuses_is_asked_again(code: str, kind: type[Exception]) -> None:
    def script(message: Message) -> str:
        return "answer" if message.number == 4 else code

    with FakeGateway(script=script) as gateway, QuickClient(gateway.endpoint) as client:
        assert client.submit(Deposit(1, 5)) == 1
        assert len(gateway.seen) == 5


@pytest.mark.parametrize(
    ("code", "kind"), [("overloaded", Overloaded), ("unavailable", Unavailable)]
)
def test_a_gateway_that_goes_on_refusing_ends_the_request(code: str, kind: type[Exception]) -> None:
    with FakeGateway(script=always(code)) as gateway, ImpatientClient(gateway.endpoint) as client:
        with pytest.raises(kind):
            client.submit(Deposit(1, 5))
        assert gateway.ledger.next_id == 1


def test_garbage_is_a_protocol_error() -> None:
    with (
        FakeGateway(script=first_time("garbage")) as gateway,
        QuickClient(gateway.endpoint) as client,
    ):
        with pytest.raises(ProtocolError):
            client.submit(Deposit(1, 5))
        assert client.submit(Deposit(1, 5)) == 1


@pytest.mark.parametrize("verdict", ["ignore", "mute"])
def test_with_a_reference_a_lost_request_has_exactly_one_effect(verdict: str) -> None:
    with (
        FakeGateway(script=first_time(verdict)) as gateway,
        QuickClient(gateway.endpoint) as client,
    ):
        result = client.submit_and_wait(Deposit(1, 5, 77))
        assert (result.tx_id, result.status) == (1, Status.NONE)
        assert result.ok
        assert gateway.ledger.effects == {EFFECT: 1}
        # The caller's own repetition is a duplicate.
        assert client.submit_and_wait(Deposit(1, 5, 77)).status == Status.DUPLICATE


@pytest.mark.parametrize("verdict", ["ignore", "mute"])
def test_without_a_reference_a_lost_request_has_an_unknown_outcome(verdict: str) -> None:
    with (
        FakeGateway(script=first_time(verdict)) as gateway,
        QuickClient(gateway.endpoint) as client,
    ):
        with pytest.raises(OutcomeUnknown) as caught:
            client.submit_and_wait(Deposit(1, 5))
        assert not caught.value.retry_safe
        assert len(gateway.seen) == 1
        assert sum(gateway.ledger.effects.values()) == (verdict == "mute")


def test_lost_reads_are_read_again() -> None:
    with (
        FakeGateway(script=lambda m: "ignore" if m.number % 2 == 0 else "answer") as gateway,
        QuickClient(gateway.endpoint) as client,
    ):
        assert client.get_balance(1).balance == 0
        assert client.pipeline_index().term == 1


@pytest.mark.parametrize("verdict", ["hold", "ignore", "mute"])
def test_a_gateway_may_be_restarted_under_a_request(verdict: str) -> None:
    ledger = FakeLedger()
    with (
        restarting(ledger, always(verdict)) as (gateway, restart),
        QuickClient(gateway.endpoint) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        safe = pool.submit(client.submit_and_wait, Deposit(1, 5, 77))
        gateway.wait_seen(1)
        unsafe = pool.submit(client.submit_and_wait, Deposit(2, 5))
        gateway.wait_seen(2)
        read = pool.submit(client.pipeline_index)
        gateway.wait_seen(3)
        restart()
        assert safe.result(20).status == Status.NONE
        assert read.result(20).term == 1
        with pytest.raises(OutcomeUnknown):
            unsafe.result(20)
        assert ledger.effects[EFFECT] == 1
        assert ledger.effects[1, 0, 2, 5] == (verdict != "ignore")
        assert client.submit(Deposit(3, 5)) == ledger.next_id - 1


def measured() -> tuple[int, int]:
    """How many bytes a connection with one submit carries towards the gateway and back."""
    with FakeGateway() as gateway:
        port = int(gateway.endpoint.rpartition(":")[2])
        with CuttingProxy(port, None, None) as proxy, Client(proxy.endpoint) as client:
            client.submit_and_wait(Deposit(1, 5, 77))
            return proxy.forwarded[True], proxy.forwarded[False]


def cut_at(upstream: int | None, downstream: int | None, user_ref: int) -> tuple[bool, int]:
    """One submit over a connection that is cut there: whether it has a result, and its effects."""
    with FakeGateway() as gateway:
        port = int(gateway.endpoint.rpartition(":")[2])
        with (
            CuttingProxy(port, upstream, downstream) as proxy,
            QuickClient(proxy.endpoint) as client,
        ):
            try:
                result = client.submit_and_wait(Deposit(1, 5, user_ref), timeout=20)
            except OutcomeUnknown:
                return False, sum(gateway.ledger.effects.values())
            assert proxy.cut
            assert (result.tx_id, result.status) == (1, Status.NONE)
            assert client.get_balance(1).balance == 5
            return True, sum(gateway.ledger.effects.values())


def test_a_connection_may_be_cut_at_every_point_of_a_request() -> None:
    upstream, downstream = measured()
    assert upstream > 100
    assert downstream > 100
    points: list[tuple[int | None, int | None]] = [
        *((n, None) for n in range(1, upstream + 1, 4)),
        *((None, n) for n in range(1, downstream, 4)),
        *((upstream - 1, None), (upstream, None), (None, downstream - 1)),
    ]
    with ThreadPoolExecutor(12) as pool:
        with_reference = list(pool.map(lambda point: cut_at(point[0], point[1], 77), points))
        without = list(pool.map(lambda point: cut_at(point[0], point[1], 0), points))
    assert with_reference == [(True, 1)] * len(points)
    for point, (has_result, effects) in zip(points, without, strict=True):
        assert effects == 1 if has_result else effects in (0, 1), point
    outcomes = set(without)
    # Cut before the request was sent, before it had come, and after.
    assert outcomes == {(True, 1), (False, 0), (False, 1)}


def test_closing_waits_for_what_is_outstanding() -> None:
    with FakeGateway(script=always("hold")) as gateway:
        client = QuickClient(gateway.endpoint)
        client.gateway_info()
        pending = client.begin_batch([Deposit(1, 5)])
        gateway.wait_seen(1)
        closing = threading.Thread(target=client.close)
        closing.start()
        gateway.wait_seen(2, pings=True)
        assert closing.is_alive()
        with pytest.raises(ClientClosed):
            client.submit(Deposit(1, 5))
        gateway.release()
        closing.join(10)
        assert not closing.is_alive()
        assert pending.done()
        assert pending.result().first_tx_id == 1
        client.close()


def test_closing_at_once_fails_what_is_outstanding() -> None:
    with FakeGateway(script=always("hold")) as gateway:
        client = QuickClient(gateway.endpoint)
        with ThreadPoolExecutor(2) as pool:
            reads = [pool.submit(client.pipeline_index) for _ in range(2)]
            gateway.wait_seen(2)
            pending = client.begin_batch([Deposit(1, 5)])
            client.close(wait=False)
            for read in reads:
                with pytest.raises(ClientClosed):
                    read.result(10)
        with pytest.raises(OutcomeUnknown):
            pending.result()
        assert pending.done()


def fail_with_a_batch_under_way(gateway: FakeGateway) -> None:
    with QuickClient(gateway.endpoint) as client:
        client.begin_batch([Deposit(1, 5)])
        raise ZeroDivisionError


def test_an_error_in_a_with_block_closes_at_once() -> None:
    with FakeGateway(script=always("hold")) as gateway:
        begun = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            fail_with_a_batch_under_way(gateway)
        assert time.monotonic() - begun < 10


def test_no_socket_or_file_is_left_behind() -> None:
    with warnings.catch_warnings(), FakeGateway() as gateway:
        warnings.simplefilter("error")
        for _ in range(5):
            with Client(gateway.endpoint) as client:
                client.submit(Deposit(1, 5))
        with pytest.raises(InvalidRequest):
            Client("nonsense")
        del client
        gc.collect()


def test_an_inproc_gateway_needs_its_context() -> None:
    with zmq.Context() as context:
        with (
            FakeGateway(endpoint="inproc://ledger", context=context) as gateway,
            QuickClient(gateway.endpoint, context=context) as client,
        ):
            records = deposits(np.arange(5000), 1)
            for n in range(5):
                records["amount"] = n + 1
                assert client.submit_batch(records).first_tx_id == 5000 * n + 1
            # The receiver holds the very frames that were sent: they must not be used again.
            amounts = [m.payload[0][32::40] for m in gateway.seen]
            assert amounts == [bytes([n + 1]) * 5000 for n in range(5)]
        assert not context.closed


def test_a_terminated_context_ends_every_request() -> None:
    with FakeGateway(script=always("hold")) as gateway:
        context: zmq.Context[Any] = zmq.Context()
        client = QuickClient(gateway.endpoint, context=context)
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(client.wait_for, 1), pool.submit(client.submit, Deposit(1, 5))]
            gateway.wait_seen(2)
            terminating = pool.submit(context.term)
            with pytest.raises(ClientClosed):
                waiting[0].result(10)
            with pytest.raises(OutcomeUnknown):
                waiting[1].result(10)
            with pytest.raises(ClientClosed):
                client.pipeline_index()
            client.close()
            terminating.result(10)
