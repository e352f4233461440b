"""What decoding a frame costs: every form that a line may send, by us, by OpenCV and by Pillow."""

import importlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine import to_grey
from service.bench.report import BenchError, Row
from service.bench.work import Work
from service.images import RAW, Source, decode

OF_BEST = 1.05  # times the faster of OpenCV and Pillow: what two runs of the same decoder may differ by
ROUNDS = 3  # at least
OF_SECONDS = 0.1  # of a measurement, for each form: there are many
STRIP_ROWS = 64

PNG, BMP, TIFF, JPEG, PGM = "image/png", "image/bmp", "image/tiff", "image/jpeg", "image/x-portable-graymap"
KINDS = {PNG: "PNG", BMP: "BMP", TIFF: "TIFF", JPEG: "JPEG", PGM: "PPM"}  # as Pillow calls them
Pixels = NDArray[np.uint8]
Decoder = Callable[[bytes], Pixels]
Form = tuple[str, Callable[[Pixels], bytes]]  # its media type and its encoder


def measure(work: Work) -> Iterator[Row]:
    """Decoders of each form, one and two at a time, in turn, so that a noisy moment meets all of them."""
    frame = work.frames[0]
    for name, (media_type, encode) in FORMS.items():
        data = encode(frame)
        rivals = {"OpenCV": _opencv, "Pillow": _pillow, **_others(media_type)} if media_type != RAW else {}
        times = _timed({"ours": _ours(media_type, frame), **rivals}, data, work.seconds * OF_SECONDS)
        yield _row(name, data, times)


def _by_pillow(media_type: str, *, colour: bool = False, **options: object) -> Form:
    def encode(frame: Pixels) -> bytes:
        file = io.BytesIO()
        image = Image.fromarray(frame)
        (image.convert("RGB") if colour else image).save(file, KINDS[media_type], **options)
        return file.getvalue()

    return media_type, encode


def _by_opencv(media_type: str, suffix: str, *options: int) -> Form:
    return media_type, lambda frame: cv2.imencode(suffix, frame, options)[1].tobytes()


def _level_1(filters: int) -> Form:
    return _by_opencv(PNG, ".png", cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, filters)


def _tiff(compression: str, **tags: int) -> Form:
    info = {278: STRIP_ROWS, **({317: tags["predictor"]} if "predictor" in tags else {})}
    return _by_pillow(TIFF, compression=compression, tiffinfo=info)


FORMS: dict[str, Form] = {
    "raw": (RAW, lambda frame: frame.tobytes()),
    "PGM": _by_pillow(PGM),
    "BMP": _by_pillow(BMP),
    "TIFF": _tiff("raw"),
    "TIFF deflate, strips": _tiff("tiff_adobe_deflate"),
    "TIFF LZW, strips": _tiff("tiff_lzw"),
    "TIFF LZW, strips, differences": _tiff("tiff_lzw", predictor=2),
    "PNG level 1, no filter": _level_1(cv2.IMWRITE_PNG_FILTER_NONE),
    "PNG level 1, filter Up": _level_1(cv2.IMWRITE_PNG_FILTER_UP),
    "PNG level 1, all filters, by OpenCV": _level_1(cv2.IMWRITE_PNG_ALL_FILTERS),
    "PNG level 1, all filters, by Pillow": _by_pillow(PNG, compress_level=1),
    "PNG level 6, all filters, by Pillow": _by_pillow(PNG, compress_level=6),
    "PNG level 1, colour": _by_pillow(PNG, compress_level=1, colour=True),
    "JPEG 90": _by_pillow(JPEG, quality=90),
    "JPEG 95": _by_pillow(JPEG, quality=95),
    "JPEG 90, colour": _by_pillow(JPEG, quality=90, colour=True),
}


def _ours(media_type: str, frame: Pixels) -> Decoder:
    """What the service does with a body, its checks included."""
    size = frame.shape[:2] if media_type == RAW else None

    def read(data: bytes) -> Pixels:
        source = Source(data=data, media_type=media_type, size=size)
        return decode(source, agreed=frame.shape[:2], patch_px=1, max_pixels=frame.size).pixels

    return read


def _opencv(data: bytes) -> Pixels:
    return to_grey(np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), np.uint8))


def _pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return to_grey(np.asarray(image), red_first=True)


def _others(media_type: str) -> Mapping[str, Decoder]:
    """Libraries that happen to be installed; the service needs none of them."""
    codecs, vips = _installed("imagecodecs"), _installed("pyvips")
    found: dict[str, Decoder] = {}
    names = {PNG: ("png", "spng"), BMP: ("bmp",), TIFF: ("tiff",), JPEG: ("jpeg8",)}.get(media_type, ())
    for name in names if codecs else ():
        found[f"imagecodecs {name}"] = _grey_of(getattr(codecs, f"{name}_decode"))
    if vips and media_type not in (BMP, PGM):  # which its wheels do not read
        vips.cache_set_max(0)
        found["libvips"] = _grey_of(lambda data: vips.Image.new_from_buffer(data, "", access="sequential").numpy())
    return found


def _installed(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def _grey_of(read: Callable[[bytes], Any]) -> Decoder:
    return lambda data: to_grey(np.asarray(read(data), np.uint8), red_first=True)


def _timed(decoders: Mapping[str, Decoder], data: bytes, seconds: float) -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each decoder, `one` and until `two` that began together are done; at least `ROUNDS` of each.

    Raises:
        BenchError: a decoder gives other pixels than ours, by more than a JPEG may.
    """
    expected = decoders["ours"](data)
    for name, read in decoders.items():  # which also warms each
        if np.abs(read(data)[::97].astype(int) - expected[::97]).max() > 1:
            raise BenchError(f"{name} gives other pixels than ours")
    times: dict[str, dict[str, list[float]]] = {name: {"one": [], "two": []} for name in decoders}
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(2) as pool:
        while time.monotonic() < until or len(times["ours"]["one"]) < ROUNDS:
            for name, read in decoders.items():
                begun_at = time.perf_counter()
                read(data)
                between = time.perf_counter()
                list(pool.map(read, (data, data)))
                times[name]["one"].append(1000 * (between - begun_at))
                times[name]["two"].append(1000 * (time.perf_counter() - between))
    return times


def _row(name: str, data: bytes, times: Mapping[str, Mapping[str, list[float]]]) -> Row:
    """Held to the better of the two decoders that everybody has: medians, and in brackets the least and the most."""
    lines = [f"{len(data) / 1e6:.1f} MB"]
    for decoder, found in times.items():
        one, two = (f"{np.median(some):.0f} ({min(some):.0f}-{max(some):.0f})" for some in found.values())
        lines.append(f"{decoder}: {one} ms; two at a time {two} ms")
    medians = {decoder: float(np.median(found["one"])) for decoder, found in times.items()}
    rivals = [medians[decoder] for decoder in ("OpenCV", "Pillow") if decoder in medians]
    return Row(
        name=name,
        found="\n".join(lines),
        limit=f"{min(rivals):.0f} ms" if rivals else "",
        passed=medians["ours"] <= OF_BEST * min(rivals) if rivals else None,
        figures={"megabytes": len(data) / 1e6, "milliseconds": times},
    )
