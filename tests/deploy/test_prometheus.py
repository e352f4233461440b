"""A real Prometheus on the shipped configuration scrapes a real service and answers the whole dashboard.

Only the targets file is exchanged. Skipped where there is no Prometheus.
"""

import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from service.client import ended, free_port
from tests.bundles import LABELS, REACH, grey_of
from tests.deploy.expressions import DEPLOY, ROOT, alerts, panels, read_dashboard, targets
from tests.deploy.processes import server

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Prometheus: on Debian, apt-get install prometheus",
)

SEEN_WITHIN_S = 60.0
# what Grafana would fill in; one label stands for each copy of the repeated panel
VARIABLES = {"$__rate_interval": "1m", "$__range": "15m", "$label": LABELS[0]}

Sample = dict[str, Any]


def frame(spot: int | None) -> NDArray[np.uint8]:
    """(128, 192) of background, with a spot of this grey level."""
    pixels = np.random.default_rng(3).integers(118, 139, (128, 192)).astype(np.uint8)
    if spot is not None:
        pixels[20:26, 30:36] = spot
    return pixels


SCREENS = {"pass": frame(None), "fail": frame(grey_of(0)), "review": frame(grey_of(1) + REACH // 2)}


def inspect_screens(service: str) -> None:
    """Post one screen of each verdict, and one body that is no image."""
    for screen_id, pixels in SCREENS.items():
        body = cv2.imencode(".png", pixels)[1].tobytes()
        answer = post(service, screen_id, body)
        assert answer.json()["verdict"] == screen_id, answer.text
    assert post(service, "broken", b"no image").is_client_error


def post(service: str, screen_id: str, body: bytes) -> httpx.Response:
    headers = {"content-type": "image/png"}
    return httpx.post(
        f"{service}/v1/screens", params={"screen_id": screen_id}, content=body, headers=headers, timeout=30
    )


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The HTTP API of a Prometheus that has seen the service before and after some screens."""
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = folder / "configuration"
    shutil.copytree(DEPLOY / "prometheus", configuration)
    target = service.removeprefix("http://")
    (configuration / "targets.json").write_text(json.dumps([{"targets": [target]}]))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={configuration / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address={address}",
    ]
    ready_url = f"http://{address}/-/ready"
    with (
        server(command, ready_url=ready_url, log=folder / "log") as process,
        httpx.Client(base_url=f"http://{address}/api/v1") as api,
    ):
        # a rate needs a scrape on either side of the screens
        wait_until(lambda: value(api, "sum(inspect_screens_total)") == 0, process)
        inspect_screens(service)
        wait_until(lambda: value(api, "sum(inspect_screens_total)") == len(SCREENS), process)
        wait_until(lambda: all(rule["health"] != "unknown" for rule in rules(api)), process)
        yield api


def wait_until(true: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    limit = time.monotonic() + SEEN_WITHIN_S
    while not true():
        assert time.monotonic() < limit, "Prometheus has not seen it"
        assert not ended(process), "Prometheus ended"


def ask(api: httpx.Client, expression: str) -> list[Sample]:
    """The samples that answer an expression now."""
    response = api.get("/query", params={"query": expression})
    answer = response.json()
    assert answer["status"] == "success", (expression, answer)
    assert answer["data"]["resultType"] == "vector", expression
    samples: list[Sample] = answer["data"]["result"]
    return samples


def value(api: httpx.Client, expression: str) -> float | None:
    samples = ask(api, expression)
    return float(samples[0]["value"][1]) if samples else None


def rules(api: httpx.Client) -> list[dict[str, Any]]:
    """The alert rules as Prometheus evaluates them."""
    answer = api.get("/rules").json()
    return [rule for group in answer["data"]["groups"] for rule in group["rules"]]


def filled(expression: str) -> str:
    for name, text in VARIABLES.items():
        expression = expression.replace(name, text)
    assert "$" not in expression
    return expression


def panel_values(api: httpx.Client, title: str) -> list[dict[str, float]]:
    """For each query of the panel, the value by the values of its labels."""
    (panel,) = (panel for panel in panels() if panel["title"] == title)
    answers = [ask(api, filled(target["expr"])) for target in panel["targets"]]
    return [
        {",".join(sample["metric"].values()): float(sample["value"][1]) for sample in samples} for samples in answers
    ]


def test_every_expression_of_the_dashboard_is_answered_with_numbers(prometheus: httpx.Client) -> None:
    for target in targets():
        samples = ask(prometheus, filled(target["expr"]))
        assert bool(samples) != ("ALERTS" in target["expr"]), target["expr"]  # of which none fires
        for sample in samples:
            assert math.isfinite(float(sample["value"][1])), (target["expr"], sample)


def test_the_numbers_are_those_of_the_screens_sent(prometheus: httpx.Client) -> None:
    assert panel_values(prometheus, "Service") == [{"": 1.0}]
    assert panel_values(prometheus, "Self-test") == [{"": 1.0}]
    third = pytest.approx(1 / 3)
    assert panel_values(prometheus, "Yield") == [{"": third}]
    assert panel_values(prometheus, "Verdict mix") == [{"pass": third, "fail": third, "review": third}]
    (errors,) = panel_values(prometheus, "Errors by code")
    assert list(errors) == ["unreadable_image"]
    (stages,) = panel_values(prometheus, "Stages, p95")
    assert {"decode", "features", "reasoning", "record"} <= stages.keys()


def test_the_variable_lists_the_labels_of_the_bundle(prometheus: httpx.Client) -> None:
    (variable,) = read_dashboard()["templating"]["list"]
    metric, label = variable["query"]["query"].removeprefix("label_values(").removesuffix(")").split(", ")
    answer = prometheus.get(f"/label/{label}/values", params={"match[]": metric}).json()
    assert sorted(answer["data"]) == sorted(LABELS)


def test_every_alert_is_evaluated_and_silent(prometheus: httpx.Client) -> None:
    assert {rule["name"] for rule in rules(prometheus)} == {rule["alert"] for rule in alerts()}
    assert {(rule["health"], rule["state"]) for rule in rules(prometheus)} == {("ok", "inactive")}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "deploy/prometheus/prometheus.yml"],  # and the rules that it names
        ["test", "rules", "tests/deploy/rules_test.yml"],
    ],
)
def test_promtool_accepts(arguments: list[str]) -> None:
    answer = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_promtool_checks_every_rules_file() -> None:
    listed = (ROOT / "tests" / "deploy" / "rules_test.yml").read_text()
    for path in (DEPLOY / "prometheus" / "rules").glob("*.yml"):
        assert f"../../{path.relative_to(ROOT)}" in listed
