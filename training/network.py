"""The two-stage multi-label network of Zhou et al. 2023 (FITEE 24(2):203-216).

Stage 1 (feature clustering): trunk, category pooling, cosine classifier. Stage 2 (graph reasoning), see
`training.reasoning`. This file knows nothing of training, data or bundles.

Shape suffixes: N patches, G grey channel (1), P patch side, D trunk channels, H W rows and columns of the trunk's map,
L labels, F label-feature width (the paper's d).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.architecture import Light, NetworkConfig
from training.parts import in_parts
from training.pooling import CategoryPooling
from training.reasoning import GraphReasoning
from training.trunks import build_trunk

Gather = Callable[[Tensor], Tensor]  # makes the global batch of the batches of several devices


class CosineClassifier(nn.Module):
    """Classifier 1: S_ij = cos(X_ij, w_j), and a learnt positive scale that makes logits of cosines.

    A cosine in [-1, 1] alone cannot give a confident sigmoid; the scale is kept as its logarithm so that it stays
    positive. Not `normalised`, S is the dot product, as in the paper's ablation, and needs no scale.
    """

    def __init__(
        self, *, labels: int, feature_width: int, scale: float, learn_scale: bool, normalised: bool = True
    ) -> None:
        super().__init__()
        self.normalised = normalised
        self.weight = nn.Parameter(torch.randn(labels, feature_width) * feature_width**-0.5)
        log_scale = torch.tensor(float(scale) if normalised else 1.0).log()
        self.log_scale = nn.Parameter(log_scale, requires_grad=learn_scale and normalised)

    def forward(self, feature_NLF: Tensor) -> Tensor:
        """Cosines (N, L) in [-1, 1], in float32 at least: half precision loses the norms."""
        width = torch.promote_types(feature_NLF.dtype, torch.float32)
        feature, weight = feature_NLF.to(width), self.weight.to(width)
        if self.normalised:
            feature = functional.normalize(feature, dim=-1, eps=1e-6)
            weight = functional.normalize(weight, dim=-1, eps=1e-6)
        return (feature * weight).sum(dim=-1)

    def logits(self, cosine_NL: Tensor) -> Tensor:
        """Logits (N, L) of the cosines."""
        return cosine_NL * self.log_scale.exp()

    def as_linear(self, length_L: Tensor) -> Tensor:
        """Weights (L, F) whose products with features of these lengths are the logits."""
        if not self.normalised:
            return self.weight
        return functional.normalize(self.weight, dim=-1) * (self.log_scale.exp() / length_L)[:, None]


class Output(NamedTuple):
    """What one forward pass gives.

    `feature_NLF` X, `cosine_NL` S, `logit_NL` scaled S, `score_NL` S' (None in phase 1), `map_NLHW` the labels' map
    logits (None with average pooling), `auxiliary` further logits (N, L) that learn the same labels and decide nothing.
    """

    feature_NLF: Tensor
    cosine_NL: Tensor
    logit_NL: Tensor
    score_NL: Tensor | None
    map_NLHW: Tensor | None
    auxiliary: tuple[Tensor, ...] = ()


class Network(nn.Module, ABC):
    """What training, evaluation and export ask of a method: the two-stage network's parts, or a rival's.

    Args:
        labels: L, at least one.
        config: the method and its widths.
    """

    def __init__(self, labels: int, config: NetworkConfig) -> None:
        super().__init__()
        if labels < 1:
            raise ValueError("the network needs at least one label")
        self.labels = labels
        self.config = config

    @abstractmethod
    def forward(
        self,
        pixel_NGPP: Tensor,
        *,
        reason: bool = True,
        group_N: Tensor | None = None,
        gather: Gather | None = None,
        parts: int = 1,
    ) -> Output:
        """One pass.

        Args:
            pixel_NGPP: grey pixels (N, 1, P, P) in [0, 255], any dtype.
            reason: run stage 2 as well (phase 2, evaluation), where there is one.
            group_N: screen of each patch, see `GraphReasoning.forward`.
            gather: where a batch is shared by several devices; relations are taken over the whole of it.
            parts: in so many the patches go through the trunk while it learns, see `in_parts`.
        """

    @abstractmethod
    def reason(self, feature_KLF: Tensor, cosine_KL: Tensor) -> Tensor:
        """Deciding scores (K, L), before the sigmoid, of patches that relate to each other."""

    @abstractmethod
    def features(self, pixel_NGPP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `features.onnx` gives: label features (N, L, F), cosines (N, L) and activation (N, L, H, W)."""

    @abstractmethod
    def components(self) -> dict[str, nn.Module]:
        """By name, in the order of the forward pass: for counting."""

    @abstractmethod
    def temper(self, temperature_L: Tensor) -> None:
        """Divide the deciding scores of each label by its temperature, for good: an export does."""

    def seen_tempered(self, seen: Output, temperature_L: Tensor) -> Output:
        """What stage 1 gave before `temper`, as it gives it after: the same where stage 2 alone is tempered."""
        return seen

    def begin_phase(self, phase: str, counts_LL: Tensor, length_L: Tensor | None = None) -> None:
        """Take what a phase starts from.

        Args:
            phase: its name.
            counts_LL: the co-occurrence counts M of its training set.
            length_L: mean length of each label's features there, where `scores_from` asks for it.
        """

    def end_step(self) -> None:
        """Bring weights back to where they may be, after a step that moved them."""

    def keep_stage1(self) -> None:
        """Let stage 1 stay as it is from now on while the network learns, its batch normalisation too."""


