"""How the page writes numbers."""

from __future__ import annotations

import math
from typing import Any, Final

import pytest

from tests.browser.browser import Browser
from tests.browser.scripted import UNIX_NS, Scripted
from tests.browser.states import opened

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
