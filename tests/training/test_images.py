"""Image files: whole, or refused."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from engine import to_grey
from training.images import read_header, read_whole


@pytest.fixture
def colour() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)


def test_what_is_whole_is_what_cut_would_read(tmp_path: Path, colour: NDArray[np.uint8]) -> None:
    grey = Image.fromarray(colour).convert("L")
    grey.save(tmp_path / "grey.png")
    grey.save(tmp_path / "grey.jpg", quality=90)
    grey.save(tmp_path / "progressive.jpg", progressive=True)
    grey.save(tmp_path / "grey.bmp")
    grey.convert("1").save(tmp_path / "bits.png")
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(colour).save(tmp_path / "colour.jpg", subsampling=0)
    Image.fromarray(colour).quantize(16).save(tmp_path / "palette.png")
    for file in sorted(tmp_path.iterdir()):
        pixels = read_whole(file)
        read = cv2.imread(str(file), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        assert read is not None
        # decoders of JPEG differ by a rounding of the colours
        assert np.abs(pixels.astype(int) - to_grey(read)).max() <= (2 if file.name == "colour.jpg" else 0), file.name
        assert read_header(file).size == pixels.shape


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_file_that_ends_too_early_is_refused(
    tmp_path: Path, colour: NDArray[np.uint8], suffix: str, share: float
) -> None:
    file = tmp_path / f"cut{suffix}"
    Image.fromarray(colour).save(file)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=f"cut{suffix}"):
        read_whole(file)


def test_an_end_mark_does_not_make_up_for_lost_pixels(tmp_path: Path, colour: NDArray[np.uint8]) -> None:
    file = tmp_path / "lost.jpg"
    Image.fromarray(colour).save(file)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"\xff\xd9")
    assert cv2.imread(str(file)) is not None  # what `cut` would take, grey from the middle on
    with pytest.raises(ValueError, match=r"lost.jpg cannot be used"):
        read_whole(file)


def test_a_png_with_an_altered_byte_is_refused(tmp_path: Path, colour: NDArray[np.uint8]) -> None:
    file = tmp_path / "altered.png"
    Image.fromarray(colour).save(file)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"altered.png cannot be used"):
        read_whole(file)


def test_what_phones_add_to_a_jpeg_does_not_matter(tmp_path: Path, colour: NDArray[np.uint8]) -> None:
    file, thumbnail = tmp_path / "phone.jpg", io.BytesIO()
    Image.fromarray(colour[:20, :20]).save(thumbnail, "JPEG")
    Image.fromarray(colour).save(file, comment=thumbnail.getvalue())  # which has an end mark of its own
    data = file.read_bytes()
    file.write_bytes(data + b"\x00\x00SEFT")
    assert read_whole(file).shape == colour.shape[:2]
    file.write_bytes(data[:-1000])
    with pytest.raises(ValueError, match=r"phone.jpg cannot be used: Premature end of JPEG file"):
        read_whole(file)


@pytest.mark.parametrize(("block", "turned"), [(0, False), (1, False), (6, True), (9, False), (b"garbage!", False)])
def test_an_orientation_that_turns_nothing_is_none(
    tmp_path: Path, colour: NDArray[np.uint8], block: int | bytes, turned: bool
) -> None:
    exif = Image.Exif()
    if isinstance(block, int):
        exif[ExifTags.Base.Orientation] = block
    Image.fromarray(colour).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + block if isinstance(block, bytes) else exif)
    assert read_header(tmp_path / "a.jpg").turned == turned


def test_sixteen_bits_of_a_colour_are_refused(tmp_path: Path, colour: NDArray[np.uint8]) -> None:
    file = tmp_path / "deep.png"
    assert cv2.imwrite(str(file), colour.astype(np.uint16) * 257)
    with pytest.raises(ValueError, match=r"deep.png cannot be used: 16 bits a value"):
        read_whole(file)


def test_zeros_after_the_end_do_not_matter(tmp_path: Path, colour: NDArray[np.uint8]) -> None:
    file = tmp_path / "padded.jpg"
    Image.fromarray(colour).save(file)
    file.write_bytes(file.read_bytes() + bytes(700))
    assert read_whole(file).shape == (90, 120)


def test_values_without_a_documented_grey_are_refused(tmp_path: Path, colour: NDArray[np.uint8]) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), colour[..., 0].astype(np.uint16) * 200)
    Image.fromarray(colour).convert("CMYK").save(tmp_path / "print.jpg")
    seen_through = Image.fromarray(colour).convert("RGBA")
    seen_through.putalpha(100)
    seen_through.save(tmp_path / "transparent.png")
    for file in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=f"{file.name} cannot be used"):
            read_whole(file)


def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "claim.png"
    Image.new("L", (8, 8)).save(file)
    data = bytearray(file.read_bytes())
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"claim.png .*50000 x 50000 pixels"):
        read_whole(file)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("L", (8, 8)).save(tmp_path / "image.png", "TIFF")
    for name in ("text.png", "image.png"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as PNG, JPEG or BMP"):
            read_header(tmp_path / name)
    with pytest.raises(ValueError, match=r"gone.png is missing"):
        read_header(tmp_path / "gone.png")
