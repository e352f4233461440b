"""Whether stage 2 can learn what only relations between patches tell."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from training.architecture import NetworkConfig
from training.reasoning import GraphReasoning


def relating(length: float, options: Mapping[str, str]) -> float:
    """How often stage 2 tells what is seen on another patch of the screen alone, after 400 steps.

    Patches are four to a screen. The first of them shows label 0 or label 1, the others show nothing, and have label 2
    where the first shows label 1. Features are of this length.
    """
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    config = NetworkConfig(feature_width=16, projection_width=16, relation_width=16, **options)  # type: ignore[arg-type]
    stage = GraphReasoning(3, config)
    optimiser = torch.optim.AdamW(stage.parameters(), lr=3e-3)
    shown = functional.normalize(torch.randn(3, 16, generator=generator), dim=-1)

    def score_and_truth(screens: int) -> tuple[Tensor, Tensor]:
        which = torch.randint(0, 2, (screens,), generator=generator)
        feature = torch.randn(screens, 4, 3, 16, generator=generator)
        near = shown[which] + 0.2 * torch.randn(screens, 16, generator=generator)
        feature[torch.arange(screens), 0, which] = near
        feature = functional.normalize(feature, dim=-1)
        cosine = (feature * shown).sum(dim=-1).flatten(0, 1)
        group = torch.arange(screens).repeat_interleave(4)
        score = stage(length * feature.flatten(0, 1), cosine, cosine, group_N=group)[:, 2]
        return score.reshape(screens, 4)[:, 1:], which[:, None].expand(-1, 3).float()

    for _ in range(400):
        loss = functional.binary_cross_entropy_with_logits(*score_and_truth(16))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    with torch.no_grad():
        score, truth = score_and_truth(256)
    return float(((score > 0) == (truth > 0.5)).float().mean())


@pytest.mark.parametrize("length", [1.0, 40.0])  # the latter is what maxima of a trunk's map give
def test_relations_tell_what_another_patch_shows(length: float) -> None:
    assert relating(length, {"reasoned_features": "unit"}) > 0.95
    assert relating(length, {"relate_to": "itself"}) < 0.6  # a guess
    heard = relating(length, {})
    assert heard > 0.95 if length == 1 else heard < 0.6  # beside long features relations are not heard
