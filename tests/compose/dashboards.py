"""Which metrics, with which labels, the dashboards and rules in deploy/ ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support.folders import DOCS, PROJECT

DEPLOY = PROJECT / "deploy"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"
RULES = DEPLOY / "prometheus" / "rules.yml"

_METRIC = re.compile(r"\b(tallybus_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|ignoring|group_left|without)\s*\(([^)]*)\)")


def queries() -> Iterator[tuple[str, str]]:
    """Every query, and where it stands."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in _panels(json.loads(path.read_text("utf-8"))):
            for target in panel.get("targets", ()):
                yield f"{path.name}: {panel['title']}", target["expr"]
    for expression in re.findall(r"^\s*expr:\s*(.+)$", RULES.read_text("utf-8"), re.MULTILINE):
        yield RULES.name, expression


def documented() -> Iterator[tuple[str, str]]:
    """The queries that docs/metrics.md gives, and where they stand."""
    text = (DOCS / "metrics.md").read_text("utf-8")
    for block in re.findall(r"^```promql\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            yield "metrics.md", line


def as_evaluated(query: str) -> str:
    """A query as Grafana sends it, with every ledger chosen."""
    chosen = {"$__rate_interval": "1m", "$job": ".*", "$ledger": ".*"}
    for variable, value in chosen.items():
        query = query.replace(variable, value)
    return query


def summaries() -> dict[str, str]:
    """What each alert says, by its name."""
    found = re.findall(
        r"^\s*- alert: (\w+)$.*?^\s*summary: \"([^\n]+)\"$",
        RULES.read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
    return dict(found)


def _panels(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in tree["panels"]:
        yield panel
        if "panels" in panel:
            yield from _panels(panel)


def used(query: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Names of metrics in a query, each with the labels that it is matched by."""
    for name, matchers in _METRIC.findall(query):
        yield name, frozenset(_MATCHER.findall(matchers))


def groupings(query: str) -> frozenset[str]:
    """Labels by which a query groups or joins."""
    return frozenset(
        label.strip()
        for group in _GROUPING.findall(query)
        for label in group.split(",")
        if label.strip()
    )


def metrics_used() -> set[str]:
    """Names of all metrics that are asked for."""
    return {name for _, query in queries() for name, _ in used(query)}
