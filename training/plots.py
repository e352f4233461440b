"""Whether pictures can be drawn here: those who draw import matplotlib themselves, and only then."""

from importlib.util import find_spec
from pathlib import Path

OURS, THEIRS = "#0072B2", "#D55E00"  # told apart by the colour-blind


def can_draw() -> bool:
    """Whether matplotlib is installed; the extras `bench` and `dev` bring it."""
    return find_spec("matplotlib") is not None


def require(file: Path | None = None) -> None:
    """Say now if no picture could be drawn later, or none into that file.

    Raises:
        ValueError: matplotlib is not installed, or draws nothing whose name ends like the file's.
    """
    if not can_draw():
        raise ValueError("a picture needs matplotlib: pip install '.[training]'")
    if file is not None:
        from matplotlib.backend_bases import FigureCanvasBase

        kinds = FigureCanvasBase.get_supported_filetypes()
        if file.suffix.lower().removeprefix(".") not in kinds:
            raise ValueError(f"{file}: a picture's name ends with one of {', '.join(f'.{kind}' for kind in kinds)}")
