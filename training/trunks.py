"""Trunks by name: grey patches (N, 1, P, P) to a map (N, D, P/32, P/32). Knows nothing of labels."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn


def build_trunk(name: str, *, weights: str | None = None) -> tuple[nn.Module, int]:
    """The trunk called `name` and its number of channels D.

    Args:
        name: "light" (ours, for CPUs), or a torchvision ResNet such as "resnet50" (the paper's).
        weights: torchvision's weights name, e.g. "IMAGENET1K_V2", fetched by torchvision; None starts from scratch.

    Raises:
        ValueError: unknown name, or weights asked of a trunk that has none.
    """
    if name == "light":
        if weights is not None:
            raise ValueError("the light trunk has no pretrained weights")
        return LightTrunk(), LightTrunk.channels
    if name not in torchvision.models.list_models(include="resnet*"):
        raise ValueError(f"unknown trunk {name!r}: 'light' or a torchvision ResNet such as 'resnet50'")
    resnet = torchvision.models.get_model(name, weights=weights)
    channels = resnet.fc.in_features
    resnet.conv1 = grey_stem(resnet.conv1)
    layers = [resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool]
    return nn.Sequential(*layers, resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4), channels


def grey_stem(colour: nn.Conv2d) -> nn.Conv2d:
    """The colour stem folded to one grey channel by summing its weights: the same output for equal channels."""
    grey = nn.Conv2d(1, colour.out_channels, (7, 7), stride=(2, 2), padding=(3, 3), bias=False)
    with torch.no_grad():
        grey.weight.copy_(colour.weight.sum(dim=1, keepdim=True))
    return grey


class LightTrunk(nn.Module):
    """A small trunk for CPUs: large strided stem on the grey channel, then depthwise-separable blocks.

    The 8 x 8 stem with stride 4 takes the full-resolution image in one convolution: at 1024 px the first layers of
    an image-classification trunk would cost more than all that follows.
    """

    channels = 160

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 8, stride=4, padding=2, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            SeparableBlock(16, 48, stride=2),
            SeparableBlock(48, 48),
            SeparableBlock(48, 96, stride=2),
            SeparableBlock(96, 96),
            SeparableBlock(96, 96),
            SeparableBlock(96, 160, stride=2),
            SeparableBlock(160, 160),
            SeparableBlock(160, 160),
            SeparableBlock(160, 160),
        )

    def forward(self, pixel_NGPP: Tensor) -> Tensor:
        """Pixels (N, 1, P, P) to the map (N, 160, P/32, P/32)."""
        map_NDHW: Tensor = self.layers(pixel_NGPP)
        return map_NDHW


class SeparableBlock(nn.Module):
    """5 x 5 depthwise, then 1 x 1; a residual where the shape is kept."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 5, stride=stride, padding=2, groups=inputs, bias=False)
        self.norm1 = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """The block (N, C, H, W), smaller by its stride."""
        y = torch.relu(self.norm1(self.depthwise(x)))
        y = self.norm2(self.pointwise(y))
        return torch.relu(x + y) if self.residual else torch.relu(y)
