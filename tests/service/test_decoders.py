"""Decoders of plain files beside Pillow: the same pixels, or its word."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image, ImageFile

from engine import to_grey
from service import decoders
from service.decoders import ADAM7, plain_pixels
from service.errors import IncompleteImage, ServiceError, UnreadableImage
from service.images import MAGIC, Source, decode
from tests.service.pictures import (
    BMP,
    EXACT,
    FORMATS,
    GREY,
    JPEG,
    LONG,
    PGM,
    PNG,
    SHORT,
    SIZE,
    TIFF,
    bmp,
    by_opencv,
    chunk,
    encode,
    png,
    strips,
    tiff,
)

# pytest sets its own filters over the one of `service.images`
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

Pixels = NDArray[np.uint8]


@pytest.fixture(autouse=True, scope="module")
def _small_bands() -> Iterator[None]:
    """Images of a few rows are decoded in several bands, as a frame is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "BAND_BYTES", 60)
        yield


def opened(data: bytes, media_type: str) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=(FORMATS[media_type],))


def fast(data: bytes, media_type: str) -> Pixels:
    found = plain(data, media_type)
    assert found is not None
    return found


def plain(data: bytes, media_type: str) -> Pixels | None:
    return plain_pixels(opened(data, media_type), data)


def by_pillow(data: bytes, media_type: str) -> Pixels:
    return to_grey(np.asarray(opened(data, media_type)), red_first=True)


def read(data: bytes, media_type: str) -> Pixels:
    return decode(Source(data=data, media_type=media_type), agreed=None, patch_px=1, max_pixels=10**5).pixels


def pillows(media_type: str, **options: object) -> tuple[str, Callable[[Pixels], bytes]]:
    return media_type, lambda pixels: encode(pixels, media_type, **options)


def opencvs(suffix: str, *options: int) -> tuple[str, Callable[[Pixels], bytes]]:
    return PNG, lambda pixels: cv2.imencode(suffix, pixels, options)[1].tobytes()


FILTER = cv2.IMWRITE_PNG_FILTER
PLAIN = {
    "png": pillows(PNG),
    "png level 1": pillows(PNG, compress_level=1),
    **{f"png filter {number}": opencvs(".png", FILTER, number) for number in (8, 16, 32, 64, 128, 248)},
    "bmp": pillows(BMP),
    "jpeg": pillows(JPEG),
    "jpeg restarts": pillows(JPEG, restart_marker_blocks=1),
    "jpeg colour in full": pillows(JPEG, quality=95, subsampling="4:4:4"),
    "jpeg colour by the half": pillows(JPEG, quality=60, subsampling="4:2:2"),
}
GREY_ALONE = {
    "pgm": pillows(PGM),
    "tiff": pillows(TIFF),
    "tiff strips": pillows(TIFF, tiffinfo={278: 3}),
    "tiff lzw": pillows(TIFF, compression="tiff_lzw", tiffinfo={278: 2}),
    "tiff lzw differences": pillows(TIFF, compression="tiff_lzw", tiffinfo={278: 3, 317: 2}),
    "tiff deflate": pillows(TIFF, compression="tiff_adobe_deflate", tiffinfo={278: 2}),
    "tiff deflate differences": pillows(TIFF, compression="tiff_adobe_deflate", tiffinfo={278: 4, 317: 2}),
}
SIDE = st.integers(1, 24)
GREYS = hnp.arrays(np.uint8, st.tuples(SIDE, SIDE))
COLOURS = hnp.arrays(np.uint8, st.tuples(SIDE, SIDE, st.just(3)))


@pytest.mark.parametrize("form", [*PLAIN, *GREY_ALONE])
@given(GREYS)
@settings(max_examples=30)
def test_grey_is_what_pillow_reads(form: str, pixels: Pixels) -> None:
    media_type, encoded = {**PLAIN, **GREY_ALONE}[form]
    data = encoded(pixels)
    found = fast(data, media_type)
    assert found.flags.c_contiguous
    assert found.dtype == np.uint8
    assert np.array_equal(found, by_pillow(data, media_type))


