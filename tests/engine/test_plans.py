import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import LabelLimits, Manifest, fake_manifest
from engine.errors import PlanError
from engine.layers import Layer
from engine.plans import (
    DRAFT_KEPT_S,
    UNUSED_KEPT_S,
    Compiled,
    PlanCache,
    PlanKey,
    PlanRecord,
    default_folder,
)

KEY = PlanKey(
    gpu="NVIDIA A sm86",
    tensorrt="tensorrt 10.13.0",
    configuration=1,
    precision="fp16",
    batch_size=5,
    graph_sha256="a" * 64,
)
DATA = bytes(range(256)) * 4
BUNDLE = fake_manifest(("bubble", "scratch"))
LAYERS = [Layer("a", "CaskConvolution", "fp16"), Layer("b", "gemm", "fp32"), Layer("c", "gemm", "fp16")]


def built(plan: bytes, layers: list[Layer], timing_cache: bytes) -> Compiled:
    return Compiled(plan=plan, layers=layers, timing_cache=timing_cache)


def build(timing_cache: bytes) -> Compiled:
    return built(DATA, LAYERS, timing_cache + b"+")


def refuse(timing_cache: bytes) -> Compiled:
    raise PlanError("no")


def test_a_plan_is_built_once(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    assert cache.find(KEY) is None
    plan = cache.obtain(KEY, build)
    assert (plan.built, plan.data) == (True, DATA)
    assert plan.record.real_precision == "fp16"
    assert plan.record.layers == {"fp16": 2, "fp32": 1}
    again = cache.obtain(KEY, refuse)
    assert again == replace(plan, built=False)
    assert again.path.read_bytes() == DATA


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": "NVIDIA B sm86"},
        {"tensorrt": "tensorrt 10.13.1"},
        {"configuration": 2},
        {"precision": "fp32"},
        {"batch_size": 10},
        {"graph_sha256": "b" * 64},
    ],
)
def test_a_plan_for_something_else_is_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = PlanCache(tmp_path)
    mine = cache.obtain(KEY, build)
    other = replace(KEY, **change)
    assert cache.find(other) is None
    foreign = cache._path(other)  # someone renames the files of one plan to those of another
    foreign.write_bytes(mine.path.read_bytes())
    foreign.with_suffix(".json").write_bytes(mine.path.with_suffix(".json").read_bytes())
    assert cache.find(other) is None
    assert cache.obtain(other, build).built


