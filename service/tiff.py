"""The strips of a TIFF, which can be decoded apart: where they lie, and some of them as a file of their own."""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

NONE, LZW, DEFLATE = 1, 5, (8, 32946)
GREY = 1  # black is zero
SHORT, LONG = 3, 4  # types of a tag
Tag = ExifTags.Base
# values of 8-bit grey; one that is not there counts as these
PLAIN: dict[int, Any] = {
    Tag.BitsPerSample: (8,),
    Tag.PhotometricInterpretation: GREY,
    Tag.SamplesPerPixel: 1,
    Tag.PlanarConfiguration: 1,
    Tag.FillOrder: 1,
}
SAID = (Tag.BitsPerSample, Tag.PhotometricInterpretation)  # that must be there: Pillow's own default is another
USED = (
    *PLAIN,
    Tag.ImageWidth,
    Tag.ImageLength,
    Tag.Compression,
    Tag.StripOffsets,
    Tag.RowsPerStrip,
    Tag.StripByteCounts,
    TiffImagePlugin.PREDICTOR,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strips:
    """Strips of 8-bit grey that follow each other.

    Attributes:
        width: pixels of a row.
        top: first row.
        each: rows of every strip but the last of the file, which may have fewer.
        rows: how many each of these has.
        starts, sizes: bytes of the file.
        compression, predictor: values of these tags.
    """

    width: int
    top: int
    each: int
    rows: Sequence[int]
    starts: Sequence[int]
    sizes: Sequence[int]
    compression: int
    predictor: int

    @property
    def height(self) -> int:
        """Rows of all strips."""
        return sum(self.rows)

    def groups(self, pixels: int) -> Iterator["Strips"]:
        """The same in parts of about so many pixels."""
        count = max(1, pixels // (self.width * self.each))
        for first in range(0, len(self.rows), count):
            part = slice(first, first + count)
            yield Strips(
                width=self.width,
                top=self.top + first * self.each,
                each=self.each,
                rows=self.rows[part],
                starts=self.starts[part],
                sizes=self.sizes[part],
                compression=self.compression,
                predictor=self.predictor,
            )


def strips_of(image: TiffImagePlugin.TiffImageFile) -> Strips | None:
    """All strips of a file whose tags were checked; None where it is tiled, or its values are not 8-bit grey."""
    tags = image.tag_v2
    if any(tags.get(number, value) != value for number, value in PLAIN.items()):
        return None
    if any(tags.get(number) is None for number in SAID):  # a tag may stand there without a value
        return None
    if any(tags.tagtype.get(number, LONG) not in (SHORT, LONG) for number in USED):
        return None
    width, height = tags[Tag.ImageWidth], tags[Tag.ImageLength]
    each = min(tags.get(Tag.RowsPerStrip, height), height)
    compression, predictor = tags.get(Tag.Compression, NONE), tags.get(TiffImagePlugin.PREDICTOR, 1)
    known = compression in (NONE, LZW, *DEFLATE) and predictor in (1, 2)
    if not known or Tag.StripOffsets not in tags or TiffImagePlugin.TILEOFFSETS in tags or each < 1:
        return None
    rows = [min(each, height - top) for top in range(0, height, each)]
    starts, sizes = tags[Tag.StripOffsets], tags[Tag.StripByteCounts]
    if not len(rows) == len(starts) == len(sizes):
        return None
    return Strips(
        width=width,
        top=0,
        each=each,
        rows=rows,
        starts=starts,
        sizes=sizes,
        compression=compression,
        predictor=predictor,
    )


def opened(strips: Strips, data: memoryview) -> ImageFile.ImageFile:
    """These strips as a file, for libtiff; `data` is the one that they lie in."""
    count, start = len(strips.rows), 8 + 2 + 12 * 10 + 4
    places, position = [], start + 8 * count
    for size in strips.sizes:
        places.append(position)
        position += size
    numbers: dict[int, tuple[int, Sequence[int], int]] = {
        Tag.ImageWidth: (LONG, [strips.width], 0),
        Tag.ImageLength: (LONG, [strips.height], 0),
        Tag.BitsPerSample: (SHORT, [8], 0),
        Tag.Compression: (SHORT, [strips.compression], 0),
        Tag.PhotometricInterpretation: (SHORT, [GREY], 0),
        Tag.StripOffsets: (LONG, places, start),
        Tag.SamplesPerPixel: (SHORT, [1], 0),
        Tag.RowsPerStrip: (LONG, [strips.each], 0),
        Tag.StripByteCounts: (LONG, strips.sizes, start + 4 * count),
        TiffImagePlugin.PREDICTOR: (SHORT, [strips.predictor], 0),
    }
    entries = [
        struct.pack("<HHII", number, kind, len(values), values[0] if len(values) == 1 else elsewhere)
        for number, (kind, values, elsewhere) in sorted(numbers.items())
    ]
    file = io.BytesIO()
    file.write(struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + b"".join(entries) + bytes(4))
    file.write(struct.pack(f"<{2 * count}I", *places, *strips.sizes))
    for first, size in zip(strips.starts, strips.sizes, strict=True):
        file.write(data[first : first + size])
    return Image.open(file, formats=("TIFF",))
