import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine import BundleError, InferenceError, Manifest, RuntimeUnavailable, load
from engine.bfloat import write_bfloat
from tests.bundles import LABELS, features_graph, tiny_bundle
from tests.engine.precisions import BATCH, PATCHES, network, write_bundle
from tests.engine.test_onnxruntime import PATCH_PX, edit, fix_rows, lose_a_row, rename_input, sign
from training.network import FeaturesGraph

backend_module = pytest.importorskip("engine.openvino")  # not openvino by itself, which would report it
openvino, OpenVinoBackend = backend_module.openvino, backend_module.OpenVinoBackend


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle, tmp_path / "bundle")


def test_arithmetic_is_float32_where_the_cpu_would_rather_not(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_model, settings = openvino.Core.compile_model, []

    def spying(core: object, model: object, device: str, config: dict[object, object]) -> object:
        compiled = compile_model(core, model, device, config)
        settings.append((device, compiled.get_property(openvino.properties.hint.inference_precision)))
        return compiled

    monkeypatch.setattr(openvino.Core, "compile_model", spying)
    with closing(load(bundle, "openvino", threads=1)):
        assert settings == [("CPU", openvino.Type.f32)]


def test_a_signal_after_a_close_in_another_thread_is_handled(bundle: Path) -> None:
    program = f"""
import gc, signal, threading
from pathlib import Path
import engine
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
backend = engine.load(Path({str(bundle)!r}), "openvino", threads=1)
thread = threading.Thread(target=backend.close)
thread.start()
thread.join()
gc.collect()
signal.raise_signal(signal.SIGTERM)
assert heard == [1]
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_its_telemetry_is_never_loaded(bundle: Path) -> None:
    program = f"""
import socket, sys
from pathlib import Path
def nowhere(*names, **options):
    raise SystemExit(f"asked for {{names}}")
socket.getaddrinfo = nowhere
import engine
engine.load(Path({str(bundle)!r}), "openvino", threads=1).close()
assert "openvino" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry.")]
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_the_threads_asked_for_are_taken(bundle: Path) -> None:
    with closing(load(bundle, "openvino", threads=2)) as backend:
        assert str(vars(backend)["tuned"].share) == "2 x 1"
    with pytest.raises(ValueError, match="at least 1"):
        load(bundle, "openvino", threads=0)


def test_weights_outside_the_graph_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = features_graph(len(LABELS), patch_px=PATCH_PX)
    onnx.save(model, copy / "features.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    sign(copy)
    monkeypatch.chdir(copy)
    openvino.Core().read_model((copy / "features.onnx").read_bytes())  # which OpenVINO by itself takes
    with pytest.raises(BundleError, match="refuses the graph") as caught:
        load(copy, "openvino", threads=1)
    assert caught.value.key == "features.onnx"


@pytest.mark.parametrize(
    ("name", "change"),
    [("features.onnx", rename_input), ("reasoning.onnx", rename_input)],
)
def test_a_graph_of_another_form_is_refused(copy: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> None:
    edit(copy, name, change)
    with pytest.raises(BundleError, match=r"has .'image'") as caught:
        load(copy, "openvino", threads=1)
    assert caught.value.key == name


def unknown_function(model: onnx.ModelProto) -> None:
    """A function of ONNX Runtime's own, which OpenVINO does not have."""
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type, relu.domain = "SampleOp", "com.microsoft"


def test_a_graph_that_only_openvino_cannot_read_is_refused(copy: Path) -> None:
    edit(copy, "features.onnx", unknown_function)
    load(copy, "onnxruntime", threads=1).close()
    with pytest.raises(BundleError, match="openvino refuses the graph") as caught:
        load(copy, "openvino", threads=1)
    assert caught.value.key == "features.onnx"


def test_a_graph_with_the_batch_size_fixed_is_taken(copy: Path, bundle: Path) -> None:
    edit(copy, "features.onnx", lambda model: fix_rows(model, 5))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, PATCH_PX, PATCH_PX), np.uint8)
    with closing(load(copy, "openvino", threads=1)) as fixed, closing(load(bundle, "openvino", threads=1)) as free:
        np.testing.assert_array_equal(fixed.features(pixels).stage1, free.features(pixels).stage1)


def test_an_answer_that_lost_a_row_is_an_error_and_the_next_batch_is_run(copy: Path) -> None:
    edit(copy, "features.onnx", lose_a_row)
    with closing(load(copy, "openvino", threads=1)) as backend:
        for _ in range(2):  # the failed run has given its request back
            with pytest.raises(InferenceError, match=r"stage1 came back as \(0, 4\)"):
                backend.features(np.zeros((5, 1, PATCH_PX, PATCH_PX), np.uint8))


def test_a_network_without_activation_gives_flat_maps(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", labels=("oil", "stain"), activation=False)
    with closing(load(bundle, "openvino", threads=1)) as backend:
        features = backend.features(np.zeros((3, 1, PATCH_PX, PATCH_PX), np.uint8))
    assert features.activation.shape == (3, 2, 1, 1)
    assert not features.activation.any()


needs_bfloat = pytest.mark.skipif(
    not OpenVinoBackend.rounds(), reason="this CPU does not compute in bfloat16 (AVX-512 BF16 or AMX does)"
)


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """A bundle of a random network whose trunk rounds to bfloat16 behind its third convolution."""
    bundle = write_bundle(tmp_path / "narrow", network())
    write_bfloat(bundle, part=FeaturesGraph.TRUNK, keep=3)
    replace(Manifest.read(bundle), parity_tolerance={"fp32": 1e-3, "bf16": 0.5}).sign(bundle)
    return bundle


@needs_bfloat
def test_only_the_layers_that_may_round_compute_in_bfloat16(narrow: Path) -> None:
    with closing(load(narrow, "openvino", threads=1)) as backend:
        assert backend.precision == "bf16"  # as it was made
        stream = vars(vars(backend)["_features"].begin.__self__)["_free"].get()
        compiled = vars(stream.whole.__self__)["_compiled"]
    kinds = [
        layer.get_rt_info()["runtimePrecision"].astype(str)
        for layer in compiled.get_runtime_model().get_ordered_ops()
        if layer.get_rt_info()["layerType"].astype(str) == "Convolution"
    ]
    # 19 of the trunk, and the label map, which stays as it is
    assert sorted(kinds) == ["bf16"] * 16 + ["f32"] * 4


@needs_bfloat
def test_the_form_with_the_marks_is_written_once_however_many_shares_are_tried(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model, written = openvino.save_model, []

    def noting(model: object, file: Path, **options: bool) -> None:
        written.append(file)
        save_model(model, file, **options)

    monkeypatch.setattr(openvino, "save_model", noting)
    monkeypatch.setattr("engine.cpu.available_cpus", lambda: 2)
    with closing(load(narrow, "openvino", precision="bf16")) as backend:
        assert len(vars(backend)["tuned"].trials) > 1
    assert len(written) == 1


@needs_bfloat
def test_bfloat16_is_near_float32_and_not_the_same(narrow: Path) -> None:
    with closing(load(narrow, "openvino")) as half, closing(load(narrow, "openvino", precision="fp32")) as whole:
        gap = np.abs(half.features(PATCHES[:BATCH]).stage1 - whole.features(PATCHES[:BATCH]).stage1)
        again = half.features(PATCHES[:BATCH]).stage1
        assert np.array_equal(again, half.features(PATCHES[:BATCH]).stage1)
    assert 0 < gap.max() < 0.1


def test_a_cpu_without_bfloat16_takes_float32_and_refuses_the_other(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OpenVinoBackend, "rounds", staticmethod(lambda: False))
    with closing(load(narrow, "openvino", threads=1)) as backend:
        assert backend.precision == "fp32"
    for runtime in ("openvino", "onnxruntime"):
        with pytest.raises(RuntimeUnavailable, match=f"{runtime} does not compute in bfloat16 here"):
            load(narrow, runtime, precision="bf16")


def test_a_graph_without_a_layer_left_to_round_is_not_made(narrow: Path) -> None:
    with pytest.raises(ValueError, match="has 19 convolutions, so 19 of them"):
        write_bfloat(narrow, part=FeaturesGraph.TRUNK, keep=19)
