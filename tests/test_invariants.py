"""What must hold whatever is changed, through the real service: one test for each, named after it.

The other invariants are tested where they live, and named in `ELSEWHERE`.
"""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.images import MEDIA_TYPES
from service.problems import KINDS, problem
from service.settings import Settings
from service.verdict import from_json
from tests.bundles import BACKGROUND, LABELS, REACH, grey_of, tiny_bundle
from tests.service.apps import (
    CLEAN,
    PATCH_PX,
    SCREENS,
    SIZE,
    Device,
    Frame,
    frame,
    post,
    post_raw,
    serve,
    serve_device,
)
from tests.service.shelves import BREAKERS, broken, shelf

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    ("tests/engine/test_windows.py", "test_every_pixel_is_covered_by_equal_windows_inside_the_frame"),
    ("tests/service/test_active.py", "test_threads_that_take_and_swap_at_once_never_meet_a_closed_one"),
    ("tests/service/test_restart.py", "test_a_line_never_runs_another_model_in_place_of_the_one_put_in_service"),
    ("tests/service/test_aggregation.py", "test_raising_a_score_never_turns_fail_into_pass"),
    ("tests/test_architecture.py", "test_serving_a_screen_never_loads_torch"),
)
# what a verdict says of a screen; its id and its times are each request's own
SAID = ("verdict", "reasons", "model", "labels", "defects")
IN_FLIGHT = 8

