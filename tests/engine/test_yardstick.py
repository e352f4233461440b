from time import perf_counter

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from engine.cpus import available_cpus
from engine.yardstick import MATRIX_SIDE, PRODUCT_FILE, cpu_yardstick


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


def test_the_ceiling_is_no_lower_than_the_runtimes_own_product_on_all_cpus() -> None:
    """Taking turns, the best of each: a ceiling that a runtime passes is none."""
    yardstick = cpu_yardstick()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cpus()
    session = onnxruntime.InferenceSession(PRODUCT_FILE.read_bytes(), options, providers=["CPUExecutionProvider"])
    matrix = np.random.default_rng(1).random((MATRIX_SIDE, MATRIX_SIDE), np.float32)
    gflop = 2 * MATRIX_SIDE**3 / 1e9
    ceiling = runtime = 0.0
    for _ in range(30):
        ceiling = max(ceiling, yardstick.gflop / yardstick.product())
        start = perf_counter()
        session.run(None, {"left": matrix, "right": matrix})
        runtime = max(runtime, gflop / (perf_counter() - start))
    assert runtime <= 1.5 * ceiling  # whatever else the machine does
