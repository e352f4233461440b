import copy

import pytest
import torch
from torch import Tensor, nn

from tests.training.small import heard_network
from training.losses import supervised_contrast
from training.network import TwoStageNetwork
from training.parts import in_parts
from training.trunks import LightTrunk

PATCHES = 6


@pytest.fixture
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (PATCHES, 1, 64, 64), generator=generator, dtype=torch.uint8)


def network(*, frozen: bool) -> TwoStageNetwork:
    return heard_network().train(not frozen)


def gradient(made: TwoStageNetwork, pixels: Tensor, *, parts: int, reason: bool) -> dict[str, Tensor]:
    """Of contrast and scores, which need all patches together."""
    output = made(pixels, reason=reason, parts=parts)
    target = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]])
    loss = supervised_contrast(output.feature_NLF, target) + output.logit_NL.square().mean()
    if output.score_NL is not None:
        loss = loss + output.score_NL.square().mean()
    loss.backward()
    return {key: p.grad for key, p in made.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4, 9])  # into which six patches go evenly, unevenly, and not
@pytest.mark.parametrize("reason", [False, True])
def test_the_gradient_is_that_of_the_whole_batch(pixels: Tensor, parts: int, reason: bool) -> None:
    whole = gradient(network(frozen=True), pixels, parts=1, reason=reason)
    found = gradient(network(frozen=True), pixels, parts=parts, reason=reason)
    assert found.keys() == whole.keys()
    for key, expected in whole.items():
        apart = (found[key] - expected).abs().max() / expected.abs().max().clamp_min(1e-3)
        assert apart < 1e-4, key


def test_running_statistics_are_taken_once_of_each_part(pixels: Tensor) -> None:
    made = network(frozen=False)
    expected = copy.deepcopy(made)
    gradient(made, pixels, parts=2, reason=False)
    for half in pixels.chunk(2):
        expected(half, reason=False)
    for (key, found), value in zip(made.named_buffers(), expected.buffers(), strict=True):
        if found.is_floating_point():
            assert torch.equal(found, value), key
    norms = [norm for norm in made.modules() if isinstance(norm, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.1}  # they learn on


def test_a_part_forgets_what_lies_between(pixels: Tensor) -> None:
    """What is kept for the gradient: everything of a plain call, little more than the input of one in parts."""
    kept = [0]

    def count(tensor: Tensor) -> Tensor:
        kept[0] += tensor.nbytes
        return tensor

    trunk, batch = LightTrunk(), pixels.float()
    found = {}
    for parts in (1, 3):
        kept[0] = 0
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            in_parts(trunk, batch, parts)
        found[parts] = kept[0]
    assert found[3] < 0.1 * found[1]


def test_without_a_gradient_it_is_one_call(pixels: Tensor) -> None:
    calls = []
    trunk = LightTrunk().eval()
    trunk.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        in_parts(trunk, pixels.float(), 3)
    assert calls == [1]
