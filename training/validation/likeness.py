"""Images that show the same: pixel for pixel, or nearly."""

from collections.abc import Mapping, Sequence

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


def alike(sights: Mapping[str, Sight], parts: Mapping[str, str]) -> list[tuple[list[str], float]]:
    """Groups of images of one size that show nearly the same in two parts, with their highest correlation.

    Each image is linked to the one of another part that is most like it; images with equal pixels are not. Frames of
    one line look alike as a whole, so what they share is taken off first: each is divided by its brightness, and the
    median of all is subtracted. What is left at 32 x 32 is correlated. A picture that was saved again, a little darker
    or in another quality, is found; one that was turned, or moved by more than 1 % of its side, need not be. Fewer than
    five images of a size are not compared; and where a folder mixes products, those of one may look alike by their
    design.
    """
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, sight in sights.items():
        by_size.setdefault(sight.size, []).append(name)
    links: list[tuple[str, str, float]] = []
    for names in by_size.values():
        own, kept = _own([sights[name].small for name in names])
        names = [names[k] for k in kept]
        digests = np.unique([sights[name].digest.hex() for name in names], return_inverse=True)[1]
        codes = np.unique([parts[name] for name in names], return_inverse=True)[1]
        for start in range(0, len(own), BLOCK):
            block = slice(start, start + BLOCK)
            correlation = own[block] @ own.T
            correlation[codes[block, None] == codes] = -1
            correlation[digests[block, None] == digests] = -1
            nearest = correlation.argmax(axis=1)
            for i in np.flatnonzero(correlation.max(axis=1) > ALIKE).tolist():
                links.append((names[start + i], names[nearest[i]], float(correlation[i, nearest[i]])))
    return _linked(links)


def uncompared(sights: Mapping[str, Sight], parts: Mapping[str, str]) -> tuple[list[str], list[tuple[int, int]]]:
    """What `alike` says nothing of: images with fewer than five of their size, and sizes, if there are several.

    Images of two sizes are not compared with each other, be they but a row apart. Both are empty where all images are
    in one part, as there is nothing to find then.
    """
    by_size: dict[tuple[int, int], list[str]] = {}
    for name, sight in sights.items():
        by_size.setdefault(sight.size, []).append(name)
    if len({parts[name] for name in sights}) < 2:
        return [], []
    few = [name for names in by_size.values() if len(names) < FEWEST for name in names]
    return few, sorted(by_size) if len(by_size) > 1 else []


def _own(small: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(n, pixels) of length 1: what each image has of its own; and which those are that have anything."""
    stack = np.stack(small).reshape(len(small), -1)
    stack /= np.maximum(stack.mean(axis=1, keepdims=True), 1)
    own = stack - np.median(stack, axis=0)
    own -= own.mean(axis=1, keepdims=True)
    length = np.linalg.norm(own, axis=1)
    kept = np.flatnonzero(length > 1e-3) if len(small) >= FEWEST else np.empty(0, np.int64)
    return own[kept] / length[kept, None], kept


def _linked(links: Sequence[tuple[str, str, float]]) -> list[tuple[list[str], float]]:
    """Names that are linked, directly or over others, and the highest value among their links."""
    group_of: dict[str, set[str]] = {}
    for first, second, _ in links:
        one, other = group_of.setdefault(first, {first}), group_of.setdefault(second, {second})
        if one is not other:
            small, large = sorted((one, other), key=len)
            large |= small
            group_of.update(dict.fromkeys(small, large))
    highest: dict[int, float] = {}
    for first, _, value in links:
        highest[id(group_of[first])] = max(value, highest.get(id(group_of[first]), 0.0))
    groups = {id(group): group for group in group_of.values()}
    return [(sorted(group), highest[key]) for key, group in groups.items()]
