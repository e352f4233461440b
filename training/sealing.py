"""A sealed set of screens: what the training module itself says of each, written beside them for the release gate.

`DIR/sealed.json` names the bundle, and for every screen the SHA-256 of its file, the windows and the module's
probabilities. `python -m service release` runs the bundle over the same files and compares whole verdicts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.progress import track

from engine import Manifest, cover, to_grey
from engine import cut as cut_windows
from training.cutting import screen_files
from training.fit import CHUNK, screen_probability
from training.network import TwoStageNetwork

SEALED_FILE = "sealed.json"


def seal(network: TwoStageNetwork, manifest: Manifest, source: Path) -> int:
    """Write `source/sealed.json`, replacing an earlier one; the number of screens.

    Args:
        network: the module that the bundle was exported from.
        manifest: of that bundle.
        source: folder in the data form; screens smaller than a patch are refused.

    Raises:
        ValueError: there is no screen, or one cannot be read or is too small.
    """
    network.eval()
    screens = {}
    for path in track(screen_files(source).values(), description="seal"):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError(f"{path} cannot be read")
        frame = to_grey(image)
        windows = cover(*frame.shape, patch_px=manifest.patch_px, overlap_px=manifest.overlap_px)
        patches = torch.from_numpy(cut_windows(frame, windows, manifest.patch_px))
        with torch.inference_mode():
            probability = screen_probability(network, torch.split(patches, CHUNK))
        screens[path.name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "windows": [[window.top, window.left] for window in windows],
            "probability": probability.astype(np.float64).tolist(),  # which holds a float32 exactly
        }
    text = json.dumps(
        {"name": manifest.name, "version": manifest.version, "labels": manifest.label_names, "screens": screens}
    )
    (source / SEALED_FILE).write_text(text + "\n")
    return len(screens)
