"""The first stage of the two-stage network alone: what its second one is worth is measured against this."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from training.architecture import NetworkConfig
from training.network import CategoryPooling, CosineClassifier, Network, Output, preprocess
from training.parts import in_parts
from training.trunks import build_trunk


class FeatureClustering(Network):
    """Trunk, category pooling and classifier 1 of Zhou et al. 2023, which here decides."""

    temperature_L: Tensor | None = None

    def __init__(self, labels: int, config: NetworkConfig, *, channels: int = 1) -> None:
        super().__init__(labels, config)
        self.trunk, width = build_trunk(config.trunk, weights=config.trunk_weights, channels=channels)
        self.pooling = CategoryPooling(
            channels=width, labels=labels, feature_width=config.feature_width, pooling=config.pooling
        )
        self.classifier1 = CosineClassifier(
            labels=labels,
            feature_width=config.feature_width,
            scale=config.cosine_scale,
            learn_scale=config.learn_scale,
            normalised=config.classifier == "cosine",
        )

    def forward(
        self,
        pixel_NGPP: Tensor,
        *,
        reason: bool = True,
        group_N: Tensor | None = None,
        gather: Callable[[Tensor], Tensor] | None = None,
        parts: int = 1,
    ) -> Output:
        """One pass, see `Network.forward`; there is nothing to reason, to group or to gather."""
        trunk_NDHW = in_parts(self.trunk, preprocess(pixel_NGPP, light=self.config.light), parts)
        feature_NLF, map_NLHW = self.pooling(trunk_NDHW)
        cosine_NL = self.classifier1(feature_NLF)
        logit_NL = self.classifier1.logits(cosine_NL)
        return Output(feature_NLF.float(), cosine_NL, logit_NL, logit_NL if reason else None, map_NLHW)

    def reason(self, feature_KLF: Tensor, cosine_KL: Tensor) -> Tensor:
        """The scaled cosines."""
        logit_KL = self.classifier1.logits(cosine_KL)
        return logit_KL if self.temperature_L is None else logit_KL / self.temperature_L

    def temper(self, temperature_L: Tensor) -> None:
        """Divide the scaled cosines; the cosines themselves stay."""
        self.temperature_L = temperature_L

    def features(self, pixel_NGPP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label features, cosines, and the map of the attention or of the cosine's linear part."""
        trunk_NDHW = self.trunk(preprocess(pixel_NGPP, light=self.config.light))
        feature_NLF, map_NLHW = self.pooling(trunk_NDHW)
        if map_NLHW is None:
            linear_LFD = self.pooling.linear.weight.reshape(self.labels, self.config.feature_width, -1)
            weight_LD = (self.classifier1.weight[:, :, None] * linear_LFD).sum(dim=1)
            map_NLHW = functional.conv2d(trunk_NDHW, weight_LD[:, :, None, None])
        return feature_NLF.float(), self.classifier1(feature_NLF), map_NLHW

    def components(self) -> dict[str, nn.Module]:
        """Trunk, category pooling, classifier 1."""
        return {"trunk": self.trunk, "category pooling": self.pooling, "classifier 1": self.classifier1}
