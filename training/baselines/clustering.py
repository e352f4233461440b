"""The first stage of the two-stage network alone: what its second one is worth is measured against this."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from training.network import Clustering, Output


class FeatureClustering(Clustering):
    """Trunk, category pooling and classifier 1 of Zhou et al. 2023, which here decides."""

    temperature_L: Tensor | None = None

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
        feature_NLF, cosine_NL, map_NLHW, _ = self.stage1(pixel_NGPP, parts=parts)
        logit_NL = self.classifier1.logits(cosine_NL)
        return Output(feature_NLF, cosine_NL, logit_NL, logit_NL if reason else None, map_NLHW)

    def reason(self, feature_KLF: Tensor, cosine_KL: Tensor) -> Tensor:
        """The scaled cosines."""
        logit_KL = self.classifier1.logits(cosine_KL)
        return logit_KL if self.temperature_L is None else logit_KL / self.temperature_L

    def temper(self, temperature_L: Tensor) -> None:
        """Divide the scaled cosines; the cosines themselves stay."""
        self.temperature_L = temperature_L

    def features(self, pixel_NGPP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label features, cosines, and the map of the attention or of the cosine's linear part."""
        feature_NLF, cosine_NL, map_NLHW, trunk_NDHW = self.stage1(pixel_NGPP)
        if map_NLHW is None:
            linear_LFD = self.pooling.linear.weight.reshape(self.labels, self.config.feature_width, -1)
            weight_LD = (self.classifier1.weight[:, :, None] * linear_LFD).sum(dim=1)
            map_NLHW = functional.conv2d(trunk_NDHW, weight_LD[:, :, None, None])
        return feature_NLF, cosine_NL, map_NLHW
