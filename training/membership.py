"""Which screen is in which part: read from the tables of a data folder, read from another one, or drawn. numpy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.conversion.names import screen_name
from training.images import NO_SCREEN
from training.rows import read_lines, read_rows
from training.truth import PARTS

DRAWN_SHARE = 0.1  # of the screens, for the test part
PART_OF_TRAINING_FOR_VALIDATION = 0.15
_FEWEST_GROUPS = 4  # of training screens, of which one may be drawn whole


def read_parts(source: Path, screens: Sequence[str], *, test_fold: int | None) -> dict[str, str]:
    """Part of each screen: train, validation or test.

    Where the folder names no validation part, 15 % of the training screens, see `draw_validation`.

    Raises:
        ValueError: neither splits.csv nor folds.csv, a screen is missing from it, or the fold does not exist.
    """
    table = source / "folds.csv"
    if table.is_file():
        folds = read_folds(source)
        if test_fold not in folds.values():
            raise ValueError(f"--test-fold must be one of {sorted(set(folds.values()))}")
        parts = {screen: "test" if fold == test_fold else "train" for screen, fold in folds.items()}
    elif (source / "splits.csv").is_file():
        if test_fold is not None:
            raise ValueError(f"--test-fold needs {table}")
        table = source / "splits.csv"
        parts = _one_each(table, "part")
    else:
        raise ValueError(f"{source} has neither splits.csv nor folds.csv")
    missing = [screen for screen in screens if screen not in parts]
    if missing:
        raise ValueError(f"no part is given for screen {missing[0]} (and {len(missing) - 1} more)")
    known = set(screens)
    absent = [screen for screen in parts if screen not in known]
    if absent:
        raise ValueError(
            f"a part is given for {absent[0]} (and {len(absent) - 1} more), but no such {NO_SCREEN} is there"
        )
    unknown = set(parts.values()) - set(PARTS)
    if unknown:
        raise ValueError(f"unknown part {sorted(unknown)[0]!r}: train, validation or test")
    kept = {screen: parts[screen] for screen in screens}
    if "validation" in parts.values():
        return kept
    return draw_validation(kept, _columns(table))


def read_folds(source: Path) -> dict[str, int]:
    """Fold of each screen.

    Raises:
        ValueError: folds.csv cannot be read, or has a fold that is no number.
    """
    table = source / "folds.csv"
    folds = _one_each(table, "fold")
    try:
        return {screen: int(fold) for screen, fold in folds.items()}
    except ValueError as error:
        raise ValueError(f"{table}: {error}") from error


def _one_each(table: Path, column: str) -> dict[str, str]:
    """What a table says of each screen, of which it may say nothing twice."""
    found: dict[str, str] = {}
    for row in read_rows(table, "screen", column):
        screen, told = row["screen"], row[column]
        if found.setdefault(screen, told) != told:
            raise ValueError(f"{table}: screen {screen!r} is in {column} {found[screen]} and {told}")
    return found


def _columns(table: Path) -> dict[str, dict[str, str]]:
    """What else a division tells of each screen, such as its board or phone, by column."""
    rows = read_rows(table, "screen")
    names = rows[0].keys() - {"screen", "part", "fold"} if rows else ()
    return {name: {row["screen"]: row.get(name) or "" for row in rows} for name in names}


def draw_validation(parts: Mapping[str, str], columns: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Parts by screen with 15 % of the training screens, drawn with a fixed seed, as validation part.

    Whole groups are drawn where `columns` tell of some, such as phones, that the parts hold apart: a network that is
    chosen by phones it has learnt is flattered. They may be up to 30 % together, and where no group is as small as that
    single screens are drawn. Of several such columns that with the fewest groups counts.

    Args:
        parts: train or test, by screen.
        columns: values of each screen; an empty one is a group of that screen alone.
    """
    training = sorted(screen for screen, part in parts.items() if part == "train")
    wanted = round(PART_OF_TRAINING_FOR_VALIDATION * len(training))
    held = [groups for _, values in sorted(columns.items()) if (groups := _groups_apart(parts, values))]
    small = [[group for group in groups if len(group) <= 2 * wanted] for groups in held]
    groups = min(filter(None, small), key=len, default=[[screen] for screen in training])
    drawn: list[str] = []
    for index in np.random.default_rng(0).permutation(len(groups)):
        if len(drawn) < wanted and len(drawn) + len(groups[index]) <= 2 * wanted:
            drawn += groups[index]
    return {screen: "validation" if screen in drawn else part for screen, part in parts.items()}


