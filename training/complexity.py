"""What a method costs: parameters and multiply-accumulates, beside Table 8 of Zhou et al. 2023.

The table's figures are those of ptflops, which counts the modules: convolutions, two for each element that is
normalised, one for each that a ReLU or a pooling takes; products of functions (relations, attention in a pooling) are
left out. Everything is counted on shapes alone, so that no figure takes time or memory.

Each is met within 0.5 %, but for two. TDRG's products there are its trunk's alone: its transformer over a map of
64 x 64 and the maps beside it cost more than the trunk. The two-stage network has 2.890e7 parameters and not 2.469e7:
the pooling "a linear layer of size C x d" is read as one of output size C d, which alone takes 2048 x 2048, and with it
the text's own parts sum to 27,714,640 before Proj and W_RN, whose widths it does not give.
"""

from dataclasses import dataclass

import torch
from ptflops import get_model_complexity_info
from torch import Tensor, nn

from training.architecture import NetworkConfig
from training.baselines import build_network
from training.methods import METHODS
from training.network import parameter_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Complexity:
    """Parameters, those of each part, and multiply-accumulates of one patch."""

    parameters: int
    products: int
    parts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A method as the paper counts it, with three colours, and as it runs here, on one grey channel."""

    title: str
    size_px: int
    labels: int
    colour: Complexity
    grey: Complexity
    paper_parameters: float
    paper_products: float | None  # None where the size or the labels are not the table's


def describe(name: str, *, size_px: int = 1024, labels: int = 4) -> Description:
    """Count a method of the paper.

    Args:
        name: a key of `training.methods.METHODS`.
        size_px: side of the patch.
        labels: L; the paper's is 4.

    Raises:
        ValueError: there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}: there are {', '.join(METHODS)}")
    row = METHODS[name]
    config = NetworkConfig(method=row.method, trunk=row.trunk)
    return Description(
        title=row.title,
        size_px=size_px,
        labels=labels,
        colour=count(config, size_px=size_px, labels=labels, channels=3),
        grey=count(config, size_px=size_px, labels=labels, channels=1),
        paper_parameters=row.parameters,
        paper_products=row.products if (size_px, labels) == (1024, 4) else None,
    )


def count(config: NetworkConfig, *, size_px: int, labels: int, channels: int = 1) -> Complexity:
    """Count a network on a patch of `size_px`."""
    with torch.device("meta"):
        network = build_network(labels, config, channels=channels).eval()
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
