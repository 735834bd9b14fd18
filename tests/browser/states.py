"""States of a ledger that the page must tell, made up, and what tests do with a page in a browser.

No ledger runs here; the server and the files are the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from tallybus.common.stages import SERVICES
from tests.browser.browser import Browser
from tests.browser.scripted import (
    Json,
    Scripted,
    empty_report,
    largest_report,
    report,
    stage_of,
    with_stage,
)


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
        lambda: without_metrics(*SERVICES),
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
