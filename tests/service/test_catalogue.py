import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.catalogue import CONFIGURED, Catalogue
from service.errors import BundleUnknown
from tests.service.shelves import altered, shelf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shelf(tmp_path / "bundles")


def test_a_configured_bundle_elsewhere_has_a_name_that_no_folder_can_have(folder: Path, bundle: Path) -> None:
    (folder / CONFIGURED).mkdir()
    catalogue = Catalogue(configured=bundle, folder=folder)
    assert catalogue.configured == CONFIGURED
    assert catalogue.names() == [CONFIGURED, "one", "two"]
    assert catalogue.path(CONFIGURED) == bundle


def test_a_configured_bundle_in_the_folder_has_the_name_of_its_own(folder: Path) -> None:
    catalogue = Catalogue(configured=folder / ".." / "bundles" / "one", folder=folder)
    assert catalogue.configured == "one"
    assert catalogue.names() == ["one", "two"]
    # by which it was known before it was moved there
    assert catalogue.path(CONFIGURED).resolve() == catalogue.path("one").resolve() == (folder / "one").resolve()


def test_without_a_folder_there_is_the_configured_one(bundle: Path) -> None:
    catalogue = Catalogue(configured=bundle, folder=None)
    assert catalogue.names() == [CONFIGURED]
    with pytest.raises(BundleUnknown, match="INSPECT_BUNDLES is not set"):
        catalogue.path("one")


def test_hidden_folders_and_files_are_no_bundles(folder: Path, bundle: Path) -> None:
    shutil.copytree(folder / "one", folder / ".copying")
    (folder / "notes.txt").write_text("")
    catalogue = Catalogue(configured=bundle, folder=folder)
    assert catalogue.names() == [CONFIGURED, "one", "two"]
    for name in (".copying", "notes.txt"):
        with pytest.raises(BundleUnknown):
            catalogue.path(name)


def test_a_folder_that_cannot_be_named_is_shown_with_the_reason(folder: Path, bundle: Path) -> None:
    (folder / "one").rename(folder / "my one")
    catalogue = Catalogue(configured=bundle, folder=folder)
    assert "my one" in catalogue.names()
    assert catalogue.look("my one").reason.startswith("the folder's name must be [A-Za-z0-9]")


# each leads to a folder that exists, where a path is made of it carelessly
HOSTILE = (
    *("..", ".", "", "/", "../bundles/one", "one/", "one/../two", "./one", "one/.", "//one", "~", "two\n", " one"),
    *("one\0", "..\\bundles\\one", "\u2025/one", "one%2f..", "\uff0e\uff0e"),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_that_is_a_path_is_none(folder: Path, bundle: Path, name: str) -> None:
    catalogue = Catalogue(configured=bundle, folder=folder)
    for path in (name, f"{folder}/one", os.path.relpath(folder / "one")):
        with pytest.raises(BundleUnknown):
            catalogue.path(path)


@given(name=st.text(max_size=80) | st.text("./\\one~", max_size=12))
def test_whatever_is_named_lies_in_the_folder_itself(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "of-names"
    (folder / "one").mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue(configured=folder.parent, folder=folder)
    try:
        path = catalogue.path(name)
    except BundleUnknown:
        return
    assert name in ("one", CONFIGURED)
    assert path.resolve() in (folder / "one", folder.parent)


def test_a_look_sees_what_changes_on_the_disk(folder: Path, bundle: Path) -> None:
    catalogue = Catalogue(configured=bundle, folder=folder)
    whole = catalogue.look("one")
    assert whole.manifest is not None
    assert (whole.manifest.version, whole.reason) == ("1", "")
    assert whole.digest != catalogue.look("two").digest
    reason = altered(folder / "one")
    assert catalogue.look("one").reason.startswith(reason)
    shutil.rmtree(folder / "one")
    assert catalogue.look("one").reason == "no folder of this name lies in the folder of bundles"


def test_a_bundle_that_has_not_changed_is_not_hashed_again(folder: Path, bundle: Path) -> None:
    catalogue = Catalogue(configured=bundle, folder=folder)
    assert catalogue.look("one") is catalogue.look("one")


def test_what_is_altered_in_its_place_is_seen_though_its_time_and_size_are_as_before(
    folder: Path, bundle: Path
) -> None:
    catalogue, graph = Catalogue(configured=bundle, folder=folder), folder / "one" / "features.onnx"
    before = graph.stat()
    assert catalogue.look("one").reason == ""
    with graph.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    os.utime(graph, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = graph.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    assert catalogue.look("one").reason.startswith("files.features.onnx: was altered")


def test_a_link_as_the_configured_bundle_is_what_it_led_to_at_the_start(folder: Path) -> None:
    current = folder / "current"
    current.symlink_to("one")
    catalogue = Catalogue(configured=current, folder=folder)
    assert catalogue.configured == "one"
    current.unlink()
    current.symlink_to("two")
    assert catalogue.path("one") == catalogue.path(CONFIGURED) == folder / "one"
    assert catalogue.look("one").digest != catalogue.look("two").digest


def test_a_link_is_no_name(folder: Path, bundle: Path) -> None:
    (folder / "current").symlink_to("one")
    (folder / "elsewhere").symlink_to(bundle)
    catalogue = Catalogue(configured=bundle, folder=folder)
    assert catalogue.configured == CONFIGURED
    assert catalogue.names() == [CONFIGURED, "one", "two"]
    for name in ("current", "elsewhere"):
        with pytest.raises(BundleUnknown):
            catalogue.path(name)


def test_a_folder_of_bundles_that_is_away_leaves_the_configured_one(folder: Path, bundle: Path) -> None:
    catalogue = Catalogue(configured=bundle, folder=folder)
    shutil.rmtree(folder)
    assert catalogue.names() == [CONFIGURED]
    assert catalogue.look("one").reason == "no folder of this name lies in the folder of bundles"
