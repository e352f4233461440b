"""What a network is: its method, its trunk and its widths. Knows nothing of how it is built."""

from typing import Literal

from pydantic import ConfigDict, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

Pooling = Literal["average", "max", "attention"]
Light = Literal["linear", "root"]
Activation = Literal["relu", "leaky_relu", "tanh"]
Method = Literal["two_stage", "feature_clustering", "plain", "kssnet", "tdrg", "sewerml"]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class NetworkConfig:
    """What the network is. The defaults are the paper's.

    Raises:
        ValueError: a width or the scale is not positive or not finite, or what is chosen is unknown.
    """

    method: Method = "two_stage"  # or a rival, see `training.baselines`
    trunk: str = "resnet50"
    trunk_weights: str | None = None  # a torchvision weights name, e.g. "IMAGENET1K_V2"
    light: Light = "linear"  # "root": square root of the grey level, see `preprocess`
    pooling: Pooling = "average"  # "attention": each label looks where its own map is warm, see `CategoryPooling`
    feature_width: PositiveInt = 512  # d
    projection_width: PositiveInt = 512  # of Z; the paper does not give it
    relation_width: PositiveInt = 256  # r; the paper does not give it
    relation_activation: Activation = "relu"  # Fa of Eq. 7; the paper does not name it
    classifier: Literal["cosine", "dot"] = "cosine"  # classifier 1; "dot" is linear, without norms and scale
    cosine_scale: PositiveFloat = 10.0  # start of the learnt scale on the cosine; see learn_scale
    learn_scale: bool = True  # False with cosine_scale = 1 is the paper's bare cosine
    relation_scores: Literal["bare", "scaled"] = "bare"  # which S enters the softmax of Eq. 6
    relate_to: Literal["patches", "itself", "bank"] = "patches"  # the others are ours, see `GraphReasoning`
    bank: PositiveInt = 64  # entries that relate_to = "bank" learns
    relation_similarity: Literal["dot", "cosine"] = "dot"  # of Eq. 5; "cosine" is ours, see `GraphReasoning`
    reasoned_features: Literal["raw", "unit"] = "raw"  # X in Eqs. 4 and 7; "unit" is ours, see `GraphReasoning`
    symmetric: bool = False  # average E with its transpose, as an undirected graph would have it
    normalise_nodes: bool = False  # unit nodes at the start of stage 2
    # what classifier 2 begins as, which the paper does not tell: random, it has to learn anew what classifier 1 knows
    scores_from: Literal["random", "classifier1"] = "random"

    @property
    def stages(self) -> int:
        """How many phases of training the method has."""
        return 2 if self.method == "two_stage" else 1

    @property
    def trunk_name(self) -> str:
        """What a record calls the trunk."""
        return "its own" if self.method == "sewerml" else self.trunk

    @property
    def has_label_features(self) -> bool:
        """Whether there are label features, which the contrast is taken over."""
        return self.method in ("two_stage", "feature_clustering")

    @property
    def has_label_maps(self) -> bool:
        """Whether each label has a map of its own that can be taught."""
        return self.has_label_features and self.pooling == "attention"
