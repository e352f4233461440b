import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import BundleError, InferenceError
from service.files import FileResult, inspect_files, inspector, picture_paths, screen_id_of
from service.inspector import Inspection, Inspector
from service.problems import Problem
from service.routes import LONGEST_SCREEN_ID, SCREEN_ID
from service.settings import Settings
from service.verdict import from_json
from tests.service.apps import SCREENS, SIZE, Device, Frame, encoded, inspecting

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=80)


@pytest.fixture(scope="module")
def settings(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(bundle=bundle, state_dir=tmp_path_factory.mktemp("files") / "state")


@pytest.fixture(scope="module")
def ready(settings: Settings) -> Iterator[Inspector]:
    with inspector(settings) as ready:
        yield ready


def write(path: Path, pixels: Frame) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encoded(pixels, path.suffix.lower()))
    return path


def outcomes(results: Iterator[FileResult]) -> list[str]:
    """Of each file the verdict, or the problem's code."""
    return [
        result.outcome.code if isinstance(result.outcome, Problem) else from_json(result.outcome.answer).verdict
        for result in results
    ]


def test_results_are_in_the_order_of_the_files(ready: Inspector, tmp_path: Path) -> None:
    kinds = ["fail", "pass", "review", "pass", "pass", "fail", "review"]  # more than are in flight
    paths = [write(tmp_path / f"{number}.png", SCREENS[kind]) for number, kind in enumerate(kinds)]
    results = list(inspect_files(ready, paths, raw_size=None))
    assert [result.path for result in results] == paths
    assert [result.screen_id for result in results] == [path.stem for path in paths]
    assert outcomes(iter(results)) == kinds


def test_a_file_that_cannot_be_inspected_is_a_problem_between_verdicts(ready: Inspector, tmp_path: Path) -> None:
    whole = encoded(SCREENS["pass"])
    (tmp_path / "cut.png").write_bytes(whole[:-40])
    (tmp_path / "other.bmp").write_bytes(whole)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "screen.raw").write_bytes(SCREENS["pass"].tobytes())
    good = write(tmp_path / "good.png", SCREENS["fail"])
    names = ["cut.png", "other.bmp", "text.png", "folder.png", "absent.png", "screen.raw"]
    paths = [path for name in names for path in (tmp_path / name, good)]
    results = list(inspect_files(ready, paths, raw_size=None))
    assert outcomes(iter(results)) == [
        *("incomplete_image", "fail", "unsupported_media", "fail", "unreadable_image", "fail"),
        *("unreadable_image", "fail", "unreadable_image", "fail", "unsupported_media", "fail"),
    ]
    problems = [result.outcome for result in results if isinstance(result.outcome, Problem)]
    assert [problem.instance for problem in problems] == [str(tmp_path / name) for name in names]
    assert problems[4].detail == "cannot be read: No such file or directory"
    assert "--size" in problems[5].detail


def test_what_no_suffix_names_is_raw_pixels_of_the_given_size(ready: Inspector, tmp_path: Path) -> None:
    raw, short, bare = tmp_path / "a.raw", tmp_path / "short.raw", tmp_path / "bare"
    raw.write_bytes(SCREENS["fail"].tobytes())
    short.write_bytes(SCREENS["fail"].tobytes()[:-1])
    bare.write_bytes(SCREENS["pass"].tobytes())
    paths = [raw, short, bare, write(tmp_path / "file.png", SCREENS["review"])]
    results = list(inspect_files(ready, paths, raw_size=SIZE))
    assert outcomes(iter(results)) == ["fail", "frame_size_mismatch", "pass", "review"]
    assert isinstance(results[0].outcome, Inspection)
    assert from_json(results[0].outcome.answer).proof.frame_size_from == "query"


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".bmp", ".tif", ".tiff", ".pgm"])
def test_the_suffix_says_what_a_file_is(ready: Inspector, tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"screen{suffix}", SCREENS["fail"])
    assert outcomes(inspect_files(ready, [path], raw_size=None)) == ["fail"]


