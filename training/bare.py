"""Bundles without limits: a network's graphs, to measure what they cost or where they look, not to inspect with."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine import NO_SECOND_LOOK, FrameLimits, LabelLimits, Manifest
from engine.export import export
from training.attribution import Attribution
from training.datasets import PatchSet
from training.folder import load_run, refuse_changed
from training.network import FeaturesGraph, Network, ReasoningGraph

NEVER = LabelLimits(threshold=1.0, review=(1.0, 1.0))  # no score reaches it: a clean screen, as most are
TOLERANCE = 1e-3


def bare_bundle(
    out: Path, network: Network, *, name: str, labels: Sequence[str], pixels: NDArray[np.uint8], seed: int
) -> None:
    """Write a bundle, its graphs held against the network, whose every screen is clean.

    Args:
        out: the bundle's folder.
        network: in evaluation mode.
        name: of the bundle; its version is the number of labels.
        labels: L names.
        pixels: (n, 1, P, P) its golden patches.
        seed: that the network was made with.

    Raises:
        ValueError: `out` exists and is no bundle, or there is no label.
        ParityError: the exported graphs do not give the network's probabilities.
    """
    manifest = Manifest(
        name=name,
        version=str(len(labels)),
        labels=dict.fromkeys(labels, NEVER),
        patch_px=pixels.shape[-1],
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
        features=FeaturesGraph(network),
        reasoning=ReasoningGraph(network),
        manifest=manifest,
        golden_pixels=pixels,
        parity_pixels=pixels,
        card=f"# {name}\n\nNo limits, {len(labels)} labels: for measuring alone.\n",
    )


def attribution_of(run: Path) -> Attribution:
    """What takes the scores of a finished run's network apart, without making a bundle of it that could serve.

    Raises:
        ValueError: the run is not finished, its data is gone, or its scores cannot be taken apart.
        ParityError: the exported graphs do not give the network's probabilities.
    """
    network, config, labels = load_run(run)
    refuse_changed(run, config)
    validation = PatchSet(config.data.folders, "validation")
    pixels = np.stack([validation.patch(index) for index in range(min(2, len(validation)))])[:, None]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        bare_bundle(bundle, network, name=config.name, labels=labels, pixels=pixels, seed=config.seed)
        try:
            return Attribution(bundle)
        except ValueError as error:  # which names the folder that nobody knows
            raise ValueError(f"{run}: {str(error).removeprefix(f'{bundle}: ')}") from error
