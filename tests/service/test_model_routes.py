"""What may be said to `PUT /v1/models/active`, and what its documentation promises."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from service.app import create_app
from service.problems import KINDS
from service.settings import Settings
from tests.service.apps import is_problem, serve
from tests.service.shelves import shelf
from tests.service.test_catalogue import HOSTILE

ACTIVE = "/v1/models/active"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shelf(tmp_path_factory.mktemp("shelf") / "bundles")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    """A service in which nothing is ever swapped."""
    settings = Settings(bundle=folder / "one", bundles=folder, state_dir=folder.parent / "state")
    with serve(create_app(settings)) as client:
        yield client
        models = client.get("/v1/models").json()["models"]
        assert [(model["bundle"], model["state"]) for model in models] == [("one", "active"), ("two", "available")]


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


@pytest.mark.parametrize("name", [*HOSTILE, "x" * 65, "/etc", "../../../../etc/passwd", "one\u0000"])
def test_a_name_that_is_a_path_is_not_looked_up(client: httpx.Client, name: str) -> None:
    refused = client.put(ACTIVE, json={"bundle": name})
    assert is_problem(refused, 422, "invalid_request")
    assert name.strip(" ./~") == "" or name not in refused.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        # no JSON, or no object
        *(b"", b"{", b"\xff", b"[]", b"null", b'"two"', b'{"bundle": "two"} {}', b"[" * 4000),
        # neither, both, and what is neither of them
        *(b"{}", b'{"rollback": false}', b'{"bundle": "two", "rollback": true}', b'{"bundle": null}'),
        # keys and types that are not understood
        *(b'{"bundle": "two", "force": true}', b'{"bundle": 2}', b'{"rollback": 1}', b'{"rollback": "true"}'),
        *(b'{"bundle": ["two"]}', b'{"bundle": "two", "without_release": "no"}', b'{"path": "/srv/bundles/two"}'),
    ],
)
def test_what_is_not_understood_is_refused(client: httpx.Client, body: bytes) -> None:
    assert is_problem(client.put(ACTIVE, content=body), 422, "invalid_request")


@given(body=st.binary(max_size=100) | st.dictionaries(st.text(max_size=9), st.text(max_size=9)).map(json.dumps))
def test_whatever_is_sent_is_answered_and_nothing_is_swapped(client: httpx.Client, body: bytes | str) -> None:
    response = client.put(ACTIVE, content=body)
    assert response.status_code in (404, 422)
    assert response.headers["content-type"] == "application/problem+json"


def test_a_body_is_bounded(client: httpx.Client) -> None:
    assert is_problem(client.put(ACTIVE, content=b" " * 4097), 413, "body_too_large")


def test_an_unknown_bundle_is_told_without_the_folders_place(client: httpx.Client, folder: Path) -> None:
    refused = client.put(ACTIVE, json={"bundle": "three"})
    assert is_problem(refused, 404, "bundle_unknown")
    assert str(folder) not in refused.text


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "GET"])
def test_only_a_put_changes_anything(client: httpx.Client, method: str) -> None:
    assert is_problem(client.request(method, ACTIVE), 405, "method_not_allowed")


def test_a_page_of_another_origin_may_not_put(client: httpx.Client) -> None:
    asked = client.options(
        ACTIVE, headers={"origin": "http://elsewhere.example", "access-control-request-method": "PUT"}
    )
    assert asked.status_code == 405
    assert "access-control-allow-origin" not in asked.headers


def test_the_examples_of_the_documentation_fit_its_schema(document: dict[str, Any]) -> None:
    put = document["paths"][ACTIVE]["put"]
    body = put["requestBody"]["content"]["application/json"]
    for example in body["examples"].values():
        Draft202012Validator(body["schema"]).validate(example["value"])
    answers = {"Swap": put, "ModelList": document["paths"]["/v1/models"]["get"]}
    for schema, operation in answers.items():
        content = operation["responses"]["200"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{schema}"}
        whole = {"$ref": content["schema"]["$ref"], "components": document["components"]}
        Draft202012Validator(whole).validate(content["example"])


def test_real_answers_fit_the_documents_schema(client: httpx.Client, document: dict[str, Any]) -> None:
    for schema, answer in (
        ("ModelList", client.get("/v1/models").json()),
        ("Swap", client.put(ACTIVE, json={"bundle": "one"}).json()),  # which is in service already
    ):
        whole = {"$ref": f"#/components/schemas/{schema}", "components": document["components"]}
        Draft202012Validator(whole).validate(answer)


def test_every_failure_is_documented_under_its_status(document: dict[str, Any]) -> None:
    listed = {
        name: int(status)
        for status, response in document["paths"][ACTIVE]["put"]["responses"].items()
        for name in re.findall(r"`(\w+)`", response["description"])
    }
    assert {"bundle_unknown", "bundle_refused", "swap_in_progress", "record_failed", "invalid_request"} <= set(listed)
    assert listed == {code: KINDS[code].status for code in listed}
