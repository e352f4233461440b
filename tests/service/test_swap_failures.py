"""A swap that ends badly: nothing has changed, nothing stays loaded, and what was decided is what is recorded."""

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from engine import Backend, BundleError, DeviceLost, InferenceError, PlanError, Tuning, load_all, read_golden
from engine.tuning import Share, reference
from service.app import create_app
from service.catalogue import Catalogue
from service.errors import BundleRefused, DeadlineExceeded, NotReady
from service.images import Source
from service.metrics import Metrics
from service.models import Models
from service.restart import activation, refuse_second_of_a_version
from service.room import Decoding
from service.serving import Loaded, Serving, load_bundle
from service.settings import Settings
from service.store import Activation, Store, StoreError
from tests.bundles import tiny_bundle
from tests.service.apps import GOLDEN, SCREENS, SIZE, WAIT_S, Device, encoded, is_problem, post, serve
from tests.service.devices import until
from tests.service.shelves import shelf


class Line:
    """`one` in service and `two` beside it, without HTTP.

    Attributes:
        loaded: what the swaps have loaded.
    """

    def __init__(self, home: Path) -> None:
        self.folder = shelf(home / "bundles")
        self.settings = Settings(
            bundle=self.folder / "one", bundles=self.folder, state_dir=home / "state", runtime="onnxruntime"
        )
        self.store = Store(self.settings.state_dir)
        self.decoding = Decoding(turns=threading.BoundedSemaphore(1))
        self.loaded: list[Loaded] = []
        self.device: Device | None = None  # in place of what is loaded
        self.models = self.begin()

    def begin(self) -> Models:
        loaded = load_bundle(self.folder / "one", self.settings)
        self.store.activate(activation("one", loaded.digest, loaded.backends[0].manifest, self.settings))
        return Models(
            Serving(loaded, bundle="one", record=self.store, settings=self.settings, decoding=self.decoding),
            catalogue=Catalogue(configured=self.folder / "one", folder=self.folder),
            store=self.store,
            settings=self.settings,
            decoding=self.decoding,
            metrics=Metrics(labels=(), codes=()),
        )

    def meanwhile(self) -> None:
        """What happens between the loading of `two` and its self-test."""

    def load(self, path: Path, settings: Settings, *, prebuilt: bool, beside: Tuning | None) -> Loaded:
        assert prebuilt
        loaded = load_bundle(path, settings, beside=beside)
        if self.device is not None:
            loaded.close()
            loaded = Loaded(backends=[self.device.backend()], golden=GOLDEN, digest=loaded.digest)
        self.loaded.append(loaded)
        return loaded

    def nothing_has_changed(self) -> bool:
        """Nor is anything left of what was loaded."""
        with closing(Store(self.settings.state_dir)) as store:
            last = store.last_activation()
        for loaded in self.loaded:
            until(partial(_closed, loaded))  # by the thread that loaded it, where nobody waited for that any more
        return self.models.current.bundle == "one" and last is not None and last.bundle == "one"


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    line = Line(tmp_path)
    monkeypatch.setattr("service.models.load_bundle", line.load)
    monkeypatch.setattr("service.models.require_release", lambda *_, **__: line.meanwhile())
    with closing(line.store), closing(line.models):
        yield line


def test_a_service_that_stops_during_a_swap_does_not_record_it(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:  # as the lifespan does, while the thread of the swap goes on
        line.models.close()
        line.store.close()

    monkeypatch.setattr(line, "meanwhile", stop)
    with pytest.raises((NotReady, StoreError)):
        line.models.activate("two")
    assert len(line.loaded) == 1
    assert line.nothing_has_changed()


def test_a_service_that_has_stopped_is_not_swapped_even_while_its_record_is_open(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "meanwhile", line.models.close)
    with pytest.raises(NotReady):
        line.models.activate("two")
    assert line.nothing_has_changed()


def test_a_swap_that_has_happened_is_answered_as_one_whatever_becomes_of_the_record(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise StoreError("cannot read the record")

    monkeypatch.setattr(line.store, "activated_before", unreadable)
    swap = line.models.activate("two")
    assert swap.previous is not None
    assert (swap.outcome, swap.active.bundle, swap.previous.bundle) == ("activated", "two", "one")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), BundleError("is gone", key="manifest.json")])
