"""TensorRT on a GPU: the features graph as a plan, the reasoning in float32 on the CPU.

`features` is one batch, start to end. `features_many` keeps two batches under way: it takes the next one from its
caller, who cuts it only then, and uploads it while the one before computes.

**A lost device.** Some errors spoil a CUDA context for good: every later call fails with `DeviceLost`. `recover` tries
a new context, and says so if that fails as well. CUDA's manual promises a remedy only to a new process, and on an H100
it was so: after an illegal memory access a new context of the same process failed at its first call. Another backend
of the process, as a bundle that is loaded beside the one that serves, may be lost with it and then says so itself.
"""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.backend import NO_GUARD, Batch, Features, batch_of, check_pixels
from engine.batches import Batches
from engine.compiler import CONFIGURATION, VERSION, Progress, RefusedPlan, compile_graph
from engine.errors import DeviceLost, InferenceError, OutOfMemory, PlanError, RuntimeUnavailable
from engine.golden import made_as, read_golden
from engine.gpu import Buffers, Gpu, devices, name_of
from engine.graphs import ONNXRUNTIME, FeaturesGraph, Reasoning
from engine.manifest import Manifest
from engine.plans import Compiled, Plan, PlanCache, PlanKey, default_folder
from engine.running import default_precision
from engine.slots import measure_slots, slot_patches
from engine.yardstick import Yardstick

log = logging.getLogger(__name__)

MARKED_EVERY_S = 86400.0  # the plan of a line that never stops is in use


