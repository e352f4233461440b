"""The picture of `training.comparison`: loss and validation F of each run, epoch by epoch."""

from collections.abc import Sequence
from pathlib import Path

from training.comparison import Trained
from training.config import PHASES
from training.plots import require

SIZE_IN, DOTS_PER_IN = (10.0, 6.0), 160
STYLES = ("-", "--", ":", "-.")  # one more for each round of the colours
# those of Okabe and Ito, which colour-blind people tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw(runs: Sequence[Trained], path: Path) -> None:
    """Draw loss and validation F of each phase, a colour a run, a ring at the epoch that it kept.

    Args:
        runs: at least one.
        path: of the picture; its suffix decides the format.

    Raises:
        ValueError: matplotlib is not installed, or does not know the format.
        OSError: it cannot be written.
    """
    require()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE_IN, layout="constrained")
    grid = figure.subplots(2, len(PHASES), sharex="col", squeeze=False)
    for (above, below), phase in zip(grid.T, PHASES, strict=True):
        for number, one in enumerate(runs):
            epochs = [e for e in one.epochs if e.phase == phase]
            numbers, colour = [e.epoch for e in epochs], COLOURS[number % len(COLOURS)]
            style = STYLES[number // len(COLOURS) % len(STYLES)]
            above.plot(numbers, [e.loss for e in epochs], style, color=colour, label=f"run {number}")
            below.plot(numbers, [e.f_measure for e in epochs], style, color=colour)
            best = one.best(phase)
            if best is not None:
                below.plot([best.epoch], [best.f_measure], "o", color=colour, fillstyle="none", markersize=9)
        above.set_title(phase, loc="left", fontweight="bold")
        above.set_ylabel("loss")
        below.set_ylabel("validation F at 0.5")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (above, below):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=min(len(runs), 4), frameon=False)
    for text, one in zip(legend.get_texts(), runs, strict=True):  # as it is: "_old" is shown, "$" begins no formula
        text.set_parse_math(False)
        text.set_text(one.run)
    figure.savefig(path, dpi=DOTS_PER_IN)
