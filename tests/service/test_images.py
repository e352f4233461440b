import io
import os
import resource
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import ExifTags, Image

from engine import to_grey
from service.errors import (
    FrameSizeMismatch,
    ImageTooLarge,
    ImageTooSmall,
    IncompleteImage,
    InvalidRequest,
    ServiceError,
    UnreadableImage,
    UnsupportedMedia,
)
from service.images import FORMATS, Frame, Source, decode
from tests.service.pictures import (
    BITS,
    BMP,
    EXACT,
    FILES,
    GREY,
    JPEG,
    LONG,
    LOSSY,
    NUMBERS,
    PGM,
    PNG,
    RATIONAL,
    RAW,
    RGB,
    RGBA,
    SHORT,
    SIZE,
    TIFF,
    bmp,
    chunk,
    encode,
    huge,
    paletted,
    png,
    resized_jpeg,
    strips,
    tiff,
)

# pytest sets its own filters over the one of `service.images`
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

ROOT = Path(__file__).parents[2]
PATCH_PX = 8
MAX_PIXELS = 100_000


def read(
    data: bytes | memoryview,
    media_type: str,
    *,
    size: tuple[int, int] | None = None,
    agreed: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    patch_px: int = PATCH_PX,
) -> Frame:
    source = Source(data=data, media_type=media_type, size=size)
    return decode(source, agreed=agreed, patch_px=patch_px, max_pixels=max_pixels)


@pytest.mark.parametrize("name", EXACT)
def test_every_form_gives_its_pixels(name: str) -> None:
    media_type, data, expected = EXACT[name]
    frame = read(data, media_type)
    assert frame.pixels.dtype == np.uint8
    assert (frame.pixels == expected).all()


@pytest.mark.parametrize("name", LOSSY)
def test_jpeg_gives_nearly_its_pixels(name: str) -> None:
    media_type, data, expected = LOSSY[name]
    pixels = read(data, media_type).pixels
    assert pixels.shape == SIZE
    # the noise goes, and the gradient stays
    assert np.abs(pixels.astype(int) - expected).mean() < 3


@given(hnp.arrays(np.uint8, st.tuples(st.integers(8, 20), st.integers(8, 20), st.just(3))))
def test_colour_of_a_file_becomes_grey_by_the_engines_rule(rgb: NDArray[np.uint8]) -> None:
    assert (read(encode(rgb, PNG), PNG).pixels == to_grey(rgb[:, :, ::-1])).all()


def test_colour_of_a_jpeg_becomes_grey_by_the_engines_rule() -> None:
    data = encode(RGB, JPEG)
    decoded = np.asarray(Image.open(io.BytesIO(data)))
    assert (read(data, JPEG).pixels == to_grey(decoded[:, :, ::-1])).all()


def test_raw_bytes_are_the_pixels() -> None:
    frame = read(memoryview(GREY.tobytes()), RAW, size=SIZE)
    assert (frame.pixels == GREY).all()


@pytest.mark.parametrize(
    ("agreed", "media_type", "size", "expected"),
    [
        (None, RAW, SIZE, "query"),
        (None, PGM, None, "header"),
        # whatever came with the frame, the line's setting decided
        (SIZE, RAW, SIZE, "setting"),
        (SIZE, PGM, None, "setting"),
    ],
)
def test_frame_says_who_agreed_its_size(
    agreed: tuple[int, int] | None, media_type: str, size: tuple[int, int] | None, expected: str
) -> None:
    data = GREY.tobytes() if media_type == RAW else EXACT["pgm"][1]
    assert read(data, media_type, size=size, agreed=agreed).size_from == expected


