"""The command line, as processes of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest
from rich.console import Console

from service import demo
from service.client import free_port
from service.demo import DemoError
from tests.deploy.processes import STOP_WITHIN_S, server
from tests.service.apps import SCREENS, encoded, post

ROOT = Path(__file__).parents[2]
SERVICE = [sys.executable, "-m", "service"]


@pytest.fixture(scope="module", autouse=True)
def _nobody_elses_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("INSPECT_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a frame of each verdict, two of one name, one that is cut off, and one without a header."""
    folder = tmp_path_factory.mktemp("files")
    for kind, pixels in SCREENS.items():
        (folder / f"{kind}.png").write_bytes(encoded(pixels))
    (folder / "other").mkdir()
    (folder / "other" / "fail.bmp").write_bytes(encoded(SCREENS["fail"], ".bmp"))
    (folder / "[red]pass.png").write_bytes(encoded(SCREENS["pass"]))
    (folder / "broken.png").write_bytes(encoded(SCREENS["pass"])[:-30])
    (folder / "bare.raw").write_bytes(SCREENS["review"].tobytes())
    return folder


def run(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """`python -m service ARGUMENTS` in the folder, to its end."""
    return subprocess.run(
        [*SERVICE, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )


def one_line(answer: "subprocess.CompletedProcess[str]") -> str:
    """What a user can mend: one line on standard error, and exit code 2."""
    assert answer.returncode == 2, answer.stderr
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    return line


def test_a_server_serves_and_stops_cleanly_when_it_is_told_to(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    environment = {
        "INSPECT_PORT": str(port),
        "INSPECT_BUNDLE": str(bundle),
        "INSPECT_STATE_DIR": str(tmp_path / "state"),
        "INSPECT_FRAME_SIZE": "192x128",
    }
    address, log = f"http://127.0.0.1:{port}", tmp_path / "log"
    with (
        server(SERVICE, ready_url=f"{address}/readyz", log=log, environment=environment) as process,
        httpx.Client(base_url=address, trust_env=False) as client,
    ):
        answer = post(client, "one", SCREENS["fail"]).json()
        assert (answer["verdict"], answer["proof"]["frame_size_from"]) == ("fail", "setting")
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_WITHIN_S) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("Uvicorn running on" in line["event"] and str(port) in line["event"] for line in lines)
    (warning,) = (line for line in lines if line["level"] != "info")
    assert warning["event"] == "not released as it runs here"
    assert warning["runs_as"].partition(" by ")[0].endswith(" fp32 in batches of 5")
    (inspected,) = (line for line in lines if line["event"] == "inspected")
    assert (inspected["screen_id"], inspected["verdict"]) == ("one", "fail")


def test_a_server_with_a_misspelt_setting_does_not_start(tmp_path: Path) -> None:
    line = one_line(run(tmp_path, INSPECT_FRAMESIZE="5120x10240"))
    assert line == "unknown setting INSPECT_FRAMESIZE; did you mean INSPECT_FRAME_SIZE?"


def test_a_server_with_an_altered_bundle_does_not_start(bundle: Path, tmp_path: Path) -> None:
    altered = shutil.copytree(bundle, tmp_path / "[bold]altered")
    with (altered / "features.onnx").open("ab") as file:
        file.write(b"\0")
    line = one_line(run(tmp_path, INSPECT_BUNDLE=str(altered), INSPECT_STATE_DIR=str(tmp_path / "state")))
    assert line.startswith(f"{altered}: files.features.onnx: ")


def test_a_server_without_a_place_for_its_record_does_not_start(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = one_line(run(tmp_path, INSPECT_BUNDLE=str(bundle), INSPECT_STATE_DIR=str(tmp_path / "file")))
    assert line.startswith(f"INSPECT_STATE_DIR: {tmp_path / 'file'} cannot be used")


def test_files_become_a_list_in_their_order_with_a_picture_each(bundle: Path, files: Path) -> None:
    names = ["review.png", "broken.png", "fail.png", "other/fail.bmp"]
    answer = run(files, "inspect", *names, "--bundle", str(bundle), "--json", "--overlay", "pictures/new")
    assert answer.returncode == 1
    assert answer.stderr == ""
    entries: list[dict[str, Any]] = json.loads(answer.stdout)
    assert [entry["screen_id"] for entry in entries] == ["review", "broken", "fail", "fail"]
    assert [entry.get("verdict") for entry in entries] == ["review", None, "fail", "fail"]
    # the unreadable one is its problem document, and whose it is
    assert list(entries[1]) == ["screen_id", "type", "title", "status", "detail", "instance", "code"]
    assert (entries[1]["code"], entries[1]["status"], entries[1]["instance"]) == ("incomplete_image", 422, "broken.png")
    golden = json.loads((ROOT / "tests" / "golden" / "verdict_fail.json").read_text())
    assert list(entries[2]) == list(golden)
    assert {path.name for path in (files / "pictures" / "new").iterdir()} == {"review.png", "fail.png", "fail-2.png"}


def test_a_table_says_of_each_file_what_and_why(bundle: Path, files: Path) -> None:
    names = ["[red]pass.png", "fail.png", "review.png", "bare.raw"]
    answer = run(files, "inspect", *names, INSPECT_BUNDLE=str(bundle), COLUMNS="180")
    assert (answer.returncode, answer.stderr) == (1, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in answer.stdout.splitlines() if "│" in line]
    review, bare = rows[2:]
    assert rows[:2] == [
        ["[red]pass.png", "pass", "none (bubble 0.00)", "0", "6"],
        ["fail.png", "fail", "bubble 1", "1", "6"],
    ]
    assert review[:2] == ["review.png", "review score_in_review_band"]
    assert review[2].startswith("none (pinhole 0.4")
    assert bare[:2] == ["bare.raw", "unsupported_media"]
    assert "--size" in bare[2]


def test_raw_pixels_need_their_size_and_one_file_one_picture(bundle: Path, files: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    options = ["--size", "192x128", "--json", "--overlay", str(picture)]
    answer = run(files, "inspect", "bare.raw", *options, INSPECT_BUNDLE=str(bundle))
    assert answer.returncode == 0, answer.stderr
    (entry,) = json.loads(answer.stdout)
    assert (entry["screen_id"], entry["verdict"], entry["proof"]["frame_size_from"]) == ("bare", "review", "query")
    assert cv2.imread(str(picture)) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "fail.png", "--bundle", "absent"], "absent: manifest.json: "),
        # a file where the folder of several pictures should be
        (["inspect", "fail.png", "pass.png", "--overlay", "review.png"], "review.png"),
        (["demo", "--size", "640*480"], "--size: expected WIDTHxHEIGHT"),
    ],
)
def test_a_command_that_cannot_be_carried_out_is_one_line(
    bundle: Path, files: Path, arguments: list[str], message: str
) -> None:
    assert message in one_line(run(files, *arguments, INSPECT_BUNDLE=str(bundle)))


