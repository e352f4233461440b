"""Augmentation of a patch together with its maps, by torchvision's transforms v2. Training part only."""

from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2

from training.config import Augmentation


class Augment(nn.Module):
    """Flips, rotation and jitter; geometry moves the pixels and the maps alike, light the pixels alone.

    A shift leaves the maps, and what a shift or a free rotation moves out of the patch keeps its label: of pinholes of
    4 px on patches of 256 px a shift by up to 15 px loses 4 in 100, by up to 3 none, a free rotation 9.
    """

    def __init__(self, config: Augmentation) -> None:
        super().__init__()
        steps: list[v2.Transform] = []
        if config.flip:
            steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        if config.quarter_turns:
            steps.append(QuarterTurn())
        if config.shift:
            steps.append(RandomShift(config.shift))
        if config.rotation_degrees:
            steps.append(FreeRotation(config.rotation_degrees))
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


class FreeRotation(v2.RandomRotation):  # type: ignore[misc]  # torchvision has no types
    """Rotation by any angle. Around a cell that has a defect it is not known which of its neighbours has it now."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Turn image or mask."""
        turned = super().transform(inpt, params)
        if not isinstance(inpt, tv_tensors.Mask):
            return turned
        near = functional.max_pool2d((turned == 1).float(), 3, stride=1, padding=1) > 0
        return tv_tensors.wrap(torch.where(near & (turned == 0), -1, turned).to(turned.dtype), like=inpt)


class QuarterTurn(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Rotation by a multiple of 90 degrees; every pixel is kept."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the number of quarter turns."""
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Turn image or mask."""
        return tv_tensors.wrap(torch.rot90(inpt, params["turns"], dims=(-2, -1)).contiguous(), like=inpt)


def shifted(image: NDArray[np.uint8], down: int, right: int) -> NDArray[np.uint8]:
    """An image (H, W) moved by so many pixels, or the other way; what comes in is its mirror image."""
    height, width = image.shape
    up, left = max(-down, 0), max(-right, 0)
    wide = cv2.copyMakeBorder(image, up + down, up, left + right, left, cv2.BORDER_REFLECT_101)
    return np.asarray(wide[up : up + height, left : left + width], np.uint8)


class RandomShift(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """A few pixels up or down and to a side, each as likely as any other."""

    def __init__(self, largest: int) -> None:
        super().__init__()
        self._largest = largest

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw both ways."""
        down, right = torch.randint(-self._largest, self._largest + 1, (2,)).tolist()
        return {"down": down, "right": right}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Move the image; a mask stays, whose cells are far larger."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        moved = np.stack([shifted(one, params["down"], params["right"]) for one in inpt.numpy()])
        return tv_tensors.wrap(torch.from_numpy(moved), like=inpt)


class RandomGamma(v2.Transform):  # type: ignore[misc]  # torchvision has no types
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
        table = np.rint(255 * (np.arange(256) / 255) ** params["gamma"]).astype(np.uint8)
        return tv_tensors.wrap(torch.from_numpy(table[inpt.numpy()]), like=inpt)


class RandomNoise(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Read noise of another camera: Gaussian, its standard deviation drawn from 0 to `largest` grey levels.

    The noise is a stretch of a bank that is drawn once: drawn afresh for each patch it would cost
    more than all the rest of the augmentation.
    """

    def __init__(self, largest: float) -> None:
        super().__init__()
        self._largest = largest
        self._bank = np.random.default_rng(0).standard_normal(2**22, dtype=np.float32)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the standard deviation, and where the bank is begun."""
        return {"sigma": self._largest * float(torch.rand(())), "start": int(torch.randint(len(self._bank), ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Add noise to the image; a mask stays."""
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        grey = inpt.numpy().reshape(1, -1)
        stretch = self._bank[params["start"] : params["start"] + grey.size]
        if stretch.size < grey.size:
            stretch = np.resize(np.concatenate([stretch, self._bank]), grey.size)
        noise = np.rint(params["sigma"] * stretch).astype(np.int16)
        noisy = cv2.add(grey, noise[None], dtype=cv2.CV_8U)  # saturates
        return tv_tensors.wrap(torch.from_numpy(noisy.reshape(inpt.shape)), like=inpt)
