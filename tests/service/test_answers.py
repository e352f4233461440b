"""What is told beside an answer, and what is counted of it."""

import shutil
import socket
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
import xxhash
from structlog.testing import capture_logs

from engine import InferenceError
from service.aggregation import REVIEW_REASON
from service.settings import Settings
from service.store import RECORD_FILE
from tests.service.apps import SCREENS, SIZE, WAIT_S, Device, count, is_problem, post, post_raw, serve_device
from tests.service.devices import until

HELD_S = 0.5


def test_an_answer_tells_for_which_frame_it_is_and_when_it_was_given(client: httpx.Client) -> None:
    before = datetime.now(UTC)
    first = post(client, "told", SCREENS["pass"])
    pixels = SCREENS["pass"]
    assert first.headers["x-frame-digest"] == xxhash.xxh3_128_hexdigest(pixels.tobytes() + b"(%d, %d)" % pixels.shape)
    recorded_at = datetime.fromisoformat(first.headers["x-recorded-at"])
    assert before - timedelta(seconds=1) < recorded_at <= datetime.now(UTC)
    assert is_problem(post(client, "told", SCREENS["fail"]), 409, "conflict")
    again = client.get("/v1/screens/told")
    assert again.headers["x-replayed"] == "true"
    for name in ("x-frame-digest", "x-recorded-at"):
        assert again.headers[name] == first.headers[name]


def test_a_screen_that_is_no_pass_is_counted_by_its_reasons(client: httpx.Client) -> None:
    def counted() -> list[float]:
        return [count(client, "inspect_reasons_total", reason=reason) for reason in ("frame_constant", REVIEW_REASON)]

    before = counted()
    for _ in range(2):  # the second answer is the first one again
        assert post(client, "dark", np.zeros(SIZE, np.uint8)).json()["verdict"] == "review"
    post(client, "doubtful", SCREENS["review"])
    assert np.subtract(counted(), before).tolist() == [1, 1]


@pytest.mark.parametrize("send", [post, post_raw])
def test_the_wait_for_memory_is_told_and_what_follows_the_last_byte_is_measured_apart(
    tmp_path: Path, send: Callable[..., httpx.Response]
) -> None:
    device = Device()
    device.screen_gate.hold()
    settings = Settings(state_dir=tmp_path, max_memory_bytes=2)  # so that every screen goes alone
    with serve_device(device, settings) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(send, client, "one", SCREENS["pass"])
        device.screen_gate.wait_for()
        second = pool.submit(send, client, "two", SCREENS["pass"])
        until(lambda: count(client, "inspect_memory_waiting") == 1)
        time.sleep(HELD_S)
        device.screen_gate.open()
        assert first.result().json()["timing"]["receive_s"] < HELD_S
        assert second.result().json()["timing"]["receive_s"] >= HELD_S
        assert count(client, "inspect_screen_duration_seconds_sum") > 2 * HELD_S  # the second waited all the time
        assert HELD_S < count(client, "inspect_answer_delay_seconds_sum") < 2 * HELD_S


