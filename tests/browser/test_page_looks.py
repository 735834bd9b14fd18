"""How the page looks and is used: widths, contrast, motion, keyboard, screen readers."""

from __future__ import annotations

from typing import Final

import pytest

from tests.browser.browser import DESKTOP, PHONE, Browser
from tests.browser.scripted import Scripted, report, stage_of
from tests.browser.states import REPORTS, down, look_up, opened, tell, transaction

TABLET: Final = (820, 1180)


MINIMUM_CONTRAST: Final = 4.5
"""What WCAG asks for (AA) of text of ordinary size."""


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
