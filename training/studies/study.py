"""A table as a command: cut the data, train every cell, write Markdown, CSV and a plot."""

import hashlib
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from engine import alone
from training import devices
from training.baselines import refuse_small_patches
from training.config import Config, read_config
from training.cut_folder import CutFolder
from training.cutting import cut
from training.fit import DivergedError
from training.folder import BeingTrainedError, sizes_of
from training.membership import read_folds
from training.studies.cells import Cell, Division, NotTrainedError, run_cell
from training.studies.maps import with_maps
from training.studies.tables import OURS_TITLE, PresetName, Row, StudyTable, Windows, refuse_unclear_hold, table
from training.truth import PARTS, Rule
from training.visible import read_visible

# cells would be taken for others if `--set` changed them
OWN_SETTINGS = (
    *("run", "seed", "start", "start_part", "start_share"),
    *("data.folders", "phase1.folders", "phase2.folders"),
)
RATE = "phase1.learning_rate"
OUT = Path("study")  # where nothing else is asked for
CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How a study cuts its data and what it trains with.

    Attributes:
        name: of its configuration.
        windows: of screens.
        rule: what becomes of patches with too little of a defect, see `cut`.
    """

    name: PresetName
    windows: Windows
    rule: Rule

    @property
    def file(self) -> Path:
        """The configuration that every row begins with."""
        return CONFIGS / f"study-{self.name}.toml"

    def base(self, settings: Sequence[str]) -> Config:
        """That configuration, with changes for every row.

        Raises:
            ValueError: a change is wrong, or one of what the study sets for each cell, or of a section that holds it.
        """
        for key in map(_key, settings):
            for own in OWN_SETTINGS:
                if key == own or key.startswith(f"{own}."):
                    raise ValueError(f"--set {key}: a study sets that itself, for each of its cells")
                if own.startswith(f"{key}."):
                    remedy = f"set what else {key} holds key by key"
                    raise ValueError(f"--set {key}: a study sets {own} itself, for each of its cells: {remedy}")
        return read_config(self.file, list(settings))


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


PRESETS = {
    "cpu": Preset(name="cpu", windows=Windows(patch_px=160, shrink=2), rule="known"),
    "full": Preset(name="full", windows=Windows(patch_px=1024, shrink=1), rule="paper"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What was asked for, and the cells that were found.

    `folds_there` is how many folds the data is divided into. `finished` tells how many of its cells there are, where no
    others were asked for: the table has the rows of which there is one then. Else it is empty. `diverged` tells of each
    cell whose loss did not stay finite, which is none of the cells.
    """

    table: StudyTable
    preset: Preset
    data: Path
    out: Path
    folds_there: int
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    patch_px: int | None
    rows: tuple[str, ...]
    settings: tuple[str, ...]
    finished: str
    cells: list[Cell]
    diverged: tuple[str, ...] = ()

    def command(self, name: str) -> str:
        """What makes it again."""
        options = [f"--fold {fold}" for fold in self.folds]
        options += [] if self.patch_px is None else [f"--patch {self.patch_px}"]
        options += [f"--row {shlex.quote(title)}" for title in self.rows]
        options += [f"--set {shlex.quote(setting)}" for setting in self.settings]
        options += [] if self.out == OUT else [f"--out {shlex.quote(str(self.out))}"]
        options += ["--finished"] if self.finished else []
        asked = f"--preset {self.preset.name} --data {shlex.quote(str(self.data))} --seeds {len(self.seeds)}"
        return " ".join(["python -m training table", name, asked, *options])

    def of(self, row: Row) -> list[Cell]:
        """The cells of a row."""
        return [cell for cell in self.cells if cell.row == row.title]


