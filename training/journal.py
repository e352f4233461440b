"""What a run writes down as it goes: a progress bar, a row an epoch in metrics.csv, TensorBoard events."""

from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from training.rows import read_rows, write_rows
from training.whole import replace


def epoch_progress(*, visible: bool) -> Progress:
    """A bar over the steps of an epoch that shows the loss."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, disable=not visible)


class Journal:
    """Keeps a row an epoch in metrics.csv and in TensorBoard; only the first device writes."""

    columns = (
        *("phase", "epoch", "loss", "bce", "contrast", "map", "learning_rate", "accuracy", "f_measure"),
        "seconds",  # that the epoch took, validation and all
    )

    def __init__(self, run: Path, active: bool) -> None:
        self._file = run / "metrics.csv"
        self._board = SummaryWriter(str(run / "tensorboard")) if active else None

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, phase: str, epoch: int, values: dict[str, float]) -> None:
        """Write what was measured in one epoch, counted from 0; in the place of the row that a killed run left."""
        if self._board is None:
            return
        row = {"phase": phase, "epoch": str(epoch + 1), **{key: f"{value:.6g}" for key, value in values.items()}}
        row["f_measure"] = str(values["f_measure"])  # all its digits: they decide which epoch is the best
        kept = read_rows(self._file) if self._file.is_file() else []
        kept = [old for old in kept if (old["phase"], old["epoch"]) != (row["phase"], row["epoch"])]
        table = [[one.get(column, "") for column in self.columns] for one in (*kept, row)]
        replace(self._file, lambda partial: write_rows(partial, self.columns, table))
        for key, value in values.items():
            self._board.add_scalar(f"{phase}/{key}", value, epoch + 1)
