import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from engine import to_grey

SIDES = st.integers(1, 70)


@given(st.tuples(SIDES, SIDES).flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3))))
def test_colour_becomes_grey_as_opencv_does_it(image: NDArray[np.uint8]) -> None:
    assert (to_grey(image) == cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).all()


def test_every_colour_there_is_has_its_grey() -> None:
    """float32 holds each sum of the rule exactly: nothing is rounded but by the rule."""
    green, red = np.divmod(np.arange(1 << 16, dtype=np.uint32), 256)
    for blue in np.arange(256, dtype=np.uint32):
        image = np.stack([np.broadcast_to(blue, green.shape), green, red], axis=-1).astype(np.uint8)[None]
        expected = (3735 * blue + 19235 * green + 9798 * red + (1 << 14)) >> 15
        assert (to_grey(image)[0] == expected).all()


def test_the_rule_over_many_colours_and_bands() -> None:
    image = np.random.default_rng(3).integers(0, 256, (500, 700, 3), np.uint8)
    assert (to_grey(image) == cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)).all()


@pytest.mark.parametrize(
    ("blue", "green", "red", "grey"),
    [(255, 0, 0, 29), (0, 255, 0, 150), (0, 0, 255, 76), (255, 255, 255, 255), (0, 0, 0, 0), (1, 2, 3, 2)],
)
def test_channel_order_is_blue_green_red(blue: int, green: int, red: int, grey: int) -> None:
    assert to_grey(np.array([[[blue, green, red]]], np.uint8)).tolist() == [[grey]]


@given(hnp.arrays(np.uint8, st.tuples(SIDES, SIDES)))
def test_grey_keeps_its_values_whatever_it_comes_as(image: NDArray[np.uint8]) -> None:
    opaque = np.full_like(image, 255)
    for form in (
        image,
        image[:, :, None],
        np.dstack([image, image, image]),
        np.dstack([image, image, image, opaque]),
    ):
        grey = to_grey(form)
        assert grey.shape == image.shape
        assert grey.dtype == np.uint8
        assert (grey == image).all()


def test_a_dark_image_is_not_stretched() -> None:
    assert to_grey(np.ones((4, 4), np.uint8)).max() == 1


def test_one_transparent_pixel_is_refused() -> None:
    image = np.full((3, 5, 4), 255, np.uint8)
    image[2, 4, 3] = 254
    with pytest.raises(ValueError, match="transparent"):
        to_grey(image)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        # a 12-bit camera and a 16-bit one write the same type: no shift is right for both
        (np.zeros((4, 4), np.uint16), "8-bit unsigned integers, got uint16"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
        (np.zeros((4, 4), np.int8), "got int8"),
        (np.zeros((4, 4), bool), "got bool"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((4, 4, 5), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((4,), np.uint8), "not an image"),
        (np.zeros((1, 4, 4, 3), np.uint8), "not an image"),
        (np.zeros((0, 4), np.uint8), "not an image"),
        (np.zeros((4, 4, 0), np.uint8), "not an image"),
    ],
)
def test_what_the_rule_does_not_know_is_refused(image: NDArray[np.generic], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_grey(image)
