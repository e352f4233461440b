"""Images, looked at once: whole or not, how large, what they show in little."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import xxhash
from numpy.typing import NDArray
from rich.progress import track

from training.images import read_whole
from training.validation.findings import Finding, Picture

SMALL_PX = 32  # side of what is kept of an image to compare it


@dataclass(frozen=True, slots=True)
class Sight:
    """What is kept of an image: (height, width), a digest of its pixels, and itself in little (grey levels)."""

    size: tuple[int, int]
    digest: bytes
    small: NDArray[np.float32]


def see(pixels: NDArray[np.uint8], small_px: int = SMALL_PX) -> Sight:
    """Of the grey pixels (H, W)."""
    height, width = pixels.shape
    digest = xxhash.xxh3_128(np.ascontiguousarray(pixels).data)
    digest.update(f"{height} x {width}".encode())
    return Sight((height, width), digest.digest(), shrink(pixels, small_px, small_px))


def shrink(pixels: NDArray[np.uint8] | NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Means over areas, not rounded; of a frame in two steps, as its floats would take four times its memory."""
    step = max(min(pixels.shape) // 1024, 1)
    if step > 1:
        pixels = cv2.resize(pixels, None, fx=1 / step, fy=1 / step, interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    small: NDArray[np.float32] = cv2.resize(
        pixels.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
    ).astype(np.float32)
    return small


def see_all(files: Mapping[str, Path]) -> tuple[dict[str, Sight], list[Finding]]:
    """Every image by its name; those that cannot be used are findings."""

    def one(name: str) -> Sight | Finding:
        try:
            return see(read_whole(files[name]))
        except ValueError as error:
            return Finding("image", str(error), (Picture(files[name], name),))

    with ThreadPoolExecutor() as pool:
        seen = list(track(pool.map(one, files), total=len(files), description="look"))
    pairs = zip(files, seen, strict=True)
    return {n: s for n, s in pairs if isinstance(s, Sight)}, [s for s in seen if isinstance(s, Finding)]
