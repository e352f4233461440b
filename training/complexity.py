"""What a method costs: parameters and multiply-accumulates, beside Table 8 of Zhou et al. 2023.

The table's figures are those of ptflops, which counts the modules: convolutions, two for each element that is
normalised, one for each that a ReLU or a pooling takes; products of functions (relations, attention in a pooling) are
left out. Everything is counted on shapes alone, so that no figure takes time or memory.

Each is met within 0.5 %, but for two: TDRG's products, of which the table has those of the trunk alone, and the
parameters of the two-stage network, for its pooling. `PaperMethod.differs` says why in full, and is what is printed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from ptflops import get_model_complexity_info
from torch import Tensor, nn

from training.architecture import NetworkConfig
from training.baselines import build_network, refuse_small_patches
from training.methods import METHODS
from training.network import parameter_table

SIZE_PX, LABELS = 1024, 4  # of Table 8
MARGIN = 0.005  # of the paper's figure; of one that is further from it is said why
UNEXPLAINED = "why is not known."


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity:
    """Parameters, those of each part, and multiply-accumulates of one patch."""

    parameters: int
    products: int
    parts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A method as the paper counts it, with three colours, and as it runs here, on one grey channel.

    Attributes:
        paper_parameters: None where the labels are not the table's.
        paper_products: None where the size or the labels are not the table's.
        reasons: by the name of a figure, "parameters" or "products", why it is further than `MARGIN` from the paper's.
    """

    title: str
    size_px: int
    labels: int
    colour: Complexity
    grey: Complexity
    paper_parameters: float | None
    paper_products: float | None
    reasons: Mapping[str, str]

    @property
    def beside(self) -> dict[str, tuple[int, float | None]]:
        """Each figure of Table 8 by its name, as it is counted here and as the paper has it."""
        return {
            "parameters": (self.colour.parameters, self.paper_parameters),
            "products": (self.colour.products, self.paper_products),
        }


def describe(name: str, *, size_px: int = SIZE_PX, labels: int = LABELS) -> Description:
    """Count a method of the paper.

    Args:
        name: a key of `training.methods.METHODS`.
        size_px: side of the patch.
        labels: L; the paper's is 4.

    Raises:
        ValueError: there is no such method, or the patch is too small for it.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}: there are {', '.join(METHODS)}")
    row = METHODS[name]
    config = NetworkConfig(method=row.method, trunk=row.trunk)
    found = Description(
        title=row.title,
        size_px=size_px,
        labels=labels,
        colour=count(config, size_px=size_px, labels=labels, channels=3),
        grey=count(config, size_px=size_px, labels=labels, channels=1),
        paper_parameters=row.parameters if labels == LABELS else None,
        paper_products=row.products if (size_px, labels) == (SIZE_PX, LABELS) else None,
        reasons={},
    )
    off = [figure for figure, (counted, paper) in found.beside.items() if paper and abs(counted / paper - 1) > MARGIN]
    return replace(found, reasons={figure: row.differs.get(figure, UNEXPLAINED) for figure in off})


def count(config: NetworkConfig, *, size_px: int, labels: int, channels: int = 1) -> Complexity:
    """Count a network on a patch of `size_px`. Pretrained weights change no count, and are not fetched.

    Raises:
        ValueError: the patch is too small for it, or its parts do not fit each other.
    """
    refuse_small_patches(labels, config, size_px)
    with torch.device("meta"):
        network = build_network(labels, replace(config, trunk_weights=None), channels=channels).eval()
        pixels = torch.zeros(1, channels, size_px, size_px)
        products, _ = get_model_complexity_info(
            _Positional(network),
            tuple(pixels.shape[1:]),
            as_strings=False,
            print_per_layer_stat=False,
            backend_specific_config={"count_functional": False},
        )
    if products is None:
        raise ValueError(f"{config.method} on {config.trunk} cannot be counted at {size_px} px")
    parts = dict(parameter_table(network))
    return Complexity(parameters=sum(parts.values()), products=int(products), parts=parts)


class _Positional(nn.Module):
    """Takes its pixels as ptflops hands them over."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> object:
        return self.network(pixels)
