"""Two thousand bodies that no camera sends: none gets a verdict, none harms the service."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.problems import KINDS, MEDIA_TYPE
from service.settings import Settings
from tests.bundles import tiny_bundle
from tests.service.apps import SIZE, encoded, frame, serve
from tests.service.pictures import BMP, JPEG, PGM, PNG, RAW, TIFF, encode, huge, resized_jpeg

# pytest sets its own filters over the one of `service.images`
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

BODIES = 2000
GOOD_EVERY = 100

HEIGHT, WIDTH = SIZE
GOOD = frame()
RAW_QUERY = {"width": WIDTH, "height": HEIGHT}
GOOD_FILES = {
    **{media_type: encode(GOOD, media_type) for media_type in (PNG, BMP, JPEG, PGM)},
    TIFF: encode(GOOD, TIFF, compression="tiff_lzw"),
}
UNKNOWN_TYPES = ("image/webp", "text/html", "multipart/form-data; boundary=x", "", "image/png, image/png", "*/*", None)


class Body(NamedTuple):
    """What is posted; without a type no header is sent."""

    data: bytes
    media_type: str | None
    query: dict[str, int]


def truncated(rng: random.Random) -> Body:
    """A good frame that ends too early."""
    media_type = rng.choice([*GOOD_FILES, RAW])
    data = GOOD_FILES.get(media_type, GOOD.tobytes())
    return Body(data[: rng.randrange(len(data))], media_type, RAW_QUERY if media_type == RAW else {})


def of_the_wrong_type(rng: random.Random) -> Body:
    """A good frame, declared as something else."""
    content = rng.choice([*GOOD_FILES])
    declared = rng.choice([*UNKNOWN_TYPES, *(other for other in GOOD_FILES if other != content)])
    return Body(GOOD_FILES[content], declared, {})


def with_huge_dimensions(rng: random.Random) -> Body:
    """A few bytes that promise up to four thousand million pixels."""
    side = rng.randrange(20_000, 65_536)
    media_type = rng.choice([*GOOD_FILES, RAW])
    if media_type == RAW:
        return Body(bytes(rng.randrange(1000)), RAW, {"width": side, "height": rng.choice([side, 10**30])})
    return Body(huge(side)[media_type], media_type, {})


def of_zero_bytes(rng: random.Random) -> Body:
    """Nothing, or nothing but zeros, perhaps behind the first bytes of a good frame."""
    media_type = rng.choice([*GOOD_FILES])
    start = GOOD_FILES[media_type][: rng.choice([0, 0, 2, 8, 30, 100])]
    zeros = rng.choice([0, 1, 100, 5000, 10_000])  # of a whole frame's length they would be a black frame
    return Body(start + bytes(zeros), media_type, {})


def of_another_size(rng: random.Random) -> Body:
    """A body that does not have the size that it, or the line, says it has."""
    other = rng.randrange(1, 400), rng.randrange(1, 400)
    media_type = rng.choice([*GOOD_FILES])
    ways: tuple[Callable[[], Body], ...] = (
        # raw bytes too few or too many
        lambda: Body(GOOD.tobytes()[rng.randrange(1, 100) :], RAW, RAW_QUERY),
        lambda: Body(GOOD.tobytes() + bytes(rng.randrange(1, 100)), RAW, RAW_QUERY),
        # turned, or of another line
        lambda: Body(GOOD.tobytes(), RAW, {"width": HEIGHT, "height": WIDTH}),
        lambda: Body(bytes(other[0] * other[1]), RAW, {"height": other[0], "width": other[1]}),
        lambda: Body(encode(np.full(other, 128, np.uint8), media_type), media_type, {}),
        # half a size, none, or one of no pixels
        lambda: Body(GOOD.tobytes(), RAW, {"width": WIDTH}),
        lambda: Body(GOOD.tobytes(), RAW, {}),
        lambda: Body(b"", RAW, {"width": rng.randrange(-9, 1), "height": HEIGHT}),
        # a file carries its own
        lambda: Body(GOOD_FILES[media_type], media_type, RAW_QUERY),
        # fewer lines in the file than its header says
        lambda: Body(resized_jpeg(encode(GOOD[:64], JPEG), SIZE), JPEG, {}),
    )
    return rng.choice(ways)()


# what each kind is answered with
HOSTILE: dict[Callable[[random.Random], Body], set[str]] = {
    truncated: {"unreadable_image", "incomplete_image", "frame_size_mismatch"},
    of_the_wrong_type: {"unsupported_media"},
    with_huge_dimensions: {"image_too_large"},
    of_zero_bytes: {"unreadable_image", "incomplete_image"},
    of_another_size: {"frame_size_mismatch", "incomplete_image", "invalid_request"},
}


def hostile_bodies() -> Iterator[tuple[Callable[[random.Random], Body], Body]]:
    """Each kind in turn, the same ones on every run."""
    rng = random.Random(2000)
    kinds = [*HOSTILE]
    for number in range(BODIES):
        kind = kinds[number % len(kinds)]
        yield kind, kind(rng)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """A line's service: the frame size is agreed."""
    settings = Settings(bundle=tiny_bundle(tmp_path / "bundle"), state_dir=tmp_path / "state", frame_size=SIZE)
    with serve(create_app(settings)) as client:
        yield client


def post(client: httpx.Client, screen_id: str, body: Body) -> httpx.Response:
    return client.post(
        "/v1/screens",
        params={"screen_id": screen_id, **body.query},
        content=body.data,
        headers={} if body.media_type is None else {"content-type": body.media_type},
    )


def fault_of(answer: httpx.Response, allowed: set[str]) -> str | None:
    """What is wrong with the answer to a hostile body; None where it is refused as it should be."""
    if not 400 <= answer.status_code < 500 or answer.headers["content-type"] != MEDIA_TYPE:
        return f"{answer.status_code} {answer.text}"
    document = answer.json()
    code = document["code"]
    if "verdict" in document or code not in allowed or KINDS[code].status != answer.status_code:
        return f"{answer.status_code} {document}"
    return None


def test_two_thousand_hostile_bodies_are_refused_and_the_next_good_frame_is_served(client: httpx.Client) -> None:
    faults, good = [], []
    seen: dict[Callable[[random.Random], Body], set[str]] = {kind: set() for kind in HOSTILE}
    number = 0
    for number, (kind, body) in enumerate(hostile_bodies(), start=1):
        answer = post(client, f"hostile-{number}", body)
        fault = fault_of(answer, HOSTILE[kind])
        if fault is None:
            seen[kind].add(answer.json()["code"])
        else:
            faults.append(f"{kind.__name__} {number}, {body.media_type}, {len(body.data)} bytes: {fault}")
        if number % GOOD_EVERY == 0:
            good.append(f"good-{number}")
            answer = post(client, good[-1], Body(encoded(GOOD), PNG, {}))
            assert (answer.status_code, answer.json()["verdict"]) == (200, "pass"), answer.text
    assert number == BODIES
    assert faults == []
    assert seen == HOSTILE  # the generator reaches what it is for
    # no hostile body left anything behind
    recorded = client.get("/v1/screens", params={"limit": 1000}).json()["items"]
    assert [item["screen_id"] for item in recorded] == good[::-1]
