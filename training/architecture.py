"""What a network is: its method, its trunk and its widths. Knows nothing of how it is built."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

Pooling = Literal["average", "max", "attention"]
Light = Literal["linear", "root"]
Activation = Literal["relu", "leaky_relu", "tanh"]
Method = Literal["two_stage", "feature_clustering", "plain", "kssnet", "tdrg", "sewerml"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """What the network is. The defaults are the paper's.

    Raises:
        ValueError: a width or the scale is not positive or not finite, or what is to be chosen is unknown.
    """

    method: Method = "two_stage"  # or a rival, see `training.baselines`
    trunk: str = "resnet50"
    trunk_weights: str | None = None  # a torchvision weights name, e.g. "IMAGENET1K_V2"
    light: Light = "linear"  # "root": square root of the grey level, see `preprocess`
    pooling: Pooling = "average"  # "attention": each label looks where its own map is warm, see `CategoryPooling`
    feature_width: int = 512  # d
    projection_width: int = 512  # of Z; the paper does not give it
    relation_width: int = 256  # r; the paper does not give it
    relation_activation: Activation = "relu"  # Fa of Eq. 7; the paper does not name it
    classifier: Literal["cosine", "dot"] = "cosine"  # classifier 1; "dot" is linear, without norms and scale
    cosine_scale: float = 10.0  # start of the learnt scale on the cosine; see learn_scale
    learn_scale: bool = True  # False with cosine_scale = 1 is the paper's bare cosine
    relation_scores: Literal["bare", "scaled"] = "bare"  # which S enters the softmax of Eq. 6
    relate_to: Literal["patches", "itself", "bank"] = "patches"  # the others are ours, see `GraphReasoning`
    bank: int = 64  # entries that relate_to = "bank" learns
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

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(f"network.method must be one of {', '.join(get_args(Method))}, not {self.method!r}")
        for name in ("feature_width", "projection_width", "relation_width", "cosine_scale", "bank"):
            if getattr(self, name) <= 0:
                raise ValueError(f"network.{name} must be positive, not {getattr(self, name)}")
        if not math.isfinite(self.cosine_scale):
            raise ValueError(f"network.cosine_scale must be finite, not {self.cosine_scale}")
        if self.pooling not in get_args(Pooling):
            raise ValueError(f"network.pooling must be one of {', '.join(get_args(Pooling))}, not {self.pooling!r}")
        if self.light not in ("linear", "root"):
            raise ValueError(f"network.light must be 'linear' or 'root', not {self.light!r}")
        if self.classifier not in ("cosine", "dot"):
            raise ValueError(f"network.classifier must be 'cosine' or 'dot', not {self.classifier!r}")
        if self.relate_to not in ("patches", "itself", "bank"):
            raise ValueError(f"network.relate_to must be 'patches', 'itself' or 'bank', not {self.relate_to!r}")
        if self.relation_similarity not in ("dot", "cosine"):
            raise ValueError(f"network.relation_similarity must be 'dot' or 'cosine', not {self.relation_similarity!r}")
        if self.reasoned_features not in ("raw", "unit"):
            raise ValueError(f"network.reasoned_features must be 'raw' or 'unit', not {self.reasoned_features!r}")
        if self.relation_activation not in get_args(Activation):
            known = ", ".join(get_args(Activation))
            raise ValueError(f"network.relation_activation must be one of {known}, not {self.relation_activation!r}")
        if self.scores_from not in ("random", "classifier1"):
            raise ValueError(f"network.scores_from must be 'random' or 'classifier1', not {self.scores_from!r}")
        if self.relation_scores not in ("bare", "scaled"):
            raise ValueError(f"network.relation_scores must be 'bare' or 'scaled', not {self.relation_scores!r}")
