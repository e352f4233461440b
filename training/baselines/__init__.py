"""The methods that the two-stage network is compared with, each behind the same interface, and all of them by name."""

from dataclasses import replace

import torch

from training.architecture import NetworkConfig
from training.baselines.kssnet import KSSNet
from training.baselines.plain import Plain
from training.baselines.sewerml import SewerML
from training.baselines.tdrg import TDRG
from training.network import Clustering, Network, TwoStageNetwork

METHODS: dict[str, type[Clustering | Plain | KSSNet | TDRG | SewerML]] = {
    "two_stage": TwoStageNetwork,
    "feature_clustering": Clustering,
    "plain": Plain,
    "kssnet": KSSNet,
    "tdrg": TDRG,
    "sewerml": SewerML,
}


def build_network(labels: int, config: NetworkConfig, *, channels: int = 1) -> Network:
    """The network of a configuration.

    Args:
        labels: L.
        config: its method, trunk and widths.
        channels: 1; 3 is for counting as the literature does, and takes no pixels of ours.

    Raises:
        ValueError: the trunk or its weights are unknown, or the trunk or a width does not fit the method.
    """
    return METHODS[config.method](labels, config, channels=channels)


def refuse_small_patches(labels: int, config: NetworkConfig, patch_px: int) -> None:
    """Refuse patches of which a layer of the network leaves nothing.

    One goes through on shapes alone, so that no weight is drawn, fetched or held.

    Raises:
        ValueError: they are too small, or see `build_network`.
    """
    with torch.device("meta"), torch.inference_mode():
        network = build_network(labels, replace(config, trunk_weights=None)).eval()
        try:
            network(torch.zeros(1, 1, patch_px, patch_px, dtype=torch.uint8))
        except NotImplementedError:  # a RuntimeError too: of an operator that knows no shapes alone
            raise
        except RuntimeError as error:
            method = f"network.method = {config.method!r} (trunk: {config.trunk_name})"
            raise ValueError(f"patches of {patch_px} px are too small for {method}: {error}") from error
