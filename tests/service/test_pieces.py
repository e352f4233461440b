"""Files in very many pieces: a few bytes each on the wire, and some hundred in memory."""

import zlib

import numpy as np
import pytest

from service.errors import UnreadableImage
from service.images import Source, decode
from service.pieces import MOST_NUMBERS, MOST_PIECES, MOST_TEXT
from tests.service.pictures import GREY, LONG, PNG, SHORT, SIZE, TIFF, Tags, chunk, encode, png, tiff

ROWS = GREY.tobytes()
# the tags that `tiff` writes itself, and one more
USUAL_NUMBERS = 9


def read(data: bytes, media_type: str) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return decode(Source(data=data, media_type=media_type), agreed=None, patch_px=8, max_pixels=10**6).pixels


def of_chunks(count: int, name: bytes = b"IDAT") -> bytes:
    """A PNG with so many chunks, of which all but the usual three hold nothing."""
    return png(SIZE, depth=8, kind=0, rows=ROWS, chunks=chunk(name, b"") * (count - 3))


@pytest.mark.parametrize("name", [b"IDAT", b"prVt"])  # the second is for whoever knows it, and Pillow keeps it
def test_a_png_in_too_many_chunks_is_refused(name: bytes) -> None:
    assert (read(of_chunks(MOST_PIECES, name), PNG) == GREY).all()
    with pytest.raises(UnreadableImage, match="more than 131072 chunks"):
        read(of_chunks(MOST_PIECES + 1, name), PNG)


def test_a_png_whose_encoder_writes_small_chunks_is_read() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    zipped = zlib.compress(rows)
    whole, pieces = chunk(b"IDAT", zipped), [zipped[start : start + 64] for start in range(0, len(zipped), 64)]
    assert len(pieces) > 10
    data = png(SIZE, depth=8, kind=0, rows=ROWS).replace(whole, b"".join(chunk(b"IDAT", piece) for piece in pieces))
    assert (read(data, PNG) == GREY).all()


def of_numbers(count: int) -> Tags:
    return {700: (SHORT, [1] * (count - USUAL_NUMBERS))}


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_whose_tags_hold_too_many_numbers_is_refused(order: str) -> None:
    assert (read(tiff([ROWS], SIZE, order=order, tags=of_numbers(MOST_NUMBERS)), TIFF) == GREY).all()
    with pytest.raises(UnreadableImage, match="hold 262145 numbers"):
        read(tiff([ROWS], SIZE, order=order, tags=of_numbers(MOST_NUMBERS + 1)), TIFF)


def test_a_tiff_in_too_many_strips_is_refused_before_pillow_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tags: Tags = {number: (LONG, [1] * (MOST_PIECES + 1)) for number in (279, 325)}
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UnreadableImage, match="fewer strips"):
        read(tiff([ROWS], SIZE, tags=tags), TIFF)


def test_a_tiff_with_a_large_profile_is_read_and_with_a_huge_one_refused() -> None:
    assert (read(encode(GREY, TIFF, icc_profile=bytes(MOST_TEXT)), TIFF) == GREY).all()
    with pytest.raises(UnreadableImage, match="4194305 bytes"):
        read(encode(GREY, TIFF, icc_profile=bytes(MOST_TEXT + 1)), TIFF)


def test_a_tiff_of_one_row_a_strip_is_read() -> None:
    tall = np.tile(GREY, (64, 1))
    data = tiff([row.tobytes() for row in tall], (len(tall), SIZE[1]), tags={278: (SHORT, [1])})
    assert (read(data, TIFF) == tall).all()