class Clustering(Network):
    """Stage 1, which decides where it is alone: what stage 2 is worth is measured against it.

    Trunk, category pooling and classifier 1. `channels` is 1, or 3 to count as the paper does.
    """

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
        gather: Gather | None = None,
        parts: int = 1,
    ) -> Output:
        """One pass, see `Network.forward`."""
        feature_NLF, cosine_NL, map_NLHW, _ = self.stage1(pixel_NGPP, parts=parts)
        seen = Output(feature_NLF, cosine_NL, self.classifier1.logits(cosine_NL), None, map_NLHW)
        return seen._replace(score_NL=self.scores(seen, group_N, gather)) if reason else seen

    def stage1(self, pixel_NGPP: Tensor, *, parts: int = 1) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Label features (N, L, F), cosines (N, L), the labels' map logits (N, L, H, W) if any, the trunk's map."""
        trunk_NDHW = in_parts(self.trunk, preprocess(pixel_NGPP, light=self.config.light), parts)
        feature_NLF, map_NLHW = self.pooling(trunk_NDHW)
        feature_NLF = feature_NLF.to(torch.promote_types(feature_NLF.dtype, torch.float32))
        return feature_NLF, self.classifier1(feature_NLF), map_NLHW, trunk_NDHW

    def scores(self, seen: Output, group_N: Tensor | None, gather: Gather | None) -> Tensor:
        """Deciding scores (N, L) of what stage 1 gave: its logits, with nothing to reason, to group or to gather."""
        return seen.logit_NL

    def reason(self, feature_KLF: Tensor, cosine_KL: Tensor) -> Tensor:
        """The scaled cosines."""
        logit_KL = self.classifier1.logits(cosine_KL)
        return logit_KL if self.temperature_L is None else logit_KL / self.temperature_L

    def features(self, pixel_NGPP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Label features, cosines and activation.

        With attention the activation is the map by which the features were pooled: a score depends on the trunk's map
        through it, so no linear part of a classifier says where the label was seen.
        """
        feature_NLF, cosine_NL, map_NLHW, trunk_NDHW = self.stage1(pixel_NGPP)
        return feature_NLF, cosine_NL, self.activation(trunk_NDHW) if map_NLHW is None else map_NLHW

    def components(self) -> dict[str, nn.Module]:
        """Trunk, category pooling, classifier 1."""
        return {"trunk": self.trunk, "category pooling": self.pooling, "classifier 1": self.classifier1}

    def temper(self, temperature_L: Tensor) -> None:
        """Divide the scaled cosines; the cosines themselves stay."""
        self.temperature_L = temperature_L

    def activation(self, trunk_NDHW: Tensor) -> Tensor:
        """Where each label's score comes from with average pooling, (N, L, H, W): the cosine's linear part."""
        linear_LFD = self.pooling.linear.weight.reshape(self.labels, self.config.feature_width, -1)
        weight_LD = (self.classifier1.weight[:, :, None] * linear_LFD).sum(dim=1)
        return functional.conv2d(trunk_NDHW, weight_LD[:, :, None, None])


