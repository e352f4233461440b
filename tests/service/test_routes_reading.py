"""What is asked about the service and about screens that were answered, and the record behind it."""

import sqlite3
from functools import partial
from pathlib import Path

import httpx
import pytest

from service.app import create_app
from service.settings import Settings
from tests.bundles import LABELS, grey_of
from tests.service.apps import SCREENS, Device, count, frame, is_problem, post, serve, serve_device


@pytest.mark.parametrize("screen_id", ["S" * 65, "a b", "%C3%A4"])
def test_nothing_is_looked_up_under_another_id(client: httpx.Client, screen_id: str) -> None:
    assert is_problem(client.get(f"/v1/screens/{screen_id}"), 422, "invalid_request")


def test_answers_are_listed_newest_first_in_pages(tmp_path: Path) -> None:
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        assert client.get("/v1/screens").json() == {"items": [], "next": None}
        answers = [post(client, f"s{number}", SCREENS["pass"]).json() for number in range(5)]
        seen, cursor, pages = [], None, 0
        while pages == 0 or cursor is not None:
            page = client.get("/v1/screens", params={"limit": 2, **({} if cursor is None else {"cursor": cursor})})
            assert page.headers["content-type"] == "application/json"
            seen += page.json()["items"]
            cursor = page.json()["next"]
            pages += 1
        assert seen == answers[::-1]
        assert pages == 3
        assert client.get("/v1/screens").json()["items"] == seen


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=all", "cursor=-1", "cursor=x", f"cursor={2**63}", "limt=2", "limit=2&limit=3"],
)
def test_a_page_that_cannot_be_is_refused(client: httpx.Client, query: str) -> None:
    assert is_problem(client.get(f"/v1/screens?{query}"), 422, "invalid_request")


def test_a_cursor_before_the_first_answer_is_an_empty_page(client: httpx.Client) -> None:
    assert client.get("/v1/screens?cursor=0").json() == {"items": [], "next": None}
    assert client.get("/v1/screens?cursor=").json() == client.get("/v1/screens").json()  # as of the first page
    assert client.get(f"/v1/screens?limit=1000&cursor={2**63 - 1}").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/screens/never-sent", 404, "not_found"),
        ("GET", "/static-offline-docs/nothing.js", 404, "not_found"),
        ("DELETE", "/v1/screens/one", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("POST", "/v1/screens/?screen_id=one", 404, "not_found"),
        ("GET", "/readyz/", 404, "not_found"),
    ],
)
def test_a_path_that_is_none_has_its_problem_too(
    client: httpx.Client, method: str, path: str, status: int, code: str
) -> None:
    assert is_problem(client.request(method, path), status, code)


def test_every_new_verdict_is_counted_once(bundle: Path, tmp_path: Path) -> None:
    with serve(create_app(Settings(bundle=bundle, state_dir=tmp_path, runtime="onnxruntime"))) as client:
        number = partial(count, client)
        for kind, pixels in SCREENS.items():
            for _ in range(2):  # the second is an answer given again
                assert post(client, kind, pixels).status_code == 200
        assert post(client, "pass", frame(grey_of(2))).status_code == 409
        assert [number("inspect_screens_total", verdict=kind) for kind in ("pass", "fail", "review")] == [1, 1, 1]
        assert number("inspect_patches_total") == 3 * 6
        assert number("inspect_screen_duration_seconds_count") == 3
        assert number("inspect_screens_in_flight") == 0
        assert number("inspect_queue_patches") == 0
        assert [number("inspect_defects_total", label=label) for label in LABELS] == [1, 0, 0, 0]
        for label in LABELS:
            assert number("inspect_label_score_count", label=label) == 3
        for stage in ("receive", "decode", "queue", "features", "reasoning", "aggregate", "record"):
            assert number("inspect_stage_duration_seconds_count", stage=stage) == 3
        assert number("inspect_errors_total", code="conflict") == 1
        assert number("inspect_errors_total", code="queue_full") == 0
        assert number("inspect_model_info", name="tiny", version="1.0.0", runtime="onnxruntime") == 1
        assert number("inspect_self_test_ok") == 1
        assert 0 <= number("inspect_self_test_age_seconds") < 120


def change_record(state_dir: Path, statement: str) -> None:
    with sqlite3.connect(state_dir / "screens.sqlite") as other:
        other.execute(statement)
    other.close()


def test_what_cannot_be_recorded_is_not_answered(tmp_path: Path) -> None:
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        change_record(tmp_path, "CREATE TRIGGER full BEFORE INSERT ON screens BEGIN SELECT RAISE(ABORT, 'full'); END")
        response = post(client, "one", SCREENS["pass"])
        assert is_problem(response, 500, "record_failed")
        assert "verdict" not in response.json()
        assert str(tmp_path) not in response.text
        assert count(client, "inspect_screens_total", verdict="pass") == 0
        change_record(tmp_path, "DROP TRIGGER full")
        assert post(client, "one", SCREENS["pass"]).json()["verdict"] == "pass"


def test_without_its_record_the_service_answers_nothing(tmp_path: Path) -> None:
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        change_record(tmp_path, "DROP TABLE screens")
        for response in (client.get("/v1/screens/one"), client.get("/v1/screens"), post(client, "one", frame())):
            assert is_problem(response, 500, "record_failed")


@pytest.mark.parametrize("length", [True, False])
def test_a_raw_body_is_held_to_the_limit_whether_it_tells_its_length_or_not(tmp_path: Path, length: bool) -> None:
    pixels = SCREENS["pass"]
    height, width = pixels.shape
    settings = Settings(state_dir=tmp_path, max_body_bytes=pixels.size - 1)
    with serve_device(Device(), settings) as client:
        content = pixels.tobytes() if length else iter([pixels.tobytes()])
        response = client.post(
            f"/v1/screens?screen_id=one&width={width}&height={height}",
            content=content,
            headers={"content-type": "application/octet-stream"},
        )
        assert is_problem(response, 413, "body_too_large")
