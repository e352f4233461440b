"""How the scores of a bundle are linear in its trunk's map: read out of its two graphs as export writes them.

The equations stand in `attribution`, which uses this and checks what comes out.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.utils import Extractor

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pooled:
    """Stage 1 of the two-stage network; L labels, D channels of the trunk's map, F label-feature width, S cells.

    Attributes:
        largest: whether the largest value of each channel is taken.
        weight_LD, constant_L: u_j . W_j and u_j . b_j.
        cosine: whether the score is divided by the norm of the label's feature.
        linear_LFD, bias_LF: W and b.
    """

    largest: bool
    weight_LD: Array
    constant_L: Array
    cosine: bool
    linear_LFD: Array
    bias_LF: Array

    def looked_at(self, trunk_DHW: Array, *attention_LS: Array) -> Array:
        """What each cell gives to the pooled vector of each label, a_j(p) T(p), (L, D, S); L is 1 for one of all."""
        trunk_DS = trunk_DHW.reshape(len(trunk_DHW), -1)
        if attention_LS:
            return attention_LS[0][:, None, :] * trunk_DS
        if self.largest:
            return only_largest(trunk_DHW)[None]
        return trunk_DS[None] / trunk_DS.shape[1]

    def take_apart(self, feature_LF: Array, looked_LDS: Array, form: tuple[int, ...]) -> tuple[Array, Array]:
        """Map (L, h, w) of the form of the trunk's, and constant (L,)."""
        norm_L = np.ones(len(feature_LF))
        if self.cosine:
            norm_L = np.maximum(np.linalg.norm(feature_LF, axis=1), 1e-6)  # as the cosine bounds it
        part_LS = (self.weight_LD[:, None, :] @ looked_LDS)[:, 0] / norm_L[:, None]
        return part_LS.reshape(-1, *form), self.constant_L / norm_L


