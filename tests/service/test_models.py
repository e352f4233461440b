"""One bundle takes another's place: through the whole app, on real bundles, and on a device in the test's hand."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine import InferenceError
from service.app import create_app
from service.settings import Settings
from tests.bundles import LABELS, tiny_bundle
from tests.service.apps import GOLDEN, SCREENS, SIZE, Device, count, is_problem, logged, post, serve
from tests.service.devices import until
from tests.service.shelves import BREAKERS, ON_THIS_CPU, altered, broken, released, shelf
from tests.service.test_routes_reading import change_record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shelf(tmp_path / "bundles")


def settings_of(folder: Path) -> Settings:
    """Of a service that begins with `one`."""
    state_dir = folder.parent / "state"
    return Settings(bundle=folder / "one", bundles=folder, state_dir=state_dir, frame_size=SIZE, runtime="onnxruntime")


@pytest.fixture
def client(folder: Path) -> Iterator[httpx.Client]:
    with serve(create_app(settings_of(folder))) as client:
        until(lambda: client.get("/readyz").is_success)  # the first bundle is tested while the service answers already
        yield client


def activate(client: httpx.Client, bundle: str, *, without_release: bool = True) -> httpx.Response:
    """Where nothing is said of a release, none is asked for."""
    return client.put("/v1/models/active", json={"bundle": bundle, "without_release": without_release})


def roll_back(client: httpx.Client) -> httpx.Response:
    return client.put("/v1/models/active", json={"rollback": True})


def states(client: httpx.Client) -> dict[str, str]:
    return {model["bundle"]: model["state"] for model in client.get("/v1/models").json()["models"]}


def version(client: httpx.Client, screen_id: str) -> str:
    """The version that judges a screen now."""
    said: str = post(client, screen_id, SCREENS["pass"]).json()["model"]["version"]
    return said


def everything(client: httpx.Client) -> tuple[Any, ...]:
    """All that names the bundle in service; the self-test's age goes on, and so does the count of refusals."""
    ready = client.get("/readyz")
    models = [line for line in client.get("/metrics").text.splitlines() if line.startswith("inspect_model_info{")]
    return ready.status_code, ready.json()["model"], client.get("/v1/models").json(), models


def test_another_bundle_takes_over_and_everything_names_it(client: httpx.Client, folder: Path) -> None:
    assert version(client, "before") == "1"
    with logged() as lines:
        answer = activate(client, "two")
    assert answer.status_code == 200
    swap = answer.json()
    assert swap.pop("duration_s") > 0
    assert swap == {
        "outcome": "activated",
        "active": {"bundle": "two", "name": "tiny", "version": "2"},
        "previous": {"bundle": "one", "name": "tiny", "version": "1"},
    }
    assert version(client, "after") == "2"
    assert client.get("/readyz").json()["model"] == {"bundle": "two", "name": "tiny", "version": "2"}
    unreleased = {"released": False, "reason": ""}
    assert client.get("/v1/models").json() == {
        "folder": str(folder),
        "models": [
            {"bundle": "one", "name": "tiny", "version": "1", "limits": 1, "state": "previous", **unreleased},
            {"bundle": "two", "name": "tiny", "version": "2", "limits": 1, "state": "active", **unreleased},
        ],
    }
    assert count(client, "inspect_model_info", name="tiny", version="2", runtime="onnxruntime") == 1
    assert client.get("/metrics").text.count("inspect_model_info{") == 1
    assert count(client, "inspect_swaps_total", outcome="activated") == 1
    (line,) = (line for line in lines if line["event"] == "activated")
    assert (line["bundle"], line["model"], line["version"]) == ("two", "tiny", "2")


def test_a_rollback_is_one_call_and_a_second_one_leads_back(client: httpx.Client) -> None:
    assert is_problem(roll_back(client), 404, "bundle_unknown")
    activate(client, "two")
    for number, (bundle, before) in enumerate([("one", "two"), ("two", "one"), ("one", "two")]):
        swap = roll_back(client).json()
        assert (swap["outcome"], swap["active"]["bundle"], swap["previous"]["bundle"]) == (
            "rolled_back",
            bundle,
            before,
        )
        assert version(client, f"s{number}") == swap["active"]["version"]
    assert count(client, "inspect_swaps_total", outcome="rolled_back") == 3


