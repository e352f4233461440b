"""The folder of a training run: what it was begun with, how far it has come, what it ended with.

`config.json`, `data.json` (labels, and the identity of all that was learnt from), `last.ckpt` (to resume),
`phase1.safetensors` and `phase2.safetensors` (best epoch of each phase by validation F), `mixed.safetensors` (with a
`start_share`: what the run ends with), `finished.json` (last validation figures), `run.json` (`training.record`),
`metrics.csv` (`training.journal`) and TensorBoard events.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import Manifest, alone
from training.baselines import build_network
from training.config import PHASES, Config, flat
from training.cut_folder import image_sizes
from training.evaluation import Report
from training.network import Network
from training.whole import replace

TABLES = ("labels.csv", "windows.csv", "splits.csv")  # of a cut folder
TOLD = 5  # differing keys of a configuration at most
MIXED = "mixed"  # weights of the end of a run, in part those that it started with
# of a stage 2 that begins anew, what does not change its weights' shapes
ANEW = (
    *("relation_activation", "relation_scores", "relation_similarity", "reasoned_features"),
    *("symmetric", "normalise_nodes", "scores_from"),
)
TRUNK = "trunk."  # how the names of its weights begin
LEARNT_DATA = "learnt_data_ids"  # of a manifest's facts: `data_id` of each folder that its network has learnt from


class BeingTrainedError(ValueError):
    """Another process is training in this folder."""

    def __init__(self, folder: "RunFolder") -> None:
        super().__init__(f"{folder.path} is being trained by another process")
        self.folder = folder


class RunFolder:
    """Reads and writes the folder; a kill at any time leaves each file as it was or as it should be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process trains in the folder meanwhile, which is made where it is missing.

        Raises:
            BeingTrainedError: one does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(alone(self._lock, wait=False))
            except BlockingIOError as error:
                raise BeingTrainedError(self) from error
            yield

    def wait(self) -> None:
        """Until no other process trains in the folder."""
        with alone(self._lock):
            return

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    def refuse_start(self, config: Config, labels: Sequence[str]) -> None:
        """Refuse weights of a run of another network; those that lie in no run's folder are taken on trust.

        Raises:
            ValueError: its network is another one, or its labels or their order are others.
        """
        if config.start is None or (self.path / "config.json").is_file():  # what has begun goes on
            return
        if config.start_part == "network":
            _refuse_other_labels(config.start, labels)
        _refuse_other_network(config.start, config)

    def begin(self, config: Config, labels: Sequence[str]) -> None:
        """Begin the folder, or check that it was begun with the same configuration and data.

        Raises:
            ValueError: it was not.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        data: dict[str, Any] = {"labels": list(labels), "data_id": data_id(config.all_folders)}
        if config.start is not None:
            data["start"] = hashlib.sha256(config.start.read_bytes()).hexdigest()
        file = self.path / "config.json"
        if not file.is_file():
            start = None if config.start is None else RunFolder(config.start.parent)
            own = [data_id([folder]) for folder in config.all_folders]
            learnt = [*own, *(start.learnt if start else ())]
            content = [content_id(folder) for folder in config.all_folders]
            more = {"learnt": list(dict.fromkeys(learnt)), "phases": _learnt_phases(config), "content": content}
            told = {**data, **more}
            replace(self.path / "data.json", lambda partial: partial.write_text(json.dumps(told) + "\n"))
            replace(file, lambda partial: partial.write_text(config.model_dump_json(indent=2) + "\n"))
            return
        begun = Config.model_validate_json(file.read_text())
        if differing := _differing(begun, config):
            keys = ", ".join(differing[:TOLD]) + (f" and {len(differing) - TOLD} more" if differing[TOLD:] else "")
            raise ValueError(f"{self.path} was begun with another configuration ({keys}): choose another run folder")
        others = [key for key in ("labels", "start") if self._data.get(key) != data.get(key)]
        if others := [*others, *self.changed_data(config)]:
            what = f"other data or weights there ({', '.join(others)})"
            raise ValueError(f"{self.path} was begun with {what}: choose another run folder")
        if (begun.all_folders, begun.start) != (config.all_folders, config.start):  # the same, elsewhere
            replace(file, lambda partial: partial.write_text(config.model_dump_json(indent=2) + "\n"))

    def changed_data(self, config: Config) -> list[str]:
        """What of the data is not as the folder was begun with; empty where all is.

        Raises:
            OSError: it is gone.
        """
        if data_id(config.all_folders) != self._data.get("data_id"):
            return [f"one of {', '.join(TABLES)}"]
        now = [content_id(folder) for folder in config.all_folders]
        ids = zip(config.all_folders, self.content or now, now, strict=True)  # of earlier versions it is not known
        return [f"images or maps.npz of {folder}" for folder, before, after in ids if before != after]

    @property
    def data_id(self) -> str:
        """Identity of the data that the folder was begun with."""
        return str(self._data["data_id"])

    @property
    def learnt_phases(self) -> list[str]:
        """The phases that its weights have learnt in, here or in runs before it; all where that is not known."""
        if "phases" in self._data:
            return list(self._data["phases"])
        file = self.path / "config.json"  # of a run of an earlier version, or of none
        return _learnt_phases(Config.model_validate_json(file.read_text())) if file.is_file() else list(PHASES)

    @property
    def content(self) -> list[str] | None:
        """`content_id` of each folder that it was begun with; None of runs of earlier versions."""
        told: list[str] | None = self._data.get("content")
        return told

    @property
    def learnt(self) -> list[str]:
        """`data_id` of each folder that it was begun with, and of those of the runs whose weights it began with.

        None is known of weights that lie in no run's folder, nor of runs of earlier versions.
        """
        return list(self._data.get("learnt", ()))

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return (self.path / "finished.json").is_file()

    @property
    def start_sha256(self) -> str | None:
        """Of the weights that the run began with, where it was given some."""
        sha256: str | None = self._data.get("start")
        return sha256

    @property
    def _data(self) -> dict[str, Any]:
        """`data.json`; empty where there is none."""
        file = self.path / "data.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def save_weights(self, phase: str, network: Network) -> None:
        """Keep the network as the best of its phase, or as what the run ends with (`ending`)."""
        state = {key: value.contiguous() for key, value in network.state_dict().items()}
        replace(self._weights(phase), lambda partial: save_file(state, partial))

    def load_weights(self, phase: str) -> dict[str, Tensor]:
        """What `save_weights` kept under that name."""
        return load_file(self._weights(phase))

    def save_last(self, state: dict[str, Any]) -> None:
        """Keep what is needed to go on."""
        replace(self.path / "last.ckpt", lambda partial: torch.save(state, partial))

    def load_last(self) -> dict[str, Any] | None:
        """What `save_last` kept, or None where nothing was kept yet."""
        last = self.path / "last.ckpt"
        if not last.is_file():
            return None
        state: dict[str, Any] = torch.load(last, map_location="cpu", weights_only=True)
        if "standing" not in state:  # of a version that kept it only between epochs
            state["standing"] = {"epoch": state["epoch"] + 1, "best": state["best"]}
            state |= {"drawn_by": state["difficulty"], "scale": {}}
        return state

    def end(self, found: Report) -> None:
        """Say that the run is finished, and with what figures."""
        text = json.dumps(dataclasses.asdict(found), indent=2) + "\n"
        replace(self.path / "finished.json", lambda partial: partial.write_text(text))

    def _weights(self, phase: str) -> Path:
        return self.path / f"{phase}.safetensors"


def learnt_by_run(run: Path, config: Config) -> list[str]:
    """`data_id` of each folder that a run, and those that it begins with, have learnt from.

    Its folders as they are now count as well, where they are still there: they may have changed since.

    Raises:
        OSError: a folder of a run of an earlier version, which does not tell what it has learnt from, is gone.
    """
    told = RunFolder(run).learnt
    now = [data_id([folder]) for folder in config.all_folders if not told or folder.is_dir()]
    return list(dict.fromkeys([*told, *now]))


def learnt_by_bundle(manifest: Manifest) -> list[str]:
    """The same of a bundle, and of all its data together."""
    return [manifest.data_id, *str(manifest.training.get(LEARNT_DATA, "")).split()]


def load_run(run: Path) -> tuple[Network, Config, tuple[str, ...]]:
    """The trained network of a finished run, its configuration and its labels.

    Raises:
        ValueError: the folder holds no finished run, or its weights are of another network than this version builds.
    """
    if not RunFolder(run).finished:
        raise ValueError(f"{run} holds no finished run (finished.json is missing)")
    config = Config.model_validate_json((run / "config.json").read_text())
    labels = tuple(json.loads((run / "data.json").read_text())["labels"])
    # the run brings the weights: a pretrained start is not fetched again
    network = build_network(len(labels), dataclasses.replace(config.network, trunk_weights=None))
    start_from(network, run / f"{ending(config)}.safetensors")
    return network.eval(), config, labels


def ending(config: Config) -> str:
    """The name of the weights that a run ends with."""
    return MIXED if config.start_share else "phase2"


def start_from(network: Network, weights: Path, *, part: Literal["network", "trunk"] = "network") -> None:
    """Give a network, or its trunk alone, the weights of a file; that its labels are the network's is taken on trust.

    Raises:
        ValueError: they cannot be read, or are another network's.
    """
    try:
        state = load_file(weights)
        if part == "trunk":
            heads = {key: value for key, value in network.state_dict().items() if not key.startswith(TRUNK)}
            state = {**heads, **{key: value for key, value in state.items() if key.startswith(TRUNK)}}
        network.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{weights} does not fit: {error}") from error


def mix_with_start(network: Network, config: Config) -> None:
    """Take `start_share` of the weights that a run started from, the rest of its own.

    A run that learns something new forgets some of what it knew; half way between both weights it does better at
    either (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).

    Raises:
        ValueError: the weights that it started from cannot be read, or are another network's.
    """
    assert config.start is not None  # a configuration with a share has one
    own = {key: value.clone() for key, value in network.state_dict().items()}
    start_from(network, config.start)
    for key, value in network.state_dict().items():
        if value.is_floating_point():
            value.lerp_(own[key], 1 - config.start_share)
        else:  # counters
            value.copy_(own[key])


def data_id(folders: Sequence[Path]) -> str:
    """Identity of the training data: SHA-256 over the tables of the cut folders.

    Raises:
        OSError: a table cannot be read.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for table in TABLES:
            digest.update((folder / table).read_bytes())
    return digest.hexdigest()[:16]


