"""The service's verdicts against the truth: escape, overkill and review of whole screens, labels and boxes.

Reads verdicts as JSON (`service inspect --json`, or answers collected from the line) and the boxes of a data folder.
numpy only; nothing of the service is imported.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.cutting import Defect, read_defects, read_parts, screen_files
from training.measures import f_measure

CONTRAST_BANDS = ((0.0, 6.0), (6.0, 12.0), (12.0, 24.0), (24.0, math.inf))  # in multiples of the local noise


class Share(NamedTuple):
    """`hits` of `total`, with its 95 % Wilson interval (Wilson 1927)."""

    hits: int
    total: int
    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJudgement:
    """One label over the screens: presence (tp, fp, fn by `present`) and boxes found."""

    precision: float
    recall: float
    f_measure: float
    screens_with: int
    boxes_found: Share
    false_boxes: int
    by_contrast: dict[str, Share]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Shares of screens, and each label.

    `escape`: defective screens that passed. `overkill`: clean screens that failed. `review`: screens of either kind
    in review. `unanswered`: screens whose entry is a problem document. `wrong` names the screens of the first two.
    """

    screens: int
    escape: Share
    overkill: Share
    review: Share
    review_of_clean: Share
    unanswered: int
    f_measure: float
    labels: dict[str, LabelJudgement]
    wrong: list[dict[str, str]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def wilson(count: int, total: int) -> Share:
    """A share with its 95 % Wilson score interval; no observation gives the interval (0, 1)."""
    if total == 0:
        return Share(0, 0, 0.0, 0.0, 1.0)
    z = 1.959964
    ratio = count / total
    centre = (ratio + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(ratio * (1 - ratio) / total + z * z / (4 * total * total))
    return Share(count, total, ratio, max(0.0, centre - half), min(1.0, centre + half))


def judge(verdicts: Path, source: Path, *, part: str | None = None, test_fold: int | None = None) -> Judgement:
    """Compare a list of verdicts with a data folder.

    Args:
        verdicts: JSON list of verdict objects; an entry without `verdict` is a problem document.
        source: folder in the data form; `screen_id` is the screen's name.
        part: judge only these screens: train, validation or test; None: every screen that was answered.
        test_fold: see `read_parts`.

    Raises:
        ValueError: not such a list, a screen that the folder does not know, or one that is there twice.
    """
    answers = _read_answers(verdicts)
    known = screen_files(source)
    stranger = next((name for name in answers if name not in known), None)
    if stranger is not None:
        raise ValueError(f"{source} has no screen {stranger!r}")
    if part is not None:
        parts = read_parts(source, list(known), test_fold=test_fold)
        answers = {name: answer for name, answer in answers.items() if parts[name] == part}
    truth = read_defects(source)
    contrast = _read_contrast(source)
    answered = {name: a for name, a in answers.items() if "verdict" in a}
    bad = {name: a["verdict"] for name, a in answered.items() if name in truth}
    good = {name: a["verdict"] for name, a in answered.items() if name not in truth}
    labels = sorted({label for a in answered.values() for label in a["labels"]})
    per_label = {label: _judge_label(label, answered, truth, contrast) for label in labels}
    precision = _mean(report.precision for report in per_label.values())
    recall = _mean(report.recall for report in per_label.values())
    return Judgement(
        screens=len(answers),
        escape=_share(bad.values(), "pass"),
        overkill=_share(good.values(), "fail"),
        review=_share([*bad.values(), *good.values()], "review"),
        review_of_clean=_share(good.values(), "review"),
        unanswered=len(answers) - len(answered),
        f_measure=f_measure(precision, recall),
        labels=per_label,
        wrong=[
            *({"screen": name, "error": "escape"} for name, verdict in bad.items() if verdict == "pass"),
            *({"screen": name, "error": "overkill"} for name, verdict in good.items() if verdict == "fail"),
        ],
    )


def _share(verdicts: Iterable[str], wanted: str) -> Share:
    values = list(verdicts)
    return wilson(sum(value == wanted for value in values), len(values))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _read_answers(path: Path) -> dict[str, dict[str, Any]]:
    entries = json.loads(path.read_text())
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} is not a JSON list of verdicts")
    answers: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        name = entry.get("screen_id")
        if not isinstance(name, str):
            raise ValueError(f"{path}, entry {number}: no screen_id")
        if name in answers:
            raise ValueError(f"{path}, entry {number}: screen {name!r} is there twice")
        answers[name] = entry
    return answers


def _read_contrast(source: Path) -> dict[str, list[float]]:
    """Contrast of each screen's defects in the order of boxes.csv, where the renderer has told it."""
    table = source / "conditions.csv"
    if not table.is_file():
        return {}
    found: dict[str, list[float]] = {}
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["screen"], []).append(float(row["contrast"]))
    return found


def _judge_label(
    label: str,
    answers: dict[str, dict[str, Any]],
    truth: dict[str, list[Defect]],
    contrast: dict[str, list[float]],
) -> LabelJudgement:
    tp = fp = fn = false_boxes = 0
    hits: list[tuple[bool, float | None]] = []
    for name, answer in answers.items():
        defects = truth.get(name, [])
        contrasts: list[float | None] = list(contrast.get(name, [])) or [None] * len(defects)
        real = [(d, c) for d, c in zip(defects, contrasts, strict=True) if d.label == label]
        boxes = [d["box"] for d in answer["defects"] if d["label"] == label]
        present = label in answer["labels"] and answer["labels"][label]["present"]
        tp, fp, fn = tp + (present and bool(real)), fp + (present and not real), fn + (not present and bool(real))
        hits += [(any(_overlap(defect, box) for box in boxes), c) for defect, c in real]
        false_boxes += sum(not any(_overlap(defect, box) for defect, _ in real) for box in boxes)
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    bands = {}
    for low, high in CONTRAST_BANDS:
        inside = [hit for hit, c in hits if c is not None and low <= c < high]
        if inside:
            bands[f"{low:g}-{high:g}"] = wilson(sum(inside), len(inside))
    return LabelJudgement(
        precision=precision,
        recall=recall,
        f_measure=f_measure(precision, recall),
        screens_with=tp + fn,
        boxes_found=wilson(sum(hit for hit, _ in hits), len(hits)),
        false_boxes=false_boxes,
        by_contrast=bands,
    )


def _overlap(defect: Defect, box: dict[str, int]) -> bool:
    return (
        defect.left < box["right"]
        and box["left"] < defect.right
        and defect.top < box["bottom"]
        and box["top"] < defect.bottom
    )
