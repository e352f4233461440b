"""KSSNet, TDRG and the Sewer-ML network against what their papers say, written out with the network's own weights."""

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from tests.training.data_form import write_toy
from tests.training.test_baselines import patches, rival
from training.baselines.kssnet import KSSNet
from training.baselines.sewerml import SewerML
from training.baselines.tdrg import TDRG, mixed
from training.config import read_config
from training.datasets import Batch
from training.fit import Run
from training.network import Output, preprocess
from training.trunks import staged

COUNTS = torch.tensor([[5.0, 2, 1], [2, 6, 0], [1, 0, 3]])


def linear(layer: nn.Module, x_DK: Tensor) -> Tensor:
    """A convolution over single positions as the product that it is: (D', K) of (D, K)."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    weight = layer.weight.flatten(1)
    bias = 0 if layer.bias is None else layer.bias[:, None]
    return weight @ x_DK + bias


def test_label_embeddings_flow_into_every_stage_but_the_last_and_score_the_map() -> None:
    network = rival("kssnet")
    assert isinstance(network, KSSNet)
    network.begin_phase("phase1", COUNTS)
    pixels = patches(2)
    trunk, embeddings = staged(network.trunk), [torch.tanh(e) for e in network.embeddings()]
    x = preprocess(pixels, light=network.config.light)
    for number, lateral in enumerate(network.lateral):
        x = trunk.stage(number, x)
        height, width = x.shape[2:]
        laid = torch.stack([linear(lateral, embeddings[number] @ image.flatten(1)) for image in x])
        x = x + laid.reshape(len(x), -1, height, width)
    map_NDHW = trunk.stage(len(network.lateral), x)
    mean_ND = torch.stack([image.flatten(1).sum(dim=1) / image[0].numel() for image in map_NDHW])
    expected = mean_ND @ embeddings[-1].T + mean_ND @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(pixels).logit_NL, expected, atol=1e-4, rtol=1e-4)
    assert (mean_ND @ embeddings[-1].T).abs().min() > 0


def test_both_branches_of_tdrg_are_the_ones_written_out() -> None:
    network = rival("tdrg")
    assert isinstance(network, TDRG)
    pixels = patches(2)
    output = network(pixels)
    structural, semantic, own = output.auxiliary
    torch.testing.assert_close(output.logit_NL, 0.7 * structural + 0.3 * semantic)

    trunk = staged(network.trunk)
    middle = trunk.stage(2, trunk.stage(1, trunk.stage(0, preprocess(pixels, light=network.config.light))))
    last = trunk.stage(3, middle)
    scales = mixed(network.to_16(middle), network.to_32(last), network.to_64(last))
    for n in range(len(pixels)):
        tokens = [network.transformer(scale[n].flatten(1).T[None])[0].T for scale in scales]  # (D, S) of each
        largest = torch.cat([t.max(dim=1).values for t in tokens])
        torch.testing.assert_close(structural[n], network.structural(largest), atol=1e-4, rtol=1e-4)

        seen = last[n].flatten(1)
        activation = linear(network.label_map, seen)
        warm = 1 / (1 + torch.exp(-activation))
        for label in range(3):
            count = max(1, round(0.05 * activation.shape[1]))
            highest = torch.sort(activation[label], descending=True).values[:count].mean()
            torch.testing.assert_close(own[n, label], highest, atol=1e-4, rtol=1e-4)
        nodes = torch.cat(
            [
                linear(network.to_nodes, seen) @ warm.T,
                linear(network.guide_nodes, tokens[1] @ warm.T),
            ]
        )
        convolution, norm, _ = network.guide_edges
        assert isinstance(norm, nn.BatchNorm1d)
        guide = linear(convolution, torch.cat([t.mean(dim=1) for t in tokens])[:, None])
        guide = functional.leaky_relu(norm(guide.T).T, 0.2)
        edges = torch.sigmoid(linear(network.edges, torch.cat([guide.expand(-1, 3), nodes])))
        related = functional.leaky_relu(nodes @ edges, 0.2)
        graph = functional.leaky_relu(linear(network.relate, related), 0.2) + nodes
        scores = linear(network.semantic, graph)
        expected = torch.stack([scores[label, label] for label in range(3)])
        torch.testing.assert_close(semantic[n], expected, atol=1e-4, rtol=1e-4)


def test_the_small_network_forgets_three_in_five_while_it_learns() -> None:
    network = rival("sewerml")
    assert isinstance(network, SewerML)
    assert [layer.p for layer in network.classifier if isinstance(layer, nn.Dropout)] == [0.6, 0.6]
    pixels = patches(2)
    torch.testing.assert_close(network(pixels).logit_NL, network(pixels).logit_NL)
    network.train()
    assert (network(pixels).logit_NL - network(pixels).logit_NL).abs().max() > 0


def test_logits_that_decide_nothing_learn_the_labels_too(tmp_path: Path) -> None:
    toml = write_toy(tmp_path, screens=10)
    of_rival = ["run=rival", "network.method=tdrg", "network.pooling=average", "loss.contrast=0", "loss.map=0"]
    run = Run(read_config(toml, [*of_rival, "phase2.epochs=0"]), Fabric(accelerator="cpu", devices=1))
    logit = torch.tensor([[0.5, -1.0]])
    target = torch.tensor([[1, 0]], dtype=torch.int8)
    output = Output(logit[:, :, None], logit, logit, None, None, (logit + 1, logit - 2))
    none = torch.zeros(1, dtype=torch.int64)
    batch = Batch(pixels=none, labels=target, maps=none, screens=none, indices=none)
    losses = run._losses(lambda *_, **__: output, batch, "phase1")
    expected = sum(
        functional.binary_cross_entropy_with_logits(x, target.float()) for x in (logit, logit + 1, logit - 2)
    )
    assert losses.keys() == {"bce"}
    torch.testing.assert_close(losses["bce"], expected)
