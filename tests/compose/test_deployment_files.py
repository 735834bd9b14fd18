"""The files in deploy/ and compose.yaml ask for what the product has. No engine is needed."""

import json
import re

import pytest

from tallybus.common.errors import FINAL_EXIT_CODES
from tallybus.common.metrics import METRICS
from tallybus.common.settings import CONFIG_VARIABLE, SERVICES, SETTINGS, STAGES, load
from tallybus.common.settings import metrics_address as address_of
from tests.compose.dashboards import DASHBOARDS, DEPLOY, groupings, queries, used
from tests.compose.stack import PORTS, START_ORDER

PROJECT = DEPLOY.parent
PARTS_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")
# Labels of Prometheus itself, and of the expressions' own making.
OF_ANY = {"stage", "instance", "job"}


def metric_of(name: str) -> str:
    """The catalogue's name of what a query asks for."""
    for part in PARTS_OF_HISTOGRAMS:
        whole = name.removesuffix(part)
        if whole != name and whole in METRICS and METRICS[whole].type == "histogram":
            return whole
    return name


def labels_of(name: str) -> set[str]:
    own = {"le"} if name.endswith("_bucket") else set()
    return own | set(METRICS[metric_of(name)].labels) | OF_ANY


@pytest.mark.parametrize(("place", "query"), list(queries()))
def test_every_metric_and_label_of_dashboards_and_rules_exists(place: str, query: str) -> None:
    allowed = set(OF_ANY)
    for name, matched in used(query):
        assert metric_of(name) in METRICS, f"{place}: there is no metric {name}"
        assert METRICS[metric_of(name)].type != "histogram" or metric_of(name) != name, (
            f"{place}: {name} is a histogram; a query takes one of its parts"
        )
        assert matched <= labels_of(name), f"{place}: {name} has no label {matched}"
        allowed |= labels_of(name)
    assert groupings(query) <= allowed, f"{place}: grouped by unknown labels"


def test_a_misspelt_metric_would_be_found() -> None:
    assert [name for name, _ in used('rate(tallybus_no_such{stage="wal"}[1m])')] == [
        "tallybus_no_such"
    ]
    assert metric_of("tallybus_no_such") not in METRICS
    assert groupings("sum by (level, le) (x)") == {"level", "le"}


def test_every_query_has_a_metric() -> None:
    found = list(queries())
    assert len(found) > 20
    for place, query in found:
        assert list(used(query)) or "up{" in query or "process_" in query, place


def test_panels_of_a_dashboard_have_numbers_of_their_own() -> None:
    for path in DASHBOARDS.glob("*.json"):
        panels = json.loads(path.read_text("utf-8"))["panels"]
        numbers = [panel["id"] for panel in panels]
        assert len(set(numbers)) == len(numbers)


def test_prometheus_asks_every_service_at_its_port() -> None:
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    settings = load(environ={"TALLYBUS_METRICS_ADDRESS": "0.0.0.0"})
    for service in SERVICES:
        address = address_of(settings, service)
        assert address is not None
        assert f'"{service}:{address[1]}"' in text
        assert PORTS[service] == address[1]


def test_compose_sets_only_settings_that_exist() -> None:
    files = sorted(PROJECT.glob("compose*.yaml"))
    assert len(files) == 5
    for file in files:
        text = file.read_text("utf-8")
        known = {row.variable for row in SETTINGS.values()} | {CONFIG_VARIABLE}
        for name in re.findall(r"\bTALLYBUS_[A-Z_]+", text):
            assert name in known or name == "TALLYBUS_", f"{file.name}: {name}"


def test_published_ports_are_those_of_the_stages() -> None:
    text = (PROJECT / "compose.hosts.yaml").read_text("utf-8")
    base = load(environ={}).bus.base_port
    for place, stage in enumerate(STAGES):
        if stage == "sequencer":
            continue  # beside the gateway, the only one that connects to it
        first = base + 3 * place
        section = text.split(f"\n  {stage}:", 1)[1].split("\n  ", 3)
        assert f":{first}-{first + 2}:{first}-{first + 2}" in "".join(section), stage


@pytest.mark.parametrize("folder", ["compose", "systemd"])
def test_settings_files_are_valid(folder: str) -> None:
    load(DEPLOY / folder / "tallybus.toml", environ={})


@pytest.mark.parametrize("service", SERVICES)
def test_units_give_up_after_final_exit_codes_and_stop_in_order(service: str) -> None:
    text = (DEPLOY / "systemd" / f"tallybus-{service}.service").read_text("utf-8")
    codes = re.search(r"^RestartPreventExitStatus=(.*)$", text, re.MULTILINE)
    assert codes is not None
    assert set(map(int, codes[1].split())) == FINAL_EXIT_CODES
    place = START_ORDER.index(service)
    after = re.findall(r"^After=tallybus-(\w+)\.service$", text, re.MULTILINE)
    assert after == ([START_ORDER[place - 1]] if place else [])
    for name in re.findall(r"^Environment=(TALLYBUS_\w+)", text, re.MULTILINE):
        assert name in {row.variable for row in SETTINGS.values()} | {CONFIG_VARIABLE}
    target = (DEPLOY / "systemd" / "tallybus.target").read_text("utf-8")
    assert f"tallybus-{service}.service" in target
