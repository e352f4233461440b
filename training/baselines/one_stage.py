"""What every rival is: pixels to logits in one stage, without relations between patches."""

from abc import abstractmethod

from torch import Tensor

from training.network import Gather, Network, Output, preprocess


class OneStage(Network):
    """Logits of a patch from its pixels alone.

    In a bundle its label features have the width 1 and are its logits, as `stage1` is; reasoning is a sigmoid.
    """

    temperature_L: Tensor | None = None

    def temper(self, temperature_L: Tensor) -> None:
        """Divide logits, and the map that they are made of."""
        self.temperature_L = temperature_L

    def seen_tempered(self, seen: Output, temperature_L: Tensor) -> Output:
        """Logits are all that it gives."""
        logit_NL = seen.logit_NL / temperature_L
        return Output(logit_NL[:, :, None], logit_NL, logit_NL, None, None)

    def forward(
        self,
        pixel_NGPP: Tensor,
        *,
        reason: bool = True,
        group_N: Tensor | None = None,
        gather: Gather | None = None,
        parts: int = 1,
    ) -> Output:
        """One pass, see `Network.forward`; there is nothing to reason, to group or to gather."""
        logit_NL, _, auxiliary = self.see(preprocess(pixel_NGPP, light=self.config.light), parts)
        if self.temperature_L is not None:
            logit_NL = logit_NL / self.temperature_L
        return Output(logit_NL[:, :, None], logit_NL, logit_NL, logit_NL if reason else None, None, auxiliary)

    def reason(self, feature_KLF: Tensor, cosine_KL: Tensor) -> Tensor:
        """The logits as they are."""
        return cosine_KL

    def features(self, pixel_NGPP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, L, 1), logits (N, L) and activation (N, L, H, W)."""
        logit_NL, activation_NLHW, _ = self.see(preprocess(pixel_NGPP, light=self.config.light))
        if self.temperature_L is not None:
            logit_NL = logit_NL / self.temperature_L
            activation_NLHW = activation_NLHW / self.temperature_L[:, None, None]
        return logit_NL[:, :, None], logit_NL, activation_NLHW

    @abstractmethod
    def see(self, x_NGPP: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Preprocessed pixels to logits (N, L), activation (N, L, H, W) and auxiliary logits, each (N, L).

        `parts` is in how many the trunk takes them while it learns, see `in_parts`.
        """
