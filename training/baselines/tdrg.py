"""TDRG: structural and semantic relations within an image.

Zhao et al., "Transformer-based dual relation graph for multi-label image recognition", ICCV 2021.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.architecture import NetworkConfig
from training.baselines.one_stage import OneStage
from training.trunks import build_trunk, staged

HEADS = 4
LAYERS = 3
WARMEST = 0.05  # share of a map's cells whose mean is its score
SHARE_OF_TRANSFORMER = 0.7  # of the deciding score; the rest is the graph's
SLOPE = 0.2


class TDRG(OneStage):
    """Two branches over a trunk's map, which decide together; their own logits and a third's learn the same labels.

    Structural: the maps at strides 16, 32 and 64, mixed with each other, through one transformer encoder. Semantic: a
    node for each label, read from the map where the label's own map is warm and from the transformer's, joined by a
    correlation matrix that the image itself gives. `network.feature_width` is the width of both, 512 in the paper.
    The transformer takes no positions (their code makes them and passes none on), and its decoder has no layers. It
    relates the positions of one image, as the paper has it; in their code (github.com/iCVTEAM/TDRG) attention takes
    the first axis for the sequence, which is the batch. They clip gradients and let a pretrained trunk learn at a tenth
    of the rate; here nothing is clipped, and all learns at one rate. With ResNet-50 and 4 labels it has 48,730,700
    parameters for colour, the paper says 4.873e7; its products there are the trunk's alone.
    """

    def __init__(self, labels: int, config: NetworkConfig, *, channels: int = 1) -> None:
        super().__init__(labels, config)
        if config.feature_width % HEADS:
            wanted = f"a multiple of {HEADS}, the heads of its attention"
            raise ValueError(
                f"network.method = 'tdrg': network.feature_width must be {wanted}, not {config.feature_width}"
            )
        self.trunk, width = build_trunk(config.trunk, weights=config.trunk_weights, channels=channels)
        middle, d = staged(self.trunk).widths[2], config.feature_width
        self.to_16 = nn.Conv2d(middle, d, 1)
        self.to_32 = nn.Conv2d(width, d, 1)
        self.to_64 = nn.Conv2d(width, d, 3, stride=2)
        layer = nn.TransformerEncoderLayer(d, HEADS, 4 * d, dropout=0.0, activation="gelu", batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        for weight in self.transformer.parameters():
            if weight.dim() > 1:
                nn.init.xavier_uniform_(weight)
        self.structural = nn.Linear(3 * d, labels)

        self.label_map = nn.Conv2d(width, labels, 1, bias=False)
        self.to_nodes = nn.Conv2d(width, d, 1)
        self.guide_nodes = nn.Conv1d(d, d, 1)
        self.guide_edges = nn.Sequential(nn.Conv1d(3 * d, 3 * d, 1), nn.BatchNorm1d(3 * d), nn.LeakyReLU(SLOPE))
        self.edges = nn.Conv1d(5 * d, labels, 1)
        self.relate = nn.Conv1d(2 * d, 2 * d, 1)
        self.semantic = nn.Conv1d(2 * d, labels, 1)

    def see(self, x_NGPP: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits, the labels' own maps, and the logits of both branches and of those maps."""
        trunk = staged(self.trunk)
        middle = trunk.stage(2, trunk.stage(1, trunk.stage(0, x_NGPP)))
        last = trunk.stage(3, middle)
        tokens = [self._encode(x) for x in mixed(self.to_16(middle), self.to_32(last), self.to_64(last))]  # (N, D, S)
        structural_NL = self.structural(torch.cat([t.amax(dim=2) for t in tokens], dim=1))
        activation_NLHW = self.label_map(last)
        nodes_NDL = self._nodes(last, activation_NLHW, tokens[1].detach())
        edges_NLL = self._edges([t.detach() for t in tokens], nodes_NDL)
        related = functional.leaky_relu(nodes_NDL @ edges_NLL, SLOPE)
        graph_NDL = functional.leaky_relu(self.relate(related), SLOPE) + nodes_NDL
        semantic_NL = self.semantic(graph_NDL).diagonal(dim1=1, dim2=2)
        warmest = activation_NLHW.flatten(2)
        cells = max(1, round(WARMEST * warmest.shape[2]))
        own_NL = warmest.topk(cells, dim=2).values.mean(dim=2)
        logit_NL = SHARE_OF_TRANSFORMER * structural_NL + (1 - SHARE_OF_TRANSFORMER) * semantic_NL
        return logit_NL, activation_NLHW, (structural_NL, semantic_NL, own_NL)

    def _encode(self, map_NDHW: Tensor) -> Tensor:
        encoded: Tensor = self.transformer(map_NDHW.flatten(2).transpose(1, 2))
        return encoded.transpose(1, 2)

    def _nodes(self, last: Tensor, activation_NLHW: Tensor, tokens_NDS: Tensor) -> Tensor:
        """A node (2D) for each label: what the map and the transformer hold where the label's own map is warm."""
        where_NSL = torch.sigmoid(activation_NLHW.flatten(2)).transpose(1, 2)
        seen_NDL = self.to_nodes(last).flatten(2) @ where_NSL
        guided_NDL = self.guide_nodes((tokens_NDS @ where_NSL).detach())
        return torch.cat([seen_NDL, guided_NDL], dim=1)

    def _edges(self, tokens: list[Tensor], nodes_NDL: Tensor) -> Tensor:
        """How much each label has to do with each other in this image, (N, L, L)."""
        guide = self.guide_edges(torch.cat([t.mean(dim=2, keepdim=True) for t in tokens], dim=1))
        return torch.sigmoid(self.edges(torch.cat([guide.expand(-1, -1, self.labels), nodes_NDL], dim=1)))

    def components(self) -> dict[str, nn.Module]:
        """Trunk, transformer with what leads into it and out of it, graph."""
        structural = [self.to_16, self.to_32, self.to_64, self.transformer, self.structural]
        semantic = [self.label_map, self.to_nodes, self.guide_nodes, self.guide_edges, self.edges, self.relate]
        return {
            "trunk": self.trunk,
            "structural relations": nn.ModuleList(structural),
            "semantic relations": nn.ModuleList([*semantic, self.semantic]),
        }


def mixed(*maps: Tensor) -> list[Tensor]:
    """Maps (N, D, h, w) of several scales, each with the product of all of them added, at the largest scale."""
    largest = max(maps, key=lambda x: x.shape[-1]).shape[-2:]
    large = [_resized(x, largest) for x in maps]
    product = torch.stack(large).prod(dim=0)
    return [_resized(x + product, own.shape[-2:]) for x, own in zip(large, maps, strict=True)]


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return functional.interpolate(x, size=list(size), mode="bilinear", align_corners=True)
