"""The picture of a verdict that people look at: the overlay, and close-ups of the defects beside it."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from service.closeups import closeups
from service.overlay import draw
from service.verdict import Verdict


def write(path: Path, frame: NDArray[np.uint8], verdict: Verdict) -> None:
    """Draw into a PNG file, whatever its name ends with.

    Args:
        path: of the file.
        frame: (H, W) grey, as it was inspected.
        verdict: what was answered for it.

    Raises:
        OSError: it cannot be written.
    """
    overlay = draw(frame, verdict)
    picture = np.concatenate([overlay, closeups(frame, verdict, len(overlay))], axis=1)
    _, encoded = cv2.imencode(".png", picture)
    path.write_bytes(encoded.tobytes())