@pytest.mark.parametrize("media_type", [PNG, TIFF, JPEG])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_orientation_tag_is_not_applied(media_type: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    tagged, plain = read(encode(GREY, media_type, exif=exif), media_type), read(encode(GREY, media_type), media_type)
    assert tagged.pixels.shape == SIZE
    assert (tagged.pixels == plain.pixels).all()


def deep(channels: int) -> bytes:
    """16-bit values, high byte first."""
    return np.dstack([GREY] * channels).astype(">u2").tobytes()


def with_alpha(alpha: int) -> NDArray[np.uint8]:
    """Opaque, but for one pixel."""
    image = RGBA.copy()
    image[-1, -1, 3] = alpha
    return image


def name_of(value: str | bytes) -> str:
    """Part of the name of a case; bytes make none that can be read."""
    return value if isinstance(value, str) else "data"


PNG_DATA, JPEG_DATA = encode(GREY, PNG), encode(GREY, JPEG)
COLOUR_JPEG = encode(RGB, JPEG)
NOISY_JPEG = encode(np.random.default_rng(2).integers(0, 256, SIZE, np.uint8), JPEG)
PAGES = {"save_all": True, "append_images": [Image.fromarray(255 - GREY)]}


@pytest.mark.parametrize(
    ("media_type", "data", "message"),
    [
        # what lies behind it is unknown
        (PNG, encode(with_alpha(254), PNG), "transparent"),
        (PNG, encode(Image.fromarray(with_alpha(0)).convert("LA"), PNG), "transparent"),
        (PNG, encode(paletted(), PNG, transparency=int(NUMBERS[3, 3])), "transparent"),
        (PNG, encode(GREY, PNG, transparency=int(GREY[3, 3])), "transparent"),
        (PNG, encode(RGB, PNG, transparency=tuple(map(int, RGB[3, 3]))), "transparent"),
        (TIFF, encode(with_alpha(254), TIFF), "transparent"),
        # a shift that is right for one camera is wrong for the next; Pillow takes the high byte of colour
        (PNG, png(SIZE, depth=16, kind=0, rows=deep(1)), "I;16B"),
        (PNG, png(SIZE, depth=16, kind=0, rows=deep(1), chunks=chunk(b"tRNS", b"\0\0")), "I;16B"),
        (PNG, png(SIZE, depth=16, kind=2, rows=deep(3)), "RGB;16B"),
        (PNG, png(SIZE, depth=16, kind=4, rows=deep(2)), "LA;16B"),
        (PNG, png(SIZE, depth=16, kind=6, rows=deep(4)), "RGBA;16B"),
        (TIFF, encode(Image.fromarray(GREY.astype(np.uint16)), TIFF), "I;16"),
        (TIFF, encode(Image.fromarray(GREY.astype(np.float32)), TIFF), "mode F"),
        (TIFF, tiff([deep(3)], SIZE, tags={258: (SHORT, [16] * 3), 262: (SHORT, [2]), 277: (SHORT, [3])}), "RGB;16"),
        (BMP, bmp(SIZE, bits=16, pixels=deep(1)), "BGR;15"),
        # minus one would be white
        (TIFF, tiff(strips(GREY), SIZE, tags={339: (SHORT, [2])}), "not unsigned"),
        # Pillow takes it for inverted
        (TIFF, tiff(strips(GREY), SIZE, tags={262: (SHORT, [])}), "black or white"),
        # Pillow takes a byte for eight pixels
        (BMP, bmp(SIZE, bits=8, pixels=BITS.tobytes(), palette=b"\0\0\0\0\xff\xff\xff\0"), "mode 1"),
        (JPEG, encode(Image.fromarray(RGBA).convert("CMYK"), JPEG), "CMYK"),
        (TIFF, encode(Image.fromarray(RGBA).convert("CMYK"), TIFF), "CMYK"),
        # which of them?
        (TIFF, encode(GREY, TIFF, **PAGES), "more than one image"),
        (PNG, encode(GREY, PNG, **PAGES), "more than one image"),
        # their decoders paint what is missing
        (TIFF, encode(GREY, TIFF, compression="jpeg"), "TIFF file with jpeg"),
        (TIFF, encode(Image.fromarray(BITS), TIFF, compression="group4"), "TIFF file with group4"),
        (BMP, bmp(SIZE, bits=8, pixels=b"\0\1", palette=bytes(1024), compression=1), "run-length"),
        (TIFF, tiff(strips(GREY)[:2], SIZE, tags={278: (SHORT, [16])}), "cannot be read"),
        (TIFF, tiff([GREY.tobytes()], SIZE, tags={279: (LONG, [])}), "cannot be read"),
        (TIFF, tiff([GREY.tobytes()], SIZE, tags={279: (RATIONAL, [GREY.size])}), "tag 279 are no whole numbers"),
        (TIFF, tiff([GREY.tobytes()], SIZE, tags={279: (LONG, [GREY.size] * 2)}), "1 pieces and the size of 2"),
        # Pillow would stretch them
        (PGM, b"P5 72 64 100\n" + (GREY // 3).tobytes(), "must be 255"),
        (PGM, b"P5 72 64 65535\n" + deep(1), "I;16"),
        # text, colour, and black and white of the same family
        (PGM, b"P2 72 64 255\n" + b" ".join(b"%d" % value for value in GREY.flat), "do not begin"),
        (PGM, b"P6 72 64 255\n" + RGB.tobytes(), "do not begin"),
        (PGM, b"P4 72 64\n" + np.packbits(BITS, 1).tobytes(), "do not begin"),
        # no image at all
        *((media_type, b"", "do not begin") for media_type in FORMATS),
        *((media_type, bytes(10_000), "do not begin") for media_type in FORMATS),
        (PNG, b"<html><body>504 Gateway Time-out</body></html>", "do not begin"),
        (TIFF, b"II*\0" + b"\xff" * 1000, "cannot be read"),
    ],
    ids=name_of,
)
def test_what_has_no_documented_grey_value_is_refused(media_type: str, data: bytes, message: str) -> None:
    with pytest.raises(UnreadableImage, match=message):
        read(data, media_type)


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        # cut off, and the end mark put back: libjpeg paints the rest grey
        (JPEG, JPEG_DATA[: len(JPEG_DATA) * 2 // 3] + b"\xff\xd9"),
        (JPEG, COLOUR_JPEG[:-100] + b"\xff\xd9"),
        # cut off behind the first byte of two
        (JPEG, NOISY_JPEG[: NOISY_JPEG.rindex(b"\xff\x00") + 1] + b"\xff\xd9"),
        # more lines than were encoded
        (JPEG, resized_jpeg(JPEG_DATA, (128, 72))),
        # no pixel data at all between header and end mark
        (PNG, PNG_DATA[:33] + chunk(b"IEND", b"")),
        # sent in blocks, the later ones never written
        (JPEG, JPEG_DATA[: len(JPEG_DATA) // 2] + bytes(200)),
        (PNG, PNG_DATA[: len(PNG_DATA) // 2] + bytes(200)),
    ],
    ids=name_of,
)
def test_file_with_less_than_its_header_says_is_incomplete(media_type: str, data: bytes) -> None:
    with pytest.raises(IncompleteImage):
        read(data, media_type)


def test_jpeg_that_ends_in_the_grey_of_missing_data_is_read() -> None:
    flat = np.full(SIZE, 128, np.uint8)
    assert (read(encode(flat, JPEG), JPEG).pixels == flat).all()


def test_progressive_jpeg_whose_missing_scans_would_not_show_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="progressive"):
        read(encode(GREY, JPEG, progressive=True), JPEG)


@pytest.mark.parametrize("media_type", [JPEG, PNG])
def test_zeros_after_the_end_mark_are_padding(media_type: str) -> None:
    data = encode(GREY, media_type)
    assert (read(data + bytes(500), media_type).pixels == read(data, media_type).pixels).all()


@pytest.mark.parametrize("name", ["png grey", "bmp grey", "tiff grey", "jpeg grey", "pgm"])
def test_declared_type_that_differs_from_the_content_is_unsupported(name: str) -> None:
    content, data = FILES[name]
    others = {media_type for media_type, kind in FORMATS.items() if kind != FORMATS[content]}
    assert len(others) >= 4
    for declared in others:
        with pytest.raises(UnsupportedMedia, match=f"declared as {declared}, but it is a {FORMATS[content]} file"):
            read(data, declared)


@pytest.mark.parametrize("media_type", ["image/webp", "image/gif", "text/html", "", "IMAGE/PNG"])
def test_unknown_type_is_unsupported(media_type: str) -> None:
    with pytest.raises(UnsupportedMedia, match="is not read here"):
        read(PNG_DATA, media_type)


def test_raw_bytes_need_their_size_and_files_carry_it() -> None:
    with pytest.raises(InvalidRequest, match="need their width and height"):
        read(GREY.tobytes(), RAW)
    with pytest.raises(InvalidRequest, match="a file carries its own"):
        read(PNG_DATA, PNG, size=SIZE)


@pytest.mark.parametrize("length", [0, 1, GREY.size - 1, GREY.size + 1, 3 * GREY.size])
def test_raw_bytes_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(FrameSizeMismatch, match=f"{length} bytes; 72 x 64 pixels are {GREY.size}"):
        read(bytes(length), RAW, size=SIZE)


@pytest.mark.parametrize(
    ("media_type", "data", "size"), [(RAW, GREY.tobytes(), SIZE), (PNG, PNG_DATA, None), (JPEG, JPEG_DATA, None)]
)
def test_size_is_held_against_the_lines_the_patchs_and_the_limit(
    media_type: str, data: bytes, size: tuple[int, int] | None
) -> None:
    height, width = SIZE
    # at the edge of each
    read(data, media_type, size=size, agreed=SIZE, max_pixels=height * width, patch_px=height)
    with pytest.raises(FrameSizeMismatch, match="72 x 64 pixels; this line sends 64 x 72"):
        read(data, media_type, size=size, agreed=(width, height))
    with pytest.raises(ImageTooSmall, match="smaller than a patch of 65"):
        read(data, media_type, size=size, patch_px=height + 1)
    with pytest.raises(ImageTooLarge, match="over the limit of 4607"):
        read(data, media_type, size=size, max_pixels=height * width - 1)


@contextmanager
def little_memory_left() -> Iterator[None]:
    """The process gets at most 256 MiB more."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + 2**28, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("media_type", [*huge(60_000), RAW])
def test_pixel_limit_is_checked_before_memory_is_taken(media_type: str) -> None:
    data = huge(60_000).get(media_type, b"")
    assert len(data) < 2000
    size = (60_000, 60_000) if media_type == RAW else None
    with little_memory_left(), pytest.raises(ImageTooLarge, match="60000 x 60000"):
        read(data, media_type, size=size, max_pixels=100_000_000)


def is_refused(data: bytes, media_type: str) -> bool:
    """Whether it is refused; an exception that is not the service's own goes through."""
    try:
        read(data, media_type)
    except ServiceError:
        return True
    return False


@pytest.mark.parametrize("name", FILES)
def test_file_cut_at_any_byte_is_refused(name: str) -> None:
    media_type, data = FILES[name]
    assert not is_refused(data, media_type)
    assert [cut for cut in range(len(data)) if not is_refused(data[:cut], media_type)] == []


def test_jpeg_cut_after_its_thumbnail_is_refused() -> None:
    thumbnail = encode(GREY[:16, :16].copy(), JPEG)
    start = JPEG_DATA[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail
    assert not is_refused(start + JPEG_DATA[2:], JPEG)
    assert is_refused(start, JPEG)


def test_raw_bytes_cut_anywhere_are_refused() -> None:
    for cut in range(GREY.size):
        with pytest.raises(FrameSizeMismatch):
            read(GREY.tobytes()[:cut], RAW, size=SIZE)


@given(st.sampled_from(sorted(FILES)), st.data())
@settings(max_examples=1500)
def test_altered_file_is_read_or_refused(name: str, draw: st.DataObject) -> None:
    media_type, data = FILES[name]
    # as often in the header, or the tags at the end, as in the pixels
    places = st.integers(0, len(data) - 1) | st.integers(-min(len(data), 150), min(len(data), 100) - 1)
    altered = bytearray(data)
    for place, value in draw.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        altered[place] = value
    try:
        pixels = read(bytes(altered), media_type).pixels
    except ServiceError:
        return
    assert pixels.ndim == 2
    assert pixels.dtype == np.uint8
    assert PATCH_PX**2 <= pixels.size <= MAX_PIXELS


@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=200))
def test_noise_behind_the_first_bytes_is_refused(media_type: str, noise: bytes) -> None:
    start = next(data[:8] for kind, data in FILES.values() if FORMATS[kind] == FORMATS[media_type])
    assert is_refused(start + noise, media_type)


WITHOUT_WARNINGS = """
import sys
from service.images import Source, decode
frame = decode(Source(data=sys.stdin.buffer.read(), media_type="image/tiff"), agreed=None, patch_px=8, max_pixels=10**6)
sys.stdout.buffer.write(frame.pixels.tobytes())
"""


def test_odd_metadata_is_not_looked_at_even_where_warnings_are_errors() -> None:
    data = tiff(strips(GREY), SIZE, tags={282: (RATIONAL, [72, 72])})  # a resolution too many
    with pytest.warns(UserWarning, match="too many entries"):
        Image.open(io.BytesIO(data))
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_WARNINGS], cwd=ROOT, input=data, capture_output=True, check=False
    )
    assert answer.stderr == b""
    assert answer.stdout == GREY.tobytes()
