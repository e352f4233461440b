"""ONNX Runtime on the CPU: the runtime that is always there."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from engine.backend import Features
from engine.cpu import CpuBackend
from engine.graphs import open_session, run_session
from engine.tuning import Run, Share


class OnnxRuntimeBackend(CpuBackend):
    """A bundle in two sessions of ONNX Runtime."""

    runtime = "onnxruntime"

    def _build(self, share: Share) -> Run:
        graph = self._graph
        session = open_session(graph.onnx, key=graph.file, threads=share.threads)
        pool = ThreadPoolExecutor(share.streams, thread_name_prefix="features")

        def run(pixels: NDArray[np.uint8]) -> Features:
            runs = pool.map(
                lambda patches: run_session(session, graph.outputs, {"pixels": patches}), graph.split(pixels)
            )
            return graph.join(list(runs), len(pixels))

        return run
