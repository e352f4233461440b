import gc
import json
import math
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.requests import Request

from engine import InferenceError
from service.app import create_app
from service.bodies import receive
from service.settings import Settings
from service.store import Store
from tests.bundles import grey_of
from tests.service.apps import (
    SCREENS,
    SIZE,
    WAIT_S,
    Device,
    Frame,
    encoded,
    frame,
    is_problem,
    post,
    post_raw,
    serve,
    serve_device,
)

PNG = {"content-type": "image/png"}
RAW = {"content-type": "application/octet-stream"}
OTHER = frame(grey_of(2))
POOL = 40  # threads that FastAPI has for all that is not async


@pytest.fixture(scope="module")
def client(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of one app for many tests; each has screen ids of its own."""
    state_dir = tmp_path_factory.mktemp("state")
    with serve(create_app(Settings(bundle=bundle, state_dir=state_dir, max_body_bytes=10**6))) as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "reasons", "present"),
    [
        ("pass", [], []),
        # label 0's own grey level
        ("fail", ["score_in_fail_range"], ["bubble"]),
        # half of the way to label 1's: a score of nearly 0.5, under the threshold
        ("review", ["score_in_review_band"], []),
    ],
)
def test_each_frame_gets_its_verdict(client: httpx.Client, kind: str, reasons: list[str], present: list[str]) -> None:
    response = post(client, f"kind-{kind}", SCREENS[kind])
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert (answer["screen_id"], answer["verdict"], answer["reasons"]) == (f"kind-{kind}", kind, reasons)
    assert answer["model"] == {"name": "tiny", "version": "1.0.0", "limits": 1}
    assert [label for label, found in answer["labels"].items() if found["present"]] == present
    assert [defect["label"] for defect in answer["defects"]] == present
    proof = answer["proof"]
    assert 0 <= proof.pop("self_test_age_s") < 120
    assert proof == {
        "frame_size_from": "header",
        "windows_expected": 6,
        "windows_inferred": 6,
        "windows_extra": 0,
        "windows_turned": 0,
        "windows_cleared": 0,
        "covered": True,
        "finite": True,
    }


def test_a_defect_is_where_its_pixels_are(client: httpx.Client) -> None:
    pixels = frame()
    pixels[100:108, 136:152] = grey_of(3)
    (defect,) = post(client, "place", pixels).json()["defects"]
    assert (defect["label"], defect["row"], defect["column"], defect["patches"]) == ("tin_ash", 1, 2, 1)
    box = defect["box"]
    assert box["left"] <= 136 < 152 <= box["right"] < 170
    assert box["top"] <= 100 < 108 <= box["bottom"] < 126


def test_raw_pixels_get_the_verdict_of_their_file(client: httpx.Client) -> None:
    file, raw = (send(client, f"raw-{send.__name__}", SCREENS["fail"]).json() for send in (post, post_raw))
    assert raw["proof"]["frame_size_from"] == "query"
    for part in ("verdict", "reasons", "labels", "defects"):
        assert raw[part] == file[part]


def test_the_same_pixels_get_the_same_bytes_again_in_whatever_file(client: httpx.Client) -> None:
    first = post(client, "again", SCREENS["fail"])
    bitmap = client.post(
        "/v1/screens?screen_id=again", content=encoded(SCREENS["fail"], ".bmp"), headers={"content-type": "image/bmp"}
    )
    answers = [first, post(client, "again", SCREENS["fail"]), post_raw(client, "again", SCREENS["fail"]), bitmap]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert [answer.headers["x-replayed"] for answer in answers] == ["false", "true", "true", "true"]


def test_the_same_bytes_are_answered_after_a_restart(bundle: Path, tmp_path: Path) -> None:
    answers = []
    for _ in range(2):
        with serve(create_app(Settings(bundle=bundle, state_dir=tmp_path))) as client:
            answers.append(post(client, "one", SCREENS["review"]).content)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "other",
    [
        OTHER,
        # one pixel by one grey level
        np.concatenate([SCREENS["pass"].ravel()[:-1], [SCREENS["pass"][-1, -1] + 1]]).astype(np.uint8).reshape(SIZE),
        # the very same bytes, in lines of another length
        SCREENS["pass"].reshape(SIZE[::-1]),
    ],
)
def test_other_pixels_under_the_same_id_are_a_conflict(client: httpx.Client, other: Frame, tmp_path: Path) -> None:
    screen_id = f"conflict-{tmp_path.name}"
    first = post(client, screen_id, SCREENS["pass"])
    assert is_problem(post_raw(client, screen_id, other), 409, "conflict")
    assert client.get(f"/v1/screens/{screen_id}").content == first.content


def test_a_screen_under_way_is_in_progress_then_answered(tmp_path: Path) -> None:
    device = Device()
    device.screen_gate.hold()
    with serve_device(device, Settings(state_dir=tmp_path)) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(post, client, "one", SCREENS["pass"])
        device.screen_gate.wait_for()
        assert is_problem(post(client, "one", SCREENS["pass"]), 409, "in_progress")
        assert is_problem(client.get("/v1/screens/one"), 404, "not_found")
        device.screen_gate.open()
        answer = first.result()
        assert answer.json()["verdict"] == "pass"
        assert post(client, "one", SCREENS["pass"]).content == answer.content
    assert device.batches == 2  # 5 patches and 1: nothing was computed twice


def test_a_screen_whose_sender_went_away_is_recorded_all_the_same(tmp_path: Path) -> None:
    device = Device()
    device.screen_gate.hold()
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        host, port = client.base_url.host, client.base_url.port
        body = encoded(SCREENS["pass"])
        with socket.create_connection((host, port or 0)) as connection:
            head = f"POST /v1/screens?screen_id=gone HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            device.screen_gate.wait_for()
        device.screen_gate.open()
    # the service has ended by itself only once the screen had
    store = Store(tmp_path)
    answered = store.find("gone")
    store.close()
    assert answered is not None
    assert answered.verdict == "pass"


@pytest.mark.parametrize(
    ("query", "headers", "body", "status", "code"),
    [
        # raw pixels need both sizes, a file has its own
        ({}, RAW, bytes(128 * 192), 422, "invalid_request"),
        ({"width": 192}, RAW, bytes(128 * 192), 422, "invalid_request"),
        ({"height": 128}, RAW, bytes(128 * 192), 422, "invalid_request"),
        ({"width": 192, "height": 128}, PNG, encoded(SCREENS["pass"]), 422, "invalid_request"),
        ({"width": 192}, PNG, encoded(SCREENS["pass"]), 422, "invalid_request"),
        ({"width": 0, "height": 128}, RAW, b"", 422, "invalid_request"),
        ({"width": "wide", "height": 128}, RAW, b"", 422, "invalid_request"),
        # exactly that many bytes
        ({"width": 192, "height": 128}, RAW, bytes(128 * 192 - 1), 422, "frame_size_mismatch"),
        ({"width": 192, "height": 128}, RAW, bytes(128 * 192 + 1), 422, "frame_size_mismatch"),
        ({"width": 192, "height": 128}, RAW, b"", 422, "frame_size_mismatch"),
        # under one patch, over the limits
        ({"width": 63, "height": 128}, RAW, bytes(63 * 128), 422, "image_too_small"),
        ({"width": 20000, "height": 20000}, RAW, b"", 413, "image_too_large"),
        ({"width": 2000, "height": 1000}, RAW, bytes(2 * 10**6), 413, "body_too_large"),
        # kinds of body
        ({}, {}, encoded(SCREENS["pass"]), 415, "unsupported_media"),
        ({}, {"content-type": "image/webp"}, b"", 415, "unsupported_media"),
        ({}, {"content-type": "image/bmp"}, encoded(SCREENS["pass"]), 415, "unsupported_media"),
        ({}, PNG, b"no image", 422, "unreadable_image"),
        ({}, PNG, encoded(SCREENS["pass"])[:-20], 422, "incomplete_image"),
        # times that are none
        ({"deadline_s": 0}, PNG, encoded(SCREENS["pass"]), 422, "invalid_request"),
        ({"deadline_s": -1}, PNG, encoded(SCREENS["pass"]), 422, "invalid_request"),
        ({"deadline_s": 301}, PNG, encoded(SCREENS["pass"]), 422, "invalid_request"),
        ({"deadline_s": math.nan}, PNG, encoded(SCREENS["pass"]), 422, "invalid_request"),
        ({"deadline_s": math.inf}, PNG, encoded(SCREENS["pass"]), 422, "invalid_request"),
    ],
)
def test_what_cannot_be_inspected_is_refused_and_leaves_the_id_free(
    client: httpx.Client,
    query: dict[str, str | float],
    headers: dict[str, str],
    body: bytes,
    status: int,
    code: str,
    tmp_path: Path,
) -> None:
    screen_id = f"refused-{tmp_path.name}"
    response = client.post("/v1/screens", params={"screen_id": screen_id, **query}, content=body, headers=headers)
    assert is_problem(response, status, code), response.text
    assert post(client, screen_id, SCREENS["pass"]).status_code == 200


def test_a_media_type_may_have_parameters_and_capitals(client: httpx.Client) -> None:
    headers = {"content-type": "Image/PNG; name=one.png"}
    response = client.post("/v1/screens?screen_id=media", content=encoded(SCREENS["pass"]), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("screen_id", ["0", "S" * 64, "SN-0001_a.b", "..a", "-", "_."])
def test_an_id_may_be_letters_digits_dot_dash_underscore(client: httpx.Client, screen_id: str) -> None:
    answer = post(client, screen_id, SCREENS["pass"])
    assert answer.json()["screen_id"] == screen_id
    assert client.get(f"/v1/screens/{screen_id}").content == answer.content


# of dots alone it could not be asked for: clients take those for folders
@pytest.mark.parametrize(
    "screen_id", ["", ".", "..", "S" * 65, "." * 64 + "a", "a b", "ä", "a/b", "a\n", "a\0", "a'; DROP TABLE screens"]
)
def test_another_id_is_refused(client: httpx.Client, screen_id: str) -> None:
    assert is_problem(post(client, screen_id, SCREENS["pass"]), 422, "invalid_request")


def test_a_missing_id_is_named(client: httpx.Client) -> None:
    response = client.post("/v1/screens", content=b"", headers=PNG)
    assert is_problem(response, 422, "invalid_request")
    assert "screen_id" in response.json()["detail"]


def test_a_misspelt_parameter_is_named_and_not_passed_over(client: httpx.Client) -> None:
    response = post(client, "one", SCREENS["pass"], deadline=5)
    assert is_problem(response, 422, "invalid_request")
    assert "'deadline'" in response.json()["detail"]


def test_a_parameter_that_is_there_twice_is_refused(client: httpx.Client) -> None:
    """A gateway that reads the first would book the verdict to another screen than one that reads the last."""
    query = "screen_id=twice-1&screen_id=twice-2"
    response = client.post(f"/v1/screens?{query}", content=encoded(SCREENS["pass"]), headers=PNG)
    assert is_problem(response, 422, "invalid_request")
    assert response.json()["detail"] == "screen_id is there 2 times"
    assert client.get("/v1/screens/twice-2").status_code == 404


def test_a_line_with_an_agreed_size_takes_no_other(bundle: Path, tmp_path: Path) -> None:
    settings = Settings(bundle=bundle, state_dir=tmp_path, frame_size=SIZE)
    with serve(create_app(settings)) as client:
        for number, size in enumerate([(128, 128), (192, 128), (129, 192), (256, 384)]):
            for send in (post, post_raw):
                assert is_problem(send(client, f"s{number}", frame(size=size)), 422, "frame_size_mismatch")
        for send in (post, post_raw):
            answer = send(client, send.__name__, SCREENS["pass"]).json()
            assert answer["verdict"] == "pass"
            assert answer["proof"]["frame_size_from"] == "setting"


def test_a_deadline_that_passes_is_no_verdict_and_the_screen_may_come_again(tmp_path: Path) -> None:
    device = Device()
    device.screen_gate.hold()
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        assert is_problem(post(client, "one", SCREENS["pass"], deadline_s=0.05), 504, "deadline_exceeded")
        assert is_problem(client.get("/v1/screens/one"), 404, "not_found")
        device.screen_gate.open()
        assert post(client, "one", SCREENS["pass"]).json()["verdict"] == "pass"


def test_the_settings_deadline_counts_where_the_request_names_none(tmp_path: Path) -> None:
    device = Device()
    device.screen_gate.hold()
    with serve_device(device, Settings(state_dir=tmp_path, deadline_s=0.05)) as client:
        assert is_problem(post(client, "one", SCREENS["pass"]), 504, "deadline_exceeded")
        device.screen_gate.open()


@pytest.mark.parametrize(
    ("screens", "patches"),
    [
        # one screen in flight
        (1, 1000),
        # the patches of one screen, and no more
        (16, 6),
    ],
)
def test_over_the_limit_is_a_503_that_says_when_to_come_again(tmp_path: Path, screens: int, patches: int) -> None:
    device = Device()
    device.screen_gate.hold()
    settings = Settings(state_dir=tmp_path, max_screens_in_flight=screens, max_queue_patches=patches)
    with serve_device(device, settings) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(post, client, "one", SCREENS["pass"])
        device.screen_gate.wait_for()
        refused = post(client, "two", SCREENS["pass"])
        assert is_problem(refused, 503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        device.screen_gate.open()
        assert first.result().status_code == 200
        assert post(client, "two", SCREENS["pass"]).status_code == 200


@pytest.mark.parametrize("send", [post, post_raw])
def test_a_body_without_room_waits_until_there_is_some(tmp_path: Path, send: Callable[..., httpx.Response]) -> None:
    device = Device()
    device.screen_gate.hold()
    settings = Settings(state_dir=tmp_path, max_memory_bytes=2)  # so that every screen goes alone
    with serve_device(device, settings) as client, ThreadPoolExecutor() as pool:
        first = pool.submit(send, client, "one", SCREENS["pass"])
        device.screen_gate.wait_for()
        late = send(client, "late", SCREENS["pass"], deadline_s=0.2)
        assert is_problem(late, 504, "deadline_exceeded")
        assert "memory" in late.json()["detail"]
        second = pool.submit(send, client, "two", SCREENS["pass"])
        device.screen_gate.open()
        assert (first.result().status_code, second.result().status_code) == (200, 200)


@pytest.mark.parametrize("send", [post, post_raw])
def test_a_screen_does_not_wait_for_requests_that_hold_the_pool(
    tmp_path: Path, send: Callable[..., httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, opened = threading.Semaphore(0), threading.Event()

    def find_slowly(self: Store, screen_id: str) -> None:
        if screen_id == "slow":
            held.release()
            assert opened.wait(WAIT_S)

    monkeypatch.setattr(Store, "find", find_slowly)
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client, ThreadPoolExecutor(POOL) as pool:
        slow = [pool.submit(client.get, "/v1/screens/slow") for _ in range(POOL)]
        try:
            for _ in slow:
                assert held.acquire(timeout=WAIT_S)
            assert send(client, "one", SCREENS["pass"]).status_code == 200
        finally:
            opened.set()
        assert {answer.result().status_code for answer in slow} == {404}


@pytest.mark.parametrize("failure", [InferenceError("the device is gone"), RuntimeError("secret of the driver")])
def test_a_device_that_fails_fails_its_screen_alone(tmp_path: Path, failure: Exception) -> None:
    device = Device()
    device.failure = failure
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        response = post(client, "one", SCREENS["pass"])
        assert is_problem(response, 500, "inference_failed")
        assert "secret" not in response.text
        device.failure = None
        assert post(client, "one", SCREENS["pass"]).json()["verdict"] == "pass"


def test_the_times_of_an_answer_are_those_of_its_stages(client: httpx.Client) -> None:
    timing = json.loads(post(client, "times", SCREENS["pass"]).text)["timing"]
    assert list(timing) == ["receive_s", "decode_s", "queue_s", "features_s", "reasoning_s", "aggregate_s"]
    assert all(0 <= seconds < 20 for seconds in timing.values())
    assert timing["features_s"] > 0


def test_a_body_does_not_outlive_its_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies: list[weakref.ref[NDArray[np.uint8]]] = []

    async def watched(request: Request, *, limit_bytes: int, timeout_s: float) -> memoryview:
        body = np.frombuffer(await receive(request, limit_bytes=limit_bytes, timeout_s=timeout_s), np.uint8).copy()
        bodies.append(weakref.ref(body))
        return body.data

    monkeypatch.setattr("service.routes.receive", watched)
    device = Device()
    device.screen_gate.hold()
    with serve_device(device, Settings(state_dir=tmp_path)) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, client, "held", frame())
        device.screen_gate.wait_for()
        gc.collect()
        left = [body for body in bodies if body() is not None]
        device.screen_gate.open()
        assert answer.result().status_code == 200
    assert (len(bodies), left) == (1, [])
