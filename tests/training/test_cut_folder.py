"""A folder that was cut and then changed by hand: it is refused, and not misread."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.training.data_form import write_screens
from training.cut_folder import CutFolder
from training.cutting import cut

PATCH = 64
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cut(write_screens(tmp_path / "source", screens=8), tmp_path / "cut", patch_px=PATCH)
    return tmp_path / "cut"


def lines(table: str, change: Callable[[list[str]], list[str]]) -> Change:
    """The rows below the header become others."""

    def changed(folder: Path) -> None:
        header, *rows = (folder / table).read_text().splitlines()
        (folder / table).write_text("\n".join([header, *change(rows), ""]))

    return changed


def cells(**ends: int) -> Change:
    """One cell is of a patch, a label or a place that there is not."""

    def changed(folder: Path) -> None:
        with np.load(folder / "maps.npz") as arrays:
            kept = arrays["cells"]
        kept[0, ends["column"]] = ends["value"]
        np.savez(folder / "maps.npz", cells=kept)

    return changed


FAULTS: list[tuple[Change, str]] = [
    (lines("labels.csv", lambda rows: sorted(rows, reverse=True)), r"labels.csv has the patch t\S+, windows.csv has t"),
    (lines("labels.csv", lambda rows: rows[1:]), r"labels.csv has the patch t\S+, windows.csv has t"),
    (lines("windows.csv", lambda rows: rows[1:]), r"labels.csv has the patch t\S+, windows.csv has t"),
    (lines("windows.csv", lambda rows: rows[:-1]), r"labels.csv has the patch t\S+, windows.csv has None"),
    (lines("labels.csv", lambda rows: [rows[0][:-1] + "2", *rows[1:]]), r"labels.csv, line 2: a label is 1, 0 or -1"),
    (lines("labels.csv", lambda rows: [rows[0] + ",1", *rows[1:]]), r"labels.csv, line 2: more values"),
    (lines("labels.csv", lambda rows: [rows[0].split(",")[0], *rows[1:]]), r"labels.csv, line 2: fewer values"),
    (lambda f: (f / "labels.csv").write_text("img_names dot\n"), r"labels.csv has the header 'img_names dot'"),
    (lambda f: (f / "labels.csv").write_text("img_names;dot\n"), r"labels.csv has ';' between its columns"),
    (
        lines("splits.csv", lambda rows: [rows[0] + "n", *rows[1:]]),
        r"screen t000 is in '\w+n', which is none",
    ),
    (lines("splits.csv", lambda rows: [*rows, rows[0]]), r"splits.csv: screen t000 is there twice"),
    (lines("splits.csv", lambda rows: rows[2:]), r"splits.csv has no part for the screen t000 \(and 1 more\)"),
    (lambda f: (f / "cut.json").write_text("{}"), r"cut.json is none that `cut` wrote: KeyError\('patch_px'\)"),
    (lambda f: (f / "cut.json").write_text(""), r"cut.json is none that `cut` wrote"),
    (lambda f: (f / "cut.json").unlink(), r"holds no cut.json"),
    (cells(column=0, value=999), r"maps.npz tells of other patches or labels"),
    (cells(column=1, value=2), r"maps.npz tells of other patches or labels"),
    (cells(column=2, value=-1), r"maps.npz tells of other patches or labels"),
    (lambda f: (f / "maps.npz").write_bytes(b"PK"), r"maps.npz cannot be read: no arrays"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_tables_that_do_not_fit_each_other_are_refused(folder: Path, change: Change, message: str) -> None:
    CutFolder(folder).maps()
    change(folder)
    with pytest.raises(ValueError, match=message):
        CutFolder(folder).maps()


def test_empty_lines_of_an_editor_change_nothing(folder: Path) -> None:
    before = CutFolder(folder)
    with (folder / "labels.csv").open("a") as file:
        file.write("\n\n")
    after = CutFolder(folder)
    assert after.names == before.names
    assert (after.labels == before.labels).all()


def test_a_disk_without_room_for_the_pixels_is_said_before_they_are_decoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        assert (offset, length) == (0, len(CutFolder(folder).names) * PATCH**2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left on device: .*pixels.partial"):
        CutFolder(folder).pixels()
    assert not list(folder.glob("pixels.*[!k]"))
    monkeypatch.undo()
    assert CutFolder(folder).pixels().shape == (8 * 12, PATCH, PATCH)


def test_pixels_are_of_the_images_that_are_there(folder: Path) -> None:
    """An image that was saved anew, or another order of the patches, is not read as what was decoded before."""
    before = np.array(CutFolder(folder).pixels())
    name = CutFolder(folder).names[3]
    cv2.imwrite(str(folder / "images" / name), np.full((PATCH, PATCH), 7, np.uint8))
    after = CutFolder(folder).pixels()
    assert (after[3] == 7).all()
    np.testing.assert_array_equal(np.delete(after, 3, axis=0), np.delete(before, 3, axis=0))

    for table in ("labels.csv", "windows.csv"):
        lines(table, lambda rows: rows[::-1])(folder)
    np.testing.assert_array_equal(CutFolder(folder).pixels(), after[::-1])


def test_what_was_decoded_stands_in_for_images_that_are_gone(folder: Path) -> None:
    before = np.array(CutFolder(folder).pixels())
    shutil.rmtree(folder / "images")
    np.testing.assert_array_equal(CutFolder(folder).pixels(), before)
    for table in ("labels.csv", "windows.csv"):
        lines(table, lambda rows: rows[::-1])(folder)
    with pytest.raises(ValueError, match="is missing"):
        CutFolder(folder).pixels()


def test_an_image_that_is_not_whole_is_named_without_a_decoders_noise(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = folder / "images" / CutFolder(folder).names[3]
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(ValueError, match=rf"{image.name} is incomplete: it lacks its end mark"):
        CutFolder(folder).pixels()
    assert "libpng" not in capfd.readouterr().err


def test_for_images_that_are_gone_alone_it_stands_in(folder: Path) -> None:
    """Others that have changed meanwhile are not overlooked, and a link that leads nowhere is an image that is gone."""
    before, first, second = np.array(CutFolder(folder).pixels()), *CutFolder(folder).names[:2]
    image = folder / "images" / first
    image.unlink()
    np.testing.assert_array_equal(CutFolder(folder).pixels(), before)
    image.symlink_to("gone.png")
    np.testing.assert_array_equal(CutFolder(folder).pixels(), before)
    cv2.imwrite(str(folder / "images" / second), np.zeros((PATCH, PATCH), np.uint8))
    with pytest.raises(ValueError, match=f"{first} is missing"):
        CutFolder(folder).pixels()


@pytest.mark.parametrize("record", ["", '[["t000_', "[1]", "7"])
def test_a_record_that_was_cut_off_is_written_again(folder: Path, record: str) -> None:
    before = np.array(CutFolder(folder).pixels())
    whole = (folder / "pixels.json").read_text()
    (folder / "pixels.json").write_text(record)
    np.testing.assert_array_equal(CutFolder(folder).pixels(), before)
    assert (folder / "pixels.json").read_text() == whole


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_to_is_read_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """With pixels of an earlier version, which kept no record; or it is told what is missing."""
    before = np.array(CutFolder(folder).pixels())
    record = (folder / "pixels.json").read_text()
    (folder / "pixels.json").unlink()

    def refused(path: Path) -> object:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("training.cut_folder.alone", refused)
    np.testing.assert_array_equal(CutFolder(folder).pixels(), before)
    (folder / "pixels.json").write_text(record.replace("_00_", "_99_"))
    with pytest.raises(ValueError, match=r"may not be written to, .* leaves pixels.u8 and its record, or take a copy"):
        CutFolder(folder).pixels()


def test_pixels_of_an_earlier_version_are_decoded_once_more(folder: Path) -> None:
    before = np.array(CutFolder(folder).pixels())
    (folder / "pixels.json").unlink()
    (folder / "pixels.u8").write_bytes(bytes(before.nbytes))
    np.testing.assert_array_equal(CutFolder(folder).pixels(), before)
    assert (folder / "pixels.json").is_file()