@pytest.mark.parametrize("form", PLAIN)
@given(COLOURS)
@settings(max_examples=30)
def test_colour_is_what_pillow_reads(form: str, pixels: Pixels) -> None:
    media_type, encoded = PLAIN[form]
    data = encoded(pixels)
    found = fast(data, media_type)
    assert found.flags.c_contiguous
    assert np.array_equal(found, by_pillow(data, media_type))


@given(st.sampled_from(sorted({**PLAIN, **GREY_ALONE})), st.data())
@settings(max_examples=200)
def test_an_altered_file_is_refused_or_gives_what_pillow_reads(form: str, draw: st.DataObject) -> None:
    media_type, encoded = {**PLAIN, **GREY_ALONE}[form]
    data = bytearray(encoded(GREY[:20, :24].copy()))
    places = st.integers(0, len(data) - 1) | st.integers(-min(len(data), 150), min(len(data), 100) - 1)
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=3)):
        data[place] = value
    try:
        found = read(bytes(data), media_type)
    except ServiceError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.images.plain_pixels", lambda *_: None)
        try:
            expected = read(bytes(data), media_type)
        except ServiceError:
            assert media_type == TIFF  # libtiff minds tags that say nothing of the pixels
            return
    assert np.array_equal(found, expected)


def test_rows_lie_where_the_file_says() -> None:
    wide = np.tile(GREY, (1, 3))[:, :71]  # rows of a BMP end in bytes that are no pixels
    padded = np.pad(wide, ((0, 0), (0, 1)), constant_values=9)
    palette = b"".join(bytes([value, value, value, 0]) for value in range(256))
    upright = bytearray(bmp((64, 71), bits=8, pixels=padded.tobytes(), palette=palette))
    upright[22:26] = struct.pack("<i", -64)
    assert np.array_equal(fast(bytes(upright), BMP), wide)
    upside_down = bmp((64, 71), bits=8, pixels=padded[::-1].tobytes(), palette=palette)
    assert np.array_equal(fast(upside_down, BMP), wide)


@pytest.mark.parametrize("media_type", [PGM, TIFF])
def test_what_lies_as_a_frame_does_is_not_copied(media_type: str) -> None:
    data = encode(GREY, media_type)
    found = fast(data, media_type)
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))


def test_strips_that_lie_apart_are_joined() -> None:
    data = bytearray(tiff(strips(GREY)[::-1], SIZE))  # the last one first
    at = data.index(struct.pack("<HHI", 273, LONG, 4)) + 8
    (place,) = struct.unpack("<I", data[at : at + 4])
    starts = struct.unpack("<4I", data[place : place + 16])
    data[place : place + 16] = struct.pack("<4I", *starts[::-1])
    assert np.array_equal(fast(bytes(data), TIFF), GREY)


@pytest.mark.parametrize(
    "name",
    [
        "png palette",
        "png one bit",
        "png opaque colour",
        "png grey, transparency unused",
        "bmp palette",
        "bmp one bit",
        "tiff colour",
        "tiff palette",
        "tiff one bit",
        "tiff packbits",
        "tiff inverted",
    ],
)
def test_what_is_not_plain_is_left_to_pillow(name: str) -> None:
    media_type, data, expected = EXACT[name]
    assert plain(data, media_type) is None
    assert (read(data, media_type) == expected).all()


ROWS = b"".join(b"\0" + row.tobytes() for row in GREY)
HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 72, 64, 8, 0, 0, 0, 0))


