"""A set of patches in the device's own memory, from which batches are picked and augmented there.

A small network learns from a batch faster on a GPU than processes that load and augment can hand it the next. The
kinds and strengths of augmentation are those of `training.augment`, but for free rotation; light changes in one
order, and what is drawn hangs on the step and the device instead of on the patch. So a run is the same when it is
resumed, and another one on another number of devices.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from training.augment import shifted
from training.config import Augmentation
from training.datasets import Batch, PatchSet

_COPIED_AT_ONCE = 2**26  # bytes, by each of the threads
_THREADS = 8
_MOST = 0.9  # of the free memory: a step needs some
_GREYS = 256


class Resident:
    """One part of the data on a device, pixels, labels and maps.

    Args:
        patches: what is copied; its own transform takes no part.
        augmentation: of every batch.
        device: that has the memory, a byte a pixel.
        visible: whether to show how far the copy is.

    Raises:
        ValueError: the device has too little memory.
    """

    def __init__(
        self, patches: PatchSet, augmentation: Augmentation, device: torch.device, *, visible: bool = True
    ) -> None:
        refuse_too_large(patches, device)
        self._augmentation = augmentation
        self._device = device
        self._pixels = torch.empty(len(patches), patches.patch_px, patches.patch_px, dtype=torch.uint8, device=device)
        self._maps = torch.from_numpy(np.stack([patches.cells(index) for index in range(len(patches))])).to(device)
        self._labels = torch.from_numpy(patches.labels).to(device)
        self._screens = torch.from_numpy(patches.screens).to(device)

        at_once = max(1, _COPIED_AT_ONCE // patches.patch_px**2)

        def copy(start: int) -> None:
            end = min(start + at_once, len(patches))
            self._pixels[start:end] = torch.from_numpy(patches.pixels(range(start, end))[:, 0]).to(device)

        starts = range(0, len(patches), at_once)
        with ThreadPoolExecutor(_THREADS) as pool:
            copied = pool.map(copy, starts)
            for _ in track(copied, "copy to the device", total=len(starts), transient=True, disable=not visible):
                pass

    def batch(self, indices: Sequence[int], *, seed: int) -> Batch:
        """Patches by their indices; the same augmentation for the same seed on the same kind of device."""
        chosen = torch.tensor(indices, device=self._device)
        random = torch.Generator(self._device).manual_seed(seed)
        pixels, maps = augment(self._pixels[chosen], self._maps[chosen], self._augmentation, random)
        return Batch(pixels[:, None], self._labels[chosen], maps, self._screens[chosen], chosen)


def refuse_too_large(patches: PatchSet, device: torch.device) -> None:
    """Refuse patches that a device has no room for.

    Raises:
        ValueError: it has too little memory.
    """
    needed, free = len(patches) * patches.patch_px**2, _free_bytes(device)
    if needed > _MOST * free:
        gib = 2**30
        raise ValueError(
            f"data.resident: {len(patches)} patches take {needed / gib:.1f} GiB, and {device.type} has "
            f"{free / gib:.1f} free, of which a step needs some: set data.resident = false"
        )


def _free_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # the rest is left to everything else
    free, _ = torch.cuda.mem_get_info(device)
    # what torch holds of a phase before is free as well
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def augment(
    pixels_NPP: Tensor, maps_NLHW: Tensor, config: Augmentation, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Turn and mirror patches with their maps, and change the light of the pixels, each patch by draws of its own.

    Args:
        pixels_NPP: uint8.
        maps_NLHW: int8.
        config: what to draw; it has no free rotation.
        random: on the device of both.
    """
    count, device = len(pixels_NPP), pixels_NPP.device
    # a core moves and maps grey levels with OpenCV twenty times as fast as with torch, which was a third of a step
    on_cpu = device.type == "cpu"
    turned, move, relit = (_turned_each, _moved_each, _relit_each) if on_cpu else (_turned, _moved, _relit)

    def uniform() -> Tensor:
        """A number in [0, 1) for each patch."""
        return torch.rand(count, generator=random, device=device)

    turns = (_MIRRORED if config.flip else ()) + (_ROTATED if config.quarter_turns else ())
    if chosen := {turn: uniform() < 0.5 for turn in turns}:
        pixels_NPP, maps_NLHW = turned(pixels_NPP, chosen), _turned(maps_NLHW, chosen)
    if config.shift:
        steps = 2 * config.shift + 1
        down_N, right_N = ((steps * uniform()).long() - config.shift for _ in range(2))
        pixels_NPP = move(pixels_NPP, down_N, right_N)
    if config.brightness or config.contrast or config.gamma:
        strengths = (config.brightness, config.contrast, config.gamma)
        pixels_NPP = relit(pixels_NPP, *((1 + strength * (2 * uniform() - 1)).clamp(min=0) for strength in strengths))
    if config.noise:
        noise = torch.randn(pixels_NPP.shape, generator=random, device=device)
        noise *= (config.noise * uniform())[:, None, None]
        pixels_NPP = (pixels_NPP + noise.round()).clamp(0, _GREYS - 1).to(torch.uint8)
    return pixels_NPP, maps_NLHW


