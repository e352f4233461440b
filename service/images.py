"""Bytes to one grey frame: step 2 of an inspection. Nothing is guessed and nothing is filled in.

The header is read first: the kind of file and its size are known, and refused where they do not fit, before
memory for a single pixel is taken. A file that ends too early is refused even where its decoder would make do:
libjpeg paints the rest grey, libpng leaves it black.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from engine import to_grey
from service.errors import (
    FrameSizeMismatch,
    ImageTooLarge,
    ImageTooSmall,
    IncompleteImage,
    InvalidRequest,
    UnreadableImage,
    UnsupportedMedia,
)
from service.verdict import FrameSizeFrom

RAW = "application/octet-stream"
# how Pillow calls the format of each media type
FORMATS = {
    "image/png": "PNG",
    "image/bmp": "BMP",
    "image/x-ms-bmp": "BMP",
    "image/tiff": "TIFF",
    "image/jpeg": "JPEG",
    "image/x-portable-graymap": "PPM",
}
MEDIA_TYPES = (*FORMATS, RAW)
SUFFIXES = {
    ".png": "image/png",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".pgm": "image/x-portable-graymap",
}

# first bytes of each format; a PGM must be the binary one, P5
MAGIC = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\x00", b"MM\x00*"),
    "JPEG": (b"\xff\xd8\xff",),
    "PPM": (b"P5",),
}
# last bytes of the formats that mark their end
END = {"PNG": b"\x00\x00\x00\x00IEND\xaeB`\x82", "JPEG": b"\xff\xd9"}

# channels of each of Pillow's modes that has a documented grey value, in the order that `to_grey` expects;
# what is not 8-bit grey or colour by itself becomes one of these first
CHANNELS = {"L": (0,), "RGB": (2, 1, 0), "RGBA": (2, 1, 0, 3)}
AS = {"1": "L", "P": "RGB", "LA": "RGBA", "PA": "RGBA"}

# what Pillow and the decoders under it raise on files that are cut off, altered or absurd
FOREIGN_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    RuntimeError,
    NotImplementedError,
    AttributeError,
    struct.error,
    zlib.error,
)

# Pillow's own limit counts for the process; `max_pixels` is checked in its place, on every image, before decoding
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was sent: bytes, and what was said of them.

    Attributes:
        data: the body or the file; not changed while it is used.
        media_type: one of `MEDIA_TYPES`.
        size: (height, width) that came with raw bytes; None for files, which carry their own.
    """

    data: bytes | memoryview
    media_type: str
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """A decoded frame: `pixels` (H, W) grey, and who agreed that it has this size."""

    pixels: NDArray[np.uint8]
    size_from: FrameSizeFrom


def decode(source: Source, *, agreed: tuple[int, int] | None, patch_px: int, max_pixels: int) -> Frame:
    """One grey frame.

    Colour becomes grey by `engine.to_grey`, a palette by its colours, one-bit images by black and white. 16-bit and
    floating values, CMYK and transparency have no documented grey value and are refused. An orientation tag is not
    applied: the frame is as its lines were scanned.

    Args:
        source: what was sent.
        agreed: (height, width) of the line's frames; None leaves it to the sender.
        patch_px: side of a patch; a frame is at least as large.
        max_pixels: largest frame.

    Raises:
        UnsupportedMedia: a kind that is not read here, or another than the one declared.
        InvalidRequest: raw bytes without a size, or a size beside a file.
        FrameSizeMismatch: not the agreed size, or not as many raw bytes as the size needs.
        ImageTooLarge: over `max_pixels`.
        ImageTooSmall: smaller than a patch.
        IncompleteImage: the file ends before its last pixel.
        UnreadableImage: no image, or one whose values have no documented grey value.
    """

    def accept(height: int, width: int) -> None:
        if height * width > max_pixels:
            raise ImageTooLarge(f"{width} x {height} pixels are over the limit of {max_pixels}")
        if agreed is not None and (height, width) != agreed:
            raise FrameSizeMismatch(f"{width} x {height} pixels; this line sends {agreed[1]} x {agreed[0]}")
        if min(height, width) < patch_px:
            raise ImageTooSmall(f"{width} x {height} pixels are smaller than a patch of {patch_px}")

    if source.media_type == RAW:
        if source.size is None:
            raise InvalidRequest("raw bytes need their width and height")
        accept(*source.size)
        pixels = _raw(source.data, *source.size)
        return Frame(pixels=pixels, size_from="query" if agreed is None else "setting")
    if source.size is not None:
        raise InvalidRequest(f"width and height go with {RAW} alone: a file carries its own")
    with _opened(source) as image:
        accept(image.height, image.width)
        pixels = _grey(image)
    return Frame(pixels=pixels, size_from="header" if agreed is None else "setting")


def _raw(data: bytes | memoryview, height: int, width: int) -> NDArray[np.uint8]:
    if len(data) != height * width:
        raise FrameSizeMismatch(f"{len(data)} bytes; {width} x {height} pixels are {height * width}")
    return np.frombuffer(data, np.uint8).reshape(height, width)


@contextmanager
def _opened(source: Source) -> Iterator[ImageFile.ImageFile]:
    """The file's header, read; its pixels are not."""
    kind = FORMATS.get(source.media_type)
    if kind is None:
        raise UnsupportedMedia(f"{source.media_type!r} is not read here: send one of {', '.join(MEDIA_TYPES)}")
    start = bytes(source.data[:8])
    if not start.startswith(MAGIC[kind]):
        found = next((name for name, marks in MAGIC.items() if start.startswith(marks)), None)
        if found is not None:
            raise UnsupportedMedia(f"declared as {source.media_type}, but it is a {found} file")
        raise UnreadableImage(f"this is no {kind} file")
    end = END.get(kind, b"")
    # some encoders fill the last block of a file with zeros
    if not bytes(source.data[-4096:]).rstrip(b"\x00").endswith(end.rstrip(b"\x00")):
        raise IncompleteImage(f"the {kind} file lacks its end mark")
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd metadata, which is not looked at
            image = Image.open(io.BytesIO(source.data), formats=(kind,))
    except FOREIGN_ERRORS as error:
        raise UnreadableImage(f"the {kind} file cannot be read") from error
    with image:
        yield image


def _grey(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """The pixels (H, W) of an opened file."""
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise UnreadableImage(f"{frames} images in one file: send one")
    if image.format == "PPM" and image.tile[0].codec_name != "raw":  # Pillow would stretch the values to 255
        raise UnreadableImage("the largest value of a PGM file must be 255")
    try:
        image.load()
    except FOREIGN_ERRORS as error:
        # Pillow has no type of its own for this; the text has been the same since 2010, and both are refused
        if "truncated" in str(error):
            raise IncompleteImage(f"the file ends before its last pixel: {error}") from error
        raise UnreadableImage(f"the pixels cannot be decoded: {error}") from error
    plain: Image.Image = image
    if "transparency" in image.info:
        plain = image.convert("RGBA")
    elif image.mode in AS:
        plain = image.convert(AS[image.mode])
    if plain.mode not in CHANNELS:
        raise UnreadableImage(f"values of mode {image.mode} have no documented grey value: send 8-bit grey")
    values: NDArray[Any] = np.asarray(plain)
    if values.ndim == 3:
        values = values[:, :, CHANNELS[plain.mode]]
    try:
        return to_grey(values)
    except ValueError as error:
        raise UnreadableImage(str(error)) from error
