from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import service.serving
from engine import BundleError, FakeBackend, Golden, InferenceError, Manifest, bundle_sha256, read_golden
from service.inspector import Forgetful
from service.room import Decoding
from service.serving import Serving, load_bundle, naming
from service.settings import Settings
from tests.service.shelves import BREAKERS, ON_THIS_CPU, broken, shelf, wrong_golden


def test_a_bundle_in_service_is_named_tested_and_closed(bundle: Path) -> None:
    loaded = load_bundle(bundle, Settings(bundle=bundle, runtime="onnxruntime"))
    with closing(
        Serving(loaded, bundle="one", record=Forgetful(), settings=Settings(), decoding=Decoding())
    ) as serving:
        assert (serving.bundle, serving.digest) == ("one", bundle_sha256(bundle))
        assert serving.runs_as == ON_THIS_CPU
        assert serving.manifest.name == "tiny"
        report = serving.scheduler.tested()
        assert report.ok
        assert report.fresh
    with pytest.raises(InferenceError, match="closed"):
        loaded.backends[0].features(loaded.golden.pixels)


@pytest.mark.parametrize("runtime", ["onnxruntime", "fake"])
def test_a_bundle_runs_in_batches_of_the_setting(bundle: Path, runtime: str) -> None:
    for batch, patches in ((None, 5), (3, 3)):
        loaded = load_bundle(bundle, Settings(runtime=runtime, batch=batch), prebuilt=True)  # which needs no plan
        assert [backend.batch_size for backend in loaded.backends] == [patches]
        loaded.close()


@pytest.mark.parametrize("breaker", [breaker for breaker in BREAKERS if breaker is not wrong_golden])
def test_a_broken_bundle_is_not_loaded(tmp_path: Path, breaker: object) -> None:
    assert callable(breaker)
    name, reason = broken(shelf(tmp_path), breaker)
    with pytest.raises(BundleError) as refused:
        load_bundle(tmp_path / name, Settings())
    assert str(refused.value).startswith(reason)


def test_a_bundle_that_another_replaces_while_it_is_loaded_is_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf(tmp_path)
    closed = []

    def replaced(bundle: Path, precision: str) -> Golden:
        (tmp_path / "one").rename(tmp_path / "old")  # as an export does, here between the graphs and the golden patches
        (tmp_path / "two").rename(tmp_path / "one")
        return read_golden(bundle, precision)

    class Closed(FakeBackend):
        def close(self) -> None:
            closed.append(self)

    def load_all(bundle: Path, *_: object, **__: object) -> list[FakeBackend]:
        return [Closed(Manifest.read(bundle), lambda pixels: np.zeros((len(pixels), 4)))]

    monkeypatch.setattr(service.serving, "load_all", load_all)
    monkeypatch.setattr(service.serving, "read_golden", replaced)
    with pytest.raises(BundleError, match=r"manifest\.json: was replaced while the bundle was loaded"):
        load_bundle(tmp_path / "one", Settings())
    assert len(closed) == 1


def test_a_bundle_that_computes_something_else_is_found_out_by_its_first_test(tmp_path: Path) -> None:
    name, reason = broken(shelf(tmp_path), wrong_golden)
    loaded = load_bundle(tmp_path / name, Settings())
    with closing(Serving(loaded, bundle=name, record=Forgetful(), settings=Settings(), decoding=Decoding())) as serving:
        report = serving.scheduler.tested()
    assert not report.ok
    assert f"self-test: {report.detail}".startswith(reason)


@pytest.mark.parametrize(
    ("frame_size", "max_queue_patches", "detail"),
    [
        # smaller than a patch of 64 in one direction
        ((63, 640), 1000, "the line's frame of 640 x 63 pixels is smaller than a patch"),
        # 2 x 3 patches
        ((128, 192), 5, "the line's frame has 6 patches, of which only 5 may wait"),
        ((128, 192), 6, None),
        # nothing was agreed
        (None, 1, None),
    ],
)
def test_a_bundle_with_which_no_frame_of_the_line_could_be_inspected_is_refused(
    bundle: Path, frame_size: tuple[int, int] | None, max_queue_patches: int, detail: str | None
) -> None:
    settings = Settings(frame_size=frame_size, max_queue_patches=max_queue_patches)
    if detail is None:
        load_bundle(bundle, settings).backends[0].close()
        return
    with pytest.raises(BundleError) as refused:
        load_bundle(bundle, settings)
    assert (refused.value.key, refused.value.detail) == ("patch_px", detail)


def test_the_digest_is_another_for_another_bundle(tmp_path: Path) -> None:
    shelf(tmp_path)
    assert bundle_sha256(tmp_path / "one") != bundle_sha256(tmp_path / "two")
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        bundle_sha256(tmp_path / "absent")


def test_an_error_is_told_with_the_bundle_that_it_is_about() -> None:
    with pytest.raises(BundleError) as named, naming(Path("/srv/one")):
        raise BundleError("is missing", key="labels")
    assert str(named.value) == "/srv/one: labels: is missing"
