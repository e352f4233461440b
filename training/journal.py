"""What a run writes down as it goes: a progress bar, a row an epoch in metrics.csv, TensorBoard events."""

from __future__ import annotations

import csv
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


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
    """Appends a row an epoch to metrics.csv and to TensorBoard; only the first device writes."""

    columns = ("phase", "epoch", "loss", "bce", "contrast", "map", "learning_rate", "accuracy", "f_measure")

    def __init__(self, run: Path, active: bool) -> None:
        self._file = run / "metrics.csv"
        self._board = SummaryWriter(str(run / "tensorboard")) if active else None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._board is not None:
            self._board.close()

    def write(self, phase: str, epoch: int, values: dict[str, float]) -> None:
        """Add what was measured in one epoch, counted from 0."""
        if self._board is None:
            return
        new = not self._file.is_file()
        with self._file.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({"phase": phase, "epoch": epoch + 1, **{k: f"{v:.6g}" for k, v in values.items()}})
        for key, value in values.items():
            self._board.add_scalar(f"{phase}/{key}", value, epoch + 1)
