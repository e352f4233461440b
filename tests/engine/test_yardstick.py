import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engine import yardstick
from engine.cpus import available_cpus
from engine.graphs import Session
from engine.yardstick import COPY_BYTES, MATRIX_SIDE, PRODUCT_FILE, PRODUCTS


def product_graph() -> onnx.ModelProto:
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "n"]) for name in ("left", "right")}
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, ["n", "n"])
    node = helper.make_node("MatMul", ["left", "right"], ["product"])
    graph = helper.make_graph([node], "product", list(values.values()), [product])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_graph_of_the_product_is_what_it_is_called() -> None:
    assert PRODUCT_FILE.read_bytes() == product_graph().SerializeToString()
    session = onnxruntime.InferenceSession(PRODUCT_FILE.read_bytes(), providers=["CPUExecutionProvider"])
    left, right = np.random.default_rng(0).random((2, 5, 5), np.float32)
    np.testing.assert_allclose(session.run(None, {"left": left, "right": right})[0], left @ right, rtol=1e-5)


def test_a_product_is_the_arithmetic_that_it_is_told_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every CPU at once, by the runtime that is compared with it: NumPy's own product is half as fast."""
    shapes: list[tuple[int, ...]] = []

    def counted(session: Session, outputs: list[str], feed: dict[str, NDArray[np.float32]]) -> None:
        assert outputs == ["product"]
        shapes.extend(matrix.shape for matrix in feed.values())

    monkeypatch.setattr(yardstick, "run_session", counted)
    made = yardstick.cpu_yardstick()
    made.product()
    assert set(shapes) == {(MATRIX_SIDE, MATRIX_SIDE)}
    assert len(shapes) / 2 == PRODUCTS * available_cpus()
    assert made.gflop == len(shapes) / 2 * 2 * MATRIX_SIDE**3 / 1e9
    assert made.gigabytes == 2 * COPY_BYTES / 1e9