def only_largest(trunk_DHW: Array) -> Array:
    """The largest value of each channel in its cell, and 0 elsewhere, (D, S)."""
    trunk_DS = trunk_DHW.reshape(len(trunk_DHW), -1)
    only_DS = np.zeros_like(trunk_DS)
    channels, cells = np.arange(len(trunk_DS)), trunk_DS.argmax(axis=1)
    only_DS[channels, cells] = trunk_DS[channels, cells]
    return only_DS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head(ABC):
    """How the scores of both stages are linear, and which values of the two graphs tell it.

    Attributes:
        features: values of the features graph, from `label_features` and `stage1` on.
        reasoning: values of the reasoning graph, from `probability` on.
    """

    features: tuple[str, ...]
    reasoning: tuple[str, ...]

    @abstractmethod
    def take_apart(self, feature_LF: Array, score_L: Array, *others: Array) -> tuple[Array, Array, Array, Array]:
        """Map and constant of stage 1, map and constant of stage 2 of one patch, from its values of the graph.

        Those of stage 2 may be in J parts, (J, L, h, w) and (J, L), see `shares`.
        """

    def shares(self, feature_NLF: Array) -> Array:
        """What each part of stage 2 is multiplied by in its score, (N, J), from the features that are reasoned."""
        return np.ones((len(feature_NLF), 1))

    def reasoned(self, score_NL: Array, *others: Array) -> tuple[Array, Array]:
        """Scores of stage 2, and the graph's part in them, from the values behind `probability`."""
        return score_NL, np.zeros_like(score_NL)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TwoStage(Head):
    """Both stages; `weight_LLD` is c_ij . W_j, `constant_LL` is c_ij . b_j, `relation_LR` c_iR.

    `unit`: stage 2 takes label features of unit length, so that what it makes of each label j is a part of its own.
    """

    first: Pooled
    weight_LLD: Array
    constant_LL: Array
    relation_LR: Array
    unit: bool

    def take_apart(self, feature_LF: Array, score_L: Array, *others: Array) -> tuple[Array, Array, Array, Array]:
        """See `Head`."""
        looked_LDS, form = self.first.looked_at(*others), others[0].shape[1:]
        part_JLS = (self.weight_LLD[:, :, None, :] @ looked_LDS)[:, :, 0].swapaxes(0, 1)
        constant_JL = self.constant_LL.T
        if not self.unit:
            part_JLS, constant_JL = part_JLS.sum(axis=0, keepdims=True), constant_JL.sum(axis=0, keepdims=True)
        own = self.first.take_apart(feature_LF, looked_LDS, form)
        return (*own, part_JLS.reshape(*part_JLS.shape[:2], *form), constant_JL)

    def shares(self, feature_NLF: Array) -> Array:
        """See `Head`."""
        if not self.unit:
            return np.ones((len(feature_NLF), 1))
        share_NL: Array = 1 / np.maximum(np.linalg.norm(feature_NLF, axis=2), 1e-12)  # as the graph bounds it
        return share_NL

    def reasoned(self, score_NL: Array, *others: Array) -> tuple[Array, Array]:
        """See `Head`."""
        return score_NL, others[0] @ self.relation_LR.T


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FirstStage(Head):
    """Stage 1 alone, which decides by `scale_L` times its score."""

    first: Pooled
    scale_L: Array

    def take_apart(self, feature_LF: Array, score_L: Array, *others: Array) -> tuple[Array, Array, Array, Array]:
        """See `Head`."""
        looked_LDS = self.first.looked_at(*others)
        part_LHW, constant_L = self.first.take_apart(feature_LF, looked_LDS, others[0].shape[1:])
        return part_LHW, constant_L, self.scale_L[:, None, None] * part_LHW, self.scale_L * constant_L


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OneStage(Head):
    """A network of which both outputs are its logits, each a constant and the mean of its activation map.

    Or, with `weight_LD`, a constant and what those weights make of the largest value of each of the trunk's channels.
    """

    weight_LD: Array | None = None

    def take_apart(self, feature_LF: Array, score_L: Array, *others: Array) -> tuple[Array, Array, Array, Array]:
        """See `Head`."""
        if self.weight_LD is None:
            part_LHW = others[0] / others[0][0].size
        else:
            part_LHW = (self.weight_LD @ only_largest(others[0])).reshape(-1, *others[0].shape[1:])
        constant_L = score_L - part_LHW.sum(axis=(1, 2))
        return part_LHW, constant_L, part_LHW, constant_L


def read_head(features: onnx.ModelProto, reasoning: onnx.ModelProto) -> Head:
    """The form of a bundle's scores.

    Raises:
        KeyError, ValueError: it is none that is known.
    """
    seen, reasoned = _Graph(features), _Graph(reasoning)
    score = reasoned.maker("probability", "Sigmoid").input[0]
    temperature_L11, activation = seen.tempered("activation")
    trunk, weight, *_ = seen.maker(activation, "Conv").input  # 1 x 1, in every form
    if seen.kind("stage1") != "ReduceSum":
        weight_LD = None
        if seen.takes_largest(trunk):
            weight_LD = seen.constant(weight)[:, :, 0, 0] / temperature_L11.reshape(-1, 1)
        source = "activation" if weight_LD is None else trunk
        return OneStage(
            features=("label_features", "stage1", source), reasoning=("probability", score), weight_LD=weight_LD
        )
    first = _read_first(seen, trunk)
    values = ("label_features", "stage1", trunk, *seen.outputs("Softmax"))  # of attention, where it pools
    temperature_L, scaled = reasoned.tempered(score)
    if scaled == "stage1" or reasoned.kind(scaled) == "Mul":
        scale, _ = (np.ones(()), "") if scaled == "stage1" else reasoned.factor(scaled, "Mul")
        scale_L = np.broadcast_to(scale / temperature_L.ravel(), len(first.bias_LF))
        return FirstStage(features=values, first=first, reasoning=("probability", score), scale_L=scale_L)
    enhanced, weight = reasoned.maker(score, "Gemm").input  # classifier 2 on concat(X, R'), without bias
    classifier = reasoned.constant(weight)
    labels, width = first.bias_LF.shape
    own_LLF = classifier[:, : labels * width].reshape(labels, labels, width)
    flat, related = reasoned.maker(enhanced, "Concat").input
    return TwoStage(
        features=values,
        reasoning=("probability", score, related),
        first=first,
        weight_LLD=np.einsum("ijf,jfd->ijd", own_LLF, first.linear_LFD),
        constant_LL=np.einsum("ijf,jf->ij", own_LLF, first.bias_LF),
        relation_LR=classifier[:, labels * width :],
        unit=reasoned.maker(flat, "Reshape").input[0] != "label_features",
    )