def test_a_file_is_read_only_when_its_turn_is_near(ready: Inspector, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.png", SCREENS["pass"]) for number in range(3)]
    last = tmp_path / "last.png"
    results = inspect_files(ready, [*paths, last], raw_size=None)
    first = next(results)
    write(last, SCREENS["fail"])
    assert outcomes(iter([first, *results])) == ["pass", "pass", "pass", "fail"]


def test_a_device_that_fails_is_a_problem_of_its_file(tmp_path: Path) -> None:
    device = Device()
    path = write(tmp_path / "one.png", SCREENS["pass"])
    with inspecting(device) as inspector:
        device.failure = InferenceError("no device")
        assert outcomes(inspect_files(inspector, [path], raw_size=None)) == ["inference_failed"]
        device.failure = None
        assert outcomes(inspect_files(inspector, [path], raw_size=None)) == ["pass"]


def test_two_files_of_one_name_are_two_screens(ready: Inspector, tmp_path: Path) -> None:
    paths = [write(tmp_path / kind / "one.png", SCREENS[kind]) for kind in ("pass", "fail")]
    results = list(inspect_files(ready, paths, raw_size=None))
    assert [result.screen_id for result in results] == ["one", "one"]
    assert outcomes(iter(results)) == ["pass", "fail"]


def test_no_files_are_no_results(ready: Inspector) -> None:
    assert list(inspect_files(ready, [], raw_size=None)) == []


def test_inspecting_leaves_no_record_and_closes_its_backend(settings: Settings, tmp_path: Path) -> None:
    path = write(tmp_path / "one.png", SCREENS["pass"])
    with inspector(settings) as ready:
        assert outcomes(inspect_files(ready, [path], raw_size=None)) == ["pass"]
    assert outcomes(inspect_files(ready, [path], raw_size=None)) == ["not_ready"]
    assert not settings.state_dir.exists()


def test_the_lines_agreed_size_counts_here_too(settings: Settings, tmp_path: Path) -> None:
    path = write(tmp_path / "one.png", SCREENS["pass"])
    with inspector(settings.model_copy(update={"frame_size": (256, 192)})) as ready:
        assert outcomes(inspect_files(ready, [path], raw_size=None)) == ["frame_size_mismatch"]


def test_a_bundle_that_must_not_be_used_is_an_error_before_any_file(tmp_path: Path) -> None:
    settings = Settings(bundle=tmp_path / "absent", state_dir=tmp_path / "state")
    with pytest.raises(BundleError), inspector(settings):
        pass


@given(NAMES)
def test_a_files_name_becomes_an_id_that_the_service_would_take(name: str) -> None:
    assert re.fullmatch(SCREEN_ID, screen_id_of(Path("folder") / name))
    assert len(screen_id_of(Path("folder") / name)) <= LONGEST_SCREEN_ID


@pytest.mark.parametrize(
    ("name", "screen_id"),
    [
        ("SN-0001.png", "SN-0001"),
        ("folder/a.b_c.tiff", "a.b_c"),
        ("no_suffix", "no_suffix"),
        ("with space [1].png", "with_space__1_"),
        ("größe.png", "gr__e"),
        ("x" * 70 + ".png", "x" * 64),
    ],
)
def test_known_names(name: str, screen_id: str) -> None:
    assert screen_id_of(Path(name)) == screen_id


@pytest.mark.parametrize(
    ("files", "pictures"),
    [
        # one file: the path as it was given
        (["a/one.png"], ["out"]),
        (["a/one.png", "a/two.bmp"], ["out/one.png", "out/two.png"]),
        # one name in two folders, or with two suffixes
        (["a/one.png", "b/one.png", "one.bmp"], ["out/one.png", "out/one-2.png", "out/one-3.png"]),
        # a number that is taken
        (["one-2.png", "one.png", "b/one.png"], ["out/one-2.png", "out/one.png", "out/one-3.png"]),
        # the very same file, asked for twice
        (["one.png", "one.png"], ["out/one.png", "out/one-2.png"]),
    ],
)
def test_each_file_has_a_picture_of_its_own(files: list[str], pictures: list[str]) -> None:
    assert picture_paths(Path("out"), [Path(file) for file in files]) == [Path(picture) for picture in pictures]


def test_a_folder_that_exists_takes_the_picture_of_one_file_too(tmp_path: Path) -> None:
    assert picture_paths(tmp_path, [Path("one.png")]) == [tmp_path / "one.png"]


@given(st.lists(st.sampled_from(["a", "b", "a-2", "a-3", "a-2-2"]), min_size=2, max_size=12))
def test_pictures_never_share_a_file(stems: list[str]) -> None:
    pictures = picture_paths(Path("out"), [Path(f"{stem}.png") for stem in stems])
    assert len(set(pictures)) == len(stems)
    assert {picture.parent for picture in pictures} == {Path("out")}
