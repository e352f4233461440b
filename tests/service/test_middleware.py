import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import StreamingResponse
from structlog.typing import EventDict

from engine import InferenceError
from service.app import create_app
from service.settings import Settings
from tests.service.apps import GOLDEN, SCREENS, Device, encoded, logged, post, serve, serve_device

MADE = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serve_device(Device(), Settings(state_dir=tmp_path_factory.mktemp("state"))) as client:
        yield client


def app_with(route: Callable[[], Coroutine[None, None, object]], path: str, state_dir: Path) -> FastAPI:
    """The real app with one route more."""
    app = create_app(Settings(state_dir=state_dir), backends=[Device().backend()], golden=GOLDEN)
    app.add_api_route(path, route)
    return app


@pytest.mark.parametrize("request_id", ["7", "line-3.screen_17", "x" * 128])
def test_the_requests_own_id_comes_back(client: httpx.Client, request_id: str) -> None:
    assert client.get("/healthz", headers={"x-request-id": request_id}).headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", [b"", b"a b", b"x" * 129, b"a;b", b"<b>", b"a\tb", "é".encode()])
def test_an_id_that_could_do_harm_in_a_log_is_replaced(client: httpx.Client, request_id: bytes) -> None:
    answered = client.get("/healthz", headers=[(b"x-request-id", request_id)])
    assert MADE.fullmatch(answered.headers["x-request-id"])


def test_requests_without_an_id_get_each_their_own(client: httpx.Client) -> None:
    made = {client.get("/healthz").headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5
    assert all(MADE.fullmatch(request_id) for request_id in made)


@pytest.mark.parametrize("path", ["/nothing", "/v1/screens/none", "/v1/screens?limit=0", "/docs", "/openapi.json"])
def test_every_answer_has_the_id(client: httpx.Client, path: str) -> None:
    assert client.get(path, headers={"x-request-id": "seven"}).headers["x-request-id"] == "seven"


def of(lines: list[EventDict], request_id: str) -> list[EventDict]:
    """The lines of one request; those of other tests' apps may still come."""
    return [line for line in lines if line.get("request_id") == request_id]


def test_a_request_has_one_line_in_the_log_and_its_screen_another_with_the_same_id(tmp_path: Path) -> None:
    headers = {"content-type": "image/png", "x-request-id": "inspecting"}
    with logged() as lines, serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        client.post("/v1/screens?screen_id=one", content=encoded(SCREENS["pass"]), headers=headers)
    inspected, request = of(lines, "inspecting")
    assert 0 <= request.pop("duration_s") < 20
    assert request == {
        "event": "request",
        "log_level": "info",
        "request_id": "inspecting",
        "client": "127.0.0.1",
        "screen_id": "one",
        "method": "POST",
        "path": "/v1/screens",
        "status": 200,
    }
    # written by the screen's own thread
    assert inspected == {
        "event": "inspected",
        "log_level": "info",
        "request_id": "inspecting",
        "client": "127.0.0.1",
        "screen_id": "one",
        "verdict": "pass",
        "reasons": (),
        "model": "fake",
        "version": "0",
    }


def test_a_refused_request_says_why_in_its_line_and_the_next_one_does_not(tmp_path: Path) -> None:
    with logged() as lines, serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        client.get("/v1/screens/none", headers={"x-request-id": "refused"})
        client.get("/v1/screens", headers={"x-request-id": "next"})
    (refused,), (next_one,) = of(lines, "refused"), of(lines, "next")
    assert (refused["status"], refused["code"]) == (404, "not_found")
    assert refused["detail"] == "no screen none was answered"
    assert next_one["status"] == 200
    assert not {"code", "detail"} & next_one.keys()


def test_a_screen_without_a_verdict_is_found_in_the_log_by_its_id(tmp_path: Path) -> None:
    device = Device()
    device.failure = InferenceError("out of memory")
    with logged() as lines, serve_device(device, Settings(state_dir=tmp_path)) as client:
        assert post(client, "lost", SCREENS["pass"]).status_code == 500
        assert client.get("/v1/screens/none").status_code == 404
    requests = [line for line in lines if line["event"] == "request" and line["method"] in ("GET", "POST")]
    assert [line.get("screen_id") for line in requests if line["status"] >= 400] == ["lost", None]


def test_a_request_that_came_with_another_has_a_line_of_its_own(tmp_path: Path) -> None:
    """Which begins in the context of the one before, where both lie in one packet."""
    with logged() as lines, serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        url = client.base_url
        with socket.create_connection((url.host, url.port or 80), 10) as connection:
            asked = [("/v1/screens/none", "first", ""), ("/v1/screens", "second", "connection: close\r\n")]
            connection.sendall(
                "".join(
                    f"GET {path} HTTP/1.1\r\nhost: line\r\nx-request-id: {name}\r\n{more}\r\n"
                    for path, name, more in asked
                ).encode()
            )
            while connection.recv(2**16):
                pass
    (first,), (second,) = of(lines, "first"), of(lines, "second")
    assert (first["status"], first["code"]) == (404, "not_found")
    assert second["status"] == 200
    assert not {"code", "detail"} & second.keys()


def test_what_machines_ask_every_few_seconds_is_logged_for_who_looks_for_it(tmp_path: Path) -> None:
    with logged() as lines, serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            client.get(path, headers={"x-request-id": "machine"})
    asked = [(line["path"], line["log_level"]) for line in of(lines, "machine")]
    assert asked == [("/healthz", "debug"), ("/readyz", "debug"), ("/metrics", "debug")]


def test_what_nobody_expected_is_a_problem_without_its_text_and_logged_once(tmp_path: Path) -> None:
    async def broken() -> None:
        raise LookupError("a secret path")

    with logged() as lines, serve(app_with(broken, "/broken", tmp_path)) as client:
        response = client.get("/broken", headers={"x-request-id": "broken"})
        assert response.status_code == 500
        assert response.headers["x-request-id"] == "broken"
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] == "internal_error"
        assert "secret" not in response.text
        assert 'inspect_errors_total{code="internal_error"} 1.0' in client.get("/metrics").text
        assert post(client, "one", SCREENS["pass"]).status_code == 200
    failure, request = of(lines, "broken")
    assert (failure["event"], failure["log_level"], failure["exc_info"]) == ("unexpected", "error", True)
    assert (request["status"], request["code"]) == (500, "internal_error")


def test_an_answer_that_breaks_off_is_no_whole_answer(tmp_path: Path) -> None:
    async def half() -> StreamingResponse:
        async def body() -> AsyncIterator[bytes]:
            yield b'{"verdict": "pass"'
            raise LookupError("halfway")

        return StreamingResponse(body())

    with logged() as lines, serve(app_with(half, "/half", tmp_path)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            client.get("/half", headers={"x-request-id": "half"})
        assert client.get("/healthz").status_code == 200
    failure, request = of(lines, "half")
    assert failure["event"] == "unexpected"
    assert request["status"] == 200  # which had been sent
