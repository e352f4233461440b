"""KSSNet, TDRG and the Sewer-ML network against what their papers say, written out with the network's own weights."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
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
from training.network import Network, Output, preprocess
from training.trunks import staged

COUNTS = torch.tensor([[5.0, 2, 1], [2, 6, 0], [1, 0, 3]])


@pytest.fixture
def double() -> Iterator[None]:
    """What is made meanwhile is float64, and computed by one thread: several take longer for so little."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


def light_of(pixels: Tensor, network: Network) -> Tensor:
    """What a trunk takes, in float64."""
    return preprocess(pixels, light=network.config.light).double()


def gradients(logit_NL: Tensor, network: Network) -> dict[str, Tensor]:
    """Of a sum of logits, each with a weight of its own, by every parameter; 0 where it has no say."""
    weight_NL = torch.arange(1.0, 1 + logit_NL.numel()).reshape(logit_NL.shape)
    names, parameters = zip(*network.named_parameters(), strict=True)
    loss = (weight_NL * logit_NL).sum()
    return dict(
        zip(names, torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True), strict=True)
    )


def check_equal(found: Tensor, expected: Tensor, network: Network) -> None:
    """The same logits and the same gradient by every parameter, in double precision."""
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(gradients(found, network), gradients(expected, network), atol=1e-9, rtol=1e-9)


def linear(layer: nn.Module, x_DK: Tensor) -> Tensor:
    """A convolution over single positions as the product that it is: (D', K) of (D, K)."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    weight = layer.weight.flatten(1)
    bias = 0 if layer.bias is None else layer.bias[:, None]
    return weight @ x_DK + bias


@pytest.mark.usefixtures("double")
def test_label_embeddings_flow_into_every_stage_but_the_last_and_score_the_map() -> None:
    network = rival("kssnet")
    assert isinstance(network, KSSNet)
    network.begin_phase("phase1", COUNTS)
    x = light = light_of(patches(2), network)
    trunk, embeddings = staged(network.trunk), [torch.tanh(e) for e in network.embeddings()]
    for number, lateral in enumerate(network.lateral):
        x = trunk.stage(number, x)
        height, width = x.shape[2:]
        laid = torch.stack([linear(lateral, embeddings[number] @ image.flatten(1)) for image in x])
        x = x + laid.reshape(len(x), -1, height, width)
    map_NDHW = trunk.stage(len(network.lateral), x)
    mean_ND = torch.stack([image.flatten(1).sum(dim=1) / image[0].numel() for image in map_NDHW])
    expected = mean_ND @ embeddings[-1].T + mean_ND @ network.classifier.weight.T + network.classifier.bias
    check_equal(network.see(light)[0], expected, network)
    assert (mean_ND @ embeddings[-1].T).abs().min() > 0
    graph = (*network.convolutions.parameters(), *network.lateral.parameters(), *network.classifier.parameters())
    assert torch.autograd.gradcheck(lambda *_: network.see(light[:1, :, :32, :32])[0], graph, fast_mode=True)


@pytest.mark.usefixtures("double")
def test_both_branches_of_tdrg_are_the_ones_written_out() -> None:
    """With what they learn: the transformer guides the graph and learns nothing from it."""
    network = rival("tdrg")
    assert isinstance(network, TDRG)
    light = light_of(patches(2), network)
    logit_NL, _, (structural, semantic, own) = network.see(light)
    torch.testing.assert_close(logit_NL, 0.7 * structural + 0.3 * semantic)

    trunk, expected = staged(network.trunk), torch.zeros(3, 2, 3)  # of each branch, patch and label
    middle = trunk.stage(2, trunk.stage(1, trunk.stage(0, light)))
    last = trunk.stage(3, middle)
    scales = mixed(network.to_16(middle), network.to_32(last), network.to_64(last))
    for n in range(len(light)):
        tokens = [network.transformer(scale[n].flatten(1).T[None])[0].T for scale in scales]  # (D, S) of each
        largest = torch.cat([t.max(dim=1).values for t in tokens])
        expected[0, n] = network.structural(largest)
        tokens = [t.detach() for t in tokens]

        seen = last[n].flatten(1)
        activation = linear(network.label_map, seen)
        warm = 1 / (1 + torch.exp(-activation))
        for label in range(3):
            count = max(1, round(0.05 * activation.shape[1]))
            expected[2, n, label] = torch.sort(activation[label], descending=True).values[:count].mean()
        nodes = torch.cat(
            [
                linear(network.to_nodes, seen) @ warm.T,
                linear(network.guide_nodes, tokens[1] @ warm.detach().T),
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
        expected[1, n] = torch.stack([scores[label, label] for label in range(3)])
    for found, written_out in zip((structural, semantic, own), expected, strict=True):
        check_equal(found, written_out, network)


@pytest.mark.usefixtures("double")
def test_the_branches_of_tdrg_have_the_gradients_of_their_differences() -> None:
    """The graph by its own weights: what guides it is taken as it is."""
    network = rival("tdrg")
    assert isinstance(network, TDRG)
    light = light_of(patches(1, side=96), network)

    def learnt(*parts: nn.Module) -> tuple[nn.Parameter, ...]:
        return tuple(parameter for part in parts for parameter in part.parameters())

    structural = learnt(network.to_16, network.to_32, network.to_64, network.structural)
    semantic = learnt(network.to_nodes, network.guide_nodes, network.guide_edges, network.edges, network.semantic)
    for branch, weights in enumerate((structural, semantic, learnt(network.label_map))):
        found = partial(_branch, network, light, branch)
        assert torch.autograd.gradcheck(found, weights, fast_mode=True)


def _branch(network: TDRG, light: Tensor, branch: int, *_: Tensor) -> Tensor:
    """Of weights that are the network's own."""
    return network.see(light)[2][branch]


@pytest.mark.usefixtures("double")
def test_the_graph_of_tdrg_teaches_the_trunk_and_the_maps_by_what_it_sees_and_the_transformer_nothing() -> None:
    network = rival("tdrg")
    assert isinstance(network, TDRG)
    light = light_of(patches(2), network)

    def taught() -> set[str]:
        found = gradients(network.see(light)[2][1], network)
        return {name.partition(".")[0] for name, gradient in found.items() if gradient.abs().max() > 0}

    graph = {"to_nodes", "guide_nodes", "guide_edges", "edges", "relate", "semantic"}
    assert taught() == {"trunk", "label_map", *graph}
    nn.init.zeros_(network.to_nodes.weight)  # what is left is the transformer's guidance
    assert network.to_nodes.bias is not None
    nn.init.zeros_(network.to_nodes.bias)
    assert taught() == graph


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