def content_id(folder: Path) -> str:
    """Identity of what `data_id` leaves out: where the defects are, and the pixels, told by the sizes of their files.

    Raises:
        OSError: the maps cannot be read, or an image is gone of which `pixels.json` tells nothing.
    """
    digest = hashlib.sha256((folder / "maps.npz").read_bytes())
    digest.update(json.dumps(image_sizes(folder)).encode())
    return digest.hexdigest()[:16]


def sizes_of(files: Iterable[Path]) -> bytes:
    """Names and sizes of files, for a digest: what is in them is too much to read for it."""
    return json.dumps(sorted((file.name, file.stat().st_size) for file in files)).encode()


def refuse_changed(run: Path, config: Config) -> None:
    """Refuse a run whose data is not what it was trained on.

    Raises:
        ValueError: it has changed since.
        OSError: it is gone.
    """
    if changed := RunFolder(run).changed_data(config):
        told = f"has changed since it was trained ({', '.join(changed)}): what it was judged by is gone"
        raise ValueError(f"the data of {run} {told}")


def _learnt_phases(config: Config) -> list[str]:
    """Those that have epochs, and those that the weights have learnt in which it begins with."""
    before: list[str] = []
    if config.start is not None and config.start_part == "network":
        before = RunFolder(config.start.parent).learnt_phases
        if config.start.stem == "phase1":  # which were kept before phase 2 learnt
            before = [name for name in before if name == "phase1"]
    return [name for name in PHASES if getattr(config, name).epochs or name in before]


