"""The methods that the two-stage network is compared with, each behind the same interface, and all of them by name."""

from training.architecture import NetworkConfig
from training.baselines.clustering import FeatureClustering
from training.baselines.kssnet import KSSNet
from training.baselines.plain import Plain
from training.baselines.sewerml import SewerML
from training.baselines.tdrg import TDRG
from training.network import Network, TwoStageNetwork

METHODS: dict[str, type[TwoStageNetwork | FeatureClustering | Plain | KSSNet | TDRG | SewerML]] = {
    "two_stage": TwoStageNetwork,
    "feature_clustering": FeatureClustering,
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
        ValueError: the trunk is unknown or does not fit the method.
    """
    return METHODS[config.method](labels, config, channels=channels)
