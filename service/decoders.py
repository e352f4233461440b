"""Pixels of the plain files that lines send, faster than Pillow reads them: 8-bit grey or colour, nothing odd.

Pillow has read the header, and `service.images` has checked it, before anything here is asked. What is not plain, and
what turns out to be odd, is left to Pillow: its word on such a file holds. But what Pillow does not look at refuses a
file: warnings of libjpeg, which tell of lost data, and the checksums of PNG and of deflated strips.
"""

import struct
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import deflate
import numpy as np
import simplejpeg
from isal import isal_zlib
from isal.igzip_lib import IsalError
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from engine import to_grey
from engine.cpus import available_cpus
from service import tiff
from service.errors import IncompleteImage, UnreadableImage

Bytes = bytes | memoryview

# what Pillow and the decoders under it raise on files that are cut off, altered or absurd; a lack of memory is ours
FOREIGN_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    AssertionError,
    struct.error,
    zlib.error,
    Warning,  # where warnings are errors
)

CHANNELS = {"L": 1, "RGB": 3}
# chunks of a PNG that change what its pixels mean, or bring more of them
NOT_PLAIN = {b"tRNS", b"acTL", b"fcTL", b"fdAT"}
CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
# left, top, steps across and down of each pass of an interlaced PNG
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
PIECE_BYTES = 2**16
BAND_BYTES = 2**20  # decoded at a time, so that what is between two steps stays in the cache
# decoders let go of the interpreter, so that strips of one file may use every CPU that is idle
STRIPS = ThreadPoolExecutor(available_cpus(), thread_name_prefix="strips")


def plain_pixels(image: ImageFile.ImageFile, data: Bytes) -> NDArray[np.uint8] | None:
    """Grey pixels (H, W), contiguous, of a file whose header was read and checked; a view of `data` where they lie so.

    Args:
        image: the opened file; it is not loaded.
        data: the whole file.

    Returns:
        The pixels that Pillow and `engine.to_grey` give; None where the file is not plain, or Pillow has to judge it.

    Raises:
        IncompleteImage: a JPEG or a PNG that ends before its last pixel, or a PNG that ends within a chunk.
        UnreadableImage: a JPEG that has lost data on the way, or a PNG or a deflated TIFF that fails its checksums.
    """
    decoder = {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff, "BMP": _uncompressed, "PPM": _uncompressed}
    return decoder[image.format](image, data) if image.format in decoder else None


def _uncompressed(image: ImageFile.ImageFile, data: Bytes) -> NDArray[np.uint8] | None:
    """Of a BMP or a PGM: its rows as they lie in the file, each padded, perhaps the lowest first."""
    (codec, _, offset, args), *others = image.tile
    mode, row_bytes, direction = args if isinstance(args, tuple) else (args, 0, 1)
    channels = {"L": 1, "BGR": 3}.get(str(mode), 0)
    if codec != "raw" or others or not channels or image.mode not in CHANNELS:
        return None
    row_bytes = row_bytes or image.width * channels
    if offset + row_bytes * image.height > len(data):
        return None
    rows = np.frombuffer(data, np.uint8, row_bytes * image.height, offset).reshape(image.height, row_bytes)
    rows = rows[::direction, : image.width * channels]
    if channels == 1:
        return np.ascontiguousarray(rows)
    return to_grey(rows.reshape(image.height, image.width, channels))


def _jpeg(image: ImageFile.ImageFile, data: Bytes) -> NDArray[np.uint8] | None:
    """Any warning of libjpeg is an error: it warns where it paints what is missing or finds markers out of order."""
    if image.mode not in CHANNELS:
        return None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        if (width, height) != image.size:  # before memory is taken for it
            raise UnreadableImage(f"the file says two sizes: {width} x {height}, {image.width} x {image.height}")
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if image.mode == "L" else "RGB")
    except ValueError as error:
        if "remature end" in str(error):
            raise IncompleteImage("the file has its end mark, but not all of its pixels") from error
        raise UnreadableImage(f"the file cannot be read: {error}") from error
    return to_grey(pixels, red_first=True)