def test_whatever_goes_wrong_at_the_gate_what_was_loaded_is_closed(
    line: Line, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(line, "meanwhile", fail)
    with pytest.raises(type(error)):
        line.models.activate("two")
    assert len(line.loaded) == 1
    assert line.nothing_has_changed()


def test_a_bundle_that_cannot_be_read_is_refused_without_its_place(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path, _: Settings, **__: object) -> Loaded:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("service.models.load_bundle", unreadable)
    with pytest.raises(BundleRefused) as refused:
        line.models.activate("two")
    assert refused.value.detail == "cannot be read: Permission denied"
    assert line.nothing_has_changed()


@pytest.mark.parametrize("rollback", [False, True])
def test_a_swap_neither_builds_a_plan_nor_makes_do_with_less_memory(
    line: Line, monkeypatch: pytest.MonkeyPatch, rollback: bool
) -> None:
    line.models.activate("two")
    line.models.activate("one")

    def refuse(*_: object, prebuilt: bool, **__: object) -> list[Backend]:
        assert prebuilt
        raise PlanError("there is no plan, build it first: `python -m engine build BUNDLE`")

    monkeypatch.setattr("service.serving.load_all", refuse)
    monkeypatch.setattr("service.models.load_bundle", load_bundle)
    with pytest.raises(BundleRefused, match="build it first: `python -m engine build BUNDLE`"):
        line.models.roll_back() if rollback else line.models.activate("two")
    assert line.models.current.bundle == "one"


def test_a_bundle_that_is_exchanged_while_it_is_loaded_is_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    backends: list[Backend] = []

    def load_and_exchange(path: Path, *_: object, **__: object) -> list[Backend]:
        backends.extend(load_all(path, "onnxruntime"))
        shutil.rmtree(path)
        shutil.copytree(line.folder / "one", path)
        return backends

    monkeypatch.setattr("service.serving.load_all", load_and_exchange)
    with pytest.raises(BundleRefused, match="was replaced while"):
        line.models.activate("two")
    with pytest.raises(InferenceError, match="closed"):
        backends[0].features(read_golden(line.folder / "one").pixels)
    assert line.nothing_has_changed()


def test_a_rollback_takes_what_was_in_service_and_not_what_comes_in_its_place(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.models.activate("two")
    line.models.activate("one")
    other = tiny_bundle(line.folder.parent / "other", version="9", gain=15.0)
    # exchanged between the look at the folder and the loading of it
    monkeypatch.setattr("service.models.load_bundle", lambda _, settings, **more: line.load(other, settings, **more))
    with pytest.raises(BundleRefused, match="was replaced while"):
        line.models.roll_back()
    assert line.models.current.bundle == "one"


def test_a_device_that_hangs_in_its_first_self_test_wedges_neither_swaps_nor_the_end(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    line.device = device = Device()
    device.golden_gate.hold()
    with ExitStack() as finally_:
        finally_.callback(device.golden_gate.open)
        with monkeypatch.context() as patch:
            patch.setattr("service.models.SELF_TEST_WITHIN_S", 0.05)
            patch.setattr("service.scheduler.ENDS_WITHIN_S", 0.05)
            with pytest.raises(BundleRefused, match="self-test: has not run yet"):
                line.models.activate("two")
        assert not _closed(line.loaded[0])  # nobody has waited for it
        line.device = None
        assert line.models.activate("two").outcome == "activated"
    (hung, _) = line.loaded
    until(lambda: _closed(hung))  # by its own thread, should it ever go on


@pytest.fixture
def hanging(line: Line, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The loading of a bundle hangs until this is set."""
    goes_on = threading.Event()

    def hang(path: Path, settings: Settings, **more: Any) -> Loaded:  # noqa: ANN401
        assert goes_on.wait(WAIT_S)
        return line.load(path, settings, **more)

    monkeypatch.setattr("service.models.load_bundle", hang)
    yield goes_on
    goes_on.set()


def test_a_load_that_hangs_is_refused_and_wedges_no_later_swap(
    line: Line, monkeypatch: pytest.MonkeyPatch, hanging: threading.Event
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("service.models.PROVEN_WITHIN_S", 0.05)
        with pytest.raises(BundleRefused, match=r"was not loaded and self-tested within 0\.05 s"):
            line.models.activate("two")
    assert line.nothing_has_changed()
    monkeypatch.setattr("service.models.load_bundle", line.load)
    assert line.models.activate("two").outcome == "activated"
    hanging.set()  # should it ever go on, what comes of it is given back
    until(lambda: len(line.loaded) == 2)
    until(lambda: _closed(line.loaded[1]))
    assert not _closed(line.loaded[0])


def test_a_service_that_stops_does_not_wait_for_a_load_that_hangs(line: Line, hanging: threading.Event) -> None:
    with ThreadPoolExecutor(1) as pool:
        swap = pool.submit(line.models.activate, "two")
        until(lambda: line.models._attempts._under_way is not None)
        line.models.close()
        assert isinstance(swap.exception(WAIT_S), NotReady)
    with pytest.raises(NotReady):
        line.models.activate("two")
    assert not hanging.is_set()


def test_a_swap_hands_on_how_the_threads_are_shared_out(line: Line) -> None:
    tuned = line.models.current.tuned
    assert tuned is not None
    cpus, patches = tuned.conditions.cpus, tuned.conditions.patches
    for share, bundle in ((reference(cpus, patches=patches), "two"), (Share(streams=1, threads=cpus), "one")):
        line.models.current.tuned = replace(tuned, share=share)
        line.models.activate(bundle)
        found = line.models.current.tuned
        assert found is not None
        assert found.share == share


def test_both_bundles_share_the_turns_and_the_room_to_decode(line: Line) -> None:
    def refusal() -> str:
        source = Source(data=encoded(SCREENS["pass"]), media_type="image/png")
        with line.models.take() as serving, pytest.raises(DeadlineExceeded) as refused:
            serving.inspector.inspect("screen", source, deadline_at=time.monotonic() + 0.1)
        return refused.value.detail

    for bundle in ("one", "two"):
        line.models.activate(bundle)
        with line.decoding.turns:
            assert "could be decoded" in refusal()
        with line.decoding.room.hold(sys.maxsize, timeout_s=0):
            assert "before there was memory" in refusal()


def test_a_device_that_is_lost_in_the_first_self_test_is_the_refusal_of_the_new_bundle_alone(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose() -> None:
        raise DeviceLost("an illegal memory access was encountered")

    line.device = Device()
    monkeypatch.setattr(line.device.golden_gate, "go_through", lose)
    with pytest.raises(BundleRefused, match="self-test: fake cannot recover a device"):
        line.models.activate("two")
    assert line.nothing_has_changed()
    assert not line.models.report().gone  # should the device be lost to this one too, its own self-test finds out


def _closed(loaded: Loaded) -> bool:
    try:
        loaded.backends[0].features(np.zeros_like(loaded.golden.pixels))
    except InferenceError:
        return True
    return False


def test_two_bundles_that_had_one_version_before_that_was_refused_keep_the_way_back(line: Line) -> None:
    def recorded(digest: str) -> Activation:
        return Activation(bundle="old", digest=digest, name="tiny", version="5", configured=None)

    for digest in ("a" * 64, "b" * 64):
        line.store.activate(recorded(digest))
        refuse_second_of_a_version(recorded(digest), line.store)


def test_a_screen_that_runs_at_the_end_of_the_grace_gets_a_problem_and_no_verdict(tmp_path: Path) -> None:
    device = Device()
    settings = Settings(state_dir=tmp_path, frame_size=SIZE)
    app = create_app(settings, backends=[device.backend()], golden=GOLDEN)
    with ThreadPoolExecutor(1) as pool:
        with serve(app, grace_s=1) as client:
            device.screen_gate.hold()
            # a client of its own, which is not closed at the end of the block
            own = httpx.Client(base_url=client.base_url, timeout=WAIT_S, trust_env=False)
            screen = pool.submit(post, own, "held", SCREENS["pass"])
            device.screen_gate.wait_for()
            screen.add_done_callback(lambda _: device.screen_gate.open())
        with closing(own):
            answer = screen.result()
    assert is_problem(answer, 503, "not_ready")
    assert answer.headers["retry-after"] == "5"
    assert "verdict" not in answer.json()
    # what was under way may still be recorded: then it is what the same screen is answered when it comes again
