"""Recall by bands divides the recall: every patch with the label is in one band of each kind, once."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.bands import BORDER_BANDS, CONTRAST_BANDS, SIZE_BANDS, Bands, by_band, recall_by_band
from training.evaluation import report
from training.measures import wilson
from training.visible import Visible

LABELS = ("dot", "line")


def visible(label: str, size: int, *, presence: int = 1, border: int | None = 5, contrast: float | None = 7) -> Visible:
    box = {"left": 0, "top": 0, "right": size, "bottom": 1}
    return Visible(label=label, presence=presence, **box, border_px=border, contrast=contrast)


@pytest.mark.parametrize("bands", [SIZE_BANDS, CONTRAST_BANDS, BORDER_BANDS])
def test_bands_touch_and_leave_nothing_out(bands: Bands) -> None:
    edges = list(bands.values())
    assert all(one[1] == other[0] for one, other in itertools.pairwise(edges))
    assert edges[0][0] in (0, -1)
    assert edges[-1][1] > 1e9


def test_the_easiest_defect_of_a_patch_decides_its_band() -> None:
    seen = [
        [visible("dot", 5, border=-1, contrast=3), visible("dot", 40, border=90, contrast=30), visible("line", 200)],
        [visible("dot", 5, border=20, contrast=3), visible("dot", 400, presence=-1)],  # too little of it to be sure
    ]
    target = np.array([[1, 0], [1, 0]], np.int8)
    found = recall_by_band(np.array([[True, True], [False, True]]), target, seen, labels=LABELS)
    assert found["size"]["dot"] == {"0-8 px": wilson(0, 1), "32-128 px": wilson(1, 1)}
    assert found["contrast"]["dot"] == {"0-6": wilson(0, 1), "24-inf": wilson(1, 1)}
    assert found["border"]["dot"] == {"16-64 px": wilson(0, 1), "from 64 px": wilson(1, 1)}
    assert found["size"]["line"] == {}  # no patch has it


def test_what_is_not_told_is_in_no_band() -> None:
    seen = [[visible("dot", 9, border=None, contrast=None)]]
    found = recall_by_band(np.array([[True, False]]), np.array([[1, 0]], np.int8), seen, labels=LABELS)
    assert {kind: found[kind]["dot"] for kind in found} == {
        "size": {"8-32 px": wilson(1, 1)},
        "contrast": {},
        "border": {},
    }


@given(st.data())
def test_the_bands_add_up_to_the_recall(data: st.DataObject) -> None:
    patches = data.draw(st.integers(1, 12))
    sizes, borders = st.integers(1, 1024), st.integers(-1, 1000)
    seen, target = [], np.zeros((patches, 2), np.int8)
    for row in range(patches):
        here = data.draw(st.lists(st.tuples(st.sampled_from(LABELS), sizes, borders, st.floats(0, 99)), max_size=4))
        seen.append([visible(label, size, border=border, contrast=c) for label, size, border, c in here])
        for label, *_ in here:
            target[row, LABELS.index(label)] = 1
    scores = data.draw(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=patches, max_size=patches))
    probability = np.array(scores, np.float32)
    found = recall_by_band(probability >= 0.5, target, seen, labels=LABELS)
    whole = report(probability, target, labels=LABELS, thresholds=[0.5, 0.5])
    for label, of_label in whole.per_label.items():
        for kind in ("size", "contrast", "border"):
            shares = found[kind][label].values()
            assert sum(share.total for share in shares) == of_label.positives
            hits = sum(share.hits for share in shares)
            assert hits == round(of_label.recall * of_label.positives)


def test_a_value_on_an_edge_belongs_to_the_upper_band() -> None:
    found = by_band([(True, 6.0), (False, 5.999), (True, math.nan)], CONTRAST_BANDS)
    assert {band: share[:2] for band, share in found.items()} == {"0-6": (0, 1), "6-12": (1, 1)}
