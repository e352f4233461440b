import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from engine import BundleError, InferenceError, RuntimeUnavailable
from service.app import create_app
from service.errors import ScreenInProgress, concrete_errors
from service.images import MEDIA_TYPES
from service.problems import KINDS
from service.settings import Settings
from service.store import StoreError
from tests.service.apps import CLEAN, GOLDEN, SCREENS, Device, post, serve, serve_device

# codes of other resources than /v1/screens
ELSEWHERE = {
    "not_found",
    "method_not_allowed",
    "bundle_unknown",
    "bundle_refused",
    "swap_in_progress",
    "release_missing",
    "version_taken",
}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    """The OpenAPI document that the app serves."""
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def validator(document: dict[str, Any], schema: str) -> Draft202012Validator:
    return Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": document["components"]})


def test_the_documents_examples_fit_the_documents_own_schema(document: dict[str, Any]) -> None:
    content = document["paths"]["/v1/screens"]["post"]["responses"]["200"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/Verdict"}
    assert set(content["examples"]) == {"pass", "fail", "review"}
    for example in content["examples"].values():
        validator(document, "Verdict").validate(example["value"])


def test_real_answers_fit_the_documents_schema(client: httpx.Client, document: dict[str, Any]) -> None:
    for kind, pixels in SCREENS.items():
        validator(document, "Verdict").validate(post(client, kind, pixels).json())
    validator(document, "Page").validate(client.get("/v1/screens").json())


def test_the_headers_of_an_answer_are_promised(client: httpx.Client, document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/screens"]["post"]["responses"]
    ours = {name for name in post(client, "headers", SCREENS["pass"]).headers if name.startswith("x-")}
    assert {name.lower() for name in responses["200"]["headers"]} == ours - {"x-request-id"}
    later = {error.status for error in concrete_errors() if error.status == 503 or error is ScreenInProgress}
    assert {int(status) for status, told in responses.items() if "Retry-After" in told.get("headers", {})} == later
    assert list(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


@pytest.mark.parametrize("schema", ["Verdict", "Model", "LabelResult", "Defect", "Box", "Proof", "Timing"])
def test_every_key_of_an_answer_is_promised(document: dict[str, Any], schema: str) -> None:
    described = document["components"]["schemas"][schema]
    assert described["required"] == list(described["properties"])


def test_every_code_of_a_post_is_documented_under_its_status(document: dict[str, Any]) -> None:
    responses = document["paths"]["/v1/screens"]["post"]["responses"]
    listed = {
        name: int(status)
        for status, response in responses.items()
        for name in re.findall(r"`(\w+)`", response["description"])
        if status != "200"
    }
    assert listed == {code: kind.status for code, kind in KINDS.items() if code not in ELSEWHERE}


def test_every_documented_failure_is_a_problem_document(document: dict[str, Any]) -> None:
    failures = [
        response
        for operations in document["paths"].values()
        for operation in operations.values()
        for status, response in operation["responses"].items()
        if status != "200"
    ]
    assert len(failures) > 10
    for response in failures:
        (media_type,) = response["content"]
        assert media_type == "application/problem+json"
        assert "verdict" not in response["content"][media_type]["schema"]["properties"]


def test_a_real_problem_fits_its_documented_schema(client: httpx.Client, document: dict[str, Any]) -> None:
    response = client.get("/v1/screens/never-sent")
    responses = document["paths"]["/v1/screens/{screen_id}"]["get"]["responses"]
    schema = responses["404"]["content"]["application/problem+json"]["schema"]
    Draft202012Validator(schema).validate(response.json())


def test_every_kind_of_body_is_documented(document: dict[str, Any]) -> None:
    assert set(document["paths"]["/v1/screens"]["post"]["requestBody"]["content"]) == set(MEDIA_TYPES)


class Links(HTMLParser):
    """Every address that a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value is not None]


def test_the_docs_need_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "//" not in re.sub(r"//.*\n|<!--.*-->", "", page.text)  # no address of a host, whatever its scheme
    links = Links()
    links.feed(page.text)
    assert len(links.addresses) >= 2
    for address in links.addresses:
        assert address.startswith("/")
        assert client.get(address).is_success, address
    styles = next(address for address in links.addresses if address.endswith(".css"))
    assert re.findall(r"url\((?!\"?data:)|@import", client.get(styles).text) == []
    assert "url: '/openapi.json'" in page.text


def test_it_is_ready_once_the_golden_patches_gave_their_answers(tmp_path: Path) -> None:
    device = Device()
    device.golden_gate.hold()
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        device.golden_gate.wait_for()
        assert client.get("/healthz").json() == {"status": "ok"}
        refused = client.get("/readyz")
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert samples(client) == {"inspect_self_test_ok": "0.0", "inspect_self_test_age_seconds": "+Inf"}
        device.golden_gate.open()
        # a screen is computed after the self-test that was due before it
        assert post(client, "one", SCREENS["pass"]).json()["verdict"] == "pass"
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["model"] == {"bundle": "@configured", "name": "fake", "version": "0"}
        assert ready.json()["self_test"]["difference"] < 1e-6
        assert samples(client)["inspect_self_test_ok"] == "1.0"


def samples(client: httpx.Client) -> dict[str, str]:
    """What the metrics say of the self-test."""
    return dict(re.findall(r"^(inspect_self_test_\w+) (\S+)$", client.get("/metrics").text, re.MULTILINE))


def test_a_device_that_changes_its_mind_passes_no_screen(tmp_path: Path) -> None:
    device = Device()
    with serve_device(device, Settings(state_dir=tmp_path, self_test_interval_s=0.01)) as client:
        assert post(client, "before", SCREENS["pass"]).json()["verdict"] == "pass"
        assert client.get("/readyz").status_code == 200
        device.golden_score = 0.6
        wait_for_self_test(device)
        refused = client.get("/readyz")
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert "differ by 0.1" in refused.json()["detail"]
        answer = post(client, "after", SCREENS["pass"]).json()
        assert (answer["verdict"], answer["reasons"]) == ("review", ["self_test_stale"])
        assert answer["proof"]["self_test_age_s"] > 0
        # a defect that is seen goes to review as well, with its reason
        device.scores = (0.9, 0.1, 0.1, 0.1)
        answer = post(client, "defect", SCREENS["pass"]).json()
        assert (answer["verdict"], answer["reasons"]) == ("review", ["self_test_stale", "score_in_fail_range"])
        # and it comes back by itself
        device.scores, device.golden_score = CLEAN, 0.5
        wait_for_self_test(device)
        assert client.get("/readyz").status_code == 200
        assert post(client, "again", SCREENS["pass"]).json()["verdict"] == "pass"


def wait_for_self_test(device: Device) -> None:
    """Until a self-test that began after now has ended, which it has when the next one begins."""
    device.golden_gate.forget_arrivals()
    device.golden_gate.wait_for(2)


def test_a_device_that_was_never_right_is_not_ready_and_passes_nothing(tmp_path: Path) -> None:
    device = Device()
    device.golden_score = float("nan")
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        answer = post(client, "one", SCREENS["pass"]).json()
        assert (answer["verdict"], answer["reasons"]) == ("review", ["self_test_stale"])
        assert answer["proof"]["self_test_age_s"] is None
        assert client.get("/readyz").status_code == 503


def test_it_closes_what_it_was_given(tmp_path: Path) -> None:
    backend = Device().backend()
    app = create_app(Settings(state_dir=tmp_path), backends=[backend], golden=GOLDEN)
    with serve(app) as client:
        post(client, "one", SCREENS["pass"])
    with pytest.raises(InferenceError, match="closed"):
        backend.features(GOLDEN.pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["screens.sqlite"]  # SQLite's own files are gone


def test_a_screen_on_one_of_two_devices_needs_both_to_be_right(tmp_path: Path) -> None:
    right, wrong = Device(), Device()
    wrong.golden_score = 0.6
    app = create_app(Settings(state_dir=tmp_path), backends=[right.backend(), wrong.backend()], golden=GOLDEN)
    with serve(app) as client:
        right.golden_gate.wait_for()
        wrong.golden_gate.wait_for()
        assert client.get("/readyz").status_code == 503


def test_an_app_without_its_bundle_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json"):
        create_app(Settings(bundle=tmp_path / "absent", state_dir=tmp_path / "state"))


def test_an_app_without_its_runtime_is_not_made(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="abacus"):
        create_app(Settings(bundle=bundle, runtime="abacus", state_dir=tmp_path))


def test_an_app_without_its_record_is_not_made(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open"):
        create_app(Settings(bundle=bundle, state_dir=tmp_path / "file"))


def test_two_apps_in_one_process_know_nothing_of_each_other(bundle: Path, tmp_path: Path) -> None:
    one, other = (create_app(Settings(bundle=bundle, state_dir=tmp_path / name)) for name in ("one", "other"))
    with serve(one) as first, serve(other) as second:
        post(first, "screen", SCREENS["pass"])
        assert second.get("/v1/screens").json() == {"items": [], "next": None}
        assert 'inspect_screens_total{verdict="pass"} 0.0' in second.get("/metrics").text
        assert json.loads(post(second, "screen", SCREENS["fail"]).text)["verdict"] == "fail"
