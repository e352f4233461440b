"""A whole service on GPUs, by the doubles of TensorRT and CUDA: plans, memory and contexts through swaps and losses.

Nothing here says anything of TensorRT or CUDA themselves.
"""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import engine.__main__ as command
from service.app import create_app
from service.settings import Settings
from tests.bundles import tiny_bundle
from tests.engine.doubles import in_their_places
from tests.engine.doubles.cuda import Machine
from tests.service.apps import SCREENS, SIZE, count, is_problem, post, serve
from tests.service.devices import until
from tests.service.losing import LOSING, ends_by_itself
from tests.service.shelves import shelf
from tests.service.test_models import activate, roll_back, version


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with in_their_places(tmp_path / "cache") as machine:
        yield machine


@pytest.fixture
def folder(machine: Machine, tmp_path: Path) -> Path:
    """Bundles, none of which has a plan."""
    return shelf(tmp_path / "bundles")


@contextmanager
def serving(
    folder: Path, machine: Machine, *, runtime: str = "tensorrt", on_gone: Callable[[], None] = lambda: None
) -> Iterator[httpx.Client]:
    """A ready service that begins with `one`, or with what was in service last; whatever it took is given back."""
    settings = Settings(
        bundle=folder / "one",
        bundles=folder,
        state_dir=folder.parent / f"state-{runtime}",
        frame_size=SIZE,
        runtime=runtime,
    )
    with serve(create_app(settings, on_gone=on_gone)) as client:
        until(lambda: client.get("/readyz").is_success)
        yield client
    assert machine.used_bytes == 0
    assert all(context.destroyed for context in machine.contexts)


def build(bundle: Path, *options: str) -> None:
    answer = CliRunner().invoke(command.app, ["build", str(bundle), *options])
    assert answer.exit_code == 0, answer.output


def judged(client: httpx.Client, prefix: str = "") -> dict[str, Any]:
    """Verdict and labels of a screen of each kind."""
    answers = {kind: post(client, f"{prefix}{kind}", pixels).json() for kind, pixels in SCREENS.items()}
    return {kind: (answer["verdict"], answer["labels"], answer["defects"]) for kind, answer in answers.items()}


def refusal(answer: httpx.Response) -> str:
    assert is_problem(answer, 422, "bundle_refused")
    detail: str = answer.json()["detail"]
    return detail


def test_a_start_builds_the_plan_it_lacks_once_and_judges_as_a_cpu_does(machine: Machine, folder: Path) -> None:
    with serving(folder, machine) as client:
        assert count(client, "inspect_model_info", name="tiny", version="1", runtime="tensorrt") == 1
        found = judged(client)
    assert [found[kind][0] for kind in found] == list(found)  # each screen is of the kind that it is called
    with serving(folder, machine):
        assert len(machine.built) == 1
    with serving(folder, machine, runtime="onnxruntime") as client:
        assert judged(client) == found


def test_a_bundle_whose_plan_is_there_takes_over_and_the_old_one_leaves_the_gpu(machine: Machine, folder: Path) -> None:
    build(folder / "two")
    with serving(folder, machine) as client:
        built, used_bytes = len(machine.built), machine.used_bytes
        before = judged(client)
        assert activate(client, "two").json()["outcome"] == "activated"
        assert version(client, "after") == "2"
        assert judged(client, "after-") != before
        assert machine.used_bytes == used_bytes
        assert [context.destroyed for context in machine.contexts[-2:]] == [True, False]
        assert len(machine.built) == built


def test_a_bundle_without_its_plan_is_refused_with_the_command_that_builds_it(machine: Machine, folder: Path) -> None:
    with serving(folder, machine) as client:
        used_bytes = machine.used_bytes
        (told,) = re.findall("build it first: `python -m engine build BUNDLE (.*)`", refusal(activate(client, "two")))
        assert (version(client, "after"), machine.used_bytes, len(machine.built)) == ("1", used_bytes, 1)
        build(folder / "two", *told.split())
        assert activate(client, "two").status_code == 200


def test_on_two_gpus_each_needs_its_plan_and_the_other_keeps_nothing_of_a_refusal(
    machine: Machine, folder: Path
) -> None:
    machine.gpus = 2
    build(folder / "two", "--device", "0")
    with serving(folder, machine) as client:
        used_bytes = machine.used_bytes
        assert "--device 1" in refusal(activate(client, "two"))
        assert machine.used_bytes == used_bytes
        build(folder / "two", "--device", "1")
        assert activate(client, "two").status_code == 200
        assert {context.device for context in machine.contexts if not context.destroyed} == {0, 1}
        assert version(client, "after") == "2"


