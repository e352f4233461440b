"""The service's verdicts against the truth: escape, overkill and review of whole screens, labels and boxes.

Reads verdicts as JSON (`service inspect --json`, or answers collected from the line) and the boxes of a data folder.
Nothing of the service is imported.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import track

from training.bands import CONTRAST_BANDS, by_band
from training.boxes import read_defects
from training.contrast import measured
from training.costs import Costs
from training.faults import faults_of
from training.images import read_whole, screen_files
from training.measures import Share, f_measure, wilson
from training.membership import read_parts
from training.truth import Defect
from training.zones import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelJudgement:
    """One label, of bundle or truth, over the screens: presence (tp, fp, fn by `present`), escapes, and boxes found.

    `accuracy`: of the screens, those that are rightly told to have the label or not to have it.
    `escape`: of the screens that have the label, those that passed; `escape_by_contrast` the same by the contrast of
    the label's strongest defect on the screen, `by_contrast` the boxes found by the contrast of each.
    """

    accuracy: float
    precision: float
    recall: float
    f_measure: float
    screens_with: int
    escape: Share
    escape_by_contrast: dict[str, Share]
    boxes_found: Share
    false_boxes: int
    by_contrast: dict[str, Share]


class Weighed(NamedTuple):
    """A share of the line's screens, and between what ends it lies."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OfTheLine:
    """Shares of the line's screens, where its costs state how many are defective; intervals of 95 % at least, Wilson's.

    `escape`: those that are defective and pass. `overkill`: clean, and fail. `review`: of either kind, in review, which
    `review_capacity` is the bound of.
    """

    prevalence: float
    review_capacity: float
    escape: Weighed
    overkill: Weighed
    review: Weighed


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Shares of screens, and each label.

    `models`: which gave the verdicts, see `model_of`; several where one was put in service between screens.
    `escape`: defective screens that passed. `overkill`: clean screens that failed. `review`: screens of either kind
    in review, by how many of each were judged; `line` by how many of each the line has, None where that is not
    stated. `unanswered`: screens whose entry is a problem document. `missing`: screens of the folder, or of its
    part, without an entry. `accuracy`, `precision` and `recall` are means over the labels that a screen has, and
    `f_measure` is 2PR/(P+R) of them, as in the paper's tables. `wrong` names the screens of the first two.
    """

    models: list[str]
    screens: int
    escape: Share
    overkill: Share
    review: Share
    review_of_clean: Share
    review_of_defective: Share
    line: OfTheLine | None
    unanswered: int
    missing: int
    accuracy: float
    precision: float
    recall: float
    f_measure: float
    labels: dict[str, LabelJudgement]
    wrong: list[dict[str, str]]


def judge(
    verdicts: Path,
    source: Path,
    *,
    part: str | None = None,
    test_fold: int | None = None,
    costs: Costs | None = None,
) -> Judgement:
    """Compare a list of verdicts with a data folder.

    Args:
        verdicts: JSON list of verdict objects; an entry without `verdict` is a problem document.
        source: folder in the data form; `screen_id` is the screen's name.
        part: judge only these screens: train, validation or test; None: every screen that was answered.
        test_fold: see `read_parts`.
        costs: of the line, by whose prevalence shares are weighed as well; None: by none.

    Raises:
        ValueError: not such a list, a screen that the folder does not know, one that is there twice, or one that
            cannot be read where contrasts are to be measured.
    """
    answers = read_answers(verdicts)
    known = screen_files(source)
    truth = read_defects(source, known)
    stranger = next((name for name in answers if name not in known), None)
    if stranger is not None:
        told = "the service takes A-Z a-z 0-9 . _ - and 64 characters of a file's name, and calls it otherwise"
        raise ValueError(f"{source} has no screen {stranger!r} ({told})")
    if part is not None:
        parts = read_parts(source, list(known), test_fold=test_fold)
        if part not in parts.values():
            raise ValueError(f"{source} has no screens in the part {part!r}: {', '.join(sorted(set(parts.values())))}")
        answers = {name: answer for name, answer in answers.items() if parts[name] == part}
        known = {name: file for name, file in known.items() if parts[name] == part}
    if not answers:
        raise ValueError(f"{verdicts} answers none of these screens")
    answered = {name: a for name, a in answers.items() if "verdict" in a}
    untold = [name for name in answered if any(defect.contrast is None for defect in truth.get(name, []))]
    for name in track(untold, "measure contrast", transient=True, disable=not untold):
        truth[name] = measured(read_whole(known[name]), truth[name])
    bad = {name: a["verdict"] for name, a in answered.items() if name in truth}
    good = {name: a["verdict"] for name, a in answered.items() if name not in truth}
    inspected = [defect.label for name in answered for defect in truth.get(name, [])]
    labels = sorted({*inspected, *(label for a in answered.values() for label in a["labels"])})
    per_label = {label: _judge_label(label, answered, truth) for label in labels}
    seen = [report for report in per_label.values() if report.screens_with]
    precision = _mean(report.precision for report in seen)
    recall = _mean(report.recall for report in seen)
    return Judgement(
        models=sorted({model_of(**a["model"]) for a in answered.values() if "model" in a}),
        screens=len(answers),
        escape=_share(bad.values(), "pass"),
        overkill=_share(good.values(), "fail"),
        review=_share([*bad.values(), *good.values()], "review"),
        review_of_clean=_share(good.values(), "review"),
        review_of_defective=_share(bad.values(), "review"),
        line=None if costs is None else _of_the_line(_tally(list(bad.values()), list(good.values())), costs),
        unanswered=len(answers) - len(answered),
        missing=len(known) - len(answers),
        accuracy=_mean(report.accuracy for report in seen),
        precision=precision,
        recall=recall,
        f_measure=f_measure(precision, recall),
        labels=per_label,
        wrong=[
            *({"screen": name, "error": "escape"} for name, verdict in bad.items() if verdict == "pass"),
            *({"screen": name, "error": "overkill"} for name, verdict in good.items() if verdict == "fail"),
        ],
    )


def model_of(name: str, version: str, limits: int) -> str:
    """How a model is called in the figures of `evaluate` and `judge`."""
    return f"{name} {version}, limits {limits}"


def _tally(bad: Sequence[str], good: Sequence[str]) -> Tally:
    """Of the verdicts on defective and on clean screens."""
    return Tally(
        defective=len(bad),
        clean=len(good),
        escapes=bad.count("pass"),
        overkills=good.count("fail"),
        reviewed_defective=bad.count("review"),
        reviewed_clean=good.count("review"),
    )


def _of_the_line(found: Tally, costs: Costs) -> OfTheLine:
    """As `calibrate` weighs: each kind of screens by its share of the line's."""

    def times(share: float, ratio: float, ends: tuple[float, float]) -> Weighed:
        return Weighed(share * ratio, share * ends[0], share * ends[1])

    return OfTheLine(
        prevalence=costs.prevalence,
        review_capacity=costs.review_capacity,
        escape=times(costs.prevalence, found.escape, found.escape_interval),
        overkill=times(1 - costs.prevalence, found.overkill, found.overkill_interval),
        review=Weighed(found.review(costs), *found.review_interval(costs)),
    )


