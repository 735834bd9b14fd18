"""Functions on real processes: crowds that register and call, and clients that mean harm."""

from __future__ import annotations

import random
import struct
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from crc32c import crc32c

from tallybus import (
    AlreadyExists,
    Client,
    Deposit,
    Function,
    FunctionVersion,
    InvalidFunction,
    NotRegistered,
    Status,
    TallybusError,
    WaitLevel,
    function_calls,
)
from tallybus.common.settings.sections import Settings
from tallybus.common.stages import SERVICES, START_ORDER
from tallybus.common.wal.check import check_log
from tests.processes.pipeline import PATIENCE_S, eventually, make_settings
from tests.processes.registration_kills import binary_of
from tests.processes.registry import registry
from tests.processes.services import Services
from tests.support.hostile import making
from tests.support.hostile.failing import FAILING
from tests.support.hostile.refused import REFUSED
from tests.support.hostile.remembering import REMEMBERING

pytestmark = pytest.mark.usefixtures("threads_end")


# --- crowds -------------------------------------------------------------------------------------


def together(settings: Settings, count: int, act: Callable[[Client, int], Any]) -> list[Any]:
    """What `act(client, number)` returned or raised, for each of so many clients at once."""
    barrier = threading.Barrier(count)
    found: list[Any] = [None] * count

    def run(number: int) -> None:
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            client.pipeline_index()
            barrier.wait()
            try:
                found[number] = act(client, number)
            except TallybusError as error:
                found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive()
    return found


PIPELINE_SETTINGS = {
    "ledger__max_accounts": 1_000,
    "ledger__transactions_per_segment": 20_000,
    "ledger__snapshot_frequency": 1,
}


def test_of_many_that_register_a_name_at_once_exactly_one_succeeds(pipeline: Any) -> None:
    found = together(
        pipeline.settings, 40, lambda client, n: client.register_function("crowd", binary_of(n))
    )
    (number,) = [at for at, each in enumerate(found) if isinstance(each, FunctionVersion)]
    assert found[number].version == 1
    assert sum(isinstance(each, AlreadyExists) for each in found) == 39
    with pipeline.client() as client:
        (row,) = [row for row in client.list_functions() if row.name == "crowd"]
        assert (row.version, row.crc32c) == (1, found[number].crc32c)


def test_versions_of_many_that_replace_at_once_have_no_gap_and_each_has_its_file(
    pipeline: Any,
) -> None:
    found = together(
        pipeline.settings,
        40,
        lambda client, n: client.register_function("busy", binary_of(n % 20), override=True),
    )
    assert sorted(each.version for each in found) == list(range(1, 41))
    by_id = sorted(found, key=lambda each: each.tx_id)
    assert [each.version for each in by_id] == list(range(1, 41))
    for number, each in enumerate(found):
        path = pipeline.data / "functions" / f"busy_v{each.version}.wasm"
        assert path.read_bytes() == binary_of(number % 20)
    gone = together(pipeline.settings, 20, lambda client, _: client.unregister_function("busy"))
    assert Counter(type(each) for each in gone) == {FunctionVersion: 1, NotRegistered: 19}


def test_calls_behind_a_registration_run_it_and_calls_before_it_ran_what_was_there(
    pipeline: Any,
) -> None:
    with pipeline.client() as client, pipeline.client() as other:
        client.submit_and_wait(Deposit(1, 10**9))
        made: list[FunctionVersion] = []

        def replace() -> None:
            for number in range(12):
                made.append(other.register_function("moving", binary_of(number), override=True))

        thread = threading.Thread(target=replace)
        thread.start()
        results = []
        while thread.is_alive() or len(results) < 5:
            batch = function_calls("moving", np.ones((50, 1), np.int64))
            results.append(client.submit_batch(batch, WaitLevel.COMPUTED))
            assert len(results) < 10**5
        thread.join()
        last = int(results[-1].tx_ids[-1])
        client.wait_for(last, WaitLevel.SNAPSHOT)
        # Every call ran the version whose registration was the last before it.
        starts = [each.tx_id for each in made]
        around = [tx_id + step for tx_id in starts for step in (-1, 1)]
        ids = [tx_id for each in results for tx_id in each.tx_ids.tolist()]
        seen = set()
        for tx_id in {*around, *ids[:3], ids[-1]}.intersection(ids):
            version = sum(start < tx_id for start in starts)
            found = client.get_transaction(tx_id)
            assert found.function_version == (version or None)
            assert found.status == (Status.NONE if version else Status.INVALID_OPERATION)
            seen.add(version)
        assert 12 in seen


def test_a_module_that_takes_long_to_compile_holds_nobody_up(pipeline: Any) -> None:
    with pipeline.client() as client, pipeline.client() as other:
        done = threading.Event()

        def register() -> None:
            other.register_function("slow", slow_to_compile())
            done.set()

        thread = threading.Thread(target=register)
        thread.start()
        commits = 0
        while not done.is_set():
            assert thread.is_alive() or done.is_set()
            client.submit_and_wait(Deposit(1, 1), WaitLevel.COMMITTED)
            commits += not done.is_set()
        thread.join()
    assert commits > 3


