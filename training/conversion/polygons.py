"""Polygons to pixels."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

ROUNDING_PX = 1.0  # by which tools let a shape leave its image


def polygon_pixels(
    polygons: Sequence[Sequence[float]], height: int, width: int, *, cut: bool = False
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Rows and columns of the pixels of an image that lie in any of several polygons [x, y, x, y, ...].

    A pixel lies in a polygon where its centre does (even-odd); pixel 0 reaches from 0 to 1, its centre is 0.5. Where
    a polygon is too thin for a centre it has the pixels that its outline runs through: of a thin scratch, or of the
    tail of a spot, nothing is lost.

    Args:
        polygons: in pixels.
        height: of the image.
        width: of the image.
        cut: take what lies in the image of those that leave it; their middle has to lie in it.

    Raises:
        ValueError: fewer than three points, or one outside of the image by more than a pixel, unless it is cut.
    """
    shapes = []
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon of {len(polygon)} numbers, not of x, y for each of three points or more")
        points = np.array(polygon, np.float64).reshape(-1, 2)
        leaves = (points < -ROUNDING_PX).any() or (points > np.array([width, height]) + ROUNDING_PX).any()
        if leaves and not cut:
            raise ValueError(f"a polygon leaves the image of {width} x {height} px")
        shapes.append(points)
    places = [_drawn(points, height, width, cut=cut) for points in shapes]
    rows, columns = (np.concatenate(each) for each in zip(*places, strict=True))
    once = np.unique(rows.astype(np.int64) * width + columns)  # several may share pixels
    return (once // width).astype(np.int32), (once % width).astype(np.int32)


def turned_corners(bbox: tuple[float, float, float, float], degrees: float) -> list[float]:
    """The corners [x, y, x, y, ...] of a box (x, y, width, height), turned clockwise about its centre."""
    x, y, wide, high = bbox
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down = np.array([wide * cos, wide * sin]) / 2, np.array([-high * sin, high * cos]) / 2  # y points down
    corners = np.array([-across - down, across - down, across + down, down - across])
    found: list[float] = (corners + np.array([x + wide / 2, y + high / 2])).round(3).ravel().tolist()
    return found


def _centres_inside(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.bool_]:
    """Where an edge crosses the line through the centres of a row the row changes sides; a running sum counts that."""
    centres = np.arange(height) + 0.5
    changes = np.zeros((height, width + 1), np.int32)
    for (x, y), (next_x, next_y) in zip(points, np.roll(points, -1, axis=0), strict=True):
        crossed = np.flatnonzero((centres < y) != (centres < next_y))
        if len(crossed):
            at = x + (centres[crossed] - y) / (next_y - y) * (next_x - x)
            changes[crossed, np.ceil(at - 0.5).clip(0, width).astype(int)] += 1
    inside: NDArray[np.bool_] = np.cumsum(changes[:, :-1], axis=1) % 2 == 1
    return inside


def _drawn(
    points: NDArray[np.float64], height: int, width: int, *, cut: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of one polygon."""
    low = np.floor(points.min(axis=0)).clip(0, [width - 1, height - 1]).astype(int)
    high = np.ceil(points.max(axis=0)).clip(low + 1, [width, height]).astype(int)
    size = int(high[1] - low[1]), int(high[0] - low[0])
    mask = _with_thin_parts(_centres_inside(points - low, *size), _outline(points - low, *size, cut=cut))
    rows, columns = np.nonzero(mask)
    return rows + low[1], columns + low[0]


def _with_thin_parts(inside: NDArray[np.bool_], outline: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels inside, and of the outline those far from any, and those between pieces that it joins."""
    thin = outline & ~_widened(inside)
    found = inside | outline & _widened(thin)  # a pixel further, which joins the thin part to the rest
    pieces, numbers = cv2.connectedComponents(found.astype(np.uint8), connectivity=8)
    if pieces <= 2:  # one of them is what lies around
        return found
    near = np.ones((5, 5), np.uint8)
    highest = cv2.dilate(numbers.astype(np.float32), near)
    lowest = cv2.erode(np.where(found, numbers, pieces).astype(np.float32), near)
    return found | outline & (lowest < highest)


def _widened(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """With the eight neighbours of each pixel."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)


def _outline(points: NDArray[np.float64], height: int, width: int, *, cut: bool) -> NDArray[np.bool_]:
    corners = np.floor(points).astype(np.int32)
    if not cut:  # by a pixel at most; the sides of one that is cut would lie elsewhere by it
        corners = corners.clip(0, [width - 1, height - 1])
    return cv2.polylines(np.zeros((height, width), np.uint8), [corners], isClosed=True, color=1).astype(bool)