def test_the_configured_bundle_is_one_bundle_by_whichever_name_and_the_way_back_stays(client: httpx.Client) -> None:
    activate(client, "two")
    for name, outcome in (("@configured", "activated"), ("one", "unchanged"), ("@configured", "unchanged")):
        swap = activate(client, name).json()
        assert (swap["outcome"], swap["active"]["bundle"], swap["previous"]["bundle"]) == (outcome, "one", "two")
        assert states(client) == {"one": "active", "two": "previous"}
        assert len(client.get("/v1/models").json()["models"]) == 2
    assert roll_back(client).json()["active"]["bundle"] == "two"


def test_a_second_bundle_of_a_version_that_was_in_service_is_refused(client: httpx.Client, folder: Path) -> None:
    activate(client, "two")
    tiny_bundle(folder / "other-two", version="2", gain=15.0)
    before = everything(client)
    refused = activate(client, "other-two")
    assert is_problem(refused, 409, "version_taken")
    assert refused.json()["detail"].startswith("another bundle was in service as tiny 2: ")
    assert everything(client) == before
    shutil.copytree(folder / "two", folder / "copy")  # which is the same bundle
    assert activate(client, "copy").json()["active"]["version"] == "2"


def test_the_bundle_in_service_is_not_swapped_for_itself_and_the_way_back_stays(client: httpx.Client) -> None:
    activate(client, "two")
    swap = activate(client, "two").json()
    assert (swap["outcome"], swap["active"]["bundle"], swap["previous"]["bundle"]) == ("unchanged", "two", "one")
    assert roll_back(client).json()["active"]["bundle"] == "one"


def test_the_same_name_with_other_content_is_another_bundle(client: httpx.Client, folder: Path) -> None:
    activate(client, "two")
    shutil.rmtree(folder / "two")
    tiny_bundle(folder / "two", version="3", gain=15.0)
    (two,) = (model for model in client.get("/v1/models").json()["models"] if model["bundle"] == "two")
    assert two == {
        **{"bundle": "two", "name": "tiny", "version": "2", "limits": 1, "state": "active", "released": False},
        "reason": "another bundle lies there by now",
    }
    assert activate(client, "two").json()["active"]["version"] == "3"
    # and what was before lies there no longer
    refused = roll_back(client)
    assert is_problem(refused, 422, "bundle_refused")
    assert refused.json()["detail"] == "manifest.json: is another by now than when the bundle was put in service"
    assert version(client, "after") == "3"


def test_a_folder_of_bundles_that_is_away_is_told_and_what_is_known_is_listed(
    client: httpx.Client, folder: Path
) -> None:
    activate(client, "two")
    folder.rename(folder.parent / "away")
    listed = client.get("/v1/models").json()["models"]
    assert [(model["bundle"], model["state"], model["released"]) for model in listed] == [
        ("one", "previous", False),
        ("two", "active", False),
    ]
    assert all(model["reason"] for model in listed)
    assert version(client, "meanwhile") == "2"
    (folder.parent / "away").rename(folder)
    assert {model["reason"] for model in client.get("/v1/models").json()["models"]} == {""}


@pytest.mark.parametrize("breaker", BREAKERS)
def test_a_broken_bundle_changes_nothing_and_is_refused_with_what_is_wrong(
    client: httpx.Client, folder: Path, breaker: Callable[[Path], str]
) -> None:
    activate(client, "two")
    name, reason = broken(folder, breaker)
    before = everything(client)
    refused = activate(client, name)
    assert is_problem(refused, 422, "bundle_refused")
    assert refused.json()["detail"].startswith(reason)
    assert str(folder) not in refused.text
    assert everything(client) == before
    assert version(client, "after") == "2"
    assert count(client, "inspect_swaps_total", outcome="refused") == 1
    assert roll_back(client).json()["active"]["bundle"] == "one"
    if not reason.startswith(("self-test", "features.onnx")):  # which only running it tells
        (entry,) = (model for model in before[2]["models"] if model["bundle"] == name)
        assert (entry["state"], entry["name"]) == ("broken", "")
        assert entry["reason"].startswith(reason)


def test_a_bundle_that_cannot_cover_the_lines_frame_changes_nothing(client: httpx.Client, folder: Path) -> None:
    tiny_bundle(folder / "large", patch_px=256)
    refused = activate(client, "large")
    assert is_problem(refused, 422, "bundle_refused")
    assert refused.json()["detail"].startswith("patch_px: the line's frame")
    assert states(client) == {"large": "available", "one": "active", "two": "available"}


