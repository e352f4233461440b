"""What the dashboard and the alert rules ask of Prometheus, read from their files."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "inspection.json"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))

METRIC = re.compile(r"\b(inspect_\w+|process_\w+|up|ALERTS)\b")
LABEL_LISTS = re.compile(r"\b(?:by|without|ignoring|on)\s*\(([^)]*)\)")
SELECTORS = re.compile(r"\{([^}]*)\}")
LABEL_OF_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
LABEL_OF_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def read_dashboard() -> dict[str, Any]:
    """The dashboard as Grafana reads it."""
    dashboard: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return dashboard


def panels() -> list[dict[str, Any]]:
    """Every panel that shows something; rows only part them."""
    return [panel for panel in read_dashboard()["panels"] if panel["type"] != "row"]


def targets() -> list[dict[str, Any]]:
    """Every query of every panel."""
    return [target for panel in panels() for target in panel["targets"]]


def alerts() -> list[dict[str, Any]]:
    """Every alert rule."""
    files = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def metrics_in(expression: str) -> set[str]:
    """Names of the series that the expression selects."""
    bare = LABEL_LISTS.sub("", SELECTORS.sub("", expression))
    return set(METRIC.findall(bare))


def labels_in(expression: str, legend: str = "") -> set[str]:
    """Names of the labels that the expression or its legend uses."""
    lists = (name.strip() for names in LABEL_LISTS.findall(expression) for name in names.split(","))
    matchers = (name for inside in SELECTORS.findall(expression) for name in LABEL_OF_MATCHER.findall(inside))
    return {*lists, *matchers, *LABEL_OF_LEGEND.findall(legend)}
