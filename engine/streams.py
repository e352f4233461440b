"""Patches side by side on CPUs: each a run of its own, after a glance where the bundle asks for one."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from engine.backend import Batch, Features
from engine.errors import InferenceError
from engine.glance import DOUBT
from engine.graphs import FeaturesGraph
from engine.looks import NO_GLANCE, Glance

# one run of a graph: patches to its outputs, in their order, or InferenceError; used by one thread at a time
Run = Callable[[NDArray[np.uint8]], list[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What runs in one thread.

    Attributes:
        whole: runs the features graph.
        glance: runs the glance, whose first output is the doubt; None where there is none.
    """

    whole: Run
    glance: Run | None

    def run(self, patches: NDArray[np.uint8], asked: Glance) -> tuple[float, list[NDArray[np.float32]]]:
        """The doubt of a glance, 1 where there is none or none is asked for, and the outputs of the features graph.

        Raises:
            InferenceError: the runtime failed, or answered something impossible.
        """
        if self.glance is None or asked == NO_GLANCE:
            return 1.0, self.whole(patches)
        doubt, *clean = self.glance(patches)
        if doubt.shape != (1,):
            raise InferenceError(f"{DOUBT} came back as {doubt.shape}, expected (1,)")
        return float(doubt[0]), clean if asked.clears(doubt)[0] else self.whole(patches)


class Streams:
    """A thread for each stream, and the batches whose patches they share.

    Args:
        graph: the features graph.
        streams: what each of the threads runs.
        asked: what the bundle asks for.
    """

    def __init__(self, graph: FeaturesGraph, streams: Sequence[Stream], *, asked: Glance) -> None:
        self._graph = graph
        self._asked = asked
        self._free = SimpleQueue[Stream]()
        for stream in streams:
            self._free.put(stream)
        self._pool = ThreadPoolExecutor(len(streams), thread_name_prefix="features")

    def begin(self, batch: Batch) -> Callable[[], Features]:
        """Start a batch; what is returned waits for it.

        Raises:
            InferenceError: what is returned raises it where the runtime failed.
        """
        asked = self._asked if batch.glance else NO_GLANCE
        runs = [self._pool.submit(self._run, patches, asked) for patches in self._graph.split(batch.pixels)]

        def answer() -> Features:
            wait(runs)  # one that failed leaves none under way
            doubt, outputs = zip(*(run.result() for run in runs), strict=True)
            return self._graph.join(outputs, doubt, len(batch.pixels))

        return answer

    def _run(self, patches: NDArray[np.uint8], asked: Glance) -> tuple[float, list[NDArray[np.float32]]]:
        mine = self._free.get()
        try:
            return mine.run(patches, asked)
        finally:
            self._free.put(mine)
