"""Small networks of each form whose scores can be taken apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.engine.precisions import LABELS, PATCH_PX, WIDTHS
from training.architecture import NetworkConfig
from training.network import TwoStageNetwork, preprocess

CHANNELS = 160  # those of the light trunk, for which the rest of the network is made
CELLS = PATCH_PX // 8


def two_stage(pooling: str) -> TwoStageNetwork:
    """The network behind a trunk that leaves 8 x 8 cells of a patch; biases and sharpness do something."""
    torch.manual_seed(3)
    config = NetworkConfig(trunk="light", pooling=pooling, **WIDTHS)  # type: ignore[arg-type]
    network = TwoStageNetwork(len(LABELS), config)
    network.trunk = trunk()
    nn.init.normal_(network.pooling.linear.bias)
    if network.pooling.sharpness is not None:
        nn.init.uniform_(network.pooling.sharpness, 0.5, 3.0)
    return network.eval()


def trunk() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, CHANNELS, 8, stride=8), nn.ReLU())


class StageOne(nn.Module):
    """Stage 1 of a two-stage network as a features graph, by the dot product instead of the cosine."""

    def __init__(self, network: TwoStageNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature, _, label_map, _ = self.network.stage1(pixels)
        assert label_map is not None
        return feature, (feature * self.network.classifier1.weight).sum(dim=-1), label_map


class Scaled(nn.Module):
    """Reasoning that is stage 1 again."""

    def forward(self, label_features: Tensor, stage1: Tensor) -> Tensor:
        return torch.sigmoid(stage1 * 7.0)


class OneStage(nn.Module):
    """A trunk with a linear classifier of its mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.trunk = trunk()
        self.classifier = nn.Linear(CHANNELS, len(LABELS))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.trunk(preprocess(pixels))
        logit = self.classifier(found.mean(dim=(2, 3)))
        return logit[:, :, None], logit, functional.conv2d(found, self.classifier.weight[:, :, None, None])


class Sigmoid(nn.Module):
    """Reasoning of one stage."""

    def forward(self, label_features: Tensor, stage1: Tensor) -> Tensor:
        return torch.sigmoid(stage1)
