"""What the page shows of a report, in a browser."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tallybus.common.stages import SERVICES
from tests.browser.browser import Browser
from tests.browser.scripted import Scripted, report, stage_of, with_stage
from tests.browser.states import STATES, card, color, down, opened, recovering, tell


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
    for stage, state in zip(SERVICES, ("up", "down", "not ready", "unknown"), strict=False):
        stage_of(told, stage)["state"] = state
    opened(browser, scripted, told)
    shapes = {browser.attribute(card(stage, ".state path"), "d") for stage in SERVICES[:4]}
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
