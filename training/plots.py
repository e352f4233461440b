"""Whether pictures can be drawn here: those who draw import matplotlib themselves, and only then."""

from importlib.util import find_spec

OURS, THEIRS = "#0072B2", "#D55E00"  # told apart by the colour-blind


def can_draw() -> bool:
    """Whether matplotlib is installed; the extras `bench` and `dev` bring it."""
    return find_spec("matplotlib") is not None


def require() -> None:
    """Say now if no picture could be drawn later.

    Raises:
        ValueError: matplotlib is not installed.
    """
    if not can_draw():
        raise ValueError("a picture needs matplotlib: pip install '.[bench]'")
