"""A set of patches in the device's own memory, from which batches are picked and augmented there.

A small network learns from a batch faster on a GPU than processes that load and augment can hand it the next. The
kinds and strengths of augmentation are those of `training.augment`, but for free rotation; light changes in one
order, and what is drawn hangs on the step and the device instead of on the patch. So a run is the same when it is
resumed, and another one on another number of devices.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

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
        _refuse_too_large(patches, device)
        self._augmentation = augmentation
        self._device = device
        self._pixels = torch.empty(len(patches), patches.patch_px, patches.patch_px, dtype=torch.uint8, device=device)
        self._maps = torch.from_numpy(np.stack([patches.cells(index) for index in range(len(patches))])).to(device)
        self._labels = torch.from_numpy(patches.labels).to(device)
        self._screens = torch.from_numpy(patches.screens).to(device)

        at_once = max(1, _COPIED_AT_ONCE // patches.patch_px**2)

        def copy(start: int) -> None:
            end = min(start + at_once, len(patches))
            pixels = np.stack([patches.patch(index) for index in range(start, end)])
            self._pixels[start:end] = torch.from_numpy(pixels).to(device)

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


def _refuse_too_large(patches: PatchSet, device: torch.device) -> None:
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

    def uniform() -> Tensor:
        """A number in [0, 1) for each patch."""
        return torch.rand(count, generator=random, device=device)

    def half(changed: Callable[[Tensor], Tensor]) -> None:
        """Change half of the patches, and their maps with them."""
        nonlocal pixels_NPP, maps_NLHW
        chosen_N = uniform() < 0.5
        pixels_NPP, maps_NLHW = (_where(chosen_N, changed(x), x) for x in (pixels_NPP, maps_NLHW))

    if config.flip:
        half(lambda x: x.flip(-1))
        half(lambda x: x.flip(-2))
    if config.quarter_turns:
        half(lambda x: x.rot90(1, dims=(-2, -1)))
        half(lambda x: x.rot90(2, dims=(-2, -1)))
    if config.brightness or config.contrast or config.gamma:
        brightness, contrast, exponent = (
            (1 + strength * (2 * uniform() - 1)).clamp(min=0)
            for strength in (config.brightness, config.contrast, config.gamma)
        )
        pixels_NPP = _relit(pixels_NPP, brightness, contrast, exponent)
    if config.noise:
        noise = torch.randn(pixels_NPP.shape, generator=random, device=device)
        noise *= (config.noise * uniform())[:, None, None]
        pixels_NPP = (pixels_NPP + noise.round()).clamp(0, _GREYS - 1).to(torch.uint8)
    return pixels_NPP, maps_NLHW


def _relit(pixels_NPP: Tensor, brightness_N: Tensor, contrast_N: Tensor, exponent_N: Tensor) -> Tensor:
    """Every grey level by a table of each patch: brighter, then further from or nearer to the mean, then gamma."""
    largest = _GREYS - 1
    grey_G = torch.arange(_GREYS, device=pixels_NPP.device)
    mean_N = pixels_NPP.float().mean(dim=(1, 2)) * brightness_N
    table_NG = (grey_G * brightness_N[:, None] - mean_N[:, None]) * contrast_N[:, None] + mean_N[:, None]
    table_NG = largest * (table_NG.clamp(0, largest) / largest) ** exponent_N[:, None]
    table_NG = table_NG.round().to(torch.uint8)
    return table_NG.gather(1, pixels_NPP.flatten(1).long()).view_as(pixels_NPP)


def _where(chosen_N: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen_N.view(-1, *[1] * (yes.ndim - 1)), yes, no)