def run(
    name: str,
    *,
    preset: Preset,
    data: Path,
    out: Path,
    seeds: Sequence[int],
    folds: Sequence[int],
    settings: Sequence[str],
    patch_px: int | None,
    console: Console,
    rows: Sequence[str] = (),
    finished: bool = False,
) -> Study:
    """Train every cell of a table that is not there yet, but those that other processes are at, which are waited for.

    Args:
        name: of the table, see `training.studies.tables.table`.
        preset: how to cut and train.
        data: a folder in the data form, which is cut here, or one that is cut.
        out: the study's folder; tables share its cells.
        seeds: one cell each.
        folds: of folds.csv; empty: all of them for a comparison of methods or of maps, else the first. Data without
            such a table takes none.
        settings: as of `fit --set`, for every row; its own come after them.
        patch_px: side of a patch; None: the table's or the preset's. Data that is cut takes none.
        console: where to show what is trained.
        rows: titles of the rows that are wanted; empty: all.
        finished: nothing is trained, and what is not there is left out.

    Raises:
        ValueError: there is no such table or row, or no finished cell of it; the data does not fit; the machine lacks
            GPUs that are asked for; a run is gone that another begins with; or all cells diverged.
    """
    base = preset.base(settings)
    own_rates = RATE not in map(_key, settings)
    wanted = _only(table(name, preset.name, base, own_rates=own_rates), rows)
    told, settings = tuple(settings), (*settings, *wanted.settings)
    configs: dict[str, Config] = {}
    for row in wanted.rows:  # what is wrong with any of them is said before the first is trained
        refuse_unclear_hold(row, base)
        configs[row.title] = config = read_config(preset.file, [*settings, *row.settings])
        if config.network.stages == 2 and not config.phase2.epochs:
            raise ValueError(f"{row.title!r}: with phase2.epochs = 0 the stage that decides learns nothing")
        if not finished:
            _refuse_lacking(config)
    windows, rule = wanted.windows or preset.windows, preset.rule if wanted.windows is None else "known"
    if patch_px is not None:
        windows = replace(windows, patch_px=patch_px, stride_px=None)
    there = _folds_of(data, folds=folds, patch_px=patch_px)
    folds = tuple(dict.fromkeys(folds))  # one that is named twice is no second sample
    chosen = folds or (there if wanted.every_fold else there[:1])
    divisions = list(_divisions(data, out, windows, rule, chosen, finished=finished))
    for division in divisions:  # what is wrong with them is said before anything is trained
        if wanted.of_maps:
            read_visible(division.folder)
        if not finished:
            _refuse_unfit(configs, division)
    work = [(row, division, seed) for division in divisions for seed in seeds for row in wanted.rows]
    asked_for = len(wanted.rows) * len(seeds) * max(1, len(chosen))  # a fold that was never begun has no division
    train = partial(_cell, preset=preset, settings=settings, out=out, wanted=wanted, finished=finished)
    cells, diverged = _trained(work, train, console)
    found = {cell.row for cell in cells}
    if not found:
        raise ValueError("; ".join(diverged) or f"{out} has no finished cell of table {name}")
    return Study(
        table=replace(wanted, rows=tuple(row for row in wanted.rows if row.title in found)),
        preset=preset,
        data=data,
        out=out,
        folds_there=max(1, len(there)),
        seeds=tuple(seeds),
        folds=tuple(folds),
        patch_px=patch_px,
        rows=tuple(rows),
        settings=told,
        finished=f"{len(cells)} of {asked_for} cells are finished" if finished else "",
        cells=cells,
        diverged=tuple(diverged),
    )


def _refuse_lacking(config: Config) -> None:
    try:
        devices.refuse_lacking(config)
    except ValueError as error:
        raise ValueError(f"{error}; --finished trains nothing, and shows the cells that are there") from error


def _refuse_unfit(configs: Mapping[str, Config], division: Division) -> None:
    """Refuse data that lacks a part, and rows, by their titles, whose network does not fit its patches."""
    data = CutFolder(division.folder)
    for part in PARTS:
        if not data.rows_of(part):
            raise ValueError(f"no patch of the part {part!r} in {division.folder}")
    for title, config in configs.items():
        try:
            refuse_small_patches(len(data.label_names), config.network, data.patch_px)
        except ValueError as error:
            raise ValueError(f"{title!r}: {error}") from error


def _trained(
    work: Sequence[tuple[Row, Division, int]], train: Callable[[Row, Division, int], Cell], console: Console
) -> tuple[list[Cell], list[str]]:
    """All cells, in order, but those that are not to be trained, and what is to be told of those that diverged.

    Those that other processes are at come last.
    """
    cells: dict[int, Cell | None] = {}
    diverged: dict[int, str] = {}
    while left := [number for number in range(len(work)) if number not in cells]:
        busy = None
        for number in left:
            row, division, seed = work[number]
            console.print(f"[{number + 1}/{len(work)}] {row.title}, {division.name}, seed {seed}", markup=False)
            try:
                cells[number] = cell = train(row, division, seed)
            except NotTrainedError:
                cells[number] = None
                continue
            except DivergedError as error:
                cells[number] = None
                diverged[number] = f"{row.title}, {division.name}, seed {seed}: {error}"
                console.print(f"  diverged: {error}", markup=False)
                continue
            except BeingTrainedError as error:
                if devices.together():  # of which the first alone knows
                    raise
                busy = error.folder
                console.print("  another process is training it: left for later")
                continue
            found = "ran" if cell.steps_only else f"F {cell.figures['screen']['f_measure']:.4f}"
            console.print(f"  {found} in {cell.seconds:.0f} s", markup=False)
        if busy is not None:
            busy.wait()
    there = [cell for _, cell in sorted(cells.items()) if cell is not None]
    return there, [told for _, told in sorted(diverged.items())]


