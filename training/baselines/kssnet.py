"""KSSNet: a graph of the labels laid over the trunk.

Wang et al., "Multi-label classification with label graph superimposing", AAAI 2020.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.architecture import NetworkConfig
from training.baselines.one_stage import OneStage
from training.pooling import pooled
from training.trunks import build_trunk, staged

RARE = 0.03  # a conditional frequency below it is no edge
NEIGHBOURS = 0.4  # weight of the frequencies beside that of the label itself, before normalisation
SLOPE = 0.2  # of the leaky ReLU between graph convolutions


class KSSNet(OneStage):
    """Label embeddings by graph convolution, which flow into the trunk and classify what leaves it.

    After each of the first three stages E (L, D) of that width is laid over the map by a lateral connection,
    x + conv(tanh(E) x), and the last E, of the trunk's width, scores the pooled map beside a linear classifier. There
    are no word vectors and no knowledge graph of defects on screens: the labels begin as unit vectors, and the graph
    is that of their co-occurrence in the training part, superimposed on each label itself. With ResNet-50 and 4 labels
    it has 26,280,772 parameters for colour, the paper says 2.627e7.

    Left out of the authors' code (github.com/mathkey/mssnet): dropout of a half before both classifiers, and weights
    of the graph convolutions as a product of two factors. The graph that they keep, of another data set, looks as if it
    was normalised before rare pairs were dropped and neighbours given their share; here it is normalised last.
    Their training is no part of the network: they clip gradients at a norm of 10 and learn with Adam; here nothing is
    clipped, and the optimiser is the configuration's.
    """

    graph: Tensor

    def __init__(self, labels: int, config: NetworkConfig, *, channels: int = 1) -> None:
        super().__init__(labels, config)
        self.trunk, width = build_trunk(config.trunk, weights=config.trunk_weights, channels=channels)
        widths = staged(self.trunk).widths
        self.convolutions = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((labels, *widths)))
        self.lateral = nn.ModuleList(nn.Conv2d(labels, w, 1, bias=False) for w in widths[:-1])
        self.classifier = nn.Linear(width, labels)
        self.register_buffer("graph", torch.eye(labels))

    def begin_phase(self, phase: str, counts_LL: Tensor, length_L: Tensor | None = None) -> None:
        """Make the graph of the training part."""
        if phase == "phase1":
            self.graph.copy_(label_graph(counts_LL))

    def embeddings(self) -> list[Tensor]:
        """Label embeddings E (L, D) of the width of each stage of the trunk, before their nonlinearity."""
        found = []
        x_LD = torch.eye(self.labels, device=self.graph.device)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Linear)
            raw_LD = self.graph @ functional.linear(x_LD, convolution.weight) + convolution.bias
            found.append(raw_LD)
            x_LD = functional.leaky_relu(raw_LD, SLOPE)
        return found

    def see(self, x_NGPP: Tensor, parts: int = 1) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Logits and the map that they are the mean of, but for the bias and with average pooling."""
        trunk, embeddings = staged(self.trunk), [e.tanh() for e in self.embeddings()]
        x = x_NGPP
        for number, lateral in enumerate(self.lateral):
            x = trunk.stage(number, x)
            x = x + lateral(functional.conv2d(x, embeddings[number][:, :, None, None]))
        map_NDHW = trunk.stage(len(self.lateral), x)
        weight_LD = embeddings[-1] + self.classifier.weight
        activation_NLHW = functional.conv2d(map_NDHW, weight_LD[:, :, None, None])
        logit_NL = pooled(map_NDHW, self.config.pooling) @ weight_LD.T + self.classifier.bias
        return logit_NL, activation_NLHW, ()

    def components(self) -> dict[str, nn.Module]:
        """Trunk, graph convolutions, lateral connections, classifier."""
        return {
            "trunk": self.trunk,
            "graph convolutions": self.convolutions,
            "lateral connections": self.lateral,
            "classifier": self.classifier,
        }


def label_graph(counts_LL: Tensor) -> Tensor:
    """Counts of pairs M (L, L), the diagonal counting the label itself, to the normalised graph (L, L).

    How often j is there where i is; rare pairs are no edges; a share of the neighbours beside the label itself; then
    D^-1/2 A D^-1/2.
    """
    frequency_LL = counts_LL / counts_LL.diagonal()[:, None].clamp_min(1)
    frequency_LL = torch.where(frequency_LL < RARE, 0.0, frequency_LL)
    mixed_LL = NEIGHBOURS * frequency_LL + (1 - NEIGHBOURS) * torch.eye(len(counts_LL))
    degree_L = mixed_LL.sum(dim=0).rsqrt()
    return degree_L[:, None] * mixed_LL * degree_L[None, :]
