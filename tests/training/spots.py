"""Screens of two patches, every other one with a spot that a tiny bundle sees more or less well."""

from pathlib import Path

import cv2
import numpy as np

from tests.bundles import BACKGROUND, grey_of
from training.cutting import cut

LABELS = ("bubble", "pinhole")
SCREENS = 24


def cut_spots(base: Path) -> Path:
    """A cut folder of them in a new folder, all in the test part; see `activation`."""
    source, rng = base / "source", np.random.default_rng(0)
    (source / "screens").mkdir(parents=True)
    boxes = ["screen,label,left,top,right,bottom,area_px"]
    for number in range(SCREENS):
        image = rng.integers(BACKGROUND - 20, BACKGROUND + 21, (64, 128)).astype(np.uint8)
        if number % 2:
            label = number // 2 % 2
            image[20:28, 20:28] = grey_of(label) - number % 5  # an activation from 1 down to a half
            boxes.append(f"s{number:02d},{LABELS[label]},20,20,28,28,64")
        cv2.imwrite(str(source / "screens" / f"s{number:02d}.png"), image)
    (source / "boxes.csv").write_text("\n".join(boxes) + "\n")
    (source / "splits.csv").write_text("screen,part\n" + "".join(f"s{n:02d},test\n" for n in range(SCREENS)))
    cut(source, base / "cut", patch_px=64, labels=LABELS)
    return base / "cut"
