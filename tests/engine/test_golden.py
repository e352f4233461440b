import io
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine import (
    DEFAULT_BUNDLE,
    BundleError,
    FakeBackend,
    Features,
    Golden,
    InferenceError,
    Manifest,
    fake_manifest,
    load,
    read_golden,
    self_test,
)
from engine.manifest import file_sha256, parse
from tests.bundles import LABELS, activation_of, golden_pixels, probability_of

PATCH_PX = 64
PIXELS = golden_pixels(len(LABELS), patch_px=PATCH_PX)
PROBABILITY = probability_of(PIXELS, len(LABELS))
ACTIVATION = activation_of(PIXELS, len(LABELS))


def put(bundle: Path, content: bytes) -> None:
    """Another golden.npz under the right hash."""
    (bundle / "golden.npz").write_bytes(content)
    manifest = parse((bundle / "manifest.json").read_bytes())
    sha256 = file_sha256(bundle / "golden.npz")
    replace(manifest, files={**manifest.files, "golden.npz": sha256}).write(bundle)


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def test_golden_patches_come_with_the_tolerance_of_the_manifest(bundle: Path) -> None:
    golden = read_golden(bundle)
    np.testing.assert_array_equal(golden.pixels, PIXELS)
    np.testing.assert_array_equal(golden.probability, PROBABILITY)
    np.testing.assert_array_equal(golden.activation, ACTIVATION)
    assert golden.tolerance == Manifest.read(bundle).parity_tolerance["fp32"]


def test_self_test_passes_and_says_by_how_much(bundle: Path) -> None:
    golden = read_golden(bundle)
    backend = load(bundle, threads=1)
    assert 0 <= self_test(backend, golden) <= golden.tolerance
    moved = replace(golden, probability=np.abs(golden.probability - np.float32(0.25)), tolerance=0.5)
    assert self_test(backend, moved) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("score", [0.52, 0.0, 1.0, float("nan")])
def test_self_test_fails_over_the_tolerance_and_on_what_is_no_number(score: float) -> None:
    manifest = fake_manifest(("bubble",), patch_px=8)
    backend = FakeBackend(manifest, lambda pixels: np.full((len(pixels), 1), score))
    golden = Golden(
        pixels=np.zeros((7, 1, 8, 8), np.uint8),
        probability=np.full((7, 1), 0.5, np.float32),
        activation=np.zeros((7, 1, 1, 1), np.float32),
        tolerance=0.01,
    )
    with pytest.raises(InferenceError, match="golden patches differ by"):
        self_test(backend, golden)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda maps: maps[:, :, ::-1],
        lambda maps: maps.swapaxes(2, 3),
        lambda maps: np.roll(maps, 1, axis=1),
        lambda maps: maps * np.float32(0),
        lambda maps: maps[:, :, :-1],
        lambda maps: np.zeros((*maps.shape[:2], 1, 1), np.float32),
        lambda maps: maps * np.float32(np.nan),
    ],
)
def test_self_test_fails_where_maps_show_another_place(
    bundle: Path, spoil: Callable[[NDArray[np.float32]], NDArray[np.float32]], monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, backend = read_golden(bundle), load(bundle, threads=1)
    features = backend.features

    def spoilt(pixels: NDArray[np.uint8], *, glance: bool) -> Features:
        found = features(pixels)
        return replace(found, activation=spoil(found.activation))

    monkeypatch.setattr(backend, "features", spoilt)
    with pytest.raises(InferenceError, match=r"the activation maps of the golden patches (differ by|are)"):
        self_test(backend, golden)


@pytest.mark.parametrize("wrong", [False, True])
def test_self_test_sees_a_wrong_map_of_a_label_whose_maps_are_faint(
    bundle: Path, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, backend = read_golden(bundle), load(bundle, threads=1)
    features, share = backend.features, np.array([1, 1, 0.1, 1], np.float32)[:, None, None]

    def faint(pixels: NDArray[np.uint8], *, glance: bool) -> Features:
        found = features(pixels)
        maps = found.activation * share
        maps[:, 2] = maps[:, 2, ::-1] if wrong else maps[:, 2]
        return replace(found, activation=maps)

    monkeypatch.setattr(backend, "features", faint)
    golden = replace(golden, activation=golden.activation * share)
    if wrong:
        with pytest.raises(InferenceError, match="the activation maps of the golden patches differ by"):
            self_test(backend, golden)
    else:
        self_test(backend, golden)


def test_a_golden_file_that_was_altered_is_not_opened(copy: Path) -> None:
    (copy / "golden.npz").write_bytes(b"")
    with pytest.raises(BundleError) as caught:
        read_golden(copy)
    assert caught.value.key == "files.golden.npz"


Arrays = dict[str, NDArray[np.generic] | None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": None}, "an archive of pixels, probability, activation"),
        ({"activation": None}, "an archive of"),
        ({"more": PIXELS}, "nothing else"),
        ({"pixels": PIXELS[:, :, :, :60]}, "pixels must be"),
        ({"pixels": PIXELS[:, 0]}, "pixels must be"),
        ({"pixels": PIXELS[:0], "probability": PROBABILITY[:0]}, "pixels must be"),
        ({"pixels": PIXELS.astype(np.float32)}, "pixels must be"),
        ({"probability": PROBABILITY[:4]}, "probability must be"),
        ({"probability": PROBABILITY[:, :3]}, "probability must be"),
        ({"probability": PROBABILITY.astype(np.float64)}, "probability must be"),
        ({"probability": PROBABILITY + 1}, "from 0 to 1"),
        ({"probability": PROBABILITY * np.float32(np.nan)}, "from 0 to 1"),
        ({"activation": ACTIVATION[:, :3]}, "activation must be"),
        ({"activation": ACTIVATION[..., 0]}, "activation must be"),
        ({"activation": ACTIVATION[..., :0]}, "activation must be finite"),
        ({"activation": ACTIVATION.astype(np.float16)}, "activation must be"),
        ({"activation": np.full_like(ACTIVATION, np.inf)}, "activation must be finite"),
        # a pickle, which would run whatever it holds
        ({"probability": np.array([{}], object)}, "cannot be read"),
    ],
)
def test_golden_arrays_of_another_form_are_refused(copy: Path, changes: Arrays, message: str) -> None:
    arrays = {"pixels": PIXELS, "probability": PROBABILITY, "activation": ACTIVATION, **changes}
    np.savez(copy / "other.npz", **{name: array for name, array in arrays.items() if array is not None})  # type: ignore[arg-type]
    put(copy, (copy / "other.npz").read_bytes())
    with pytest.raises(BundleError, match=message) as caught:
        read_golden(copy)
    assert caught.value.key == "golden.npz"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: b"",
        lambda raw: b"no archive",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1],
        lambda raw: raw[:200] + bytes(100) + raw[300:],
        lambda raw: b"PK\x03\x04" + raw[4:100],
    ],
)
def test_a_file_that_is_no_whole_archive_is_refused(copy: Path, spoil: Callable[[bytes], bytes]) -> None:
    put(copy, spoil((copy / "golden.npz").read_bytes()))
    with pytest.raises(BundleError) as caught:
        read_golden(copy)
    assert caught.value.key == "golden.npz"


