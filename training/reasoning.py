"""Stage 2 of the two-stage network, graph reasoning: label graph, image relations, classifier 2.

Shape suffixes: N patches, M patches to relate to, L labels, F label-feature width (the paper's d), Z projection width,
R relation width (the paper's r).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.architecture import Activation, NetworkConfig

RELATION_SCALE = 10.0  # of cosines between patches, before their softmax
# Fa of Eq. 7; the slope is that of the rivals' label graphs, KSSNet's and TDRG's
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": partial(functional.leaky_relu, negative_slope=0.2),
    "tanh": torch.tanh,
}


class GraphReasoning(nn.Module):
    """Label graph (Eq. 3), image relations (Eqs. 4-6), enhanced features (Eq. 7) and classifier 2.

    A patch relates to the patches beside it, as in the paper; or to itself alone, so that R is the identity; or to a
    bank of learnt entries that stand in for other patches, so that a score depends on no other patch of the screen.

    A softmax over the dot products Z_i Z_k is nearly one-hot once their norms are large, on the patch with the longest
    Z and the same for every i: the graph's part is then an offset. `relation_similarity = "cosine"` takes norms away.

    Eq. 7 puts X beside the relations' features, which are hundreds of times shorter than an X that comes from maxima of
    a trunk's map: whatever classifier 2 learns, it learns of X first. `reasoned_features = "unit"` gives each label's
    feature unit length before Eqs. 4 and 7, as classifier 1 does.
    """

    def __init__(self, labels: int, config: NetworkConfig) -> None:
        super().__init__()
        width = config.feature_width
        self.scaled_scores = config.relation_scores == "scaled"
        self.symmetric = config.symmetric
        self.normalise_nodes = config.normalise_nodes
        self.activation = ACTIVATIONS[config.relation_activation]
        self.nodes = nn.Parameter(torch.randn(labels, width) * width**-0.5)
        self.edges = nn.Parameter(torch.eye(labels))
        self.relate_to = config.relate_to
        self.unit_features = config.reasoned_features == "unit"
        self.cosine_relations = config.relation_similarity == "cosine"
        if config.relate_to != "itself":
            self.projection = nn.Linear(labels * width, config.projection_width)
        if config.relate_to == "bank":
            self.bank_key = nn.Parameter(torch.randn(config.bank, config.projection_width) * width**-0.5)
            self.bank_score = nn.Parameter(torch.zeros(config.bank, labels))
        self.relation = nn.Linear(width, config.relation_width, bias=False)  # W_RN
        self.classifier = nn.Linear(labels * width + config.relation_width, labels, bias=False)

    @torch.no_grad()
    def start_from(self, weight_LF: Tensor, counts_LL: Tensor) -> None:
        """Start nodes from classifier 1's weights and edges from co-occurrence counts.

        Args:
            weight_LF: raw weights of the trained classifier 1, which become the nodes.
            counts_LL: co-occurrence counts M of the training set, the diagonal counting the label itself; an empty
                row becomes the identity's.
        """
        total = counts_LL.sum(dim=1, keepdim=True)
        edges = torch.where(total > 0, counts_LL / total.clamp_min(1), torch.eye(len(counts_LL)))
        self.edges.copy_(edges)
        self.nodes.copy_(functional.normalize(weight_LF, dim=-1) if self.normalise_nodes else weight_LF)

    @torch.no_grad()
    def start_classifier(self, weight_LF: Tensor) -> None:
        """Start classifier 2 as one that tells each label by its own feature X alone, as classifier 1 does."""
        own_LLF = torch.eye(len(weight_LF), device=weight_LF.device)[:, :, None] * weight_LF
        self.classifier.weight.zero_()
        self.classifier.weight[:, : weight_LF.numel()] = own_LLF.flatten(1)

    def forward(
        self,
        feature_NLF: Tensor,
        cosine_NL: Tensor,
        logit_NL: Tensor,
        group_N: Tensor | None = None,
        everything: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Scores S' (N, L) before the sigmoid.

        Args:
            feature_NLF: label features X.
            cosine_NL: stage-1 cosines S.
            logit_NL: the scaled cosines, used in Eq. 6 where the configuration says so.
            group_N: screen of each patch; patches of different screens do not relate. None: all of them do.
            everything: features, cosines and logits of all M patches to relate to, where these N are only one
                device's share of the batch.
        """
        feature_MLF, cosine_ML, score_ML = everything or (feature_NLF, cosine_NL, logit_NL)
        if self.unit_features:
            feature_NLF, feature_MLF = (functional.normalize(x, dim=-1) for x in (feature_NLF, feature_MLF))
        to_label_NL = self._to_labels(feature_NLF, (feature_MLF, cosine_ML, score_ML), group_N)

        # those of earlier versions may be negative; a zero is learnt from, as a clamp's bound in some of PyTorch is not
        edges_LL = torch.where(self.edges < 0, 0.0, self.edges)
        if self.symmetric:
            edges_LL = (edges_LL + edges_LL.T) / 2
        degree_L = edges_LL.sum(dim=1).clamp_min(1e-6).rsqrt()
        nodes_LF = (degree_L[:, None] * edges_LL * degree_L[None, :]) @ self.nodes
        reasoned_NR = self.activation(self.relation(to_label_NL @ nodes_LF))
        score_NL: Tensor = self.classifier(torch.cat([feature_NLF.flatten(1), reasoned_NR], dim=1))
        return score_NL

    def _projected(self, feature_NLF: Tensor) -> Tensor:
        """Z (N, Z); for cosines of unit length times a root of their scale."""
        projected_NZ: Tensor = self.projection(feature_NLF.flatten(1))
        if self.cosine_relations:
            projected_NZ = functional.normalize(projected_NZ, dim=-1) * math.sqrt(RELATION_SCALE)
        return projected_NZ

    def _to_labels(
        self, feature_NLF: Tensor, everything: tuple[Tensor, Tensor, Tensor], group_N: Tensor | None
    ) -> Tensor:
        """R' of Eq. 6, (N, L)."""
        feature_MLF, cosine_ML, logit_ML = everything
        score_ML = logit_ML if self.scaled_scores else cosine_ML
        if self.relate_to == "itself":
            return torch.softmax(score_ML, dim=-1)
        projected_NZ = self._projected(feature_NLF)
        if self.relate_to == "bank":
            return torch.softmax(projected_NZ @ self.bank_key.T, dim=-1) @ torch.softmax(self.bank_score, dim=-1)
        similarity_NM = projected_NZ @ self._projected(feature_MLF).T
        if group_N is not None:
            foreign = group_N[:, None] != group_N[None, :]
            similarity_NM = similarity_NM.masked_fill(foreign, float("-inf"))
        return torch.softmax(similarity_NM, dim=-1) @ torch.softmax(score_ML, dim=-1)
