import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import (
    GLANCE_FILE,
    NO_GLANCE,
    NO_TURNED_LOOK,
    BundleError,
    FrameLimits,
    Glance,
    LabelLimits,
    Manifest,
    SecondLook,
    TurnedLook,
    fake_manifest,
)
from engine.looks import SECOND_LOOK_MOST, TURNED_LOOK_MOST
from engine.manifest import LOOSEST, MAX_MANIFEST_BYTES, PRECISION_FILES, REQUIRED_FILES, UNSAID, file_sha256, parse

GOLDEN = Path(__file__).parents[1] / "golden" / "manifest.json"

# --- valid manifests ---------------------------------------------------------------------------------

RATIOS = st.floats(0, 1)
WORDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,20}", fullmatch=True)
LINES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=30)
HASHES = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    patch_px = draw(st.integers(1, 4096))
    extra = draw(st.lists(st.sampled_from(sorted(PRECISION_FILES)), unique=True))
    glance = draw(st.just(NO_GLANCE) | st.builds(Glance, doubt_min=st.floats(0, 1, exclude_min=True)))
    glance_files = () if glance == NO_GLANCE else (GLANCE_FILE,)
    labels = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
    ordered = st.lists(RATIOS, min_size=3, max_size=3).map(sorted).filter(lambda three: three[1] > 0)
    limits = ordered.map(lambda three: LabelLimits(threshold=three[1], review=(three[0], three[2])))
    return Manifest(
        name=draw(WORDS),
        version=draw(WORDS),
        limits_version=draw(st.integers(1, 2**31)),
        labels=draw(st.dictionaries(labels, limits, min_size=1, max_size=6)),
        patch_px=patch_px,
        overlap_px=draw(st.integers(0, patch_px - 1)),
        glance=glance,
        second_look=SecondLook(score_min=draw(RATIOS), ratio_max=draw(st.floats(0, SECOND_LOOK_MOST))),
        turned_look=draw(
            st.builds(
                lambda doubt, ratio: TurnedLook(score_min=doubt[0], score_max=doubt[1], ratio_max=ratio),
                st.lists(RATIOS, min_size=2, max_size=2).map(sorted),
                st.floats(0, TURNED_LOOK_MOST),
            )
        ),
        batch_size=draw(st.integers(1, 1024)),
        frame=FrameLimits(saturated_ratio_max=draw(RATIOS), contrast_min=draw(st.floats(0, 255))),
        files={name: draw(HASHES) for name in (*REQUIRED_FILES, *extra, *glance_files)},
        parity_tolerance={p: draw(st.floats(0, LOOSEST)) for p in ("fp32", *(PRECISION_FILES[name] for name in extra))},
        data_id=draw(LINES),
        training=draw(st.dictionaries(WORDS, LINES | st.floats(allow_nan=False, allow_infinity=False), max_size=4)),
    )


@given(manifests())
def test_what_is_written_is_what_is_parsed(manifest: Manifest) -> None:
    parsed = parse(json.dumps(asdict(manifest)).encode())
    assert parsed == manifest
    assert parsed.label_names == tuple(manifest.labels)  # the order of the channels


