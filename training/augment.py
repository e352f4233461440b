"""Augmentation of a patch together with its maps, by torchvision's transforms v2. Training part only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from training.config import Augmentation


class Augment(nn.Module):
    """Flips, rotation and jitter; geometry moves the pixels and the maps alike, light the pixels alone."""

    def __init__(self, config: Augmentation) -> None:
        super().__init__()
        steps: list[v2.Transform] = []
        if config.flip:
            steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        if config.quarter_turns:
            steps.append(QuarterTurn())
        if config.rotation_degrees:
            steps.append(v2.RandomRotation(config.rotation_degrees))
        if config.brightness or config.contrast:
            steps.append(v2.ColorJitter(brightness=config.brightness, contrast=config.contrast))
        if config.gamma:
            steps.append(RandomGamma(config.gamma))
        if config.noise:
            steps.append(RandomNoise(config.noise))
        self.steps = v2.Compose(steps) if steps else v2.Identity()

    def forward(self, pixels: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (1, P, P) uint8 and maps (L, h, w), augmented alike."""
        image, mask = self.steps(tv_tensors.Image(pixels), tv_tensors.Mask(maps))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


class QuarterTurn(v2.Transform):
    """Rotation by a multiple of 90 degrees; every pixel is kept."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the number of quarter turns."""
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Turn image or mask."""
        return tv_tensors.wrap(torch.rot90(inpt, params["turns"], dims=(-2, -1)), like=inpt)


class RandomGamma(v2.Transform):
    """Another camera response: grey ** gamma, gamma in 1 +- strength, by a table of 256."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self._strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw gamma."""
        return {"gamma": 1 + self._strength * (2 * float(torch.rand(())) - 1)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Map the image's grey levels; a mask stays."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        table = (255 * (torch.arange(256) / 255) ** params["gamma"]).round().to(torch.uint8)
        return tv_tensors.wrap(table[inpt.long()], like=inpt)


class RandomNoise(v2.Transform):
    """Read noise of another camera: Gaussian, its standard deviation drawn from 0 to `largest` grey levels."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self._largest = largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the standard deviation."""
        return {"sigma": self._largest * float(torch.rand(()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Add noise to the image; a mask stays."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        noisy = inpt.float() + params["sigma"] * torch.randn(inpt.shape)
        return tv_tensors.wrap(noisy.round().clamp(0, 255).to(torch.uint8), like=inpt)
