"""`load --kind function`: the function that it registers and calls."""

from __future__ import annotations

import json

import wasmtime
from crc32c import crc32c

from tallybus.cli.measure import function as load_function
from tests.support.fake_gateway import FakeGateway
from tests.unit.tallybus.cli.commands import at


def test_the_loads_function_is_what_its_source_says() -> None:
    assert bytes(wasmtime.wat2wasm(load_function.SOURCE)) == load_function.BINARY


def test_load_registers_its_function_once_and_calls_it(
    gateway: FakeGateway, quick_disk: None
) -> None:
    gateway.ledger.versions["load_fee_transfer"] = 3
    options = "--kind function --ops 3000 --batch 500 --accounts 40 --unique-refs --seed 3 --json"
    for _ in range(2):
        done = at(gateway, "load", *options.split())
        assert done.exit_code == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["kind"], report["ops"], report["funded_accounts"]) == ("function", 3000, 40)
        assert set(report["rejected"]) == {"INSUFFICIENT_FUNDS"}
        assert 10 < report["failed"] < 200
    function = gateway.ledger.functions["load_fee_transfer"]
    assert (function.version, function.crc) == (4, crc32c(load_function.BINARY))
    assert function.calls == 2 * (3000 + report["warm_up_ops"])
    calls = [kept for kept in gateway.ledger.kept.values() if kept.function]
    assert {len(kept.params) for kept in calls} == {5}
    assert {len(kept.entries) // 16 for kept in calls} == {0, 3}
    assert sum(gateway.ledger.balances.values()) == 0


def test_load_replaces_another_function_of_its_name(gateway: FakeGateway, quick_disk: None) -> None:
    gateway.ledger.register("load_fee_transfer", b"of another release", False, 1)
    options = "--kind function --ops 10 --batch 10 --accounts 4 --json"
    done = at(gateway, "load", *options.split())
    assert done.exit_code == 0, done.stderr
    function = gateway.ledger.functions["load_fee_transfer"]
    assert (function.version, function.crc) == (2, crc32c(load_function.BINARY))


def test_two_loads_may_begin_at_the_same_time() -> None:
    class Late:
        """A client whose list is older than the other one's registration."""

        def list_functions(self) -> list[object]:
            return []

        def register_function(self, name: str, binary: bytes) -> None:
            from tallybus.errors import AlreadyExists

            raise AlreadyExists("there", name=name, tx_id=1)

    load_function.register(Late())  # type: ignore[arg-type]