def _cell(
    row: Row,
    division: Division,
    seed: int,
    *,
    preset: Preset,
    settings: Sequence[str],
    out: Path,
    wanted: StudyTable,
    finished: bool,
) -> Cell:
    """A cell, and what it begins with.

    Raises:
        BeingTrainedError: another process is at one of them.
        DivergedError: the loss of one of them is no longer finite.
        NotTrainedError: one of them is not there, or without the table's columns, and nothing is to be trained.
        ValueError: see `run_cell`; or the cell lacks one of the table's columns.
    """
    train = partial(run_cell, preset=preset.file, settings=settings, out=out, finished=finished)
    begun = None
    if row.from_phase1:
        try:
            _, begun = train(Row(title=OURS_TITLE), division, seed, base=None)
        except DivergedError as error:
            raise DivergedError(f"{OURS_TITLE}, which it begins with: {error}") from error
    cell, its_run = train(row, division, seed, base=begun)
    if wanted.of_maps:
        with devices.first_first():
            return with_maps(cell, its_run, division, out, finished=finished)
    lacking = [] if cell.steps_only else [column for column in wanted.columns if column not in cell.figures]
    if lacking:
        told = f"{out / 'cells' / its_run.name}.json has no figures by {', '.join(lacking)}, which are asked for"
        if finished:
            raise NotTrainedError(told)
        raise ValueError(f"{told}: remove it to train it again")
    return cell


def _only(wanted: StudyTable, titles: Sequence[str]) -> StudyTable:
    """The table with the rows of these titles alone, in its own order; with all of them where none is named.

    Raises:
        ValueError: it has no row of such a title; the message names those that it has.
    """
    there = [row.title for row in wanted.rows]
    for title in titles:
        if title not in there:
            raise ValueError(f"no row {title!r}: there are {', '.join(map(repr, there))}")
    return replace(wanted, rows=tuple(row for row in wanted.rows if row.title in (titles or there)))


def _folds_of(data: Path, *, folds: Sequence[int], patch_px: int | None) -> list[int]:
    """The folds that the data is divided into, in order; none where it has no folds.csv.

    Raises:
        ValueError: a fold is asked for that is not there, or another cut of what is cut.
    """
    is_cut, has_folds = (data / "cut.json").is_file(), (data / "folds.csv").is_file()
    if is_cut and patch_px is not None:
        raise ValueError(f"--patch {patch_px}: {data} is cut already")
    there = sorted(set(read_folds(data).values())) if has_folds and not is_cut else []
    for fold in folds:
        if fold not in there:
            told = f"there are {', '.join(map(str, there))}" if there else "the data is not divided into folds"
            raise ValueError(f"--fold {fold}: {told}")
    return there


def _divisions(
    data: Path, out: Path, windows: Windows, rule: Rule, folds: Sequence[int], *, finished: bool = False
) -> Iterator[Division]:
    """The data as it is where it is cut, else cut with each fold as the test part, or once where there is none.

    Of a fold that was never cut nothing is `finished`.
    """
    if (data / "cut.json").is_file():
        yield Division(name=name_of(data), folder=data)
        return
    content = _content(data)  # other data may have the same name
    each: Sequence[int | None] = folds or [None]
    for fold in each:
        name = name_of(data) if fold is None else f"{name_of(data)}, fold {fold}"
        stride = "" if windows.stride_px is None else f"+{windows.stride_px}"
        how = f"{windows.patch_px}{stride}-{windows.shrink}{'' if rule == 'known' else f'-{rule}'}"
        cut_name = f"{name_of(data)}-{content}-{how}{'' if fold is None else f'-{fold}'}"
        folder, draft = out / "cut" / cut_name, out / "cut" / f".{cut_name}"
        if finished and not folder.is_dir():
            continue
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(out / "cut.lock"):  # other tables may be made beside this one
            if not folder.is_dir():
                shutil.rmtree(draft, ignore_errors=True)  # of a study that was killed
                cut(
                    data,
                    draft,
                    patch_px=windows.patch_px,
                    stride_px=windows.stride_px,
                    rule=rule,
                    shrink=windows.shrink,
                    test_fold=fold,
                )
                draft.rename(folder)
        yield Division(name=name, folder=folder)


def name_of(data: Path) -> str:
    """Of a folder; of one that is told by where it lies from here, `.` or `..`, its own."""
    return data.resolve().name if data.name in ("", "..") else data.name


def _content(data: Path) -> str:
    """Of what is cut: its tables, and its screens and masks, told by the sizes of their files."""
    digest = hashlib.sha256()
    for table_file in sorted(data.glob("*.csv")):
        digest.update(table_file.name.encode() + table_file.read_bytes())
    digest.update(sizes_of([*(data / "screens").glob("*"), *(data / "masks").glob("*")]))
    return digest.hexdigest()[:6]
