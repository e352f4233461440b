"""Bytes to one grey frame: step 2 of an inspection. Nothing is guessed and nothing is filled in.

The header is read first: the kind of file and its size are known, and refused where they do not fit, before
memory for a single pixel is taken. A file that ends too early is refused even where its decoder would make do:
libjpeg paints the rest grey, Pillow leaves the strips black that a TIFF lacks. Pixels of plain files come from
`service.decoders`, those of all others from Pillow.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from engine import to_grey
from service.arrival import Arrival
from service.decoders import FOREIGN_ERRORS, plain_pixels
from service.errors import (
    FrameSizeMismatch,
    ImageTooLarge,
    ImageTooSmall,
    IncompleteImage,
    InvalidRequest,
    UnreadableImage,
    UnsupportedMedia,
)
from service.pieces import refuse_too_many
from service.reader import Reader
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
NO_SIZE = "raw bytes need their width and height"
SIZE_OF_A_FILE = f"width and height go with {RAW} alone: a file carries its own"
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

# Pillow's modes that have a documented grey value; what is not 8-bit grey or colour by itself becomes one of them
PLAIN = ("L", "RGB", "RGBA")
AS = {"1": "L", "P": "RGB", "LA": "RGBA", "PA": "RGBA"}
# bytes of a pixel while a file is decoded, its grey frame among them: Pillow takes four for a colour, and twice as much
# for what has to be made plain
WORKING_BYTES = {"L": 2, "RGB": 5, "RGBA": 5}
WORKING_BYTES_MADE_PLAIN = 9
BAND_ROWS = 256  # that become grey at a time
# how a file holds values that Pillow would round to eight bits by a rule of its own
NOT_8_BIT = re.compile(r";1[0-9]")
# bits of a pixel in each way in which a BMP may hold it
BMP_BITS = {"1": 1, "P;1": 1, "P;4": 4, "L": 8, "P": 8, "BGR": 24, "BGRX": 32, "BGRA": 32}
# the compressions of TIFF that notice missing data; fax and JPEG paint it white or grey
TIFF_COMPRESSIONS = {"raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate"}

# Pillow's own limit counts for the process; `max_pixels` is checked in its place, on every image, before decoding
Image.MAX_IMAGE_PIXELS = None
# Pillow's own reader leaves strips black that the file does not have
TiffImagePlugin.READ_LIBTIFF = True
# of odd metadata, which is not looked at; here, because filters belong to the process and frames to many threads
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(slots=True, kw_only=True)
class Source:
    """What was sent: bytes, and what was said of them.

    Attributes:
        data: the body or the file; not changed while it is used, and empty once it was dropped. A raw frame may still
            be coming.
        media_type: one of `MEDIA_TYPES`.
        size: (height, width) that came with raw bytes; None for files, which carry their own.
    """

    data: bytes | memoryview | Arrival
    media_type: str
    size: tuple[int, int] | None = None

    def drop(self) -> None:
        """Let go of the bytes, however many callers still hold the source: a frame is all that is needed of it."""
        self.data = b""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frame:
    """A frame.

    Attributes:
        pixels: (H, W) grey.
        size_from: who agreed that it has this size.
        arrival: of its lines, where they are still coming; None where all are there.
    """

    pixels: NDArray[np.uint8]
    size_from: FrameSizeFrom
    arrival: Arrival | None = None


def decode(
    source: Source,
    *,
    agreed: tuple[int, int] | None,
    patch_px: int,
    max_pixels: int,
    room: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> Frame:
    """One grey frame.

    Colour becomes grey by `engine.to_grey`, a palette by its colours, one-bit images by black and white. 16-bit and
    floating values, CMYK and transparency have no documented grey value and are refused. An orientation tag is not
    applied: the frame is as its lines were scanned.

    Args:
        source: what was sent.
        agreed: (height, width) of the line's frames; None leaves it to the sender.
        patch_px: side of a patch; a frame is at least as large.
        max_pixels: largest frame.
        room: holds so many bytes while the pixels of a file are decoded; what it raises goes through.

    Raises:
        UnsupportedMedia: a kind that is not read here, or another than the one declared.
        InvalidRequest: raw bytes without a size, or a size beside a file.
        FrameSizeMismatch: not the agreed size, or not as many raw bytes as the size needs.
        ImageTooLarge: over `max_pixels`.
        ImageTooSmall: smaller than a patch.
        IncompleteImage: the file ends before its last pixel.
        UnreadableImage: no image, or one whose values have no documented grey value.
    """
    accept = partial(refuse_size, agreed=agreed, max_pixels=max_pixels, patch_px=patch_px)
    if source.media_type == RAW:
        if source.size is None:
            raise InvalidRequest(NO_SIZE)
        accept(*source.size)
        size_from: FrameSizeFrom = "query" if agreed is None else "setting"
        if isinstance(source.data, Arrival):
            return Frame(pixels=source.data.pixels, size_from=size_from, arrival=source.data)
        return Frame(pixels=_raw(source.data, *source.size), size_from=size_from)
    if source.size is not None:
        raise InvalidRequest(SIZE_OF_A_FILE)
    assert not isinstance(source.data, Arrival)
    with _opened(source.data, source.media_type) as image:
        stored = _stored_size(image)
        accept(*stored)
        with room(_working_bytes(image, len(source.data))):
            pixels = _grey(image, source.data)
    if pixels.shape != stored:
        raise IncompleteImage(
            f"{pixels.shape[1]} x {pixels.shape[0]} pixels came out of a file of {stored[1]} x {stored[0]}"
        )
    return Frame(pixels=pixels, size_from="header" if agreed is None else "setting")


def refuse_size(height: int, width: int, *, agreed: tuple[int, int] | None, max_pixels: int, patch_px: int) -> None:
    """Refuse a frame by its size alone, so that nobody has to send it for that.

    Raises:
        ImageTooLarge: over `max_pixels`.
        FrameSizeMismatch: not the agreed (height, width).
        ImageTooSmall: smaller than a patch.
    """
    if height * width > max_pixels:
        raise ImageTooLarge(f"{width} x {height} pixels are over the limit of {max_pixels}")
    if agreed is not None and (height, width) != agreed:
        raise FrameSizeMismatch(f"{width} x {height} pixels; this line sends {agreed[1]} x {agreed[0]}")
    if min(height, width) < patch_px:
        raise ImageTooSmall(f"{width} x {height} pixels are smaller than a patch of {patch_px}")


def _raw(data: bytes | memoryview, height: int, width: int) -> NDArray[np.uint8]:
    if len(data) != height * width:
        raise FrameSizeMismatch(f"{len(data)} bytes; {width} x {height} pixels are {height * width}")
    return np.frombuffer(data, np.uint8).reshape(height, width)


@contextmanager
def _opened(data: bytes | memoryview, media_type: str) -> Iterator[ImageFile.ImageFile]:
    """The file's header, read; its pixels are not."""
    kind = FORMATS.get(media_type)
    if kind is None:
        raise UnsupportedMedia(f"{media_type!r} is not read here: send one of {', '.join(MEDIA_TYPES)}")
    start = bytes(data[:8])
    if not start.startswith(MAGIC[kind]):
        found = next((name for name, marks in MAGIC.items() if start.startswith(marks)), None)
        if found is not None:
            raise UnsupportedMedia(f"declared as {media_type}, but it is a {found} file")
        raise UnreadableImage(f"the bytes do not begin as {media_type} does")
    end = END.get(kind, b"")
    # some encoders fill the last block of a file with zeros
    if not bytes(data[-4096:]).rstrip(b"\x00").endswith(end):
        raise IncompleteImage(f"the {kind} file lacks its end mark")
    refuse_too_many(data, kind)
    with _at_pillow():
        image = Image.open(cast(IO[bytes], Reader(data)), formats=(kind,))
    with image:
        yield image


