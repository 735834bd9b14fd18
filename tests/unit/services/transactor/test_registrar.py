"""The transactor's decisions about functions, with the real engine and its sandbox."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from numpy.typing import NDArray
from wasmtime import wat2wasm

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import (
    Executed,
    FunctionsAnswer,
    FunctionsQuery,
    Hello,
    Prepare,
    Prepared,
    Sequenced,
)
from tallybus.common.functions.registry import FunctionVersion, registrations
from tallybus.common.record import ENTRY_DTYPE, RECORD_DTYPE, Kind, Reason, Status
from tallybus.services.transactor import core as module
from tallybus.services.transactor.core import TransactorCore
from tallybus.services.transactor.engine import Engine
from tallybus.services.transactor.functions.codefiles import CodeFiles, identity_of
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.registrar import Registrar
from tests.support.compilers import InProcess, one_for_all
from tests.support.registries import registry_of
from tests.unit.services.transactor.rig import (
    GATEWAY,
    HEARTBEAT,
    ME,
    PEER,
    SEQUENCER,
    log_status,
    log_welcome,
    results_of,
    taken,
)


def wasm(text: str) -> bytes:
    return bytes(wat2wasm(text))


MOVE = wasm(
    """(module
    (import "ledger" "credit" (func $credit (param i64 i64)))
    (import "ledger" "debit" (func $debit (param i64 i64)))
    (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)
        (call $credit (local.get 0) (local.get 2))
        (call $debit (local.get 1) (local.get 2))
        (i32.const 0)))"""
)
MANY = wasm(
    """(module
    (import "ledger" "credit" (func $credit (param i64 i64)))
    (import "ledger" "debit" (func $debit (param i64 i64)))
    (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)
        (local $left i32)
        (local.set $left (i32.const 100))
        (loop $again
            (call $credit (i64.const 1) (i64.const 1))
            (call $debit (i64.const 2) (i64.const 1))
            (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
        (i32.const 0)))"""
)

LARGE_MEMORY = wasm(
    """(module (memory 20) (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64)
        (result i32) (i32.store (i32.const 0) (i32.const 1)) (i32.const 0)))"""
)


class Rig:
    """A transactor that runs, fed by hand."""

    def __init__(
        self,
        limits: FunctionLimits | None = None,
        capacity: int = 100_000,
        files: CodeFiles | None = None,
    ) -> None:
        self.engine = Engine(10, 100_000, 1, limits)
        self.compiler = InProcess(limits)
        self.registrar = Registrar(self.engine, limits, files, one_for_all(self.compiler))
        self.core = TransactorCore(ME, capacity, HEARTBEAT)
        self.core.tick(0)
        self.core.on_welcome(log_welcome(term=4), 0)
        self.core.recovered(self.engine, self.registrar)
        self.core.on_status(log_status(1, 0), 0)
        self.core.on_hello(PEER, Hello("sequencer", SEQUENCER))
        self.core.on_welcome(log_welcome(term=5), 0)
        self.core.replies.clear()
        self.next = 1

    def send(self, message: Sequenced) -> list[Executed]:
        self.core.on_sequenced(message)
        self.next = max(self.next, message.first + message.count)
        return taken(self.core)

    def registration(self, name: str, binary: bytes, *, override: bool = False) -> Sequenced:
        record = np.zeros(1, RECORD_DTYPE)
        record["kind"] = Kind.FUNCTION_REGISTERED
        record["function"] = crc32c(binary) if binary else 0
        record["account"] = override
        return Sequenced(
            5, SEQUENCER, self.next, 1, 77, GATEWAY, self.next, as_buffer(record),
            names=[name], registers=True, binary=binary,
        )  # fmt: skip

    def calls(self, params: NDArray[np.int64], names: Sequence[str]) -> Sequenced:
        """One call of the first name for each row of parameters."""
        records = np.zeros(len(params), RECORD_DTYPE)
        records["kind"] = Kind.FUNCTION
        return Sequenced(
            5, SEQUENCER, self.next, len(records), 77, GATEWAY, self.next, as_buffer(records),
            params=as_buffer(params), names=list(names),
        )  # fmt: skip


def rows(*params: Sequence[int]) -> NDArray[np.int64]:
    found = np.zeros((len(params), 8), np.int64)
    for row, given in zip(found, params, strict=True):
        row[: len(given)] = given
    return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_registration_goes_to_the_log_with_its_binary(rig: Rig) -> None:
    (executed,) = rig.send(rig.registration("move", MOVE))
    assert bytes(executed.binary) == MOVE
    assert registrations(executed.batch()) == [FunctionVersion("move", 1, crc32c(MOVE), 1)]
    assert rig.registrar.registry.live("move") == FunctionVersion("move", 1, crc32c(MOVE), 1)


def test_a_registration_that_fails_takes_no_binary_to_the_log(rig: Rig) -> None:
    rig.send(rig.registration("move", MOVE))
    (executed,) = rig.send(rig.registration("move", MOVE))
    assert bytes(executed.binary) == b""
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.INVALID_OPERATION
    assert len(rig.registrar.registry) == 1


def test_versions_go_on_through_unregistration(rig: Rig) -> None:
    for binary, override in ((MOVE, False), (MANY, True), (b"", False), (MOVE, False)):
        rig.send(rig.registration("move", binary, override=override))
    assert [version.version for version in rig.registrar.registry.versions()] == [1, 2, 3, 4]
    assert [row["version"] for row in rig.registrar.rows()] == [4]


def test_calls_name_the_registration_that_they_ran(rig: Rig) -> None:
    rig.send(rig.registration("move", MOVE))
    rig.send(rig.registration("same", MOVE))
    for name, registered in (("move", 1), ("same", 2), ("none", 0)):
        (executed,) = rig.send(rig.calls(rows((1, 2, 5)), [name]))
        record = np.frombuffer(executed.records, RECORD_DTYPE)[0]
        assert record["account"] == registered
        assert record["function"] == (crc32c(MOVE) if registered else 0)


def test_what_is_known_of_a_batch_of_calls_is_cut_off_with_its_parameters(rig: Rig) -> None:
    rig.send(rig.registration("move", MOVE))
    first = rig.calls(rows((1, 2, 5)), ["move"])
    rig.send(first)
    both = rig.calls(rows((1, 2, 5), (3, 4, 7)), ["move"])
    (executed,) = rig.send(replace(both, first=first.first))
    assert (executed.first, executed.count) == (3, 1)
    assert rig.engine.balances[:5].tolist() == [0, -5, 5, -7, 7]


def test_a_batch_that_became_large_goes_to_the_log_in_pieces(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EXECUTED_BYTES", 20_000)
    rig.send(rig.registration("many", MANY))
    results_of(rig.core)
    pieces = rig.send(rig.calls(rows(*[()] * 20), ["many"]))
    assert len(pieces) > 1
    following = 2
    for piece in pieces:
        assert piece.first == following
        following += piece.count
        batch = piece.batch()
        batch.check()
        assert len(batch.entries) == 200 * piece.count
        assert batch.entries["amount"].sum() == 0
        assert batch.byte_length <= 20_000
    assert following == 22
    (told,) = results_of(rig.core)
    assert (told.first, told.count) == (2, 20)


def test_what_is_large_weighs_more_than_its_transactions() -> None:
    rig = Rig(capacity=100)
    rig.send(rig.registration("many", MANY))
    rig.send(rig.calls(rows(*[()] * 10), ["many"]))
    assert not rig.core.wants_input()
    rig.core.on_status(log_status(rig.next, rig.next - 1), 0)
    assert rig.core.wants_input()


def test_a_module_is_looked_at_once_however_often_it_is_asked(rig: Rig) -> None:
    for _ in range(3):
        rig.core.on_prepare(b"g", Prepare(7, "move", MOVE))
    (asked,) = rig.core.modules
    rig.core.modules.clear()
    rig.core.prepared(asked, None)
    rig.core.prepared(asked, "no")
    assert rig.core.replies == [(b"g", Prepared(7)), (b"g", Prepared(7, True, "no"))]
    rig.core.on_prepare(b"g", Prepare(7, "move", MOVE))
    assert len(rig.core.modules) == 1


def test_live_functions_are_told_with_what_they_did(rig: Rig) -> None:
    rig.send(rig.registration("move", MOVE))
    rig.send(rig.calls(rows((1, 2, 5), (1, 20, 5), (1, 2, 5)), ["move"]))
    rig.core.on_functions_query(b"g", FunctionsQuery(3))
    ((_, answer),) = rig.core.replies
    assert isinstance(answer, FunctionsAnswer)
    (row,) = answer.functions
    assert (row["name"], row["version"], row["registered"]) == ("move", 1, 1)
    assert row["calls"] == 3
    assert row["failures"] == {Status.ACCOUNT_LIMIT_EXCEEDED: 1}
    assert row["fuel"] > 0


def test_what_is_too_many_is_refused_with_the_reason() -> None:
    rig = Rig(FunctionLimits(max_functions=1))
    assert rig.registrar.refusal("move", MOVE) is None
    rig.send(rig.registration("move", MOVE))
    assert rig.registrar.refusal("move", MOVE) is None
    assert "max_functions" in str(rig.registrar.refusal("other", MOVE))
    (executed,) = rig.send(rig.registration("other", MANY))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.QUOTA_EXCEEDED


def test_functions_are_as_before_after_a_restart(rig: Rig) -> None:
    rig.send(rig.registration("move", MOVE))
    rig.send(rig.registration("many", MANY))
    again = Rig()
    again.registrar.restore(registry_of(rig.registrar.registry.versions()), {1: MOVE, 2: MANY})
    (executed,) = again.send(again.calls(rows((1, 2, 5)), ["move"]))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["account"][0] == 1
    entries = np.frombuffer(executed.extras, ENTRY_DTYPE, executed.entries, executed.params * 8)
    assert entries.tolist() == [(1, -5), (2, 5)]


def test_a_registered_function_that_cannot_run_here_stops_nothing(rig: Rig) -> None:
    versions = [
        FunctionVersion("move", 1, crc32c(MOVE), 1),
        FunctionVersion("broken", 1, crc32c(b"\0asm"), 2),
    ]
    unusable = rig.registrar.restore(registry_of(versions), {1: MOVE, 2: b"\0asm"})
    ((version, reason),) = unusable
    assert version == versions[1]
    assert "version of the binary format" in reason
    rows_ = {row["name"]: row for row in rig.registrar.rows()}
    assert rows_["broken"]["unusable"] == reason
    assert not rows_["move"]["unusable"]
    (executed,) = rig.send(rig.calls(rows((1, 2, 5), (1, 2, 5)), ["broken"]))
    records = np.frombuffer(executed.records, RECORD_DTYPE)
    assert records["status"].tolist() == [Status.SUSPENDED] * 2
    assert records["reason"].tolist() == [Reason.STOPPED] * 2
    (executed,) = rig.send(rig.calls(rows((1, 2, 5)), ["move"]))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE


def test_what_cannot_run_can_be_replaced_and_unregistered(rig: Rig) -> None:
    rig.send(rig.calls(rows((), ()), ["nobody"]))
    versions = [FunctionVersion(name, 1, crc32c(b"\0asm"), n + 1) for n, name in enumerate("ab")]
    rig.registrar.restore(registry_of(versions), {1: b"\0asm", 2: b"\0asm"})
    (executed,) = rig.send(rig.registration("a", MOVE, override=True))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE
    (executed,) = rig.send(rig.registration("b", b""))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE
    (row,) = rig.registrar.rows()
    assert (row["name"], row["version"], row["unusable"]) == ("a", 2, "")
    (executed,) = rig.send(rig.calls(rows((1, 2, 5)), ["a"]))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE


def test_limits_that_were_lowered_take_no_function_away() -> None:
    lower = Rig(FunctionLimits(max_functions=1, compile_total_seconds=0, binaries_bytes=1))
    versions = [FunctionVersion(f"f{n}", 1, crc32c(MOVE), n) for n in (1, 2, 3)]
    assert lower.registrar.restore(registry_of(versions), dict.fromkeys((1, 2, 3), MOVE)) == []
    for name in ("f1", "f2", "f3"):
        (executed,) = lower.send(lower.calls(rows((1, 2, 5)), [name]))
        assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE
    assert "max_functions" in str(lower.registrar.refusal("f4", MOVE))


@pytest.mark.parametrize(
    ("limits", "setting"),
    [
        (FunctionLimits(compile_total_seconds=0), "functions.compile_total_seconds"),
        (FunctionLimits(code_bytes=1_000), "functions.code_mib"),
        (FunctionLimits(binaries_bytes=len(MOVE) - 1), "functions.binaries_mib"),
        (FunctionLimits(fuel=60_000), "units of fuel"),
    ],
)
def test_what_would_take_too_much_is_refused_by_the_settings_name(
    limits: FunctionLimits, setting: str
) -> None:
    rig = Rig(limits)
    binary = LARGE_MEMORY if setting == "units of fuel" else MOVE
    rig.registrar.ask("ticket", binary)
    while not rig.registrar.prepared.done():
        time.sleep(0.001)
    assert setting in str(rig.registrar.refusal("move", binary))
    (executed,) = rig.send(rig.registration("move", binary))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.QUOTA_EXCEEDED


def test_binaries_of_all_versions_count_and_unregistering_is_always_possible() -> None:
    rig = Rig(FunctionLimits(binaries_bytes=2 * len(MOVE)))
    for _ in range(2):
        (executed,) = rig.send(rig.registration("move", MOVE, override=True))
        assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE
    assert rig.registrar.totals()["binaries_bytes"] == 2 * len(MOVE)
    (executed,) = rig.send(rig.registration("move", MOVE, override=True))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.QUOTA_EXCEEDED
    (executed,) = rig.send(rig.registration("move", b""))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE
    assert "versions are never deleted" in str(rig.registrar.refusal("move", MOVE))


def test_a_restart_compiles_each_module_once_and_tells_how_far_it_is(rig: Rig) -> None:
    versions = [FunctionVersion(f"f{n}", 1, crc32c(MOVE), n) for n in range(1, 6)]
    told: list[tuple[int, int]] = []
    rig.registrar.restore(
        registry_of(versions),
        {version.transaction_id: MOVE for version in versions},
        lambda done, total: told.append((done, total)),
    )
    assert rig.compiler.compiled == [MOVE]
    assert sorted(set(told)) == [(n * len(MOVE), 5 * len(MOVE)) for n in range(5)]
    assert [row["name"] for row in rig.registrar.rows()] == ["f1", "f2", "f3", "f4", "f5"]


def test_a_start_that_has_to_wait_for_the_compiler_goes_on_telling(rig: Rig) -> None:
    rig.compiler.may_go_on.clear()
    told = 0

    def begins(_done: int, _total: int) -> None:
        nonlocal told
        told += 1
        if told == 5:
            rig.compiler.may_go_on.set()

    versions = [FunctionVersion("move", 1, crc32c(MOVE), 1)]
    assert rig.registrar.restore(registry_of(versions), {1: MOVE}, begins) == []
    assert told >= 5
    assert min(rig.compiler.allowances) > 0


def test_a_restart_with_kept_code_compiles_nothing(tmp_path: Path) -> None:
    files = CodeFiles(tmp_path / "compiled", identity_of(FunctionLimits()), 1 << 30)
    first = Rig(files=files)
    first.send(first.registration("move", MOVE))
    first.send(first.registration("many", MANY))
    assert len(first.compiler.compiled) == 2
    second = Rig(files=files)
    second.registrar.restore(registry_of(first.registrar.registry.versions()), {1: MOVE, 2: MANY})
    assert second.compiler.compiled == []
    (executed,) = second.send(second.calls(rows((1, 2, 5)), ["move"]))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE
    costs = {row["name"]: row["compile_seconds"] for row in second.registrar.rows()}
    assert costs == {"move": 0.25, "many": 0.25}


def test_a_registration_whose_module_is_not_at_hand_waits_and_is_not_lost(rig: Rig) -> None:
    rig.compiler.may_go_on.clear()
    waited = 0

    def waiting() -> None:
        nonlocal waited
        waited += 1
        if waited == 3:
            rig.compiler.may_go_on.set()

    rig.registrar.waiting = waiting
    (executed,) = rig.send(rig.registration("move", MOVE))
    assert np.frombuffer(executed.records, RECORD_DTYPE)["status"][0] == Status.NONE
    assert waited >= 3


# -- batches in slices -----------------------------------------------------------------------------


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A rig whose slices are over after every call."""
    monkeypatch.setattr(module, "SLICE_NS", 1)
    rig = Rig(FunctionLimits(virtual_time=True))
    rig.send(rig.registration("move", MOVE))
    rig.core.broadcasts.clear()
    return rig