@given(st.data())
def test_whatever_bytes_are_changed_it_is_read_or_refused(bundle: Path, data: st.DataObject) -> None:
    raw = bytearray((bundle / "golden.npz").read_bytes())
    # the archive's own structures lie at its ends
    places = st.integers(0, 200) | st.integers(len(raw) - 200, len(raw) - 1)
    for place, value in data.draw(st.dictionaries(places, st.integers(0, 255), min_size=1)).items():
        raw[place] = value
    with TemporaryDirectory() as folder:
        copy = shutil.copytree(bundle, Path(folder) / "bundle")
        put(copy, bytes(raw))
        try:
            golden = read_golden(copy)
        except BundleError as error:
            assert error.key == "golden.npz"  # noqa: PT017 - both outcomes are right, by the bytes drawn
        else:
            assert golden.pixels.shape == PIXELS.shape


def test_an_array_that_no_memory_holds_is_refused(copy: Path) -> None:
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (2**46, 1, 64, 64)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(copy / "huge.npz", "w") as archive:
        archive.writestr("pixels.npy", header.getvalue())
        archive.writestr("probability.npy", header.getvalue())
        archive.writestr("activation.npy", header.getvalue())
    put(copy, (copy / "huge.npz").read_bytes())
    with pytest.raises(BundleError, match="cannot be read"):
        read_golden(copy)


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(copy: Path) -> None:
    packed = io.BytesIO()
    pixels = np.zeros((1, 1, 2**14 + 1, 2**14), np.uint8)  # 300 kB of file
    np.savez_compressed(packed, pixels=pixels, probability=PROBABILITY, activation=ACTIVATION)
    del pixels
    put(copy, packed.getvalue())
    with pytest.raises(BundleError, match=r"takes 2684\d+ bytes of memory, over the limit of 268435456"):
        read_golden(copy)


def test_a_single_array_is_no_archive(copy: Path) -> None:
    np.save(copy / "one.npy", PIXELS)
    put(copy, (copy / "one.npy").read_bytes())
    with pytest.raises(BundleError) as caught:
        read_golden(copy)
    assert caught.value.key == "golden.npz"


def test_the_embedded_bundle_holds_the_tolerances_that_it_states() -> None:
    manifest = Manifest.read(DEFAULT_BUNDLE)
    for precision in manifest.precisions[1:]:
        largest = manifest.training[f"{precision}_largest_difference"]
        assert isinstance(largest, float)
        assert 0 < largest <= manifest.parity_tolerance[precision]


def test_a_member_that_is_no_array_is_refused(copy: Path) -> None:
    packed = io.BytesIO((copy / "golden.npz").read_bytes())
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("pixels", b"raw")  # not pixels.npy, so that NumPy hands out its bytes
    with zipfile.ZipFile(packed) as archive, zipfile.ZipFile(bare := io.BytesIO(), "w") as other:
        for name in archive.namelist():
            if name != "pixels.npy":
                other.writestr(name, archive.read(name))
    put(copy, bare.getvalue())
    with pytest.raises(BundleError, match="no array") as caught:
        read_golden(copy)
    assert caught.value.key == "golden.npz"
