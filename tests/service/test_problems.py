import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import httpx
import pytest
from fastapi import FastAPI, Request
from prometheus_client.parser import text_string_to_metric_families
from starlette.exceptions import HTTPException

from engine import InferenceError
from service import errors
from service.app import create_app
from service.errors import QueueFull, ServiceError, TooManyScreens, concrete_errors
from service.problems import KINDS, MEDIA_TYPE, describe, problem
from service.settings import Settings
from service.store import StoreError
from tests.service.apps import GOLDEN, Device, is_problem, serve, serve_device

PRIVATE = "/srv/line4/screens.sqlite: no such column"
NOT_SERVICE_ERRORS = {"method_not_allowed", "inference_failed", "record_failed", "internal_error"}


def every_class(of: type[ServiceError] = ServiceError) -> Iterator[type[ServiceError]]:
    for child in of.__subclasses__():
        yield child
        yield from every_class(child)


def made(error: type[ServiceError]) -> ServiceError:
    return error("what happened", retry_after_s=2.0) if issubclass(error, QueueFull) else error("what happened")


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """The service, with a route that raises `app.state.error`."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"))
    app = create_app(settings, backends=[Device().backend()], golden=GOLDEN)

    async def fail(request: Request) -> NoReturn:
        raise request.app.state.error

    app.add_api_route("/fail", fail, response_model=None)
    return app


@pytest.fixture(scope="module")
def client(app: FastAPI) -> Iterator[httpx.Client]:
    with serve(app) as client:
        yield client


def errors_counted(client: httpx.Client) -> dict[str, float]:
    """Problem documents so far, by their code."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    (family,) = (family for family in families if family.name == "inspect_errors")
    return {sample.labels["code"]: sample.value for sample in family.samples if sample.name == "inspect_errors_total"}


def test_every_error_has_a_code_of_its_own() -> None:
    assert len({error.code for error in concrete_errors()}) == len(concrete_errors())
    assert not {error.code for error in concrete_errors()} & NOT_SERVICE_ERRORS
    # a more special error is one to the sender's code
    assert {error.code for error in every_class()} == {error.code for error in concrete_errors()}
    assert TooManyScreens.code == QueueFull.code


def test_every_code_has_a_status_and_a_title() -> None:
    assert {code: kind.status for code, kind in KINDS.items()} == {
        error.code: error.status for error in concrete_errors()
    } | {
        "malformed_request": 400,
        "method_not_allowed": 405,
        "inference_failed": 500,
        "record_failed": 500,
        "internal_error": 500,
    }
    assert all(400 <= kind.status < 600 for kind in KINDS.values())
    titles = [problem(code, "", instance="").title for code in KINDS]
    assert all(titles)
    assert len(set(titles)) == len(titles)


def test_every_error_is_drawn_where_it_happens() -> None:
    assert errors.__doc__ is not None
    assert [error.__name__ for error in every_class() if error.__name__ not in errors.__doc__] == []


@pytest.mark.parametrize("error", [*every_class()], ids=lambda error: error.__name__)
def test_every_error_is_answered_with_its_document(
    error: type[ServiceError], client: httpx.Client, app: FastAPI
) -> None:
    app.state.error = made(error)
    answer = client.get("/fail")
    assert answer.status_code == error.status
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json() == {
        "type": f"urn:screen-inspection:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": "what happened",
        "instance": "/fail",
        "code": error.code,
    }


@pytest.mark.parametrize(("seconds", "header"), [(0.2, "1"), (1.0, "1"), (1.2, "2"), (30.0, "30")])
@pytest.mark.parametrize("error", [QueueFull, TooManyScreens])
def test_full_queue_says_when_to_come_again(
    error: type[QueueFull], seconds: float, header: str, client: httpx.Client, app: FastAPI
) -> None:
    app.state.error = error("no room", retry_after_s=seconds)
    answer = client.get("/fail")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_full")
    # whole seconds, never too few
    assert answer.headers["retry-after"] == header


def test_a_service_that_is_not_ready_says_when_to_come_again(client: httpx.Client, app: FastAPI) -> None:
    app.state.error = errors.NotReady("stopping")
    answer = client.get("/fail")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_other_errors_do_not_ask_to_come_again(client: httpx.Client, app: FastAPI) -> None:
    for error in every_class():
        app.state.error = made(error)
        later = error.status == 503 or error is errors.ScreenInProgress
        assert ("retry-after" in client.get("/fail").headers) == later, error


