"""A trunk's map to vectors: one for each label, as the two-stage network has them, or one for all.

Shape suffixes as in `training.network`: N patches, D trunk channels, H W rows and columns of the trunk's map, S all of
its cells, L labels, F label-feature width (the paper's d).
"""

import torch
from torch import Tensor, nn

from training.architecture import Pooling


class CategoryPooling(nn.Module):
    """Trunk map to label features: X (N, L, F), and the map that says where they were read.

    `average` is the paper's global average pooling followed by one linear layer of output size L F. The others keep a
    3 px pinhole from being drowned in a 1024 px patch, with the same linear layer: `max` takes the largest value of
    each channel, `attention` replaces the uniform average by a softmax over positions of each label's own 1 x 1 map.
    """

    def __init__(self, *, channels: int, labels: int, feature_width: int, pooling: Pooling) -> None:
        super().__init__()
        self.labels = labels
        self.feature_width = feature_width
        self.pooling = pooling
        self.linear = nn.Linear(channels, labels * feature_width)
        self.label_map: nn.Conv2d | None = None
        self.sharpness: nn.Parameter | None = None
        if pooling == "attention":
            self.label_map = nn.Conv2d(channels, labels, kernel_size=1)
            self.sharpness = nn.Parameter(torch.ones(labels))

    def forward(self, trunk_NDHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """Label features (N, L, F) and, with attention, the labels' map logits (N, L, H, W)."""
        if self.label_map is None or self.sharpness is None:
            flat = self.linear(pooled(trunk_NDHW, self.pooling))
            return flat.reshape(-1, self.labels, self.feature_width), None
        map_NLHW = self.label_map(trunk_NDHW)
        weight_NLS = torch.softmax((map_NLHW * self.sharpness[:, None, None]).flatten(2), dim=-1)
        pooled_NLD = weight_NLS @ trunk_NDHW.flatten(2).transpose(1, 2)
        weight_LFD = self.linear.weight.reshape(self.labels, self.feature_width, -1)
        bias_LF = self.linear.bias.reshape(self.labels, self.feature_width)
        feature_LNF = pooled_NLD.transpose(0, 1) @ weight_LFD.transpose(1, 2) + bias_LF[:, None, :]
        return feature_LNF.transpose(0, 1), map_NLHW


def pooled(trunk_NDHW: Tensor, pooling: Pooling) -> Tensor:
    """A trunk's map to one vector (N, D) for all labels: its mean, or its largest values."""
    return trunk_NDHW.amax(dim=(2, 3)) if pooling == "max" else trunk_NDHW.mean(dim=(2, 3))
