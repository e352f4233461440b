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

With `network.reasoned_features = "unit"` stage 2 takes each X_j at unit length, so its terms of j are over |X_j| as
well; the bundle's `activation` knows nothing of that length.

Both stay true of a mean over several positions of a window, as a turned look takes it: the maps are turned back, and
their mean belongs to the mean of the scores. The |X_j| of stage 2 is the length of the mean X_j then.

Everything in float32 by ONNX Runtime, whatever precision serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from engine import Features, Manifest, Window, averaged, cover, cut, in_doubt, look_again, read_golden, turned
from engine.cpus import available_cpus
from engine.graphs import Session, open_session, run_session
from training.architecture import Method
from training.heads import Array, OneStage, TwoStage, read_head

TOLERANCE = 1e-3  # of a score, or of its size where that is over 1: float32 sums in another order
MAPPED: tuple[Method, ...] = ("two_stage", "feature_clustering", "plain", "kssnet")
NO_MAP = (
    f"what each cell of an image adds to a score is known of the methods {', '.join(MAPPED)}, and not of "
    f"{' and '.join(method for method in get_args(Method) if method not in MAPPED)}, whose scores are no sum over cells"
)
"""What is said of a bundle that has no such map."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Looked:
    """Of a frame, looked at as the bundle asks for, but for a glance.

    Attributes:
        windows: K; those that a second look has added come last.
        added: how many of them it has added.
        turned: places among them of those in doubt, whose parts are the mean over all positions.
        explanation: of all of them together.
    """

    windows: tuple[Window, ...]
    added: int
    turned: tuple[int, ...]
    explanation: Explanation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seen:
    """What is known of n patches before they are reasoned together.

    Attributes:
        features: theirs; `activation` (n, (2 + J) L, h, w) has the maps of stage 1 and of the J parts of stage 2 behind
            the bundle's own, so that what joins and turns back the one in service does it with all of them.
        constant: (n, 1 + J, L) of the same.
    """

    features: Features
    constant: Array

    def joined(self, others: "_Seen") -> "_Seen":
        return _Seen(
            features=Features.joined([self.features, others.features]),
            constant=np.concatenate([self.constant, others.constant]),
        )

    def averaged(self, place: int, others: "_Seen") -> "_Seen":
        """With the mean over all positions of one patch, of which `others` are the other seven."""
        constant = self.constant.copy()
        constant[place] = np.concatenate([self.constant[[place]], others.constant]).mean(axis=0)
        return _Seen(features=averaged(self.features, place, others.features), constant=constant)


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
            raise ValueError(f"{bundle}: its scores cannot be taken apart ({error}): {NO_MAP}") from error
        self._values = tuple(dict.fromkeys((*self._head.features, "activation")))  # which may be among them
        self._features = _session(features, self._values)
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

    def units(self) -> dict[str, str]:
        """In what each of the `stages` has its scores and maps, by its name: one is no multiple of the other."""
        if not isinstance(self._head, TwoStage):
            return {"one stage": "logit"}
        return {"stage 1": "cosine" if self._head.first.cosine else "dot product", "stage 2": "logit"}

    def explain(self, pixels: NDArray[np.uint8]) -> Explanation:
        """Take the scores of the patches of one screen apart, each looked at once.

        Args:
            pixels: (K, 1, P, P) grey; K is at least 1.

        Raises:
            InferenceError: the runtime failed.
            ValueError: the parts do not sum to the scores, so the graphs are not what they were taken for.
        """
        return self._together(self._see(pixels))

    def look(self, frame: NDArray[np.uint8]) -> Looked:
        """Take the scores of a frame (H, W) apart, looked at again and turned where the bundle asks for it.

        Raises:
            InferenceError: the runtime failed.
            ValueError: the frame is smaller than a patch, or see `explain`.
        """
        manifest = self.manifest
        windows = cover(*frame.shape, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)
        seen = self._see(cut(frame, windows, manifest.patch_px))
        found = self._together(seen)
        own = seen.features.activation[:, : len(manifest.labels)]
        between = look_again(windows, found.probability, own, manifest)
        if between:
            windows += between
            seen = seen.joined(self._see(cut(frame, between, manifest.patch_px)))
            found = self._together(seen)
        doubtful = in_doubt(found.probability, manifest.turned_look)
        for place in doubtful:
            patch = cut(frame, windows[place : place + 1], manifest.patch_px)[0, 0]
            seen = seen.averaged(place, self._see(turned(patch)))
        if doubtful:
            found = self._together(seen)
        return Looked(windows=windows, added=len(between), turned=doubtful, explanation=found)

    def _see(self, pixels: NDArray[np.uint8]) -> _Seen:
        """Patches (n, 1, P, P), one at a time: trunk's maps of a whole screen would fill the memory."""
        features, constants = [], []
        for patch in pixels:
            outputs = run_session(self._features, self._values, {"pixels": patch[None]})
            values = dict(zip(self._values, outputs, strict=True))
            asked = (values[name][0].astype(np.float64) for name in self._head.features)
            map1, constant1, map2, constant2 = self._head.take_apart(*asked)
            parts = map2.reshape(-1, *map1.shape[1:])
            maps = np.concatenate([values["activation"][0], map1, parts]).astype(np.float32)[None]
            features.append(
                Features(
                    label_features=values["label_features"],
                    stage1=values["stage1"],
                    activation=maps,
                    doubt=np.ones(1, np.float32),
                )
            )
            constants.append(np.vstack([constant1, constant2]))
        return _Seen(features=Features.joined(features), constant=np.array(constants))

    def _together(self, seen: _Seen) -> Explanation:
        """Patches reasoned together."""
        features = seen.features
        feed = {"label_features": features.label_features, "stage1": features.stage1}
        probability, *reasoned = run_session(self._reasoning, self._head.reasoning, feed)
        score, graph = self._head.reasoned(*(output.astype(np.float64) for output in reasoned))
        maps = features.activation.astype(np.float64)
        maps = maps.reshape(len(maps), -1, score.shape[1], *maps.shape[2:])  # (n, 2 + J, L, h, w)
        map1, constant1 = maps[:, 1], seen.constant[:, 0]
        share = self._head.shares(features.label_features.astype(np.float64))
        map2 = np.einsum("nj,njlhw->nlhw", share, maps[:, 2:])
        constant2 = np.einsum("nj,njl->nl", share, seen.constant[:, 1:])
        first = Stage(features.stage1.astype(np.float64), map1, constant1, np.zeros_like(constant1))
        second = Stage(score, map2, constant2, graph)
        for name, stage in (("stage 1", first), ("stage 2", second)):
            gap = np.abs(stage.map.sum(axis=(2, 3)) + stage.constant + stage.graph - stage.score)
            if not (gap <= TOLERANCE * np.maximum(1, np.abs(stage.score))).all():
                raise ValueError(
                    f"the parts of {name} miss its score by {gap.max():.3g}: the graphs are of another form"
                )
        return Explanation(stage1=first, stage2=second, probability=probability)


def _session(model: onnx.ModelProto, values: Sequence[str]) -> Session:
    """A session of a graph from which the inner `values` can be asked as well."""
    known = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in values if name not in known)
    return open_session(model.SerializeToString(), key=model.graph.name, threads=available_cpus())


def _check_constant(stage: Stage, bundle: Path) -> None:
    """Refuse a one-stage network whose logits do not follow its map: what is left would differ by patch."""
    spread = np.ptp(stage.constant, axis=0).max()
    if spread > TOLERANCE * max(1.0, float(np.abs(stage.score).max())):
        raise ValueError(
            f"{bundle}: its scores are not the mean of its maps and a constant (they differ by {spread:.3g}): {NO_MAP}"
        )