def _read_first(graph: "_Graph", trunk: str) -> Pooled:
    summed = graph.maker("stage1", "ReduceSum").input[0]
    classifier_LF, feature = graph.factor(summed, "Mul")
    linear_LFD, bias_LF = _read_linear(graph, *classifier_LF.shape)
    return Pooled(
        largest=graph.takes_largest(trunk),
        weight_LD=np.einsum("lf,lfd->ld", classifier_LF, linear_LFD),
        constant_L=(classifier_LF * bias_LF).sum(axis=1),
        cosine=feature != "label_features",
        linear_LFD=linear_LFD,
        bias_LF=bias_LF,
    )


def _read_linear(graph: "_Graph", labels: int, width: int) -> tuple[Array, Array]:
    """Weight (L, F, D) and bias (L, F) of the pooling's linear layer: one layer on the mean, or one for each label."""
    if graph.kind("label_features") == "Reshape":
        _, weight, bias = graph.maker(graph.maker("label_features", "Reshape").input[0], "Gemm").input
        return graph.constant(weight).reshape(labels, width, -1), graph.constant(bias).reshape(labels, width)
    bias_L1F, product = graph.factor(graph.maker("label_features", "Transpose").input[0], "Add")
    weight = graph.maker(product, "MatMul").input[1]  # (L, D, F), which the exporter folds where it is small
    if graph.kind(weight):
        weight = graph.maker(graph.maker(weight, "Transpose").input[0], "Reshape").input[0]
        return graph.constant(weight).reshape(labels, width, -1), bias_L1F[:, 0]
    return graph.constant(weight).transpose(0, 2, 1), bias_L1F[:, 0]


class _Graph:
    """An ONNX graph to be looked up: its constants by name, the node that makes a value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._constants = {one.name: one for one in model.graph.initializer}
        self._makers = {output: node for node in model.graph.node for output in node.output}

    def constant(self, name: str) -> Array:
        if name not in self._constants:  # made of others, whatever the pixels are
            part = Extractor(self._model).extract_model([], [name])
            (value,) = ReferenceEvaluator(part).run(None, {})
            return np.asarray(value, np.float64)
        return numpy_helper.to_array(self._constants[name]).astype(np.float64)

    def maker(self, value: str, kind: str) -> onnx.NodeProto:
        node: onnx.NodeProto = self._makers[value]
        if node.op_type != kind:
            raise ValueError(f"{value} is made by {node.op_type}, not by {kind}")
        return node

    def kind(self, value: str) -> str:
        """What makes a value; empty for a constant."""
        return str(self._makers[value].op_type) if value in self._makers else ""

    def factor(self, value: str, kind: str) -> tuple[Array, str]:
        """The constant from which a value is made, and the name of the other value that it is made from."""
        names = self.maker(value, kind).input
        (constant,) = (name for name in names if name in self._constants)
        (other,) = (name for name in names if name not in self._constants)
        return self.constant(constant), other

    def tempered(self, value: str) -> tuple[Array, str]:
        """The temperature by which a value was divided at last, 1 without one, and the value before."""
        if self.kind(value) != "Div":
            return np.ones(()), value
        before, divisor = self._makers[value].input
        return self.constant(divisor), before

    def takes_largest(self, value: str) -> bool:
        """Whether the largest of a value is taken."""
        return any(value in self._makers[output].input for output in self.outputs("ReduceMax"))

    def outputs(self, kind: str) -> tuple[str, ...]:
        """Of all nodes of a kind."""
        return tuple(value for value, node in self._makers.items() if node.op_type == kind)
