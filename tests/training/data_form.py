"""A tiny folder in the data form: dots and lines on noise, learnable in seconds."""

import csv
from pathlib import Path

import cv2
import numpy as np

from training.cutting import cut

# two phases of a light network on a folder `cut`, short enough for a test
TOML = """
name = "toy"
run = "run"
relations = "screen"
threads = 1

[data]
folders = ["cut"]

[network]
trunk = "light"
pooling = "attention"
feature_width = 16
projection_width = 16
relation_width = 8

[phase1]
epochs = 5
batch = 16
optimiser = "adamw"
learning_rate = 4e-3

[phase2]
epochs = 2
batch = 16
optimiser = "adamw"
learning_rate = 1e-3

[loss]
map = 1.0
"""


def write_screens(folder: Path, *, screens: int = 30, seed: int = 0, height: int = 192, width: int = 256) -> Path:
    """Screens with a bright dot, a bright line, both or neither; masks for every second screen."""
    rng = np.random.default_rng(seed)
    (folder / "screens").mkdir(parents=True)
    (folder / "masks").mkdir()
    boxes: list[tuple[object, ...]] = []
    for number in range(screens):
        name = f"t{number:03d}"
        image = rng.normal(60, 4, (height, width)).clip(0, 255).astype(np.uint8)
        masks = []
        for label in [label for label in ("dot", "line") if number % 3 and rng.random() < 0.7]:
            x, y = int(rng.integers(20, width - 60)), int(rng.integers(20, height - 20))
            drawn = np.zeros_like(image)
            if label == "dot":
                cv2.circle(drawn, (x, y), 5, 1, -1)
            else:
                cv2.line(drawn, (x, y), (x + 40, y), 1, 2)
            image[drawn > 0] = 200
            rows, columns = np.nonzero(drawn)
            masks.append((rows, columns, np.full(len(rows), len(boxes))))
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            boxes.append((name, label, *box, len(rows)))
        cv2.imwrite(str(folder / "screens" / f"{name}.png"), image)
        if masks and number % 2:
            row, column, ids = (np.concatenate(part).astype(np.int32) for part in zip(*masks, strict=True))
            np.savez_compressed(folder / "masks" / f"{name}.npz", row=row, column=column, id=ids)
    _table(folder / "boxes.csv", "screen,label,left,top,right,bottom,area_px", boxes)
    parts = [(f"t{n:03d}", "test" if n % 5 == 4 else "train") for n in range(screens)]
    _table(folder / "splits.csv", "screen,part", parts)
    return folder


def write_toy(base: Path, *, screens: int, patch_px: int = 128) -> Path:
    """Screens that are cut, and the configuration that learns from them; the path of its file."""
    cut(write_screens(base / "source", screens=screens), base / "cut", patch_px=patch_px)
    (base / "toy.toml").write_text(TOML)
    return base / "toy.toml"


def _table(path: Path, header: str, rows: list[tuple[object, ...]] | list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header.split(","))
        writer.writerows(rows)