@contextmanager
def _at_pillow() -> Iterator[None]:
    """Around each call of Pillow that reads the file: what it raises there is the sender's fault, elsewhere ours."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        # Pillow has no type of its own for this; the text has been the same since 2010, and both are refused
        if "truncated" in str(error):
            raise IncompleteImage(f"the file ends before its last pixel: {error}") from error
        raise UnreadableImage(f"the file cannot be read: {error}") from error


def _stored_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """(height, width) as the file holds its lines; Pillow's own size follows the orientation tag of a TIFF."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return image.tag_v2[ExifTags.Base.ImageLength], image.tag_v2[ExifTags.Base.ImageWidth]
    return image.height, image.width


def _grey(image: ImageFile.ImageFile, data: bytes | memoryview) -> NDArray[np.uint8]:
    """The pixels (H, W) of the opened file `data`."""
    _check(image, len(data))
    pixels = plain_pixels(image, data)
    if pixels is not None:
        return pixels
    with _at_pillow():
        loaded = _load(image)
    return _values(loaded)


def _check(image: ImageFile.ImageFile, length: int) -> None:
    """Refuse by its header what would be read by a guess or filled in."""
    if getattr(image, "is_animated", False):
        raise UnreadableImage("more than one image in the file: send one")
    if not image.tile:
        raise IncompleteImage("the file holds no pixels")
    tile = image.tile[0]
    if image.format == "PPM" and tile.codec_name != "raw":  # Pillow would stretch the values to 255
        raise UnreadableImage("the largest value of a PGM file must be 255")
    raw_mode = tile.args if isinstance(tile.args, str) else str(tile.args and tile.args[0])
    if image.mode not in {*PLAIN, *AS} or NOT_8_BIT.search(raw_mode):
        raise UnreadableImage(f"values of mode {raw_mode} have no documented grey value: send 8-bit grey")
    if image.info.get("progressive"):
        raise UnreadableImage("a progressive JPEG hides what it lacks: send a baseline one")
    if image.format == "BMP":
        _check_bmp(image, length)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, length)


