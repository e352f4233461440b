import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from engine import BundleError, InferenceError, load
from tests.bundles import LABELS, features_graph, tiny_bundle
from tests.engine.test_onnxruntime import PATCH_PX, edit, fix_rows, lose_a_row, rename_input, sign

openvino = pytest.importorskip("engine.openvino").openvino  # not by itself, which would report it


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
