"""The dashboard, its provisioning and the alert rules agree with each other and with the running service."""

import re

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from service.problems import KINDS
from service.routes import POST_PROBLEMS
from tests.deploy.expressions import (
    DEPLOY,
    alerts,
    labels_in,
    metrics_in,
    panels,
    read_dashboard,
    targets,
)

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
FROM_PROMETHEUS = {"instance", "job"}  # labels that the scrape adds
FLOOR_PATCHES_PER_S = 156
PATCHES_OF_A_SCREEN = 50


@pytest.fixture(scope="module")
def exported(service: str) -> dict[str, set[str]]:
    """Labels by series, as a running service exports them."""
    # Prometheus's own, and what an alert of ours may carry
    series: dict[str, set[str]] = {"up": set(), "ALERTS": {"alertname", "alertstate", "code", "reason"}}
    for family in text_string_to_metric_families(httpx.get(f"{service}/metrics").text):
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


def test_every_expression_asks_for_what_the_service_exports(exported: dict[str, set[str]]) -> None:
    asked = [(target["expr"], target["legendFormat"]) for target in targets()]
    asked += [(rule["expr"], "") for rule in alerts()]
    for expression, legend in asked:
        names = metrics_in(expression)
        assert names, expression
        assert names <= exported.keys(), expression
        known = set().union(*(exported[name] for name in names)) | FROM_PROMETHEUS
        assert labels_in(expression, legend) <= known, expression


def test_every_series_of_the_service_is_shown(exported: dict[str, set[str]]) -> None:
    shown = set().union(*(metrics_in(target["expr"]) for target in targets()))
    # when a series began is of no use to a person
    told = {name for name in exported if name.startswith("inspect_") and not name.endswith("_created")} | {"up"}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told}
    ours = {name for name in shown if name == "up" or name.startswith("inspect_")}
    assert {re.sub(r"_bucket$", "", name) for name in ours} == families


def test_every_query_names_the_provisioned_datasource() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    (datasource,) = provisioned["datasources"]
    assert {key: datasource[key] for key in DATASOURCE} == DATASOURCE
    variables = read_dashboard()["templating"]["list"]
    for item in (*panels(), *targets(), *variables):
        assert item["datasource"] == DATASOURCE
    assert "__inputs" not in read_dashboard()


def test_rates_look_back_over_whole_scrapes() -> None:
    datasources = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    scraping = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    interval = scraping["global"]["scrape_interval"]
    assert datasources["datasources"][0]["jsonData"]["timeInterval"] == interval
    assert read_dashboard()["refresh"] == interval


def test_every_panel_says_what_it_shows_and_in_which_unit() -> None:
    for panel in panels():
        assert panel["title"], panel["id"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_panels_have_their_own_ids_and_places() -> None:
    everything = read_dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [
        (x, y)
        for panel in everything
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24  # columns of Grafana's grid


@pytest.mark.parametrize(
    ("title", "floor"),
    [
        ("Patches per second", FLOOR_PATCHES_PER_S),
        ("Screens per second", FLOOR_PATCHES_PER_S / PATCHES_OF_A_SCREEN),
    ],
)
def test_throughput_is_drawn_against_the_floor(title: str, floor: float) -> None:
    (panel,) = (panel for panel in panels() if panel["title"] == title)
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["custom"]["thresholdsStyle"]["mode"] == "dashed"
    assert [step["value"] for step in defaults["thresholds"]["steps"]] == [None, floor]


def test_the_provider_reads_the_folder_of_the_dashboard() -> None:
    provisioned = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "dashboards" / "inspection.yml").read_text())
    (provider,) = provisioned["providers"]
    mounts = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_the_readme_says_of_every_alert_what_to_do() -> None:
    told = re.findall(r"^\| `(Inspect\w+)` \|", (DEPLOY.parent / "README.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(rule["alert"] for rule in alerts())


def test_the_error_alert_watches_every_fault_of_the_service_and_none_of_its_clients() -> None:
    (rule,) = (rule for rule in alerts() if rule["alert"] == "InspectErrors")
    (pattern,) = re.findall(r'code=~"([^"]*)"', rule["expr"])
    assert set(pattern.split("|")) == {code for code, kind in KINDS.items() if kind.status >= 500}


def test_the_alert_of_refusals_watches_every_fault_that_a_screen_may_have_and_nothing_else() -> None:
    (rule,) = (rule for rule in alerts() if rule["alert"] == "InspectRefusals")
    (pattern,) = re.findall(r'code=~"([^"]*)"', rule["expr"])
    matched = {code for code in KINDS if re.fullmatch(pattern, code)}
    assert matched == {code for code in POST_PROBLEMS if KINDS[code].status < 500}
