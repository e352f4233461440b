"""Image files for the tests of decoding: what encoders write and what none of them would, and the pixels in them."""

import io
import struct
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine import to_grey

RAW = "application/octet-stream"
PNG, BMP, TIFF, JPEG, PGM = "image/png", "image/bmp", "image/tiff", "image/jpeg", "image/x-portable-graymap"
FORMATS = {PNG: "PNG", BMP: "BMP", TIFF: "TIFF", JPEG: "JPEG", PGM: "PPM"}

SHORT, LONG, RATIONAL = 3, 4, 5
SIZES = {SHORT: 2, LONG: 4, RATIONAL: 8}
Tags = dict[int, tuple[int, Sequence[int]]]  # type and values by number


def grey(height: int = 64, width: int = 72) -> NDArray[np.uint8]:
    """A soft gradient under noise, so that files are small and no two rows are equal; (H, W)."""
    noise = np.random.default_rng(11).integers(0, 4, (height, width))
    return (100 + np.add.outer(np.arange(height) // 2, np.arange(width) // 4) + noise).astype(np.uint8)


def colour(height: int = 64, width: int = 72) -> NDArray[np.uint8]:
    """Three channels that differ; (H, W, 3), red first."""
    one = grey(height, width)
    return np.dstack([one, one[::-1], 255 - one])


def encode(image: NDArray[np.uint8] | Image.Image, media_type: str, **options: object) -> bytes:
    """The file that Pillow writes."""
    file = io.BytesIO()
    opened = image if isinstance(image, Image.Image) else Image.fromarray(image)
    opened.save(file, FORMATS[media_type], **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(size: tuple[int, int], *, depth: int, kind: int, rows: bytes, chunks: bytes = b"") -> bytes:
    """A PNG of (height, width) with any bits a value and any colour type, from its rows without their filters."""
    height, width = size
    length = len(rows) // height
    filtered = b"".join(b"\0" + rows[row * length : (row + 1) * length] for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunks, chunk(b"IDAT", zlib.compress(filtered)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(size: tuple[int, int], *, bits: int, pixels: bytes, palette: bytes = b"", compression: int = 0) -> bytes:
    """A BMP of (height, width) from its pixel data, lowest row first."""
    height, width = size
    start = 54 + len(palette)
    file = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, len(palette) // 4, 0)
    return file + info + palette + pixels


def tiff(strips: Sequence[bytes], size: tuple[int, int], *, order: str = "<", tags: Tags | None = None) -> bytes:
    """A grey TIFF of (height, width) with its tags first and its strips last, as no encoder at hand writes it.

    Args:
        strips: the pixel data, as compressed as `tags` say.
        size: what the tags say of the image.
        order: of the bytes of a number, `<` or `>`.
        tags: besides the usual, or in their place; one without values is left out.
    """
    height, width = size
    given = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8]),
        259: (SHORT, [1]),
        262: (SHORT, [1]),
        273: (LONG, [0] * len(strips)),  # where they are, known below
        277: (SHORT, [1]),
        278: (LONG, [-(-height // len(strips))]),
        279: (LONG, [len(strip) for strip in strips]),
        **(tags or {}),
    }
    known = {number: given[number] for number in sorted(given) if given[number][1]}
    elsewhere = 8 + 2 + 12 * len(known) + 4
    start = elsewhere + sum(length for kind, values in known.values() if (length := SIZES[kind] * len(values)) > 4)
    known[273] = (LONG, [start + sum(map(len, strips[:index])) for index in range(len(strips))])
    entries, outside = b"", b""
    for number, (kind, values) in known.items():
        code = {SHORT: "H", LONG: "I", RATIONAL: "II"}[kind]
        packed = struct.pack(order + code * len(values), *(v for value in values for v in (value, 1)[: len(code)]))
        entries += struct.pack(order + "HHI", number, kind, len(values))
        if len(packed) > 4:
            entries += struct.pack(order + "I", elsewhere + len(outside))
            outside += packed
        else:
            entries += packed.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return (
        head + struct.pack(order + "H", len(known)) + entries + struct.pack(order + "I", 0) + outside + b"".join(strips)
    )


def resized_jpeg(data: bytes, size: tuple[int, int]) -> bytes:
    """The JPEG with another (height, width) in its header."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", *size) + data[at + 4 :]


def huge(side: int) -> dict[str, bytes]:
    """Files of a few bytes whose headers promise `side` x `side` pixels, by media type; up to 65,535."""
    size = side, side
    return {
        PNG: png(size, depth=8, kind=0, rows=b""),
        BMP: bmp(size, bits=8, pixels=b"", palette=bytes(1024)),
        TIFF: tiff([b""], size),
        JPEG: resized_jpeg(encode(grey(), JPEG), size),
        PGM: b"P5 %d %d 255\n" % size,
    }


GREY, RGB = grey(), colour()
SIZE = (64, 72)
RGB_AS_GREY = to_grey(RGB[:, :, ::-1])
RGBA = np.dstack([RGB, np.full_like(GREY, 255)])
BITS = GREY > 130
# 250 colours, numbered at random
PALETTE = np.random.default_rng(5).integers(0, 256, (250, 3), np.uint8)
NUMBERS = (GREY.astype(np.uint16) * 7 % 250).astype(np.uint8)
PALETTE_AS_GREY = to_grey(PALETTE[NUMBERS][:, :, ::-1])
NIBBLES = np.arange(128, dtype=np.uint8).reshape(8, 16) % 16


def paletted(numbers: NDArray[np.uint8] = NUMBERS) -> Image.Image:
    """An image of numbers of `PALETTE`."""
    image = Image.fromarray(numbers)
    image.putpalette(PALETTE.tobytes())
    return image


def by_opencv(pixels: NDArray[np.uint8], suffix: str) -> bytes:
    """The file that OpenCV writes; grey, or blue first."""
    return cv2.imencode(suffix, pixels)[1].tobytes()


def strips(pixels: NDArray[np.generic]) -> list[bytes]:
    """Pixel data in four parts."""
    return [part.tobytes() for part in np.split(pixels, 4)]


# every form that is read: its media type, a file, and the grey that is in it
EXACT: dict[str, tuple[str, bytes, NDArray[np.uint8]]] = {
    "png grey": (PNG, encode(GREY, PNG), GREY),
    "png grey by opencv": (PNG, by_opencv(GREY, ".png"), GREY),
    "png colour": (PNG, encode(RGB, PNG), RGB_AS_GREY),
    "png opaque colour": (PNG, encode(RGBA, PNG), RGB_AS_GREY),
    "png opaque grey": (PNG, encode(Image.fromarray(GREY).convert("LA"), PNG), GREY),
    "png palette": (PNG, encode(paletted(), PNG), PALETTE_AS_GREY),
    "png one bit": (PNG, encode(Image.fromarray(BITS), PNG), BITS * np.uint8(255)),
    # the format says how four bits become eight
    "png four bits": (
        PNG,
        png(NIBBLES.shape, depth=4, kind=0, rows=(NIBBLES[:, ::2] * 16 + NIBBLES[:, 1::2]).tobytes()),
        NIBBLES * np.uint8(17),
    ),
    # a colour that counts as transparent, and is nowhere
    "png grey, transparency unused": (PNG, encode(GREY, PNG, transparency=255), GREY),
    "png colour, transparency unused": (PNG, encode(RGB, PNG, transparency=(0, 0, 0)), RGB_AS_GREY),
    "bmp grey": (BMP, encode(GREY, BMP), GREY),
    "bmp colour": (BMP, encode(RGB, BMP), RGB_AS_GREY),
    "bmp colour by opencv": (BMP, by_opencv(RGB[:, :, ::-1].copy(), ".bmp"), RGB_AS_GREY),
    "bmp palette": (BMP, encode(paletted(), BMP), PALETTE_AS_GREY),
    # its rows end in bytes that are no pixels
    "bmp one bit": (BMP, encode(Image.fromarray(BITS), BMP), BITS * np.uint8(255)),
    "tiff grey": (TIFF, encode(GREY, TIFF), GREY),
    "tiff colour": (TIFF, encode(RGB, TIFF), RGB_AS_GREY),
    "tiff opaque colour": (TIFF, encode(RGBA, TIFF), RGB_AS_GREY),
    "tiff palette": (TIFF, encode(paletted(), TIFF), PALETTE_AS_GREY),
    "tiff one bit": (TIFF, encode(Image.fromarray(BITS), TIFF), BITS * np.uint8(255)),
    "tiff lzw": (TIFF, encode(GREY, TIFF, compression="tiff_lzw"), GREY),
    "tiff lzw colour": (TIFF, encode(RGB, TIFF, compression="tiff_lzw"), RGB_AS_GREY),
    "tiff lzw by opencv": (TIFF, by_opencv(GREY, ".tiff"), GREY),
    "tiff lzw in strips": (TIFF, encode(GREY, TIFF, compression="tiff_lzw", tiffinfo={278: 16}), GREY),
    "tiff deflate": (TIFF, encode(GREY, TIFF, compression="tiff_adobe_deflate"), GREY),
    "tiff packbits": (TIFF, encode(GREY, TIFF, compression="packbits"), GREY),
    "tiff strips last": (TIFF, tiff(strips(GREY), SIZE, order=">"), GREY),
    "tiff deflate strips last": (
        TIFF,
        tiff([zlib.compress(strip) for strip in strips(GREY)], SIZE, tags={259: (SHORT, [8])}),
        GREY,
    ),
    # 0 is white
    "tiff inverted": (TIFF, tiff(strips(255 - GREY), SIZE, tags={262: (SHORT, [0])}), GREY),
    "pgm": (PGM, encode(GREY, PGM), GREY),
    "pgm with a comment": (PGM, b"P5\n# line 4\n72 64\n255\n" + GREY.tobytes(), GREY),
}
LOSSY: dict[str, tuple[str, bytes, NDArray[np.uint8]]] = {
    "jpeg grey": (JPEG, encode(GREY, JPEG), GREY),
    "jpeg grey by opencv": (JPEG, by_opencv(GREY, ".jpg"), GREY),
    "jpeg colour": (JPEG, encode(RGB, JPEG, quality=95), RGB_AS_GREY),
}
FILES = {name: (media_type, data) for name, (media_type, data, _) in {**EXACT, **LOSSY}.items()}
