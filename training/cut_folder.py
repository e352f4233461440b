"""A folder that `cut` wrote: its tables, held against each other, its pixels and its maps."""

import errno
import json
import math
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from engine import alone
from training.images import read_whole
from training.patches import cut_facts
from training.rows import read_arrays, read_lines, read_rows
from training.truth import CELL_PX, PARTS

PIXELS_FILE = "pixels.u8"
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
TOLD = {"1", "0", "-1"}  # of a label in a table


class CutFolder:
    """The tables of one cut folder, which tell of the same patches.

    Args:
        folder: that `cut` wrote.

    Raises:
        ValueError: it is none, or a table is broken or of other patches than the others; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = cut_facts(folder)
        self.patch_px: int = facts["patch_px"]
        self.stride_px: int = facts["stride_px"]
        self.shrink: int = facts.get("shrink", 1)
        self.source: str = facts["source"]
        self.pixels_of: dict[str, str] = facts.get("screens", {})
        self.label_names, self.names, self.labels = _read_labels(folder / "labels.csv")
        windows = read_rows(folder / "windows.csv", "img_names", "screen")
        for name, window in zip_longest(self.names, (row["img_names"] for row in windows)):
            if name != window:  # a table that was sorted, or a row that was deleted, would give patches others' labels
                raise ValueError(f"{folder}: where labels.csv has the patch {name}, windows.csv has {window}")
        self.screens = [row["screen"] for row in windows]
        self.parts = _read_parts(folder / "splits.csv", set(self.screens))

    def rows_of(self, part: str | None) -> list[int]:
        """Numbers of the patches of a part; None: of all."""
        return [k for k, screen in enumerate(self.screens) if part is None or self.parts[screen] == part]

    def pixels(self) -> NDArray[np.uint8]:
        """The patches (N, P, P), mapped from `pixels.u8`, which is written where `is_decoded` says no.

        Raises:
            ValueError: an image is not there, not whole or no patch, or the folder may not be written to.
            OSError: there is no room for it.
        """
        shape = (len(self.names), self.patch_px, self.patch_px)
        cache = self.folder / PIXELS_FILE
        if not is_decoded(self.folder, self.names, self.patch_px):
            try:
                with alone(cache.with_suffix(".lock")):  # another run of the same data may just be at it
                    if not is_decoded(self.folder, self.names, self.patch_px):
                        self._decode(cache, shape)
            except OSError as error:
                if error.errno not in READ_ONLY:
                    raise
                if not (_is_as_long(cache, shape) and _told(cache) is None):  # an earlier version told nothing
                    told = f"take it once where that may be, which leaves {PIXELS_FILE} and its record, or take a copy"
                    raise ValueError(f"{self.folder} may not be written to, where pixels are kept: {told}") from error
        return np.memmap(cache, np.uint8, "r", shape=shape)

    def _decode(self, cache: Path, shape: tuple[int, int, int]) -> None:
        partial, record = cache.with_suffix(".partial"), cache.with_suffix(".json")
        sizes = _sizes(self.folder)
        try:
            # the memory of a file that the disk has no room for kills who writes to it
            with partial.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(partial)) from error
        pixels = np.memmap(partial, np.uint8, "r+", shape=shape)
        for k, name in enumerate(track(self.names, description=f"decode {self.folder.name}")):
            image = read_whole(self.folder / "images" / name)
            if image.shape != shape[1:]:
                raise ValueError(f"{self.folder / 'images' / name} is not a patch of {self.patch_px} px")
            pixels[k] = image
        pixels.flush()
        record.unlink(missing_ok=True)  # of the pixels before
        partial.replace(cache)
        draft = record.with_suffix(".draft")  # another process reads it without the lock
        draft.write_text(json.dumps([[name, sizes[name]] for name in self.names]) + "\n")
        draft.replace(record)

    def maps(self) -> dict[int, NDArray[np.integer[Any]]]:
        """Cells (n, 4) of the patches that have any: label, row, column, value.

        Raises:
            ValueError: they cannot be read, or are of other patches or labels.
        """
        file = self.folder / "maps.npz"
        try:
            (cells,) = read_arrays(file, ["cells"])
        except ValueError as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        side = -(-self.patch_px // CELL_PX)
        ends = (len(self.names), len(self.label_names), side, side)
        if cells.shape[1:] != (5,) or (cells[:, :4] < 0).any() or (cells[:, :4] >= ends).any():
            raise ValueError(f"{file} tells of other patches or labels than labels.csv")
        if not len(cells):
            return {}
        order = np.argsort(cells[:, 0], kind="stable")
        patches, starts = np.unique(cells[order, 0], return_index=True)
        return dict(zip(patches.tolist(), np.split(cells[order, 1:], starts[1:]), strict=True))


def is_decoded(folder: Path, names: Sequence[str], patch_px: int) -> bool:
    """Whether `pixels.u8` holds these patches, of their images as they are: names in this order, and sizes of files.

    `pixels.json` beside it tells of which images it was decoded; earlier versions told nothing. For images that are
    gone it stands in.
    """
    cache, sizes = folder / PIXELS_FILE, _sizes(folder)
    if not _is_as_long(cache, (len(names), patch_px, patch_px)):
        return False
    told = _told(cache)
    if told is None:
        return sizes.keys().isdisjoint(names)
    return [name for name, _ in told] == list(names) and all(sizes.get(name, size) == size for name, size in told)


def image_sizes(folder: Path) -> list[tuple[str, int]]:
    """Names and sizes in bytes of the patches' images, by name; of those that are gone, what `pixels.json` tells.

    Raises:
        ValueError: labels.csv, which names them, is malformed.
        OSError: an image is gone, and nothing tells of it.
    """
    _, names, _ = _read_labels(folder / "labels.csv")
    sizes = dict(_told(folder / PIXELS_FILE) or ()) | _sizes(folder)
    if gone := sorted(set(names) - sizes.keys()):
        raise FileNotFoundError(f"{folder / 'images' / gone[0]} is missing, and no pixels.json tells of it")
    return sorted((name, sizes[name]) for name in names)


def _told(cache: Path) -> list[tuple[str, int]] | None:
    """Names and sizes of the images; none of them where they cannot be read, None where nothing is told."""
    try:
        told = json.loads(cache.with_suffix(".json").read_bytes())
        return [(str(name), int(size)) for name, size in told]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return []


def _sizes(folder: Path) -> dict[str, int]:
    """Of the images that are there, links that lead somewhere too."""
    if not (folder / "images").is_dir():
        return {}
    with os.scandir(folder / "images") as entries:
        return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}


def _is_as_long(cache: Path, shape: tuple[int, int, int]) -> bool:
    return cache.is_file() and cache.stat().st_size == math.prod(shape)


def _read_labels(table: Path) -> tuple[tuple[str, ...], list[str], NDArray[np.int8]]:
    """Label names (L), patch names (N) and labels (N, L)."""
    header, lines = read_lines(table)
    if header[:1] != ["img_names"] or len(header) < 2:
        raise ValueError(f"{table} has the header {','.join(header)!r}: img_names and the labels make it")
    names: list[str] = []
    rows: list[list[int]] = []
    for line, row, wrong in lines:
        values = [row[label] for label in header[1:]]
        if wrong or not TOLD.issuperset(values):
            raise ValueError(f"{table}, line {line}: {wrong or 'a label is 1, 0 or -1'}")
        names.append(row["img_names"])
        rows.append([int(value) for value in values])
    return tuple(header[1:]), names, np.array(rows, np.int8).reshape(len(rows), -1)


def _read_parts(table: Path, screens: set[str]) -> dict[str, str]:
    """The part of each screen."""
    parts: dict[str, str] = {}
    for row in read_rows(table, "screen", "part"):
        screen, part = row["screen"], row["part"]
        if part not in PARTS:
            raise ValueError(f"{table}: screen {screen} is in {part!r}, which is none of {', '.join(PARTS)}")
        if screen in parts:
            raise ValueError(f"{table}: screen {screen} is there twice")
        parts[screen] = part
    if left := sorted(screens - parts.keys()):
        raise ValueError(f"{table} has no part for the screen {left[0]} (and {len(left) - 1} more)")
    return parts
