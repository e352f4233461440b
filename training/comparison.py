"""Runs beside each other: what differs in their configurations, how well they did, how long they took.

Reads what `training.folder`, `training.record` and `training.journal` write; nothing of it needs torch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from training.config import PHASES, Config, flat
from training.rows import read_rows

EPOCH_COLUMNS = ("phase", "epoch", "loss", "f_measure")  # that metrics.csv has in every version
SHOWN = 12  # digits of a hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch: which, its mean loss, validation F at 0.5, and how long it took where that is known."""

    phase: str
    epoch: int
    loss: float
    f_measure: float
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What is known of one run; None or nothing where it is not known, as of a run that has not ended."""

    run: str
    config: dict[str, Any]  # flat, the keys dotted; start_sha256 is of the weights that it starts from
    data_id: str
    content: tuple[str, ...] | None  # identities of the pixels and of where defects are, of each folder
    validation_id: str | None  # of names and labels, and after a dash of pixels, which earlier versions lack
    revision: str | None  # of the last session; with a + where the code differed from it
    machine: str | None
    sessions: int
    ran: dict[str, list[str]]  # revision, machine and version of each library: of all sessions, each once
    epochs: list[Epoch]
    finished: dict[str, Any] | None  # last validation figures at 0.5

    def best(self, phase: str) -> Epoch | None:
        """The epoch whose weights a phase keeps: of the highest validation F, of equals the later; or the last one."""
        keeps_last = self.config.get(f"{phase}.keep") == "last"
        epochs = (e for e in self.epochs if e.phase == phase)
        return max(epochs, key=lambda e: (0.0 if keeps_last else e.f_measure, e.epoch), default=None)

    @property
    def seconds(self) -> float | None:
        """That the epochs took, if it is known of all."""
        known = [e.seconds for e in self.epochs if e.seconds is not None]
        return sum(known) if known and len(known) == len(self.epochs) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs, the keys of the configuration in which they differ, and why their figures may not be held together."""

    runs: list[Trained]
    differing: list[str]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        best = [{phase: one.best(phase) for phase in PHASES} for one in self.runs]
        told = [
            {**asdict(one), "best": {phase: e and asdict(e) for phase, e in of.items()}, "seconds": one.seconds}
            for one, of in zip(self.runs, best, strict=True)
        ]
        return {"runs": told, "differing": self.differing, "warnings": self.warnings}


def compare(runs: Sequence[Path]) -> Comparison:
    """Read runs, finished or not, and set them beside each other.

    Raises:
        ValueError: a folder is not a run's, or a file of it cannot be read.
    """
    read = [_read(run, name) for run, name in zip(runs, _names(runs), strict=True)]
    keys = dict.fromkeys(key for one in read for key in one.config)
    differing = [key for key in keys if len({json.dumps(one.config.get(key)) for one in read}) > 1]
    return Comparison(runs=read, differing=differing, warnings=list(_warnings(read)))


def _read(run: Path, name: str) -> Trained:
    for file in ("config.json", "data.json"):
        if not (run / file).is_file():
            raise ValueError(f"{run} is not the folder of a run ({file} is missing)")
    record = _json(run / "run.json") or {"data": {}, "sessions": []}
    session = record["sessions"][-1] if record["sessions"] else None
    data, metrics = _json(run / "data.json"), run / "metrics.csv"
    config = {**dict(flat(_config(run / "config.json"))), "start_sha256": data.get("start", "")[:SHOWN] or None}
    config.pop("run")
    return Trained(
        run=name,
        config=config,
        data_id=data["data_id"],
        content=tuple(data["content"]) if "content" in data else None,
        validation_id=record["data"].get("validation_id"),
        revision=session and _revision(session),
        machine=session and _machine(session["machine"]),
        sessions=len(record["sessions"]),
        ran=_ran(record["sessions"]),
        epochs=[_epoch(row) for row in read_rows(metrics, *EPOCH_COLUMNS)] if metrics.is_file() else [],
        finished=_json(run / "finished.json"),
    )


def _config(file: Path) -> dict[str, Any]:
    """With what a version of before could not set yet, as it is where nobody sets it."""
    told: dict[str, Any] = _json(file)
    try:
        return Config.model_validate(told).model_dump(mode="json")
    except ValidationError:  # another version's
        return told


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, where several share one with as many of those before it as tell them apart."""
    whole = dict.fromkeys(run.resolve() for run in runs)

    def name(run: Path) -> str:
        ends = ["/".join(run.parts[-length:]) for length in range(1, len(run.parts))]
        alone = (end for end in ends if sum(f"/{other.as_posix()}".endswith(f"/{end}") for other in whole) == 1)
        return next(alone, str(run))

    return [name(run.resolve()) for run in runs]


def _epoch(row: dict[str, str]) -> Epoch:
    return Epoch(
        phase=row["phase"],
        epoch=int(row["epoch"]),
        loss=float(row["loss"]),
        f_measure=float(row["f_measure"]),
        seconds=float(row["seconds"]) if row.get("seconds") else None,
    )


def _ran(sessions: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = {}
    for one in sessions:
        told = {"revision": _revision(one), "machine": _machine(one["machine"]), **one["versions"]}
        for what, value in told.items():
            found.setdefault(what, {})[value or "unknown"] = None
    return {what: list(values) for what, values in found.items()}


def _revision(session: dict[str, Any]) -> str | None:
    return None if session["revision"] is None else session["revision"] + "+" * bool(session["changed"])


def _machine(machine: dict[str, Any]) -> str:
    learns_on = machine["cpu"] if machine["learns_on"] == "cpu" else machine["gpus"][0]
    processes, threads = machine["processes"], machine["threads"]
    times = f"{processes} x " if processes > 1 else ""
    on_threads = f", threads {threads}" if machine["learns_on"] == "cpu" else ""
    return f"{times}{learns_on}{on_threads}"


def _warnings(runs: Sequence[Trained]) -> Iterator[str]:
    judged = {one.validation_id for one in runs}
    if len({one.data_id for one in runs}) > 1:
        yield "the runs have different data: see data id"
        if None in judged:
            yield "whether they are judged by the same validation patches is not known: a run has no run.json"
    elif len({one.content for one in runs} - {None}) > 1:
        yield "the runs have the same tables of data, but other pixels, or defects elsewhere"
    ids = [(one.validation_id or "").partition("-") for one in runs]
    if any(len({told[k] for told in ids} - {""}) > 1 for k in (0, 2)):  # what a run does not tell is no difference
        yield "the runs are judged by different validation patches: their F is not comparable"
    for library in sorted({what for one in runs for what in one.ran} - {"revision", "machine"}):
        if len(told := dict.fromkeys(", ".join(one.ran[library]) for one in runs if library in one.ran)) > 1:
            yield f"the runs have different versions of {library}: {' | '.join(told)}"
    for one in runs:
        for what, values in one.ran.items():
            if len(values) > 1:
                yield f"{one.run} was trained with more than one {what}: {' | '.join(values)}"
        if one.finished is None:
            yield f"{one.run} has not ended: {len(one.epochs)} epochs so far"


def _json(file: Path) -> Any:  # noqa: ANN401 - JSON
    try:
        return json.loads(file.read_text()) if file.is_file() else None
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
