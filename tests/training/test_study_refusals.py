"""What a study cannot finish is refused before the first of its cells is trained."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.training.data_form import write_screens
from training.__main__ import app
from training.cutting import cut
from training.studies import study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cut folder."""
    base = tmp_path_factory.mktemp("refusals")
    cut(write_screens(base / "source", screens=8), base / "cut", patch_px=64)
    return base / "cut"


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Refusal":
    def train(*_: object, **__: object) -> None:
        raise AssertionError("a cell is trained")

    monkeypatch.setattr(study, "run_cell", train)
    return Refusal(tmp_path / "study")


class Refusal:
    """What a command is refused with."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __call__(self, name: str, data: Path, *options: str) -> str:
        answer = CliRunner().invoke(app, ["table", name, "--data", str(data), "--out", str(self.out), *options])
        assert isinstance(answer.exception, ValueError), answer.output
        return str(answer.exception)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_data_without_a_part(part: str, folder: Path, tmp_path: Path, refusal: Refusal) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "lacking"))
    splits = (data / "splits.csv").read_text()
    (data / "splits.csv").write_text(splits.replace(f",{part}\n", f",{'test' if part == 'train' else 'train'}\n"))
    assert refusal("4", data) == f"no patch of the part {part!r} in {data}"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "'Inception-v3': patches of 64 px are too small for network.method = 'plain' (trunk: inception_v3)"),
        (["--set", "network.feature_width=10", "--row", "KSSNet", "--row", "TDRG"], "'TDRG': network.method = 'tdrg'"),
        (["--set", "network.trunk=vgg16", "--row", "KSSNet"], "'KSSNet': this method takes a trunk in stages"),
        (["--set", "phase2.epochs=0", "--row", "two-stage"], "'two-stage': with phase2.epochs = 0 the stage that"),
    ],
)
def test_a_row_whose_network_does_not_fit(options: list[str], told: str, folder: Path, refusal: Refusal) -> None:
    assert refusal("2", folder, *options).startswith(told)


def test_a_row_of_one_phase_that_cannot_hold_its_rate_as_two_do(folder: Path, refusal: Refusal) -> None:
    held = ["--set", "phase1.schedule=cosine", "--set", "phase1.hold=0.6667"]
    assert refusal("2", folder, *held, "--row", "two-stage", "--row", "KSSNet").startswith("'KSSNet' has one phase")
    alone = ["table", "2", "--data", str(folder), "--out", str(refusal.out), *held, "--row", "two-stage"]
    assert str(CliRunner().invoke(app, alone).exception) == "a cell is trained"


def test_where_nothing_is_trained_nothing_has_to_fit(folder: Path, tmp_path: Path) -> None:
    command = ["table", "2", "--data", str(folder), "--out", str(tmp_path), "--finished"]
    assert str(CliRunner().invoke(app, command).exception) == f"{tmp_path} has no finished cell of table 2"


@pytest.mark.parametrize(
    ("setting", "own"),
    [
        ("data={folders=['/other']}", "data.folders"),
        ("data.folders.x=1", None),
        ("phase1={epochs=1}", "phase1.folders"),
        ("phase1.folders=['/other']", None),
        (" phase2.folders = ['/other']", None),
        ("start_part=trunk", None),
        ("start_share=0.5", None),
    ],
)
def test_what_a_study_sets_cannot_be_set(setting: str, own: str | None, folder: Path, refusal: Refusal) -> None:
    key = setting.partition("=")[0].strip()
    told = f"--set {key}: a study sets {own or 'that'} itself, for each of its cells"
    remedy = f": set what else {key} holds key by key" if own else ""
    assert refusal("4", folder, "--set", setting) == told + remedy


@pytest.mark.parametrize(
    "options",
    [
        *(["--preset", "nonsense"], ["--row", "nothing"], ["--fold", "99"], ["--set", "no.such=1"]),
        *(["--seeds", "1"], ["--patch", "64"], ["--finished"], ["--data", "."]),
    ],
)
def test_an_option_that_a_count_would_ignore(options: list[str], tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["table", "8", "--out", str(tmp_path / "out"), *options])
    assert answer.exit_code == 2
    assert options[0] in answer.output
    assert not (tmp_path / "out").exists()
