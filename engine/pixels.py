"""The grey rule: what an image's values become before they are cut.

The type of the values decides, never their content: a dark frame is a dark frame, whatever its maximum.
8-bit images only. A 16-bit file does not say whether its camera filled 10, 12 or all 16 bits, so every
fixed shift is wrong for some of them; such images are refused rather than guessed.
"""

import numpy as np
from numpy.typing import NDArray

# BT.601 luma in 15-bit fixed point, the integers of OpenCV's COLOR_BGR2GRAY. They add up to 2**15, so an
# image whose three channels are equal keeps its values.
BLUE, GREEN, RED = 3735, 19235, 9798
SHIFT = 15
BAND_ROWS = 16  # of a frame's lines: their values as float32 stay in the cache


def to_grey(image: NDArray[np.generic], *, red_first: bool = False) -> NDArray[np.uint8]:
    """One grey channel of a decoded image.

    `grey = (3735 * blue + 19235 * green + 9798 * red + 2**14) >> 15` for colour; grey stays as it is. An
    alpha channel is dropped where every pixel is opaque.

    Args:
        image: (H, W) or (H, W, 1) grey, (H, W, 3) BGR or (H, W, 4) BGRA; uint8.
        red_first: the colours stand as RGB or RGBA instead.

    Returns:
        (H, W); a view of `image` where it was grey already.

    Raises:
        ValueError: another type of values, another shape, no pixels, or transparency.
    """
    if image.dtype != np.uint8:
        raise ValueError(f"values must be 8-bit unsigned integers, got {image.dtype}: convert them first")
    if image.size == 0 or image.ndim not in (2, 3):
        raise ValueError(f"not an image: shape {image.shape}")
    height, width = image.shape[:2]
    pixels = image.view(np.uint8).reshape(height, width, -1)
    channels = pixels.shape[2]
    if channels not in (1, 3, 4):
        raise ValueError(f"1, 3 or 4 channels are known, got {channels}")
    if channels == 1:
        return pixels[:, :, 0]
    if channels == 4 and pixels[:, :, 3].min() < 255:
        raise ValueError("the image is partly transparent: what lies behind it is unknown")
    colours = (RED, GREEN, BLUE) if red_first else (BLUE, GREEN, RED)
    # no sum needs more than 23 bits, so float32 holds every one exactly, and its product is five times as fast
    weights = np.array((*colours, 0)[:channels], np.float32) / (1 << SHIFT)
    grey = np.empty((height, width), np.uint8)
    for top in range(0, height, BAND_ROWS):
        band = slice(top, top + BAND_ROWS)
        grey[band] = pixels[band].astype(np.float32) @ weights + np.float32(0.5)  # what is cast is cut off
    return grey
