"""Small two-stage networks of random weights, and patches for them."""

import torch
from torch import Tensor, nn

from training.architecture import NetworkConfig
from training.network import TwoStageNetwork
from training.reasoning import GraphReasoning

LABELS = 3
SMALL = {"trunk": "light", "feature_width": 8, "projection_width": 8, "relation_width": 8}


def small_network(labels: int = LABELS, /, **changes: object) -> TwoStageNetwork:
    """As it is made: its trunk gives all patches about the same, and relations add less to a score than a tolerance."""
    torch.manual_seed(0)
    return TwoStageNetwork(labels, NetworkConfig(**{**SMALL, **changes})).eval()  # type: ignore[arg-type]


def heard_network(labels: int = LABELS, /, **changes: object) -> TwoStageNetwork:
    """Patches look unlike to it, and what others show counts for about as much in a score as what is seen."""
    network = small_network(labels, **changes)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(patches(32))
        mean_LF = network(patches(32), reason=False).feature_NLF.mean(dim=0)
        network.pooling.linear.bias.sub_(mean_LF.flatten())  # what all patches show says nothing
    for norm in norms:
        norm.momentum = 0.1
    make_heard(network.reasoning)
    return network.eval()


def heard_stage(labels: int = LABELS, /, **changes: object) -> GraphReasoning:
    """Stage 2 alone, of which the same holds for features and cosines that are about 1."""
    torch.manual_seed(0)
    stage = GraphReasoning(labels, NetworkConfig(**{**SMALL, **changes}))  # type: ignore[arg-type]
    make_heard(stage)
    return stage


def make_heard(stage: GraphReasoning) -> None:
    """Give it weights with which relations count."""
    nn.init.normal_(stage.nodes)
    nn.init.normal_(stage.relation.weight)
    nn.init.normal_(stage.classifier.weight)
    with torch.no_grad():
        stage.classifier.weight[:, : -stage.relation.out_features].mul_(0.3)
        stage.edges.add_(0.3)
        if hasattr(stage, "projection"):
            stage.projection.weight.mul_(0.5)  # so that no patch hears itself alone


def patches(count: int, *, side: int = 64) -> Tensor:
    """Noise, (N, 1, P, P) uint8."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8)