def slow_to_compile() -> bytes:
    """Valid and within the limits, and more than a second of work for the compiler."""
    step = b"\x20\x00\x42\x83\xda\xc4\x09\x7e\x20\x01\x85\x21\x00"
    bodies = [making.body(step * 2_000 + b"\x20\x00\xa7") for _ in range(40)]
    return making.module([making.body(making.RETURN_0), *bodies])


# --- harm ---------------------------------------------------------------------------------------


def test_hostile_modules_through_the_gateway_leave_every_service_as_it_was(pipeline: Any) -> None:
    pids = pipeline.pids()
    with pipeline.client() as client:
        before = client.pipeline_index().committed
        for what, refused in REFUSED.items():
            binary = refused.binary()
            if 0 < len(binary) <= making.MEGABYTES_4:  # the client itself refuses others
                with pytest.raises(InvalidFunction) as caught:
                    client.register_function("hostile", binary)
                assert refused.reason in caught.value.reason, what
        assert client.pipeline_index().committed == before, "nothing of them is in the log"
        assert not list((pipeline.data / "functions").glob("hostile_*"))
        held = client.get_balances(range(1_000)).balances.tolist()
        for what, failing in FAILING.items():
            client.register_function("failing", failing.binary(), override=True)
            calls = function_calls("failing", [list(failing.params) or [0]] * 3)
            result = client.submit_batch(calls, WaitLevel.SNAPSHOT)
            assert set(result.statuses.tolist()) == {failing.status}, what
        last = client.pipeline_index().committed
        assert client.get_balances(range(1_000), min_tx_id=last).balances.tolist() == held
        for what, binary_ in REMEMBERING.items():
            client.register_function("remembering", binary_(), override=True)
            result = client.submit_batch(function_calls("remembering", [[0]] * 3))
            assert len(set(result.statuses.tolist())) == 1, what
    assert pipeline.pids() == pids


def with_checksum(binary: bytes, wanted: int) -> bytes:
    """The module with a custom section behind it that gives it this CRC-32C."""
    head = (binary + making.custom_section(16))[:-4]
    zero = crc32c(head + bytes(4))
    # A checksum is linear in the bits: by elimination find those that change it as wanted.
    basis: dict[int, tuple[int, int]] = {}

    def reduced(value: int, bits: int) -> tuple[int, int]:
        while value and value.bit_length() in basis:
            other, its_bits = basis[value.bit_length()]
            value, bits = value ^ other, bits ^ its_bits
        return value, bits

    for place in range(32):
        bits = 1 << place
        value, bits = reduced(crc32c(head + bits.to_bytes(4, "little")) ^ zero, bits)
        basis[value.bit_length()] = value, bits
    _, bits = reduced(wanted ^ zero, 0)
    made = head + bits.to_bytes(4, "little")
    assert crc32c(made) == wanted
    return made


def test_binaries_made_to_have_one_checksum_are_told_apart_and_zero_is_none(pipeline: Any) -> None:
    one, two = (
        with_checksum(making.function(f"(i32.const {status})"), 0x1234) for status in (130, 131)
    )
    with pipeline.client() as client:
        with pytest.raises(TallybusError, match="CRC-32C is 0"):
            client.register_function("zero", with_checksum(one, 0))
        results = []
        for name, binary in (("alike", one), ("alike", two), ("other", one), ("alike", one)):
            client.register_function(name, binary, override=True)
            results.append(client.submit_and_wait(Function(name), WaitLevel.SNAPSHOT))
        assert [int(each.status) for each in results] == [130, 131, 130, 130]
        found = [client.get_transaction(each.tx_id) for each in results]
        told = [(each.function_name, each.function_version) for each in found]
        assert told == [("alike", 1), ("alike", 2), ("other", 1), ("alike", 3)]


def raw_record(kind: int, rng: random.Random) -> bytes:
    """An operation of this kind as a client may send it; of kind 5, with anything in it."""
    if kind == 5:
        return bytes([5, *rng.randbytes(39)])
    return struct.pack(
        "<BBHIQQQQ",
        kind,
        0,
        0,
        rng.randrange(2) if kind == 4 else 0,
        rng.choice((0, rng.randrange(1, 40))),
        0 if kind == 4 else rng.choice((0, 1, rng.randrange(50), 2**63)),
        rng.randrange(5) if kind == 3 else 0,
        0 if kind == 4 else rng.choice((0, 1, 8, 255, 2**40, rng.getrandbits(64))),
    )