def _refuse_other_labels(start: Path, labels: Sequence[str]) -> None:
    """Refuse a run's weights where its labels are not these, in their order: each would begin as another one."""
    before = RunFolder(start.parent)._data.get("labels", list(labels))
    if before != list(labels):
        raise ValueError(f"{start} knows the labels {', '.join(before)}, the data has {', '.join(labels)}")


def _refuse_other_network(start: Path, config: Config) -> None:
    """Refuse a run's weights where its network is not this one; a stage 2 that begins anew may be another."""
    file = start.parent / "config.json"
    if not file.is_file():  # weights in no run's folder are taken on trust
        return
    before, now = Config.model_validate_json(file.read_text()).network, config.network
    free = {"trunk_weights", "learn_scale", "cosine_scale"}  # which decide nothing of weights that are there
    free |= set(ANEW) if config.phase2.epochs and not config.start_share else set()
    held = {field.name for field in dataclasses.fields(now)} - free
    for name in sorted(held if config.start_part == "network" else {"trunk", "light"}):
        if getattr(before, name) != getattr(now, name):
            told = f"network.{name} = {getattr(before, name)!r}, here it is {getattr(now, name)!r}"
            raise ValueError(f"{start} is of another network: {told}")


def _differing(before: Config, now: Config) -> list[str]:
    """What is not the same of all that decides the outcome of a run, as `key old -> new`."""
    old, new = (dict(flat(_identity(config))) for config in (before, now))
    return [f"{key} {old.get(key)} -> {new.get(key)}" for key in {**old, **new} if old.get(key) != new.get(key)]


def _identity(config: Config) -> dict[str, Any]:
    """What decides the outcome of a run: not where its folders are, whose hands it has, how often it is kept.

    What is in the folders and in the weights that it starts from is told by `data.json`.
    """
    kept = config.moved(lambda _: Path())
    others = dict.fromkeys(("run", "accelerator", "threads", "checkpoint_minutes"), True)
    return kept.model_dump(mode="json", exclude={**others, "data": {"workers"}})
