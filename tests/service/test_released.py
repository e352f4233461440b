"""Which record of a release is believed, and of what."""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import RELEASE_FILE, Manifest, RunsAs, bundle_sha256
from service import release as gate
from service.errors import ReleaseMissing
from service.released import Count, Device, Release, Releases, is_released, keep, key_of, read_releases, require_release
from service.sealed import ReleaseError
from service.serving import load_bundle
from tests.bundles import tiny_bundle
from tests.service.shelves import ON_THIS_CPU
from tests.service.test_release import settings, write_set


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "candidate")


@pytest.fixture
def golden(tmp_path: Path, candidate: Path) -> Path:
    return write_set(tmp_path / "golden", candidate)


def require(candidate: Path, runs: RunsAs = ON_THIS_CPU, *, active: Path | None = None) -> None:
    """Where `active`, by default the candidate itself, is in service."""
    require_release(candidate, runs, digest=bundle_sha256(candidate), active=bundle_sha256(active or candidate))


def test_what_was_held_against_another_bundle_than_the_one_in_service_is_refused(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path
) -> None:
    found = gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    assert found.active_sha256 == bundle_sha256(bundle)
    in_service = tiny_bundle(tmp_path / "in-service", version="7")
    with pytest.raises(ReleaseMissing, match=r"held against .*, which is not in service now"):
        require(candidate, active=in_service)


def test_a_record_holds_for_what_was_loaded_whatever_lies_there_by_now(
    tmp_path: Path, candidate: Path, golden: Path, bundle: Path
) -> None:
    gate.run(candidate, golden, active=bundle, settings=settings(tmp_path))
    loaded = bundle_sha256(tiny_bundle(tmp_path / "loaded", version="7"))
    with pytest.raises(ReleaseMissing, match="another version"):
        require_release(candidate, ON_THIS_CPU, digest=loaded, active=bundle_sha256(bundle))


def test_a_record_holds_for_these_files_as_they_ran_and_for_nothing_else(
    tmp_path: Path, candidate: Path, golden: Path
) -> None:
    with pytest.raises(ReleaseMissing, match="has not passed"):
        require(candidate)
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    assert found.runs_as == ON_THIS_CPU
    for runs, told in (
        (replace(ON_THIS_CPU, runtime="openvino"), "openvino fp32 in batches of 5"),
        (replace(ON_THIS_CPU, precision="int8"), "onnxruntime int8 in batches of 5"),
        (replace(ON_THIS_CPU, batch_size=10), "onnxruntime fp32 in batches of 10"),
        (replace(ON_THIS_CPU, versions="onnxruntime 0.1"), "in batches of 5 by onnxruntime 0.1"),
        (replace(ON_THIS_CPU, gpu="H100 sm90", plan="a" * 64), "on H100 sm90 with the plan aaaaaaaaaaaa"),
    ):
        with pytest.raises(ReleaseMissing, match=f"released for onnxruntime fp32 in batches of 5 by .*, and .* {told}"):
            require(candidate, runs)
    worse = found.devices[0].model_copy(update={"finite": False})
    write_record(candidate, found.model_copy(update={"devices": [worse]}))
    with pytest.raises(ReleaseMissing, match="refusal"):
        require(candidate)
    without_versions = found.model_dump(mode="json")
    del without_versions["runs_as"]["versions"]
    for unread in ({}, found.model_dump(mode="json"), {"records": {"onnxruntime fp32": without_versions}}):
        (candidate / RELEASE_FILE).write_text(json.dumps(unread))
        with pytest.raises(ReleaseMissing, match="cannot be read: release the bundle again"):
            require(candidate)
    without_reasons = found.model_dump(mode="json", exclude={"why"})  # as before the gate told any
    (candidate / RELEASE_FILE).write_text(json.dumps({"records": {"onnxruntime fp32": without_reasons}}))
    require(candidate)
    write_record(candidate, found)
    Manifest.read(candidate)
    manifest = json.loads((candidate / "manifest.json").read_text())
    (candidate / "manifest.json").write_text(json.dumps({**manifest, "version": "2"}))
    with pytest.raises(ReleaseMissing, match="another version"):
        require(candidate)


