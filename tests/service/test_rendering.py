from pathlib import Path

import cv2
import numpy as np
import pytest

from service.rendering import RenderingError, read_frame, render


def test_screens_are_rendered_and_counted_and_a_seed_gives_the_same_again(tmp_path: Path) -> None:
    told: list[int] = []
    for name in ("one", "two"):
        render(tmp_path / name, screens=2, seed=7, size=(256, 320), tell=told.append)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "screens").iterdir()} for name in ("one", "two")
    )
    assert one == two
    assert len(one) == told[-1] == 2


def test_what_the_renderer_says_is_told(tmp_path: Path) -> None:
    with pytest.raises(RenderingError, match=r"rendering failed:\n(?s:.*)--screens"):
        render(tmp_path, screens=-1, seed=7, size=(256, 320))


def test_a_screen_is_read_as_grey_and_what_is_none_is_told(tmp_path: Path) -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (8, 9), np.uint8)
    file = tmp_path / "screen.png"
    cv2.imwrite(str(file), pixels)
    np.testing.assert_array_equal(read_frame(file), pixels)
    file.write_bytes(file.read_bytes()[:20])
    for unread in (file, tmp_path / "none.png"):
        with pytest.raises(RenderingError, match=f"{unread} cannot be read"):
            read_frame(unread)
