"""The small network of Xie et al. 2019, as the Sewer-ML benchmark has it."""

from torch import Tensor, nn
from torch.nn import functional

from training.architecture import NetworkConfig
from training.baselines.one_stage import OneStage
from training.parts import in_parts

KERNELS = 11, 3, 3
WIDTHS = 64, 128, 128
STRIDES = 1, 2, 2
SIDE = 8  # of the map that the dense layers take
DENSE = 1024, 512
DROPOUT = 0.6


class SewerML(OneStage):
    """Three convolutions, pooled to 8 x 8, and three dense layers (Xie et al. 2019; Haurum and Moeslund 2021).

    Xie et al. classify in two levels, first whether there is a defect and then which; the benchmark's code has this one
    network for either level, and here it gives all labels at once, without a level before it. Patches under 246 px
    leave a map of fewer than 8 x 8 cells, which the pooling enlarges: of 160 px, one of 5 x 5.

    Its trunk is its own; `network.trunk` has no say. The dense layers leave no activation map, so a box is the window.
    At 1024 px the first convolution runs over the whole image, with 64 channels that take 0.27 GB a patch.
    """

    def __init__(self, labels: int, config: NetworkConfig, *, channels: int = 1) -> None:
        super().__init__(labels, config)
        layers: list[nn.Module] = []
        inputs = channels
        for kernel, width, stride in zip(KERNELS, WIDTHS, STRIDES, strict=True):
            convolution = nn.Conv2d(inputs, width, kernel, stride=stride, padding=kernel // 2)
            layers += [convolution, nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            inputs = width
        self.trunk = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * SIDE * SIDE, DENSE[0]),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(*DENSE),
            nn.ReLU(inplace=True),
            nn.Dropout(DROPOUT),
            nn.Linear(DENSE[1], labels),
        )

    def see(self, x_NGPP: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits, and a flat map."""
        map_NDHW = in_parts(self.trunk, x_NGPP, parts)
        logit_NL = self.classifier(_pooled(map_NDHW).flatten(1))
        return logit_NL, logit_NL[:, :, None, None] * map_NDHW.new_zeros(1, 1, SIDE, SIDE), ()

    def components(self) -> dict[str, nn.Module]:
        """Convolutions and dense layers."""
        return {"trunk": self.trunk, "classifier": self.classifier}


def _pooled(map_NDHW: Tensor) -> Tensor:
    """To 8 x 8: by means of equal squares where the side divides, which every runtime has, else adaptively."""
    side = map_NDHW.shape[-1]
    if side % SIDE == 0:
        return functional.avg_pool2d(map_NDHW, side // SIDE)
    return functional.adaptive_avg_pool2d(map_NDHW, SIDE)