def test_a_bundle_that_does_not_fit_beside_the_one_in_service_is_refused_and_takes_no_smaller_batch(
    machine: Machine, folder: Path
) -> None:
    build(folder / "two")
    with serving(folder, machine) as client:
        used_bytes = machine.used_bytes
        machine.memory_bytes = used_bytes * 3 // 2
        assert "does not hold a batch of 5 beside what runs there" in refusal(activate(client, "two"))
        assert (version(client, "after"), machine.used_bytes) == ("1", used_bytes)
        machine.memory_bytes = used_bytes * 2
        assert activate(client, "two").status_code == 200


def test_a_rollback_needs_the_plan_and_a_restart_keeps_what_was_decided(machine: Machine, folder: Path) -> None:
    build(folder / "two")
    with serving(folder, machine) as client:
        activate(client, "two")
    built = len(machine.built)
    with serving(folder, machine) as client:
        assert version(client, "restarted") == "2"
        plans = folder.parent / "cache"
        kept = shutil.move(plans, folder.parent / "kept")
        assert "build it first" in refusal(roll_back(client))
        assert version(client, "refused") == "2"
        shutil.move(kept, plans)
        assert roll_back(client).json()["active"]["version"] == "1"
        assert version(client, "back") == "1"
    with serving(folder, machine) as client:
        assert version(client, "again") == "1"
    assert len(machine.built) == built


def test_a_new_bundle_that_loses_its_context_is_refused_and_the_one_in_service_goes_on(
    machine: Machine, folder: Path
) -> None:
    build(folder / "two")
    with serving(folder, machine) as client:
        machine.fail["launch"] = ["lose"]
        assert "GPU 0 fails at the first batch" in refusal(activate(client, "two"))
        assert version(client, "after") == "1"


def test_a_gpu_that_is_lost_comes_back_with_the_bundle_in_service(machine: Machine, folder: Path) -> None:
    build(folder / "two")
    with serving(folder, machine) as client:
        activate(client, "two")
        expected, built = judged(client), len(machine.built)
        machine.fail["launch"] = ["lose"]
        assert is_problem(post(client, "lost", SCREENS["pass"]), 500, "inference_failed")
        until(lambda: client.get("/readyz").is_success)
        assert judged(client, "after-") == expected
        assert version(client, "after") == "2"
        assert len(machine.built) == built


def test_a_gpu_that_is_lost_for_good_makes_the_service_not_ready_and_says_so(machine: Machine, folder: Path) -> None:
    gone = threading.Event()
    with serving(folder, machine, on_gone=gone.set) as client:
        machine.unrecoverable = True
        machine.fail["launch"] = ["lose"]
        assert is_problem(post(client, "lost", SCREENS["pass"]), 500, "inference_failed")
        assert is_problem(post(client, "next", SCREENS["pass"]), 503, "not_ready")
        assert gone.wait(20)
        answer = client.get("/readyz")
        assert is_problem(answer, 503, "not_ready")
        assert "GPU 0 is lost, and a new context fails as well" in answer.json()["detail"]
        machine.unrecoverable = False


# on the doubles, with a context that the frame spoils
LOSING_SERVICE = f"""
from pathlib import Path
from service.__main__ import run
from tests.engine.doubles import in_their_places

with in_their_places(Path("{{cache}}")) as machine:
    import engine.tensorrt

    def losing(backend, pixels, *, submit=engine.tensorrt.TensorRTBackend._submit):
        if (pixels == {LOSING}).all():
            machine.fail["launch"], machine.unrecoverable = ["lose"], True
        return submit(backend, pixels)

    engine.tensorrt.TensorRTBackend._submit = losing
    run()
"""


def test_a_process_whose_gpu_is_lost_for_good_ends_with_its_status(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    program = LOSING_SERVICE.replace("{cache}", str(tmp_path / "cache"))
    lines = ends_by_itself(program, bundle, tmp_path, INSPECT_RUNTIME="tensorrt")
    assert any(line["event"] == "loaded" and line["runtime"] == "tensorrt" for line in lines)