def test_a_batch_of_calls_is_executed_in_slices(slow: Rig) -> None:
    core = slow.core
    message = slow.calls(rows((1, 2, 5), (1, 2, 5), (1, 2, 5)), ["move"])
    (first,) = slow.send(message)
    assert (first.first, first.count) == (2, 1)
    assert core.under_way
    assert not core.wants_input()
    status = core.status()
    assert (status.index, status.next) == (2, 5), "all is taken, one is executed"
    core.go_on()
    (second,) = taken(core)
    assert (second.first, second.count) == (3, 1)
    core.go_on()
    (third,) = taken(core)
    assert (third.first, third.count, third.request) == (4, 1, first.request)
    assert not core.under_way
    assert core.wants_input()
    assert core.status().index == 4
    results = results_of(core)
    assert [(each.first, each.count) for each in results] == [(2, 1), (3, 1), (4, 1)]
    assert [len(each.work) for each in results] == [0, 0, 1]
    assert slow.engine.balances[1] == -15


def test_what_arrives_while_a_batch_is_under_way_is_left_to_the_link(slow: Rig) -> None:
    slow.send(slow.calls(rows((1, 2, 5), (1, 2, 5)), ["move"]))
    early = slow.calls(rows((1, 2, 7)), ["move"])
    assert slow.send(early) == []
    assert slow.core.status().next == 4, "it is not taken"
    slow.core.go_on()
    slow.core.on_sequenced(early)
    assert slow.core.status().index == 4


