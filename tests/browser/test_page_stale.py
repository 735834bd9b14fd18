"""What the page says when what it shows is old: nothing comes, or a part is missing."""

from __future__ import annotations

import pytest

from tallybus.common.stages import SERVICES
from tallybus.services.gateway.page import server
from tests.browser.browser import Browser
from tests.browser.scripted import Scripted, report
from tests.browser.states import card, color, look_up, opened, silent, tell, without_metrics


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
    for stage in SERVICES:
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