def test_raw_records_of_registrations_and_calls_register_nothing_and_survive_a_restart(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    settings = make_settings(data, ledger__max_accounts=100)
    rng = random.Random(6)
    with Services(tmp_path) as services, zmq.Context() as context:
        services.start_all(settings)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            client.register_function("ok", binary_of(1))
            dealer = context.socket(zmq.DEALER)
            dealer.linger = 0
            dealer.connect(settings.gateway.endpoint)
            refused = 0
            for number in range(1, 120):
                kinds = rng.choices((1, 3, 4), k=rng.randint(1, 40))
                if rng.random() < 0.4:
                    kinds[rng.randrange(len(kinds))] = 5
                encoded = b"".join(raw_record(kind, rng) for kind in kinds)
                header = {"v": 1, "id": number, "op": "submit", "wait": 2, "count": len(kinds)}
                names = rng.choice((["ok", "../x"], ["ok", "no"], ["other", "ok", "ok"]))
                header["names"] = names
                sequenced = client.pipeline_index().sequenced
                params = [rng.randbytes(64 * kinds.count(4))] if 4 in kinds else []
                dealer.send_multipart([msgpack.packb(header), encoded, *params])
                assert dealer.poll(1_000 * PATIENCE_S)
                answer = msgpack.unpackb(dealer.recv_multipart()[0])
                if 5 in kinds or "../x" in names:
                    refused += 1
                    assert answer["error"] == "invalid_request"
                    assert client.pipeline_index().sequenced == sequenced
                else:
                    assert answer["level"] == 2
            assert 20 < refused < 110
            dealer.close()
            last = client.pipeline_index().committed
            client.wait_for(last, WaitLevel.SNAPSHOT)
            sample = sorted(rng.sample(range(2, last + 1), 300))
            before = [client.get_transaction(tx_id) for tx_id in sample]
            assert {each.status for each in before if each.kind == 4} >= {
                Status.INVALID_OPERATION,
                Status.DUPLICATE,
            }
            assert not any(each.kind == 5 for each in before)
            balances = client.get_balances(range(100)).balances.tolist()
            assert sum(balances) == 0
            assert registry(client)[0][:2] == ("ok", 1)
            for stage in START_ORDER:
                services[stage].kill()
            services.start_all(settings)
            client.wait_for(last, WaitLevel.SNAPSHOT)
            assert client.get_balances(range(100)).balances.tolist() == balances
            assert [row[:2] for row in registry(client)] == [("ok", 1)]
            for tx_id, old in zip(sample, before, strict=True):
                new = client.get_transaction(tx_id)
                assert (new.kind, new.status, new.params) == (old.kind, old.status, old.params)
                assert (new.entries, new.duplicate_of) == (old.entries, old.duplicate_of)
    assert check_log(data, settings.ledger.transactions_per_segment).torn is None
    assert [path.name for path in (data / "functions").iterdir()] == ["ok_v1.wasm"]


def test_a_batch_with_millions_of_entries_passes_also_when_services_die_in_it(
    tmp_path: Path,
) -> None:
    """Each call makes 254 entries: 127 units leave account 1, one for each of 127 others."""
    settings = make_settings(
        tmp_path / "data",
        ledger__max_accounts=200,
        functions__submit_entries=10_000_000,
        functions__submit_ms=10_000,
    )
    spread = making.function(
        """(local.set $to (i64.const 127))
        (loop $l
          (call $credit (i64.const 1) (i64.const 1))
          (call $debit (i64.add (i64.const 1) (local.get $to)) (i64.const 1))
          (local.set $to (i64.sub (local.get $to) (i64.const 1)))
          (br_if $l (i64.gt_s (local.get $to) (i64.const 0))))
        (i32.const 0)""",
        locals_="(local $to i64)",
    )
    count = 8_000
    with Services(tmp_path) as services:
        services.start_all(settings)
        with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
            client.register_function("spread", spread)
            refs = iter(range(1, 10**6, count))
            for victim in ("", *SERVICES):
                ref = next(refs)
                calls = function_calls(
                    "spread", np.zeros((count, 1), np.int64), np.arange(ref, ref + count)
                )
                pending = client.begin_batch(calls, WaitLevel.COMMITTED)
                if victim:
                    target = client.pipeline_index().committed
                    eventually(
                        lambda: pending.done() or client.pipeline_index().computed > target,  # noqa: B023
                        "it is under way",
                    )
                    services[victim].kill()
                    services.start(victim, settings)
                assert not pending.result().statuses.any()
            last = client.pipeline_index().committed
            moved = 6 * count
            expected = [0, -127 * moved, *[moved] * 127, *[0] * 71]
            assert client.get_balances(range(200), min_tx_id=last).balances.tolist() == expected
            found = client.get_transaction(last - 5)
            assert len(found.entries) == 254 or found.status == Status.DUPLICATE
            for stage in START_ORDER:
                services[stage].kill()
            services.start_all(settings)
            assert client.get_balances(range(200), min_tx_id=last).balances.tolist() == expected
