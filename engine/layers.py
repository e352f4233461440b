"""What TensorRT says of the layers of an engine, and the precision that the engine therefore really has.

Two forms of the same facts: JSON of the engine inspector, which needs a GPU to load the engine, and the lines that the
builder prints at its most talkative, which do not. TensorRT 10 puts a tensor's type into a sentence
(`"Format/Datatype": "Channel major FP16 format"`), 11 and RTX name it (`"Datatype": "Half"`).
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# TensorRT's words for the types of numbers, narrow ones first; the first that occurs decides
PRECISIONS = {
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE),
    "fp16": re.compile(r"\b(fp16|half)\b", re.IGNORECASE),
    "fp32": re.compile(r"\b(fp32|float)\b", re.IGNORECASE),
}
# layers that hold the work: convolutions and matrix products, by any of TensorRT's names for their kind; fused with
# what follows, their kind may only say so, and their name what they are (`__myl_FcRelu_myl0_26`)
HEAVY = re.compile(r"conv|correlation|gemm|matmul|matrix|fullyconnected", re.IGNORECASE)
FUSED = re.compile(r"__myl_\w*?(Fc|Gemm|MatMul|Conv)")

LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (Constants|Outputs): \["
)
DATATYPE = re.compile(r"(?:Format/)?Datatype: ([^,}]*)")


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: as TensorRT made it, from the nodes of the ONNX graph.
        kind: TensorRT's word for it, such as `correlation` or `CaskConvolution`.
        precision: of the numbers that it reads: fp32, fp16, bf16 or int8; empty where it reads none.
    """

    name: str
    kind: str
    precision: str

    @property
    def heavy(self) -> bool:
        """Whether it is a convolution or a matrix product, or has one in it."""
        return HEAVY.search(self.kind) is not None or FUSED.match(self.name) is not None


def from_inspector(text: str) -> list[Layer]:
    """The layers in the JSON of `EngineInspector.get_engine_information`.

    Raises:
        ValueError: it is no such JSON, or holds names alone, as of an engine built without detailed verbosity.
    """
    try:
        entries: list[dict[str, Any]] = json.loads(text)["Layers"]
        return [Layer(entry["Name"], entry["LayerType"], _precision_of_entry(entry)) for entry in entries]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the engine inspector's JSON has no detailed layers: {error!r}") from error


def from_log(text: str) -> list[Layer]:
    """The layers in the builder's verbose message that begins with `Layers:`."""
    return [
        Layer(match["name"], match["kind"], _first_precision(DATATYPE.findall(match["inputs"])))
        for match in map(LINE.match, text.splitlines())
        if match
    ]


def heavy_counts(layers: Iterable[Layer]) -> dict[str, int]:
    """How many convolutions and matrix products read numbers of each precision."""
    return dict(Counter(layer.precision for layer in layers if layer.heavy and layer.precision))


def real_precision(counts: Mapping[str, int]) -> str:
    """The narrowest precision of any convolution or matrix product; empty when there is none.

    Not that of most: a graph may keep more of its layers in float than it narrows. `wider` tells how many.
    """
    return next((precision for precision in PRECISIONS if counts.get(precision)), "")


def wider(counts: Mapping[str, int], than: str) -> int:
    """How many convolutions and matrix products have a wider precision, the narrowest first: int8, bf16, fp16, fp32."""
    order = list(PRECISIONS)
    return sum(counts.get(precision, 0) for precision in order[order.index(than) + 1 :])


def _precision_of_entry(entry: dict[str, Any]) -> str:
    return _first_precision([str(port.get("Datatype") or port.get("Format/Datatype", "")) for port in entry["Inputs"]])


def _first_precision(texts: Sequence[str]) -> str:
    """Precision of the first input, the data: biases and scales stay in float whatever the layer computes in."""
    for text in texts[:1]:
        for precision, words in PRECISIONS.items():
            if words.search(text):
                return precision
    return ""
