"""ONNX Runtime on the CPU: the runtime that is always there."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engine.cpu import CpuBackend
from engine.graphs import ONNXRUNTIME, Graph, Session, open_session, run_session
from engine.mirror import write_mirrored
from engine.streams import Run
from engine.tuning import Share


class OnnxRuntimeBackend(CpuBackend):
    """A bundle in ONNX Runtime: a session for each stream of the features graph, and one for the reasoning.

    The runs of one session share its threads, so a stream with threads of its own is a session of its own, with its own
    copy of the weights. With one thread, that of the caller, there is nothing to share, and one session serves all.
    """

    runtime = "onnxruntime"
    versions = ONNXRUNTIME

    def _opener(self, graph: Graph) -> Callable[[Share], list[Run]]:
        return partial(_open, graph)


def _open(graph: Graph, share: Share) -> list[Run]:
    def opened() -> Session:
        return open_session(graph.onnx, key=graph.file, threads=share.threads)

    sessions = [opened()] * share.streams if share.threads == 1 else [opened() for _ in range(share.streams)]
    return [partial(_run, session, graph) for session in sessions]


def _run(session: Session, graph: Graph, patches: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    if graph.side == patches.shape[-1]:
        pixels = np.ascontiguousarray(patches)
    else:
        pixels = np.empty((*patches.shape[:-2], graph.side, graph.side), np.uint8)
        write_mirrored(patches, pixels)
    return run_session(session, graph.outputs, {"pixels": pixels})
