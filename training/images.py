"""Image files of a data folder, whole or refused: a decoder that fills in what is missing would teach it.

OpenCV paints the lost end of a JPEG grey and goes on; this reader refuses the file.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image

from engine import to_grey

SUFFIXES = (".png", ".jpg", ".jpeg")  # of screens, in capitals or not
NO_SCREEN = ".png or .jpg"
TAKEN = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp"}
END = {"PNG": b"\x00\x00\x00\x00IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}
_PNG_DEPTH = 24  # the byte that tells the bits of a value
MOST_PIXELS = 2**30  # what OpenCV reads, and `cut` with it
# what becomes grey or colour of 8 bits without a choice; the rest `to_grey` takes or refuses
PLAIN = {"1": "L", "P": "RGB", "LA": "RGBA", "PA": "RGBA"}
# what Pillow raises on files that are cut off, altered or absurd
FOREIGN_ERRORS = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, struct.error, zlib.error)

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is that of a photograph


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself: "PNG", "JPEG" or "BMP"; (height, width) as stored; whether it asks to be turned."""

    kind: str
    size: tuple[int, int]
    turned: bool


def is_utf8(name: str) -> bool:
    """Whether tables can hold the name of a file: one out of an archive of another system may be other bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def screen_files(source: Path) -> dict[str, Path]:
    """Screen name to image file, sorted by name.

    Raises:
        ValueError: there are none, two of one name, or one whose name is not UTF-8.
    """
    files: dict[str, Path] = {}
    for path in sorted((source / "screens").glob("*")):
        if not is_utf8(path.name):
            raise ValueError(f"{source / 'screens'} holds {path.name!a}, whose name is not UTF-8: no table can hold it")
        if path.suffix.lower() in SUFFIXES and files.setdefault(path.stem, path) != path:
            raise ValueError(f"{files[path.stem]} and {path.name} are one screen: names are told apart without suffix")
    if not files:
        raise ValueError(f"{source / 'screens'} holds no {NO_SCREEN}")
    return files


def read_header(path: Path) -> Header:
    """The header of a file; no pixel is decoded.

    Raises:
        ValueError: there is no such file, or no PNG, JPEG or BMP.
    """
    try:
        with Image.open(path, formats=tuple(TAKEN)) as image:
            turned = _asks_to_be_turned(image.info.get("exif", b""))  # Pillow's getexif would decode a PNG for it
            if image.height * image.width > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels")
            kind = "JPEG" if image.format == "MPO" else str(image.format)  # some phones append a second picture
            return Header(kind, (image.height, image.width), turned)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except FOREIGN_ERRORS as error:
        raise ValueError(f"{path} cannot be read as PNG, JPEG or BMP: {error}") from error


def _asks_to_be_turned(block: bytes) -> bool:
    """Whether a viewer would turn or mirror the image: 1 is upright, 0 is no orientation, nor is a broken block one."""
    exif = Image.Exif()
    try:
        exif.load(block)
        return exif.get(ExifTags.Base.Orientation) in range(2, 9)
    except FOREIGN_ERRORS:
        return False


def read_upright(path: Path) -> Header:
    """The header of a file that is shown as it is stored: boxes drawn on one that is turned lie elsewhere.

    Raises:
        ValueError: it asks to be turned, or see `read_header`.
    """
    header = read_header(path)
    if header.turned:
        raise ValueError(f"{path} asks to be turned when it is shown: save it upright, without orientation tag")
    return header


def read_whole(path: Path) -> NDArray[np.uint8]:
    """The grey pixels (H, W) of a file of which nothing is missing.

    The end mark has to be there, the checksums of a PNG have to fit, and libjpeg must not warn: it warns where it
    paints what is missing. A progressive JPEG that lacks a scan but has its end mark is not found out.

    Raises:
        ValueError: the file cannot be read, is incomplete, asks to be turned, or holds values without a documented
            grey.
    """
    kind, data = read_upright(path).kind, path.read_bytes()
    # some encoders fill the last block of a file with zeros, and phones add to a JPEG what they know of it: there the
    # mark has to be somewhere, and libjpeg warns where the picture itself has none
    whole = END["JPEG"] in data if kind == "JPEG" else data[-4096:].rstrip(b"\x00").endswith(END.get(kind, b""))
    if not whole:
        raise ValueError(f"{path} is incomplete: it lacks its end mark")
    try:
        if kind == "JPEG":
            return _read_jpeg(data)
        if kind == "PNG":
            if data[_PNG_DEPTH] == 16:  # Pillow would make 8 bits of those of a colour, and `cut` takes none
                raise ValueError("16 bits a value; save it with 8")
            with Image.open(io.BytesIO(data)) as image:
                image.verify()  # the checksums, which decoding skips
        with Image.open(io.BytesIO(data)) as image:
            return to_grey(np.asarray(_made_plain(image)), red_first=True)
    except FOREIGN_ERRORS as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write grey pixels (H, W).

    Raises:
        OSError: it cannot be written.
    """
    # level 1: a noisy frame hardly compresses, and higher levels take four times as long
    if not cv2.imwrite(str(path), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1]):
        raise OSError(f"{path} could not be written")


def _read_jpeg(data: bytes) -> NDArray[np.uint8]:
    colour = simplejpeg.decode_jpeg_header(data)[2]
    if colour not in ("Gray", "YCbCr", "RGB"):
        raise ValueError(f"the colours of a {colour} file have no documented grey")
    return to_grey(simplejpeg.decode_jpeg(data, "GRAY" if colour == "Gray" else "RGB"), red_first=True)


def _made_plain(image: Image.Image) -> Image.Image:
    if "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert(PLAIN[image.mode]) if image.mode in PLAIN else image
