"""Bundles of the network's form with random weights: to measure what they cost, not to inspect with.

Cost follows from shapes alone, so that nobody has to train a network of 64 labels to know what it would take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from engine import NO_SECOND_LOOK, FrameLimits, LabelLimits, Manifest
from engine.export import export
from training.architecture import NetworkConfig
from training.baselines import build_network
from training.config import read_config
from training.network import FeaturesGraph, ReasoningGraph

EMBEDDED = Path(__file__).parent / "configs" / "embedded.toml"
NEVER = LabelLimits(threshold=1.0, review=(1.0, 1.0))  # no score reaches it: a clean screen, as most are
TOLERANCE = 1e-3


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
    manifest = Manifest(
        name="untrained",
        version=str(labels),
        labels={f"label_{number}": NEVER for number in range(labels)},
        patch_px=patch_px,
        overlap_px=0,
        second_look=NO_SECOND_LOOK,
        batch_size=5,
        frame=FrameLimits(saturated_ratio_max=1.0, contrast_min=0.0),
        files={},
        parity_tolerance={"fp32": TOLERANCE},
        data_id="none",
        training={"seed": float(seed)},
    )
    export(
        out,
        features=FeaturesGraph(module),
        reasoning=ReasoningGraph(module),
        manifest=manifest,
        golden_pixels=pixels,
        parity_pixels=pixels,
        card=f"# Untrained\n\nRandom weights, {labels} labels: for measuring alone.\n",
    )
    return Manifest.read(out)
