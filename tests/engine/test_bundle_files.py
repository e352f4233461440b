"""The files of a bundle beside its manifest: what was altered, is missing or belongs to another is named."""

import shutil
from pathlib import Path

import pytest

from engine import BundleError, Manifest
from engine.manifest import RELEASE_FILE, REQUIRED_FILES
from tests.bundles import tiny_bundle


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_one_changed_bit_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match="altered") as caught:
        Manifest.read(copy)
    assert caught.value.key == f"files.{name}"


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match="No such file") as caught:
        Manifest.read(copy)
    assert caught.value.key == f"files.{name}"


def test_a_folder_in_place_of_a_file_is_named(copy: Path) -> None:
    (copy / "golden.npz").unlink()
    (copy / "golden.npz").mkdir()
    with pytest.raises(BundleError) as caught:
        Manifest.read(copy)
    assert caught.value.key == "files.golden.npz"


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.read(tmp_path)
    assert caught.value.key == "manifest.json"


def test_a_huge_manifest_is_not_read_whole(copy: Path) -> None:
    with (copy / "manifest.json").open("ab") as file:
        file.truncate(10 * 2**30)  # sparse: ten gigabytes that take no room
    with pytest.raises(BundleError, match="larger than") as caught:
        Manifest.read(copy)
    assert caught.value.key == "manifest.json"


def test_a_file_that_is_not_listed_is_left_alone(copy: Path) -> None:
    (copy / "plan.cache").write_bytes(b"x")
    assert Manifest.read(copy).name == "tiny"


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_a_file_of_another_bundle_is_never_used(copy: Path, tmp_path: Path, name: str) -> None:
    manifest = Manifest.read(copy)
    assert manifest.verified(copy, name) == (copy / name).read_bytes()
    shutil.rmtree(copy)
    tiny_bundle(tmp_path / "next", version="2", labels=("bubble", "scratch")).rename(copy)  # as an export does
    if name != "MODEL_CARD.md":  # which is the same
        with pytest.raises(BundleError, match="altered") as caught:
            manifest.verified(copy, name)
        assert caught.value.key == f"files.{name}"
    (copy / name).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        manifest.verified(copy, name)


def test_a_released_bundle_is_signed_again_without_its_record(copy: Path) -> None:
    (copy / RELEASE_FILE).write_text("{}")
    manifest = Manifest.read(copy)
    assert manifest.sign(copy) == manifest
    assert (copy / RELEASE_FILE).read_text() == "{}"
    assert Manifest.read(copy).files.keys() == set(REQUIRED_FILES)


@pytest.mark.parametrize("name", ["notes.txt", "features.onnx.data", "plans"])
def test_a_file_that_no_bundle_has_is_not_signed_and_named(copy: Path, name: str) -> None:
    (copy / name).mkdir() if name == "plans" else (copy / name).write_bytes(b"x")
    with pytest.raises(BundleError, match="is no file of a bundle") as caught:
        Manifest.read(copy).sign(copy)
    assert caught.value.key == name
    assert Manifest.read(copy).name == "tiny"  # what was signed before holds