def test_golden_manifest_parses_and_is_written_back_byte_for_byte(tmp_path: Path) -> None:
    manifest = parse(GOLDEN.read_bytes())
    assert manifest.label_names == ("bubble", "pinhole", "scratch", "tin_ash")
    assert manifest.labels["pinhole"] == LabelLimits(threshold=0.41, review=(0.2, 0.85))
    assert manifest.limits_version == 2
    assert manifest.patch_px == 1024
    assert manifest.glance == Glance(doubt_min=0.02)
    assert manifest.second_look == SecondLook(score_min=0.05, ratio_max=0.5)
    assert manifest.turned_look == TurnedLook(score_min=0.1, score_max=0.9, ratio_max=0.1)
    assert manifest.data_id == "rendered seed 1, 400 screens, Größe 3072x4096"
    manifest.write(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == GOLDEN.read_bytes()


def test_a_manifest_from_before_turned_and_glances_asks_for_none() -> None:
    document = json.loads(GOLDEN.read_bytes())
    del document["turned_look"], document["glance"], document["files"][GLANCE_FILE]
    manifest = parse(json.dumps(document).encode())
    assert (manifest.turned_look, manifest.glance) == (NO_TURNED_LOOK, NO_GLANCE)


def test_whole_numbers_where_a_fraction_may_stand_are_written_as_fractions(tmp_path: Path) -> None:
    replace(fake_manifest(), training={"epochs": 40}).write(tmp_path)
    first = (tmp_path / "manifest.json").read_bytes()
    parse(first).write(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == first


def test_read_returns_what_was_written_and_verifies_the_files(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.name == "tiny"
    assert manifest.files["features.onnx"] == file_sha256(bundle / "features.onnx")


# --- hostile manifests -------------------------------------------------------------------------------

Document = dict[str, Any]
ABSENT = object()

# dotted path, value to put there (ABSENT takes the key away), key that the error must name
EDITS: list[tuple[str, object, str]] = [
    # a key is missing, at each depth
    *[(field, ABSENT, field) for field in Manifest.__slots__ if field not in UNSAID],
    ("labels.bubble.threshold", ABSENT, "labels.bubble.threshold"),
    ("labels.bubble.review", ABSENT, "labels.bubble.review"),
    ("frame.contrast_min", ABSENT, "frame.contrast_min"),
    ("second_look.score_min", ABSENT, "second_look.score_min"),
    ("glance.doubt_min", ABSENT, "glance.doubt_min"),
    ("turned_look.score_max", ABSENT, "turned_look.score_max"),
    *[(f"files/{name}", ABSENT, f"files.{name}") for name in REQUIRED_FILES],
    ("parity_tolerance.fp32", ABSENT, "parity_tolerance.fp32"),
    # a tolerance for a precision that the bundle has
    ("parity_tolerance.fp16", ABSENT, "parity_tolerance.fp16"),
    # a glance without its graph, and the graph without one
    (f"files/{GLANCE_FILE}", ABSENT, "glance"),
    ("glance", ABSENT, "glance"),
    ("glance.doubt_min", 0.0, "glance"),
    # a key that is not known, at each depth
    ("thresholds", {}, "thresholds"),
    ("labels.bubble.treshold", 0.5, "labels.bubble.treshold"),
    ("frame.blur", 1.0, "frame.blur"),
    ("second_look.warm", 0.5, "second_look.warm"),
    ("glance.trunk", "glance", "glance.trunk"),
    ("turned_look.positions", 8, "turned_look.positions"),
    ("parity_tolerance.int4", 0.1, "parity_tolerance.int4"),
    ("\ud800\n", 0, "\\ud800\n"),
    # another type
    *[(field, None, field) for field in Manifest.__slots__],
    *[(field, [], field) for field in Manifest.__slots__],
    ("name", 5, "name"),
    ("patch_px", True, "patch_px"),
    ("patch_px", 1024.0, "patch_px"),
    ("patch_px", "1024", "patch_px"),
    ("batch_size", 5.5, "batch_size"),
    ("labels.bubble", 0.5, "labels.bubble"),
    ("labels.bubble.threshold", True, "labels.bubble.threshold"),
    ("labels.bubble.threshold", "0.5", "labels.bubble.threshold"),
    ("labels.bubble.review", 0.5, "labels.bubble.review"),
    ("labels.bubble.review", [0.5], "labels.bubble.review"),
    ("labels.bubble.review", [0.1, 0.2, 0.3], "labels.bubble.review"),
    ("labels.bubble.review", [0.1, "0.2"], "labels.bubble.review"),
    ("files/golden.npz", 7, "files.golden.npz"),
    ("training.macro_f", [0.9], "training.macro_f"),
    ("training.macro_f", True, "training.macro_f"),
    # another version of this form
    ("schema_version", 3, "schema_version"),  # the form before the golden patches had maps
    ("schema_version", True, "schema_version"),
    # out of range
    ("limits_version", 0, "limits_version"),
    ("limits_version", "2", "limits_version"),
    ("patch_px", 0, "patch_px"),
    ("patch_px", 10**6, "patch_px"),
    ("overlap_px", -1, "overlap_px"),
    ("overlap_px", 1024, "overlap_px"),
    ("second_look.score_min", 1.01, "second_look.score_min"),
    ("second_look.ratio_max", 0.51, "second_look.ratio_max"),  # a screen would cost more than one and a half
    ("second_look.ratio_max", -0.01, "second_look.ratio_max"),
    ("turned_look.score_max", 0.05, "turned_look.score_max"),  # below its least
    ("turned_look.ratio_max", 0.26, "turned_look.ratio_max"),
    ("glance.doubt_min", 1.5, "glance.doubt_min"),
    ("batch_size", 0, "batch_size"),
    ("batch_size", -(10**30), "batch_size"),
    ("labels.bubble.threshold", 1.01, "labels.bubble.threshold"),
    ("labels.bubble.threshold", -0.01, "labels.bubble.threshold"),
    ("labels.bubble.review", [0.8, 0.7], "labels.bubble.review"),
    ("labels.bubble", {"threshold": 0, "review": [0, 0]}, "labels.bubble.threshold"),
    ("labels.bubble.review", [-0.1, 0.7], "labels.bubble.review"),
    ("labels.bubble.review", [0.1, 1.1], "labels.bubble.review"),
    ("frame.saturated_ratio_max", 1.5, "frame.saturated_ratio_max"),
    ("frame.contrast_min", 256, "frame.contrast_min"),
    ("labels.pinhole.threshold", 0.19, "labels.pinhole.threshold"),  # under its review band
    ("labels.pinhole.threshold", 0.86, "labels.pinhole.threshold"),  # over it
    ("parity_tolerance.fp32", -1e-9, "parity_tolerance.fp32"),
    ("parity_tolerance.fp32", 0.501, "parity_tolerance.fp32"),
    # not finite: NaN, Infinity, and a whole number too large for a float
    *[
        (path, value, path)
        for path in (
            "labels.bubble.threshold",
            "frame.contrast_min",
            "parity_tolerance.fp32",
            "training.macro_f",
        )
        for value in (math.nan, math.inf, -math.inf, 10**400)
    ],
    ("labels.bubble.review", [0.1, math.nan], "labels.bubble.review"),
    # labels
    ("labels", {}, "labels"),
    ("labels.Bubble", {"threshold": 0.5, "review": [0, 1]}, "labels.Bubble"),
    ("labels.tin ash", {"threshold": 0.5, "review": [0, 1]}, "labels.tin ash"),
    ("labels.1st", {"threshold": 0.5, "review": [0, 1]}, "labels.1st"),
    ("labels.bubble\n", {"threshold": 0.5, "review": [0, 1]}, "labels.bubble\n"),
    (f"labels.{'b' * 33}", {"threshold": 0.5, "review": [0, 1]}, f"labels.{'b' * 33}"),
    # file names that lead elsewhere, and files that no bundle has
    *[
        (f"files/{name}", "0" * 64, f"files.{name}")
        for name in (
            "../features.onnx",
            "/etc/passwd",
            "a/b.onnx",
            "..\\features.onnx",
            "..",
            "",
            "features.onnx.data",
            "manifest.json",
        )
    ],
    # hashes that are none
    ("files/features.onnx", "0" * 63, "files.features.onnx"),
    ("files/features.onnx", "A" * 64, "files.features.onnx"),
    ("files/features.onnx", "0" * 64 + "\n", "files.features.onnx"),
    # texts
    ("name", "", "name"),
    ("name", "../other", "name"),
    ("version", "1 2", "version"),
    ("data_id", "", "data_id"),
    ("data_id", "two\nlines", "data_id"),
    ("data_id", "\ud800", "data_id"),
    ("data_id", "\x1b[31m", "data_id"),
    ("training.command", "a\x00b", "training.command"),
]


def _edited(path: str, value: object) -> bytes:
    """The golden manifest with one key changed; a file's name, which has dots, comes after a slash."""
    document: Document = json.loads(GOLDEN.read_bytes())
    *parents, name = path.split("/", 1) if path.startswith("files/") else path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    if value is ABSENT:
        del place[name]
    else:
        place[name] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(("path", "value", "key"), EDITS, ids=range(len(EDITS)))
def test_a_manifest_that_breaks_the_form_is_refused_by_key(path: str, value: object, key: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(_edited(path, value))
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")
    str(caught.value).encode()  # can be printed


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (b"", "manifest.json"),
        (b"{", "manifest.json"),
        (b"[]", "manifest.json"),
        (b"null", "manifest.json"),
        (b"{} {}", "manifest.json"),
        (b'{"name": "x",}', "manifest.json"),
        (b"\xff\xfe{\x00}\x00", "manifest.json"),  # UTF-16, which json.loads would guess from bytes
        (b"\xef\xbb\xbf{}", "manifest.json"),
        (b'{"name": "\xe4"}', "manifest.json"),
        (b"[" * 200_000, "manifest.json"),
        (b'{"patch_px": ' + b"9" * 10_000 + b"}", "manifest.json"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "manifest.json"),
        (b'{"name": "a", "name": "b"}', "name"),
        (b'{"labels": {"bubble": 1, "bubble": 2}}', "bubble"),
        (b"{}", "schema_version"),
    ],
)
def test_what_is_no_manifest_at_all_is_refused(raw: bytes, key: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(raw)
    assert caught.value.key == key


@given(st.data())
def test_a_cut_off_manifest_is_refused(data: st.DataObject) -> None:
    raw = GOLDEN.read_bytes().rstrip()
    with pytest.raises(BundleError):
        parse(raw[: data.draw(st.integers(0, len(raw) - 1))])


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw: bytes) -> None:
    with pytest.raises(BundleError):
        parse(raw)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from([path for path, _, _ in EDITS]), JSON_VALUES)
def test_any_value_anywhere_is_taken_or_refused_but_never_breaks(path: str, value: object) -> None:
    raw = _edited(path, value)
    try:
        manifest = parse(raw)
    except BundleError as error:
        assert error.key  # noqa: PT017 - both outcomes are right, by the value drawn
    else:
        assert parse(json.dumps(asdict(manifest)).encode()) == manifest


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda m: replace(m, batch_size=0), "batch_size"),
        (lambda m: replace(m, training={"macro_f": math.nan}), "training.macro_f"),
        (lambda m: replace(m, data_id="\ud800"), "data_id"),
        (lambda m: replace(m, files={}), "files.features.onnx"),
    ],
)
def test_what_could_not_be_read_is_not_written(
    tmp_path: Path, change: Callable[[Manifest], Manifest], key: str
) -> None:
    with pytest.raises(BundleError) as caught:
        change(fake_manifest()).write(tmp_path)
    assert caught.value.key == key
    assert list(tmp_path.iterdir()) == []
