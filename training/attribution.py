"""What each cell of the trunk's map adds to the scores of both stages, read out of a bundle alone.

Label features are a weighted mean of the trunk's map T over its cells p, and a linear layer:

    X_j = sum_p a_j(p) W_j T(p) + b_j

with a_j(p) = 1 / (h w) for average pooling (Zhou et al. 2023), the softmax of the label's own map for attention, and
for max pooling, channel by channel, 1 in the cell where the channel is largest.
Both scores are linear in X, the first one up to its norm, with u_j the unit vector of classifier 1, c_i the row of
classifier 2 and R' what the graph has reasoned (Eq. 7):

    stage 1    S_j  = sum_p a_j(p) u_j . W_j T(p) / |X_j|      +  u_j . b_j / |X_j|
    stage 2    S'_i = sum_p sum_j a_j(p) c_ij . W_j T(p)       +  sum_j c_ij . b_j  +  c_iR . R'

The terms under sum_p are the maps: they and what stands beside them give the score exactly, which is checked each time.
With average pooling that is the class activation map of Zhou et al. 2016 (stage 2's is the bundle's `activation`,
divided by h w). With attention it says what each cell has given under the weights that the label chose; why it chose
them it does not say, and neither does it say what changed the norm. A one-stage network, whose two outputs are its
logits (d = 1), has one map for both.

Everything in float32 by ONNX Runtime, whatever precision serves.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from engine import Manifest, read_golden
from engine.cpus import available_cpus
from engine.graphs import Session, open_session, run_session
from training.heads import Array, OneStage, TwoStage, read_head

TOLERANCE = 1e-3  # of a score, or of its size where that is over 1: float32 sums in another order


class Stage(NamedTuple):
    """One stage's scores of K patches, taken apart: `score` = the sum of `map` + `constant` + `graph`.

    Attributes:
        score: (K, L), a cosine in stage 1, the logit of the probability in stage 2; a logit in both of one stage.
        map: (K, L, h, w) what each cell adds.
        constant: (K, L) what the biases of the pooling's linear layer add.
        graph: (K, L) what the graph's reasoning adds; 0 in stage 1.
    """

    score: Array
    map: Array
    constant: Array
    graph: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Explanation:
    """Of the patches of one screen: both stages, and the probabilities (K, L)."""

    stage1: Stage
    stage2: Stage
    probability: NDArray[np.float32]


class Attribution:
    """A bundle whose scores can be taken apart.

    Args:
        bundle: its folder.

    Raises:
        BundleError: the bundle is not whole.
        ValueError: its graphs are not of a form that can be taken apart; the message says what is missing.
    """

    def __init__(self, bundle: Path) -> None:
        self.manifest = Manifest.read(bundle)
        features = onnx.load_from_string(self.manifest.verified(bundle, self.manifest.features_file("fp32")))
        reasoning = onnx.load_from_string(self.manifest.verified(bundle, "reasoning.onnx"))
        try:
            self._head = read_head(features, reasoning)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{bundle}: scores of this form cannot be taken apart ({error})") from error
        self._features = _session(features, self._head.features)
        self._reasoning = _session(reasoning, self._head.reasoning)
        if isinstance(self._head, OneStage):
            _check_constant(self.explain(read_golden(bundle, manifest=self.manifest).pixels).stage2, bundle)

    @property
    def one_stage(self) -> bool:
        """Whether both stages are the same."""
        return not isinstance(self._head, TwoStage)

    def stages(self, found: Explanation) -> dict[str, Stage]:
        """The stages by name, those that are different."""
        return {"one stage": found.stage2} if self.one_stage else {"stage 1": found.stage1, "stage 2": found.stage2}

    def explain(self, pixels: NDArray[np.uint8]) -> Explanation:
        """Take the scores of the patches of one screen apart.

        Args:
            pixels: (K, 1, P, P) grey; K is at least 1.

        Raises:
            InferenceError: the runtime failed.
            ValueError: the parts do not sum to the scores, so the graphs are not what they were taken for.
        """
        features: list[list[NDArray[np.float32]]] = []
        parts: list[tuple[Array, Array, Array, Array]] = []
        for patch in pixels:  # one at a time: trunk's maps of a whole screen would fill the memory
            outputs = run_session(self._features, self._head.features, {"pixels": patch[None]})
            features.append(outputs[:2])
            parts.append(self._head.take_apart(*(output[0].astype(np.float64) for output in outputs)))
        label_features, stage1 = (np.concatenate(output) for output in zip(*features, strict=True))
        feed = {"label_features": label_features, "stage1": stage1}
        probability, *reasoned = run_session(self._reasoning, self._head.reasoning, feed)
        map1, constant1, map2, constant2 = (np.stack(part) for part in zip(*parts, strict=True))
        score, graph = self._head.reasoned(*(output.astype(np.float64) for output in reasoned))
        first = Stage(stage1.astype(np.float64), map1, constant1, np.zeros_like(constant1))
        second = Stage(score, map2, constant2, graph)
        for name, stage in (("stage 1", first), ("stage 2", second)):
            gap = np.abs(stage.map.sum(axis=(2, 3)) + stage.constant + stage.graph - stage.score)
            if not (gap <= TOLERANCE * np.maximum(1, np.abs(stage.score))).all():
                raise ValueError(
                    f"the parts of {name} miss its score by {gap.max():.3g}: the graphs are of another form"
                )
        return Explanation(stage1=first, stage2=second, probability=probability)


def _session(model: onnx.ModelProto, values: tuple[str, ...]) -> Session:
    """A session of a graph from which the inner `values` can be asked as well."""
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in values if name not in known)
    return open_session(model.SerializeToString(), key=model.graph.name, threads=available_cpus())


def _check_constant(stage: Stage, bundle: Path) -> None:
    """Refuse a one-stage network whose logits do not follow its map: what is left would differ by patch."""
    spread = np.ptp(stage.constant, axis=0).max()
    if spread > TOLERANCE * max(1.0, float(np.abs(stage.score).max())):
        raise ValueError(
            f"{bundle}: its scores are not the mean of its maps and a constant (they differ by {spread:.3g})"
        )
