"""The page in a browser, on reports that are made up: what it says of each state, how it looks.

No ledger runs here; the server and the files are the real ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import pytest

from tallybus.services.gateway.page import server
from tests.browser.browser import DESKTOP, PHONE, Browser, missing
from tests.browser.scripted import (
    STAGES,
    UNIX_NS,
    Json,
    Scripted,
    empty_report,
    largest_report,
    report,
    stage_of,
    with_stage,
)

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

TABLET: Final = (820, 1180)
HOSTILE: Final = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
MINIMUM_CONTRAST: Final = 4.5
"""What WCAG asks for (AA) of text of ordinary size."""


def card(stage: str, inside: str = "") -> str:
    return f"[data-stage='{stage}'] {inside}".strip()


def silent() -> Json:
    """The gateway serves its page, and the ledger behind it does not answer."""
    told = report(answers=False, error="no turn of the loop for 2.3 s", lost_s=14.2, tx_per_s=None)
    for row in told["stages"]:
        row["state"] = "down" if row["stage"] == "gateway" else "unknown"
    told["history"] = [*told["history"][14:], *[None] * 14]
    return told


def recovering() -> Json:
    told = with_stage("wal", state="not ready")
    return told | {"not_ready": {"wal": ["it is recovering: verifying the log, 34.0 % of 9 bytes"]}}


def without_metrics(*stages: str) -> Json:
    told = report()
    metrics = told["metrics"]
    metrics["unreachable"] = dict.fromkeys(stages, "told nothing for 4.1 s")
    if "gateway" in stages:
        metrics["latency"] = []
    if "transactor" in stages:
        metrics["failures"] = metrics["failures"][1:]
    if "wal" in stages:
        metrics["segment"] = None
    for row in told["stages"]:
        if row["stage"] in stages:
            row.update(in_flight=None, max_in_flight=None)
    return told


def down(*stages: str) -> Json:
    told = report(tx_per_s=0.0)
    for stage in stages:
        stage_of(told, stage).update(state="down", uptime_s=None, last_word_s=12.3)
    return told


def full() -> Json:
    return with_stage("sequencer", retained=1_048_576)


STATES: Final[dict[str, tuple[Callable[[], Json], str, str, str, str]]] = {
    "up": (report, "ok", "All five services are up.", "1.69M tx/s", "/icon.svg"),
    "one down": (
        lambda: down("transactor"),
        "bad",
        "The transactor is down.",
        "transactor down",
        "/icon-trouble.svg",
    ),
    "two down": (
        lambda: down("wal", "snapshotter"),
        "bad",
        "The wal and the snapshotter are down.",
        "wal and snapshotter down",
        "/icon-trouble.svg",
    ),
    "not ready": (
        recovering,
        "warn",
        "The wal is not ready.",
        "wal not ready",
        "/icon-trouble.svg",
    ),
    "full": (
        full,
        "warn",
        "The sequencer keeps all that it may.",
        "sequencer full",
        "/icon-trouble.svg",
    ),
    "silent": (silent, "bad", "The ledger does not answer.", "No answer", "/icon-trouble.svg"),
    "no metrics": (
        lambda: without_metrics(*STAGES),
        "ok",
        "All five services are up.",
        "1.69M tx/s",
        "/icon.svg",
    ),
    "nobody heard": (
        empty_report,
        "bad",
        "The sequencer, the transactor, the wal and the snapshotter are down.",
        "4 services down",
        "/icon-trouble.svg",
    ),
}
REPORTS: Final = {name: each[0] for name, each in STATES.items()} | {"largest": largest_report}


def opened(browser: Browser, page: Scripted, told: Json | None = None) -> None:
    """Open the page and wait until it shows this report."""
    clock = page.tell(told or report())
    browser.open(page.url)
    browser.wait_text("#clock", clock)
    browser.wait_text("#link", "Live")


def tell(browser: Browser, page: Scripted, told: Json) -> None:
    """Tell a report, and wait until the page shows it."""
    browser.wait_text("#clock", page.tell(told))


def look_up(browser: Browser, form: str, typed: str) -> None:
    field = browser.find(f"#{form}-form input")
    field.clear()
    field.send_keys(typed, "\n")


def color(browser: Browser, selector: str) -> str:
    found: str = browser.run(
        "return getComputedStyle(document.querySelector(arguments[0])).color", selector
    )
    return found


# -- what is shown ---------------------------------------------------------------------------------


def test_what_a_report_tells_is_shown(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    assert browser.text("#rate") == "1,686,404"
    assert browser.text("#rate-peak") == "1,689,000"
    assert browser.text("#in-flight") == "8,192"
    assert browser.text("#committed") == "11,576,897"
    assert browser.text("#endpoint") == "tcp://127.0.0.1:5550"
    assert browser.text("#term") == "term 1"
    assert browser.texts(".stage h3") == [
        *("Gateway", "Sequencer", "Transactor", "Log (WAL)", "Snapshotter"),
    ]
    assert browser.texts(".index") == [
        *("11,585,089", "11,585,089", "11,585,089", "11,576,897", "11,445,825"),
    ]
    assert browser.texts(".waiting") == ["12", "0", "8,192", "131,072"]
    assert browser.texts(".unit") == ["batches", "waiting", "waiting", "waiting"]
    assert browser.texts(".keeps")[:2] == ["8,192 (0.8%)", "69,632 (7%)"]
    assert browser.texts(".uptime") == ["2 h 1 min"] * 5
    assert browser.texts("[data-level='committed'] td") == ["408", "6.23 ms", "47.8 ms", ""]
    assert browser.texts("#latency [data-level='none'] td") == ["0", "–", "–", ""]
    assert browser.texts("#failures tbody th") == ["insufficient funds", "overloaded (request)"]
    assert browser.texts("#failures tbody td") == ["177,629", "26,187", "1", "0"]
    assert browser.text("#segment-number") == "Segment 12"
    assert browser.text("#segment-count") == "560,513 of 1,000,000"
    assert browser.text("#segment-share") == "56% full"
    assert browser.text("#segment-full-in") == "260 ms"
    assert browser.text("#snapshot") == "of segment 11"
    assert browser.text("#snapshot-writing") == "idle"
    assert browser.texts("#functions tbody tr > *") == [
        *("fee_transfer", "3", "4,081,920", "13", "63,715", "28", "105 ns"),
        "insufficient funds: 63,711, function 128: 4",
    ]


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_said_in_words_and_in_the_title_and_icon(
    name: str, browser: Browser, scripted: Scripted
) -> None:
    make, level, said, title, icon = STATES[name]
    opened(browser, scripted, make())
    assert browser.text("#verdict-text") == said
    assert browser.attribute("#verdict", "data-level") == level
    assert browser.driver.title == f"{title} – Tallybus"
    assert browser.attribute("#icon", "href") == icon
    assert browser.run("return (await fetch(arguments[0])).headers.get('content-type')", icon) == (
        "image/svg+xml"
    )
    assert browser.texts(".word") == [row["state"] for row in make()["stages"]]


def test_states_differ_by_shape_and_not_by_colour_alone(
    browser: Browser, scripted: Scripted
) -> None:
    told = report()
    for stage, state in zip(STAGES, ("up", "down", "not ready", "unknown"), strict=False):
        stage_of(told, stage)["state"] = state
    opened(browser, scripted, told)
    shapes = {browser.attribute(card(stage, ".state path"), "d") for stage in STAGES[:4]}
    assert len(shapes) == 4
    assert None not in shapes


def test_what_it_means_that_a_service_is_away_is_told(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted, down("snapshotter"))
    detail = browser.text("#verdict-detail")
    assert detail.startswith("Last heard 12 s ago. Balances cannot be read"), detail
    tell(browser, scripted, recovering())
    assert browser.text("#verdict-detail") == (
        "It is recovering: verifying the log, 34.0 % of 9 bytes."
    )


def test_restarts_stand_out(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    quiet = color(browser, card("wal", ".restarts"))
    assert browser.text(card("wal", ".restarts")) == "0"
    tell(browser, scripted, with_stage("wal", restarts=3, uptime_s=4.25))
    assert browser.text(card("wal", ".restarts")) == "3"
    assert browser.text(card("wal", ".uptime")) == "4.3 s"
    assert color(browser, card("wal", ".restarts")) != quiet


def test_pipes_fill_with_what_waits(browser: Browser, scripted: Scripted) -> None:
    def fill() -> float:
        wide = browser.attribute("[data-before='wal'] .fill", "width")
        start = browser.attribute("[data-before='wal'] .fill", "x")
        assert wide is not None
        assert start is not None
        assert float(wide[:-1]) + float(start[:-1]) == pytest.approx(100, abs=0.02)
        return float(wide[:-1])

    opened(browser, scripted)
    shares = []
    for waiting in (0, 1, 100, 10_000, 524_289, 1_048_576, 5_000_000):
        tell(browser, scripted, with_stage("wal", behind=waiting))
        shares.append(fill())
        almost_full = browser.attribute("[data-before='wal']", "data-full") is not None
        assert almost_full == (waiting > 524_288)
    assert shares[0] == 0
    assert shares[-2:] == [100, 100]
    assert all(low < high for low, high in pairwise(shares[:-1]))
    tell(browser, scripted, with_stage("wal", behind=None))
    assert fill() == 0
    assert browser.text("[data-before='wal'] .waiting") == "–"


def test_the_chart_has_a_point_for_each_second_and_gaps_where_nobody_knew(
    browser: Browser, scripted: Scripted
) -> None:
    told = report(tx_per_s=800.0)
    told["history"] = [None] * 100 + [400.0] * 5 + [None] * 5 + [800.0] * 10
    opened(browser, scripted, told)
    line = browser.attribute(".plot .line", "d")
    assert line is not None
    runs = [run.split("L") for run in line.split("M")[1:]]
    assert [len(run) for run in runs] == [5, 10]
    points = [tuple(map(float, point.split(","))) for run in runs for point in run]
    assert all(left[0] < right[0] for left, right in pairwise(points))
    assert points[0][1] > points[-1][1], "a higher rate is drawn higher"
    assert browser.texts(".plot .grid text") == [
        *("0", "250", "500", "750", "1k"),
        *("2 min ago", "1 min ago", "now"),
    ]
    label = browser.attribute(".plot", "aria-label")
    assert label == ("Transactions per second in the last two minutes: now 800, at most 800")


def test_the_chart_tells_the_rate_under_the_pointer(browser: Browser, scripted: Scripted) -> None:
    from selenium.webdriver import ActionChains

    opened(browser, scripted)
    assert browser.attribute(".cursor", "visibility") == "hidden"
    ActionChains(browser.driver).move_to_element(browser.find(".plot")).perform()
    browser.wait(lambda: browser.attribute(".cursor", "visibility") == "visible", "the cursor")
    told = browser.text(".cursor text")
    rate, _, age = told.partition("/s, ")
    seconds = int(age.removesuffix(" s ago"))
    assert 50 < seconds < 75, "the middle of the last two minutes"
    assert rate == f"{1_600_000 + 1000 * (89 - seconds):,}"


# -- what is old -----------------------------------------------------------------------------------


def test_a_lost_connection_is_said_and_numbers_are_greyed_until_it_is_back(
    browser: Browser, scripted: Scripted
) -> None:
    opened(browser, scripted)
    browser.run("window.kept = true")
    fresh = color(browser, "#rate")
    scripted.stop()
    browser.wait_text("#verdict-text", "Connection to the gateway lost.")
    assert "The numbers are of 09:30:01 UTC" in browser.text("#verdict-detail")
    assert browser.driver.title == "Connection lost – Tallybus"
    assert browser.attribute("#icon", "href") == "/icon-lost.svg"
    assert browser.text("#link") == "No connection"
    assert browser.text("#rate") == "1,686,404", "the last numbers stay"
    for selector in ("#rate", card("wal", ".index"), "#functions td", "#segment-count"):
        assert color(browser, selector) != fresh, selector
    look_up(browser, "balance", "7")
    browser.wait_text("#balance-answer", "The gateway cannot be reached. Is it running?")
    scripted.start_again()
    browser.wait_text("#link", "Live")
    assert browser.text("#verdict-text") == "All five services are up."
    assert color(browser, "#rate") == fresh
    tell(browser, scripted, report(tx_per_s=5.25))
    assert browser.text("#rate") == "5.3"
    assert browser.run("return window.kept"), "it was not loaded again"


def test_a_stream_that_falls_silent_is_noticed(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    # The connection stays open, and nothing comes: a gateway that stands still, a dead tunnel.
    browser.wait_text("#verdict-text", "Connection to the gateway lost.")
    tell(browser, scripted, report())
    browser.wait_text("#verdict-text", "All five services are up.")
    assert browser.text("#link") == "Live"


def test_a_page_that_is_refused_its_stream_tries_again(
    browser: Browser, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.tell(report())
    with monkeypatch.context() as patch:
        patch.setattr(server, "MAX_STREAMS", 0)
        browser.open(scripted.url)
        browser.wait_text("#verdict-text", "No connection to the gateway.")
    browser.wait_text("#link", "Live")


def test_a_ledger_that_does_not_answer_is_said_and_its_numbers_are_greyed(
    browser: Browser, scripted: Scripted
) -> None:
    opened(browser, scripted)
    fresh = color(browser, card("wal", ".index"))
    tell(browser, scripted, silent())
    assert browser.text("#link") == "Live"
    assert browser.text("#verdict-detail") == (
        "No turn of the loop for 2.3 s. No answer for 14 s; the numbers are older than that."
    )
    assert color(browser, card("wal", ".index")) != fresh
    tell(browser, scripted, report())
    assert color(browser, card("wal", ".index")) == fresh


def test_missing_metrics_are_said_where_they_belong_and_the_last_numbers_stay(
    browser: Browser, scripted: Scripted
) -> None:
    opened(browser, scripted)
    fresh = color(browser, "[data-level='committed'] td")
    tell(browser, scripted, without_metrics("gateway", "wal"))
    assert browser.text("#verdict-text") == "All five services are up."
    assert browser.text("#verdict-detail") == "No metrics from the gateway and the wal."
    for stage in STAGES:
        missing = "no metrics: told nothing for 4.1 s" if stage in ("gateway", "wal") else ""
        assert browser.text(card(stage, ".note")) == missing
    note = "No metrics from the gateway: told nothing for 4.1 s"
    assert browser.text("#latency-note") == note
    assert browser.text("#failures-note") == note
    assert browser.text("#segment-note") == "No metrics from the wal: told nothing for 4.1 s"
    assert browser.texts("[data-level='committed'] td")[:2] == ["408", "6.23 ms"]
    assert color(browser, "[data-level='committed'] td") != fresh
    assert browser.text("#segment-count") == "560,513 of 1,000,000"
    tell(browser, scripted, without_metrics("transactor"))
    assert browser.texts("#failures tbody th") == ["insufficient funds", "overloaded (request)"]
    assert color(browser, "#failures td") != fresh
    tell(browser, scripted, report())
    assert browser.texts(".note") == [""] * len(browser.texts(".note"))
    assert color(browser, "[data-level='committed'] td") == fresh


def test_a_level_that_nobody_waits_for_keeps_its_last_times_in_grey(
    browser: Browser, scripted: Scripted
) -> None:
    opened(browser, scripted)
    row = "#latency [data-level='committed']"
    fresh = color(browser, f"{row} td")
    told = report()
    told["metrics"]["latency"][2].update(per_s=0.0, p50_ms=None, p99_ms=None)
    for _ in range(2):
        tell(browser, scripted, told)
        assert browser.texts(f"{row} td") == ["0", "6.23 ms", "47.8 ms", ""]
        assert color(browser, f"{row} td") != fresh
    tell(browser, scripted, report())
    assert color(browser, f"{row} td") == fresh


# -- look-ups --------------------------------------------------------------------------------------


def transaction(**changes: Any) -> Json:
    return {
        "tx_id": "18446744073709551615",
        "timestamp_ns": "1772357400123456789",
        "time": "2026-03-01T09:30:00.123456789Z",
        "term": "7",
        "stage": "ON_SNAPSHOT",
        "kind": "FUNCTION",
        "status": "NONE",
        "user_ref": "18446744073709551615",
        "account": None,
        "source": None,
        "target": None,
        "amount": None,
        "function": "fee_transfer",
        "version": "1",
        "crc32c": "4a2f1c3d",
        "params": ["-9223372036854775808", "9223372036854775807", "50"],
        "entries": [
            {"account": "101", "direction": "CREDIT", "amount": "9223372036854775807"},
            {"account": "202", "direction": "DEBIT", "amount": "9223372036854775807"},
        ],
        "duplicate_of": None,
        "last_snapshot_tx_id": "18446744073709551615",
        **changes,
    }


def fact(browser: Browser, name: str) -> str | None:
    return browser.facts("#transaction-answer").get(name)


def test_numbers_of_64_bits_are_shown_exactly(browser: Browser, scripted: Scripted) -> None:
    most = 2**64 - 1
    balance = {
        "account": str(most),
        "balance": "-9223372036854775808",
        "last_snapshot_tx_id": str(most),
    }
    scripted.answer("balance", most, 200, balance)
    scripted.answer("transaction", most, 200, transaction())
    opened(browser, scripted)
    look_up(browser, "balance", " 18,446,744,073,709,551,615 ")
    browser.wait_text("#balance-answer .found", "-9,223,372,036,854,775,808")
    assert "18,446,744,073,709,551,615" in browser.text("#balance-answer")
    look_up(browser, "transaction", "18'446'744'073'709'551'615")
    browser.wait_text("#transaction", "18,446,744,073,709,551,615")
    assert browser.text("#status") == "succeeded"
    assert fact(browser, "function") == "fee_transfer version 1, crc32c 4a2f1c3d"
    assert browser.texts("#transaction-answer .params span") == [
        *("-9,223,372,036,854,775,808", "9,223,372,036,854,775,807", "50"),
    ]
    assert fact(browser, "user_ref") == "18446744073709551615"
    assert browser.texts(".entries tbody tr > *") == [
        *("101", "9,223,372,036,854,775,807", ""),
        *("202", "", "9,223,372,036,854,775,807"),
    ]
    assert scripted.asked == [("balance", most), ("transaction", most)]


def test_what_is_no_number_is_not_asked(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    for typed in ("", "abc", "-1", "1.5", "1e3", "0x10", str(2**64), "1" * 40, "١٢"):
        look_up(browser, "balance", "0")
        browser.wait_text("#balance-answer", "there is no balance 0.")
        assert browser.attribute("#account", "aria-invalid") is None
        scripted.asked.clear()
        look_up(browser, "balance", typed)
        browser.wait_text(
            "#balance-answer", "Type a whole number from 0 to 18,446,744,073,709,551,615."
        )
        assert browser.attribute("#account", "aria-invalid") == "true"
        assert scripted.asked == [], typed


def test_errors_are_shown_in_the_words_of_the_gateway(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    for status in (400, 403, 404, 500, 503, 504):
        told = {"error": f"transaction {status} is not readable yet"}
        scripted.answer("transaction", status, status, told)
        look_up(browser, "transaction", str(status))
        browser.wait_text("#transaction-answer .problem", f"{told['error']}.")


def test_kinds_of_transactions_and_their_ends(browser: Browser, scripted: Scripted) -> None:
    plain: Json = {"function": None, "version": None, "crc32c": None, "params": []}
    answers = {
        1: transaction(kind="DEPOSIT", account="7", amount="1000", user_ref="0", **plain),
        2: transaction(
            kind="TRANSFER",
            status="INSUFFICIENT_FUNDS",
            stage="ERROR",
            source="7",
            target="8",
            amount="5000",
            entries=[],
            **plain,
        ),
        3: transaction(status="FUNCTION_128", stage="ERROR", params=[], entries=[]),
        4: transaction(kind="DEPOSIT", status="DUPLICATE", entries=[], duplicate_of="1", **plain),
    }
    for number, told in answers.items():
        scripted.answer("transaction", number, 200, told)
    opened(browser, scripted)
    look_up(browser, "transaction", "1")
    browser.wait(lambda: fact(browser, "kind") == "deposit", "a deposit")
    assert fact(browser, "account") == "7"
    assert fact(browser, "amount") == "1,000"
    assert fact(browser, "user_ref") == "none"
    assert fact(browser, "time") == "2026-03-01T09:30:00.123456789Z"
    assert fact(browser, "parameters") is None
    look_up(browser, "transaction", "2")
    browser.wait_text("#status", "insufficient funds")
    assert (fact(browser, "from"), fact(browser, "to")) == ("7", "8")
    assert "No entries: it moved nothing." in browser.text("#transaction-answer")
    look_up(browser, "transaction", "3")
    browser.wait_text("#status", "function 128")
    assert fact(browser, "parameters") == "none"
    look_up(browser, "transaction", "4")
    browser.wait_text("#status", "duplicate")
    browser.find("#transaction-answer a[href='#tx=1']").click()
    browser.wait_text("#status", "succeeded")
    assert fact(browser, "account") == "7", "the first of the two"


def test_a_new_question_makes_the_old_ones_answer_unwanted(
    browser: Browser, scripted: Scripted
) -> None:
    for account, balance in ((1, "111"), (2, "222")):
        told = {"account": str(account), "balance": balance, "last_snapshot_tx_id": "9"}
        scripted.answer("balance", account, 200, told)
    opened(browser, scripted)
    scripted.hold.clear()
    look_up(browser, "balance", "1")
    browser.wait(lambda: scripted.asked == [("balance", 1)], "the first is asked")
    assert browser.attribute("#balance-answer", "aria-busy") == "true"
    look_up(browser, "balance", "2")
    browser.wait(lambda: len(scripted.asked) == 2, "the second is asked")
    assert browser.attribute("#balance-answer", "aria-busy") == "true"
    assert browser.texts("#balance-answer .problem") == []
    scripted.hold.set()
    browser.wait_text("#balance-answer .found", "222")
    assert browser.attribute("#balance-answer", "aria-busy") is None


def test_an_address_with_a_question_asks_it(browser: Browser, scripted: Scripted) -> None:
    def seen() -> bool:
        return bool(
            browser.run(
                "const box = document.querySelector('#balance').getBoundingClientRect();"
                "return box.top >= 0 && box.bottom <= innerHeight"
            )
        )

    told = {"account": "101", "balance": "1000", "last_snapshot_tx_id": "0"}
    scripted.answer("balance", 101, 200, told)
    scripted.answer("transaction", 5, 200, transaction())
    browser.resize(*PHONE)
    browser.open(f"{scripted.url}#account=101")
    browser.wait_text("#balance-answer .found", "1,000")
    assert scripted.asked == [("balance", 101)]
    scripted.tell(report())  # what it draws moves the answer
    browser.wait(seen, "the answer is scrolled to")
    # A link asks, also when the address has its question already.
    for times in (1, 2):
        look_up(browser, "transaction", "5")
        browser.wait(lambda: browser.texts(".entries"), "the transaction")
        for _ in range(times):
            browser.find(".entries a[href='#account=101']").click()
            browser.wait(lambda: scripted.asked[-1] == ("balance", 101), "it is asked")
            scripted.asked.append(("seen", 0))
            browser.wait(seen, "the answer is scrolled to")


# -- safety ----------------------------------------------------------------------------------------


def test_text_of_the_ledger_is_never_more_than_text(browser: Browser, scripted: Scripted) -> None:
    told = report(endpoint=HOSTILE, version=HOSTILE, functions_error=HOSTILE)
    told["functions"][0].update(name=HOSTILE, failures={HOSTILE: 1})
    told["metrics"]["failures"][0]["reason"] = HOSTILE
    told["metrics"]["unreachable"] = dict.fromkeys(STAGES, HOSTILE)
    stage_of(told, "wal")["state"] = HOSTILE
    scripted.answer("balance", 1, 500, {"error": HOSTILE})
    hostile = transaction(kind=HOSTILE, status=HOSTILE, function=HOSTILE, time=HOSTILE)
    hostile["entries"][0].update(account=HOSTILE, amount=HOSTILE)
    hostile |= {"params": [HOSTILE], "user_ref": HOSTILE, "duplicate_of": HOSTILE}
    hostile |= {"source": HOSTILE, "stage": HOSTILE, "crc32c": HOSTILE}
    scripted.answer("transaction", 1, 200, hostile)
    opened(browser, scripted, told)
    look_up(browser, "balance", "1")
    look_up(browser, "transaction", "1")
    browser.wait_text("#balance-answer", f"{HOSTILE}.")
    browser.wait(lambda: fact(browser, "time") == HOSTILE, "the transaction")
    not_ready = silent() | {"error": HOSTILE}
    tell(browser, scripted, not_ready)
    assert HOSTILE in browser.text("#verdict-detail")
    assert browser.texts("#functions tbody th") == ["fee_transfer"]
    tell(browser, scripted, told)
    for selector in ("#functions tbody th", "#endpoint", card("wal", ".word")):
        assert browser.text(selector) == HOSTILE
    assert browser.run("return window.hacked === undefined")
    assert browser.run("return document.querySelectorAll('img, script').length") == 2
    assert browser.run("return document.querySelectorAll('[onerror]').length") == 0


def test_the_policy_forbids_scripts_in_the_page_and_requests_to_others(
    browser: Browser, scripted: Scripted
) -> None:
    opened(browser, scripted)
    broken: list[str] = browser.run(
        """
        const broken = [];
        document.addEventListener("securitypolicyviolation", (event) =>
          broken.push(event.effectiveDirective));
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        const image = document.createElement("img");
        image.src = "http://127.0.0.2:9/x.png";
        document.body.append(image);
        document.body.setAttribute("style", "color: red");
        await fetch("http://127.0.0.2:9/").catch(() => {});
        await new Promise((resolve) => setTimeout(resolve, 100));
        return broken;
        """
    )
    assert set(broken) == {"script-src-elem", "img-src", "style-src-attr", "connect-src"}
    assert browser.run("return window.hacked === undefined")
    browser.log()  # what was forbidden stands in it, as it should


def test_nothing_is_asked_of_another_host(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    look_up(browser, "balance", "7")
    browser.wait_text("#balance-answer", "there is no balance 7.")
    assert browser.hosts() == {f"127.0.0.1:{scripted.server.port}"}


# -- how it looks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [PHONE, TABLET, DESKTOP], ids=["phone", "tablet", "desktop"])
def test_nothing_is_wider_than_the_window_in_any_state(
    size: tuple[int, int], browser: Browser, scripted: Scripted
) -> None:
    longest = transaction(
        status="ACCOUNT_LIMIT_EXCEEDED",
        params=["-9223372036854775808"] * 8,
        function="w" * 64,
        duplicate_of="18446744073709551615",
    )
    scripted.answer("transaction", 1, 200, longest)
    scripted.answer("balance", 1, 500, {"error": "a" * 300})
    browser.resize(*size)
    opened(browser, scripted)
    for name, make in REPORTS.items():
        tell(browser, scripted, make())
        assert browser.overflow() == "", name
    look_up(browser, "transaction", "1")
    look_up(browser, "balance", "1")
    browser.wait(lambda: browser.texts("#transaction-answer .params span"), "the transaction")
    browser.wait(lambda: browser.texts("#balance-answer .problem"), "the error")
    assert browser.overflow() == "", "look-ups"
    scripted.stop()
    browser.wait_text("#link", "No connection")
    assert browser.overflow() == "", "no connection"


CONTRASTS: Final = """
const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
const context = canvas.getContext("2d", { willReadFrequently: true });
const channels = (color) => {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = color;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
};
const luminance = ([red, green, blue]) => {
  const [r, g, b] = [red, green, blue].map((each) => {
    const share = each / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (node) => {
  for (let each = node; each; each = each.parentElement) {
    const color = channels(getComputedStyle(each).backgroundColor);
    if (color[3] === 255) return color;
    if (color[3] !== 0) throw new Error(`a back that shines through: ${each.className}`);
  }
  return [255, 255, 255, 255];
};
const found = {};
for (const each of document.body.querySelectorAll("*")) {
  const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !each.getBoundingClientRect().width || each.closest(".hidden, .skip, noscript")) {
    continue;
  }
  const style = getComputedStyle(each);
  const front = channels(each.closest("svg") ? style.fill : style.color);
  const [low, high] = [luminance(front), luminance(behind(each))].sort((a, b) => a - b);
  const name = `${each.tagName} ${each.id} ${each.className}`;
  found[`${name} ${front} on ${behind(each)}`] = (high + 0.05) / (low + 0.05);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_back(
    scheme: str, browser: Browser, scripted: Scripted
) -> None:
    scripted.answer("transaction", 1, 200, transaction())
    scripted.answer("transaction", 2, 200, transaction(status="DUPLICATE"))
    browser.prefer(scheme)
    opened(browser, scripted)
    look_up(browser, "balance", "1")
    backs = set()
    for number, make in enumerate(REPORTS.values()):
        tell(browser, scripted, make())
        look_up(browser, "transaction", str(1 + number % 2))
        browser.wait(lambda: browser.texts("#status"), "the transaction")
        ratios: dict[str, float] = browser.run(CONTRASTS)
        assert len(ratios) > 40
        weak = {name: ratio for name, ratio in ratios.items() if ratio < MINIMUM_CONTRAST}
        assert weak == {}
        backs.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
    dark = "rgb(13, 17, 23)"
    assert (backs == {dark}) == (scheme == "dark")


def test_numbers_change_and_nothing_moves(browser: Browser, scripted: Scripted) -> None:
    def places() -> list[list[float]]:
        found: list[list[float]] = browser.run(
            "const it = document.querySelectorAll('.panel, .stage, .pipe, th, dt, .state, form');"
            "return [...it].map((each) => {"
            "  const { x, y } = each.getBoundingClientRect(); return [x, y]; })"
        )
        return found

    opened(browser, scripted)
    before = places()
    assert len(before) > 60
    for factor in (0.0, 0.0001, 0.01, 1.7, 12.3):
        told = report(tx_per_s=factor * 1_000_000)
        for row in told["stages"]:
            for name in ("index", "behind", "tx_per_s", "retained", "in_flight", "last_word_s"):
                row[name] = None if row[name] is None else type(row[name])(row[name] * factor)
        for row in told["metrics"]["latency"]:
            row.update(per_s=factor * 100_000, p50_ms=factor * 1000, p99_ms=factor * 3000)
        told["metrics"]["segment"]["transactions"] = int(factor * 80_000)
        told["functions"][0].update(calls=int(factor * 10**8), calls_per_s=factor * 1e6)
        tell(browser, scripted, told)
        assert places() == before, factor


def test_a_user_who_wants_no_motion_gets_none(browser: Browser, scripted: Scripted) -> None:
    moving = (
        "const of = (name) => getComputedStyle(document.querySelector(name));"
        "return [of('.flow').animationName, of('.pipe .fill').transitionDuration]"
    )
    opened(browser, scripted)
    assert browser.run(moving)[0] == "flow"
    browser.prefer("light", motion="reduce")
    assert browser.run(moving) == ["none", "0s"]


def test_everything_can_be_done_with_the_keyboard(browser: Browser, scripted: Scripted) -> None:
    from selenium.webdriver.common.keys import Keys

    scripted.answer("transaction", 5, 200, transaction())
    told = {"account": "101", "balance": "12345", "last_snapshot_tx_id": "9"}
    scripted.answer("balance", 101, 200, told)
    opened(browser, scripted)
    browser.press(Keys.TAB)
    assert browser.focused() == "Skip to the look-up"
    browser.press(Keys.ENTER)
    browser.wait(lambda: browser.focused() == "look-up", "the link leads to the look-up")
    browser.press(Keys.TAB)
    assert browser.focused() == "account"
    browser.press(Keys.TAB, Keys.TAB)
    assert browser.focused() == "tx-id"
    browser.press("5", Keys.ENTER)
    browser.wait(lambda: browser.texts("#transaction"), "the transaction")
    browser.press(Keys.TAB, Keys.TAB)
    assert browser.focused() == "101", "the first account among the entries"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid", "what has the focus is seen"
    browser.press(Keys.ENTER)
    browser.wait_text("#balance-answer .found", "12,345")
    assert browser.run("return document.querySelector('#account').value") == "101"


def test_every_field_and_picture_has_a_name(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    nameless: list[str] = browser.run(
        "const bad = [...document.querySelectorAll('input, button, svg, img, section, .scroll')]"
        ".filter((each) => !(each.labels?.length || each.textContent.trim() ||"
        " each.getAttribute('aria-label') || each.getAttribute('aria-labelledby') ||"
        " each.closest('[aria-hidden]') || each.getAttribute('alt') === ''));"
        "return bad.map((each) => each.outerHTML)"
    )
    assert nameless == []
    assert browser.run("return document.documentElement.lang") == "en"


def test_a_screen_reader_is_told_a_state_once(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    browser.run(
        "window.spoken = []; new MutationObserver(() => "
        "window.spoken.push(document.querySelector('#verdict-text').textContent))"
        ".observe(document.querySelector('#verdict-text'),"
        " { childList: true, characterData: true, subtree: true })"
    )
    for seconds in (1, 2, 3):
        told = down("wal")
        stage_of(told, "wal")["last_word_s"] = 2.0 + seconds
        tell(browser, scripted, told)
    assert "Last heard 5 s ago" in browser.text("#verdict-detail")
    tell(browser, scripted, report())
    assert browser.run("return window.spoken") == ["The wal is down.", "All five services are up."]
    live = browser.run(
        "return [...document.querySelectorAll('[role=status], [role=alert], [aria-live]')]"
        ".map((each) => each.id)"
    )
    assert live == ["verdict-text", "balance-answer", "transaction-answer"]


# -- how numbers are written -----------------------------------------------------------------------

WRITTEN: Final[dict[str, list[tuple[Any, str]]]] = {
    "grouped": [
        (0, "0"),
        (999, "999"),
        (1000, "1,000"),
        (12_345_678, "12,345,678"),
        (1234.6, "1,235"),
        ("-9223372036854775808", "-9,223,372,036,854,775,808"),
        ("18446744073709551615", "18,446,744,073,709,551,615"),
        (None, "–"),
    ],
    "compact": [
        *((0, "0"), (5, "5"), (5.25, "5.3"), (999, "999"), (1000, "1k"), (1250, "1.25k")),
        *((12_345, "12.3k"), (999_600, "1M"), (4_612_345, "4.61M"), (123_456_789, "123M")),
        *((1e12, "1T"), (None, "–")),
    ],
    "perSecond": [
        (0, "0"),
        (0.25, "0.3"),
        (9.96, "10.0"),
        (12.6, "13"),
        (4_612_345.2, "4,612,345"),
    ],
    "span": [
        *((0.0004, "0 ms"), (0.261, "261 ms"), (1, "1.0 s"), (59.94, "59.9 s")),
        *((59.96, "1 min 0 s"), (61, "1 min 1 s"), (3661, "1 h 1 min"), (90_061, "1 d 1 h")),
    ],
    "milliseconds": [
        *((0, "0 ms"), (0.004, "0.004 ms"), (0.25, "0.25 ms"), (1.8, "1.8 ms"), (12.34, "12.3 ms")),
        *((47.7499, "47.7 ms"), (250, "250 ms"), (999.6, "1,000 ms"), (12_340, "12.3 s")),
    ],
    "nanoseconds": [(82.4, "82.4 ns"), (105, "105 ns"), (24_140, "24.1 µs"), (5e6, "5 ms")],
    "percent": [(0, "0%"), (0.0005, "<0.1%"), (0.008, "0.8%"), (0.5605, "56%"), (1, "100%")],
    "clock": [(UNIX_NS, "09:30:00")],
    "typedWhole": [
        ("7", "7"),
        ("007", "7"),
        (" 1 000'000_0 ", "10000000"),
        ("18446744073709551615", "18446744073709551615"),
        ("18446744073709551616", None),
        ("-1", None),
        ("", None),
    ],
}


def test_how_numbers_are_written(browser: Browser, scripted: Scripted) -> None:
    opened(browser, scripted)
    script = "const found = (await import('/format.js'))[arguments[0]](arguments[1]); return found"
    for name, cases in WRITTEN.items():
        found = [(value, browser.run(script, name, value)) for value, _ in cases]
        assert found == cases, name
    shares = [
        browser.run("return (await import('/state.js')).fullness(...arguments)", *each)
        for each in ((None, 10), (0, 10), (10, 10), (11, 10), (1, None))
    ]
    assert shares[:4] == [0, 0, 1, 1]
    assert shares[4] == pytest.approx(math.log(2) / math.log(1_048_577))
