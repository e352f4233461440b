"""The methods that Zhou et al. 2023 compare, by the names of their tables, with what they report of each.

Where what is counted here is another figure than theirs, the entry says why, and `describe` and `table 8` print it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.architecture import Method


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperMethod:
    """One row of the paper's Tables 2, 8 and 9.

    `parameters` and `products` (multiply-accumulates of one colour patch of 1024 px) are Table 8's, and `differs` says
    in one sentence, by the name of the figure, why ours is another one; `screens` and `steel` are accuracy, precision,
    recall and F of Table 2 (screens) and Table 9 (Severstal).
    """

    title: str
    method: Method
    trunk: str
    parameters: float
    products: float
    screens: tuple[float, float, float, float]
    steel: tuple[float, float, float, float]
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def chooses_trunk(self) -> bool:
        """Whether the method is one for any trunk, and not a trunk itself."""
        return self.method in ("two_stage", "kssnet", "tdrg") or self.trunk == "resnet50"


METHODS = {
    "resnet50": PaperMethod(
        title="ResNet-50",
        method="plain",
        trunk="resnet50",
        parameters=2.352e7,
        products=8.610e10,
        screens=(0.952, 0.966, 0.919, 0.942),
        steel=(0.982, 0.915, 0.877, 0.896),
    ),
    "vgg16": PaperMethod(
        title="VGG-16",
        method="plain",
        trunk="vgg16",
        parameters=1.472e7,
        products=32.141e10,
        screens=(0.967, 0.963, 0.827, 0.890),
        steel=(0.974, 0.850, 0.848, 0.849),
    ),
    "inception_v3": PaperMethod(
        title="Inception-v3",
        method="plain",
        trunk="inception_v3",
        parameters=2.179e7,
        products=7.488e10,
        screens=(0.971, 0.963, 0.953, 0.958),
        steel=(0.979, 0.912, 0.928, 0.920),
    ),
    "kssnet": PaperMethod(
        title="KSSNet",
        method="kssnet",
        trunk="resnet50",
        parameters=2.627e7,
        products=8.621e10,
        screens=(0.953, 0.828, 0.713, 0.767),
        steel=(0.953, 0.839, 0.617, 0.711),
    ),
    "tdrg": PaperMethod(
        title="TDRG",
        method="tdrg",
        trunk="resnet50",
        parameters=4.873e7,
        products=8.609e10,
        screens=(0.972, 0.963, 0.959, 0.961),
        steel=(0.978, 0.896, 0.853, 0.874),
        differs={
            "products": (
                "the paper's figure is that of the ResNet-50 trunk alone; counted whole, the transformer over a map of "
                "64 x 64 cells and two smaller ones, and what stands around it, cost more than the trunk."
            ),
        },
    ),
    "sewerml": PaperMethod(
        title="SewerML",
        method="sewerml",
        trunk="light",  # it has its own, whatever this says
        parameters=0.916e7,
        products=3.001e10,
        screens=(0.887, 0.820, 0.727, 0.771),
        steel=(0.954, 0.813, 0.707, 0.756),
    ),
    "two_stage": PaperMethod(
        title="two-stage",
        method="two_stage",
        trunk="resnet50",
        parameters=2.469e7,
        products=8.610e10,
        screens=(0.977, 0.975, 0.970, 0.973),
        steel=(0.982, 0.960, 0.885, 0.921),
        differs={
            "parameters": (
                "the paper's figure cannot be reached with the pooling of its text: a linear layer of size C x d, read "
                "as one of output size C d, takes 2048 x 2048 weights, with which the parts that the text gives sum to "
                "27,714,640, before Proj and W_RN, whose widths it does not give."
            ),
        },
    ),
}