def test_no_term_is_granted_while_a_batch_is_under_way(slow: Rig) -> None:
    core = slow.core
    slow.send(slow.calls(rows((1, 2, 5), (1, 2, 5)), ["move"]))
    core.on_hello(b"sequencer/2", Hello("sequencer", SEQUENCER + 1))
    core.on_status(log_status(3, 0), 10**10)
    core.tick(10**10)
    assert not [each for each in core.requests if isinstance(each, Hello) and each.asks]
    core.requests.clear()
    core.go_on()
    taken(core)
    core.on_status(log_status(4, 0), 2 * 10**10)
    core.tick(2 * 10**10)
    assert [each.term for each in core.requests if isinstance(each, Hello)] == [6]


def test_a_full_link_to_the_log_holds_slices_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLICE_NS", 1)
    rig = Rig(FunctionLimits(virtual_time=True), capacity=2)
    rig.send(rig.registration("move", MOVE))
    rig.core.on_status(log_status(2, 1), 0)
    rig.send(rig.calls(rows(*[(1, 2, 5)] * 5), ["move"]))
    rig.core.go_on()
    assert not rig.core.may_go_on
    rig.core.go_on()
    assert rig.core.status().index == 3
    rig.core.on_status(log_status(4, 3), 0)
    assert rig.core.may_go_on


def test_submits_in_a_batch_are_charged_each_and_those_before_a_restart_not() -> None:
    rig = Rig(FunctionLimits(virtual_time=True))
    rig.send(rig.registration("move", MOVE))
    message = rig.calls(rows(*[(1, 2, 5)] * 6), ["move"])
    again = replace(message, first=message.first - 3, counts=[1, 3, 2])
    rig.core.broadcasts.clear()
    rig.send(again)
    (results,) = results_of(rig.core)
    assert results.count == 3
    assert results.work[0] == 0
    assert results.work[2] == pytest.approx(2 * results.work[1], abs=5)


def test_gateways_that_share_the_time_are_counted(rig: Rig) -> None:
    rig.send(rig.registration("move", MOVE))
    rig.send(replace(rig.calls(rows((1, 2, 5)), ["move"]), gateway=GATEWAY + 1))
    assert rig.core.status().sharers == 2
    rig.core.tick(10**10)
    assert rig.core.status().sharers == 2
    rig.core.tick(2 * 10**10)
    assert rig.core.status().sharers == 0
