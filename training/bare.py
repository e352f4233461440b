"""Bundles without limits: a network's graphs, to measure what they cost or where they look, not to inspect with."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engine import NO_SECOND_LOOK, FrameLimits, LabelLimits, Manifest
from engine.export import export
from training.architecture import NetworkConfig
from training.attribution import Attribution
from training.baselines import build_network
from training.config import read_config
from training.datasets import PatchSet
from training.folder import load_run, refuse_changed
from training.network import FeaturesGraph, Network, ReasoningGraph
from training.truth import CELL_PX

EMBEDDED = Path(__file__).parent / "configs" / "embedded.toml"
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


def untrained_bundle(out: Path, *, labels: int, patch_px: int, network: NetworkConfig | None = None) -> Manifest:
    """Write a verified bundle with random weights, whose every screen is clean.

    Cost follows from shapes alone, so that nobody has to train a network of 64 labels to know what it would take.

    Args:
        out: the bundle's folder.
        labels: how many, `label_0` and so on.
        patch_px: side of a patch in pixels, a multiple of 32.
        network: its form; that of the embedded bundle by default.

    Raises:
        ValueError: `out` exists and is no bundle, there is no label, or the side is no multiple of 32.
        ParityError: the exported graphs do not give the module's probabilities.
    """
    if patch_px % CELL_PX:
        raise ValueError(f"--patch must be a multiple of {CELL_PX}, not {patch_px}")
    torch.manual_seed(0)
    module = build_network(labels, network or read_config(EMBEDDED).network).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, patch_px, patch_px), np.uint8)
    names = [f"label_{number}" for number in range(labels)]
    bare_bundle(out, module, name="untrained", labels=names, pixels=pixels, seed=0)
    return Manifest.read(out)


def attribution_of(run: Path, *, data: Path | None = None) -> Attribution:
    """What takes the scores of a finished run's network apart, without making a bundle of it that could serve.

    Args:
        run: its folder.
        data: the cut folder of a run that had one, where it may have been moved since; None: where it was.

    Raises:
        ValueError: the run is not finished, its data has changed, or its scores cannot be taken apart.
        OSError: its data is gone.
        ParityError: the exported graphs do not give the network's probabilities.
    """
    network, config, labels = load_run(run)
    if data is not None:
        config = config.moved(lambda _: data)
    refuse_changed(run, config)
    validation = PatchSet(config.data.folders, "validation")
    pixels = validation.pixels(range(min(2, len(validation))))
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        bare_bundle(bundle, network, name=config.name, labels=labels, pixels=pixels, seed=config.seed)
        try:
            return Attribution(bundle)
        except ValueError as error:  # which names the folder that nobody knows
            raise ValueError(f"{run}: {str(error).removeprefix(f'{bundle}: ')}") from error