def _share(verdicts: Iterable[str], wanted: str) -> Share:
    values = list(verdicts)
    return wilson(sum(value == wanted for value in values), len(values))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


class _Label(BaseModel):
    """What a verdict says of a label, as far as it is judged."""

    present: bool


class _Defect(BaseModel):
    """A defect of a verdict, as far as it is judged."""

    label: str
    box: dict[Literal["left", "top", "right", "bottom"], int]


class _Model(BaseModel):
    """Which model gave a verdict."""

    model_config = ConfigDict(extra="forbid")

    name: str
    version: str
    limits: int


class _Answer(BaseModel):
    """A verdict, as far as it is judged."""

    model: _Model | None = None
    verdict: Literal["pass", "fail", "review"]
    labels: dict[str, _Label]
    defects: list[_Defect]


def read_answers(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a list of verdicts, by the name of the screen.

    Raises:
        ValueError: not such a list, a verdict without labels or defects, or a screen that is there twice.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if isinstance(entries, dict) and "items" in entries:
        entries = entries["items"]  # a page of the service's record
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} is not a JSON list of verdicts")
    answers: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        name = entry.get("screen_id")
        if not isinstance(name, str):
            raise ValueError(f"{path}, entry {number}: no screen_id")
        if "verdict" in entry:
            try:
                _Answer.model_validate(entry)
            except ValidationError as error:
                raise ValueError(f"{path}, entry {number} is no verdict: {faults_of(error)}") from error
        if name in answers:
            raise ValueError(f"{path}, entry {number}: screen {name!r} is there twice")
        answers[name] = entry
    return answers


def _judge_label(label: str, answers: dict[str, dict[str, Any]], truth: dict[str, list[Defect]]) -> LabelJudgement:
    tp = fp = fn = false_boxes = 0
    hits: list[tuple[bool, float | None]] = []
    passed: list[tuple[bool, float | None]] = []
    for name, answer in answers.items():
        real = [(d, d.contrast) for d in truth.get(name, []) if d.label == label]
        boxes = [d["box"] for d in answer["defects"] if d["label"] == label]
        present = label in answer["labels"] and answer["labels"][label]["present"]
        tp, fp, fn = tp + (present and bool(real)), fp + (present and not real), fn + (not present and bool(real))
        if real:
            strongest = max((c for _, c in real if c is not None), default=None)
            passed.append((answer["verdict"] == "pass", strongest))
        hits += [(any(overlap(defect, box) for box in boxes), c) for defect, c in real]
        false_boxes += sum(not any(overlap(defect, box) for defect, _ in real) for box in boxes)
    precision = tp / (tp + fp) if tp + fp else 0.0
    recall = tp / (tp + fn) if tp + fn else 0.0
    return LabelJudgement(
        accuracy=(len(answers) - fp - fn) / len(answers) if answers else 0.0,
        precision=precision,
        recall=recall,
        f_measure=f_measure(precision, recall),
        screens_with=tp + fn,
        escape=wilson(sum(escaped for escaped, _ in passed), len(passed)),
        escape_by_contrast=by_band(passed, CONTRAST_BANDS),
        boxes_found=wilson(sum(hit for hit, _ in hits), len(hits)),
        false_boxes=false_boxes,
        by_contrast=by_band(hits, CONTRAST_BANDS),
    )


def overlap(defect: Defect, box: dict[str, int]) -> bool:
    """Whether a defect and the `box` of a verdict's defect share a pixel: it counts as found then."""
    return (
        defect.left < box["right"]
        and box["left"] < defect.right
        and defect.top < box["bottom"]
        and box["top"] < defect.bottom
    )
