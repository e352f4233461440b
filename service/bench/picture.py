"""The picture of `service.bench.growth`: a panel a question, both axes logarithmic, so that slopes are exponents.

The only file that imports matplotlib, when it draws: the extra `bench`.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.bench.curves import Curve, Panel, seconds
from service.bench.report import BenchError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_IN, DOTS_PER_IN = (10.0, 8.0), 160  # shown at half of it, the text is as large as the page's
# the whole in black, its stages in the colours of Okabe and Ito, which colour-blind people tell apart
MOST_TICKS = 8
STYLES: dict[str, dict[str, Any]] = {
    "wall": {"color": "#000000", "linewidth": 2.4, "marker": "o", "markersize": 5, "zorder": 5},
    "CPU": {"color": "#000000", "linewidth": 1.6, "linestyle": (0, (4, 2)), "zorder": 4},
    "receive": {"color": "#CC79A7"},
    "decode": {"color": "#009E73"},
    "queue": {"color": "#E69F00"},
    "features": {"color": "#D55E00"},
    "reasoning": {"color": "#0072B2"},
    "aggregate": {"color": "#56B4E9"},
}
TEXT: Any = {  # of matplotlib's settings
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def require() -> None:
    """Say now if no picture could be drawn later.

    Raises:
        BenchError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise BenchError("a picture needs matplotlib: pip install '.[bench]'")


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels, two in a row: medians with quartiles, a ring where `wall` bends, its growth in words above.

    Args:
        panels: at least one.
        path: of the picture; its suffix decides the format.

    Raises:
        BenchError: matplotlib is not installed.
        OSError: it cannot be written.
    """
    require()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(TEXT):
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False).ravel().tolist()
        for axes, panel in zip(grid, panels, strict=False):
            _panel(axes, panel)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        handles = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        named = [name for name in STYLES if name in handles]
        figure.legend(
            [handles[name] for name in named],
            named,
            loc="outside upper center",
            ncols=len(named),
            columnspacing=1.4,
            frameon=False,
        )
        figure.savefig(path, dpi=DOTS_PER_IN)


def _panel(axes: "Axes", panel: Panel) -> None:
    for name, curve in panel.curves.items():
        style = {"linewidth": 1.6, "marker": ".", **STYLES[name]}
        axes.plot(curve.sizes, curve.median_s, label=name, **style)
        axes.fill_between(curve.sizes, curve.low_s, curve.high_s, color=style["color"], alpha=0.15, linewidth=0)
    wall = panel.curves["wall"]
    _ring_bends(axes, wall)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(panel.title, pad=20)
    words = axes.text(0, 1.02, f"wall: {wall.describe_bends()}", transform=axes.transAxes, fontsize=10, color="#555555")
    words.set_in_layout(False)  # else the longest would make its column narrow
    axes.set_xlabel(panel.unit)
    axes.set_ylabel("time of a screen")
    step = -(-len(wall.sizes) // MOST_TICKS)
    ticks = wall.sizes[::-1][::step]
    axes.set_xticks(ticks, [f"{size:.0f}" for size in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: seconds(value))
    axes.grid(visible=True, which="major", color="#E4E4E4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _ring_bends(axes: "Axes", curve: Curve) -> None:
    for size in list(curve.bends)[1:]:
        at = curve.median_s[list(curve.sizes).index(size)]
        axes.plot(size, at, marker="o", markersize=13, markerfacecolor="none", markeredgewidth=1.6, color="#000000")