@dataclass(frozen=True, slots=True)
class _Turn:
    """One way to turn or mirror: of many patches as a tensor, and of one as an image."""

    tensor: Callable[[Tensor], Tensor]
    image: Callable[[np.ndarray], np.ndarray]


_MIRRORED = (
    _Turn(lambda x: x.flip(-1), lambda image: cv2.flip(image, 1)),
    _Turn(lambda x: x.flip(-2), lambda image: cv2.flip(image, 0)),
)
_ROTATED = (
    _Turn(lambda x: x.rot90(1, dims=(-2, -1)), lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE)),
    _Turn(lambda x: x.rot90(2, dims=(-2, -1)), lambda image: cv2.rotate(image, cv2.ROTATE_180)),
)


def _turned(x: Tensor, chosen: dict[_Turn, Tensor]) -> Tensor:
    """Each patch (N, ..., P, P) by the turns for which it was chosen (N,), one after the other."""
    for turn, chosen_N in chosen.items():
        x = torch.where(chosen_N.view(-1, *[1] * (x.ndim - 1)), turn.tensor(x), x)
    return x


def _turned_each(pixels_NPP: Tensor, chosen: dict[_Turn, Tensor]) -> Tensor:
    """The same of pixels, patch by patch."""
    result = torch.empty_like(pixels_NPP)
    for number, (image, moved) in enumerate(zip(pixels_NPP.numpy(), result.numpy(), strict=True)):
        for turn, chosen_N in chosen.items():
            if chosen_N[number]:
                image = turn.image(image)
        moved[:] = image
    return result


def _moved(pixels_NPP: Tensor, down_N: Tensor, right_N: Tensor) -> Tensor:
    """Each patch by pixels of its own, what comes in mirrored."""

    def origin(length: int, by_N: Tensor) -> Tensor:
        """Where each row or column (N, length) comes from."""
        index_NP = (torch.arange(length, device=by_N.device) - by_N[:, None]).abs()
        return torch.where(index_NP < length, index_NP, 2 * (length - 1) - index_NP)

    count, height, width = pixels_NPP.shape
    patch_N = torch.arange(count, device=pixels_NPP.device)
    return pixels_NPP[patch_N[:, None, None], origin(height, down_N)[:, :, None], origin(width, right_N)[:, None]]


def _moved_each(pixels_NPP: Tensor, down_N: Tensor, right_N: Tensor) -> Tensor:
    """The same, patch by patch."""
    result = torch.empty_like(pixels_NPP)
    ways = zip(down_N.tolist(), right_N.tolist(), strict=True)
    for image, (down, right), moved in zip(pixels_NPP.numpy(), ways, result.numpy(), strict=True):
        moved[:] = shifted(image, down, right)
    return result


def _relit(pixels_NPP: Tensor, brightness_N: Tensor, contrast_N: Tensor, exponent_N: Tensor) -> Tensor:
    """Every grey level by a table of each patch."""
    mean_N = pixels_NPP.float().mean(dim=(1, 2))
    table_NG = _tables(mean_N, brightness_N, contrast_N, exponent_N)
    return table_NG.gather(1, pixels_NPP.flatten(1).long()).view_as(pixels_NPP)


def _relit_each(pixels_NPP: Tensor, brightness_N: Tensor, contrast_N: Tensor, exponent_N: Tensor) -> Tensor:
    """The same, patch by patch."""
    mean_N = torch.tensor([cv2.mean(image)[0] for image in pixels_NPP.numpy()])
    table_NG = _tables(mean_N, brightness_N, contrast_N, exponent_N).numpy()
    result = torch.empty_like(pixels_NPP)
    for image, table_G, changed in zip(pixels_NPP.numpy(), table_NG, result.numpy(), strict=True):
        cv2.LUT(image, table_G, changed)
    return result


def _tables(mean_N: Tensor, brightness_N: Tensor, contrast_N: Tensor, exponent_N: Tensor) -> Tensor:
    """What each grey level becomes (N, G): brighter, then further from or nearer to the mean, then gamma."""
    largest = _GREYS - 1
    grey_G = torch.arange(_GREYS, device=mean_N.device)
    mean_N = mean_N * brightness_N
    table_NG = (grey_G * brightness_N[:, None] - mean_N[:, None]) * contrast_N[:, None] + mean_N[:, None]
    table_NG = largest * (table_NG.clamp(0, largest) / largest) ** exponent_N[:, None]
    return table_NG.round().to(torch.uint8)
