"""Cut folders as torch datasets: patches, labels, maps and screens. Knows nothing of the network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from training.cut_folder import CutFolder
from training.truth import CELL_PX
from training.visible import VISIBLE_FILE, Visible, read_visible

# bounds of the difficulty: what is easy comes back at times, what is hopeless not always
_EASIEST, _HARDEST = 0.02, 3.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches that go through the network together.

    `pixels` (N, 1, P, P) uint8 grey; `labels` (N, L) and `maps` (N, L, h, w) with 1 present, 0 absent, -1 unknown;
    `screens` (N,) number of each patch's screen; `indices` (N,) of the patches in their set.
    """

    pixels: Tensor
    labels: Tensor
    maps: Tensor
    screens: Tensor
    indices: Tensor


class PatchSet(Dataset[tuple[Tensor, Tensor, Tensor, int, int]]):
    """One part of one or more cut folders.

    The pixels are decoded once into `pixels.u8` beside the images and memory-mapped from then on: a full-size PNG
    takes longer to decode than a small network takes to learn from it.

    Raises:
        ValueError: the folders disagree in labels or patch size, or hold no patch of the part.
    """

    def __init__(self, folders: Sequence[Path], part: str | None, *, transform: v2.Transform | None = None) -> None:
        cuts = [CutFolder(folder) for folder in folders]
        first = cuts[0]
        for other in cuts[1:]:
            if (other.label_names, other.patch_px) != (first.label_names, first.patch_px):
                raise ValueError(f"{other.folder} and {first.folder} differ in labels or patch size")
        self.label_names = first.label_names
        self.patch_px = first.patch_px
        self.transform = transform
        self.seed = (0, 0)  # with its index, or its place among those that are drawn, it decides how it is transformed
        self._pixels = [cut.pixels() for cut in cuts]
        self._maps = [cut.maps() for cut in cuts]
        self._rows = [(c, k) for c, cut in enumerate(cuts) for k in cut.rows_of(part)]
        if not self._rows:
            raise ValueError(f"no patch of the part {part!r} in {', '.join(map(str, folders))}")
        self.labels: NDArray[np.int8] = np.stack([cuts[c].labels[k] for c, k in self._rows])
        self.names = [cuts[c].names[k] for c, k in self._rows]
        self.screen_names = [cuts[c].screens[k] for c, k in self._rows]
        numbers = {key: n for n, key in enumerate(dict.fromkeys((c, cuts[c].screens[k]) for c, k in self._rows))}
        self.screens = np.array([numbers[c, cuts[c].screens[k]] for c, k in self._rows])
        self._folders = [cut.folder for cut in cuts]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """A patch by its index, or by its index and the step and place in it that it is drawn for."""
        index, *place = (key,) if isinstance(key, int) else key
        folder, row = self._rows[index]
        pixels = torch.from_numpy(self._pixels[folder][row].copy())[None]
        target = torch.from_numpy(self._dense_map(folder, row))
        if self.transform is not None:
            # neither the process nor the device that draws it changes a patch
            with torch.random.fork_rng(devices=[]):
                # the CPU's alone: seeding every device costs as much as turning a patch
                torch.default_generator.manual_seed(
                    int(np.random.SeedSequence([*self.seed, *(place or [index])]).generate_state(1, np.uint64)[0])
                )
                pixels, target = self.transform(pixels, target)
        return pixels, torch.from_numpy(self.labels[index]), target, int(self.screens[index]), index

    def patch(self, index: int) -> NDArray[np.uint8]:
        """The pixels (P, P) of one patch, without augmentation."""
        folder, row = self._rows[index]
        pixels: NDArray[np.uint8] = self._pixels[folder][row]
        return pixels

    def pixels(self, indices: Iterable[int]) -> NDArray[np.uint8]:
        """The pixels (K, 1, P, P) of some patches, without augmentation."""
        return np.stack([self.patch(index) for index in indices])[:, None]

    def by_screen(self) -> list[NDArray[np.int64]]:
        """Indices of the patches of each screen."""
        return [np.flatnonzero(self.screens == number) for number in np.unique(self.screens)]

    def cells(self, index: int) -> NDArray[np.int8]:
        """Where the labels are in one patch: (L, h, w) with 1 present, 0 absent, -1 unknown."""
        return self._dense_map(*self._rows[index])

    @property
    def tells_visible(self) -> bool:
        """Whether all the folders have the table that `visible` reads."""
        return all((folder / VISIBLE_FILE).is_file() for folder in self._folders)

    def visible(self) -> list[list[Visible]]:
        """What lies in each patch.

        Raises:
            ValueError: a folder was cut before there was a table of it.
        """
        tables = [read_visible(folder) for folder in self._folders]
        return [tables[folder].get(name, []) for (folder, _), name in zip(self._rows, self.names, strict=True)]

    def _dense_map(self, folder: int, row: int) -> NDArray[np.int8]:
        side = -(-self.patch_px // CELL_PX)
        dense = np.zeros((len(self.label_names), side, side), np.int8)
        cells = self._maps[folder].get(row)
        if cells is not None:
            dense[cells[:, 0], cells[:, 1], cells[:, 2]] = cells[:, 3]
        return dense


def refuse_leaks(folders: Sequence[Path]) -> None:
    """Refuse folders of which one learns from a screen that another one validates or tests with.

    Raises:
        ValueError: there is such a screen; the message names it.
    """
    known = _Known()
    for cut in map(CutFolder, dict.fromkeys(folders)):
        for screen, part in cut.parts.items():
            if len({one == "train" for one in (part, *known.parts(cut, screen))}) > 1:
                raise ValueError(f"{cut.folder}: screen {screen} is in part {part!r}, and elsewhere on the other side")
        known.add(cut)


def refuse_known(folders: Sequence[Path], known: Sequence[Path]) -> None:
    """Refuse folders that hold a screen of a known folder, cut in whatever way, or the same screen twice.

    Raises:
        ValueError: there is such a screen; the message names it.
    """
    seen = _Known()
    for cut in map(CutFolder, dict.fromkeys(known)):
        seen.add(cut)
    for cut in map(CutFolder, folders):
        for screen in cut.parts:
            if seen.parts(cut, screen):
                told = "its scores say nothing of screens to come, so leave it out"
                raise ValueError(f"{cut.folder}: screen {screen} of {cut.source} is known already: {told}")
        seen.add(cut)


class _Known:
    """Screens of folders and the parts that they are in.

    They are known by their pixels; where a folder was cut by a version that told none, by its source's name and theirs.
    """

    def __init__(self) -> None:
        self._by_pixels: dict[str, set[str]] = {}
        self._by_name: dict[tuple[str, str], set[str]] = {}
        self._without_pixels: dict[tuple[str, str], set[str]] = {}

    def parts(self, cut: "CutFolder", screen: str) -> set[str]:
        """Where the screen is in the folders that were added; empty where it is in none."""
        name = cut.source, screen
        if screen in cut.pixels_of:
            return self._by_pixels.get(cut.pixels_of[screen], set()) | self._without_pixels.get(name, set())
        return self._by_name.get(name, set())

    def add(self, cut: "CutFolder") -> None:
        """All screens of a folder."""
        for screen, part in cut.parts.items():
            name = cut.source, screen
            self._by_name.setdefault(name, set()).add(part)
            if screen in cut.pixels_of:
                self._by_pixels.setdefault(cut.pixels_of[screen], set()).add(part)
            else:
                self._without_pixels.setdefault(name, set()).add(part)


def balanced_order(
    labels: NDArray[np.int8],
    *,
    positives: float | None,
    difficulty: NDArray[np.float32] | None = None,
    hard: float = 0.0,
    count: int | None,
    seed: int,
    epoch: int,
    rank: int = 0,
    world: int = 1,
) -> list[int]:
    """Indices of one epoch: shuffled, with a given share of patches that have a defect where one is asked for.

    Args:
        labels: (N, L) of the set.
        positives: share with a label that is 1, or None for the set's own.
        difficulty: (N,) how badly each patch was told when it was last seen.
        hard: share of the epoch that is drawn in proportion to the difficulty, with positives and others apart.
        count: patches in an epoch, or None for all of them.
        seed: with the epoch it decides the order.
        epoch: number of the epoch.
        rank: this device's number.
        world: how many devices there are; each takes its share.

    Raises:
        ValueError: there are more devices than patches in an epoch.
    """
    count = (len(labels) if count is None else count) // world * world
    if not count:
        raise ValueError(f"an epoch has fewer patches than the {world} devices that share it")
    rng = np.random.default_rng([seed, epoch])

    def draw(pool: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        """So many of the pool: the hard share by difficulty, of the rest each as often as any other but for one."""
        by_difficulty = 0 if difficulty is None else round(hard * size)
        evenly = size - by_difficulty
        rounds = [rng.permutation(pool) for _ in range(-(-evenly // len(pool)))]
        even = np.concatenate([pool[:0], *rounds])[:evenly]
        if difficulty is None:
            return even
        weight = np.clip(difficulty[pool], _EASIEST, _HARDEST)
        return np.concatenate([even, rng.choice(pool, size=by_difficulty, p=weight / weight.sum())])

    present = (labels == 1).any(axis=1)
    pools = np.flatnonzero(present), np.flatnonzero(~present)
    if positives is None or not all(map(len, pools)):
        drawn = draw(np.concatenate(pools), count)
    else:
        positive = round(positives * count)
        drawn = np.concatenate([draw(pools[0], positive), draw(pools[1], count - positive)])
    order: list[int] = rng.permutation(drawn)[rank::world].tolist()
    return order


def screen_batches(
    patches: PatchSet, *, batch: int, count: int | None, seed: int, epoch: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """Batches of whole screens of one epoch, at least `batch` patches each; a screen is never divided.

    The arguments are those of `balanced_order`. A last batch that is too small is left out, and so are batches that
    would give one device more work than another.

    Raises:
        ValueError: there are more devices than such batches.
    """
    screens = patches.by_screen()
    batches: list[list[int]] = [[]]
    for number in np.random.default_rng([seed, epoch]).permutation(len(screens)):
        batches[-1].extend(screens[number].tolist())
        if len(batches[-1]) >= batch:
            batches.append([])
    whole = batches[:-1] or batches  # fewer patches than one batch: that is the batch
    if len(whole) < world:
        raise ValueError(f"there are {len(whole)} batches of {batch} patches in whole screens for {world} devices")
    sizes = np.cumsum([len(one) for one in whole])
    limit = len(whole) if count is None else max(1, int(np.searchsorted(sizes, count, side="right")))
    return whole[: max(limit // world, 1) * world][rank::world]
