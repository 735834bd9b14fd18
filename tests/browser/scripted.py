"""The page without a ledger: the real server and files; reports and answers are made up by tests.

For what no healthy ledger tells: hostile names, the largest numbers, services that are away in
every way. `report` has the shape that the page gets, filled like that of a ledger under load.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tallybus.common.stages import SERVICES
from tallybus.services.gateway.page.server import PageServer
from tests.support.listening import listens

Json = dict[str, Any]
UNIX_NS: Final = 1_772_357_400_000_000_000
"""2026-03-01T09:30:00Z, the time of the first report."""


def report(**changes: Any) -> Json:
    """What a ledger under load tells, with changes."""
    indexes = (11_585_089, 11_585_089, 11_585_089, 11_576_897, 11_445_825)
    retained = (8_192, 69_632, 36_864, 12_288, 0)
    in_flight = (12, 24_576, 4_096, 45_056, None)
    behind = (None, None, 0, 8_192, 131_072)
    stages = [
        {
            "stage": stage,
            "state": "up",
            "index": indexes[number],
            "behind": behind[number],
            "tx_per_s": None if stage == "gateway" else 1_690_497.5,
            "retained": retained[number],
            "in_flight": in_flight[number],
            "max_in_flight": None if stage == "snapshotter" else 1_048_576,
            "term": 1,
            "pid": 100 + number,
            "incarnation": f"{number:016x}",
            "restarts": 0,
            "uptime_s": 7265.5,
            "last_word_s": 0.013,
        }
        for number, stage in enumerate(SERVICES)
    ]
    levels = {"none": (None, None), "computed": (None, None), "committed": (6.2336, 47.75)}
    levels |= {"snapshot": (31.2, 250.0), "read": (0.25, 0.99)}
    return {
        "unix_ns": UNIX_NS,
        "interval_s": 1.0,
        "answers": True,
        "error": None,
        "lost_s": None,
        "term": 1,
        "terms_seen": 1,
        "tx_per_s": 1_686_404.26,
        "in_flight": 8_192,
        "stages": stages,
        "functions": [
            {
                "name": "fee_transfer",
                "version": 3,
                "calls": 4_081_920,
                "calls_per_s": 12.5,
                "failures": {"INSUFFICIENT_FUNDS": 63_711, "FUNCTION_128": 4},
                "fuel_total": 113_592_939,
                "fuel_mean": 27.8,
                "mean_ns": 104.77,
            }
        ],
        "functions_error": None,
        "metrics": {
            "latency": [
                {"level": level, "per_s": 408.3 if p50 else 0.0, "p50_ms": p50, "p99_ms": p99}
                for level, (p50, p99) in levels.items()
            ],
            "failures": [
                {
                    "what": "transaction",
                    "reason": "insufficient_funds",
                    "total": 177_629,
                    "per_s": 26_186.9,
                },
                {"what": "request", "reason": "overloaded", "total": 1, "per_s": 0.0},
            ],
            "segment": {
                "number": 12,
                "transactions": 560_513,
                "capacity": 1_000_000,
                "full_in_s": 0.26,
                "snapshot_segment": 11,
                "snapshot_writing": False,
            },
            "unreachable": {},
        },
        "metrics_hint": None,
        "history": [None] * 30 + [1_600_000.0 + 1000 * second for second in range(90)],
        "version": "0.1.0",
        "endpoint": "tcp://127.0.0.1:5550",
        "max_accounts": 1_000_000,
        "not_ready": {},
        **changes,
    }


def stage_of(told: Json, stage: str) -> Json:
    """The row of a stage in a report."""
    found: Json = told["stages"][SERVICES.index(stage)]
    return found


def with_stage(stage: str, **changes: Any) -> Json:
    """A report in which one stage is different."""
    told = report()
    stage_of(told, stage).update(changes)
    return told


def empty_report() -> Json:
    """What a gateway tells that has heard of nobody yet."""
    rows = [
        dict.fromkeys(row)
        | {"stage": row["stage"], "state": "up" if row["stage"] == "gateway" else "down"}
        | {"restarts": 0}
        for row in report()["stages"]
    ]
    return report(
        stages=rows,
        term=None,
        terms_seen=0,
        tx_per_s=None,
        in_flight=None,
        functions=None,
        history=[None],
        metrics={
            "latency": [],
            "failures": [],
            "segment": None,
            "unreachable": dict.fromkeys(SERVICES, "told nothing yet"),
        },
    )


def largest_report() -> Json:
    """The largest numbers and the longest names that a report may ever hold."""
    told = report(tx_per_s=99_999_999.0, in_flight=1_048_576, term=123_456_789)
    for row in told["stages"]:
        row.update(
            index=9_007_199_254_740_991, restarts=123_456, uptime_s=1e9, tx_per_s=99_999_999.0
        )
        row.update(retained=1_048_576, behind=1_048_576, last_word_s=1e6)
    told["functions"] = [
        {
            "name": "w" * 64,
            "version": 65_535,
            "calls": 9_007_199_254_740_991,
            "calls_per_s": 99_999_999.0,
            "failures": {f"FUNCTION_{status}": 10**12 for status in range(128, 180)},
            "fuel_total": 2**53,
            "fuel_mean": 1e15,
            "mean_ns": 1e13,
        }
    ] * 30
    told["metrics"]["failures"] = [
        {
            "what": what,
            "reason": "account_limit_exceeded",
            "total": 2**53 - 1,
            "per_s": 99_999_999.0,
        }
        for what in ("transaction", "request")
    ] * 20
    for row in told["metrics"]["latency"]:
        row.update(per_s=9_999_999.0, p50_ms=123_456.7, p99_ms=9_999_999.0)
    told["metrics"]["segment"].update(
        number=10**9,
        transactions=999_999_999,
        capacity=10**9,
        full_in_s=1e9,
        snapshot_segment=10**9,
    )
    told["endpoint"] = "tcp://[2001:0db8:85a3:0000:0000:8a2e:0370:7334]:65535"
    told["history"] = [99_999_999.0] * 120
    return told


class Scripted:
    """A page whose reports and answers the test says. `url` is where it is."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self._line: bytes | None = None
        self._answers: dict[tuple[str, int], tuple[int, Json]] = {}
        self.asked: list[tuple[str, int]] = []
        self.hold = threading.Event()
        """While it is not set, look-ups wait."""
        self.hold.set()
        self.server = self._new_server(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"

    def tell(self, told: Json) -> str:
        """The next report, now. It is a second later than the one before; returns its clock."""
        with self._changed:
            self._number += 1
            unix_ns = UNIX_NS + self._number * 1_000_000_000
            self._line = json.dumps({**told, "unix_ns": unix_ns}).encode()
            self._changed.notify_all()
        return time.strftime("%H:%M:%S UTC", time.gmtime(unix_ns // 1_000_000_000))

    def answer(self, what: str, number: int, status: int, told: Json) -> None:
        """What a look-up is answered with from now on."""
        self._answers[what, number] = status, told

    def stop(self) -> None:
        """As if the gateway were gone."""
        self.port = self.server.port
        self.server.close()

    def start_again(self) -> None:
        """On the same port."""
        self.server = self._new_server(self.port)

    def close(self) -> None:
        self.hold.set()
        self.server.close()

    def _new_server(self, port: int) -> PageServer:
        log = logging.getLogger("tests.browser.page")
        server = PageServer(("127.0.0.1", port), self, self._look_up, log)
        server.start()
        assert listens(server, 30)
        return server

    def wait(self, after: int, seconds: float) -> tuple[int, bytes] | None:
        """For the server: see `tallybus.services.gateway.page.server.Reports`."""
        limit = time.monotonic() + seconds
        with self._changed:
            while self._line is None or self._number <= after:
                left = limit - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return None
            return self._number, self._line

    def _look_up(self, what: str, number: int, gone: Callable[[], bool]) -> tuple[int, Json] | None:
        self.asked.append((what, number))
        while not self.hold.wait(0.05):
            if gone():
                return None
        return self._answers.get((what, number), (404, {"error": f"there is no {what} {number}"}))


@contextmanager
def scripted_page() -> Iterator[Scripted]:
    """A page on a free port, until the end. It has no report yet."""
    page = Scripted()
    try:
        yield page
    finally:
        page.close()
