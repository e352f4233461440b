"""Raw frames that are worked on while they arrive, through a real server."""

import gc
import socket
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from service.arrival import Arrival
from service.settings import Settings
from tests.service.apps import PATCH_PX, WAIT_S, Device, count, frame, is_problem, post_raw, serve_device
from tests.service.devices import until

SIZE = (5 * PATCH_PX, 3 * PATCH_PX)  # 15 windows: three batches
FRAME = frame(size=SIZE)
HALF = 3 * PATCH_PX  # lines: 9 windows, one batch whole
QUERY = {"width": SIZE[1], "height": SIZE[0]}
RAW = {"content-type": "application/octet-stream"}


def send(client: httpx.Client, screen_id: str, pieces: Iterator[bytes], **query: float) -> httpx.Response:
    """Post a frame in pieces, of no length that was told before."""
    return client.post("/v1/screens", params={"screen_id": screen_id, **QUERY, **query}, content=pieces, headers=RAW)


def nothing_is_left(client: httpx.Client) -> bool:
    series = ("queue_patches", "screens_in_flight", "memory_held_bytes", "memory_waiting")
    return all(count(client, f"inspect_{name}") == 0 for name in series)


def test_windows_are_computed_while_the_rest_is_on_its_way(tmp_path: Path) -> None:
    device = Device()
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        whole = post_raw(client, "whole", FRAME).json()
        device.batches = 0

        def lines() -> Iterator[bytes]:
            yield FRAME[:HALF].tobytes()
            until(lambda: device.batches == 1)
            yield FRAME[HALF:].tobytes()

        answer = send(client, "pieces", lines()).json()
        assert device.batches == 3
    for verdict in (whole, answer):
        del verdict["timing"], verdict["screen_id"], verdict["proof"]["self_test_age_s"]
    assert answer == whole


@contextmanager
def begun(client: httpx.Client, screen_id: str, lines: int, **query: float) -> Iterator[socket.socket]:
    """A connection on which so many lines of a whole frame were sent."""
    target = client.build_request("POST", "/v1/screens", params={"screen_id": screen_id, **QUERY, **query}).url
    head = f"POST {target.raw_path.decode()} HTTP/1.1\r\nhost: line\r\n"
    head += f"content-type: {RAW['content-type']}\r\ncontent-length: {FRAME.size}\r\n\r\n"
    with socket.create_connection((target.host, target.port or 0), WAIT_S) as connection:
        connection.sendall(head.encode() + FRAME[:lines].tobytes())
        yield connection


def test_a_frame_that_stops_half_way_is_an_error_frees_everything_and_leaves_others_alone(tmp_path: Path) -> None:
    device = Device()
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        with begun(client, "stopped", HALF, deadline_s=0.5) as connection:
            until(lambda: device.batches == 1)
            for number in range(3):  # others come and go while it stands still
                assert post_raw(client, f"other-{number}", FRAME).json()["verdict"] == "pass"
            answer = connection.makefile("rb").read()  # to its end: the connection is closed
        assert b" 408 " in answer
        assert b"body_too_slow" in answer
        assert nothing_is_left(client)
        assert client.get("/v1/screens/stopped").status_code == 404
        assert post_raw(client, "stopped", FRAME).json()["verdict"] == "pass"  # its id is free


@pytest.mark.parametrize("lines", [HALF, 0, SIZE[0] - 1])
def test_a_sender_that_goes_away_frees_everything(tmp_path: Path, lines: int) -> None:
    device = Device()
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        with begun(client, "gone", lines):
            until(lambda: count(client, "inspect_screens_in_flight") == 1)
            assert count(client, "inspect_memory_held_bytes") == FRAME.size
        until(lambda: nothing_is_left(client))
        assert count(client, "inspect_errors_total", code="incomplete_body") == 1
        assert post_raw(client, "gone", FRAME).json()["verdict"] == "pass"


@pytest.mark.parametrize("deadline_s", [WAIT_S, 0.5])  # it goes away, or it is too slow
def test_a_frame_that_broke_off_is_not_held_in_memory(
    tmp_path: Path, deadline_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[object]] = []

    def remember(height: int, width: int) -> Arrival:
        arrival = Arrival(height, width)
        held.append(weakref.ref(arrival.pixels))
        return arrival

    monkeypatch.setattr("service.routes.Arrival", remember)
    gc.disable()  # what only a collection finds would lie about until then
    try:
        with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
            with begun(client, "broken", HALF, deadline_s=deadline_s) as connection:
                until(lambda: count(client, "inspect_screens_in_flight") == 1)
                if deadline_s < WAIT_S:
                    assert b" 408 " in connection.makefile("rb").read()
            until(lambda: len(held) == 1 and held[0]() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [0, FRAME.size - 1, FRAME.size + 1, 2 * FRAME.size])
def test_a_frame_of_another_length_than_its_size_is_refused(tmp_path: Path, size: int) -> None:
    body = np.resize(FRAME, size).tobytes()
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        contents: tuple[bytes | Iterable[bytes], ...] = (body, iter([body]))  # its length told before, and not
        for number, content in enumerate(contents):
            response = client.post(
                "/v1/screens", params={"screen_id": f"{number}", **QUERY}, content=content, headers=RAW
            )
            assert is_problem(response, 422, "frame_size_mismatch")
        until(lambda: nothing_is_left(client))


def test_the_same_pixels_in_pieces_get_the_same_bytes_again(tmp_path: Path) -> None:
    device = Device()
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        first = post_raw(client, "one", FRAME)
        batches = device.batches
        again = send(client, "one", iter([FRAME[:7].tobytes(), FRAME[7:].tobytes()]))
        assert again.content == first.content
        other = FRAME.copy()
        other[-1, -1] ^= 1
        assert is_problem(send(client, "one", iter([other.tobytes()])), 409, "conflict")
        assert device.batches == batches


def test_a_frame_that_is_refused_is_answered_once_it_was_sent(tmp_path: Path) -> None:
    with serve_device(Device(), Settings(state_dir=tmp_path, max_queue_patches=6)) as client:
        response = send(client, "one", (line.tobytes() for line in FRAME))
    assert is_problem(response, 413, "image_too_large")


def test_the_size_is_checked_before_memory_is_taken(tmp_path: Path) -> None:
    with serve_device(Device(), Settings(state_dir=tmp_path)) as client:
        for query in ({"width": 10**9, "height": 10**9}, {"width": 10_001, "height": 10_000}):
            response = client.post("/v1/screens", params={"screen_id": "one", **query}, content=b"", headers=RAW)
            assert is_problem(response, 413, "image_too_large")
