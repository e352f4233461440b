"""`python -m service activate`, against a real server and what is none."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner, Result

from service.__main__ import app
from service.app import create_app
from service.client import free_port
from service.settings import Settings
from tests.service.apps import GOLDEN, SCREENS, SIZE, Device, post, serve
from tests.service.shelves import ON_THIS_CPU, altered, broken, released, shelf

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of two bundles, each released to take the other's place."""
    folder = shelf(tmp_path / "bundles")
    for name, other in (("one", "two"), ("two", "one")):
        released(folder / name, ON_THIS_CPU, active=folder / other)
    return folder


@pytest.fixture
def run(folder: Path) -> Iterator[Run]:
    """`activate` with these arguments, told where the service is."""
    state_dir = folder.parent / "state"
    settings = Settings(bundle=folder / "one", bundles=folder, state_dir=state_dir, runtime="onnxruntime")
    with serve(create_app(settings)) as client:
        yield lambda *arguments: CliRunner().invoke(app, ["activate", *arguments, "--url", str(client.base_url)])


def test_a_bundle_is_put_in_service_and_back(run: Run) -> None:
    there, again, back = run("two"), run("two"), run("--rollback")
    assert [answer.exit_code for answer in (there, again, back)] == [0, 0, 0]
    assert there.stdout.startswith("two (tiny 2) was put in service within ")
    assert there.stdout.endswith(" s; a rollback leads to one (tiny 1)\n")
    assert again.stdout == "two (tiny 2) was in service already\n"
    assert back.stdout.startswith("one (tiny 1) was put in service within ")


def test_the_answer_can_be_had_as_it_is(run: Run) -> None:
    answer = json.loads(run("two", "--json").stdout)
    assert (answer["outcome"], answer["active"]["version"]) == ("activated", "2")


def test_a_refusal_ends_with_1_and_says_why(run: Run, folder: Path) -> None:
    name, reason = broken(folder, altered)
    answer = run(name)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr.startswith(f"bundle_refused: {reason}")
    answer = run(name, "--json")
    assert answer.exit_code == 1
    assert json.loads(answer.stdout)["code"] == "bundle_refused"
    answer = run("--rollback")
    assert (answer.exit_code, answer.stderr) == (
        1,
        "bundle_unknown: no other bundle was in service before this one\n",
    )


def test_a_path_in_the_folder_of_bundles_is_its_name(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(str(folder / "two")).stdout.startswith("two (tiny 2)")
    monkeypatch.chdir(folder.parent)
    assert run("bundles/one/").stdout.startswith("one (tiny 1)")


def test_a_path_elsewhere_is_refused_with_the_folder_to_copy_it_to(run: Run, folder: Path, bundle: Path) -> None:
    answer = run(str(bundle))
    assert answer.exit_code == 1
    assert answer.stderr == f"{bundle} is not in the service's folder of bundles: copy it to {folder} first\n"


def test_a_service_without_a_folder_of_bundles_says_so(bundle: Path, tmp_path: Path) -> None:
    with serve(create_app(Settings(bundle=bundle, state_dir=tmp_path))) as client:
        answer = CliRunner().invoke(app, ["activate", str(bundle), "--url", str(client.base_url)])
    assert answer.exit_code == 1
    assert "set INSPECT_BUNDLES" in answer.stderr


@pytest.mark.parametrize("arguments", [[], ["two", "--rollback"]])
def test_one_thing_is_asked_for(run: Run, arguments: list[str]) -> None:
    answer = run(*arguments)
    assert answer.exit_code == 2
    assert "name a bundle, or --rollback" in answer.stderr


def test_no_service_is_one_line_and_1() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    answer = CliRunner().invoke(app, ["activate", "two", "--url", url])
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"no answer from {url}: ")


class SlowServer(BaseHTTPRequestHandler):
    """Takes a swap and never says so; asked what is in service, it does."""

    tells = True

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.close_connection = True  # without an answer

    def do_GET(self) -> None:
        two = {"bundle": "two", "name": "tiny", "version": "2", "state": "active", "reason": ""}
        one = {"bundle": "one", "name": "tiny", "version": "1", "state": "previous", "reason": ""}
        self.send_response(200 if self.tells else 502)
        self.end_headers()
        if self.tells:
            self.wfile.write(json.dumps({"folder": None, "models": [one, two]}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("tells", "said"),
    [
        (True, "two (tiny 2) is in service now, and the swap may be under way: ask GET /v1/models"),
        (False, "nor does it say what is in service: ask GET /v1/models before you try again"),
    ],
)
@pytest.mark.parametrize("arguments", [["two"], ["--rollback"]])
def test_a_swap_without_an_answer_is_not_said_to_have_failed(
    monkeypatch: pytest.MonkeyPatch, tells: bool, said: str, arguments: list[str]
) -> None:
    monkeypatch.setattr(SlowServer, "tells", tells)
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowServer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        answer = CliRunner().invoke(app, ["activate", *arguments, "--url", url])
        server.shutdown()
        thread.join()
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    assert line.startswith(f"no answer from {url}: ")
    assert line.endswith(f"; {said}")


def test_a_swap_that_takes_longer_than_the_client_waits_is_looked_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.control.ANSWER_WITHIN_S", 2)  # a busy machine may take so long to look it up
    device = Device()
    settings = Settings(bundle=folder / "one", bundles=folder, state_dir=folder.parent / "state", frame_size=SIZE)
    served = create_app(settings, backends=[device.backend()], golden=GOLDEN)
    with serve(served) as client, ThreadPoolExecutor(1) as pool:
        device.screen_gate.hold()
        screen = pool.submit(post, client, "held", SCREENS["pass"])
        device.screen_gate.wait_for()
        # it is in service at once, and answered when the held screen is
        answer = CliRunner().invoke(app, ["activate", "two", "--without-release", "--url", str(client.base_url)])
        device.screen_gate.open()
        assert screen.result().status_code == 200
    assert answer.exit_code == 1
    assert "two (tiny 2) is in service now" in answer.stderr


class OtherServer(BaseHTTPRequestHandler):
    """Answers everything as a page, or as an API of another kind."""

    answers = ((200, b"<html>"), (404, b'{"detail": "Not Found"}'), (502, b""))

    def do_PUT(self) -> None:
        status, body = self.answers[int(self.path[1])]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("number", range(len(OtherServer.answers)))
def test_what_is_no_inspection_service_is_told(number: int) -> None:
    with HTTPServer(("127.0.0.1", 0), OtherServer) as other:
        thread = Thread(target=other.serve_forever)
        thread.start()
        answer = CliRunner().invoke(app, ["activate", "two", "--url", f"http://127.0.0.1:{other.server_port}/{number}"])
        other.shutdown()
        thread.join()
    assert answer.exit_code == 1
    assert "is no inspection service" in answer.stderr