def _groups_apart(parts: Mapping[str, str], values: Mapping[str, str]) -> list[list[str]]:
    """The training screens by their value, where no value is in two parts; none where that groups nothing."""
    inside: dict[str, set[str]] = {}
    groups: dict[str, list[str]] = {}
    for screen, part in sorted(parts.items()):
        value = values.get(screen, "")
        if value:
            inside.setdefault(value, set()).add(part)
        if part == "train":
            groups.setdefault(value or f"\n{screen}", []).append(screen)
    apart = all(len(found) == 1 for found in inside.values())
    return list(groups.values()) if apart and _FEWEST_GROUPS <= len(groups) < sum(map(len, groups.values())) else []


@dataclass(frozen=True, slots=True)
class Division:
    """Which screen is in which part: a table of the data form, `splits.csv` or `folds.csv`, by screen."""

    table: str
    rows: dict[str, dict[str, str]]

    @property
    def column(self) -> str:
        """Where a row names the part or the fold."""
        return "fold" if self.table == "folds.csv" else "part"


def read_division(table: Path, screens: Sequence[str]) -> Division:
    """A CSV file with a column `screen`, a column `part` or `fold`, and any others, such as the phone, which are kept.

    `screen` may also be the name of the image file.

    Raises:
        ValueError: it lacks a column, a screen, has one twice or one that is not there, or both a part and a fold.
    """
    header, lines = read_lines(table)
    rows = list(lines)
    column = next((name for name in ("fold", "part") if rows and name in header), None)
    if column is None or "screen" not in header:
        raise ValueError(f"{table} needs the columns screen and part, or screen and fold, and a row")
    if {"part", "fold"} <= set(header):  # one of them would count for nothing
        raise ValueError(f"{table} has the columns part and fold: leave one out")
    divided: dict[str, dict[str, str]] = {}
    for number, row, wrong in rows:
        if wrong:
            raise ValueError(f"{table}, line {number}: {wrong}")
        if column == "part" and row["part"] not in PARTS:
            raise ValueError(f"{table}, line {number}: unknown part {row['part']!r}: {', '.join(PARTS)}")
        if column == "fold" and not row["fold"].isdecimal():
            raise ValueError(f"{table}, line {number}: the fold {row['fold']!r} is no number")
        name = screen_name(row["screen"])
        if name in divided:
            raise ValueError(f"{table}, line {number}: screen {name!r} is there twice")
        divided[name] = {**row, "screen": name}
    known = set(screens)
    stranger = next((name for name in divided if name not in known), None)
    if stranger is not None:
        raise ValueError(f"{table} names the screen {stranger!r}, which is not there")
    missing = [name for name in screens if name not in divided]
    if missing:
        raise ValueError(f"{table} lacks screen {missing[0]} (and {len(missing) - 1} more)")
    return Division("folds.csv" if column == "fold" else "splits.csv", {name: divided[name] for name in screens})


def division_of(parts: Mapping[str, str]) -> Division:
    """Parts by screen as a table."""
    return Division("splits.csv", {name: {"screen": name, "part": part} for name, part in parts.items()})


def draw_division(screens: Sequence[str], *, test_share: float | None) -> Division:
    """A test part drawn by screen, with a fixed seed; `cut` draws the validation part out of the rest.

    One of two screens or more is in it at least, unless the share is 0; None stands for `DRAWN_SHARE`. Frames of one
    board or phone may come apart by it: where there are such, a table has to say what belongs together.
    """
    ordered = sorted(screens)
    share = DRAWN_SHARE if test_share is None else test_share
    count = max(round(share * len(ordered)), int(share > 0 and len(ordered) > 1))
    test = {ordered[i] for i in np.random.default_rng(0).permutation(len(ordered))[:count]}
    return division_of({name: "test" if name in test else "train" for name in screens})
