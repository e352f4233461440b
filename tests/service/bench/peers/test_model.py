"""What all peers share answers what our service does, and MONAI's windows are ours."""

import importlib.util
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.bench.peers.model import Model
from service.bench.peers.setting import Setting
from service.files import inspector
from service.images import RAW, Source
from service.inspector import Inspector
from service.settings import Settings
from tests.bundles import BACKGROUND, LABELS, grey_of, tiny_bundle

SIZE = (192, 128)  # 3 x 2 windows of 64, so that rows and columns cannot be taken for each other
SPOT_PX = 12
Spots = list[tuple[int, int, int]]  # label, top, left
spots = st.lists(
    st.tuples(st.integers(0, len(LABELS) - 1), st.integers(0, SIZE[0] - SPOT_PX), st.integers(0, SIZE[1] - SPOT_PX)),
    max_size=5,
)


def frame_with(*found: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A textured frame with a square of a label's grey at each (label, top, left)."""
    frame = np.random.default_rng(0).integers(BACKGROUND - 9, BACKGROUND + 10, SIZE).astype(np.uint8)
    for label, top, left in found:
        frame[top : top + SPOT_PX, left : left + SPOT_PX] = grey_of(label)
    return frame


@pytest.fixture(scope="module")
def ours(bundle: Path) -> Iterator[Inspector]:
    with inspector(Settings(bundle=bundle, runtime="onnxruntime", threads=1, frame_size=SIZE)) as ready:
        yield ready


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("peers") / "bundle")


def said_by_us(ours: Inspector, frame: NDArray[np.uint8]) -> dict[str, Any]:
    """What a peer decides too."""
    source = Source(data=frame.tobytes(), media_type=RAW, size=frame.shape)
    verdict = ours.inspect("one", source, deadline_at=1e9).verdict
    assert verdict is not None
    return decided(asdict(verdict))


def decided(answer: dict[str, Any]) -> dict[str, Any]:
    """All but the scores, whose last bits are the order of sums."""
    return {
        "verdict": answer["verdict"],
        "reasons": answer["reasons"],
        "present": {label: (said["present"], said["count"]) for label, said in answer["labels"].items()},
        "defects": sorted(
            (defect["label"], defect["row"], defect["column"], *defect["box"].values()) for defect in answer["defects"]
        ),
    }


@hypothesis_settings(deadline=None, max_examples=15)
@given(found=spots, patches=st.integers(1, 7))
def test_a_peer_decides_what_we_decide(ours: Inspector, bundle: Path, found: Spots, patches: int) -> None:
    frame = frame_with(*found)
    model = Model(bundle, SIZE, threads=1, patches=patches)
    assert decided(model.inspect(frame.tobytes())) == said_by_us(ours, frame)


def test_a_peer_decides_the_same_on_our_session(ours: Inspector, bundle: Path) -> None:
    model = Model(bundle, SIZE, threads=2, patches=4, ours=True)
    for frame in (frame_with(), frame_with((0, 20, 70)), frame_with((1, 140, 80), (3, 60, 10))):
        assert decided(model.inspect(frame.tobytes())) == said_by_us(ours, frame)


def test_a_defect_is_found_at_all(ours: Inspector, bundle: Path) -> None:
    frame = frame_with((1, 140, 80))  # in the last window
    answer = Model(bundle, SIZE, threads=1, patches=1).inspect(frame.tobytes())
    assert answer["verdict"] == "fail"
    assert [(d["label"], d["row"], d["column"]) for d in answer["defects"]] == [(LABELS[1], 2, 1)]


def test_a_body_of_another_length_is_refused(bundle: Path) -> None:
    with pytest.raises(ValueError, match="reshape"):
        Model(bundle, SIZE, threads=1, patches=1).inspect(b"\0" * 100)


def test_a_peer_needs_to_know_the_frame(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_BUNDLE", str(bundle))
    with pytest.raises(ValueError, match="INSPECT_FRAME_SIZE"):
        Model.configured()


@pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="needs the extra `bench`")
@pytest.mark.filterwarnings("ignore")  # of MONAI and what it loads
@pytest.mark.parametrize(("patches", "session"), [(1, False), (4, False), (4, True)])
def test_monai_slides_over_our_windows(ours: Inspector, bundle: Path, patches: int, session: bool) -> None:
    from service.bench.peers.monai import Sliding

    setting = Setting(threads=1, patches=patches)
    sliding = Sliding(Model(bundle, SIZE, threads=1, patches=patches, ours=session), setting)
    for frame in (frame_with(), frame_with((0, 20, 70)), frame_with((1, 140, 80), (3, 60, 10))):
        assert decided(sliding.inspect(frame.tobytes())) == said_by_us(ours, frame)
