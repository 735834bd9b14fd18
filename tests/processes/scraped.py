"""Metrics and readiness of services, asked for over HTTP as Prometheus does."""

from __future__ import annotations

import http.client
import json
import random
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from prometheus_client.parser import text_string_to_metric_families

from tallybus.common.settings.sections import Settings, metrics_address
from tallybus.common.stages import PORTS
from tests.processes.pipeline import PATIENCE_S, eventually

RETURNS: Final = bytes.fromhex(
    "0061736d01000000010d0160087e7e7e7e7e7e7e7e017f03020100070b0107657865637574650000"
    "0a070105002000a70b"
)
"""(module (func (export "execute") (param i64 i64 i64 i64 i64 i64 i64 i64) (result i32)
local.get 0 i32.wrap_i64)): a function that returns its first parameter."""


Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""Values by name and labels (without `stage`)."""


def free_ports() -> int:
    """The first of five ports in a row that are free, and not among those of outgoing
    connections."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    numbers = random.SystemRandom()
    while True:
        first = numbers.randrange(10_000, max(lowest, 20_000) - 5)
        with ExitStack() as stack:
            try:
                for port in range(first, first + 5):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return first


def measured(**overrides: object) -> dict[str, object]:
    """Overrides of settings that turn metrics on."""
    return {"metrics__address": "127.0.0.1", "metrics__base_port": free_ports(), **overrides}


def address_of(settings: Settings, stage: str) -> tuple[str, int]:
    address = metrics_address(settings, stage)
    assert address is not None
    return address


def fetch(
    settings: Settings, stage: str, path: str, timeout: float = PATIENCE_S, accept: str = ""
) -> tuple[int, str]:
    """Status and body; OSError when there is no answer."""
    connection = http.client.HTTPConnection(*address_of(settings, stage), timeout=timeout)
    try:
        connection.request("GET", path, headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(settings: Settings, stage: str) -> Samples:
    status, text = fetch(settings, stage, "/metrics")
    assert status == 200, text
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for name, labels, value, *_ in family.samples:
            if name.startswith("tallybus_"):
                assert labels.pop("stage") == stage
            rows = found.setdefault(name, {})
            key = tuple(sorted(labels.items()))
            assert key not in rows, f"{name} {labels} is there twice"
            rows[key] = value
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name][tuple(sorted(labels.items()))]


def ready(settings: Settings, stage: str) -> dict[str, Any]:
    status, text = fetch(settings, stage, "/readyz")
    facts: dict[str, Any] = json.loads(text)
    assert (status == 200) == facts["ready"]
    assert status in (200, 503)
    return facts


def wait_ready(settings: Settings, *stages: str) -> None:
    for stage in stages or PORTS:
        eventually(lambda stage=stage: ready(settings, stage)["ready"], f"the {stage} is ready")
