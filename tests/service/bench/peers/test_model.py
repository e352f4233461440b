"""What all peers share answers as our service does, and MONAI's windows are ours."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import Manifest, cut, load, read_golden
from service.aggregation import aggregate
from service.bench.peers.model import Model
from service.bench.peers.setting import Setting
from service.images import Raw
from service.inspector import Forgetful, Inspector
from service.scheduler import Scheduler
from tests.bundles import BACKGROUND, grey_of, tiny_bundle

SIZE = (128, 192)


def frame_with(*spots: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A textured frame with squares of a label's grey at (label, top, left)."""
    frame = np.random.default_rng(0).integers(BACKGROUND - 4, BACKGROUND + 4, SIZE, np.uint8)
    for label, top, left in spots:
        frame[top : top + 12, left : left + 12] = grey_of(label)
    return frame