def test_a_record_that_cannot_be_written_is_not_ready_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.store.BUSY_TIMEOUT_S", 0.05)
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        assert count(client, "inspect_record_ok") == 1
        assert count(client, "inspect_record_free_bytes") > 0
        with closing(sqlite3.connect(tmp_path / RECORD_FILE)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert is_problem(post(client, "one", SCREENS["pass"]), 500, "record_failed")
            answer = client.get("/readyz")
            assert is_problem(answer, 503, "not_ready")
            assert "record cannot be written" in answer.json()["detail"]
            assert count(client, "inspect_record_ok") == 0
            other.rollback()
        until(lambda: client.get("/readyz").status_code == 200)  # without a screen
        assert post(client, "one", SCREENS["pass"]).json()["verdict"] == "pass"


def test_what_is_no_request_is_counted_and_logged(tmp_path: Path) -> None:
    with capture_logs() as logs, serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        url = client.base_url
        with socket.create_connection((url.host, url.port or 0), WAIT_S) as line:
            line.sendall(b"no request\r\n\r\n")
            assert line.recv(2**16).startswith(b"HTTP/1.1 400 ")
        assert count(client, "inspect_errors_total", code="malformed_request") == 1
    (told,) = [entry for entry in logs if entry["event"] == "malformed request"]
    assert told["client"] == "127.0.0.1"


def test_a_late_body_and_one_that_is_not_sent_for_end_their_connection(client: httpx.Client) -> None:
    """Else the next request would be taken for the rest of it."""
    url = client.base_url
    query = f"screen_id=late&width={SIZE[1]}&height={SIZE[0]}&deadline_s=0.2"
    for target, more, code in (
        (f"/v1/screens?{query}", "content-type: application/octet-stream", b"body_too_slow"),
        (f"/v1/screens?{query}", "content-type: text/plain\r\nexpect: 100-continue", b"unsupported_media"),
    ):
        head = f"POST {target} HTTP/1.1\r\nhost: line\r\ncontent-length: {SIZE[0] * SIZE[1]}\r\n{more}\r\n\r\n"
        with socket.create_connection((url.host, url.port or 0), WAIT_S) as line:
            line.sendall(head.encode())
            answer = line.makefile("rb").read()
        assert b"\r\nconnection: close\r\n" in answer.lower()
        assert code in answer


@pytest.mark.parametrize(
    ("query", "media_type", "code"),
    [
        ("width=256&height=512", "application/octet-stream", "frame_size_mismatch"),
        (f"width={SIZE[1]}&height={SIZE[0]}", "image/png", "invalid_request"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_before_the_frame_is_sent(
    tmp_path: Path, query: str, media_type: str, code: str
) -> None:
    settings = Settings(state_dir=tmp_path, frame_size=SIZE)
    head = f"POST /v1/screens?screen_id=one&{query} HTTP/1.1\r\nhost: line\r\ncontent-length: 131072\r\n"
    with serve_device(Device(), settings) as client:
        url = client.base_url
        with socket.create_connection((url.host, url.port or 0), WAIT_S / 2) as line:  # its deadline is longer
            line.sendall(f"{head}content-type: {media_type}\r\n\r\n".encode())
            answer = b""
            while code.encode() not in answer:  # head and body may come apart
                more = line.recv(2**16)
                assert more, answer
                answer += more


def test_a_late_answer_to_a_frame_that_did_not_come_ends_its_connection(tmp_path: Path) -> None:
    """Whatever it is: the model fails on the lines that are there."""
    device = Device()
    device.failure = InferenceError("broken")
    height, width = 4 * SIZE[0], SIZE[1]
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        url = client.base_url
        query = f"screen_id=late&width={width}&height={height}&deadline_s=1"
        head = f"POST /v1/screens?{query} HTTP/1.1\r\nhost: line\r\ncontent-length: {height * width}\r\n"
        with socket.create_connection((url.host, url.port or 0), WAIT_S) as line:
            line.sendall(f"{head}content-type: application/octet-stream\r\n\r\n".encode() + bytes(3 * SIZE[0] * width))
            answer = line.makefile("rb").read()  # until the service ends it
    assert b"inference_failed" in answer
    assert b"\r\nconnection: close\r\n" in answer.lower()


@pytest.mark.parametrize("later", [False, True])
def test_what_stands_behind_a_whole_frame_does_not_take_its_answer(tmp_path: Path, later: bool) -> None:
    device, stray = Device(), b"no request\r\n\r\n"
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        url = client.base_url
        query = f"screen_id=one&width={SIZE[1]}&height={SIZE[0]}"
        head = f"POST /v1/screens?{query} HTTP/1.1\r\nhost: line\r\ncontent-length: {SIZE[0] * SIZE[1]}\r\n"
        with socket.create_connection((url.host, url.port or 0), WAIT_S) as line:
            device.screen_gate.hold()
            line.sendall(f"{head}content-type: application/octet-stream\r\n\r\n".encode())
            line.sendall(SCREENS["pass"].tobytes() + (b"" if later else stray))
            device.screen_gate.wait_for()
            line.sendall(stray if later else b"")
            time.sleep(0.05)
            device.screen_gate.open()
            assert line.makefile("rb").read().startswith(b"HTTP/1.1 200 OK\r\n")  # and then the connection ends
        assert count(client, "inspect_errors_total", code="malformed_request") == 0


def test_a_broken_request_is_counted_once(client: httpx.Client) -> None:
    url = client.base_url
    head = f"POST /v1/screens?screen_id=one&width={SIZE[1]}&height={SIZE[0]} HTTP/1.1\r\nhost: line\r\n"
    head += "content-type: application/octet-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    with socket.create_connection((url.host, url.port or 0), WAIT_S) as line:
        line.sendall(head.encode() + b"3\r\nabc\r\n")
        time.sleep(0.1)
        line.sendall(b"no size\r\n")
        assert line.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
    until(lambda: count(client, "inspect_screens_in_flight") == 0)
    assert count(client, "inspect_errors_total", code="malformed_request") == 1
    assert count(client, "inspect_errors_total", code="incomplete_body") == 0


def test_a_resource_says_of_all_its_methods(client: httpx.Client) -> None:
    answer = client.request("OPTIONS", "/v1/screens")
    assert is_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"
    for probe in ("/healthz", "/readyz"):
        until(lambda probe=probe: client.head(probe).status_code == 200)  # type: ignore[misc]


def test_two_content_types_are_none(client: httpx.Client) -> None:
    headers = [("content-type", "image/png"), ("content-type", "image/bmp")]
    assert is_problem(client.post("/v1/screens?screen_id=two", content=b"x", headers=headers), 415, "unsupported_media")


def test_a_record_that_is_gone_leaves_the_metrics_to_say_so(tmp_path: Path) -> None:
    with serve_device(Device(), Settings(state_dir=tmp_path / "state")) as client:
        assert post(client, "one", SCREENS["pass"]).status_code == 200
        shutil.rmtree(tmp_path / "state")
        until(lambda: client.get("/readyz").status_code == 503)
        assert count(client, "inspect_record_ok") == 0
        assert is_problem(post(client, "two", SCREENS["pass"]), 500, "record_failed")