def _check_bmp(image: ImageFile.ImageFile, length: int) -> None:
    codec, _, offset, args = image.tile[0]
    if codec != "raw":
        raise UnreadableImage("a run-length encoded BMP file may leave pixels out: send it uncompressed")
    assert isinstance(args, tuple)
    raw_mode, row_bytes, _ = args
    # Pillow takes eight bits for one where the palette has two greys
    if row_bytes != (image.width * BMP_BITS.get(raw_mode, 0) + 31) // 32 * 4:
        raise UnreadableImage(f"a BMP file with values of mode {raw_mode}: send 8-bit grey")
    if offset + row_bytes * image.height > length:
        raise IncompleteImage("the file ends before its last pixel")


def _check_tiff(image: TiffImagePlugin.TiffImageFile, length: int) -> None:
    tags = image.tag_v2
    # zero after the last image; Pillow leaves it where it was when the tags end too early
    if tags.next != 0:
        raise IncompleteImage("the file ends before its last tag")
    compression = image.info["compression"]
    if compression not in TIFF_COMPRESSIONS:
        raise UnreadableImage(f"a TIFF file with {compression}: send it uncompressed, or with LZW or deflate")
    if tags.get(ExifTags.Base.PhotometricInterpretation) is None:  # it may stand there without a value
        raise UnreadableImage("the TIFF file does not say whether 0 is black or white")
    if TiffImagePlugin.SAMPLEFORMAT in tags and set(_numbers(tags, TiffImagePlugin.SAMPLEFORMAT)) != {1}:
        raise UnreadableImage("values of the TIFF file are not unsigned integers")
    tiled = TiffImagePlugin.TILEOFFSETS in tags
    starts = _numbers(tags, TiffImagePlugin.TILEOFFSETS if tiled else TiffImagePlugin.STRIPOFFSETS)
    sizes = _numbers(tags, TiffImagePlugin.TILEBYTECOUNTS if tiled else TiffImagePlugin.STRIPBYTECOUNTS)
    if len(starts) != len(sizes):
        raise UnreadableImage(f"the TIFF file tells the place of {len(starts)} pieces and the size of {len(sizes)}")
    if any(start + size > length for start, size in zip(starts, sizes, strict=True)):
        raise IncompleteImage("the file ends before its last pixel")


def _numbers(tags: TiffImagePlugin.ImageFileDirectory_v2, tag: int) -> tuple[int, ...]:
    """Values of a tag; the sender chose their type."""
    with _at_pillow():
        values = tags[tag]
    if not isinstance(values, tuple | bytes) or not all(isinstance(value, int) for value in values):
        raise UnreadableImage(f"values of the TIFF tag {tag} are no whole numbers")
    return tuple(values)


def _load(image: ImageFile.ImageFile) -> Image.Image:
    """The decoded image in a mode of `PLAIN`, its lines in the order of the file."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image.getexif().pop(ExifTags.Base.Orientation, None)  # Pillow would turn the image
    image.load()
    if "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode in AS:
        return image.convert(AS[image.mode])
    return image


def _working_bytes(image: ImageFile.ImageFile, length: int) -> int:
    """The most that decoding takes beside the `length` bytes of the file itself."""
    plain = image.mode in WORKING_BYTES and "transparency" not in image.info
    pixels = image.height * image.width * (WORKING_BYTES[image.mode] if plain else WORKING_BYTES_MADE_PLAIN)
    return pixels + length  # libtiff is given a copy of the file


def _values(image: Image.Image) -> NDArray[np.uint8]:
    """The grey values (H, W), some lines at a time: Pillow gives its pixels away as a copy of a copy."""
    width, height = image.im.size  # of its lines, whatever an orientation tag made of the image's own
    grey = np.empty((height, width), np.uint8)
    for top in range(0, height, BAND_ROWS):
        band: NDArray[Any] = np.asarray(image.crop((0, top, width, min(top + BAND_ROWS, height))))
        try:
            grey[top : top + len(band)] = to_grey(band, red_first=True)
        except ValueError as error:  # its word for values that have no grey
            raise UnreadableImage(f"the pixels cannot be used: {error}") from error
    return grey