def write_record(bundle: Path, release: Release) -> None:
    """A record whatever it says."""
    (bundle / RELEASE_FILE).write_text(Releases(records={key_of(release.runs_as): release}).model_dump_json())


def test_records_of_other_runtimes_and_precisions_stay_whatever_a_run_finds(
    tmp_path: Path, candidate: Path, golden: Path
) -> None:
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    half = found.model_copy(update={"runs_as": replace(ON_THIS_CPU, runtime="openvino", precision="bf16")})
    keep(candidate, half)
    require(candidate)
    require(candidate, half.runs_as)
    refused = found.model_copy(update={"different": ["clean.png"]})
    keep(candidate, refused)
    assert read_releases(candidate).records == {"openvino bf16": half}
    with pytest.raises(ReleaseError, match="cannot be read"):
        gate.run(candidate, tmp_path / "mistyped", active=candidate, settings=settings(tmp_path))
    require(candidate, half.runs_as)
    assert {path.name for path in candidate.iterdir()} == {
        *Manifest.read(candidate).files,
        "manifest.json",
        RELEASE_FILE,
    }


@pytest.mark.parametrize(
    ("changes", "flaw"),
    [
        ({"devices": []}, "names no device"),
        ({"screens": 0}, "does not say of every screen"),
        ({"escape": 0, "screens": 1}, "saw no defective screen"),
        ({"overkill": 0, "screens": 2}, "or no clean one"),
        ({"guard": 0.4}, "guard bands are not those of the devices"),
        ({"twice": True}, "guard bands are not those of the devices"),
        ({"tolerance": 0.5}, "was held to 0.5, and the bundle states 1e-05"),
    ],
)
def test_a_record_that_proves_nothing_counts_as_none(
    tmp_path: Path, candidate: Path, golden: Path, changes: dict[str, Any], flaw: str
) -> None:
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    devices = found.devices * (1 + changes.pop("twice", False))
    if guard := changes.pop("guard", 0.0):
        devices = [Device(slot_spread={}, guard={"bubble": guard}, finite=True)]
        changes |= {"tolerance": 0.5}
    counts: dict[str, Count] = {
        name: Count(count=0, of=changes.pop(name)) for name in ("escape", "overkill") if name in changes
    }
    tally = found.tally.model_copy(update=counts)
    write_record(candidate, found.model_copy(update={"devices": devices, "tally": tally, **changes}))
    digest = bundle_sha256(candidate)
    with closing(load_bundle(candidate, settings(tmp_path))) as loaded:
        with pytest.raises(ReleaseMissing, match=f"proves nothing: .*{flaw}"):
            require_release(candidate, ON_THIS_CPU, digest=digest, active=None, loaded=loaded)
        write_record(candidate, found)
        require_release(candidate, ON_THIS_CPU, digest=digest, active=None, loaded=loaded)


def test_of_a_bundle_that_is_not_loaded_all_is_compared_but_the_plan(
    tmp_path: Path, candidate: Path, golden: Path
) -> None:
    found = gate.run(candidate, golden, active=candidate, settings=settings(tmp_path))
    on_a_gpu = replace(ON_THIS_CPU, gpu="H100 sm90", plan="a" * 64)
    keep(candidate, found.model_copy(update={"runs_as": on_a_gpu}))
    for runs, taken in (
        (on_a_gpu, True),
        (replace(on_a_gpu, plan="b" * 64), False),
        (replace(on_a_gpu, plan=None), True),
        (replace(on_a_gpu, plan=None, versions="onnxruntime 0.1"), False),
        (replace(on_a_gpu, plan=None, gpu="A10 sm86"), False),
    ):
        assert is_released(candidate, runs, digest=bundle_sha256(candidate), active=None) == taken
