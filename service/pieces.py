"""How many pieces a file says that it is in, counted before anybody makes an object of Python of each.

Such an object takes some hundred bytes, and a piece of a hostile file four or twelve: without a limit a body would take
many times the memory that it was admitted with. Neither Pillow nor `service.decoders` has one.
"""

import struct

from service.errors import UnreadableImage

# a strip of every row, of which a frame has 10,240, and the 8 KiB in which most encoders of PNG write, of which the
# largest body has 20,480, are far below it
MOST_PIECES = 2**17
MOST_NUMBERS = 2 * MOST_PIECES  # of all tags of a TIFF: the place and the size of each piece
MOST_TEXT = 2**22  # bytes of all tags that hold no numbers, such as a colour profile
TEXT = (1, 2, 7)  # types of a tag whose values stay bytes


def refuse_too_many(data: bytes | memoryview, kind: str) -> None:
    """Look at the chunks of a PNG, or at the tags of a TIFF; what is out of order here is left to Pillow.

    Args:
        data: the whole file, which begins as its kind does.
        kind: as Pillow calls it.

    Raises:
        UnreadableImage: more than any encoder writes of a frame.
    """
    if kind == "PNG" and _chunks(memoryview(data)) > MOST_PIECES:
        raise UnreadableImage(f"the PNG file has more than {MOST_PIECES} chunks")
    if kind == "TIFF":
        numbers, text = _values(data)
        if numbers > MOST_NUMBERS or text > MOST_TEXT:
            held = f"{numbers} numbers and {text} bytes"
            raise UnreadableImage(f"the tags of the TIFF file hold {held}: send fewer strips")


def _chunks(data: memoryview) -> int:
    """Chunks of a PNG, counted no further than is needed."""
    count, position = 0, 8
    while position + 12 <= len(data) and count <= MOST_PIECES:
        position += 12 + int.from_bytes(data[position : position + 4])
        count += 1
    return count


def _values(data: bytes | memoryview) -> tuple[int, int]:
    """What the tags of the first image of a TIFF hold together: numbers, and bytes that are none."""
    order = "<" if data[:2] == b"II" else ">"
    start = _number(data[4:8], order)
    first = start + 2
    tags = data[first : first + 12 * _number(data[start:first], order)]
    numbers = text = 0
    for kind, count in struct.iter_unpack(f"{order}2xHI4x", tags[: len(tags) // 12 * 12]):
        if kind in TEXT:
            text += count
        else:
            numbers += count
    return numbers, text


def _number(data: bytes | memoryview, order: str) -> int:
    return int.from_bytes(data, "little" if order == "<" else "big")