def of_chunks(*chunks: bytes) -> bytes:
    return MAGIC["PNG"][0] + HEADER + b"".join(chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        of_chunks(chunk(b"IDAT", zlib.compress(ROWS[:-1]))),  # a byte too few
        of_chunks(chunk(b"IDAT", zlib.compress(ROWS[: len(ROWS) // 2]))),  # whole rows too few, in a whole stream
        of_chunks(chunk(b"IDAT", zlib.compress(b"\7" + ROWS[1:]))),  # no filter of the format
        of_chunks(chunk(b"IDAT", zlib.compress(ROWS)[:-2000])),
        of_chunks(chunk(b"IDAT", b"")),
        of_chunks(),
    ],
    ids=["short", "half", "filter", "cut", "empty", "none"],
)
def test_a_png_that_lacks_pixels_is_refused(data: bytes) -> None:
    assert data[-12:] == chunk(b"IEND", b"")
    with pytest.raises((IncompleteImage, UnreadableImage)):
        read(data, PNG)


def interlaced(rows_of_pass: dict[int, int] | None = None) -> bytes:
    """GREY as an interlaced PNG, of the passes of which only so many rows are there."""
    filtered = b""
    for number, (left, top, across, down) in enumerate(ADAM7):
        rows = GREY[top::down, left::across]
        kept = (rows_of_pass or {}).get(number, len(rows))
        filtered += b"".join(b"\0" + row.tobytes() for row in rows[:kept])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 72, 64, 8, 0, 0, 0, 1))
    return MAGIC["PNG"][0] + header + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("missing", range(1, 8))
def test_an_interlaced_png_that_lacks_passes_is_refused(missing: int) -> None:
    assert (read(interlaced(), PNG) == GREY).all()
    with pytest.raises(IncompleteImage, match=r"holds \d+ bytes of pixels, and its header says"):
        read(interlaced(dict.fromkeys(range(7 - missing, 7), 0)), PNG)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1"])
@pytest.mark.parametrize("lost", [1, 40])
def test_no_row_of_a_png_is_filled_in_whatever_its_colours(mode: str, lost: int) -> None:
    """By a writer whose camera stopped: a whole zlib stream of fewer rows, every checksum right."""
    kept = io.BytesIO()
    image = Image.fromarray(np.stack([GREY] * 3, axis=2)).convert(mode)
    image.crop((0, 0, 72, 64 - lost)).save(kept, "PNG")
    data = kept.getvalue()
    header = data[8:33]
    taller = header[8:12] + struct.pack(">I", 64) + header[16:21]
    with pytest.raises(IncompleteImage, match=r"bytes of pixels, and its header says"):
        read(MAGIC["PNG"][0] + chunk(b"IHDR", taller) + data[33:], PNG)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"IDAT", zlib.compress(ROWS)), chunk(b"tRNS", b"\0\0")],  # behind the pixels
        [chunk(b"IDAT", zlib.compress(ROWS + ROWS))],
    ],
    ids=["transparency", "more"],
)
def test_an_odd_png_has_pillows_pixels(chunks: list[bytes]) -> None:
    data = of_chunks(*chunks)
    assert plain(data, PNG) is None
    assert (by_pillow(data, PNG) == GREY).all()


def test_pixels_in_many_chunks_are_one_stream() -> None:
    zipped = zlib.compress(ROWS)
    data = of_chunks(*(chunk(b"IDAT", zipped[at : at + 100]) for at in range(0, len(zipped), 100)))
    assert np.array_equal(fast(data, PNG), GREY)


def test_every_bit_of_a_png_is_under_a_checksum() -> None:
    data = png(SIZE, depth=8, kind=0, rows=GREY.tobytes())
    assert (read(data, PNG) == GREY).all()
    for place in range(33, len(data) - 12, 7):
        altered = bytearray(data)
        altered[place] ^= 1
        with pytest.raises(ServiceError):
            read(bytes(altered), PNG)


def test_values_of_deflated_strips_are_under_a_checksum() -> None:
    data = tiff([zlib.compress(part) for part in strips(GREY)], SIZE, tags={259: (SHORT, [8])})
    unseen = []
    for place in range(len(data) - 2500, len(data), 11):
        altered = bytearray(data)
        altered[place] ^= 16
        try:
            if not np.array_equal(read(bytes(altered), TIFF), GREY):
                unseen.append(place)
        except ServiceError:
            continue
    assert unseen == []


