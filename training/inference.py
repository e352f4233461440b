"""What a network says of a set of patches, by the module itself: the trunk a few at a time, then what reasons together.

Several devices take turns with the patches, and each has the whole in the end.
"""

from functools import partial

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from engine import Features, TurnedLook, in_doubt, look_turned, turned
from training import devices
from training.datasets import PatchSet
from training.evaluation import groups
from training.network import Network, Output

CHUNK = 8  # patches at a time on a CPU: a whole screen of activations of a large trunk fits no memory


def network_probability(
    network: Network, patches: PatchSet, fabric: Fabric, *, reason: bool = True
) -> NDArray[np.float32]:
    """Probabilities (N, L) by the module, the patches of each screen reasoned together; or else those of stage 1."""
    seen = see(network, patches, fabric)
    score = reasoned(network, seen, patches, fabric, group="screen") if reason else seen.logit_NL.cpu().numpy()
    return to_probability(score)


def reasoned(network: Network, seen: Output, patches: PatchSet, fabric: Fabric, *, group: str) -> NDArray[np.float32]:
    """Scores (N, L) before the sigmoid of a set that was seen, in one of `training.evaluation.groups` at a time.

    In float32, as the service reasons and training does: squares of features are beyond the range of half precision.
    """
    score = np.zeros((len(patches), len(patches.label_names)), np.float32)
    with torch.inference_mode():
        for indices in groups(patches, group):
            rows = torch.from_numpy(indices)
            score[indices] = network.reason(seen.feature_NLF[rows], seen.cosine_NL[rows]).float().cpu().numpy()
    return score


def served(
    network: Network, seen: Output, patches: PatchSet, once: NDArray[np.float32], look: TurnedLook
) -> NDArray[np.float32]:
    """Probabilities (N, L) of a set on a CPU, whose windows in doubt are looked at in all positions as in service.

    Args:
        network: what sees them.
        seen: what its stage 1 gave of the set.
        patches: the set.
        once: (N, L) its probabilities by screen where each patch is looked at once.
        look: what the bundle is to ask for.
    """
    found = once.copy()
    for screen in track(patches.by_screen(), "in doubt", transient=True, disable=look.ratio_max == 0):
        if doubtful := in_doubt(once[screen], look):
            rows = torch.from_numpy(screen)
            features = _features(Output(seen.feature_NLF[rows], seen.cosine_NL[rows], seen.logit_NL[rows], None, None))
            mean = look_turned(features, doubtful, partial(_see_turned, network, patches, screen))
            with torch.inference_mode():
                score = network.reason(torch.from_numpy(mean.label_features), torch.from_numpy(mean.stage1))
            found[screen] = to_probability(score.float().numpy())
    return found


def _see_turned(network: Network, patches: PatchSet, screen: NDArray[np.int64], window: int) -> Features:
    """Of a patch of a screen in its other positions."""
    pixels = turned(patches.patch(int(screen[window])))
    with torch.inference_mode():
        return _features(network(torch.from_numpy(pixels), reason=False))


def _features(seen: Output) -> Features:
    """What stage 1 gave, without maps."""
    label_features, stage1 = seen.feature_NLF.float().numpy(), seen.cosine_NL.float().numpy()
    return Features(
        label_features=label_features,
        stage1=stage1,
        activation=np.zeros((*stage1.shape, 1, 1), np.float32),
        doubt=np.ones(len(stage1), np.float32),
    )


def to_probability(score: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sigmoid of scores."""
    probability: NDArray[np.float32] = torch.sigmoid(torch.from_numpy(score)).numpy()
    return probability


def see(network: Network, patches: PatchSet, fabric: Fabric) -> Output:
    """What stage 1 gives of every patch of a set, in its order; there are no maps."""
    network.eval()
    at_once = (
        CHUNK if fabric.device.type == "cpu" else 4 * CHUNK
    )  # a batch of the paper, from which the same memory learns
    chunks = np.array_split(np.arange(len(patches)), -(-len(patches) // at_once))
    own = range(fabric.global_rank, len(chunks), fabric.world_size)
    parts: dict[int, Output] = {}
    with torch.inference_mode(), fabric.autocast():
        for number in track(own, "probabilities", transient=True, disable=not fabric.is_global_zero):
            pixels = torch.from_numpy(patches.pixels(chunks[number]))
            parts[number] = network(fabric.to_device(pixels), reason=False)

    def whole(field: str, *width: int) -> Tensor:
        rows = torch.zeros(len(patches), len(patches.label_names), *width, device=fabric.device)
        for number, part in parts.items():
            rows[torch.from_numpy(chunks[number])] = getattr(part, field).float()
        return devices.total(fabric, rows)  # each device has left the rows of the others 0

    width = network.config.feature_width if network.config.has_label_features else 1
    return Output(whole("feature_NLF", width), whole("cosine_NL"), whole("logit_NL"), None, None)