class TwoStageNetwork(Clustering):
    """Patches in, label scores out; both stages."""

    def __init__(self, labels: int, config: NetworkConfig, *, channels: int = 1) -> None:
        super().__init__(labels, config, channels=channels)
        self.reasoning = GraphReasoning(labels, config)
        self._stage1_kept = False

    def keep_stage1(self) -> None:
        """See `Network.keep_stage1`."""
        self._stage1_kept = True
        for part in super().components().values():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As every module, but for what is kept."""
        super().train(mode)
        for part in super().components().values() if self._stage1_kept else ():
            part.eval()
        return self

    def scores(self, seen: Output, group_N: Tensor | None, gather: Gather | None) -> Tensor:
        """Scores S' (N, L) of what stage 1 gave."""
        feature_NLF, cosine_NL, logit_NL = seen.feature_NLF, seen.cosine_NL, seen.logit_NL
        relate_to = None if gather is None else (gather(feature_NLF), gather(cosine_NL), gather(logit_NL))
        with _in_float32(feature_NLF.device):  # as it is served
            score_NL: Tensor = self.reasoning(feature_NLF, cosine_NL, logit_NL, group_N, relate_to)
        return score_NL

    def reason(self, feature_KLF: Tensor, cosine_KL: Tensor) -> Tensor:
        """Scores S' (K, L) of the patches of one screen."""
        score_KL: Tensor = self.reasoning(feature_KLF, cosine_KL, self.classifier1.logits(cosine_KL))
        return score_KL

    @torch.no_grad()
    def begin_phase(self, phase: str, counts_LL: Tensor, length_L: Tensor | None = None) -> None:
        """Stage 2 starts from what stage 1 has learnt."""
        if phase != "phase2":
            return
        self.reasoning.start_from(self.classifier1.weight, counts_LL)
        if self.config.scores_from == "classifier1":
            if length_L is None:
                raise ValueError("network.scores_from = 'classifier1' needs the lengths of the features")
            length_L = length_L.to(self.classifier1.weight.device)
            weight_LF = self.classifier1.as_linear(length_L)
            self.reasoning.start_classifier(
                weight_LF * length_L[:, None] if self.reasoning.unit_features else weight_LF
            )

    @torch.no_grad()
    def end_step(self) -> None:
        """An edge that has turned negative is none, as which it has no gradient: from zero it may come back."""
        self.reasoning.edges.clamp_(min=0)

    def components(self) -> dict[str, nn.Module]:
        """Those of stage 1, and graph reasoning with the nodes that begin as classifier 1's."""
        return {**super().components(), "graph reasoning": self.reasoning}

    @torch.no_grad()
    def temper(self, temperature_L: Tensor) -> None:
        """Divide the scores S' of each label by its temperature: the weights of classifier 2, which has no bias."""
        self.reasoning.classifier.weight.div_(temperature_L[:, None])

    def activation(self, trunk_NDHW: Tensor) -> Tensor:
        """Where each label's score comes from with average pooling, (N, L, H, W), linear in the trunk's map.

        The part of classifier 2 that is linear in the trunk's map, its X columns times the pooling matrix, a 1 x 1
        convolution (the class activation map of Zhou et al. 2016 for this head).
        """
        columns = self.labels * self.config.feature_width
        weight_LD = self.reasoning.classifier.weight[:, :columns] @ self.pooling.linear.weight
        return functional.conv2d(trunk_NDHW, weight_LD[:, :, None, None])


def _in_float32(device: torch.device) -> AbstractContextManager[object]:
    """Nothing is cast to half precision; where there is nothing to compute, only to count, no cast is known."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def preprocess(pixel_NGPP: Tensor, *, light: Light = "linear") -> Tensor:
    """Grey [0, 255] to about [-1, 1], or its root in [0, 16]. A fixed scale: a dark frame stays dark.

    `root` makes shot noise, whose variance grows with the light, about the same at every grey level (the Anscombe
    transform without its constant), so that five grey levels count for more on a dark panel than on a bright one. It
    is not shifted nor scaled: the normalisation behind the stem does that, and costs nothing in a finished graph.
    SewerML and VGG-16 have none there; the first learns less from shifted light all the same (RESULTS.md).
    """
    if light == "root":
        return pixel_NGPP.float().sqrt()
    return (pixel_NGPP.float() - 128.0) / 128.0


def parameter_table(network: Network) -> list[tuple[str, int]]:
    """Parameters by part, in the order of the forward pass."""
    return [(name, sum(p.numel() for p in part.parameters())) for name, part in network.components().items()]


class FeaturesGraph(nn.Module):
    """What is exported as `features.onnx`: pixels to label features, cosines and activation maps."""

    TRUNK = "network.trunk"  # the part that other precisions are made of

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (N, 1, P, P) uint8 to label features (N, L, F), cosines (N, L) and activation (N, L, H, W)."""
        return self.network.features(pixels)


class ReasoningGraph(nn.Module):
    """What is exported as `reasoning.onnx`: the patches of one screen to probabilities."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, label_features: Tensor, stage1: Tensor) -> Tensor:
        """Label features (K, L, F) and cosines (K, L) to probabilities (K, L)."""
        return torch.sigmoid(self.network.reason(label_features, stage1))
