"""ONNX Runtime on the CPU: the runtime that is always there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from engine.backend import Features
from engine.batches import Batches
from engine.cpu import CpuBackend
from engine.graphs import ONNXRUNTIME, FeaturesGraph, Session, open_session, run_session
from engine.tuning import Share


class OnnxRuntimeBackend(CpuBackend):
    """A bundle in ONNX Runtime: a session for each stream of the features graph, and one for the reasoning.

    The runs of one session share its threads, so a stream with threads of its own is a session of its own, with its own
    copy of the weights. With one thread, that of the caller, there is nothing to share, and one session serves all.
    """

    runtime = "onnxruntime"
    versions = ONNXRUNTIME

    def _builder(self, graph: FeaturesGraph) -> Callable[[Share], Batches]:
        return partial(_build, graph)


def _build(graph: FeaturesGraph, share: Share) -> Batches:
    free = SimpleQueue[Session]()
    for stream in range(share.streams):
        if stream == 0 or share.threads > 1:
            session = open_session(graph.onnx, key=graph.file, threads=share.threads)
        free.put(session)
    pool = ThreadPoolExecutor(share.streams, thread_name_prefix="features")

    def run_one(patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        mine = free.get()
        try:
            return run_session(mine, graph.outputs, {"pixels": patches})
        finally:
            free.put(mine)

    def begin(pixels: NDArray[np.uint8]) -> Callable[[], Features]:
        runs = pool.map(run_one, graph.split(pixels))
        return lambda: graph.join(list(runs), len(pixels))

    return Batches(begin=begin)
