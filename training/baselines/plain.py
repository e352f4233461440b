"""ResNet-50, VGG-16 and Inception-v3 as the paper compares with them: trunk, pooling, one linear layer."""

from torch import Tensor, nn
from torch.nn import functional

from training.architecture import NetworkConfig
from training.baselines.one_stage import OneStage
from training.parts import in_parts
from training.pooling import pooled
from training.trunks import build_trunk


class Plain(OneStage):
    """A trunk with a linear classifier, and its class activation map (Zhou et al. 2016).

    VGG-16 has no dense layers here: with 512 to L it has the parameters that the paper gives, 1.472e7 of 13.8e7.
    """

    def __init__(self, labels: int, config: NetworkConfig, *, channels: int = 1) -> None:
        super().__init__(labels, config)
        self.trunk, width = build_trunk(config.trunk, weights=config.trunk_weights, channels=channels)
        self.classifier = nn.Linear(width, labels)

    def see(self, x_NGPP: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits and the map that they are the mean of, but for the bias and with average pooling."""
        map_NDHW = in_parts(self.trunk, x_NGPP, parts)
        activation_NLHW = functional.conv2d(map_NDHW, self.classifier.weight[:, :, None, None])
        return self.classifier(pooled(map_NDHW, self.config.pooling)), activation_NLHW, ()

    def components(self) -> dict[str, nn.Module]:
        """Trunk and classifier."""
        return {"trunk": self.trunk, "classifier": self.classifier}