def test_probes_are_not_counted_as_screens_that_were_refused(tmp_path: Path) -> None:
    device = Device()
    device.golden_score = 0.9
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        assert is_problem(client.get("/readyz"), 503, "not_ready")
        assert is_problem(client.post("/healthz"), 405, "method_not_allowed")
        assert {code: number for code, number in errors_counted(client).items() if number} == {}


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (RuntimeError(PRIVATE), "internal_error", "see the service's log"),
        (AssertionError(), "internal_error", "see the service's log"),
        (ExceptionGroup(PRIVATE, [ValueError(PRIVATE)]), "internal_error", "see the service's log"),
        (StoreError(PRIVATE), "record_failed", "see the service's log"),
        # a runtime's words may be in it
        (InferenceError(PRIVATE), "inference_failed", "the model failed on this screen; see the service's log"),
    ],
)
def test_failure_of_the_service_is_a_500_that_tells_nothing_it_should_not(
    error: Exception, code: str, detail: str, client: httpx.Client, app: FastAPI
) -> None:
    app.state.error = error
    answer = client.get("/fail")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert PRIVATE not in answer.text
    assert (answer.json()["code"], answer.json()["detail"]) == (code, detail)


def test_record_that_cannot_be_read_is_record_failed(tmp_path: Path) -> None:
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        with sqlite3.connect(tmp_path / "screens.sqlite") as other:
            other.execute("DROP TABLE screens")
        other.close()
        answer = client.get("/v1/screens/screen-1")
    assert (answer.status_code, answer.json()["code"]) == (500, "record_failed")
    assert "no such table" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/screens/screen-1", 404, "not_found"),
        ("DELETE", "/v1/screens", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_routing_fails_with_a_document(method: str, path: str, status: int, code: str, client: httpx.Client) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["code"], answer.json()["status"]) == (status, code, status)
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json()["instance"] == path
    assert ("allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/v1/screens", "screen_id"),
        ("/v1/screens?screen_id=a%20b", "screen_id"),
        (f"/v1/screens?screen_id={'a' * 65}", "screen_id"),
        ("/v1/screens?screen_id=a&width=0&height=64", "width"),
        ("/v1/screens?screen_id=a&width=64&height=tall", "height"),
        ("/v1/screens?screen_id=a&deadline_s=nan", "deadline_s"),
        ("/v1/screens?screen_id=a&deadline_s=-1", "deadline_s"),
    ],
)
def test_parameter_that_is_not_valid_is_named(path: str, parameter: str, client: httpx.Client) -> None:
    answer = client.post(path, headers={"content-type": "image/png"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.json()["detail"].startswith(f"{parameter}: ")


def test_what_was_sent_is_not_repeated(client: httpx.Client) -> None:
    assert "<script>" not in client.post("/v1/screens?screen_id=<script>&width=<script>").text


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_request"), (418, "invalid_request"), (502, "internal_error")]
)
def test_http_error_of_a_library_becomes_one_of_our_codes(
    status: int, code: str, client: httpx.Client, app: FastAPI
) -> None:
    app.state.error = HTTPException(status)
    answer = client.get("/fail")
    assert (answer.status_code, answer.json()["code"]) == (KINDS[code].status, code)


def test_every_document_is_counted_by_its_code(client: httpx.Client, app: FastAPI) -> None:
    before = errors_counted(client)
    assert before.keys() == KINDS.keys()
    app.state.error = RuntimeError(PRIVATE)
    client.get("/fail")
    client.get("/v1/nothing")
    client.get("/v1/nothing")
    more = {code: count - before[code] for code, count in errors_counted(client).items()}
    assert {code: count for code, count in more.items() if count} == {"internal_error": 1, "not_found": 2}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.IncompleteImage("cut off"), "incomplete_image"),
        (InferenceError(PRIVATE), "inference_failed"),
        (StoreError(PRIVATE), "record_failed"),
    ],
)
def test_error_of_a_file_is_the_same_document(error: ServiceError | InferenceError | StoreError, code: str) -> None:
    document = describe(error, instance="a.png")
    assert (document.code, document.status, document.instance) == (code, KINDS[code].status, "a.png")
    assert PRIVATE not in document.detail
