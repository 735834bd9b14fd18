"""Text of the ledger stays text, and the page asks nothing of others."""

from __future__ import annotations

from typing import Final

from tallybus.common.stages import SERVICES
from tests.browser.browser import Browser
from tests.browser.scripted import Scripted, report, stage_of
from tests.browser.states import card, fact, look_up, opened, silent, tell, transaction

HOSTILE: Final = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def test_text_of_the_ledger_is_never_more_than_text(browser: Browser, scripted: Scripted) -> None:
    told = report(endpoint=HOSTILE, version=HOSTILE, functions_error=HOSTILE)
    told["functions"][0].update(name=HOSTILE, failures={HOSTILE: 1})
    told["metrics"]["failures"][0]["reason"] = HOSTILE
    told["metrics"]["unreachable"] = dict.fromkeys(SERVICES, HOSTILE)
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