def _png(image: ImageFile.ImageFile, data: Bytes) -> NDArray[np.uint8] | None:
    zipped, plain = _png_data(memoryview(data))
    mode = image.tile[0].args
    total_bytes = _filtered_bytes(bytes(data[16:29]))
    try:
        if not plain or mode not in CHANNELS or mode != image.mode or image.info.get("interlace"):
            # Pillow takes the end of the stream for that of the picture, and what is missing is black then
            for _ in _inflated_bands(zipped, BAND_BYTES, total_bytes):
                continue
            return None
        row_bytes = 1 + image.width * CHANNELS[image.mode]
        rows = max(1, BAND_BYTES // row_bytes)
        return _unfiltered(_a_step_ahead(_inflated_bands(zipped, rows * row_bytes, total_bytes)), image)
    except (IsalError, ValueError):  # type: ignore[misc] # their stubs have it as an instance
        return None


def _filtered_bytes(header: bytes) -> int:
    """Of all rows with the byte of their filter, by the header's chunk; of an interlaced picture those of each pass."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    sizes = [
        (max(0, -(-(width - left) // across)), max(0, -(-(height - top) // down)))
        for left, top, across, down in (ADAM7 if interlace else [(0, 0, 1, 1)])
    ]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sizes if columns)


def _png_data(data: memoryview) -> tuple[list[memoryview], bool]:
    """The compressed pixels, in parts that follow each other, and whether they are plain and all chunks in order."""
    parts: list[memoryview] = []
    plain, ended = True, False
    before, position = b"", 8
    while position + 12 <= len(data) and before != b"IEND":
        length = int.from_bytes(data[position : position + 4])
        name, end = bytes(data[position + 4 : position + 8]), position + 8 + length
        if end + 4 > len(data):
            raise IncompleteImage(f"the PNG file ends within its chunk {name!r}")
        if deflate.crc32(data[position + 4 : end]) != int.from_bytes(data[end : end + 4]):
            raise UnreadableImage(f"chunk {name!r} of the PNG file fails its checksum")
        if name in NOT_PLAIN or (name[:1].isupper() and name not in CRITICAL):
            plain = False
        if name == b"IDAT":
            ended |= bool(parts) and before != name  # Pillow reads no further either
            if not ended:
                parts.append(data[position + 8 : end])
        before, position = name, end + 4
    return parts, plain and not ended and before == b"IEND"


def _inflated_bands(zipped: list[memoryview], band_bytes: int, total_bytes: int) -> Iterator[bytes]:
    """What a zlib stream in parts holds, a band at a time.

    Raises:
        IncompleteImage: it holds fewer bytes.
        IsalError: it is none, or fails its checksum.
        ValueError: it holds more bytes, or has no end.
    """
    stream = isal_zlib.decompressobj()
    band, made = bytearray(), 0
    # small enough that what is left of one is soon copied
    pieces = (part[start : start + PIECE_BYTES] for part in zipped for start in range(0, len(part), PIECE_BYTES))
    for piece in pieces:
        left: Bytes = piece
        more = True
        while more and made <= total_bytes:
            room = band_bytes - len(band)
            values = stream.decompress(left, room)
            left = stream.unconsumed_tail
            more = len(left) > 0 or len(values) == room  # with its input taken in, it may still hold values
            band += values
            made += len(values)
            if len(band) == band_bytes:
                yield bytes(band)
                band.clear()
    if made < total_bytes:
        raise IncompleteImage(f"the PNG file holds {made} bytes of pixels, and its header says {total_bytes}")
    if not stream.eof or made != total_bytes:
        raise ValueError(f"{made} bytes of {total_bytes}")
    if band:
        yield bytes(band)


def _a_step_ahead(bands: Iterator[bytes]) -> Iterator[bytes]:
    """Each band is there while the one before it is worked on."""
    coming = STRIPS.submit(next, bands, None)
    while (band := coming.result()) is not None:
        coming = STRIPS.submit(next, bands, None)
        yield band


def _unfiltered(bands: Iterator[bytes], image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    """Undo the filter of each row: by Pillow, which takes zlib streams alone, so that each band becomes one as it is.

    Raises:
        ValueError: no filter of the format.
    """
    width, height = image.size
    row_bytes = 1 + width * CHANNELS[image.mode]
    pixels = np.empty((height, width), np.uint8)
    above = bytes(row_bytes)  # as a row without a filter
    top = 0
    for filtered in bands:
        count = len(filtered) // row_bytes
        stored = zlib.compress(above + filtered, 0)
        band = np.asarray(Image.frombytes(image.mode, (width, count + 1), stored, "zip", image.mode, False))
        pixels[top : top + count] = to_grey(band[1:], red_first=True)
        above = b"\0" + band[-1].tobytes()
        top += count
    return pixels


def _tiff(image: ImageFile.ImageFile, data: Bytes) -> NDArray[np.uint8] | None:
    """Of grey strips, several at a time where they are compressed."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    try:
        strips = tiff.strips_of(image)
    except FOREIGN_ERRORS:  # the sender chose the types and the numbers of the tags
        return None
    if strips is None or sum(strips.sizes) > len(data):  # the same bytes for many strips would be copied as often
        return None
    if strips.compression == tiff.NONE:
        return _joined(strips, data)
    pixels = np.empty((strips.height, strips.width), np.uint8)
    decode = _inflated if strips.compression in tiff.DEFLATE else _by_libtiff

    def fill(group: tiff.Strips) -> None:
        pixels[group.top : group.top + group.height] = decode(group, memoryview(data))

    try:
        list(STRIPS.map(fill, strips.groups(BAND_BYTES)))
    except (OSError, ValueError):
        return None
    return pixels


def _joined(strips: tiff.Strips, data: Bytes) -> NDArray[np.uint8] | None:
    lengths = [rows * strips.width for rows in strips.rows]
    if list(strips.sizes) != lengths:
        return None
    ends = [start + size for start, size in zip(strips.starts, strips.sizes, strict=True)]
    if ends[:-1] == list(strips.starts[1:]):  # one after the other, as nearly every encoder leaves them
        values = np.frombuffer(data, np.uint8, sum(lengths), strips.starts[0])
    else:
        values = np.concatenate(
            [np.frombuffer(data, np.uint8, size, start) for start, size in zip(strips.starts, lengths, strict=True)]
        )
    return values.reshape(strips.height, strips.width)


def _inflated(group: tiff.Strips, data: memoryview) -> NDArray[np.uint8]:
    """By libdeflate, which compares the checksum of each strip; libtiff stops before it.

    Raises:
        UnreadableImage: a strip fails its checksum, or holds more than a strip does.
        ValueError: a strip holds too little.
    """
    parts: list[memoryview] = []
    room = group.each * group.width  # some encoders fill the last strip up
    for start, size, rows in zip(group.starts, group.sizes, group.rows, strict=True):
        try:
            values = memoryview(deflate.zlib_decompress(data[start : start + size], room))
        except deflate.DeflateError as error:
            raise UnreadableImage(f"a strip of the TIFF file cannot be inflated: {error}") from error
        parts.append(values[: rows * group.width])
    found = np.frombuffer(b"".join(parts), np.uint8).reshape(group.height, group.width)
    return found if group.predictor == 1 else np.add.accumulate(found, axis=1, dtype=np.uint8)


def _by_libtiff(group: tiff.Strips, data: memoryview) -> NDArray[np.uint8]:
    with tiff.opened(group, data) as image:
        return np.asarray(image)
