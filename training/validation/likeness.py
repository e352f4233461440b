"""Images that show the same: pixel for pixel, or nearly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.validation.sight import Sight

ALIKE = 0.97  # correlation; of 11,000 pairs of rendered screens none is over 0.95
FEWEST = 5  # images, from which what they share stands out
BLOCK = 1024


def same(sights: Mapping[str, Sight]) -> list[list[str]]:
    """Groups of images with equal pixels; those of one grey level are left out, as they show nothing."""
    groups: dict[bytes, list[str]] = {}
    for name, sight in sights.items():
        if np.ptp(sight.small) > 0:
            groups.setdefault(sight.digest, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def alike(sights: Mapping[str, Sight]) -> list[tuple[str, str, float]]:
    """Pairs of images of one size that show nearly the same, with their correlation; equal ones are not among them.

    Frames of one line look alike as a whole, so what they share is taken off first: each is divided by its brightness,
    and the median of all is subtracted. What is left at 32 x 32 is correlated. A picture that was saved again, a little
    darker or in another quality, is found; one that was turned, or moved by more than 1 % of its side, need not be.
    Fewer than five images of a size are not compared; and where a folder mixes products, those of one may look alike by
    their design.
    """
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, sight in sights.items():
        by_size.setdefault(sight.size, []).append(name)
    found = []
    for names in by_size.values():
        own, kept = _own([sights[name].small for name in names])
        for i, j, correlation in _pairs(own):
            first, second = names[kept[i]], names[kept[j]]
            if sights[first].digest != sights[second].digest:
                found.append((first, second, correlation))
    return found


def _own(small: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, pixels) of length 1: what each image has of its own; and which those are that have anything."""
    stack = np.stack(small).reshape(len(small), -1)
    stack /= np.maximum(stack.mean(axis=1, keepdims=True), 1)
    own = stack - np.median(stack, axis=0)
    own -= own.mean(axis=1, keepdims=True)
    length = np.linalg.norm(own, axis=1)
    kept = np.flatnonzero(length > 1e-3) if len(small) >= FEWEST else np.empty(0, np.int64)
    return own[kept] / length[kept, None], kept


def _pairs(own: NDArray[np.float32]) -> Iterator[tuple[int, int, float]]:
    for start in range(0, len(own), BLOCK):
        correlation = own[start : start + BLOCK] @ own[start:].T
        for i, j in np.argwhere(np.triu(correlation > ALIKE, k=1)):
            yield start + int(i), start + int(j), float(correlation[i, j])


def groups(pairs: Sequence[tuple[str, str, float]]) -> list[list[str]]:
    """Names that are linked by pairs, directly or over others."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for first, second, _ in pairs:
        root[find(first)] = find(second)
    linked: dict[str, list[str]] = {}
    for name in root:
        linked.setdefault(find(name), []).append(name)
    return [sorted(names) for names in linked.values()]