@given(position=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_a_plan_of_other_bytes_is_never_loaded(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    cache = PlanCache(tmp_path_factory.mktemp("plans"))
    path = cache.obtain(KEY, build).path
    for altered in (
        DATA[:position],
        DATA + b"\0",
        DATA[:position] + bytes([DATA[position] ^ 1 << bit]) + DATA[position + 1 :],
    ):
        path.write_bytes(altered)
        assert cache.find(KEY) is None
    assert cache.obtain(KEY, build).built
    assert path.read_bytes() == DATA


@given(st.data())
def test_a_record_that_is_not_understood_counts_as_none(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cache = PlanCache(tmp_path_factory.mktemp("plans"))
    path = cache.obtain(KEY, build).path.with_suffix(".json")
    record = json.loads(path.read_bytes())
    guard = record["guards"]["d" * 64] = {"bubble": 0.0}
    speed = record["speed"] = {"fp16": 100.0, "int8": 120.0}
    table = data.draw(st.sampled_from([record, record["key"], guard, speed]))
    name = data.draw(st.sampled_from(sorted(table)))
    if table not in (guard, speed) and data.draw(st.booleans()):
        del table[name]
    else:
        table[name] = data.draw(st.sampled_from([[], "", "x\n", -1, True, {"a": "b"}, {"a": float("nan")}]))
    path.write_text(json.dumps(record))
    assert cache.find(KEY) is None
    path.write_bytes(data.draw(st.binary(max_size=40)))
    assert cache.find(KEY) is None


def test_a_plan_whose_layers_have_another_precision_than_its_key_is_stale(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    for precision, stale in (("fp16", False), ("fp32", True), ("int8", True)):
        key = replace(KEY, precision=precision)
        cache.obtain(key, build)  # which makes layers in fp16 whatever is asked for
        assert (cache.find(key) is None) == stale


def test_another_user_reads_a_plan_and_does_not_write_it(tmp_path: Path) -> None:
    path = PlanCache(tmp_path).obtain(KEY, build).path
    assert {file.stat().st_mode & 0o777 for file in (path, path.with_suffix(".json"))} == {0o644}


def test_a_record_alone_and_a_plan_alone_are_none(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    path = cache.obtain(KEY, build).path
    record = path.with_suffix(".json").read_bytes()
    path.with_suffix(".json").unlink()
    assert cache.find(KEY) is None
    path.unlink()
    path.with_suffix(".json").write_bytes(record)
    assert cache.find(KEY) is None


def test_a_plan_may_be_built_anew_and_forgotten(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    first = cache.obtain(KEY, build)
    cache.set_guard(first, BUNDLE, {"bubble": 0.001})
    plan = cache.obtain(KEY, build, anew=True)
    assert (plan.built, plan.record.guard_of(BUNDLE), plan.unkept) == (True, None, "")  # a guard band is one plan's
    assert cache.find(KEY) == replace(plan, built=False)
    for _ in range(2):
        cache.forget(plan)
        assert cache.find(KEY) is None


def test_a_speed_is_written_to_the_record_and_is_one_plans(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    plan = cache.obtain(KEY, build)
    cache.set_guard(plan, BUNDLE, {"bubble": 0.001})
    cache.set_speed(plan, {"fp16": 100.0, "int8": 120.0})
    record = cache.obtain(KEY, refuse).record
    assert record.speed == {"fp16": 100.0, "int8": 120.0}
    assert record.guard_of(BUNDLE) == {"bubble": 0.001}
    assert cache.obtain(KEY, build, anew=True).record.speed == {}


def test_a_guard_band_is_not_written_to_another_plan_that_lies_there(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    mine = cache.obtain(KEY, build)
    other = cache.obtain(KEY, lambda timing_cache: built(DATA + b"other", LAYERS, b""), anew=True)
    assert cache.set_guard(mine, BUNDLE, {"bubble": 0.001}).guard_of(BUNDLE) == {"bubble": 0.001}
    assert cache.find(KEY) == replace(other, built=False)


def test_of_two_that_want_a_plan_one_builds_it(tmp_path: Path) -> None:
    """Else the one that is kept is not the one that the first of them serves."""
    under_way, builds = threading.Event(), []

    def slowly(timing_cache: bytes) -> Compiled:
        builds.append(under_way.is_set())
        under_way.set()
        time.sleep(0.2)
        return built(DATA + bytes([len(builds)]), LAYERS, b"")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(PlanCache(tmp_path).obtain, KEY, slowly)
        assert under_way.wait(10)
        second = pool.submit(PlanCache(tmp_path).obtain, KEY, slowly)
        plans = [first.result(10), second.result(10)]
    assert builds == [False]
    assert [plan.built for plan in plans] == [True, False]
    assert plans[0].data == plans[1].data == plans[0].path.read_bytes()


def test_a_plan_is_forgotten_and_no_other_that_lies_in_its_place(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    mine = cache.obtain(KEY, build)
    other = cache.obtain(KEY, lambda timing_cache: built(DATA + b"other", LAYERS, b""), anew=True)
    cache.forget(mine)
    assert cache.obtain(KEY, refuse).data == other.data
    timing = list(tmp_path.glob("timing-*"))
    assert timing
    cache.forget(other, timing=True)
    assert cache.find(KEY) is None
    assert not list(tmp_path.glob("timing-*"))


def test_a_disk_that_is_full_after_the_plan_costs_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def only_plans(path: Path, data: bytes) -> None:
        if path.suffix == ".cache":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr("engine.plans._write", only_plans)
    plan = PlanCache(tmp_path).obtain(KEY, build)
    assert (plan.unkept, PlanCache(tmp_path).find(KEY)) == ("", replace(plan, built=False))


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "plans")
    with pytest.raises(PlanError):
        cache.obtain(KEY, refuse)
    assert [file.suffix for file in cache.folder.iterdir()] == [".lock"]


def test_a_write_that_fails_leaves_the_old_plan_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PlanCache(tmp_path)
    cache.obtain(KEY, build)
    before = sorted(set(tmp_path.iterdir()) - set(tmp_path.glob("*.lock")))

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    plan = cache.obtain(replace(KEY, batch_size=2), build)  # the minutes that it took are not lost
    assert (plan.data, plan.built) == (DATA, True)
    assert "No space left" in plan.unkept
    assert cache.set_guard(plan, BUNDLE, {"bubble": 0.001}).guard_of(BUNDLE) == {"bubble": 0.001}
    assert sorted(set(tmp_path.iterdir()) - set(tmp_path.glob("*.lock"))) == before
    assert cache.find(KEY) is not None


def test_the_timing_cache_is_the_gpus_and_grows_with_each_build(tmp_path: Path) -> None:
    cache, given_caches = PlanCache(tmp_path), []

    def remember(timing_cache: bytes) -> Compiled:
        given_caches.append(timing_cache)
        return build(timing_cache)

    for key in (KEY, replace(KEY, batch_size=2), replace(KEY, gpu="B"), replace(KEY, precision="int8")):
        cache.obtain(key, remember)
    assert given_caches == [b"", b"+", b"", b"++"]


def test_the_guard_band_is_written_to_the_record(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    plan = cache.obtain(KEY, build)
    assert plan.record.guard_of(BUNDLE) is None
    written = cache.set_guard(plan, BUNDLE, {"bubble": 0.001})
    found = cache.find(KEY)
    assert found is not None
    assert found.record == written
    assert written.guard_of(BUNDLE) == {"bubble": 0.001}


@pytest.mark.parametrize(
    "other",
    [
        replace(BUNDLE, files={**BUNDLE.files, "reasoning.onnx": "c" * 64}),
        fake_manifest(("scratch", "bubble")),
        fake_manifest(("bubble", "scratch", "tin_ash")),
    ],
)
def test_a_guard_band_is_not_that_of_another_reasoning_or_of_other_labels(tmp_path: Path, other: Manifest) -> None:
    cache = PlanCache(tmp_path)
    plan = cache.obtain(KEY, build)  # of both: they have the same features graph
    cache.set_guard(plan, BUNDLE, {"bubble": 0.001, "scratch": 0.0})
    shared = cache.obtain(KEY, refuse)
    assert shared.record.guard_of(other) is None
    cache.set_guard(plan, other, {"bubble": 0.002, "scratch": 0.003})  # by a process that does not know of the first
    record = cache.obtain(KEY, refuse).record
    assert record.guard_of(other) == {"bubble": 0.002, "scratch": 0.003}
    assert record.guard_of(BUNDLE) == {"bubble": 0.001, "scratch": 0.0}


def test_a_guard_band_is_that_of_the_same_model_whatever_its_thresholds(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    record = cache.set_guard(cache.obtain(KEY, build), BUNDLE, {"bubble": 0.001})
    strict = {label: LabelLimits(threshold=0.1, review=(0.05, 0.2)) for label in BUNDLE.labels}
    assert record.guard_of(replace(BUNDLE, version="2", labels=strict)) == {"bubble": 0.001}


def test_guard_bands_that_are_written_at_the_same_time_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = PlanCache(tmp_path).obtain(KEY, build)
    write = PlanCache._write_record

    def slowly(cache: PlanCache, record: PlanRecord) -> None:
        time.sleep(0.01)
        write(cache, record)

    monkeypatch.setattr(PlanCache, "_write_record", slowly)
    models = [replace(BUNDLE, files={**BUNDLE.files, "reasoning.onnx": f"{number:064}"}) for number in range(8)]
    with ThreadPoolExecutor(len(models)) as pool:  # each with a cache of its own, as a process has
        list(pool.map(lambda model: PlanCache(tmp_path).set_guard(plan, model, {"bubble": 0.001}), models))
    record = PlanCache(tmp_path).obtain(KEY, refuse).record
    assert [record.guard_of(model) for model in models] == [{"bubble": 0.001}] * len(models)


def age(file: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(file, (then, then))


def test_a_build_removes_what_nobody_has_used_for_long(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    unused, used = (cache.obtain(replace(KEY, batch_size=size), build).path for size in (1, 2))
    (timing,) = tmp_path.glob("timing-*.cache")
    for path in (unused, used):
        for file in (path, path.with_suffix(".json")):
            age(file, UNUSED_KEPT_S + 60)
    age(timing, UNUSED_KEPT_S - 60)
    cache.obtain(replace(KEY, batch_size=2), refuse)  # used again
    assert unused.exists()  # to load one removes none
    built = cache.obtain(KEY, build).path
    kept = {path.with_suffix(suffix).name for path in (used, built) for suffix in (".plan", ".json")}
    assert {file.name for file in tmp_path.iterdir() if file.suffix != ".lock"} == kept | {timing.name}


def test_a_build_removes_the_drafts_of_processes_that_were_killed(tmp_path: Path) -> None:
    drafts = [tmp_path / f".{KEY.stem}.plan-{name}" for name in ("killed", "under_way")]
    for draft in drafts:
        draft.write_bytes(DATA)
    age(drafts[0], DRAFT_KEPT_S + 60)
    PlanCache(tmp_path).obtain(KEY, build)
    assert [draft.exists() for draft in drafts] == [False, True]


def test_names_of_plans_say_what_they_are() -> None:
    assert re.fullmatch(r"fp16-n5-[0-9a-f]{16}", KEY.stem)


def test_the_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "screen-inspection" / "plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/line")
    assert default_folder() == Path("/home/line/.cache/screen-inspection/plans")
