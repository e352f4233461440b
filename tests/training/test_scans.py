"""What lines send besides PNG, JPEG and BMP is read whole, or refused in a sentence without a decoder's noise."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from tests.service.pictures import LONG, SHORT, Tags, tiff
from training.__main__ import app
from training.scans import KINDS, read_scan

GREY = np.random.default_rng(0).integers(0, 255, (70, 90), np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, KINDS[path.suffix], **options)
    return path


@pytest.mark.parametrize("name", ["a.pgm", "a.tif", "a.tiff"])
def test_grey_values_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_scan(save(tmp_path / name, Image.fromarray(GREY))), GREY)


@pytest.mark.parametrize("compression", ["packbits", "tiff_lzw", "tiff_adobe_deflate"])
def test_a_compressed_file_is_read(compression: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", Image.fromarray(GREY), compression=compression)
    np.testing.assert_array_equal(read_scan(path), GREY)


def test_colour_is_grey_by_the_rule_and_lines_stay_as_they_are_stored(tmp_path: Path) -> None:
    colour = np.dstack([GREY, GREY, GREY])
    path = save(tmp_path / "a.tif", Image.fromarray(colour), tiffinfo={274: 6})  # which asks to be turned
    np.testing.assert_array_equal(read_scan(path), GREY)
    path = save(tmp_path / "b.tif", Image.fromarray(GREY > 100))
    np.testing.assert_array_equal(read_scan(path), np.where(GREY > 100, 255, 0))


class Damaged(NamedTuple):
    """A file as it is saved, what happens to it, and the name that it then has."""

    saved: str
    damage: Callable[[bytes], bytes]
    named: str
    compression: str = "raw"


DAMAGED = {
    "no picture": Damaged("a.tif", lambda _: b"no picture", "b.tif"),
    "nothing": Damaged("a.pgm", lambda _: b"", "b.pgm"),
    "a cut PGM": Damaged("a.pgm", lambda data: data[: len(data) // 2], "b.pgm"),
    "a cut TIFF": Damaged("a.tif", lambda data: data[: len(data) // 2], "b.TIFF"),
    "cut within its tags": Damaged("a.tif", lambda data: data[:-150], "b.tif", compression="tiff_lzw"),
    "values overwritten": Damaged(
        "a.tif", lambda data: data[:2000] + b"\xff" * 200 + data[2200:], "b.tif", compression="tiff_lzw"
    ),
    "a TIFF by another name": Damaged("a.tif", lambda data: data, "b.pgm"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_without_noise(
    case: str, one_stage: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    saved, damage, named, compression = DAMAGED[case]
    data = save(tmp_path / saved, Image.fromarray(GREY), compression=compression).read_bytes()
    path = tmp_path / named
    path.write_bytes(damage(data))
    refused = CliRunner().invoke(app, ["explain", "--bundle", str(one_stage), "--out", str(tmp_path), str(path)])
    kind = "PGM" if named.endswith("pgm") else "TIFF"
    assert str(refused.exception) == f"{path} cannot be read: it is no {kind} file, or damaged, or cut off"
    assert capfd.readouterr().err == ""


def test_strips_that_the_file_does_not_have_are_not_black(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff([GREY[:35].tobytes()], GREY.shape, tags={278: (LONG, [35])}))
    with pytest.raises(ValueError, match=r"a.tif cannot be read: it is no TIFF file, or damaged"):
        read_scan(tmp_path / "a.tif")


def test_standard_error_is_there_again_afterwards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read_scan(save(tmp_path / "a.tif", Image.fromarray(GREY)))
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def as_mode(mode: str) -> Image.Image:
    return Image.fromarray(GREY).convert(mode)


def half_opaque() -> Image.Image:
    image = as_mode("RGBA")
    image.putalpha(100)
    return image


def sixteen_bits(values: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16) * 200)


@pytest.mark.parametrize(
    ("image", "options", "told"),
    [
        (sixteen_bits(GREY), {}, "values of mode I;16 have no documented grey; save it as 8-bit grey"),
        (as_mode("CMYK"), {}, "values of mode CMYK have no documented grey; save it as 8-bit grey"),
        (half_opaque(), {}, "the image is partly transparent: what lies behind it is unknown"),
        (
            as_mode("L"),
            {"compression": "jpeg"},
            "jpeg hides missing data; save it uncompressed, or with LZW or deflate",
        ),
        (as_mode("L"), {"save_all": True, "append_images": [as_mode("L")]}, "it holds more than one image"),
    ],
)
def test_what_has_no_documented_grey_is_refused(
    image: Image.Image, options: dict[str, object], told: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "a.tif", image, **options)
    with pytest.raises(ValueError, match=r"cannot be used") as refused:
        read_scan(path)
    assert str(refused.value) == f"{path} cannot be used: {told}"


@pytest.mark.parametrize("header", [b"P5 4 4 100\n", b"P6 4 4 255\n", b"P4 4 4\n", b"P2 4 4 255\n"])
def test_what_is_no_grey_of_the_whole_range_is_refused_as_pgm(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pgm"
    path.write_bytes(header + (b"7 " * 16 if header.startswith(b"P2") else bytes(range(48))))
    with pytest.raises(ValueError, match=r"a PGM is grey \(P5\), with binary values of which the largest is 255"):
        read_scan(path)


@pytest.mark.parametrize("tags", [{262: (SHORT, [])}, {339: (SHORT, [2])}])
def test_a_tiff_that_does_not_tell_what_is_black_is_refused(tags: Tags, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([GREY.tobytes()], GREY.shape, tags={339: (SHORT, [1])}))
    np.testing.assert_array_equal(read_scan(path), GREY)
    path.write_bytes(tiff([GREY.tobytes()], GREY.shape, tags=tags))
    with pytest.raises(ValueError, match=r"its values are signed, or no tag tells what of them is black"):
        read_scan(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.tif is missing"):
        read_scan(tmp_path / "nowhere.tif")
