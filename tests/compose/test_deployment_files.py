"""The files in deploy/ and compose.yaml ask for what the product has. No engine is needed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tallybus.common.errors import FINAL_EXIT_CODES
from tallybus.common.metrics.table import METRICS
from tallybus.common.settings.sections import CONFIG_VARIABLE, SETTINGS, load
from tallybus.common.settings.sections import metrics_address as address_of
from tallybus.common.stages import SERVICES, STAGES
from tests.compose.dashboards import (
    DASHBOARDS,
    DEPLOY,
    RULES,
    as_evaluated,
    documented,
    groupings,
    queries,
    summaries,
    used,
)
from tests.compose.promql import NAME, PromqlError, Series, evaluate, series
from tests.compose.stack import DEPLOYED_ORDER, METRICS_PORTS
from tests.support.folders import PROJECT

PARTS_OF_HISTOGRAMS = ("_bucket", "_sum", "_count")
# Labels of Prometheus itself, and of the expressions' own making.
OF_ANY = {"stage", "instance", "job", "ledger"}


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


# Several ledgers in one Prometheus

LAYOUTS = {
    # By job, by label, by both.
    "jobs": ({"job": "tallybus-a"}, {"job": "tallybus-b"}),
    "labels": ({"job": "tallybus", "ledger": "a"}, {"job": "tallybus", "ledger": "b"}),
    "both": ({"job": "tallybus-a", "ledger": "a"}, {"job": "tallybus-b", "ledger": "b"}),
}
HIGH = 1e9
"""Whatever an alert waits for, this is more."""


def scraped(ledger: dict[str, str], host: str, value: float) -> list[Series]:
    """What Prometheus has of a ledger with two gateways, one series for each metric and service."""
    found = []
    for service in SERVICES:
        for number in range(2 if service == "gateway" else 1):
            place = {**ledger, "instance": f"{host}:{METRICS_PORTS[service] + 100 * number}"}
            found.append(series("up", 0, **place))
            found.append(series("process_cpu_seconds_total", value, **place))
            for metric in METRICS.values():
                if service not in metric.stages:
                    continue
                labels = {label: f"some {label}" for label in metric.labels} | {"stage": service}
                if "outcome" in labels:
                    labels["outcome"] = "overloaded"
                names = [metric.name]
                if metric.type == "histogram":
                    names = [metric.name + part for part in PARTS_OF_HISTOGRAMS]
                for name in names:
                    more = {"le": "+Inf"} if name.endswith("_bucket") else {}
                    worth = WORTH.get(name, value)
                    levels = STAGES if name == "tallybus_pipeline_index" else ("",)
                    for level in levels:
                        own = {**labels, **more, **place}
                        if level:
                            own["level"] = LEVELS[level]
                        found.append(series(name, worth, **own))
    return found


WORTH = {"tallybus_ready": 0.0, "tallybus_clock_held": 1.0}
"""What an alert waits for, where that is no large number."""
LEVELS = dict(zip(STAGES, ("sequenced", "computed", "committed", "snapshot"), strict=True))


def of_one_ledger(query: str, known: list[Series]) -> list[Series]:
    found = evaluate(as_evaluated(query), known)
    assert isinstance(found, list), f"{query} is a number: of all ledgers together"
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("place", "query"), [*queries(), *documented()])
def test_with_two_ledgers_each_query_tells_of_each_what_it_tells_of_it_alone(
    place: str, query: str, layout: str
) -> None:
    first, second = LAYOUTS[layout]
    one, other = scraped(first, "10.0.0.1", HIGH), scraped(second, "10.0.0.2", 2 * HIGH)
    apart = of_one_ledger(query, one) + of_one_ledger(query, other)
    together = of_one_ledger(query, one + other)
    assert apart, f"{place}: {query} finds nothing at all"
    assert set(together) == set(apart), f"{place}: {query}"
    for each in together:
        told = dict(each.labels)
        named = [ledger for ledger in (first, second) if ledger.items() <= told.items()]
        assert len(named) == 1, f"{place}: {query} does not say which ledger: {told}"


@pytest.mark.parametrize(("place", "query"), [*queries(), *documented()])
def test_ledgers_that_have_no_names_break_no_query(place: str, query: str) -> None:
    """As with targets that were only added to the list: told together, but told."""
    same = {"job": "tallybus"}
    known = scraped(same, "10.0.0.1", HIGH) + scraped(same, "10.0.0.2", 2 * HIGH)
    assert evaluate(as_evaluated(query), known), place


@pytest.mark.parametrize(("alert", "says"), summaries().items())
def test_every_alert_names_its_ledger(alert: str, says: str) -> None:
    assert says.startswith("{{ or $labels.ledger $labels.job }}: "), alert
    assert len(summaries()) == RULES.read_text("utf-8").count("- alert:")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("tallybus_log_segment - on() tallybus_snapshot_segment", "duplicate series"),
        ("tallybus_log_segment - on(job) tallybus_clients", "duplicate series"),
        ("tallybus_ready - on(job) tallybus_log_segment", "duplicate series"),
        ("tallybus_log_segment - nowhere(tallybus_log_segment)", "is not known here"),
        ("tallybus_log_segment -", "is not known here"),
        ("tallybus_log_segment )", "is one too many"),
    ],
)
def test_a_query_that_fails_in_prometheus_fails_here(query: str, reason: str) -> None:
    known = scraped({"job": "tallybus"}, "a", 1) + scraped({"job": "tallybus"}, "b", 1)
    with pytest.raises(PromqlError, match=reason):
        evaluate(query, known)


def test_queries_are_evaluated_as_prometheus_does() -> None:
    known = [
        series("a", 6, job="x", kind="p"),
        series("a", 2, job="x", kind="q"),
        series("a", 5, job="y", kind="p"),
        series("b", 2, job="x"),
    ]

    def told(query: str) -> dict[str, float]:
        found = evaluate(query, known)
        assert isinstance(found, list)
        return {
            " ".join(f"{label}={text}" for label, text in sorted(each.labels) if label != NAME): (
                each.value
            )
            for each in found
        }

    assert told("sum by (job) (a)") == {"job=x": 8, "job=y": 5}
    assert told('max by (job) (a{kind!="p"})') == {"job=x": 2}
    assert told("a / on(job) group_left() b") == {"job=x kind=p": 3, "job=x kind=q": 1}
    assert told("sum by (job) (a) - on(job) b > 1") == {"job=x": 6}
    assert told("topk by (job) (1, a)") == {"job=x kind=p": 6, "job=y kind=p": 5}
    assert told('a{job=~"x|z"} unless on(kind) a{job="y"}') == {"job=x kind=q": 2}
    assert told("(a + 1) * 2 > 13") == {"job=x kind=p": 14}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    blocks = ["rule_files: [rules.yml]", "evaluation_interval: 1m", "tests:"]
    for ledger in ("a", "b"):
        blocks += ["  - interval: 1m", "    input_series:"]
        for name in ("a", "b"):
            place = f'job="tallybus", ledger="{name}", instance="{name}:9467", stage="snapshotter"'
            values = "9+0x30" if name == ledger else "1+0x30"
            blocks.append(f"      - series: 'tallybus_snapshot_behind_segments{{{place}}}'")
            blocks.append(f"        values: '{values}'")
        blocks += [
            "    alert_rule_test:",
            "      - eval_time: 20m",
            "        alertname: LedgerNoSnapshots",
        ]
        blocks += ["        exp_alerts:", "          - exp_labels:"]
        told = {"job": "tallybus", "ledger": ledger, "instance": f"{ledger}:9467"}
        told |= {"stage": "snapshotter", "severity": "warning"}
        blocks += [f"              {label}: {text}" for label, text in told.items()]
        says = f"{ledger}: the last 9 segments have no snapshot; a start has to read them all"
        blocks += ["            exp_annotations:", f'              summary: "{says}"']
    (tmp_path / "rules.yml").write_text(RULES.read_text("utf-8"))
    (tmp_path / "tests.yml").write_text("\n".join(blocks) + "\n")
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
        assert METRICS_PORTS[service] == address[1]


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
    place = DEPLOYED_ORDER.index(service)
    after = re.findall(r"^After=tallybus-(\w+)\.service$", text, re.MULTILINE)
    assert after == ([DEPLOYED_ORDER[place - 1]] if place else [])
    for name in re.findall(r"^Environment=(TALLYBUS_\w+)", text, re.MULTILINE):
        assert name in {row.variable for row in SETTINGS.values()} | {CONFIG_VARIABLE}
    if "ReadOnlyPaths=-/var/lib/tallybus" in text:
        # Or each of its starts compiles all functions.
        cache = re.search(r"^Environment=TALLYBUS_FUNCTIONS_COMPILED=(.*)$", text, re.MULTILINE)
        assert cache is not None
        assert cache[1].startswith("/var/cache/tallybus/")
    target = (DEPLOY / "systemd" / "tallybus.target").read_text("utf-8")
    assert f"tallybus-{service}.service" in target


@pytest.mark.parametrize("service", SERVICES)
def test_units_let_services_ask_for_interfaces(service: str) -> None:
    # Without AF_NETLINK libzmq aborts a process that listens on tcp: getifaddrs() fails in it.
    text = (DEPLOY / "systemd" / f"tallybus-{service}.service").read_text("utf-8")
    families = re.search(r"^RestrictAddressFamilies=(.*)$", text, re.MULTILINE)
    assert families is not None
    assert set(families[1].split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
