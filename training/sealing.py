"""A sealed set of screens: what the training module itself says of each, written beside them for the release gate.

`DIR/sealed.json` names the bundle, and for every screen the SHA-256 of its file, the windows, the module's
probabilities, and its map of each label that a window has; the windows that cover the screen first, then those of the
module's own second look where the bundle has one, and which of them it looked at turned. `python -m service release`
runs the bundle over the same files and compares whole verdicts, boxes and all.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from engine import Features, Manifest, Window, cover, in_doubt, look_again, look_turned, read_golden, turned
from engine import cut as cut_windows
from training.folder import load_run
from training.images import read_header, read_whole, screen_files
from training.inference import CHUNK
from training.network import FeaturesGraph, Network, ReasoningGraph
from training.temperature import temperatures_of

SEALED_FILE = "sealed.json"


def module_of(run: Path, bundle: Path) -> Network:
    """The module that a bundle was exported from, with its temperatures.

    Args:
        run: folder of the run.
        bundle: folder of its bundle, or of one with its graphs and other limits.

    Raises:
        ValueError: the run is not finished, or the module does not give the bundle's golden patches their answers.
        BundleError: the bundle is not whole.
    """
    network, _, labels = load_run(run)
    manifest = Manifest.read(bundle)
    golden = read_golden(bundle, manifest=manifest)
    if labels == manifest.label_names:
        network.temper(torch.tensor(temperatures_of(manifest)))
        probability = _reason(network, _features(network, golden.pixels))
        if np.abs(probability - golden.probability).max() <= golden.tolerance:
            return network
    raise ValueError(f"{bundle} was not exported from {run}: its golden patches have other answers")


def refuse_unfit(source: Path, *, patch_px: int) -> None:
    """Refuse screens that `seal` would not take, as far as their headers tell: before an export, not after it.

    Raises:
        ValueError: there is no screen, or one cannot be read or is smaller than a patch.
    """
    for path in screen_files(source).values():
        if min(read_header(path).size) < patch_px:
            raise ValueError(f"{path} is smaller than a patch, which is {patch_px} px wide")


def seal(network: Network, manifest: Manifest, source: Path) -> int:
    """Write `source/sealed.json`, replacing an earlier one; the number of screens.

    Args:
        network: the module that the bundle was exported from.
        manifest: of that bundle.
        source: folder in the data form; screens smaller than a patch are refused.

    Raises:
        ValueError: there is no screen, or one is too small, incomplete or of a kind that is not read, as the service
            would refuse it.
    """
    network.eval()
    screens = {}
    for path in track(screen_files(source).values(), description="seal"):
        windows, doubtful, probability, activation = _inspect(network, manifest, read_whole(path))
        screens[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "windows": [[window.top, window.left] for window in windows],
            "turned": doubtful,
            "probability": probability.astype(np.float64).tolist(),  # which holds a float32 exactly
            "maps": _maps(probability, activation, manifest),
        }
    text = json.dumps(
        {"name": manifest.name, "version": manifest.version, "labels": manifest.label_names, "screens": screens}
    )
    (source / SEALED_FILE).write_text(text + "\n")
    return len(screens)


def _inspect(
    network: Network, manifest: Manifest, frame: NDArray[np.uint8]
) -> tuple[tuple[Window, ...], tuple[int, ...], NDArray[np.float32], NDArray[np.float32]]:
    """The windows of a frame (H, W) as the service takes them, which are looked at turned, probabilities and maps."""
    windows = cover(*frame.shape, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)
    features = _features(network, cut_windows(frame, windows, manifest.patch_px))
    probability = _reason(network, features)
    between = look_again(windows, probability, features.activation, manifest)
    if between:
        again = _features(network, cut_windows(frame, between, manifest.patch_px))
        features = Features.joined([features, again])
        windows, probability = windows + between, _reason(network, features)

    def see_turned(window: int) -> Features:
        patch = cut_windows(frame, [windows[window]], manifest.patch_px)[0, 0]
        return _features(network, turned(patch))

    doubtful = in_doubt(probability, manifest.turned_look)
    if doubtful:
        features = look_turned(features, doubtful, see_turned)
        probability = _reason(network, features)
    return windows, doubtful, probability, features.activation


def _maps(
    probability: NDArray[np.float32], activation: NDArray[np.float32], manifest: Manifest
) -> list[dict[str, Any]]:
    """The map of each window and label that the window has: no other draws a box. Four digits of each value do."""
    thresholds = np.array([limits.threshold for limits in manifest.labels.values()])
    return [
        {
            "window": k,
            "label": manifest.label_names[c],
            "heat": [[float(f"{value:.4g}") for value in row] for row in activation[k, c].tolist()],
        }
        for k, c in np.argwhere(probability.astype(np.float64) >= thresholds).tolist()
    ]


@torch.inference_mode()
def _features(network: Network, pixels: NDArray[np.uint8]) -> Features:
    graph = FeaturesGraph(network)
    own = torch.from_numpy(pixels.copy())  # what is cut may not be written to, which torch will not have
    parts = [[out.numpy() for out in graph(some)] for some in torch.split(own, CHUNK)]
    return Features.joined(
        [
            Features(label_features=x, stage1=cosine, activation=activation, doubt=np.ones(len(x), np.float32))
            for x, cosine, activation in parts
        ]
    )


@torch.inference_mode()
def _reason(network: Network, features: Features) -> NDArray[np.float32]:
    """Of all patches together, (K, L)."""
    graph = ReasoningGraph(network)
    probability = graph(torch.from_numpy(features.label_features), torch.from_numpy(features.stage1))
    return np.asarray(probability.numpy(), np.float32)