def test_a_demonstration_renders_serves_posts_and_shows_then_reuses_its_screens(bundle: Path, tmp_path: Path) -> None:
    arguments = ["demo", "--out", "out", "--screens", "2", "--size", "512x640"]
    # a proxy of the environment is not for this machine's own address
    environment = {"INSPECT_BUNDLE": str(bundle), "COLUMNS": "160", "HTTP_PROXY": "http://127.0.0.1:9"}
    first = run(tmp_path, *arguments, **environment)
    assert first.returncode == 0, first.stdout + first.stderr
    out = tmp_path / "out"
    screens = {path.name: path.stat().st_mtime_ns for path in (out / "screens").iterdir()}
    assert len(screens) == 2
    assert {path.name for path in (out / "overlays").iterdir()} == screens.keys()
    verdicts = json.loads((out / "verdicts.json").read_text())
    assert {f"{verdict['screen_id']}.png" for verdict in verdicts} == screens.keys()
    for verdict in verdicts:
        assert verdict["verdict"] in first.stdout
        assert (verdict["proof"]["frame_size_from"], verdict["proof"]["windows_inferred"]) == ("setting", 80)

    second = run(tmp_path, *arguments, **environment)
    assert second.returncode == 0, second.stdout + second.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (out / "screens").iterdir()} == screens
    again = json.loads((out / "verdicts.json").read_text())
    assert [verdict["labels"] for verdict in again] == [verdict["labels"] for verdict in verdicts]

    # other screens would not fit what lies there
    with pytest.raises(DemoError, match="out holds other screens"):
        demo.run(out, screens=2, seed=7, size=(512, 640), console=Console(quiet=True))