class TensorRTBackend:
    """A bundle on one GPU; the reasoning stays in float32 on the CPU.

    Args:
        bundle: folder of the bundle.
        precision: of the features graph, made at export: fp16, fp32 or int8; by default fp16 where the bundle has it.
        device: number of the GPU; by default the first that TensorRT can use.
        batch_size: patches in a batch; by default the manifest's.
        cache: of plans; by default the user's.
        progress: told how far a build is, where one is needed.
        prebuilt: see `engine.load`.
        anew: build the plan whatever there is.

    Attributes:
        device: number of the GPU.
        batch_size: see `Backend.batch_size`; once loaded it never changes.
        plan: that was loaded.
        cache: of plans, from which it came.
        notes: what a person should know, such as a smaller batch than asked for.

    Raises:
        BundleError: the bundle must not be served, its graphs do not fit its manifest, or it has no such precision.
        PlanError: TensorRT cannot build the plan, or built one of another precision; or it had to be there and is not,
            or is not known to be faster.
        RuntimeUnavailable: there is no such GPU, or TensorRT cannot use it.
        InferenceError: the GPU's memory does not even hold a batch of one, or not the one that must fit; or the engine
            fails.
        ValueError: there is no such precision, or fewer than one patch in a batch is asked for.
    """

    runtime = "tensorrt"
    versions = f"{VERSION}, {ONNXRUNTIME}"

    def __init__(
        self,
        bundle: Path,
        *,
        precision: str | None = None,
        device: int | None = None,
        batch_size: int | None = None,
        cache: PlanCache | None = None,
        progress: Progress | None = None,
        prebuilt: bool = False,
        anew: bool = False,
    ) -> None:
        usable = devices()
        self.device = usable[0] if device is None else device
        if self.device not in usable:
            raise RuntimeUnavailable(f"there is no GPU {device} that TensorRT can use")
        self.manifest = Manifest.read(bundle)
        self.notes: list[str] = []
        if precision is None:
            precision = default_precision(self.manifest, self.runtime)
            if precision == "fp32":
                self.notes.append("the bundle has no graph in fp16, so it runs in fp32: export it again")
        self.precision = precision.removesuffix("-trt")
        if self.precision == "bf16":  # a float32 graph with a word for OpenVINO
            raise RuntimeUnavailable("TensorRT runs fp32, fp16 and int8 here, not bf16")
        self._bundle = bundle
        wanted = batch_of(self.manifest, batch_size)
        # ONNX Runtime refuses what it would on a CPU, also where there is a plan, which does not tell where its weights
        # came from
        graph = FeaturesGraph.read(bundle, self.manifest, precision=made_as(self), batch_size=wanted)
        self.cache = cache or PlanCache(default_folder())
        self._progress = progress
        self._prebuilt = prebuilt
        self._anew = anew
        self._reasoning = Reasoning(bundle, self.manifest)
        self._closed = False
        self._lost = ""
        self._gpu: Gpu | None = None
        self.batch_size = wanted
        self.plan: Plan
        golden = read_golden(bundle, made_as(self), self.manifest).pixels  # now: a build takes minutes
        self._load_largest(graph, wanted)
        self._marked_at = time.monotonic()
        if self.plan.record.guard_of(self.manifest) is None:
            try:
                self._measure_guard(golden)
            except BaseException:
                self.close()
                raise

    @property
    def guard(self) -> Mapping[str, float]:
        """See `Backend.guard`; measured on this plan for this bundle by whoever loads them first."""
        return self.plan.record.guard_of(self.manifest) or NO_GUARD

    def features(self, pixels: NDArray[np.uint8], *, glance: bool = True) -> Features:
        """See `Backend.features`; here no glance is had.

        Raises:
            DeviceLost: the device fails at everything from now on, until `recover`.
        """
        return Batches(begin=self._begin).run(Batch(pixels, glance))

    def timed_features(self, pixels: NDArray[np.uint8]) -> tuple[Features, float]:
        """`features`, and the seconds that it took by the device's own events; for the benchmark."""
        check_pixels(pixels, self.manifest, self.batch_size)
        with self._using() as gpu:
            return gpu.timed(pixels)

    @contextmanager
    def yardstick(self) -> Iterator[Yardstick]:
        """What this GPU does at best, products in float16 but for a plan in fp32; for the benchmark.

        Raises:
            PlanError: TensorRT builds no matrix product.
            InferenceError: CUDA fails, or memory is short.
        """
        from engine.gpu_yardstick import GpuYardstick

        with self._using():
            own = GpuYardstick(half=self.precision != "fp32")

        def product() -> float:
            with self._using():
                return own.product()

        def copy() -> float:
            with self._using():
                return own.copy()

        try:
            yield Yardstick(product=product, gflop=own.gflop, copy=copy, gigabytes=own.gigabytes)
        finally:
            with suppress(InferenceError), self._using():  # a lost device has lost it too
                own.free()

    def features_many(self, batches: Iterable[Batch]) -> Generator[Features]:
        """Features of one screen's batches in their order, each taken from `batches` while the one before computes.

        Between two batches `features` may be called, as a self-test does. What the iterable raises goes through, and
        so does the failure of a batch; whatever still runs then has ended first.
        """
        return Batches(begin=self._begin).stream(batches)

    def reason(self, label_features: NDArray[np.float32], stage1: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Backend.reason`."""
        return self._reasoning.run(label_features, stage1)

    def recover(self) -> None:
        """Make a lost device usable again, with a new context; harmless when it is not lost.

        The plan is the one that was loaded, which is held in memory: another one, built anew, could score otherwise.

        Raises:
            DeviceLost: it stays lost; only a new process helps, as after an illegal memory access.
            InferenceError: the backend is closed.
        """
        if self._closed:
            raise InferenceError("the backend is closed")
        if not self._lost:
            return
        self._release()
        try:
            self._gpu = Gpu(self.device, lambda: self.plan, self.manifest, self.batch_size)
        except (InferenceError, PlanError, RuntimeUnavailable) as error:
            raise DeviceLost(f"GPU {self.device} is lost, and a new context fails as well: {error}") from error
        self._lost = ""

    def close(self) -> None:
        """See `Backend.close`."""
        self._closed = True
        self._release()
        self.plan = replace(self.plan, data=b"")  # megabytes that only `recover` needs; what is known of it stays
        self._reasoning.close()

    def _load_largest(self, graph: FeaturesGraph, wanted: int) -> None:
        """Load with the largest divisor of `wanted` for which there is memory: a screen's rows stay whole batches.

        Where the plan must be there, `wanted` alone is tried.
        """
        full, least = "", wanted if self._prebuilt else 1
        for size in (size for size in range(wanted, least - 1, -1) if wanted % size == 0):
            try:
                self._load(graph, size)
            except OutOfMemory as error:
                full = str(error)
                continue
            except InferenceError as error:
                raise InferenceError(f"GPU {self.device} fails at the first batch: {error}") from error
            if size < wanted:
                self.notes.append(f"a batch of {wanted} does not fit into GPU {self.device}'s memory: it is {size}")
            if self.plan.unkept:
                self.notes.append(f"the plan could not be kept, the next start builds it again: {self.plan.unkept}")
            return
        if self._prebuilt:
            raise InferenceError(
                f"the memory of GPU {self.device} does not hold a batch of {wanted} beside what runs there: {full}; "
                "set a smaller INSPECT_BATCH and start the service again"
            )
        raise InferenceError(f"the memory of GPU {self.device} does not even hold a batch of one patch: {full}")

    def _measure_guard(self, golden: NDArray[np.uint8]) -> None:
        """Measure how far a score moves with its slot in the batch, and write it into the plan's record."""
        guard = measure_slots(self, slot_patches(golden)).guard
        if not all(math.isfinite(spread) for spread in guard.values()):
            self.cache.forget(self.plan, timing=True)
            raise PlanError("the plan gives probabilities that are no numbers on golden or extreme patches")
        self.plan = replace(self.plan, record=self.plan.record.with_guard(self.manifest, guard))
        try:
            self.cache.set_guard(self.plan, self.manifest, guard)
        except OSError as error:
            self.notes.append(f"the guard band could not be kept, the next start measures it again: {error}")

    def _load(self, graph: FeaturesGraph, batch_size: int) -> None:
        key = PlanKey(
            gpu=name_of(self.device),
            tensorrt=VERSION,
            configuration=CONFIGURATION,
            precision=self.precision,
            batch_size=batch_size,
            graph_sha256=self.manifest.files[graph.file],
        )

        options = f"--batch {batch_size} --precision {self.precision} --device {self.device}"
        command = f"`python -m engine build BUNDLE {options}`"

        def build(timing_cache: bytes) -> Compiled:
            what = f"a plan of {self._bundle / graph.file} in {self.precision} for batches of {batch_size} on {key.gpu}"
            log.info("building %s, which takes minutes", what)
            begun_at = time.monotonic()
            compiled = compile_graph(
                graph.onnx,
                name=graph.file,
                precision=self.precision,
                batch_size=batch_size,
                timing_cache=timing_cache,
                progress=self._progress,
            )
            log.info("built %s in %.1f s", what, time.monotonic() - begun_at)
            return compiled

        def obtain(*, anew: bool) -> Plan:
            if not self._prebuilt:
                return self.cache.obtain(key, build, anew=anew)
            plan = None if anew else self.cache.used(key)
            if plan is None:
                raise PlanError(f"there is no plan, build it first: {command}")
            if self.precision == "int8" and not plan.record.speed:
                raise PlanError(f"whether int8 is faster here is not known, measure it first: {command}")
            return plan

        try:
            self._gpu = Gpu(self.device, partial(obtain, anew=self._anew), self.manifest, batch_size)
        except RefusedPlan:  # whole, and by its record for this GPU: as good as none
            self._gpu = Gpu(self.device, partial(obtain, anew=True), self.manifest, batch_size)
        self.plan, self.batch_size = self._gpu.plan, batch_size

    def _release(self) -> None:
        gpu, self._gpu = self._gpu, None
        if gpu is not None:
            gpu.release()

    def _begin(self, batch: Batch) -> Callable[[], Features]:
        if time.monotonic() - self._marked_at > MARKED_EVERY_S:
            self._marked_at = time.monotonic()
            self.cache.mark(self.plan)
        return partial(self._collect, self._submit(batch.pixels))

    def _submit(self, pixels: NDArray[np.uint8]) -> Buffers:
        check_pixels(pixels, self.manifest, self.batch_size)
        with self._using() as gpu:
            return gpu.submit(pixels)

    def _collect(self, buffers: Buffers) -> Features:
        with self._using() as gpu:
            return gpu.collect(buffers)

    @contextmanager
    def _using(self) -> Iterator[Gpu]:
        """The GPU with its context current to this thread; what spoils the context loses the device."""
        if self._closed:
            raise InferenceError("the backend is closed")
        if self._lost or self._gpu is None:
            raise DeviceLost(f"GPU {self.device} is lost: {self._lost}")
        gpu = self._gpu
        try:
            with gpu.current():
                yield gpu
        except InferenceError as error:
            self._lost = gpu.spoiled()
            if self._lost:
                raise DeviceLost(f"GPU {self.device} is lost: {self._lost}") from error
            if isinstance(error, OutOfMemory):
                raise OutOfMemory(f"the memory of GPU {self.device} is full: {error}") from error
            raise