numbers = itertools.count()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def line(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service whose line has agreed a frame size."""
    with serve(create_app(Settings(bundle=bundle, state_dir=tmp_path_factory.mktemp("line"), frame_size=SIZE))) as line:
        yield line


def new_id() -> str:
    return f"screen-{next(numbers)}"


@pytest.mark.parametrize(("file", "name"), ELSEWHERE)
def test_every_other_invariant_is_tested_where_it_lives(file: str, name: str) -> None:
    assert f"\ndef {name}(" in (ROOT / file).read_text()


def mixed_screen(seed: int) -> Frame:
    """A frame of any size, with spots of any strength of any label."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(BACKGROUND - 20, BACKGROUND + 20, rng.integers(PATCH_PX, 6 * PATCH_PX, 2)).astype(np.uint8)
    for _ in range(rng.integers(0, 4)):
        top, left = (int(rng.integers(0, length - 9)) for length in pixels.shape)
        level = grey_of(int(rng.integers(len(LABELS)))) + int(rng.integers(-REACH, REACH))
        pixels[top : top + 9, left : left + 9] = level
    return pixels


def test_the_same_screens_alone_and_with_8_in_flight_give_the_same_verdicts_bit_for_bit(
    bundle: Path, tmp_path: Path
) -> None:
    screens = [mixed_screen(seed) for seed in range(32)]
    with serve(create_app(Settings(bundle=bundle, state_dir=tmp_path / "alone"))) as client:
        alone = [said(post_raw(client, str(number), screen)) for number, screen in enumerate(screens)]
    assert {answer["verdict"] for answer in alone} == {"pass", "fail", "review"}
    assert len({found["score"] for answer in alone for found in answer["labels"].values()}) > 30
    # the order in which they come changes with whom a screen is in flight
    for order in (range(len(screens)), range(len(screens) - 1, -1, -1)):
        state_dir = tmp_path / f"from-{order[0]}"
        with (
            serve(create_app(Settings(bundle=bundle, state_dir=state_dir))) as client,
            ThreadPoolExecutor(IN_FLIGHT) as pool,
        ):
            sent = {number: pool.submit(post_raw, client, str(number), screens[number]) for number in order}
            for number, response in sent.items():
                assert said(response.result()) == alone[number]


def test_a_swap_under_load_fails_no_screen_and_each_verdict_is_one_versions_alone_bit_for_bit(tmp_path: Path) -> None:
    folder = shelf(tmp_path / "bundles")
    bad = [broken(folder, breaker)[0] for breaker in BREAKERS]
    screens = [mixed_screen(seed) for seed in range(8)]
    alone = {}
    for name, version in (("one", "1"), ("two", "2")):
        with serve(create_app(Settings(bundle=folder / name, state_dir=tmp_path / name))) as client:
            alone[version] = [said(post_raw(client, str(number), screen)) for number, screen in enumerate(screens)]
    assert all(one["labels"] != two["labels"] for one, two in zip(*alone.values(), strict=True))

    done = threading.Event()
    judged: list[str] = []
    with (
        serve(create_app(Settings(bundle=folder / "one", bundles=folder, state_dir=tmp_path / "state"))) as client,
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):

        def send_until_done(_: int) -> None:
            while not done.is_set():
                screen = next(numbers)
                answer = said(post_raw(client, f"screen-{screen}", screens[screen % len(screens)]))
                version = answer["model"]["version"]
                assert answer == alone[version][screen % len(screens)]
                judged.append(version)

        sent = [pool.submit(send_until_done, sender) for sender in range(IN_FLIGHT)]
        try:
            for swap in range(12):
                wanted = {"rollback": True} if swap % 4 == 3 else activation_of(("two", "one")[swap % 2])
                answer = client.put("/v1/models/active", json=wanted)
                assert answer.status_code == 200, answer.text
                assert answer.json()["active"]["version"] == "21"[swap % 2]
                refused = client.put("/v1/models/active", json=activation_of(bad[swap % len(bad)]))
                assert (refused.status_code, refused.json()["code"]) == (422, "bundle_refused")
                assert client.get("/readyz").json()["model"]["version"] == "21"[swap % 2]
        finally:
            done.set()
        for sender in sent:
            sender.result()
        # every screen that was sent has its verdict, and both versions gave some while they took turns
        assert recorded(client) == len(judged)
    assert judged.count("1") > 5
    assert judged.count("2") > 5


def recorded(client: httpx.Client) -> int:
    """How many screens have their verdict, page by page."""
    count, cursor = 0, ""
    while cursor is not None:
        page = client.get(f"/v1/screens?limit=1000&cursor={cursor}").json()
        count, cursor = count + len(page["items"]), page["next"]
    return count


def activation_of(bundle: str) -> dict[str, Any]:
    return {"bundle": bundle, "without_release": True}


def said(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    answer = response.json()
    return {part: answer[part] for part in SAID}


@pytest.mark.parametrize("code", KINDS)
def test_no_problem_reads_as_a_verdict(code: str) -> None:
    document = problem(code, "what happened", instance="/v1/screens").model_dump_json()
    assert "verdict" not in json.loads(document)
    assert KINDS[code].status >= 400
    with pytest.raises(ValueError, match="validation error"):
        from_json(document)


@given(
    body=st.binary(max_size=300) | st.just(SCREENS["pass"].tobytes()),
    media_type=st.sampled_from([*MEDIA_TYPES, "text/plain", ""]),
    query=st.fixed_dictionaries(
        {},
        optional={
            "screen_id": st.text(max_size=70) | st.integers(0, 10**9).map(str),
            "width": st.integers(-1, 300) | st.just(SIZE[1]) | st.text(max_size=3),
            "height": st.integers(-1, 300) | st.just(SIZE[0]),
            "deadline_s": st.floats() | st.just(1e-9),
        },
    ),
)
def test_an_error_is_never_a_verdict(
    line: httpx.Client, body: bytes, media_type: str, query: dict[str, str | int | float]
) -> None:
    response = line.post("/v1/screens", params=query, content=body, headers={"content-type": media_type})
    answer = response.json()
    if response.status_code == 200:
        assert from_json(response.text).screen_id == query["screen_id"]
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert KINDS[answer["code"]].status == response.status_code
        assert "verdict" not in answer


@given(
    sent=st.tuples(st.integers(1, 300), st.integers(1, 300)) | st.sampled_from([SIZE, SIZE[::-1], (128, 191)]),
    claimed=st.none() | st.tuples(st.integers(1, 300), st.integers(1, 300)) | st.just(SIZE),
)
@settings(max_examples=200)
def test_a_frame_of_another_size_than_agreed_never_passes(
    line: httpx.Client, sent: tuple[int, int], claimed: tuple[int, int] | None
) -> None:
    pixels = frame(size=sent)
    if claimed is None:
        response, expected = post(line, new_id(), pixels), sent
    else:
        response, expected = post_raw(line, new_id(), pixels, height=claimed[0], width=claimed[1]), claimed
    if sent == SIZE == expected:
        assert response.json()["verdict"] == "pass"
    elif expected == SIZE and sent[0] * sent[1] == SIZE[0] * SIZE[1]:
        assert response.status_code == 200  # bare pixels do not say where a line of theirs ends
    else:
        assert response.status_code == 422
        assert response.json()["code"] in ("frame_size_mismatch", "image_too_small")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda device, pixels: setattr(device, "scores", (0.1, float("nan"), 0.1, 0.1)), "score_not_finite"),
        (lambda device, pixels: setattr(device, "golden_score", 0.6), "self_test_stale"),
        (lambda device, pixels: pixels.fill(90), "frame_constant"),
        (lambda device, pixels: pixels[:70].fill(255), "frame_saturated"),
        # and nothing: the pass itself
        (lambda device, pixels: None, None),
    ],
)
def test_a_pass_is_proven(tmp_path: Path, change: Callable[[Device, Frame], object], reason: str | None) -> None:
    device, pixels = Device(), frame()
    assert device.scores == CLEAN
    change(device, pixels)
    with serve_device(device, Settings(state_dir=tmp_path)) as client:
        answer = post(client, "one", pixels).json()
    if reason is not None:
        # every score is under its review band, or is no number: only the proof is missing
        assert (answer["verdict"], answer["reasons"]) == ("review", [reason])
        return
    proof = answer["proof"]
    assert answer["verdict"] == "pass"
    assert proof["windows_inferred"] == proof["windows_expected"] == 6
    assert (proof["covered"], proof["finite"]) == (True, True)
    assert 0 <= proof["self_test_age_s"] < 120
