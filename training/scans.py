"""TIFF and PGM files, which lines send and data folders do not have: whole, or refused in a sentence.

OpenCV draws what it could decode of a damaged TIFF and goes on; this reader refuses the file.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin

from engine import to_grey
from training.images import FOREIGN_ERRORS, PLAIN

UNSIGNED = 1  # of a TIFF's SampleFormat
KINDS = {".tif": "TIFF", ".tiff": "TIFF", ".pgm": "PPM"}  # by what a name ends with, as Pillow calls them
GREY_OR_COLOUR = ("L", "RGB", "RGBA")
# those that notice missing data; fax and JPEG paint it white or grey
COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")

TiffImagePlugin.READ_LIBTIFF = True  # Pillow's own reader leaves strips black that the file does not have


def read_scan(path: Path) -> NDArray[np.uint8]:
    """The grey pixels (H, W) of a file whose name ends with one of `KINDS`, as its lines are stored.

    Raises:
        ValueError: the file is missing, damaged, of another kind, or holds values without a documented grey.
    """
    kind = KINDS[path.suffix.lower()]
    try:
        with _quiet(), Image.open(path, formats=(kind,)) as image:
            _refuse_guesses(image)
            image.getexif().pop(ExifTags.Base.Orientation, None)  # Pillow would turn a TIFF
            image.load()
            values = np.asarray(image.convert(PLAIN.get(image.mode, image.mode)))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing") from error
    except Refused as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    except FOREIGN_ERRORS as error:
        named = "PGM" if kind == "PPM" else kind
        raise ValueError(f"{path} cannot be read: it is no {named} file, or damaged, or cut off") from error
    try:
        return to_grey(values, red_first=True)
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


class Refused(Exception):
    """A file that can be read, but whose grey would be a guess."""


def _refuse_guesses(image: ImageFile.ImageFile) -> None:
    """By the header of a file; what the service refuses, too."""
    if getattr(image, "n_frames", 1) > 1:
        raise Refused("it holds more than one image")
    if image.mode not in (*GREY_OR_COLOUR, *PLAIN):
        raise Refused(f"values of mode {image.mode} have no documented grey; save it as 8-bit grey")
    if image.format == "PPM" and (image.mode != "L" or image.tile[0][0] != "raw"):  # Pillow would stretch to 255
        raise Refused("a PGM is grey (P5), with binary values of which the largest is 255")
    if image.format == "TIFF" and not _is_plain(image):
        raise Refused("its values are signed, or no tag tells what of them is black")
    if image.format == "TIFF" and image.info["compression"] not in COMPRESSIONS:
        raise Refused(f"{image.info['compression']} hides missing data; save it uncompressed, or with LZW or deflate")


def _is_plain(image: ImageFile.ImageFile) -> bool:
    """Whether black is told, and values are unsigned: TIFF 6.0, PhotometricInterpretation and SampleFormat."""
    tags = getattr(image, "tag_v2", {})
    return TiffImagePlugin.PHOTOMETRIC_INTERPRETATION in tags and set(
        tags.get(TiffImagePlugin.SAMPLEFORMAT, (UNSIGNED,))
    ) <= {UNSIGNED}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libtiff writes to the process's standard error beside its errors, and warnings of odd tags."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
