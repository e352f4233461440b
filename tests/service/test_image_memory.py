"""What decoding takes: files become grey some lines at a time, and ask for the room that they need beside."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from engine import to_grey
from service.images import BAND_ROWS, Source, decode
from tests.service.pictures import GREY, JPEG, PNG, RAW, RGB, SIZE, TIFF, encode


@pytest.mark.parametrize("media_type", [PNG, TIFF])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_frame_of_more_lines_than_become_grey_at_a_time_is_whole(media_type: str, channels: int) -> None:
    values = np.random.default_rng(5).integers(0, 256, (2 * BAND_ROWS + 7, 11, channels), np.uint8)
    values[:, :, 3:] = 255
    image = values[:, :, 0] if channels == 1 else values
    source = Source(data=encode(image, media_type), media_type=media_type)
    frame = decode(source, agreed=None, patch_px=8, max_pixels=10**6)
    assert (frame.pixels == to_grey(image, red_first=True)).all()


@pytest.mark.parametrize(
    ("image", "media_type", "a_pixel"),
    [(GREY, PNG, 2), (RGB, PNG, 5), (RGB, TIFF, 5), (GREY, JPEG, 2), (RGB, JPEG, 5)],
)
def test_a_file_asks_for_the_room_that_decoding_takes(image: NDArray[np.uint8], media_type: str, a_pixel: int) -> None:
    asked, data = list[int](), encode(image, media_type)

    @contextmanager
    def room(size: int) -> Iterator[None]:
        asked.append(size)
        yield

    decode(Source(data=data, media_type=media_type), agreed=None, patch_px=8, max_pixels=10**6, room=room)
    assert asked == [GREY.size * a_pixel + len(data)]


def test_raw_bytes_ask_for_no_room_to_decode() -> None:
    def room(size: int) -> NoReturn:
        pytest.fail(f"{size} bytes")

    source = Source(data=GREY.tobytes(), media_type=RAW, size=SIZE)
    decode(source, agreed=None, patch_px=8, max_pixels=10**6, room=room)