def test_a_bundle_with_other_labels_is_taken_and_its_series_begin(client: httpx.Client, folder: Path) -> None:
    tiny_bundle(folder / "oil", labels=("oil", "scratch"), version="3")
    post(client, "before", SCREENS["fail"])
    counted = partial(count, client, "inspect_defects_total")
    assert counted(label=LABELS[0]) == 1
    activate(client, "oil")
    assert counted(label="oil") == 0
    assert list(post(client, "after", SCREENS["fail"]).json()["labels"]) == ["oil", "scratch"]
    assert counted(label="oil") == 1
    assert counted(label=LABELS[0]) == 1  # what was counted stays counted


def test_what_cannot_be_recorded_is_not_put_in_service(client: httpx.Client, folder: Path) -> None:
    state_dir = folder.parent / "state"
    change_record(state_dir, "CREATE TRIGGER full BEFORE INSERT ON activations BEGIN SELECT RAISE(ABORT, 'full'); END")
    assert is_problem(activate(client, "two"), 500, "record_failed")
    assert version(client, "after") == "1"
    change_record(state_dir, "DROP TRIGGER full")
    assert activate(client, "two").status_code == 200


def test_a_screen_that_was_answered_keeps_its_answer(client: httpx.Client) -> None:
    first = post(client, "one", SCREENS["fail"])
    activate(client, "two")
    again = post(client, "one", SCREENS["fail"])
    assert again.content == first.content
    assert post(client, "other", SCREENS["fail"]).json()["labels"] != first.json()["labels"]


def test_a_bundle_without_release_is_refused_unless_it_is_told_so(client: httpx.Client, folder: Path) -> None:
    before = everything(client)
    refused = activate(client, "two", without_release=False)
    assert is_problem(refused, 409, "release_missing")
    assert refused.json()["detail"].startswith("the bundle has not passed the release gate")
    assert everything(client) == before
    assert activate(client, "two", without_release=True).json()["outcome"] == "activated"
    # the way back is never barred, and a release of what was in service before is none against what is now
    assert roll_back(client).json()["active"]["bundle"] == "one"
    released(folder / "two", ON_THIS_CPU, active=folder / "two")
    refused = activate(client, "two", without_release=False)
    assert is_problem(refused, 409, "release_missing")
    assert "which is not in service now" in refused.json()["detail"]
    released(folder / "two", ON_THIS_CPU, active=folder / "one")
    assert activate(client, "two", without_release=False).json()["outcome"] == "activated"


def releases(client: httpx.Client) -> dict[str, bool]:
    return {model["bundle"]: model["released"] for model in client.get("/v1/models").json()["models"]}


def test_it_is_told_of_each_bundle_whether_it_is_released_as_it_runs_or_would_run(folder: Path) -> None:
    released(folder / "two", ON_THIS_CPU, active=folder / "one")
    altered(shutil.copytree(folder / "two", folder / "broken"))
    settings = settings_of(folder)
    with logged() as lines:
        with serve(create_app(settings)) as client:
            assert releases(client) == {"broken": False, "one": False, "two": True}
            assert activate(client, "two", without_release=False).status_code == 200
            assert releases(client) == {"broken": False, "one": False, "two": True}
        with serve(create_app(settings)):
            pass
    warned = [line["bundle"] for line in lines if line["event"] == "not released as it runs here"]
    assert warned == ["one"]  # and not `two`, neither at the swap nor at the start with it


def test_what_is_listed_as_released_is_what_would_be_taken(client: httpx.Client, folder: Path) -> None:
    three = tiny_bundle(folder / "three", version="3", gain=15.0)
    for bundle in (folder / "two", three):
        released(bundle, ON_THIS_CPU, active=folder / "one")
    assert releases(client) == {"one": False, "three": True, "two": True}
    assert activate(client, "two", without_release=False).status_code == 200
    # in service, against whatever it was held; `three` was not held against it, and `one` against nothing
    assert releases(client) == {"one": False, "three": False, "two": True}
    assert is_problem(activate(client, "three", without_release=False), 409, "release_missing")
    released(folder / "one", ON_THIS_CPU, active=folder / "three")
    assert not releases(client)["one"]  # the way back by its name asks for a release too
    assert is_problem(activate(client, "one", without_release=False), 409, "release_missing")
    released(folder / "one", ON_THIS_CPU, active=folder / "two")
    assert releases(client)["one"]
    assert roll_back(client).json()["active"]["bundle"] == "one"
    assert releases(client) == {"one": True, "three": True, "two": True}