def test_a_jpeg_that_lost_data_between_two_restart_markers_is_refused() -> None:
    noise = np.random.default_rng(2).integers(0, 256, SIZE, np.uint8)
    data = encode(noise, JPEG, restart_marker_rows=1)
    marks = [data.index(bytes([0xFF, 0xD0 + number])) for number in range(4)]
    read(data, JPEG)
    # one whole interval, the end of one, and all but its markers
    for start, end in [(marks[1], marks[2]), (marks[2] - 40, marks[2]), (marks[1] + 2, marks[2])]:
        with pytest.raises((IncompleteImage, UnreadableImage)):
            read(data[:start] + data[end:], JPEG)


def test_a_jpeg_of_two_sizes_is_refused_before_memory_is_taken_for_the_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simplejpeg.decode_jpeg_header", lambda _: (60_000, 60_000, "Gray", "Gray"))
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_: pytest.fail("memory was taken"))
    with pytest.raises(UnreadableImage, match="two sizes"):
        read(encode(GREY, JPEG), JPEG)


def test_a_strip_that_holds_too_little_is_pillows_to_judge() -> None:
    parts = [zlib.compress(part) for part in strips(GREY)]
    parts[2] = zlib.compress(strips(GREY)[2][:-5])
    data = tiff(parts, SIZE, tags={259: (SHORT, [8])})
    assert plain(data, TIFF) is None
    with pytest.raises((IncompleteImage, UnreadableImage)):
        read(data, TIFF)


def test_a_last_strip_may_be_filled_up() -> None:
    parts = [zlib.compress(part.tobytes()) for part in (GREY[:40], np.pad(GREY[40:], ((0, 16), (0, 0))))]
    data = tiff(parts, SIZE, tags={259: (SHORT, [8]), 278: (LONG, [40])})
    assert np.array_equal(fast(data, TIFF), GREY)


def test_strips_that_share_their_bytes_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tiff.opened", lambda *_: pytest.fail("they were copied"))
    many = [b"\x80" * 2000, *[b""] * 63]
    data = bytearray(tiff(many, SIZE, tags={259: (SHORT, [5])}))
    for number in (273, 279):
        at = data.index(struct.pack("<HHI", number, LONG, 64)) + 8
        (place,) = struct.unpack("<I", data[at : at + 4])
        data[place : place + 256] = data[place : place + 4] * 64
    assert plain(bytes(data), TIFF) is None


@pytest.mark.parametrize("number", [258, 259, 266, 277, 278, 317])
@pytest.mark.parametrize("count", [0, 2])
def test_a_tag_with_another_number_of_values_does_not_fail_us(number: int, count: int) -> None:
    data = bytearray(
        tiff([zlib.compress(GREY.tobytes())], SIZE, tags={259: (SHORT, [8]), 266: (SHORT, [1]), 317: (SHORT, [1])})
    )
    entry = data.index(struct.pack("<HH", number, LONG if number == 278 else SHORT), 10)
    data[entry + 4 : entry + 8] = struct.pack("<I", count)
    try:
        assert np.array_equal(read(bytes(data), TIFF), GREY)
    except ServiceError:
        return


def test_strips_are_decoded_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    of_groups = decoders._by_libtiff

    def noted(group: object, data: memoryview) -> Pixels:
        groups.append(group)
        return of_groups(group, data)  # type: ignore[arg-type]

    monkeypatch.setattr(decoders, "_by_libtiff", noted)
    data = encode(GREY, TIFF, compression="tiff_lzw", tiffinfo={278: 5})
    assert np.array_equal(fast(data, TIFF), GREY)
    assert len(groups) == 13


def test_the_tiff_that_opencv_writes_is_plain() -> None:
    assert np.array_equal(fast(by_opencv(GREY, ".tiff"), TIFF), GREY)
