"""The page on a real pipeline: what it shows is what the API tells, also when services go away.

The pipeline is shared, and its services are killed and stopped. Each test leaves it whole.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tallybus import Client, Deposit, Function, Status, Transfer, WaitLevel, Withdrawal
from tallybus.common.settings.sections import page_address
from tallybus.common.stages import SERVICES
from tests.browser.browser import Browser, missing
from tests.processes.pipeline import Pipeline, make_settings, pipeline_of, quiet_endpoint
from tests.support.function_modules import module, to_binary

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

SEGMENT = 1000
LARGEST = 2**63 - 1
RETURNS = "(i32.wrap_i64 (local.get $a))"
"""A function that returns its first parameter, and moves nothing."""


@dataclass(frozen=True)
class Traffic:
    """What was done, by the ids of its transactions."""

    largest: int
    deposit: int
    duplicate: int
    transfer: int
    refused: int
    called: int
    failed: int


@pytest.fixture(scope="module")
def running(
    shared_browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """A pipeline with the page and nothing else: what it tells needs no served metrics."""
    folder = tmp_path_factory.mktemp("page")
    settings = make_settings(
        folder / "data",
        gateway__page=quiet_endpoint().removeprefix("tcp://"),
        ledger__transactions_per_segment=SEGMENT,
    )
    with pipeline_of(settings, folder / "services.log") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def traffic(running: Pipeline) -> Traffic:
    """A little of everything, done and readable."""
    with running.client() as client:

        def submit(operation: Deposit | Withdrawal | Transfer | Function) -> int:
            return client.submit_and_wait(operation, WaitLevel.SNAPSHOT).tx_id

        client.register_function("returns", to_binary(module(RETURNS)))
        # First: account 0 cannot give so much once it has given anything.
        largest = submit(Deposit(account=9, amount=LARGEST))
        submit(Withdrawal(account=9, amount=LARGEST - 1))
        first = submit(Deposit(account=7, amount=1_234_567, user_ref=2**64 - 1))
        duplicate = client.pipeline_index().sequenced + 1
        submit(Deposit(account=7, amount=1_234_567, user_ref=2**64 - 1))
        return Traffic(
            largest=largest,
            deposit=first,
            duplicate=duplicate,
            transfer=submit(Transfer(source=7, target=8, amount=234_567)),
            refused=submit(Transfer(source=7, target=8, amount=10**12)),
            called=submit(Function("returns", [0, -(2**63), LARGEST])),
            failed=submit(Function("returns", [130])),
        )


def url(pipeline: Pipeline) -> str:
    address = page_address(pipeline.settings)
    assert address is not None
    return f"http://{address[0]}:{address[1]}/"


@pytest.fixture
def page(browser: Browser, running: Pipeline, traffic: Traffic) -> Browser:
    """The page, open, of a ledger that is whole."""
    browser.open(url(running))
    browser.wait_text("#verdict-text", "All five services are up.")
    return browser


def written(number: int) -> str:
    return f"{number:,}"


def ask(page: Browser, form: str, number: int) -> None:
    field = page.find(f"#{form}-form input")
    field.clear()
    field.send_keys(str(number), "\n")


def card(stage: str, inside: str) -> str:
    return f"[data-stage='{stage}'] {inside}"


def wait_stage(page: Browser, stage: str, state: str) -> None:
    page.wait_text(card(stage, ".word"), state)


@contextmanager
def paused(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def restart(pipeline: Pipeline, client: Client, page: Browser) -> None:
    """What the supervisor does all the time, until the ledger is whole again."""

    def whole() -> bool:
        pipeline.supervisor.watch()
        return page.text("#verdict-text") == "All five services are up."

    page.wait(whole, "all are up again")
    client.submit_and_wait(Deposit(account=3, amount=1), WaitLevel.SNAPSHOT)


def test_indexes_and_balances_are_those_of_the_api(page: Browser, running: Pipeline) -> None:
    with running.client() as client:
        index = client.pipeline_index()
        balances = {account: client.get_balance(account).balance for account in (0, 7, 8, 9, 99)}
    assert index.sequenced == index.snapshot
    assert balances[9] == 1
    page.wait(
        lambda: page.texts(".index") == [written(index.sequenced)] * 5, f"index {index.sequenced}"
    )
    assert page.text("#committed") == written(index.committed)
    assert page.text("#term") == f"term {index.term}"
    assert page.text("#endpoint") == running.endpoint
    assert page.texts(".word") == ["up"] * 5
    assert page.texts(".waiting") == ["0"] * 4
    for account, balance in balances.items():
        ask(page, "balance", account)
        page.wait_text("#balance-answer .found", written(balance))
        said = f"Balance of account {account}, as of transaction {written(index.snapshot)}."
        assert page.text("#balance-answer .small") == said


def test_failures_functions_and_the_segment_are_those_of_the_api(
    page: Browser, running: Pipeline
) -> None:
    with running.client() as client:
        (function,) = client.list_functions()
        committed = client.pipeline_index().committed
        services = {each.stage: each for each in client.services()}

    def failures() -> dict[str, str]:
        rows = page.texts("#failures tbody tr > *")
        return dict(zip(rows[::3], rows[1::3], strict=True))

    expected = {"duplicate": "1", "insufficient funds": "1", "function": "1"}
    page.wait(lambda: expected.items() <= failures().items(), f"failures {expected}")
    assert page.text("#segment-count") == f"{written(committed)} of {written(SEGMENT)}"
    assert page.text("#segment-number") == "Segment 1"
    assert page.text("#snapshot") == "none yet"
    row = page.texts("#functions tbody tr > *")
    assert row[:3] == ["returns", str(function.version), written(function.calls)]
    assert function.calls == 2
    assert row[4:6] == ["1", written(round(function.fuel_mean or 0))]
    assert row[7] == "function 130: 1"
    for stage in SERVICES:
        assert page.text(card(stage, ".keeps")).split()[0] == written(services[stage].retained)
        assert page.text(card(stage, ".restarts")) == "0"


def test_transactions_are_shown_as_the_api_tells_them(
    page: Browser, running: Pipeline, traffic: Traffic
) -> None:
    with running.client() as client:
        for tx_id in vars(traffic).values():
            told = client.get_transaction(tx_id)
            ask(page, "transaction", tx_id)
            page.wait_text("#transaction", written(tx_id))
            status = Status(told.status).name if told.status in set(Status) else "FUNCTION_130"
            said = "succeeded" if told.status == Status.NONE else status.replace("_", " ").lower()
            assert page.text("#status") == said
            shown = page.facts("#transaction-answer")
            assert shown["user_ref"] == (str(told.user_ref) if told.user_ref else "none")
            assert shown["kind"] == told.kind.name.lower()
            for fact, number in (
                ("account", told.account),
                ("from", told.source),
                ("to", told.target),
                ("amount", told.amount),
                ("duplicate of", told.duplicate_of),
            ):
                assert shown.get(fact) == (None if number is None else written(number)), fact
            entries = [
                cell
                for each in told.entries
                for cell in (
                    written(each.account),
                    *(
                        (written(each.amount), "")
                        if each.direction.value == "CREDIT"
                        else ("", written(each.amount))
                    ),
                )
            ]
            assert page.texts(".entries tbody tr > *") == entries
            assert page.texts(".params span") == [written(each) for each in told.params]
            assert int(shown["time"].partition(".")[2].removesuffix("Z")) == (
                told.timestamp_ns % 1_000_000_000
            )


def test_what_cannot_be_looked_up_is_said(page: Browser, running: Pipeline) -> None:
    ask(page, "transaction", 10**15)
    page.wait_text("#transaction-answer", f"there is no transaction {10**15} yet.")
    ask(page, "balance", running.settings.ledger.max_accounts)
    page.wait(lambda: page.texts("#balance-answer .problem"), "an account that cannot be")
    ask(page, "balance", 2**64 - 1)
    page.wait(lambda: page.texts("#balance-answer .problem"), "an account that cannot be")


def test_it_changes_by_itself_while_the_ledger_works(page: Browser, running: Pipeline) -> None:
    page.run("window.kept = true")
    with running.client() as client:
        before = page.text("#committed")

        def works() -> bool:
            client.submit_batch([Deposit(5, 1)] * 50, WaitLevel.SNAPSHOT)
            return page.text("#committed") != before and all(
                " ms" in page.text(f"#latency [data-level='snapshot'] td:nth-child({column})")
                for column in (3, 4)
            )

        page.wait(works, "the index grows and latencies are told")
        page.wait(lambda: page.text("#rate") not in ("0", "–"), "a rate")
        assert page.driver.title.endswith(" tx/s – Tallybus")
        index = client.pipeline_index()
    page.wait(lambda: page.texts(".index") == [written(index.sequenced)] * 5, "the last index")
    line = page.attribute(".plot .line", "d")
    assert line is not None
    heights = {point.partition(",")[2] for point in line.replace("M", "L").split("L")}
    assert len(heights) > 2, "the history has its ups and downs"
    page.wait(lambda: page.text("#rate") == "0", "it comes to rest")
    assert page.run("return window.kept"), "it was not loaded again"


def test_a_service_that_stands_still_is_down_until_it_goes_on(
    page: Browser, running: Pipeline
) -> None:
    with paused(running.pids()["snapshotter"]):
        wait_stage(page, "snapshotter", "down")
        assert page.text("#verdict-text") == "The snapshotter is down."
        assert page.driver.title == "snapshotter down – Tallybus"
        with running.client() as client:
            client.submit_batch([Deposit(5, 1)] * 30, WaitLevel.COMMITTED)
        page.wait_text("[data-before='snapshotter'] .waiting", "30")
        page.wait(lambda: page.text(card("snapshotter", ".note")), "its metrics are missing")
        ask(page, "balance", 5)
        page.wait(lambda: page.texts("#balance-answer .problem"), "no balance without it")
        assert "the ledger does not answer" in page.text("#balance-answer")
    wait_stage(page, "snapshotter", "up")
    page.wait_text("[data-before='snapshotter'] .waiting", "0")
    page.wait_text(card("snapshotter", ".note"), "")
    page.wait_text("#verdict-text", "All five services are up.")
    assert page.text(card("snapshotter", ".restarts")) == "0"


def test_a_service_that_is_killed_is_down_and_back_with_its_restart(
    page: Browser, running: Pipeline
) -> None:
    running.kill(["transactor"])
    wait_stage(page, "transactor", "down")
    assert page.text("#verdict-text") == "The transactor is down."
    assert page.text(card("transactor", ".uptime")) == "–"
    assert page.attribute("#icon", "href") == "/icon-trouble.svg"
    with running.client() as client:
        client.submit(Deposit(5, 1))
        page.wait_text("[data-before='transactor'] .waiting", "1")
        restart(running, client, page)
    page.wait_text(card("transactor", ".restarts"), "1")
    assert page.text(card("wal", ".restarts")) == "0"
    page.wait(lambda: page.text("[data-before='transactor'] .waiting") == "0", "it has caught up")


def test_a_gateway_that_is_killed_is_said_to_be_gone_and_comes_back(
    page: Browser, running: Pipeline
) -> None:
    page.run("window.kept = true")
    running.kill(["gateway"])
    page.wait_text("#verdict-text", "Connection to the gateway lost.")
    assert page.text("#link") == "No connection"
    assert page.driver.title == "Connection lost – Tallybus"
    ask(page, "balance", 7)
    page.wait_text("#balance-answer", "The gateway cannot be reached. Is it running?")
    with running.client() as client:
        restart(running, client, page)
        index = client.pipeline_index()
    page.wait(lambda: page.texts(".index") == [written(index.sequenced)] * 5, "its index")
    page.wait_text(card("gateway", ".restarts"), "1")
    ask(page, "balance", 8)
    page.wait_text("#balance-answer .found", "234,567")
    assert page.run("return window.kept"), "it was not loaded again"


def test_a_gateway_that_stands_still_is_noticed(page: Browser, running: Pipeline) -> None:
    with paused(running.pids()["gateway"]):
        page.wait_text("#verdict-text", "Connection to the gateway lost.")
    page.wait_text("#verdict-text", "All five services are up.")
    assert page.text("#link") == "Live"


def test_what_it_asks_is_of_the_gateway_alone(page: Browser, running: Pipeline) -> None:
    ask(page, "balance", 7)
    page.wait(lambda: page.texts("#balance-answer .found"), "a balance")
    address = page_address(running.settings)
    assert address is not None
    assert page.hosts() == {f"{address[0]}:{address[1]}"}
