"""Bundles of the network's form with random weights: to measure what they cost, not to inspect with.

Cost follows from shapes alone, so that nobody has to train a network of 64 labels to know what it would take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from engine import Manifest
from training.architecture import NetworkConfig
from training.bare import bare_bundle
from training.baselines import build_network
from training.config import read_config

EMBEDDED = Path(__file__).parent / "configs" / "embedded.toml"


def untrained_bundle(
    out: Path, *, labels: int, patch_px: int = 1024, network: NetworkConfig | None = None, seed: int = 0
) -> Manifest:
    """Write a verified bundle whose every screen is clean.

    Args:
        out: the bundle's folder.
        labels: how many, `label_0` and so on.
        patch_px: side of a patch in pixels, a multiple of 32.
        network: its form; that of the embedded bundle by default.
        seed: of the weights and the golden patches.

    Raises:
        ValueError: `out` exists and is no bundle, or there is no label.
        ParityError: the exported graphs do not give the module's probabilities.
    """
    torch.manual_seed(seed)
    module = build_network(labels, network or read_config(EMBEDDED).network).eval()
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 1, patch_px, patch_px), np.uint8)
    names = [f"label_{number}" for number in range(labels)]
    bare_bundle(out, module, name="untrained", labels=names, pixels=pixels, seed=seed)
    return Manifest.read(out)