def test_what_was_altered_on_the_disk_is_not_released_though_it_was(client: httpx.Client, folder: Path) -> None:
    released(folder / "one", ON_THIS_CPU, active=folder / "two")
    released(folder / "two", ON_THIS_CPU, active=folder / "one")
    activate(client, "two")
    assert releases(client) == {"one": True, "two": True}
    for bundle in ("one", "two"):
        altered(folder / bundle)  # its manifest is as it was
    assert releases(client) == {"one": False, "two": False}
    assert states(client) == {"one": "previous", "two": "active"}


def test_a_release_for_another_batch_is_none(folder: Path) -> None:
    released(folder / "two", ON_THIS_CPU, active=folder / "one")
    settings = settings_of(folder).model_copy(update={"batch": 3})
    with serve(create_app(settings)) as client:
        assert not releases(client)["two"]
        refused = activate(client, "two", without_release=False)
        assert is_problem(refused, 409, "release_missing")
        (here,) = re.findall("and is to run as (.*)", refused.json()["detail"])
        assert here.startswith("onnxruntime fp32 in batches of 3 by onnxruntime ")
        with logged() as lines:
            activate(client, "two")
        assert [line["runs_as"] for line in lines if line["log_level"] == "warning"] == [here]


class Held:
    """A service on a device in the test's hand, one of whose screens is under way."""

    def __init__(self, client: httpx.Client, device: Device, pool: ThreadPoolExecutor) -> None:
        self.client = client
        self.device = device
        self.pool = pool
        device.screen_gate.hold()
        self.screen = pool.submit(post, client, "held", SCREENS["pass"])
        device.screen_gate.wait_for()

    def swap(self) -> "Future[httpx.Response]":
        """Under way, and past the flip."""
        swap = self.pool.submit(activate, self.client, "two")
        until(lambda: self.client.get("/readyz").json()["model"]["bundle"] == "two")
        return swap


@contextmanager
def held(folder: Path) -> Iterator[tuple[Held, Any]]:
    device = Device()
    backend = device.backend()
    app = create_app(settings_of(folder), backends=[backend], golden=GOLDEN)
    with serve(app) as client, ThreadPoolExecutor(4) as pool:
        try:
            yield Held(client, device, pool), backend
        finally:
            device.screen_gate.open()


def test_a_screen_under_way_ends_with_the_bundle_that_it_began_with(folder: Path) -> None:
    with held(folder) as (here, backend):
        swap = here.swap()
        # others are not held up by it
        assert version(here.client, "next") == "2"
        assert count(here.client, "inspect_model_info", name="tiny", version="2", runtime="onnxruntime") == 1
        assert count(here.client, "inspect_queue_patches") == 6
        assert not swap.done()
        backend.features(GOLDEN.pixels)  # open as long as its screen needs it
        here.device.screen_gate.open()
        assert here.screen.result().json()["model"] == {"name": "fake", "version": "0", "limits": 1}
        assert swap.result().status_code == 200
        with pytest.raises(InferenceError, match="closed"):
            backend.features(GOLDEN.pixels)


def test_a_sender_that_stalls_does_not_bar_the_way_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(folder) as (here, _):
        swap = here.swap()
        assert activate(here.client, "one").json()["outcome"] == "activated"
        assert roll_back(here.client).json()["active"]["bundle"] == "two"
        assert not swap.done()  # it tells how long the screen under way held its bundle
        monkeypatch.setattr("service.models.LEFT_MOST", 1)  # but no more bundles are in memory than that
        for further in (activate(here.client, "one"), roll_back(here.client)):
            assert is_problem(further, 409, "swap_in_progress")
        here.device.screen_gate.open()
        assert swap.result().json()["active"]["bundle"] == "two"
        assert activate(here.client, "one").status_code == 200


def test_a_service_that_stops_during_a_swap_closes_both(folder: Path) -> None:
    with held(folder) as (here, backend):
        here.swap()
        here.device.screen_gate.open()
    with pytest.raises(InferenceError, match="closed"):
        backend.features(GOLDEN.pixels)


def test_a_record_that_cannot_be_reckoned_with_is_none_and_costs_no_swap(folder: Path) -> None:
    """What is said of the new bundle is said after the old one was closed."""
    released(folder / "two", ON_THIS_CPU, active=folder / "one")
    record = folder / "two" / "release.json"
    record.write_text(record.read_text().replace('"of": 1', '"of": 1' + "0" * 400))
    with serve(create_app(settings_of(folder))) as client:
        assert is_problem(activate(client, "two", without_release=False), 409, "release_missing")
        assert activate(client, "two").status_code == 200
        assert states(client) == {"one": "previous", "two": "active"}
        assert sum(thread.name == "device" for thread in threading.enumerate()) == 1
