"""`python -m service bench --part decoders`, on a frame that is small."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.bench import PARTS, decoders
from service.bench.decoders import FORMS, measure
from service.bench.report import BenchError
from service.bench.work import Work
from tests.service.pictures import grey

WORK = Work(bundle=Path(), frames=[grey(200, 150)], seconds=0.01)


def test_every_form_is_timed_beside_opencv_and_pillow() -> None:
    rows = list(PARTS["decoders"](WORK))
    assert [row.name for row in rows] == list(FORMS)
    for row in rows[1:]:
        times = row.figures["milliseconds"]
        assert {"ours", "OpenCV", "Pillow"} <= set(times)
        medians = {name: np.median(found["one"]) for name, found in times.items()}
        best = min(medians["OpenCV"], medians["Pillow"])
        assert row.passed == (medians["ours"] <= decoders.OF_BEST * best)
        for found in times.values():
            assert len(found["one"]) == len(found["two"]) >= decoders.ROUNDS
            assert min(found["one"]) > 0
        assert f"{row.figures['megabytes']:.1f} MB" in row.found
    assert rows[0].name == "raw"
    assert rows[0].passed is None  # nothing else reads it
    sizes = {row.name: row.figures["megabytes"] for row in rows}
    assert sizes["JPEG 90"] < sizes["PNG level 6, all filters, by Pillow"] < sizes["BMP"]


def test_a_decoder_that_gives_other_pixels_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def inverted(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(255 - np.frombuffer(data, np.uint8)[-30_000:].reshape(200, 150), np.uint8)

    monkeypatch.setattr(decoders, "_opencv", inverted)
    with pytest.raises(BenchError, match="OpenCV gives other pixels"):
        list(measure(WORK))
