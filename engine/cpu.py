"""What the runtimes for CPUs have in common: one features graph, its threads measured at load, and the reasoning."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from engine.backend import NO_GUARD, Batch, Features, batch_of, check_pixels
from engine.batches import UNDER_WAY, Batches
from engine.cpus import available_cpus
from engine.errors import InferenceError, RuntimeUnavailable
from engine.glance import read_glance
from engine.golden import read_golden
from engine.graphs import FeaturesGraph, Graph, Reasoning
from engine.looks import NO_GLANCE
from engine.manifest import Manifest
from engine.running import default_precision
from engine.slots import measure_slots, slot_patches
from engine.streams import Run, Stream, Streams
from engine.tuning import Conditions, Share, Tuning, tune

UNDER_WAY_AT_A_GLANCE = 4  # a batch that is cleared is over before another is handed over


class CpuBackend(ABC):
    """A bundle whose features graph runs on a CPU, its reasoning in ONNX Runtime.

    Args:
        bundle: folder of the bundle.
        precision: which of the bundle's features graphs runs: fp32, fp16, bf16, int8, or, to measure it, int8-trt; by
            default the runtime's choice. In fp16 a CPU has half-precision weights and computes in float32: no faster,
            and not rounded as on a GPU (`engine.half.rounded_copy` is).
        threads: of the features graph; by default one for each CPU, see `engine.tuning` for how they are shared out.
        batch_size: patches of a batch; by default the manifest's.
        beside: how the bundle in service shares out its threads, which this one then does alike, see `engine.tuning`.

    Attributes:
        tuned: how the threads are shared out, and why.

    Raises:
        BundleError: the bundle is not whole, its graphs do not fit its manifest, or it has no such precision.
        RuntimeUnavailable: the runtime, or this CPU, does not compute in that precision.
        InferenceError: the graph fails on the patches that threads or slots are measured on.
        ValueError: fewer than one thread, or than one patch in a batch.
    """

    runtime: ClassVar[str]
    versions: ClassVar[str]

    def __init__(
        self,
        bundle: Path,
        *,
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
        beside: Tuning | None = None,
    ) -> None:
        self.manifest = Manifest.read(bundle)
        self.precision = default_precision(self.manifest, self.runtime) if precision is None else precision
        if self.precision == "bf16" and not self.rounds():
            raise RuntimeUnavailable(f"{self.runtime} does not compute in bfloat16 here")
        self.batch_size = batch_of(self.manifest, batch_size)
        # read by ONNX Runtime, which takes no weights from files beside the graph, whatever runs it afterwards
        graph = FeaturesGraph.read(bundle, self.manifest, precision=self.precision, batch_size=self.batch_size)
        conditions = Conditions(
            runtime=self.runtime,
            precision=self.precision,
            cpus=available_cpus(),
            patches=self.batch_size // graph.rows,
            glance=self.manifest.glance != NO_GLANCE,
        )
        build = self._builder(graph, read_glance(bundle, self.manifest, graph))
        self.tuned = tune(build, bundle, conditions, threads=threads, beside=beside)
        self._features: Batches | None = build(self.tuned.share)  # which alone holds the graph's bytes
        self._reasoning = Reasoning(bundle, self.manifest)
        self.guard: Mapping[str, float] = NO_GUARD  # patch by patch there are no slots
        if graph.rows > 1:
            golden = read_golden(bundle, self.precision, self.manifest).pixels
            self.guard = measure_slots(self, slot_patches(golden)).guard

    @classmethod
    def rounds(cls) -> bool:
        """Whether the runtime computes in bfloat16 on this CPU."""
        return False

    def _builder(self, graph: FeaturesGraph, glance: Graph | None) -> Callable[[Share], Batches]:
        """What builds `Batches` with a share of the threads; what all shares have in common goes with it.

        Raises:
            BundleError: the runtime refuses a graph; so does what is returned.
        """
        open_whole = self._opener(graph)
        open_glance = None if glance is None else self._opener(glance)

        def build(share: Share) -> Batches:
            glances = [None] * share.streams if open_glance is None else open_glance(share)
            streams = [Stream(whole=w, glance=g) for w, g in zip(open_whole(share), glances, strict=True)]
            return Batches(begin=Streams(graph, streams, asked=self.manifest.glance).begin)

        return build

    @abstractmethod
    def _opener(self, graph: Graph) -> Callable[[Share], list[Run]]:
        """What opens a graph for a share of the threads: a run for each of its streams.

        Raises:
            BundleError: the runtime refuses the graph; so does what is returned.
        """

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        """See `Backend.features`."""
        return Batches(begin=self._begin).run(Batch(pixels, glance))

    def features_many(self, batches: Iterable[Batch]) -> Generator[Features]:
        """See `engine.backend.Streaming`: a batch of five on two CPUs leaves one of them idle at its end."""
        under_way = UNDER_WAY if self.manifest.glance == NO_GLANCE else UNDER_WAY_AT_A_GLANCE
        return Batches(begin=self._begin, under_way=under_way).stream(batches)

    def _begin(self, batch: Batch) -> Callable[[], Features]:
        check_pixels(batch.pixels, self.manifest, self.batch_size)
        run = self._features  # its own: another thread may close
        if run is None:
            raise InferenceError("the backend is closed")
        return run.begin(batch)

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.reason`."""
        return self._reasoning.run(label_features, stage1)

    def close(self) -> None:
        """See `Backend.close`; a call under way in another thread holds its graph until it ends."""
        self._features = None
        self._reasoning.close()
