"""A bundle of a random network in every precision, for the tests of what they give."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from engine import Manifest, fake_manifest
from engine.export import export
from engine.half import write_half
from engine.quantise import quantise
from training.architecture import NetworkConfig
from training.network import FeaturesGraph, ReasoningGraph, TwoStageNetwork

LABELS = ("bubble", "pinhole", "scratch", "tin_ash")
PATCH_PX, BATCH = 64, 3
PRECISIONS = ("fp32", "fp16", "int8", "int8-trt")
PATCHES = np.random.default_rng(0).integers(0, 256, (7, 1, PATCH_PX, PATCH_PX), np.uint8)
WIDTHS = {"feature_width": 8, "projection_width": 8, "relation_width": 4}


def network(trunk: str = "light", pooling: str = "attention", light: str = "linear") -> TwoStageNetwork:
    """Of random weights, and with normalisations that do something."""
    torch.manual_seed(0)
    config = NetworkConfig(trunk=trunk, pooling=pooling, light=light, **WIDTHS)  # type: ignore[arg-type]
    made = TwoStageNetwork(len(LABELS), config).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return made


def write_bundle(out: Path, made: TwoStageNetwork) -> Path:
    """Write the float32 bundle of a network."""
    return write_graphs(out, FeaturesGraph(made), ReasoningGraph(made))


def write_graphs(out: Path, features: nn.Module, reasoning: nn.Module) -> Path:
    """Write the float32 bundle of two modules."""
    export(
        out,
        features=features,
        reasoning=reasoning,
        manifest=fake_manifest(LABELS, patch_px=PATCH_PX, batch_size=BATCH),
        golden_pixels=PATCHES[:2],
        parity_pixels=PATCHES,
        card="# card\n",
    )
    return out


def with_half(bundle: Path, out: Path, made: TwoStageNetwork, *, patch_px: int = PATCH_PX) -> Path:
    """A copy of a bundle that has another network's fp16 graph, whatever its other graphs are."""
    shutil.copytree(bundle, out)
    write_half(out, FeaturesGraph(made), part=FeaturesGraph.TRUNK, patch_px=patch_px)
    sign(out, replace(Manifest.read(bundle), patch_px=patch_px))
    return out


def sign(bundle: Path, manifest: Manifest) -> None:
    """Sign what lies in a bundle, with a tolerance for each precision."""
    tolerances = {"fp32": 1e-4, "fp16": 0.01, "int8": 0.5, "int8-trt": 0.25}
    replace(manifest, parity_tolerance=tolerances).sign(bundle)


def bundle_of_every_precision(out: Path) -> Path:
    """Write it; 4 of the trunk's convolutions stay in float32 for int8, 3 for int8-trt."""
    made = network()
    write_bundle(out, made)
    write_half(out, FeaturesGraph(made), part=FeaturesGraph.TRUNK, patch_px=PATCH_PX)
    ranges = out.with_suffix(".ranges")
    for precision, keep in (("int8", 4), ("int8-trt", 3)):
        quantise(out, precision, pixels=PATCHES, part=FeaturesGraph.TRUNK, keep=keep, ranges=ranges)
    sign(out, Manifest.read(out))
    return out
